from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmbench.errors import ConfigError, UnknownNameError
from mmbench.recipe import Recipe, load_recipe, system_hash
from mmbench.recipe_files import apply_settings, read_recipe, shipped_recipes

VBPR = {"dataset": "demo", "model": {"name": "vbpr"}}


def recipe(**changes: Any) -> Recipe:
    return Recipe({**VBPR, **changes}, "test.yaml")


def test_defaults_are_written_out() -> None:
    values = recipe().expand()[0].as_dict()
    assert values["training"]["batch_size"] == 2048
    assert values["protocol"]["mask_validation_at_test"] is True
    assert values["model"]["embedding_size"] == 64
    again = Recipe(values, "again").expand()[0]
    assert again.as_dict() == values


def test_presets_fill_the_protocol_and_single_fields_can_be_changed() -> None:
    preset = recipe(protocol="mmrec").shape.protocol
    assert not preset.mask_validation_at_test
    assert preset.selection_decimals == 4
    assert preset.stop == "exceeded"
    changed = recipe(protocol={"name": "mmrec", "mask_validation_at_test": True}).shape.protocol
    assert changed.mask_validation_at_test
    assert changed.selection_decimals == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modle": 1}, r'modle is not a setting\. Did you mean "model"'),
        ({"training": {"learning_rte": 0.1}}, r'training\.learning_rte .* "learning_rate"'),
        ({"training": {"schedule": {"gama": 0.9}}}, r'training\.schedule\.gama .* "gamma"'),
        ({"training": {"epochs": "many"}}, r"training\.epochs: .*integer.* \(found 'many'\)"),
        ({"training": {"epochs": 0}}, r"training\.epochs: .*greater than 0"),
        (
            {"training": {"select_by": "recal@20"}},
            r'unknown metric .recal.\. Did you mean "recall"',
        ),
        ({"training": {"select_by": "coverage@20"}}, "cannot select an epoch"),
        ({"training": {"optimizer": "adamm"}}, r"training\.optimizer"),
        ({"evaluation": {"metrics": ["recall"]}}, "needs a cut-off"),
        ({"evaluation": {"metrics": ["recall@500"]}}, "needs lists of 500 items"),
        ({"features": {"visuel": "x"}}, r'unknown modality .visuel.\. Did you mean "visual"'),
        ({"protocol": "mmrek"}, r"protocol\.name"),
        ({"model": "vbpr"}, r"write \{name: vbpr\}"),
        ({"model": {"name": "vbprr"}}, r'unknown model .vbprr.\. Did you mean "vbpr"'),
        (
            {"model": {"name": "vbpr", "embeding_size": 1}},
            r'model\.embeding_size .* "embedding_size"',
        ),
        (
            {"model": {"name": "vbpr", "embedding_size": -1}},
            r"model\.embedding_size: .*greater than 0",
        ),
        ({"model": {}}, r"model\.name is missing"),
        ({"seeds": []}, "at least one seed"),
        ({"seeds": [1, 1]}, "listed twice"),
        ({"seeds": [-1]}, r"seeds\.0"),
        ({"grid": {"model.embedding_size": []}}, "lists no value"),
        ({"grid": {"seeds": [1]}}, "cannot be searched"),
        ({"grid": {"protocol.split": ["a", "b"]}}, "cannot be searched"),
        ({"grid": {"model.embedding_size": [8, 16, 8]}}, "lists a value twice"),
        ({"protocol": {"name": ["mmrec"]}}, r"protocol\.name"),
        ({"training": {"learning_rate": float("inf")}}, r"training\.learning_rate: .*finite"),
        (
            {"model": {"name": "vbpr", "regularization": float("inf")}},
            r"model\.regularization: .*finite",
        ),
        (
            {"evaluation": {"metrics": ["recall@10"], "depth": 10}},
            r"training\.select_by recall@20 needs lists of 20 items, but evaluation\.depth is 10",
        ),
        ({"grid": {"model.embeding_size": [1]}}, r'model\.embeding_size .* "embedding_size"'),
        ({"grid": {"features, seeds": [[{}, [1]]]}}, r"grid\.seeds cannot be searched"),
        (
            {"grid": {"features, training.epochs": [[{}, 3], [{}]]}},
            r"sets 2 keys together, so each of its values is a list of 2, not \[\{\}\]",
        ),
    ],
)
def test_a_wrong_recipe_is_refused_with_path_and_nearest_key(changes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        recipe(**changes)
    assert str(caught.value).startswith("test.yaml")


def test_every_problem_is_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        recipe(seeds=[], training={"epochs": 0, "patience": 0}, model={"name": "vbpr", "x": 1})
    lines = str(caught.value).splitlines()
    assert len(lines) == 4


def test_no_key_selects_on_test() -> None:
    for key in ("select_on", "select_part", "selection"):
        with pytest.raises(ConfigError, match="is not a setting"):
            recipe(training={key: "test"})


def test_a_grid_expands_to_trials_times_seeds() -> None:
    grid = {"model.embedding_size": [8, 16], "training.learning_rate": [0.1, 0.2, 0.3]}
    runs = recipe(grid=grid, seeds=[4, 5]).expand()
    assert len(runs) == 12
    assert [run.seed for run in runs[:2]] == [4, 5]
    assert runs[0].trial == {"model.embedding_size": 8, "training.learning_rate": 0.1}
    assert len({system_hash(run.identity()) for run in runs}) == 6
    assert runs[0].label == "vbpr (embedding_size=8, learning_rate=0.1)"


def test_an_axis_of_a_grid_sets_several_keys_together() -> None:
    stored, learnt = {"visual": "clip"}, {"visual": {"name": "clip-vit-b16", "tune": "full"}}
    together = "features, encoders, training.encoder"
    grid = {
        "model.name": ["vbpr", "lattice"],
        together: [[stored, {}, None], [{}, learnt, "end_to_end"]],
    }
    runs = recipe(grid=grid).expand()
    assert [run.label for run in runs] == [
        "vbpr (name=vbpr, clip)",
        "vbpr (name=vbpr, clip-vit-b16+end_to_end)",
        "lattice (name=lattice, clip)",
        "lattice (name=lattice, clip-vit-b16+end_to_end)",
    ]
    assert [bool(run.features) for run in runs] == [True, False] * 2
    assert [bool(run.encoders) for run in runs] == [False, True] * 2
    assert [run.training.encoder is None for run in runs] == [True, False] * 2


def test_the_identity_ignores_seed_and_label_and_for_closed_forms_the_training() -> None:
    first, second = recipe(seeds=[1]).expand()[0], recipe(seeds=[2], label="mine").expand()[0]
    assert first.identity() == second.identity()
    closed = {"model": {"name": "popularity"}}
    plain = recipe(**closed).expand()[0].identity()
    assert recipe(**closed, training={"epochs": 3}).expand()[0].identity() == plain


SEARCHED = [
    name
    for name in shipped_recipes()
    if name.startswith(("demo/", "tiktok/", "movielens-100k/")) and load_recipe(name).shape.search
]


def test_a_shipped_search_names_no_run_anew_and_every_edge_of_it_can_be_trained() -> None:
    assert len(SEARCHED) > 70
    for name in SEARCHED:
        whole = load_recipe(name)
        without = load_recipe(name, settings=["search={}"])
        assert not without.shape.search
        assert [run.identity() for run in whole.expand()] == [
            run.identity() for run in without.expand()
        ], name
        assert list(whole.space) == list(whole.shape.search), name


def test_settings_are_read_as_yaml_and_reach_into_shorthand() -> None:
    raw = apply_settings(
        {**VBPR, "protocol": "mmrec"},
        ["model.embedding_size=32", "training.learning_rate=1e-3", "protocol.negatives=all"],
    )
    checked = Recipe(raw, "x").expand()[0]
    assert checked.settings.model_dump()["embedding_size"] == 32
    assert checked.training.learning_rate == 1e-3
    assert checked.protocol.negatives == "all"
    assert not checked.protocol.mask_validation_at_test
    with pytest.raises(ConfigError, match="is not KEY=VALUE"):
        apply_settings(VBPR, ["model.embedding_size"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [", "not YAML"),
        ("- a\n- b\n", "a recipe is a mapping"),
        ("", "a recipe is a mapping"),
        ("model: {name: vbpr}\nseeds: [1]\nseeds: [2]\n", r"line 3: 'seeds' is written twice"),
        ("model: !!python/object/apply:os.system ['true']\n", "not YAML"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_recipe(path)
    assert "broken.yaml" in str(caught.value)


def test_a_model_name_takes_the_shipped_recipe_or_the_defaults(tmp_path: Path) -> None:
    assert load_recipe("vbpr").shape.dataset == "demo"
    assert load_recipe("vbpr", dataset="elsewhere").shape.features == {}
    assert load_recipe("amazon-baby/lightgcn", seeds=[7]).shape.seeds == (7,)
    with pytest.raises(UnknownNameError, match="Did you mean"):
        load_recipe("amazon-baby/lightgcm")
    with pytest.raises(ConfigError, match="does not exist"):
        load_recipe(str(tmp_path / "none.yaml"))
    with pytest.raises(UnknownNameError, match="unknown model"):
        load_recipe("lightgcm")


def test_a_label_names_a_pair_without_the_folders_of_its_weights() -> None:
    pair = {"visual": {"name": "pair:minilm-l6=some/where+timm:resnet18=else/where"}}
    grid = {"features, encoders, training.encoder": [[{}, pair, "end_to_end"]]}
    (run,) = recipe(grid=grid).expand()
    assert run.label == "vbpr (pair:minilm-l6+timm:resnet18+end_to_end)"
    assert run.encoders["visual"].name == pair["visual"]["name"]


def test_a_model_without_settings_says_so() -> None:
    with pytest.raises(ConfigError, match=r"embedding_size is not a setting\. There are none here"):
        Recipe({"model": {"name": "popularity", "embedding_size": 4}}, "here.yaml")
