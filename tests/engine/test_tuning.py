"""Fine-tuning tiny encoders of real layouts on items whose titles name the colours of pictures."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file

from mmbench.data.prepared import load_dataset
from mmbench.encoders.base import ENCODERS
from mmbench.encoders.neural import Options
from mmbench.encoders.objectives import objective_of
from mmbench.encoders.tuned import save_tuned, tuned_digest
from mmbench.engine import tuning_loop
from mmbench.engine.contents import read_contents
from mmbench.engine.device import Compute
from mmbench.engine.extract import extract_sets
from mmbench.engine.extraction import Extraction, How
from mmbench.engine.tuning import Tuned, extract_tuned
from mmbench.engine.tuning_pairs import group, hold_out, read_pairs
from mmbench.engine.tuning_settings import fine_tuning
from mmbench.engine.tuning_state import Progress, StateFolder
from mmbench.errors import ConfigError, DataError, TrainingError, UnknownNameError
from mmbench.metrics.alignment import measure

COLOURS = {
    "red": (220, 20, 20),
    "green": (20, 200, 20),
    "blue": (20, 20, 220),
    "white": (245, 245, 245),
    "black": (10, 10, 10),
    "yellow": (230, 220, 20),
    "pink": (240, 130, 200),
    "teal": (10, 140, 140),
}
PAIRS = list(itertools.permutations(COLOURS, 2))


def draw(top: str, bottom: str) -> Image.Image:
    picture = Image.new("RGB", (32, 32), COLOURS[top])
    ImageDraw.Draw(picture).rectangle((0, 16, 31, 31), fill=COLOURS[bottom])
    return picture


def write(folder: Path, n_items: int, *, lone: int = 4) -> Path:
    """Two colours per item; the last `lone` items have one modality only."""
    from mmbench.data.cleaning import PrepareConfig
    from mmbench.data.prepare import prepare

    (folder / "raw" / "images").mkdir(parents=True)
    rows = [f"u{u},i{i:03d}" for u in range(6) for i in range(n_items) if i != u]
    (folder / "raw" / "interactions.csv").write_text("\n".join(["user_id,item_id", *rows]) + "\n")
    lines = ["item_id,title"]
    for i in range(n_items):
        pair = PAIRS[i % len(PAIRS)]
        is_lone = i >= n_items - lone
        lines.append(f"i{i:03d},{'' if is_lone and i % 2 else ' '.join(pair)}")
        if not (is_lone and i % 2 == 0):
            draw(*pair).save(folder / "raw" / "images" / f"i{i:03d}.png")
    (folder / "raw" / "items.csv").write_text("\n".join(lines) + "\n")
    config = PrepareConfig(text_fields=("title",))
    prepare("mine", source=folder / "raw", data_dir=folder / "data", config=config)
    return folder / "data"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("colours"), 60)


@pytest.fixture
def data(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "data"))


@pytest.fixture(scope="module")
def weights(models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("weights")
    names = ("clip-vit-b32", "vlmo-base-plus", "bert", "vit-b16")
    return {name: models.save(name, root / name) for name in names}


def pair_of(weights: dict[str, Path]) -> str:
    return f"pair:minilm-l6={weights['bert']}+vit-b16={weights['vit-b16']}"


def tune(
    data: Path,
    name: str,
    weights: Path | None,
    how: dict[str, Any] | None = None,
    chunk: int | None = None,
    **given: Any,
) -> tuple[Tuned, list[Extraction]]:
    settings = fine_tuning(None, **{"batch_size": (16,), "learning_rate": (5e-3,), **given})
    options = Options(weights=weights)
    made = How(options=options, device="cpu", **(how or {}))
    return extract_tuned("mine", name, data, made, settings, chunk=chunk)


def left(data: Path) -> list[str]:
    """What a fine-tuning left behind."""
    root = data / "mine"
    return sorted(path.name for folder in ("tuned",) for path in (root / folder).glob("*"))


def test_clip_finds_held_out_items_and_encodes_all(data: Path, weights: dict[str, Path]) -> None:
    given = {"epochs": 14, "patience": 14, "seed": 1}
    tuned, sets = tune(data, "clip-vit-b32", weights["clip-vit-b32"], **given)
    before, after = tuned.facts["before"], tuned.facts["after"]
    assert after["recall"] > before["recall"] + 0.15
    assert after["losses"]["itc"] < before["losses"]["itc"] - 0.3
    assert after["paired"] - after["unpaired"] > before["paired"] - before["unpaired"] + 0.1
    counts = tuned.facts["data"]["counts"]
    assert (counts["pairs"], counts["text_only"], counts["picture_only"]) == (56, 2, 2)
    assert counts["train"] + counts["held_out"] == 56
    assert counts["groups"] == 56  # permutations of colours are all different
    assert [record["epoch"] for record in tuned.history] == list(range(tuned.facts["epochs"] + 1))
    assert left(data) == ["clip-vit-b32-ft"]

    keys = [one.features.key for one in sets]
    assert keys == ["visual__clip-vit-b32-ft", "textual__clip-vit-b32-ft"]
    for one in sets:
        assert int(one.features.mask.sum()) == 58  # those with one modality too
        told = one.features.manifest["origin"]["finetuned"]
        assert told["base"]["weights_sha256"] != told["weights_sha256"]
        assert (
            told["weights_sha256"] == one.features.manifest["settings"]["encoder"]["weights_sha256"]
        )
        assert told["objective"] == {"itc": 1.0}
        assert told["seed"] == 1
        assert told["data"]["contents_sha256"]
        assert told["chosen_step"] == told["chosen_epoch"] * (counts["train"] // 16)
    # The stored vectors are those that were judged.
    both = np.flatnonzero(sets[0].features.mask & sets[1].features.mask)
    found = measure(*(np.asarray(one.features.matrix[both]) for one in sets))
    assert found.recall_first[1] > 0.1

    again, same = tune(data, "clip-vit-b32", weights["clip-vit-b32"], **given)
    assert not again.is_new
    assert [one.is_new for one in same] == [False, False]
    with pytest.raises(ConfigError, match="E411 mine has a fine-tuned clip-vit-b32-ft"):
        tune(data, "clip-vit-b32", weights["clip-vit-b32"], epochs=2)


def test_vlmo_finds_held_out_items(data: Path, weights: dict[str, Path]) -> None:
    given = {"epochs": 20, "patience": 20, "learning_rate": (3e-3,), "select_by": "loss"}
    tuned, sets = tune(data, "vlmo-base-plus", weights["vlmo-base-plus"], **given)
    before, after = tuned.facts["before"], tuned.facts["after"]
    assert after["recall"] > before["recall"] + 0.1
    for name in ("itc", "itc-vl", "itm", "mlm"):
        assert after["losses"][name] < before["losses"][name]
    assert tuned.facts["objective"] == {"itc": 0.5, "itc-vl": 0.5, "itm": 1.0, "mlm": 0.25}
    assert [one.features.matrix.shape for one in sets] == [(60, 16), (60, 16)]


def test_a_pair_finds_held_out_items(data: Path, weights: dict[str, Path]) -> None:
    given = {"epochs": 12, "patience": 12, "seed": 1, "new_learning_rate": 1e-2}
    tuned, sets = tune(data, pair_of(weights), None, **given)
    assert tuned.name == "pair-minilm-l6-vit-b16-ft"
    before, after = tuned.facts["before"], tuned.facts["after"]
    assert after["recall"] > before["recall"] + 0.1
    assert after["losses"]["itc"] < before["losses"]["itc"] - 0.2
    assert [one.features.key for one in sets] == [f"visual__{tuned.name}", f"textual__{tuned.name}"]
    # What is stored is what its folder gives.
    again = ENCODERS.get("pair").obj(Options(weights=tuned.folder))
    again.load()
    dataset = load_dataset("mine", data)
    with torch.no_grad():
        found = again.encode_text(again.text_batch(again.tokenize([dataset.texts[3]]))).pooled
    stored = sets[1].features.matrix[3]
    assert np.allclose(found[0].numpy(), stored, atol=1e-5)
    assert sets[0].features.manifest["origin"]["finetuned"]["base"]["kind"] == "Pair"
    assert not tune(data, pair_of(weights), None, **given)[0].is_new
    assert tuned_digest(tuned.folder) == tuned.facts["weights_sha256"]
    (tuned.folder / "visual" / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"E403 .*visual holds no weights"):
        tuned_digest(tuned.folder)


@pytest.mark.parametrize("name", ["pair", "vlmo-base-plus"])
def test_others_go_on_to_the_same_bits_too(
    data: Path,
    weights: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    other = Path(shutil.copytree(data, tmp_path / "other"))
    kind, folder = (pair_of(weights), None) if name == "pair" else (name, weights[name])
    given: dict[str, Any] = {"epochs": 2, "patience": 2, "tune": "top", "blocks": 1}
    if name == "pair":  # whose batch fits the 45 pairs
        given["batch_size"] = None
    whole, _ = tune(data, kind, folder, **given)
    assert whole.facts["settings"]["batch_size"] == [22 if name == "pair" else 16]
    assert whole.facts.get("larger_batch_sizes_left_out", []) == ([128] if name == "pair" else [])
    draw_step, calls = tuning_loop.Tuner._draws, []

    def dies(self, n, *purpose):
        calls.append(purpose)
        if purpose == ("step", "3"):  # in the second epoch, of two steps
            raise KeyboardInterrupt
        return draw_step(self, n, *purpose)

    with monkeypatch.context() as patch:
        patch.setattr(tuning_loop.Tuner, "_draws", dies)
        with pytest.raises(KeyboardInterrupt):
            tune(other, kind, folder, **given)
    assert [name[0] for name in left(other)] == ["."]  # the unfinished work alone
    resumed, _ = tune(other, kind, folder, **given)
    assert resumed.facts["weights_sha256"] == whole.facts["weights_sha256"]
    assert [h["held_out"] for h in resumed.history] == [h["held_out"] for h in whole.history]
    steps = [
        [json.loads(line) for line in (one.folder / "steps.jsonl").read_text().splitlines()]
        for one in (whole, resumed)
    ]
    assert [step["step"] for step in steps[0]] == list(range(1, whole.facts["steps"] + 1))
    assert steps[0] == steps[1]


def test_the_history_says_how_it_went(data: Path, weights: dict[str, Path]) -> None:
    given: dict[str, Any] = {"epochs": 2, "patience": 2, "learning_rate": (3e-3,)}
    tuned, _ = tune(data, "vlmo-base-plus", weights["vlmo-base-plus"], **given)
    first, last = tuned.history[0], tuned.history[-1]
    assert first["held_out"]["drift_first"] == pytest.approx(1.0)
    assert last["held_out"]["drift_first"] < 1.0
    assert set(first["held_out"]["accuracy"]) == {"itm", "mlm"}
    # Of three pairs two do not belong together: who always says so is right twice.
    assert 0 <= first["held_out"]["accuracy"]["itm"] <= 1
    told = {"gradient", "gradient_largest", "rate", "clipped_steps", "limited_steps"}
    assert told | {"pairs_per_second", "tokens_per_second", "itc"} <= set(last["train"])
    assert last["train"]["gradient_largest"] >= last["train"]["gradient"]
    held = {"rank_first", "gap", "paired", "unpaired", "uniformity_first", "recall_second"}
    assert held <= set(last["held_out"])
    assert last["peak_memory_mib"] > 0
    steps = [json.loads(s) for s in (tuned.folder / "steps.jsonl").read_text().splitlines()]
    assert {"rate", "gradient", "itm", "temperature.itc"} <= set(steps[0])
    mean = np.mean([step["itm"] for step in steps[len(steps) // 2 :]])
    assert last["train"]["itm"] == pytest.approx(mean)
    cost = tuned.facts["cost"]
    n_steps = len(steps) // 2
    assert cost["steps_per_epoch"] == n_steps
    n_held = tuned.facts["data"]["counts"]["held_out"]
    assert cost["passes_per_epoch"] == n_steps * 16 + 2 * n_held
    assert cost["flops_per_epoch"] > 0
    assert cost["seconds"] >= sum(record["seconds"] for record in tuned.history) - 1e-6


def test_what_goes_wrong_slowly_is_told(data: Path, weights: dict[str, Path]) -> None:
    made = tuner(data, "clip-vit-b32", weights["clip-vit-b32"], 12)
    made.objective.check()
    well = {
        "rank_first": 9.0, "rank_second": 9.0, "drift_first": 1.0, "drift_second": 1.0,
        "recall": 0.5,
    }  # fmt: skip
    first = {"held_out": well, "temperatures": {"itc": 14.0}}

    def told(limited: int, before: int = 0, **held_out: float) -> list[str]:
        progress = Progress(history=[first, {"train": {"limited_steps": before}}])
        record = {"held_out": {**well, **held_out}, "train": {"limited_steps": limited}}
        return list(made._warnings(record, progress))

    assert told(100) == []
    assert "temperature stood at its limit for 101 steps" in told(1, before=100)[0]
    assert told(1, before=101) == []  # once
    assert "they collapse" in told(0, rank_second=1.4)[0]
    assert "moved away" in told(0, drift_first=0.2, recall=0.4)[0]
    assert told(0, drift_first=0.2, recall=0.6) == []  # for the better


def test_an_interrupted_fine_tuning_goes_on_to_the_same_bits(
    data: Path, weights: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path(shutil.copytree(data, tmp_path / "other"))
    given = {"epochs": 4, "patience": 4, "tune": "top", "blocks": 1}
    whole, sets = tune(data, "clip-vit-b32", weights["clip-vit-b32"], **given)

    write, draw_step = StateFolder.write, tuning_loop.Tuner._draws
    calls = {"states": 0, "steps": 0}

    def dies_between(self, progress, last, best):
        calls["states"] += 1
        if calls["states"] == 3:
            # Both files of the epoch are there, but not the state that names them.
            monkeypatch.setattr("mmbench.engine.tuning_state.write_json", dies)
        write(self, progress, last, best)

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    def dies_in_a_step(self, n, *purpose):
        calls["steps"] += purpose[0] == "step"
        if calls["steps"] == 2:
            raise KeyboardInterrupt
        return draw_step(self, n, *purpose)

    for name, method in (("_draws", dies_in_a_step), ("write", dies_between)):
        with monkeypatch.context() as patch:
            target = tuning_loop.Tuner if name == "_draws" else StateFolder
            patch.setattr(target, name, method)
            with pytest.raises(KeyboardInterrupt):
                tune(other, "clip-vit-b32", weights["clip-vit-b32"], **given)
        monkeypatch.undo()
        assert not (other / "mine" / "tuned" / "clip-vit-b32-ft").exists()
        assert not list((other / "mine" / "features").glob("*-ft"))
    resumed, again = tune(other, "clip-vit-b32", weights["clip-vit-b32"], **given)
    assert resumed.facts["weights_sha256"] == whole.facts["weights_sha256"]
    assert [h["held_out"] for h in resumed.history] == [h["held_out"] for h in whole.history]
    for one, two in zip(sets, again, strict=True):
        assert one.features.manifest["sha256"] == two.features.manifest["sha256"]
    assert left(other) == ["clip-vit-b32-ft"]


def test_a_grid_keeps_the_best_point_and_reports_all(data: Path, weights: dict[str, Path]) -> None:
    tuned, _ = tune(
        data,
        "clip-vit-b32",
        weights["clip-vit-b32"],
        epochs=2,
        learning_rate=(1e-6, 5e-3, 1e30),
        clip_norm=None,
    )
    assert [point["learning_rate"] for point in tuned.grid] == [1e-6, 5e-3, 1e30]
    assert "diverged" in tuned.grid[2]
    best = max(
        tuned.grid[:2], key=lambda p: (p["held_out"]["recall"], -p["held_out"]["losses"]["itc"])
    )
    assert tuned.facts["settings"]["learning_rate"] == [best["learning_rate"]]
    assert tuned.facts["after"] == best["held_out"]


def tuner(data: Path, name: str, weights: Path, chunk: int) -> tuning_loop.Tuner:
    dataset = load_dataset("mine", data)
    encoder = ENCODERS.get(name).obj(Options(weights=weights))
    encoder.load()
    contents = read_contents(dataset, ("textual", "visual"))
    settings = fine_tuning(None, batch_size=(12,))
    compute = Compute(torch.device("cpu"))
    pairs = read_pairs(dataset, encoder, contents, settings, compute)
    state = StateFolder(data / "mine" / "tuned", "x", {})
    return tuning_loop.Tuner(objective_of(encoder), pairs, settings, compute, state, chunk)


@pytest.mark.parametrize("name", ["clip-vit-b32", "vlmo-base-plus"])
def test_parts_have_the_gradient_of_the_whole(
    data: Path, weights: dict[str, Path], name: str
) -> None:
    found = []
    for chunk in (12, 5):
        made = tuner(data, name, weights[name], chunk)
        items = made.pairs.train[:12]
        losses = made._losses(items, made._draws(12, "step", "0"), learns=True)
        assert all(weight.grad is not None for weight in made.learning.values())
        found.append((losses, {n: w.grad for n, w in made.learning.items()}))
    for loss in found[0][0]:
        assert float(found[0][0][loss].detach()) == pytest.approx(
            float(found[1][0][loss].detach()), abs=1e-5
        )
    for parameter, gradient in found[0][1].items():
        assert torch.allclose(gradient, found[1][1][parameter], atol=2e-5, rtol=1e-3), parameter


def test_no_half_of_a_group_is_held_out() -> None:
    texts = ["a b", "A  b", "c", "d", "e", "f", "g", "h", "i", ""]
    hashes = ["0", "1", "1", "2", "3", "4", "5", "6", "7", "8"]
    items = np.arange(9)
    groups = group(items, texts, hashes)
    assert groups.tolist() == [0, 0, 0, 3, 4, 5, 6, 7, 8, -1]  # 0 and 1 by text, 1 and 2 by picture
    for seed in range(20):
        train, held = hold_out(items, groups, 0.4, seed)
        assert sorted([*train, *held]) == items.tolist()
        assert not set(groups[train]) & set(groups[held])
        assert 2 <= len(held) <= 4
    same = hold_out(items, groups, 0.4, 3)
    assert all((a == b).all() for a, b in zip(same, hold_out(items, groups, 0.4, 3), strict=True))


def broken(folder: Path, source: Path, change: Any) -> Path:
    made = Path(shutil.copytree(source, folder))
    tensors = load_file(made / "model.safetensors")
    change(tensors)
    save_file(tensors, made / "model.safetensors", metadata={"format": "pt"})
    return made


def vlmo_with(folder: Path, source: Path, scale: float) -> Path:
    made = Path(shutil.copytree(source, folder))
    tensors = torch.load(made / "vlmo.pt", weights_only=True)
    tensors["logit_scale"].fill_(scale)
    torch.save(tensors, made / "vlmo.pt")
    return made


def test_temperatures_of_a_stored_pair_are_looked_at(
    data: Path, weights: dict[str, Path], tmp_path: Path
) -> None:
    made = ENCODERS.get("pair").obj(Options(model=pair_of(weights).partition(":")[2]))
    made.load()
    for number, (value, says) in enumerate(((float("nan"), "is nan"), (9.0, "exploded"))):
        with torch.no_grad():
            made.module.logit_scale.fill_(value)
        folder = tmp_path / str(number)
        save_tuned(made, folder)
        with pytest.raises(DataError, match=f"E406 the temperature of these weights {says}"):
            tune(data, "pair", folder)
    assert left(data) == []


def test_vectors_of_a_pair_that_learnt_nothing_are_refused(
    data: Path, weights: dict[str, Path]
) -> None:
    with pytest.raises(ConfigError, match=r"would be random; .* add --finetune"):
        extract_sets("mine", pair_of(weights), data, How(device="cpu"))


def test_too_much_memory_is_refused_before_the_first_step(
    data: Path, weights: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmbench.engine.cost.free_memory", lambda compute: 1000.0)
    with pytest.raises(ConfigError, match=r"E413 .*Less takes: --chunk-size 2, or --recompute, or"):
        tune(data, "clip-vit-b32", weights["clip-vit-b32"])
    assert left(data) == []


def test_bad_input_is_told_and_leaves_nothing(
    data: Path, weights: dict[str, Path], tmp_path: Path
) -> None:
    clip = weights["clip-vit-b32"]

    def set_scale(value: float) -> Any:
        return lambda tensors: tensors["logit_scale"].fill_(value)

    nan = broken(tmp_path / "nan", clip, set_scale(float("nan")))
    hot = broken(tmp_path / "hot", clip, set_scale(9.0))
    ill = broken(
        tmp_path / "ill", clip, lambda tensors: tensors["visual_projection.weight"].fill_(torch.nan)
    )
    cases: list[tuple[type[Exception], str, str, Path | None, dict[str, Any]]] = [
        (ConfigError, "batch-size 64 is more than the 45 pairs", "clip-vit-b32", clip,
         {"batch_size": (64,)}),
        (DataError, "E406 the temperature of these weights is nan", "clip-vit-b32", nan, {}),
        (DataError, "E406 the temperature of these weights exploded", "clip-vit-b32", hot, {}),
        (TrainingError, "the published weights", "clip-vit-b32", ill, {}),
        (TrainingError, "diverged in epoch", "clip-vit-b32", clip,
         {"learning_rate": (1e30,), "clip_norm": None, "epochs": 3, "warmup": 0.0}),
        (DataError, "E406 .* is of a model of type 'clip'", "siglip-b16", clip, {}),
        (UnknownNameError, "unknown objective of .* 'itm'", "clip-vit-b32", clip,
         {"objective": ("itc", "itm")}),
        (ConfigError, "no common space", "minilm-l6", clip, {}),
        (ConfigError, "no weights", "tfidf-svd", clip, {}),
        (UnknownNameError, "split of mine", "clip-vit-b32", clip, {"warm": "none"}),
        (ConfigError, "batch-size 64 is more than the 45 pairs", pair_of(weights), None,
         {"batch_size": (64,)}),
        (DataError, "E406 .* is of a model of type 'clip'",
         f"pair:minilm-l6={clip}+vit-b16={weights['vit-b16']}", None, {}),
        (DataError, "E40[36] ", f"pair:minilm-l6={weights['bert']}+resnet50={weights['vit-b16']}",
         None, {}),
        (TrainingError, "diverged in epoch", pair_of(weights), None,
         {"learning_rate": (1e30,), "clip_norm": None, "epochs": 3, "warmup": 0.0}),
        (DataError, "E404 .*logit_scale holds NaN", "vlmo-base-plus",
         vlmo_with(tmp_path / "v1", weights["vlmo-base-plus"], float("nan")), {}),
        (DataError, "E406 the temperature of these weights exploded", "vlmo-base-plus",
         vlmo_with(tmp_path / "v2", weights["vlmo-base-plus"], 9.0), {}),
        (DataError, "E40[3-7] ", "vlmo-base-plus", clip, {}),
    ]  # fmt: skip
    for kind, says, name, folder, given in cases:
        with pytest.raises(kind, match=says):
            tune(data, name, folder, **given)
        assert left(data) == [], says
        assert not list((data / "mine" / "features").glob("*-ft")), says
    with pytest.raises(ConfigError, match="float16 overflow"):
        tune(data, "clip-vit-b32", clip, how={"precision": "float16"})


def test_too_few_pairs_to_hold_any_out(weights: dict[str, Path], tmp_path: Path) -> None:
    data = write(tmp_path, 12)
    for name in ("clip-vit-b32", "vlmo-base-plus", pair_of(weights)):
        with pytest.raises(
            DataError, match=r"E412 mine has 8 items with both.*too few to hold any out"
        ):
            tune(data, name, weights.get(name), batch_size=(2,))
        assert left(data) == []


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"batch_size": (1,)}, "batch-size 1 leaves nothing"),
        ({"learning_rate": (-1.0,)}, "learning-rate -1 must be above 0"),
        ({"learning_rate": (1e-3, 1e-3)}, "names a value twice"),
        ({"blocks": 2}, "blocks goes with tune: top"),
        ({"epochs": 0}, "epochs: "),
        ({"warmup": float("nan")}, "warmup: "),
    ],
)
def test_settings_that_cannot_be(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        fine_tuning(None, **given)


def test_the_grid_of_the_paper() -> None:
    points = list(fine_tuning("arxiv-2310.20343").points())
    assert len(points) == 25
    assert {point.batch_size for point in points} == {(k,) for k in (32, 64, 128, 256, 1024)}
    assert {point.learning_rate for point in points} == {
        (r,) for r in (1e-5, 3e-5, 5e-5, 1e-4, 1e-3)
    }
    assert {point.patience for point in points} == {50}
    with pytest.raises(UnknownNameError, match=r"arxiv-2310\.20343"):
        fine_tuning("arxiv-2310")


def test_the_rate_rises_and_falls() -> None:
    settings = fine_tuning(None, warmup=0.2)
    factors = [tuning_loop.rate_factor(settings, step, 10) for step in range(10)]
    assert factors[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert factors[2:] == sorted(factors[2:], reverse=True)
    assert factors[-1] == pytest.approx(1 / 8)
    constant = fine_tuning(None, warmup=0.0, schedule="constant")
    assert {tuning_loop.rate_factor(constant, step, 10) for step in range(10)} == {1.0}
