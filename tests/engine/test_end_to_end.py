"""Encoders inside a general model's loss, against encoding everything anew in every step."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from mmbench.cli.main import cli
from mmbench.engine.building import build_model
from mmbench.engine.device import choose
from mmbench.engine.end_to_end import EndToEnd
from mmbench.engine.inputs import Inputs, load_inputs
from mmbench.engine.live import LiveItemEncoder, make_features
from mmbench.engine.step import Step
from mmbench.engine.train import train_run
from mmbench.engine.trained import load_trained
from mmbench.errors import ConfigError
from mmbench.models.base import Batch, Recommender
from mmbench.models.fusion import FeatureTables
from mmbench.models.lattice import LATTICE
from mmbench.recipe import Recipe, RunRecipe, system_hash
from mmbench.recipe_files import apply_settings
from mmbench.runs import open_run

CPU = choose("cpu")
N_ITEMS, N_USERS = 14, 20
NO_TEXT, NO_PICTURE = 3, 5
TOPICS = ["sail harbour tide", "oven dough flour", "guitar piano drum"]
RATE, ENCODER_RATE = 0.05, 0.2


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Users like one topic each, which the texts tell; one item has no text, one no picture."""
    from mmbench.data.cleaning import PrepareConfig
    from mmbench.data.prepare import prepare

    root = tmp_path_factory.mktemp("end-to-end-data")
    source = root / "raw"
    (source / "images").mkdir(parents=True)
    rows = [
        f"u{user:02d},i{item:02d},{1_600_000_000 + item + user % 7}"
        for user in range(N_USERS)
        for item in range(N_ITEMS)
        if item % 3 == user % 3 or (user + item) % 7 == 0
    ]
    (source / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    titles = [f"{TOPICS[i % 3]} {TOPICS[i % 2].split()[i % 3]}" for i in range(N_ITEMS)]
    titles[NO_TEXT] = ""
    lines = [f"i{i:02d},{title}" for i, title in enumerate(titles)]
    (source / "items.csv").write_text("\n".join(["item_id,title", *lines]) + "\n")
    rng = np.random.default_rng(2)
    for i in range(N_ITEMS):
        if i != NO_PICTURE:
            noise = rng.integers(0, 256, (5, 4, 3), dtype=np.uint8)
            picture = Image.fromarray(noise).resize((40, 50), Image.Resampling.NEAREST)
            picture.save(source / "images" / f"i{i:02d}.png")
    config = PrepareConfig(text_fields=("title",))
    prepare("mine", source=source, data_dir=root / "data", config=config, splits=["leave-one-out"])
    return root / "data"


MODELS: dict[str, dict[str, Any]] = {
    "vbpr": {"embedding_size": 6},
    "mmgcn": {"embedding_size": 6, "visual_size": 7},
    "mmgcl": {"embedding_size": 6, "n_layers": 2},
    "slmrec": {"embedding_size": 6, "n_layers": 2},
    "lattice": {"embedding_size": 6, "feature_size": 5, "k": 4},
}


@pytest.fixture
def raw(weights: Callable[[str], str]) -> Callable[..., dict[str, Any]]:
    """A recipe's values."""

    def make(
        model: str,
        encoder: Any = "end_to_end",
        encoders: dict[str, Any] | None = None,
        settings: dict[str, Any] | None = None,
        **training: Any,
    ) -> dict[str, Any]:
        if encoders is None:
            encoders = {
                "visual": {"name": "mae-b16", "preprocess": "mmsr"},
                "textual": {"name": "bert", "max_tokens": 12},
            }
        return {
            "dataset": "mine",
            "protocol": {"split": "leave-one-out"},
            "encoders": {
                name: {**how, "weights": weights(how["name"])} for name, how in encoders.items()
            },
            "model": {"name": model, **MODELS.get(model, {}), **(settings or {})},
            "training": {
                "epochs": 3,
                "batch_size": 32,
                "optimizer": "sgd",
                "learning_rate": RATE,
                "encoder_learning_rate": ENCODER_RATE,
                "select_by": "ndcg@5",
                "encoder": encoder,
                **training,
            },
            "evaluation": {"metrics": ["ndcg@5"], "depth": 10},
        }

    return make


@dataclass
class Work:
    recipe: RunRecipe
    inputs: Inputs
    model: Recommender
    step: Step

    @property
    def encoding(self) -> EndToEnd:
        assert self.step.encoding is not None
        return self.step.encoding

    def run(self, n_steps: int = 2, rows: int = 9) -> None:
        """Some steps, each after a seed of its own."""
        self.model.train()
        torch.manual_seed(99)
        self.model.on_epoch_start(1)
        self.encoding.start_epoch(1, n_steps)
        for at in range(n_steps):
            torch.manual_seed(at)
            self.step(drawn(at, rows))

    @property
    def encoders(self) -> dict[str, LiveItemEncoder]:
        return {
            place.modality: place.encoder
            for place in self.encoding.places  # in the order of drawing
        }


def drawn(seed: int, rows: int) -> Batch:
    """Rows of a few items, the two that lack a modality among them."""
    generator = torch.Generator().manual_seed(seed)
    few = torch.tensor([0, NO_TEXT, NO_PICTURE, 7, 9, 12])
    users = torch.randint(N_USERS, (rows,), generator=generator)
    items = [few[torch.randint(6, (rows,), generator=generator)] for _ in range(2)]
    return Batch(users, *items)


@pytest.fixture
def work(data: Path, raw: Callable[..., dict[str, Any]]) -> Callable[..., Work]:
    """A model of a recipe with all that trains it."""

    def make(*args: Any, **changes: Any) -> Work:
        (recipe,) = Recipe(raw(*args, **changes), "test").expand()
        inputs = load_inputs(recipe, data)
        model = build_model(recipe, inputs, CPU)
        how = recipe.training.encoder
        assert how is not None
        encoding = EndToEnd(model, how, recipe.training.precision, CPU)
        return Work(recipe, inputs, model, Step(model, recipe.training, CPU, encoding))

    return make


class Literal(nn.Module):
    """Tables of features that are given whole, with or without gradient, and nothing else."""

    def __init__(self, old: FeatureTables, unit: bool) -> None:
        super().__init__()
        self.modalities, self.encoders, self.unit = old.modalities, old.encoders, unit
        self.now: dict[str, Tensor] = {}
        self.still: dict[str, Tensor] = {}

    def _shown(self, table: Tensor) -> Tensor:
        return table / table.norm(dim=1, keepdim=True) if self.unit else table

    def __getitem__(self, modality: str) -> Tensor:
        return self._shown(self.now[modality])

    def table(self, modality: str) -> Tensor:
        return self._shown(self.still[modality])

    def rows(self, modality: str, items: Tensor) -> Tensor:
        return self[modality][items]

    def projected(self, modality: str, layer: nn.Module) -> Tensor:
        projected: Tensor = layer(self[modality])
        return projected


def literal(model: Recommender) -> list[Literal]:
    """Put them in place of the model's tables."""
    found = []
    for name, tables in list(model.named_modules()):
        if isinstance(tables, FeatureTables):
            path, _, leaf = name.rpartition(".")
            is_unit = tables._prepare is not None
            found.append(Literal(tables, is_unit))
            setattr(model.get_submodule(path), leaf, found[-1])
    return found


def whole(vectors: Tensor, mean: Tensor, modality: str) -> Tensor:
    """A table of the vectors of the items that have a modality, and their mean for the other."""
    lacking = {"textual": NO_TEXT, "visual": NO_PICTURE}[modality]
    return torch.cat([vectors[:lacking], mean, vectors[lacking:]])


def naively(work: Work, mode: str, size: int | None, n_steps: int = 2, rows: int = 9) -> None:
    """The same steps by plain gradient descent, every item encoded in every one."""
    encoders, model = work.encoders, work.model
    tables = literal(model)
    learning = {id(p) for encoder in encoders.values() for p in encoder.parameters()}
    model.train()
    torch.manual_seed(99)
    model.on_epoch_start(1)
    model.zero_grad()
    means: dict[str, Tensor] = {}
    for at in range(n_steps):
        batch = drawn(at, rows)
        read = model.batch_items(batch)
        torch.manual_seed(at)
        for modality, encoder in encoders.items():
            having = torch.tensor(
                [i for i in range(N_ITEMS) if i != {"textual": 3, "visual": 5}[modality]]
            )
            in_batch = torch.isin(having, read)
            with torch.no_grad():
                encoder.eval()
                still = encoder.vectors(having)
                encoder.train(mode != "accumulate")
            if mode in ("full", "accumulate"):
                rows_of = torch.cat(
                    [encoder.vectors(part) for part in torch.split(having, size or 99)]
                )
            else:
                encoded = [
                    encoder.vectors(part) for part in torch.split(having[in_batch], size or 99)
                ]
                rows_of = still.index_put((in_batch.nonzero()[:, 0],), torch.cat(encoded))
            if mode != "batch" or at == 0:  # nothing reads its table but for these
                means[modality] = still.mean(dim=0, keepdim=True)
            for one in tables:
                if modality in one.modalities:
                    one.still[modality] = whole(still, means[modality], modality)
                    one.now[modality] = whole(rows_of, means[modality], modality)
        if at == 0 or mode != "accumulate":
            state = torch.get_rng_state()
            model.on_features_change()
            torch.set_rng_state(state)
        torch.autograd.backward(list(model.training_step(batch).values()))
        with torch.no_grad():
            for parameter in model.parameters():
                is_encoder = id(parameter) in learning
                if is_encoder and mode == "accumulate" and at + 1 < n_steps:
                    continue
                if parameter.grad is not None:
                    parameter.sub_((ENCODER_RATE if is_encoder else RATE) * parameter.grad)
                    parameter.grad = None


def compare(found: Work, expected: Work, before: dict[str, Tensor]) -> None:
    """All weights are equal, and those of the encoders have moved."""
    got, wanted = dict(found.model.named_parameters()), dict(expected.model.named_parameters())
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        told = f"{name} is off by {float((got[name] - value).detach().abs().max())}"
        torch.testing.assert_close(got[name], value, atol=2e-6, rtol=2e-5, msg=told)
    moved = [
        float((got[name].detach() - before[name]).abs().max())
        for name in got
        if ".learning." in name
    ]
    assert moved
    assert max(moved) > 1e-5


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("model", "mode", "at_once"),
    [
        ("vbpr", "batch", None),
        ("vbpr", "batch", 2),
        ("vbpr", "full", 4),
        ("vbpr", "accumulate", 4),
        ("mmgcn", "stale", 2),
        ("mmgcn", "full", None),
        ("mmgcl", "stale", None),
        ("mmgcl", "full", 4),
        ("slmrec", "stale", 2),
        ("slmrec", "accumulate", None),
        ("lattice", "stale", None),
        ("lattice", "stale", 2),
        ("lattice", "full", 4),
        ("lattice", "accumulate", 5),
    ],
)
def test_steps_are_those_of_encoding_everything(
    work: Callable[..., Work], model: str, mode: str, at_once: int | None
) -> None:
    refresh = 2 if mode == "accumulate" else 1  # the encoder learns once, of both steps together
    how = {"mode": mode, "at_once": at_once, "refresh": refresh}
    found, expected = work(model, how), work(model, how)
    before = weights_of(found.model)
    for name, value in weights_of(expected.model).items():
        assert torch.equal(value, before[name])
    found.run()
    naively(expected, mode, at_once)
    compare(found, expected, before)


@pytest.mark.parametrize(
    ("model", "mode"),
    [
        ("bm3", "batch"),
        ("freedom", "batch"),
        ("lgmrec", "stale"),
        ("mcln", "stale"),
        ("mgce", "stale"),
        ("mgcl", "full"),
        ("mgcn", "full"),
        ("smore", "full"),
    ],
)
def test_other_models_that_read_features_in_every_step(
    work: Callable[..., Work], model: str, mode: str
) -> None:
    how, small = {"mode": mode, "refresh": 1}, {"embedding_size": 6}
    if model == "freedom":
        small["feature_weight"] = 1
    found, expected = (work(model, how, TEXT, small) for _ in range(2))
    before = weights_of(found.model)
    found.run(1)
    naively(expected, mode, None, n_steps=1)
    compare(found, expected, before)


TEXT = {"textual": {"name": "bert", "max_tokens": 12}}


@pytest.mark.parametrize(
    "how",
    [{"checkpointing": True}, {"cache": False}, {"tune": "full"}],
    ids=["checkpointing", "no-kept-trunk", "all-of-it"],
)
def test_what_saves_time_or_memory_changes_no_step(
    work: Callable[..., Work], how: dict[str, Any]
) -> None:
    encoder = {**TEXT["textual"], **({"tune": "full"} if "tune" in how else {})}
    found = work("vbpr", {"at_once": 2}, {"textual": {**TEXT["textual"], **how}})
    expected = work("vbpr", {"mode": "batch"}, {"textual": encoder})
    before = weights_of(found.model)
    found.run()
    naively(expected, "batch", 2)
    compare(found, expected, before)


def test_half_precision_keeps_the_gradient_of_what_is_encoded_in_parts(
    work: Callable[..., Work],
) -> None:
    moves = []
    for at_once in (None, 2):
        visual = {"visual": {"name": "mae-b16"}}  # which draws nothing
        one = work("vbpr", {"at_once": at_once}, visual, precision="bfloat16")
        before = weights_of(one.model)
        one.run(1)
        after = weights_of(one.model)
        moves.append(torch.cat([(after[n] - before[n]).flatten() for n in after if "learn" in n]))
    assert float(moves[0].norm()) > 1e-4
    assert float(torch.cosine_similarity(moves[0], moves[1], dim=0)) > 0.99


@pytest.mark.parametrize("mode", ["batch", "stale", "full", "accumulate"])
def test_a_batch_in_parts_is_the_same_step(work: Callable[..., Work], mode: str) -> None:
    """By the recipe, or because memory is not enough: what failed leaves nothing behind."""
    visual = {"visual": {"name": "mae-b16"}}
    once, parts, failing = (
        work(
            "vbpr",
            {"mode": mode, "at_once": 6, "refresh": 2},
            visual,
            {"regularization": 0.0},
            accumulate=n_parts,
        )
        for n_parts in (1, 3, 1)
    )
    step = failing.model.training_step

    def greedy(batch: Batch) -> dict[str, Tensor]:
        terms = step(batch)
        if len(batch) > 3:
            raise torch.OutOfMemoryError("too much")
        return terms

    failing.model.training_step = greedy  # type: ignore[method-assign]
    before = weights_of(once.model)
    for one in (once, parts, failing):
        one.run(2)
    assert failing.step.parts == 4
    compare(parts, once, before)
    compare(failing, once, before)


def test_items_without_the_modality_are_not_encoded(work: Callable[..., Work]) -> None:
    one = work("vbpr", encoders=TEXT)
    (place,) = one.encoding.places
    assert NO_TEXT not in place.everything.tolist()
    table = place.tables.encoded("textual")
    others = table[torch.arange(N_ITEMS) != NO_TEXT]
    torch.testing.assert_close(table[NO_TEXT], others.mean(dim=0))
    before = weights_of(one.model)
    one.model.train()
    one.encoding.start_epoch(1, 1)
    lacking = torch.full((4,), NO_TEXT)
    one.step(Batch(torch.arange(4), lacking, lacking))
    after = weights_of(one.model)
    assert one.encoding.n_encoded == 0
    assert not torch.equal(after["users"], before["users"])
    assert all(torch.equal(after[name], before[name]) for name in after if ".learning." in name)


def test_an_encoder_at_rest_gives_such_items_the_same_row(
    data: Path, raw: Callable[..., dict[str, Any]]
) -> None:
    """As stored sets do: a frozen run differs from one end to end in what is learnt alone."""
    values = raw("vbpr", None, {"textual": {**TEXT["textual"], "tune": "none"}})
    (recipe,) = Recipe(values, "test").expand()
    model = build_model(recipe, load_inputs(recipe, data), CPU)
    table = model.get_buffer("features")
    others = table[torch.arange(N_ITEMS) != NO_TEXT]
    torch.testing.assert_close(table[NO_TEXT], others.mean(dim=0))


def test_each_item_of_a_batch_is_encoded_once(work: Callable[..., Work]) -> None:
    one = work("slmrec", encoders=TEXT)
    one.run(1, rows=500)  # more rows than there are items
    items = set(drawn(0, 500).positives.tolist()) - {NO_TEXT}  # its negatives are not used
    assert one.encoding.n_encoded == len(items)


def test_only_what_is_to_learn_learns(work: Callable[..., Work]) -> None:
    one = work("vbpr", encoders={"textual": {**TEXT["textual"], "cache": False}})
    module = one.encoders["textual"]._encoder.module
    before = {name: value.clone() for name, value in module.state_dict().items()}
    one.run(3)
    moved = {n for n, v in module.state_dict().items() if not torch.equal(v, before[n])}
    last = ("encoder.layer.2.", "encoder.layer.3.")
    # The bias of keys has no effect on attention, so its gradient is rounding alone.
    wanted = {n for n in before if n.startswith(last) and not n.endswith("key.bias")}
    assert wanted <= moved
    assert all(name.startswith(last) for name in moved)


def test_the_encoder_rests_at_first(work: Callable[..., Work]) -> None:
    one = work("lattice", {"warmup_epochs": 1}, TEXT)
    before = weights_of(one.model)
    one.run(2)
    after = weights_of(one.model)
    assert all(torch.equal(after[name], before[name]) for name in after if ".learning." in name)
    assert not torch.equal(after["nodes"], before["nodes"])
    assert one.encoding.age == one.encoding.n_encoded == 0
    one.encoding.start_epoch(2, 1)
    one.step(drawn(7, 9))
    after = weights_of(one.model)
    assert any(not torch.equal(after[n], before[n]) for n in after if ".learning." in n)


def test_the_table_is_as_old_as_it_is_said_to_be(work: Callable[..., Work]) -> None:
    one = work("mmgcn", {"refresh": 3}, TEXT)
    (place,) = one.encoding.places
    first, ages = place.tables.encoded("textual").clone(), []
    assert one.encoding.drift() == pytest.approx({"textual": 1.0})
    one.model.train()
    one.encoding.start_epoch(1, 7)
    for at in range(7):
        one.step(drawn(at, 9))
        ages.append(one.encoding.age)
    assert ages == [1, 2, 3, 1, 2, 3, 1]
    one.encoding.bring_up_to_date()
    now = place.tables.encoded("textual")
    assert torch.equal(now[place.everything], place.encoder.every_vector(place.everything))
    cosines = torch.cosine_similarity(now, first)[place.everything]
    assert one.encoding.drift() == pytest.approx({"textual": float(cosines.mean())})
    unit = place.tables.table("textual")
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(N_ITEMS))


def test_groups_are_clipped_apart(work: Callable[..., Work]) -> None:
    one = work("vbpr", encoders=TEXT, clip_norm=0.01, encoder_clip_norm=0.002)
    before = weights_of(one.model)
    one.run(1)
    moved = {n: value - before[n] for n, value in weights_of(one.model).items()}
    for is_encoder, rate, norm in ((False, RATE, 0.01), (True, ENCODER_RATE, 0.002)):
        parts = [v.flatten() for n, v in moved.items() if (".learning." in n) == is_encoder]
        assert float(torch.cat(parts).norm()) / rate == pytest.approx(norm, rel=1e-2)


@pytest.mark.parametrize("model", MODELS)
def test_tables_can_learn_themselves(
    data: Path, raw: Callable[..., dict[str, Any]], model: str
) -> None:
    (recipe,) = Recipe(raw(model, {"mode": "table"}, TEXT), "test").expand()
    assert Recipe(recipe.as_dict(), "again").expand()[0].identity() == recipe.identity()
    made = build_model(recipe, load_inputs(recipe, data), CPU)
    assert not any(isinstance(part, LiveItemEncoder) for part in made.modules())
    (name,) = (n for n, p in made.named_parameters() if p.shape == (N_ITEMS, 16))
    start = made.get_parameter(name).detach().clone()
    step = Step(made.train(), recipe.training, CPU)
    made.on_epoch_start(1)
    step(drawn(0, 9))
    assert not torch.equal(made.get_parameter(name), start)


@pytest.mark.parametrize(
    ("model", "how", "settings"),
    [
        ("lattice", {"refresh": 3, "warmup_epochs": 1}, {"evaluate_every": 2}),
        ("mmgcl", {"mode": "accumulate", "refresh": 2}, {}),
        ("vbpr", {"at_once": 5}, {}),
    ],
)
def test_an_interrupted_run_ends_in_the_same_bits(
    data: Path,
    raw: Callable[..., dict[str, Any]],
    tmp_path: Path,
    model: str,
    how: dict[str, Any],
    settings: dict[str, Any],
) -> None:
    training = {"epochs": 4, "optimizer": "adam", "learning_rate": 0.01, **settings}
    (recipe,) = Recipe(raw(model, how, TEXT, **training), "test").expand()
    folder = data / "mine" / "kept"

    def train(name: str, stop: int | None = None) -> Path:
        def listen(_: Any, record: dict[str, Any], __: Any) -> None:
            if record["epoch"] == stop:
                raise KeyboardInterrupt

        made = train_run(
            recipe,
            data_dir=data,
            runs_dir=tmp_path / name,
            compute=CPU,
            on_epoch=listen,
            checkpoint_every_s=0,
        )
        return made.path

    whole = train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("broken", stop=4)  # the checkpoint is of the epoch before, in the middle of a table
    shutil.rmtree(folder)
    resumed = train("broken")
    first, second = (load_file(path / "weights.safetensors") for path in (whole, resumed))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    for part in ("valid", "test"):
        lists = [np.load(path / "lists" / part / "items.npy") for path in (whole, resumed)]
        assert np.array_equal(*lists)
    records = [[record.get("encoder") for record in history(path)] for path in (whole, resumed)]
    assert records[0] == records[1]


def history(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


ENCODERS: dict[str, dict[str, Any]] = {
    "vbpr": {
        "visual": {"name": "clip-vit-b32", "preprocess": "mmsr"},
        "textual": {"name": "clip-vit-b32"},
    },
    "mmgcn": {"joint": {"name": "vlmo-base-plus"}},
    "mmgcl": {"visual": {"name": "mae-b16", "mask_ratio": 0.5}, "textual": {"name": "bert"}},
    "slmrec": {"visual": {"name": "vlmo-base-plus"}, "textual": {"name": "vlmo-base-plus"}},
    "lattice": {"visual": {"name": "mae-b16", "tune": "none"}, "textual": {"name": "bert"}},
}


def test_the_models_of_the_paper_from_the_command_line(
    data: Path, raw: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    for model, encoders in ENCODERS.items():
        values = raw(model, "end_to_end", encoders, epochs=2, optimizer="adam")
        (tmp_path / f"{model}.yaml").write_text(yaml.safe_dump(values))
    places = ["--data-dir", str(data), "--runs-dir", str(tmp_path / "runs"), "--device", "cpu"]
    files = [str(tmp_path / f"{model}.yaml") for model in MODELS]
    told = CliRunner().invoke(cli, ["train", *files, *places])
    assert told.exit_code == 0, told.output
    runs = [open_run(path) for path in sorted((tmp_path / "runs").iterdir())]
    assert sorted(run.manifest["model"]["name"] for run in runs) == sorted(MODELS)
    for run in runs:
        last = history(run.path)[-1]
        assert last["encoder"]["items"] > 0
        assert last["encoder"]["table_age"] > 0
        learning = {m for m, how in ENCODERS[run.label].items() if how.get("tune") != "none"}
        assert set(last["encoder"]["drift"]) == learning
        assert all(cosine < 1 for cosine in last["encoder"]["drift"].values())
        assert [name for name in load_file(run.path / "weights.safetensors") if "learning" in name]
        assert load_trained(run, data, CPU).agreement == 1.0


def test_lattice_keeps_the_graph_of_the_features_at_the_start(work: Callable[..., Work]) -> None:
    """Equation 5: nearly all of the item graph would otherwise move under the item vectors."""
    one = work("lattice", {"refresh": 1}, TEXT, optimizer="adam")
    (place,) = one.encoding.places
    first = place.tables.encoded("textual").double()
    unit = first / first.norm(dim=1, keepdim=True)
    expected = torch.zeros(N_ITEMS, N_ITEMS, dtype=torch.float64)
    for item in range(N_ITEMS):
        cosines = unit @ unit[item]
        for near in cosines.sort(descending=True).indices[:4].tolist():
            expected[item, near] = cosines[near]
    scale = expected.sum(dim=1).rsqrt()
    one.run(3)
    one.encoding.bring_up_to_date()
    assert float((place.tables.encoded("textual") - first).abs().max()) > 1e-3
    assert isinstance(one.model, LATTICE)
    (graph,) = one.model.item_graphs.raw()
    found = torch.zeros(N_ITEMS, N_ITEMS).scatter(1, graph.indices, graph.weights)
    wanted = (scale[:, None] * expected * scale).float()
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_lattice_with_the_first_graph_alone_has_nothing_to_learn_by(
    work: Callable[..., Work],
) -> None:
    with pytest.raises(ConfigError, match=r"model\.raw_weight: 1 leaves nothing"):
        work("lattice", "end_to_end", TEXT, {"raw_weight": 1.0})


@pytest.mark.parametrize(
    ("model", "settings"),
    [("vbpr", {}), ("lattice", {"rebuild": "batch"})],
    ids=["vbpr", "lattice"],
)
def test_an_encoder_that_hardly_moves_has_the_losses_of_its_stored_vectors(
    work: Callable[..., Work], model: str, settings: dict[str, Any]
) -> None:
    """Step by step, so that what differs from a frozen run is what the encoder learnt alone."""
    settings = {**settings, **({"freeze_features": True} if model == "lattice" else {})}
    visual = {"visual": {"name": "mae-b16"}}  # which draws nothing
    live = work(model, {"refresh": 1}, visual, settings, encoder_learning_rate=1e-12)
    (source,) = live.inputs.live
    how = {"seed": live.recipe.seed, "precision": "float32", "compute": CPU}
    (given,) = make_features([source], **how, is_sequential=False)
    frozen = type(live.model)(
        live.recipe.settings, live.inputs.train, [replace(given, encoder=None)]
    )
    frozen.load_state_dict(live.model.state_dict(), strict=False)
    step = Step(frozen.train(), live.recipe.training, CPU)
    live.model.train()
    live.encoding.start_epoch(1, 4)
    for at in range(4):
        both = live.step(drawn(at, 9)), step(drawn(at, 9))
        torch.testing.assert_close(both[0], both[1], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("model", "settings"), [("vbpr", {}), ("lattice", {"raw_weight": 0.5})], ids=["vbpr", "lattice"]
)
def test_learning_end_to_end_beats_the_same_encoder_at_rest(
    data: Path,
    raw: Callable[..., dict[str, Any]],
    tmp_path: Path,
    model: str,
    settings: dict[str, Any],
) -> None:
    """Of an encoder that draws nothing, slower than the model, both built alike in each batch."""
    encoders = {"textual": {"name": "clip-vit-b32", "max_tokens": 12, "tune": "full"}}
    losses = []
    for resting in (8, 0):
        values = raw(model, {"warmup_epochs": resting}, encoders, settings, epochs=8)
        values["training"] |= {"optimizer": "adam", "patience": None, "evaluate_every": 8}
        values["training"] |= {"learning_rate": 0.01, "encoder_learning_rate": 0.001}
        (recipe,) = Recipe(values, "test").expand()
        run = train_run(recipe, data_dir=data, runs_dir=tmp_path, compute=CPU)
        losses.append(history(run.path)[-1]["losses"]["bpr"])
    assert losses[1] < 0.99 * losses[0]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"encoders": {}}, "there is no encoder that could learn"),
        ({"encoders": {}, "encoder": {"mode": "table"}}, "name a set under features:"),
        ({"encoder": {"mode": "table", "at_once": 9}}, r"at_once says how an encoder learns"),
        ({"encoders": {"textual": {"name": "bert", "tune": "none"}}}, r"textual\.tune to top"),
        ({"model": "lattice", "encoder": {"mode": "batch"}}, "take stale, accumulate or full"),
        ({"model": "gated-ensemble"}, r"gated-ensemble cannot be trained end to end.*lattice"),
        ({"model": "sasrec"}, "sequential model"),
        ({"encoder": "at_the_end"}, r"training\.encoder\.name"),
        ({"encoder": {"refresh": 0}}, r"training\.encoder\.refresh"),
        ({"encoder": {"at_once": 0}}, r"training\.encoder\.at_once"),
        ({"encoder": {"mod": "full"}}, r"training\.encoder\.mod is not a setting"),
    ],
)
def test_what_does_not_go_together_is_told(
    raw: Callable[..., dict[str, Any]], changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        Recipe(raw(**{"model": "vbpr", **changes}), "test")


def test_without_the_key_a_recipe_is_known_by_what_it_was() -> None:
    features = {
        "dataset": "mine",
        "features": {"textual": "bert"},
        "model": {"name": "vbpr"},
        "training": {"epochs": 3, "clip_norm": 1.0},
    }
    encoders = {
        "dataset": "mine",
        "protocol": "mmsr",
        "encoders": {"textual": "bert"},
        "model": {"name": "mmsr"},
        "training": {"encoder_learning_rate": 0.001},
    }
    found = [system_hash(Recipe(raw, "x").expand()[0].identity()) for raw in (features, encoders)]
    assert found == ["3ef5a942064006c8", "0356af3deb6a0351"]  # computed before the key was there
    features["training"] = {"encoder": "end_to_end"}
    features["features"], features["encoders"] = {}, {"textual": "bert"}
    one, other = (
        Recipe(apply_settings(features, [f"training.encoder.mode={mode}"]), "x").expand()[0]
        for mode in ("auto", "full")
    )
    assert one.identity() != other.identity()
