"""Models under equal conditions: each against the first one, rung by rung."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mmbench.cli.main import cli
from mmbench.engine.device import choose
from mmbench.recipe import Recipe, load_recipe
from mmbench.recipe_files import shipped_recipes
from mmbench.report.html.content import Figure, Gallery
from mmbench.studies.ablation import Asked, design
from mmbench.studies.findings import Finding, findings
from mmbench.studies.questions import Question, questions
from mmbench.studies.training import Workplace, train_recipes

GATED = {"name": "gated-ensemble", "embedding_size": 4, "gate_from": 1, "gate_until": 2}


def recipe(label: str, **model: Any) -> Recipe:
    raw = {
        "dataset": "tiny",
        "label": label,
        "features": {"visual": "imported"},
        "model": {**GATED, **model},
        "training": {"epochs": 3, "batch_size": 128, "learning_rate": 0.05},
        "evaluation": {"metrics": ["recall@10"]},
        "seeds": [0],
    }
    return Recipe(raw, "test.yaml")


ASKED = [
    Asked("noise", "visual", 0.5, in_ladder=True),
    Asked("noise", "visual", 1.0, in_ladder=True),
    Asked("id-only"),
]


def drawn(finding: Finding) -> list[Figure]:
    galleries = [part for part in finding.section.parts if isinstance(part, Gallery)]
    return [figure for gallery in galleries for figure in gallery.figures]


@pytest.fixture(scope="module")
def asked(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Question]:
    models = [recipe("static", gate="fixed"), recipe("gated")]
    plan = design(models, ASKED)
    place = Workplace(tiny_data, tmp_path_factory.mktemp("between"), choose("cpu"))
    trained = train_recipes(plan.recipes, place)
    assert [q.name for q in questions(plan, trained)] == ["conditions", "ladder"]
    return questions(plan, trained, between=True)


def test_every_model_stands_against_the_first_under_its_own_condition(
    asked: list[Question],
) -> None:
    by_name = {question.name: question for question in asked}
    assert set(by_name) == {"conditions", "ladder", "between", "between-ladder"}
    for name, conditions in (
        ("between-ladder", ["", " visual noise 50%", " visual noise 100%"]),
        ("between", ["", " IDs only"]),
    ):
        question = by_name[name]
        labels = {each.system: each.variant.label for each in question.members}
        pairs = {(labels[one], labels[other]) for one, other in question.references.of.items()}
        assert pairs == {(f"gated{c}", f"static{c}") for c in conditions}
        c = question.compare()
        assert [family.over_users for family in c.families] == [len(conditions)]


def test_the_ladder_of_models_begins_where_nothing_is_spoilt(asked: list[Question]) -> None:
    found: dict[str, Finding] = {each.title: each for each in findings(asked)}
    table = found["Models on the same corruption ladder"].shown
    assert [(row.series, row.at) for row in table.rows] == [
        ("gated visual noise", "0%"),
        ("gated visual noise", "50%"),
        ("gated visual noise", "100%"),
    ]
    assert "static under the same condition" in table.heading
    (figure,) = drawn(found["Models on the same corruption ladder"])
    curve = figure.draw().axes[0].lines[0]
    # At 0 % the difference between the models, and not a point of no difference.
    assert list(curve.get_xdata()) == [0.0, 0.5, 1.0]
    assert list(curve.get_ydata()) == [row.gain for row in table.rows]


def test_one_model_has_nobody_to_stand_against(tiny_data: Path) -> None:
    done = CliRunner().invoke(
        cli, ["ablate", "demo/vbpr", "--between", "--data-dir", str(tiny_data)]
    )
    assert done.exit_code == 2
    assert "--between compares models" in done.output


def test_static_recipes_differ_from_the_gated_ones_in_their_gates_alone() -> None:
    names = [name for name in shipped_recipes() if name.startswith("adaptive-modalities/")]
    assert len(names) == 3
    for name in names:
        dataset = name.partition("/")[2].removesuffix("-static")
        static, gated, scheduled = (
            load_recipe(each).expand()[0]
            for each in (name, f"{dataset}/gated-ensemble", f"{dataset}/curriculum-ensemble")
        )
        assert static.dataset == gated.dataset == dataset
        assert static.training == gated.training == scheduled.training
        assert static.features == gated.features == scheduled.features
        assert static.protocol == gated.protocol == scheduled.protocol
        own = {"gate", "gate_weight", "gate_share", "gate_from", "gate_until", "gate_start"}
        own |= {"gate_rate"}
        one, other = static.settings.model_dump(), gated.settings.model_dump()
        assert one["gate"] == "fixed"
        assert other["gate"] == "learned"
        assert {k: v for k, v in one.items() if k not in own} == {
            k: v for k, v in other.items() if k not in own
        }
        shared = set(scheduled.settings.model_dump()) & set(one)
        assert all(one[key] == scheduled.settings.model_dump()[key] for key in shared)
