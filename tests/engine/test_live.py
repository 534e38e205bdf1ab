"""Encoders that learn with a recommender: on texts and pictures, kept trunks, whole runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file

from mmbench.cli.main import cli
from mmbench.data.prepared import load_dataset
from mmbench.encoders.pictures import open_picture
from mmbench.engine.building import build_model
from mmbench.engine.device import choose
from mmbench.engine.inputs import load_inputs
from mmbench.engine.live import LiveItemEncoder, make_features
from mmbench.engine.live_contents import FOLDER, kept
from mmbench.engine.live_sources import find_live
from mmbench.engine.train import train_run
from mmbench.engine.trained import load_trained
from mmbench.errors import ConfigError, DataError
from mmbench.recipe import Recipe
from mmbench.recipe_keys import LiveEncoder
from mmbench.runs import open_run

CPU = choose("cpu")
N_ITEMS = 14
KINDS = {
    "textual": "bert",
    "visual": "mae-b16",
    "joint": "vilt",
}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen items; item 3 has no text, item 5 no picture. Users go round in circles."""
    from mmbench.data.cleaning import PrepareConfig
    from mmbench.data.prepare import prepare

    root = tmp_path_factory.mktemp("live-data")
    source = root / "raw"
    (source / "images").mkdir(parents=True)
    rows = [
        f"u{user:02d},i{(user + step) % N_ITEMS:02d},{1_600_000_000 + step}"
        for user in range(24)
        for step in range(5 + user % 3)
    ]
    (source / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    words = ["sail", "harbour", "tide", "oven", "dough", "flour", "guitar", "piano", "drum"]
    titles = [" ".join(words[(i * k + k) % 9] for k in range(1, 2 + i % 4)) for i in range(N_ITEMS)]
    titles[3] = ""
    lines = [f"i{i:02d},{title}" for i, title in enumerate(titles)]
    (source / "items.csv").write_text("\n".join(["item_id,title", *lines]) + "\n")
    rng = np.random.default_rng(2)
    for i in range(N_ITEMS):
        if i != 5:
            noise = rng.integers(0, 256, (5, 4, 3), dtype=np.uint8)
            picture = Image.fromarray(noise).resize((40, 50), Image.Resampling.NEAREST)
            picture.save(source / "images" / f"i{i:02d}.png")
    config = PrepareConfig(text_fields=("title",))
    loo = ["leave-one-out"]
    prepare("mine", source=source, data_dir=root / "data", config=config, splits=loo)
    return root


@pytest.fixture
def data(prepared: Path, tmp_path: Path) -> Path:
    """A copy, as what encoders compute is kept in it."""
    shutil.copytree(prepared / "data", tmp_path / "data")
    return tmp_path / "data"


Made = Callable[..., LiveItemEncoder]


@pytest.fixture
def make(data: Path, weights: Callable[[str], str], models: ModuleType) -> Made:
    """An encoder for the dataset, as a sequential model is given it."""

    def made(
        modality: str,
        name: str | None = None,
        *,
        precision: str = "float32",
        seed: int = 0,
        **how: Any,
    ) -> LiveItemEncoder:
        name = name or KINDS[modality]
        live = LiveEncoder(name=name, weights=weights(models.kind_of(name, how)), **how)
        source = find_live(load_dataset("mine", data), modality, live)
        how = {"seed": seed, "precision": precision, "compute": CPU, "is_sequential": True}
        (given,) = make_features([source], **how)
        assert isinstance(given.encoder, LiveItemEncoder)
        return given.encoder

    return made


def every(encoder: LiveItemEncoder) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        states, mask = encoder(torch.arange(N_ITEMS))
    return states, mask


def gradients(encoder: LiveItemEncoder, items: list[int]) -> dict[str, torch.Tensor]:
    encoder.zero_grad()
    states, mask = encoder(torch.tensor(items))
    states = states * mask[:, :, None]
    weights = torch.linspace(-1, 1, states.numel()).view(states.shape)
    (states * weights).sum().backward()
    return {n: w.grad.clone() for n, w in encoder.named_parameters() if w.grad is not None}


CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("textual", "bert", {}),
    ("textual", "clip-vit-b32", {}),
    ("visual", "mae-b16", {}),
    ("visual", "swin-b", {}),
    ("visual", "resnet50", {}),
    ("visual", "clip-vit-b32", {"preprocess": "mmsr"}),
    ("joint", "vilt", {"preprocess": "mmsr"}),
    ("joint", "flava", {}),
    ("joint", "vlmo-base-plus", {}),
    ("joint", "visualbert", {"variant": "grid"}),
    ("joint", "visualbert", {"variant": "patch-emb"}),
    ("joint", "visualbert", {"variant": "patch-vit"}),
]


@pytest.mark.parametrize(("modality", "name", "how"), CASES)
def test_a_kept_trunk_changes_no_value_and_no_gradient(
    make: Made, modality: str, name: str, how: dict[str, Any]
) -> None:
    live, once = make(modality, name, cache=False, **how), make(modality, name, **how)
    assert once.is_kept
    assert not live.is_kept
    assert live.width == once.width
    (expected, mask), (found, same) = every(live), every(once)
    assert torch.equal(mask, same)
    torch.testing.assert_close(found * mask[:, :, None], expected * mask[:, :, None], **CLOSE)
    items = [4, 3, 5, 11]  # without text, without picture, and both
    wanted, got = gradients(live, items), gradients(once, items)
    assert wanted.keys() == got.keys() == dict(live.named_parameters()).keys()
    for weight in wanted:
        torch.testing.assert_close(got[weight], wanted[weight], atol=1e-5, rtol=1e-4)
    with torch.no_grad():  # whatever else is in the batch
        for item in (0, 3, 5, 9):
            alone, there = once(torch.tensor([item]))
            torch.testing.assert_close(alone[0][there[0]], found[item][mask[item]], **CLOSE)


CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def test_states_of_texts_are_the_librarys(
    make: Made, data: Path, weights: Callable[[str], str]
) -> None:
    import transformers

    bert = transformers.BertModel.from_pretrained(weights("bert")).eval()
    words = transformers.AutoTokenizer.from_pretrained(weights("bert"))
    states, mask = every(make("textual"))
    for item, text in enumerate(load_dataset("mine", data).texts):
        given = words([text], return_tensors="pt", truncation=True, max_length=40)
        with torch.no_grad():
            expected = bert(**given).last_hidden_state[0]
        torch.testing.assert_close(states[item][mask[item]], expected, **CLOSE)
    assert int(mask[3].sum()) == 2  # the special tokens alone


def test_states_of_pictures_are_the_librarys(
    make: Made, data: Path, models: ModuleType, weights: Callable[[str], str]
) -> None:
    import timm

    architecture, size, arguments = models.TIMM["mae-b16"]
    model = timm.create_model(architecture, num_classes=0, **arguments).eval()
    model.load_state_dict(load_file(Path(weights("mae-b16")) / "model.safetensors"))
    states, mask = every(make("visual", cache=False, preprocess="mmsr"))
    assert bool(mask.all())
    for item, path in enumerate(load_dataset("mine", data).image_paths):
        pixels = torch.zeros(3, size, size)  # after normalisation, where there is no picture
        if path is not None:
            squashed = open_picture(path).resize((size, size), Image.Resampling.BILINEAR)
            values = torch.from_numpy(np.array(squashed)).permute(2, 0, 1).float()
            pixels = (values / 255 - 0.5) / 0.5
        with torch.no_grad():
            expected = model.forward_features(pixels[None])[0]
        torch.testing.assert_close(states[item], expected, **CLOSE)


def test_only_the_unfrozen_blocks_move(make: Made) -> None:
    for modality, name, blocks in (
        ("textual", "bert", ("encoder.layer.2.", "encoder.layer.3.")),
        ("visual", "resnet50", ("layer3.0.", "layer4.0.", "layer4.1.")),
    ):
        encoder = make(modality, name, cache=False).train()
        module = encoder._encoder.module
        before = {name: value.clone() for name, value in module.state_dict().items()}
        optimizer = torch.optim.AdamW(encoder.parameters(), lr=0.01)
        for _ in range(2):
            optimizer.zero_grad()
            states, _ = encoder(torch.tensor([0, 1, 2]))
            (states[:, 0] * torch.arange(states.shape[2])).sum().backward()
            optimizer.step()
        learning = {name for name, _ in module.named_parameters() if name.startswith(blocks)}
        moved = {n for n, v in module.state_dict().items() if not torch.equal(v, before[n])}
        assert moved == learning  # statistics of BatchNorm are not among them


def test_the_state_holds_what_learns_alone(make: Made) -> None:
    encoder, other = make("textual"), make("textual", cache=False)
    state = encoder.state_dict()
    assert len(state) == 2 * 16
    assert all(".encoder.layer." in f".{name}" for name in state)
    assert sum(value.numel() for value in state.values()) == encoder.n_learning
    changed = {name: value + 0.1 for name, value in state.items()}
    for one in (encoder, other):
        one.load_state_dict(changed)
    first, second = every(encoder), every(other)
    torch.testing.assert_close(first[0], second[0], **CLOSE)
    assert encoder._encoder.module.get_parameter(
        "encoder.layer.3.output.dense.bias"
    ) is encoder.learning.get_parameter("encoder.layer.3.output.dense.bias")


def test_modes(make: Made) -> None:
    def dropping(encoder: LiveItemEncoder) -> set[str]:
        named = encoder._encoder.module.named_modules()
        return {n for n, m in named if isinstance(m, torch.nn.Dropout) and m.training}

    assert not dropping(make("textual"))
    learning = dropping(make("textual").train())
    assert learning
    assert all(name.startswith(("encoder.layer.2", "encoder.layer.3")) for name in learning)
    resting = dropping(make("textual", frozen_eval=False).train())
    assert "embeddings.dropout" in resting
    assert not make("textual", frozen_eval=False).is_kept
    full = make("textual", tune="full").train()
    assert "embeddings.dropout" in dropping(full)
    assert not full.is_kept
    still = make("textual", tune="none").train()
    assert not dropping(still)
    assert still.is_kept
    assert not list(still.parameters())
    assert not still(torch.tensor([1]))[0].requires_grad
    for part in make("visual", "resnet50", tune="full").train()._encoder.module.modules():
        assert not (isinstance(part, torch.nn.BatchNorm2d) and part.training)


def test_dropout_is_drawn_in_the_learning_blocks_alone(make: Made) -> None:
    encoder = make("textual").train()
    items = torch.tensor([0, 1])
    torch.manual_seed(1)
    first = encoder(items)[0]
    assert not torch.equal(encoder(items)[0], first)
    torch.manual_seed(1)
    assert torch.equal(encoder(items)[0], first)


def test_checkpointing_changes_nothing(make: Made) -> None:
    for tune in ("top", "full"):
        plain = make("textual", tune=tune).train()
        thrifty = make("textual", tune=tune, checkpointing=True).train()
        torch.manual_seed(4)
        expected = gradients(plain, [1, 2, 3])
        torch.manual_seed(4)
        found = gradients(thrifty, [1, 2, 3])
        assert found.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-5)


def test_masks_are_drawn_in_training_and_stay_in_evaluation(make: Made) -> None:
    encoder = make("visual", mask_ratio=0.5)
    assert not encoder.is_kept
    states, _ = every(encoder)
    assert states.shape[1] == 1 + 2  # the class token and two of four patches
    assert torch.equal(every(encoder)[0], states)
    assert torch.equal(every(make("visual", mask_ratio=0.5))[0], states)
    assert not torch.equal(every(make("visual", mask_ratio=0.5, seed=1))[0], states)
    encoder.train()
    torch.manual_seed(0)
    drawn = every(encoder)[0]
    assert not torch.equal(every(encoder)[0], drawn)
    torch.manual_seed(0)
    assert torch.equal(every(encoder)[0], drawn)


def test_positions_of_mae_never_learn(make: Made) -> None:
    assert "learning.pos_embed" not in dict(make("visual", tune="full").named_parameters())
    full = dict(make("visual", "vit-b16", tune="full").named_parameters())
    assert "learning.pos_embed" in full


def test_half_precision_keeps_a_trunk_of_its_own(make: Made) -> None:
    live = make("textual", precision="bfloat16", cache=False)
    once = make("textual", precision="bfloat16")
    items = torch.tensor([0, 2, 4])
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        (expected, mask), (found, _) = live(items), once(items)
    assert found.dtype == torch.float32
    real = mask[:, :, None]
    torch.testing.assert_close(found * real, expected * real, atol=0.05, rtol=0.02)
    torch.testing.assert_close(every(once)[0], every(live)[0], **CLOSE)


def test_what_is_kept_is_found_again_and_made_anew_where_it_is_damaged(
    make: Made, data: Path
) -> None:
    folder = data / "mine" / FOLDER
    expected = every(make("textual"))[0]
    (array,) = folder.glob("trunk-*.npy")
    whole, written = array.read_bytes(), array.stat().st_mtime_ns
    assert torch.equal(every(make("textual"))[0], expected)
    assert array.stat().st_mtime_ns == written
    array.write_bytes(whole[: len(whole) // 2])
    assert torch.equal(every(make("textual"))[0], expected)
    assert array.read_bytes() == whole
    # Other settings, other files.
    make("textual", max_tokens=8)
    make("textual", blocks=1)
    assert len(list(folder.glob("trunk-*.npy"))) == 3
    assert not list(folder.glob("*.partial"))
    make("visual", cache=False)
    assert len(list(folder.glob("pictures-*.npy"))) == 1


def test_nothing_half_written_is_kept(tmp_path: Path) -> None:
    def fail(arrays: Any) -> dict[str, Any]:
        raise DataError("no")

    form = ((3, 2), np.dtype(np.float32))
    with pytest.raises(DataError, match="no"):
        kept(tmp_path, "x", [form], fail)
    assert not list(tmp_path.glob("x*"))
    with pytest.raises(DataError, match=r"E108 .* GiB are needed to keep y"):
        kept(tmp_path, "y", [((2**45, 2**10), np.dtype(np.float32))], fail)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        kept(tmp_path / "file" / "inside", "x", [form], fail)


def recipe(weights: Callable[[str], str], **changes: Any) -> Recipe:
    raw: dict[str, Any] = {
        "dataset": "mine",
        "protocol": "mmsr",
        "encoders": {
            "textual": {"name": "bert", "weights": weights("bert"), "max_tokens": 12},
            "visual": {"name": "mae-b16", "weights": weights("mae-b16"), "preprocess": "mmsr"},
        },
        "model": {
            "name": "mmsr",
            "embedding_size": 8,
            "max_length": 4,
            "n_layers": 1,
            "n_heads": 2,
        },
        "training": {
            "epochs": 4,
            "batch_size": 8,
            "learning_rate": 0.01,
            "encoder_learning_rate": 0.003,
            "optimizer": "adamw",
            "select_by": "ndcg@5",
        },
        "evaluation": {"metrics": ["hr@5", "ndcg@5"], "depth": 10},
    }
    return Recipe({**raw, **changes}, "live")


def test_a_whole_run_learns_and_is_scored_again(
    data: Path, weights: Callable[[str], str], tmp_path: Path
) -> None:
    import yaml

    file = tmp_path / "live.yaml"
    file.write_text(yaml.safe_dump(recipe(weights).raw))
    places = ["--data-dir", str(data), "--runs-dir", str(tmp_path / "runs"), "--device", "cpu"]
    told = CliRunner().invoke(cli, ["train", str(file), *places])
    assert told.exit_code == 0, told.output
    (folder,) = (tmp_path / "runs").iterdir()
    run = open_run(folder)
    losses = [sum(e["losses"].values()) for e in read_history(folder)]
    assert losses[-1] < losses[0]
    facts = run.manifest["encoders"]
    assert [fact["modality"] for fact in facts] == ["visual", "textual"]
    assert all(len(fact["weights_sha256"]) == 64 for fact in facts)
    assert run.manifest["model"]["modalities"] == ["visual", "textual"]
    stored = load_file(folder / "weights.safetensors")
    assert not [name for name in stored if "embeddings" in name or "layer.0" in name]
    assert [name for name in stored if "encoder.layer.3" in name]
    again = load_trained(run, data, CPU)
    assert again.agreement == 1.0
    changed = tmp_path / "changed"
    shutil.copytree(weights("bert"), changed)
    save_file(
        {k: v + 0.1 for k, v in load_file(changed / "model.safetensors").items()},
        changed / "model.safetensors",
        {"format": "pt"},
    )
    stored = yaml.safe_load((folder / "recipe.yaml").read_text())
    stored["encoders"]["textual"]["weights"] = str(changed)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(stored))
    with pytest.raises(DataError, match="encoder"):
        load_trained(run, data, CPU)


def read_history(folder: Path) -> list[dict[str, Any]]:
    import json

    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def test_an_interrupted_run_ends_in_the_same_bits(
    data: Path, weights: Callable[[str], str], tmp_path: Path
) -> None:
    encoders = recipe(weights).raw["encoders"]
    encoders["visual"]["mask_ratio"] = 0.5  # drawn anew each step; the texts' trunk is kept
    (one,) = recipe(weights, encoders=encoders).expand()

    def train(name: str, stop: int | None = None) -> Path:
        def listen(_: Any, record: dict[str, Any], __: Any) -> None:
            if record["epoch"] == stop:
                raise KeyboardInterrupt

        made = train_run(
            one,
            data_dir=data,
            runs_dir=tmp_path / name,
            compute=CPU,
            on_epoch=listen,
            checkpoint_every_s=0,
        )
        return made.path

    whole = train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("broken", stop=3)  # the checkpoint is of the epoch before
    # What is kept may be gone meanwhile.
    shutil.rmtree(data / "mine" / FOLDER)
    resumed = train("broken")
    first, second = (load_file(path / "weights.safetensors") for path in (whole, resumed))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    for part in ("valid", "test"):
        lists = [np.load(path / "lists" / part / "items.npy") for path in (whole, resumed)]
        assert np.array_equal(*lists)


def test_the_run_is_known_by_the_weights(
    data: Path, models: ModuleType, weights: Callable[[str], str], tmp_path: Path
) -> None:
    def facts(folder: str) -> dict[str, Any]:
        only = {"textual": {"name": "bert", "weights": folder}}
        (one,) = recipe(weights, encoders=only).expand()
        return load_inputs(one, data).facts()

    moved = tmp_path / "moved"
    shutil.copytree(weights("bert"), moved)
    assert facts(weights("bert")) == facts(str(moved))
    other = models.save("bert", tmp_path / "other", n_layers=3)
    assert facts(weights("bert")) != facts(str(other))


def test_fresh_encoders_for_every_run(data: Path, weights: Callable[[str], str]) -> None:
    (one,) = recipe(weights).expand()
    inputs = load_inputs(one, data)
    first = build_model(one, inputs, CPU)
    with torch.no_grad():
        for weight in first.parameters():
            weight.add_(1.0)
    second, third = build_model(one, inputs, CPU), build_model(one, load_inputs(one, data), CPU)
    for name, value in second.state_dict().items():
        assert torch.equal(value, third.state_dict()[name]), name


def test_general_models_are_given_the_first_vectors(
    data: Path, weights: Callable[[str], str]
) -> None:
    source = find_live(
        load_dataset("mine", data), "textual", LiveEncoder(name="bert", weights=weights("bert"))
    )
    how = {"seed": 0, "precision": "float32", "compute": CPU, "is_sequential": False}
    (given,) = make_features([source], **how)
    encoder = given.encoder
    assert isinstance(encoder, LiveItemEncoder)
    assert given.matrix.shape == (N_ITEMS, 16)
    states, mask = every(encoder)
    weights_of = mask[:, :, None].float()
    expected = (states * weights_of).sum(1) / weights_of.sum(1)
    has = torch.arange(N_ITEMS) != 3
    expected[3] = expected[has].mean(dim=0)  # as of a stored set
    torch.testing.assert_close(given.matrix, expected, **CLOSE)
    assert given.present.tolist() == has.tolist()
    vectors = encoder.vectors(torch.tensor([0, 1]))
    vectors.sum().backward()
    assert all(weight.grad is not None for weight in encoder.parameters())


BAD: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("textual", {"name": "mae-b16"}, ConfigError, r"encoders\.textual: mae-b16 makes no textual"),
    ("visual", {"name": "bert"}, ConfigError, "makes no visual vectors"),
    ("joint", {"name": "bert"}, ConfigError, "makes no joint vectors"),
    ("visual", {"name": "vilt"}, ConfigError, "makes no visual vectors"),
    ("textual", {"name": "tfidf-svd"}, ConfigError, "cannot learn with a recommender"),
    ("visual", {"name": "faster-rcnn"}, ConfigError, "cannot learn with a recommender"),
    ("textual", {"name": "bertt"}, ConfigError, "Did you mean .bert"),
    ("textual", {"name": "bert", "mask_ratio": 0.5}, ConfigError, "takes no mask-ratio"),
    ("textual", {"name": "bert", "max_tokens": 2}, ConfigError, "max-tokens 2"),
    ("textual", {"name": "bert", "weights": "/nowhere"}, DataError, r"E403 .*textual\.weights"),
    ("textual", {"name": "bert", "variant": "best"}, ConfigError, "variant of Bert"),
]


@pytest.mark.parametrize(("modality", "how", "kind", "message"), BAD)
def test_what_cannot_be_used_is_refused(
    data: Path, modality: str, how: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        find_live(load_dataset("mine", data), modality, LiveEncoder(**how))


def test_weights_of_another_architecture_are_refused(
    data: Path, weights: Callable[[str], str]
) -> None:
    live = LiveEncoder(name="roberta", weights=weights("bert"))
    with pytest.raises(DataError, match=r"encoders\.textual: E406 .*'bert'"):
        find_live(load_dataset("mine", data), "textual", live)


def test_a_projection_that_nobody_trained_must_learn(make: Made) -> None:
    with pytest.raises(ConfigError, match=r"encoders\.joint: visualbert with .*tune: top or full"):
        make("joint", "visualbert", variant="patch-emb", tune="none")
    first, same, other = (
        dict(make("joint", "visualbert", variant="patch-emb", seed=seed).named_parameters())
        for seed in (0, 0, 1)
    )
    name = "learning.visualbert.embeddings.visual_projection.weight"
    assert torch.equal(first[name], same[name])
    assert not torch.equal(first[name], other[name])


def test_too_many_blocks_are_refused(make: Made) -> None:
    with pytest.raises(ConfigError, match="9 is more than the 4 blocks"):
        make("textual", blocks=9)


def test_a_model_that_reads_no_content_is_refused(
    data: Path, weights: Callable[[str], str]
) -> None:
    (sasrec,) = recipe(weights, model={"name": "sasrec"}).expand()
    with pytest.raises(ConfigError, match=r"encoders\.visual: sasrec cannot use this modality"):
        load_inputs(sasrec, data)
    only = {"visual": {"name": "mae-b16", "weights": weights("mae-b16")}}
    (vbpr,) = recipe(weights, model={"name": "vbpr"}, encoders=only).expand()
    with pytest.raises(ConfigError, match="vbpr trains no encoders"):
        build_model(vbpr, load_inputs(vbpr, data), CPU)


def test_a_dataset_without_content_is_refused(
    tmp_path: Path, weights: Callable[[str], str]
) -> None:
    from mmbench.data.prepare import prepare

    source = tmp_path / "raw"
    source.mkdir()
    rows = [f"u{u},i{i},{1_600_000_000 + i}" for u in range(8) for i in range(8)]
    (source / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]))
    prepare("bare", source=source, data_dir=tmp_path / "data")
    dataset = load_dataset("bare", tmp_path / "data")
    for modality, name, what in (("textual", "bert", "text"), ("visual", "mae-b16", "picture")):
        with pytest.raises(DataError, match=f"no item of bare has a {what}"):
            find_live(dataset, modality, LiveEncoder(name=name, weights=weights(name)))


def test_broken_pictures_count_as_absent_and_many_are_refused(
    prepared: Path, weights: Callable[[str], str], tmp_path: Path
) -> None:
    import hashlib
    import json

    shutil.copytree(prepared, tmp_path / "all")
    lines_file = tmp_path / "all/data/mine/items.jsonl"
    dataset = load_dataset("mine", tmp_path / "all/data")
    paths = dataset.image_paths
    source = find_live(
        dataset, "visual", LiveEncoder(name="mae-b16", weights=weights("mae-b16"), cache=False)
    )
    broken = {1: 0}
    assert json.loads(lines_file.read_text().splitlines()[1])["image_sha256"]
    for item in broken:
        assert paths[item] is not None
    copies = list(source.contents.pictures or [])
    hashes = list(source.contents.picture_hashes)
    for item in (1, 2, 4, 6):
        bad = tmp_path / f"{item}.png"
        bad.write_bytes(b"no picture")
        copies[item], hashes[item] = bad, hashlib.sha256(b"no picture").hexdigest()
    from dataclasses import replace

    def with_broken(items: list[int]) -> Any:
        pictures, known = list(source.contents.pictures or []), list(hashes)
        known = list(source.contents.picture_hashes)
        for item in items:
            pictures[item], known[item] = copies[item], hashes[item]
        return replace(
            source,
            contents=replace(source.contents, pictures=pictures, picture_hashes=known),
        )

    how = {"seed": 0, "precision": "float32", "compute": CPU, "is_sequential": True}
    (given,) = make_features([with_broken([1])], **how)
    states, _ = every(given.encoder)
    torch.testing.assert_close(states[1], states[5], **CLOSE)
    with pytest.raises(DataError, match=r"E116 4 of 13 pictures cannot be read"):
        make_features([with_broken([1, 2, 4, 6])], **how)
    known = list(source.contents.picture_hashes)
    changed = replace(source.contents, pictures=copies, picture_hashes=known)
    swapped = replace(source, contents=changed)
    with pytest.raises(DataError, match="E105"):
        make_features([swapped], **how)
