from __future__ import annotations

import collections
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mmbench.encoders.vlmo_checkpoint import load_vlmo, read_tensors, unsafe_names
from mmbench.encoders.vlmo_model import Vlmo, VlmoShape
from mmbench.errors import DataError

TINY = VlmoShape(
    width=16,
    blocks=3,
    heads=2,
    vl_from=2,
    image_size=32,
    patch_size=8,
    vocabulary=50,
    text_length=10,
)
POSITIONS = "text_embeddings.position_embeddings.weight"
GRID = "transformer.pos_embed"
TYPES = "token_type_embeddings.weight"
HEADS = ("itm_score", "mlm_score", "itc_vl_text_proj", "itc_vl_image_proj", "logit_vl_scale")


def tensors_of(shape: VlmoShape = TINY, seed: int = 3) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(tensor.shape, generator=rng)
        for name, tensor in Vlmo(shape).state_dict().items()
    }


def saved(path: Path, content: Any, *, is_zip: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    return path


def assert_loaded(path: Path, expected: dict[str, torch.Tensor]) -> None:
    model, fit = load_vlmo(path, TINY)
    assert (fit.missing, fit.unexpected, fit.unfit, fit.drawn, fit.changes) == ((), (), (), (), ())
    assert set(fit.matched) == set(expected)
    assert fit.share == 1
    assert not model.training
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert tensor.device.type == "cpu"
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapper", ["state_dict", "module", "model", None])
def test_a_checkpoint_in_the_published_layout_matches_in_every_name(
    tmp_path: Path, wrapper: str | None, prefix: str, is_zip: bool
) -> None:
    expected = tensors_of()
    named = collections.OrderedDict((prefix + name, t) for name, t in expected.items())
    content: Any = named
    if wrapper is not None:
        content = {"epoch": 7, "global_step": 200_000, wrapper: named, "optimizer": {"lr": 0.1}}
    assert_loaded(saved(tmp_path / "vlmo.pt", content, is_zip=is_zip), expected)


def test_safetensors_are_read_too(tmp_path: Path) -> None:
    save_file(tensors_of(), tmp_path / "vlmo.safetensors")
    assert_loaded(tmp_path / "vlmo.safetensors", tensors_of())


def test_a_loaded_model_does_not_need_the_file_any_longer(tmp_path: Path) -> None:
    path = saved(tmp_path / "vlmo.pt", {"state_dict": tensors_of()})
    model, _ = load_vlmo(path, TINY)
    os.truncate(path, 0)
    assert torch.equal(model.transformer.norm.weight, tensors_of()["transformer.norm.weight"])


def test_what_old_libraries_store_besides_is_passed_over(tmp_path: Path) -> None:
    extra = {
        "text_embeddings.position_ids": torch.arange(10)[None],
        "relative_position_index": torch.zeros(4, 4, dtype=torch.int64),
        "transformer.text_relative_position_index": torch.zeros(4, 4, dtype=torch.int64),
        "optimizer_states": [{"step": 1}],
        "lr_schedulers": [],
        "optimizer.exp_avg": torch.zeros(3),
    }
    path = saved(tmp_path / "vlmo.pt", {"state_dict": {**extra, **tensors_of()}})
    assert_loaded(path, tensors_of())


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    halved = {name: tensor.half() for name, tensor in tensors_of().items()}
    path = saved(tmp_path / "vlmo.pt", {"module": halved})
    assert_loaded(path, {name: tensor.float() for name, tensor in halved.items()})


def test_sums_are_those_of_the_file_in_double_precision(tmp_path: Path) -> None:
    _, fit = load_vlmo(saved(tmp_path / "vlmo.pt", tensors_of()), TINY)
    assert len(fit.sums) == 5
    for name, found in fit.sums.items():
        assert found == pytest.approx(
            tensors_of()[name].numpy().astype(np.float64).sum(), rel=1e-12
        )
    assert json.loads(json.dumps(fit.sums)) == fit.sums
    _, other = load_vlmo(saved(tmp_path / "other.pt", tensors_of(seed=4)), TINY)
    assert all(other.sums[name] != fit.sums[name] for name in fit.sums)


# --------------------------------------------------------------------------------------------
# Positions of another number.


def test_of_more_text_positions_the_first_are_kept(tmp_path: Path) -> None:
    path = saved(tmp_path / "vlmo.pt", tensors_of(replace(TINY, text_length=196)))
    model, fit = load_vlmo(path, TINY)
    kept = model.text_embeddings.position_embeddings.weight
    assert torch.equal(kept, read_tensors(path)[POSITIONS][:10])
    assert fit.changes == ("text positions: the first 10 of 196",)
    assert not fit.missing + fit.unexpected + fit.unfit


def test_fewer_text_positions_are_refused_or_interpolated(tmp_path: Path) -> None:
    path = saved(tmp_path / "vlmo.pt", tensors_of(replace(TINY, text_length=4)))
    with pytest.raises(DataError, match=r"E406 .*vlmo.pt has 4 text positions, and 10 are asked "):
        load_vlmo(path, TINY)
    model, fit = load_vlmo(path, TINY, extend_text=True)
    table = read_tensors(path)[POSITIONS].numpy()
    expected = np.stack(
        [np.interp(np.linspace(0, 3, 10), np.arange(4), column) for column in table.T], axis=1
    )
    found = model.text_embeddings.position_embeddings.weight.detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)
    assert fit.changes == ("text positions: 4 stretched to 10",)


def test_image_positions_of_another_grid_are_interpolated(tmp_path: Path) -> None:
    tensors = tensors_of(replace(TINY, image_size=64))  # 8 x 8 patches
    rows, columns = np.mgrid[0:8, 0:8]
    grid = np.zeros((8, 8, 16), dtype=np.float32)
    grid[..., 0], grid[..., 1], grid[..., 2] = 3.5, rows, columns
    tensors[GRID][0, 1:] = torch.from_numpy(grid.reshape(64, 16))
    model, fit = load_vlmo(saved(tmp_path / "vlmo.pt", tensors), TINY)
    found = model.transformer.pos_embed.detach().numpy()[0]
    np.testing.assert_array_equal(found[0], tensors[GRID][0, 0].numpy())
    inner = found[1:].reshape(4, 4, 16)
    np.testing.assert_allclose(inner[..., 0], 3.5, atol=1e-5)
    # Cell k of 4 lies between cells 2k and 2k + 1 of 8; a slope stays one, but for the border.
    np.testing.assert_allclose(inner[1:3, :, 1], np.array([[2.5] * 4, [4.5] * 4]), atol=1e-5)
    np.testing.assert_allclose(inner[:, 1:3, 2], np.array([[2.5, 4.5]] * 4), atol=1e-5)
    np.testing.assert_allclose(inner[..., 3:], 0, atol=1e-6)
    assert fit.changes == ("image positions: 8 x 8 interpolated to 4 x 4",)


def test_of_three_modality_types_the_first_two_are_kept(tmp_path: Path) -> None:
    tensors = tensors_of()
    tensors[TYPES] = torch.arange(48.0).view(3, 16)
    model, fit = load_vlmo(saved(tmp_path / "vlmo.pt", tensors), TINY)
    assert torch.equal(model.token_type_embeddings.weight, torch.arange(32.0).view(2, 16))
    assert fit.changes == ("modality types: the first 2 of 3",)


# --------------------------------------------------------------------------------------------
# Missing and other parts.


def test_heads_that_are_missing_are_drawn_and_named(tmp_path: Path) -> None:
    shape = replace(TINY, width=64, vocabulary=500)
    tensors = {
        name: tensor
        for name, tensor in tensors_of(shape).items()
        if not name.startswith((*HEADS, "pooler"))
    }
    tensors["nlvr2_classifier.weight"] = torch.ones(2, 2)
    path = saved(tmp_path / "vlmo.pt", {"state_dict": tensors})
    model, fit = load_vlmo(path, shape)
    assert fit.drawn == tuple(sorted([*HEADS, "pooler"]))
    assert fit.unexpected == ("nlvr2_classifier.weight",)
    assert 0 < fit.share < 1
    for weight in (model.mlm_score.decoder.weight, model.pooler.dense.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert abs(weight.mean().item()) < 0.001
    for zero in (model.mlm_score.bias, model.pooler.dense.bias, model.itm_score.fc.bias):
        assert not zero.any()
    assert (model.mlm_score.transform.LayerNorm.weight == 1).all()
    assert model.logit_vl_scale.item() == pytest.approx(2.6592600)
    again, _ = load_vlmo(path, shape)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda tensors: tensors.pop(name)


def having(name: str, *shape: int) -> Callable[[dict[str, Any]], None]:
    return lambda tensors: tensors.update({name: torch.ones(shape)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            without("transformer.norm.bias"),
            r"it lacks transformer.norm.bias \(\d+ of \d+ tensors match\)",
        ),
        (without("transformer.blocks.1.attn.q_bias"), "it lacks transformer.blocks.1.attn.q_bias"),
        (without(POSITIONS), f"it lacks {POSITIONS}"),
        (without(TYPES), f"it lacks {TYPES}"),
        (
            having("text_embeddings.word_embeddings.weight", 51, 16),
            r"in another shape text_embeddings.word_embeddings.weight \[51, 16\] for \[50, 16\]",
        ),
        (having(GRID, 1, 12, 16), r"another shape transformer.pos_embed \[1, 12, 16\] for \[1, 17"),
        (having(GRID, 17, 16), r"another shape transformer.pos_embed \[17, 16\] for \[1, 17, 16\]"),
        (having(POSITIONS, 10, 8), r"\[10, 8\] for \[10, 16\]"),
        (
            having("transformer.blocks.1.mlp_vl.fc1.weight", 64, 16),
            "it has besides transformer.blocks.1.mlp_vl.fc1.weight",
        ),
        (having("transformer.blocks.3.norm1.weight", 16), "besides transformer.blocks.3.norm1"),
        (having("transformer.blocks.0.gamma_1", 16), "is a VLMo-Base or VLMo-Large"),
        (having("relative_position_bias_table", 9, 12), "is a VLMo-Base or VLMo-Large"),
        (having("relative_position_bias_list.0.table", 9), "is a VLMo-Base or VLMo-Large"),
        (lambda tensors: tensors.update(note="by hand"), "note is no dense tensor of numbers"),
        (
            lambda tensors: tensors.update({GRID: torch.eye(17).to_sparse()}),
            f"{GRID} is no dense tensor of numbers",
        ),
        (
            lambda tensors: tensors["transformer.cls_token"].fill_(torch.nan),
            r"E404 .*is broken \(transformer.cls_token holds NaN or infinity\)",
        ),
        (
            lambda tensors: tensors["pooler.dense.weight"].fill_(torch.inf),
            r"pooler.dense.weight holds NaN or infinity",
        ),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    tensors: dict[str, Any] = tensors_of()
    change(tensors)
    path = saved(tmp_path / "vlmo.pt", {"state_dict": tensors})
    with pytest.raises(DataError, match=message) as caught:
        load_vlmo(path, TINY)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [{}, {"state_dict": {}}, {"resnet.conv.weight": torch.ones(3)}])
def test_a_checkpoint_of_another_model_matches_in_nothing(tmp_path: Path, content: Any) -> None:
    path = saved(tmp_path / "vlmo.pt", content)
    with pytest.raises(DataError, match=r"it lacks .* and \d+ more \(0 of \d+ tensors match\)"):
        load_vlmo(path, TINY)


@pytest.mark.parametrize("content", [torch.ones(3), [torch.ones(3)], 5])
def test_a_file_without_names_is_refused(tmp_path: Path, content: Any) -> None:
    kind = type(content).__name__
    path = saved(tmp_path / "vlmo.pt", content)
    with pytest.raises(DataError, match=f"E406 .*holds a {kind}, not tensors by name"):
        load_vlmo(path, TINY)


# --------------------------------------------------------------------------------------------
# Files that are broken, or want to do something.


class Runs:
    """Unpickling this runs a command; `place` would then exist."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle-2", "pickle-4", "pickle-5"])
def test_code_in_a_pickle_is_named_and_not_run(tmp_path: Path, kind: str) -> None:
    content = {"state_dict": tensors_of(), "callbacks": Runs(tmp_path / "was-run")}
    path = tmp_path / "vlmo.pt"
    if kind.startswith("pickle"):
        with path.open("wb") as file:
            pickle.dump({"callbacks": Runs(tmp_path / "was-run")}, file, protocol=int(kind[-1]))
    else:
        saved(path, content, is_zip=kind == "zip")
    with pytest.raises(DataError, match=r"E405 .*vlmo.pt is a pickle .*\((posix|nt)\.mkdir\)"):
        load_vlmo(path, TINY)
    assert [name.rpartition(".")[2] for name in unsafe_names(path)] == ["mkdir"]
    assert not (tmp_path / "was-run").exists()
    with path.open("rb") as file:  # it would have been, by an ordinary reader
        assert b"mkdir" in file.read()


def test_harmless_classes_of_training_are_named_too(tmp_path: Path) -> None:
    path = saved(tmp_path / "vlmo.pt", {"state_dict": tensors_of(), "config": Path("/tmp")})
    with pytest.raises(DataError, match=r"E405 .*\(pathlib\.[\w.]*PosixPath\)"):
        load_vlmo(path, TINY)


def test_a_torchscript_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vlmo.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py", "version"):
            archive.writestr(f"vlmo/{name}", b"\x80\x02}.")
    with pytest.raises(DataError, match=r"E405 .* is a TorchScript archive"):
        load_vlmo(path, TINY)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is broken"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html><html>Not found</html>", "a web page in place of the file"),
        (b"not found", "is broken"),
        (b"PK\x03\x04 and no more", "is broken"),
    ],
)
def test_a_file_that_is_no_checkpoint(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "vlmo.pt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"E404 .*{message}"):
        load_vlmo(path, TINY)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"E403 .*vlmo.pt is not here"):
        load_vlmo(tmp_path / "vlmo.pt", TINY)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_file_that_stops_half_way(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("vlmo.safetensors" if kind == "safetensors" else "vlmo.pt")
    if kind == "safetensors":
        save_file(tensors_of(), path)
    else:
        saved(path, {"state_dict": tensors_of()}, is_zip=kind == "zip")
    whole = path.read_bytes()
    for share in (0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(DataError, match=r"E404 .*is broken"):
            load_vlmo(path, TINY)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_a_damaged_file_is_an_error_or_still_a_checkpoint(tmp_path: Path, is_zip: bool) -> None:
    path = saved(tmp_path / "vlmo.pt", {"state_dict": tensors_of()}, is_zip=is_zip)
    whole = path.read_bytes()
    rng = np.random.default_rng(2)
    refused = []
    for _ in range(60):
        damaged = np.frombuffer(whole, dtype=np.uint8).copy()
        # Names and offsets are at the beginning, and of an archive at the end too.
        near = rng.integers(0, 6000, size=4)
        damaged[near if rng.random() < 0.5 or not is_zip else -near - 1] ^= rng.integers(
            1, 255, size=4, dtype=np.uint8
        )
        path.write_bytes(damaged.tobytes())
        try:
            load_vlmo(path, TINY)
        except DataError as problem:
            refused.append(str(problem))
    assert len(refused) > 20
    assert all(str(path) in message for message in refused)
