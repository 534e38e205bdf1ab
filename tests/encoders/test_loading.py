"""Files of weights (loading.py) and what is made of them (pretrained.py), on one tiny model."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmbench.encoders.loading import (
    check_file,
    find_weights,
    hash_files,
    load_pickle,
    local_weights,
    read_config,
    read_json,
    read_list,
    tokenizer_files,
    weights_files,
)
from mmbench.encoders.neural import Hub, Options
from mmbench.encoders.pretrained import load_tokenizer, load_transformer
from mmbench.errors import DataError

HUB = Hub("someone/some-model")
SHAPE = {
    "vocab_size": 20,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 12,
}


class Evil:
    """Unpickled without care, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import transformers

    folder = tmp_path_factory.mktemp("original")
    torch.manual_seed(3)
    transformers.BertModel(transformers.BertConfig(**SHAPE)).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


def bert(folder: Path, **settings: Any) -> Any:
    import transformers

    return load_transformer(transformers.BertModel, local_weights(folder), **settings)


def change_config(folder: Path, **entries: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_a_model_is_loaded_as_it_was_saved_in_silence(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = bert(folder, add_pooling_layer=False)
    assert capfd.readouterr() == ("", "")
    saved = load_file(folder / "model.safetensors")
    state = model.state_dict()
    assert len(state) > 30
    for name, tensor in state.items():
        assert torch.equal(tensor, saved[name]), name
    assert not model.training
    assert model.config._attn_implementation == "sdpa"


def test_weights_are_known_by_their_hash(folder: Path) -> None:
    weights = find_weights(HUB, Options(weights=folder))
    expected = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert weights.sha256 == {"model.safetensors": expected}
    assert weights.digest == expected
    assert weights.facts == {
        "model": "someone/some-model",
        "revision": "",
        "weights_sha256": expected,
    }


def test_a_file_is_taken_with_the_configuration_beside_it(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"not looked at")
    weights = find_weights(HUB, Options(weights=folder / "model.safetensors"))
    assert weights.folder == folder
    assert weights.files == (folder / "model.safetensors",)


def test_half_precision_is_loaded_as_float32(folder: Path) -> None:
    path = folder / "model.safetensors"
    save_file({k: v.bfloat16() for k, v in load_file(path).items()}, path, {"format": "pt"})
    change_config(folder, dtype="bfloat16")
    assert {p.dtype for p in bert(folder).parameters()} == {torch.float32}


def test_shards_are_loaded_and_hashed_together(original: Path, tmp_path: Path) -> None:
    whole = bert(original)
    whole.save_pretrained(tmp_path, max_shard_size="8KB")
    files = weights_files(tmp_path)
    assert len(files) > 1
    weights = local_weights(tmp_path)
    hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    assert weights.digest == hashlib.sha256("".join(hashes).encode()).hexdigest()
    again = bert(tmp_path)
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name])
    files[1].unlink()
    missing = rf"E403 .* lacks {files[1].name}, which model.safetensors.*; fetch what is missing"
    with pytest.raises(DataError, match=missing):
        weights_files(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": {"a": "../../etc/passwd"}}'])
def test_an_index_names_files_beside_it_alone(content: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(DataError, match=r"E404 .*model\.safetensors\.index\.json is broken"):
        weights_files(tmp_path)


def test_a_harmless_pickle_is_loaded(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    loaded = bert(folder).state_dict()
    assert torch.equal(
        loaded["embeddings.word_embeddings.weight"], state["embeddings.word_embeddings.weight"]
    )
    assert set(load_pickle(folder / "pytorch_model.bin")) == set(state)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_not_run(
    zipped: bool, folder: Path, tmp_path: Path
) -> None:
    trap = tmp_path / "trapped"
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    if zipped:
        torch.save({"weight": Evil(trap)}, path)
    else:
        path.write_bytes(pickle.dumps({"weight": Evil(trap)}, protocol=2))
    with pytest.raises(DataError, match=r"E405 .*pytorch_model\.bin is a pickle .* could run code"):
        bert(folder)
    with pytest.raises(DataError, match=r"E405 .*pytorch_model\.bin is a pickle"):
        load_pickle(path)
    assert not trap.exists()


def test_a_torchscript_archive_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("model/constants.pkl", pickle.dumps((), protocol=2))
        archive.writestr("model/code/__torch__.py", "class Model(Module): ...")
    with pytest.raises(DataError, match=r"E405 .*pytorch_model\.bin is a TorchScript archive"):
        bert(folder)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is broken"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html></html>", "a web page"),
        (b"\xff" * 100, "is broken"),
        (None, "is broken"),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_broken_file_is_named(name: str, content: bytes | None, why: str, folder: Path) -> None:
    safe = folder / "model.safetensors"
    if name == "pytorch_model.bin":
        torch.save(load_file(safe), folder / name)
        safe.unlink()
    path = folder / name
    path.write_bytes(path.read_bytes()[:-5000] if content is None else content)
    with pytest.raises(DataError, match=rf"(?s)E404 .*{name} .*{why}"):
        bert(folder)


def test_a_folder_without_weights_is_named_with_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"E403 .*nowhere is not here; --weights names"):
        find_weights(HUB, Options(weights=tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"E403 .* holds no weights: .*\. It is empty$"):
        find_weights(HUB, Options(weights=tmp_path))
    for name in ("config.json", "training_args.bin", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(DataError, match=r"E403 .* holds no weights: .* It holds adapter_model"):
        find_weights(HUB, Options(weights=tmp_path))


def test_which_weights_to_take_is_not_guessed(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"several weights \(a\.safetensors, b\.safetensors\)"):
        weights_files(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert weights_files(tmp_path) == (tmp_path / "model.safetensors",)


def test_weights_under_another_name_are_said_to_be_renamed(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "mine.safetensors")
    with pytest.raises(DataError, match=r"mine\.safetensors must be called model\.safetensors"):
        bert(folder)


def test_weights_that_the_model_needs_may_not_be_missing(folder: Path) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    pooler = {name: tensor for name, tensor in state.items() if name.startswith("pooler")}
    assert len(pooler) == 2
    rest = {name: tensor for name, tensor in state.items() if name not in pooler}
    save_file(rest, path, {"format": "pt"})
    with pytest.raises(DataError, match=r"E406 .* lacks weights of BertModel: pooler\.dense\.bias"):
        bert(folder)
    assert bert(folder, may_miss=("pooler.",)) is not None
    assert bert(folder, add_pooling_layer=False) is not None
    rest.pop("encoder.layer.1.output.dense.bias")
    save_file(rest, path, {"format": "pt"})
    with pytest.raises(DataError, match=r"lacks weights of BertModel: encoder\.layer\.1\.output"):
        bert(folder, may_miss=("pooler.",))


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    change_config(folder, intermediate_size=48)
    with pytest.raises(DataError, match=r"E406 "):
        bert(folder)


def test_another_architecture_is_named(folder: Path) -> None:
    change_config(folder, model_type="roberta")
    with pytest.raises(DataError, match=r"of type 'roberta'; BertModel needs 'bert'"):
        bert(folder)


def test_code_of_a_repository_is_never_run(folder: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trapped"
    (folder / "modeling_own.py").write_text(f"import os\nos.mkdir({str(trap)!r})\n")
    change_config(folder, model_type="own-bert", auto_map={"AutoModel": "modeling_own.OwnModel"})
    with pytest.raises(DataError, match=r"E405 .* needs code from its repository .*'own-bert'"):
        bert(folder)
    # A type that transformers knows is loaded with its own class.
    change_config(folder, model_type="bert")
    assert type(bert(folder)).__module__ == "transformers.models.bert.modeling_bert"
    assert not trap.exists()


def test_weights_elsewhere_are_not_followed(folder: Path) -> None:
    change_config(folder, transformers_weights="other.safetensors")
    with pytest.raises(DataError, match=r"E406 .*names weights elsewhere"):
        bert(folder)
    change_config(folder, transformers_weights=None)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/base"}')
    with pytest.raises(DataError, match=r"E406 .*adapter_config\.json: this names weights"):
        bert(folder)


def test_a_folder_without_a_configuration_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(DataError, match=r"E403 .* no config\.json: put it there.* It holds model"):
        bert(folder)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1', "\x00", "[" * 100_000])
def test_broken_settings_are_named(content: str, folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"E404 .*config\.json is broken"):
        read_json(path)
    with pytest.raises(DataError, match=r"E404 .*config\.json is broken"):
        read_config(local_weights(folder))
    path.write_text("{}")
    with pytest.raises(DataError, match=r"no JSON list"):
        read_list(path)


def test_a_configuration_that_makes_no_sense_is_one_message(folder: Path) -> None:
    change_config(folder, num_attention_heads=5)
    with pytest.raises(DataError, match=r"E406 .* does not load as BertModel: The hidden size"):
        bert(folder)


def test_a_tokenizer_is_never_made_of_nothing(folder: Path) -> None:
    with pytest.raises(DataError, match=r"E403 .* holds no tokenizer: tokenizer\.json"):
        load_tokenizer(local_weights(folder))
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match=r"E404 the tokenizer in .* does not load"):
        load_tokenizer(local_weights(folder))
    (folder / "tokenizer_config.json").write_text("{}")
    assert [file.name for file in tokenizer_files(folder)] == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_hashes_are_those_of_the_whole_file(tmp_path: Path) -> None:
    content = os.urandom(2**20 + 17)
    (tmp_path / "a").write_bytes(content)
    (tmp_path / "b").write_bytes(b"")
    assert hash_files([tmp_path / "a", tmp_path / "b"]) == {
        "a": hashlib.sha256(content).hexdigest(),
        "b": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    }


def test_a_whole_file_is_let_through(folder: Path) -> None:
    check_file(folder / "model.safetensors")


@pytest.mark.parametrize("content", [b"\x80\x02hello", pickle.dumps({"a": {1}}, protocol=2)])
def test_a_pickle_of_something_else_is_broken(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"E40[45] .*model\.pt is "):
        load_pickle(path)
