"""Does an ablation find what was planted, and nothing else? Many generated shops, one study each.

    python benchmarks/planted.py --shops 20

In every shop texts and pictures are planted as shares of preference, and the acoustic features
carry nothing (mmbench/data/sources/demo.py). A study trains VBPR in full and without each of the
three, and tests the gain of each modality in one Holm family at 5 %. A modality counts as found
where the full model is significantly better than the one without it. The stated error: in at most
5 % of the shops acoustic is found. That the full model is significantly *worse* is counted too:
features that carry nothing cost a model something, which is an effect and no error.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
from rich.table import Table
from scipy.stats import beta

from mmbench import console
from mmbench.data.prepare import prepare
from mmbench.data.sources.demo import Demo, DemoConfig
from mmbench.engine.device import choose
from mmbench.engine.extract import extract_builtin
from mmbench.recipe import load_recipe
from mmbench.report.gains import gains
from mmbench.studies.ablation import Asked, design
from mmbench.studies.questions import questions
from mmbench.studies.training import Workplace, train_recipes

ALPHA = 0.05
PLANTED, NOTHING = ("textual", "visual"), "acoustic"
QUICK = ("training.epochs=16", "training.evaluate_every=4", "training.learning_rate=0.01")


@dataclass(frozen=True)
class Found:
    """What a study says of one modality in one shop; p adjusted within its family."""

    shop: int
    modality: str
    gain: float
    low: float
    high: float
    over_users: float
    over_systems: float | None

    def says(self, level: str, better: bool) -> bool:
        """Whether the full model is significantly better (or worse) by a test."""
        p = self.over_users if level == "users" else self.over_systems
        return p is not None and p < ALPHA and (self.gain > 0) == better


def study(
    shop: int,
    folder: Path,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    metric: str = "recall@20",
    settings: Sequence[str] = QUICK,
) -> list[Found]:
    """Generate a shop, train, and test the gain of each modality.

    Args:
        shop: the generator's seed.
        folder: of data and runs; what is there already is not made again.
        seeds: of the trainings.
        metric: what is tested.
        settings: changes to the shipped recipe.
    """
    place = Workplace(folder / f"shop-{shop}", folder / f"runs-{shop}", choose("cpu"))
    usual = Demo.config
    Demo.config = replace(DemoConfig(), seed=shop)
    try:
        prepare("demo", data_dir=place.data_dir)
    finally:
        Demo.config = usual
    extract_builtin("demo", place.data_dir)
    recipe = load_recipe("demo/vbpr", seeds=seeds, settings=settings)
    plan = design([recipe], [Asked("drop", "each")])
    (question,) = questions(plan, train_recipes(plan.recipes, place))
    return [
        Found(shop, gain.series.rpartition("-")[2], gain.gain, gain.low, gain.high, gain.adjusted,
              gain.system_adjusted)
        for gain in gains(question.compare([metric]), of_reference=True)
    ]  # fmt: skip


def exact_interval(k: int, n: int) -> tuple[float, float]:
    """Clopper and Pearson's 95 % interval of a share."""
    low = float(beta.ppf(0.025, k, n - k + 1)) if k else 0.0
    high = float(beta.ppf(0.975, k + 1, n - k)) if k < n else 1.0
    return low, high


@click.command()
@click.option("--shops", default=20, show_default=True, help="Generator seeds, from 1.")
@click.option("--seeds", default=3, show_default=True, help="Trainings of each model.")
@click.option("--metric", default="recall@20", show_default=True)
@click.option("--full", is_flag=True, help="Train as the shipped recipe does, not shortly.")
@click.option(
    "--folder", type=click.Path(path_type=Path), default=Path("planted"), show_default=True
)
@click.option(
    "--json", "file", type=click.Path(path_type=Path), help="Also write the figures here."
)
def main(shops: int, seeds: int, metric: str, full: bool, folder: Path, file: Path | None) -> None:
    """Count the shops in which each modality is found."""
    every: list[Found] = []
    for shop in range(1, shops + 1):
        every += study(
            shop, folder, seeds=range(seeds), metric=metric, settings=() if full else QUICK
        )
        said = ", ".join(f"{f.modality} {f.gain:+.4f} (p {f.over_users:.3f})" for f in every[-3:])
        console.note(f"shop {shop}: {said}")
        if file:
            file.write_text(json.dumps([asdict(found) for found in every], indent=2))
    table = Table(
        title=f"Shops of {shops} in which a modality is found: {metric}, Holm at 5 % over 3 tests",
        title_justify="left",
    )
    heads = ("test over", "modality", "planted", "better", "95 % interval", "worse", "mean gain")
    for head in heads:
        table.add_column(head, justify="left" if head in heads[:3] else "right")
    for level in ("users", "systems") if seeds >= 3 else ("users",):
        for modality in (*PLANTED, NOTHING):
            own = [found for found in every if found.modality == modality]
            better = sum(found.says(level, True) for found in own)
            low, high = exact_interval(better, len(own))
            table.add_row(
                "users" if level == "users" else "users and seeds",
                modality,
                "yes" if modality in PLANTED else "no",
                f"{better}",
                f"{low:.0%} to {high:.0%}",
                f"{sum(found.says(level, False) for found in own)}",
                f"{sum(found.gain for found in own) / len(own):+.4f}",
            )
    console.result(table)


if __name__ == "__main__":
    main()
