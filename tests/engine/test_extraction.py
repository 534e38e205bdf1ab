"""Extraction with neural encoders: right rows, nothing twice, nothing lost, nothing mixed up."""

import fcntl
import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mmbench.data.prepare import prepare
from mmbench.data.prepared import load_dataset
from mmbench.encoders.neural import Options
from mmbench.engine import extraction
from mmbench.engine.contents import TextTemplate
from mmbench.engine.encoding import Watch
from mmbench.engine.extraction import How, extract_neural
from mmbench.errors import ConfigError, DataError, UnknownNameError

CPU = How(device="cpu")


class Listening(Watch):
    def __init__(self):
        self.said, self.begun, self.advanced = [], [], []

    def begin(self, what, done, total):
        self.begun.append((what, done, total))

    def advance(self, n_items):
        self.advanced.append(n_items)

    def say(self, message):
        self.said.append(message)


def run(data, encoder, how=CPU, name="tiny"):
    return extract_neural(load_dataset("mine", data), name, encoder, how)


def by_modality(done):
    return {found.features.modality: found.features for found in done}


def text_vector(encoder, text):
    """The pooled vector of one text, by hand from the weights."""
    from zlib import crc32

    module = {name: p.detach().double().numpy() for name, p in encoder.module.named_parameters()}
    words = [1 + crc32(word.encode()) % 96 for word in text.split()][: encoder.limit]
    mean = np.mean([np.tanh(module["words.weight"][word]) for word in words], axis=0)
    return module["text.weight"] @ mean + module["text.bias"]


def picture_vector(encoder, path):
    module = {name: p.detach().double().numpy() for name, p in encoder.module.named_parameters()}
    with Image.open(path) as picture:
        small = np.asarray(picture.convert("RGB").resize((8, 8)), dtype=np.float64) / 255
    return module["pixels.weight"] @ small.transpose(2, 0, 1).ravel() + module["pixels.bias"]


def folder_bytes(data, *keys):
    files = [p for key in keys for p in sorted((data / "mine" / "features" / key).iterdir())]
    return {f"{p.parent.name}/{p.name}": hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def left_in(data):
    return sorted(p.name for p in (data / "mine" / "features").iterdir())


@pytest.mark.parametrize("batch_size", [None, 1, 5])
def test_rows_are_what_the_weights_give_in_item_order(tiny, content, batch_size):
    data = content()
    encoder = tiny.Tiny()
    sets = by_modality(run(data, encoder, replace(CPU, batch_size=batch_size)))
    dataset = load_dataset("mine", data)
    for item in range(12):
        text, path = dataset.texts[item], dataset.image_paths[item]
        wanted = text_vector(encoder, text) if text else np.zeros(5)
        np.testing.assert_allclose(sets["textual"].matrix[item], wanted, atol=1e-6)
        wanted = picture_vector(encoder, path) if path else np.zeros(4)
        np.testing.assert_allclose(sets["visual"].matrix[item], wanted, atol=1e-5)
    assert np.flatnonzero(~sets["textual"].mask).tolist() == [3]
    assert np.flatnonzero(~sets["visual"].mask).tolist() == [5]
    assert sum(encoder.batches) == 22  # what is masked was never encoded
    if batch_size is not None:
        assert max(encoder.batches) == batch_size
    assert left_in(data) == ["textual__tiny", "visual__tiny"]


def test_what_has_no_row_is_listed_with_its_reason(tiny, content):
    data = content()
    found = by_modality(run(data, tiny.Tiny()))["visual"]
    lines = (data / "mine/features/visual__tiny/problems.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"item": "i005", "index": 5, "cause": "no picture (missing)"}
    ]
    assert found.manifest["origin"]["without"] == {"no picture (missing)": 1}
    assert found.manifest["origin"]["licence"] == "MIT"


def test_texts_of_like_length_share_a_batch_and_cut_ones_are_counted(tiny, content):
    data = content()
    lengths = []

    class Watched(tiny.TinyText):
        def text_batch(self, texts):
            lengths.append([len(text.ids) for text in texts])
            return super().text_batch(texts)

    done = run(data, Watched(Options(max_tokens=4)), replace(CPU, batch_size=4))
    assert lengths == [[4, 4, 4, 4], [4, 3, 3, 2], [2, 1, 1]]
    # Items 4, 5, 10 and 11 have five or six words.
    assert done[0].features.manifest["origin"]["texts_cut"] == 4


def test_a_pair_needs_both(tiny, content):
    data = content()
    encoder = tiny.TinyJoint()
    sets = by_modality(run(data, encoder))
    assert set(sets) == {"joint", "textual"}
    for found in sets.values():
        assert np.flatnonzero(~found.mask).tolist() == [3, 5]
    dataset = load_dataset("mine", data)
    for item in (0, 4, 11):
        words = text_vector(encoder, dataset.texts[item])
        seen = picture_vector(encoder, dataset.image_paths[item])
        np.testing.assert_allclose(
            sets["joint"].matrix[item], np.concatenate([words, seen]), atol=1e-5
        )
        np.testing.assert_allclose(sets["textual"].matrix[item], words, atol=1e-6)
    assert sum(encoder.batches) == 10


def test_tokens_are_kept_beside_the_pooled_vectors(tiny, content, monkeypatch):
    data = content()
    monkeypatch.setattr(extraction, "TOKEN_ITEMS", 5)
    how = replace(CPU, options=Options(tokens=True), batch_size=2)
    sets = by_modality(run(data, tiny.Tiny(Options(tokens=True)), how))
    texts = load_dataset("mine", data).texts
    tokens, mask = sets["textual"].tokens, sets["textual"].token_mask
    assert tokens.shape == (12, 6, 6)
    assert tokens.dtype == np.float16
    np.testing.assert_array_equal(mask.sum(axis=1), [len(text.split()) for text in texts])
    assert not tokens[~mask].any()
    encoder = tiny.TinyText()
    encoder.load()
    table = np.tanh(encoder.module["words"].weight.detach().numpy())
    ids = encoder.tokenize([texts[11]])[0].ids
    np.testing.assert_allclose(tokens[11][: len(ids)], table[list(ids)], atol=1e-3)
    # A missing mask means that all patches are there, of the items with a picture.
    np.testing.assert_array_equal(sets["visual"].token_mask.all(axis=1), sets["visual"].mask)
    again = load_dataset("mine", data).features("textual")
    np.testing.assert_array_equal(again.tokens, tokens)


def test_the_same_is_not_made_twice(tiny, content):
    data = content()
    assert all(found.is_new for found in run(data, tiny.Tiny()))
    before = folder_bytes(data, "textual__tiny", "visual__tiny")
    second = tiny.Tiny()
    assert not any(found.is_new for found in run(data, second))
    assert second.batches == []
    assert all(found.is_new for found in run(data, tiny.Tiny(), replace(CPU, force=True)))
    assert folder_bytes(data, "textual__tiny", "visual__tiny") == before


def test_what_was_made_otherwise_is_not_overwritten(tiny, content):
    data = content()
    run(data, tiny.TinyText())
    other = tiny.TinyText()
    other.seed = 1
    with pytest.raises(
        ConfigError,
        match=r"E411 mine has a feature set textual__tiny that was made otherwise "
        r"\(encoder.weights_sha256: seed 0 there, seed 1 now\).*--name.*--force",
    ):
        run(data, other)
    with pytest.raises(ConfigError, match=r"precision: float32 there, bfloat16 now"):
        run(data, tiny.TinyText(), replace(CPU, precision="bfloat16"))
    with pytest.raises(ConfigError, match=r"text.fields: as prepared there, \['brand'\] now"):
        run(data, tiny.TinyText(), replace(CPU, texts=TextTemplate(("brand",))))
    assert run(data, other, name="other")[0].is_new
    assert run(data, other, replace(CPU, force=True))[0].is_new
    assert not run(data, other)[0].is_new


def test_new_texts_are_encoded_anew(tiny, content, tmp_path):
    data = content()
    first = run(data, tiny.TinyText())[0].features.manifest["sha256"]
    table = tmp_path / "raw" / "items.csv"
    table.write_text(table.read_text().replace("i000,sail", "i000,piano drum"))
    prepare("mine", source=tmp_path / "raw", data_dir=data, force=True)
    again = run(data, tiny.TinyText())[0]
    assert again.is_new
    assert again.features.manifest["sha256"] != first


def test_text_fields_are_composed_as_asked(tiny, content):
    data = content()
    encoder = tiny.TinyText()
    found = run(data, encoder, replace(CPU, texts=TextTemplate(("brand", "title"), " ")))[
        0
    ].features
    # Item 1 has two words: those at 2 and 4 of the list in conftest.py.
    wanted = text_vector(encoder, "brand1 tide oven")
    np.testing.assert_allclose(found.matrix[1], wanted, atol=1e-6)
    np.testing.assert_allclose(found.matrix[3], text_vector(encoder, "brand0"), atol=1e-6)
    assert found.mask.all()
    assert found.manifest["settings"]["text"]["fields"] == ["brand", "title"]
    with pytest.raises(UnknownNameError, match='Did you mean "brand"'):
        run(data, encoder, replace(CPU, texts=TextTemplate(("brnd",))))


def test_unusual_texts(tiny, content):
    long = " ".join(["harbour"] * 20_000)
    data = content(texts={3: "\U0001f642 \u05e9\u05dc\u05d5\u05dd", 4: long, 7: "NA", 8: " "})
    encoder = tiny.TinyText()
    found = run(data, encoder)[0].features
    assert np.flatnonzero(~found.mask).tolist() == [8]
    wanted = text_vector(encoder, "\U0001f642 \u05e9\u05dc\u05d5\u05dd")
    np.testing.assert_allclose(found.matrix[3], wanted, atol=1e-6)
    np.testing.assert_allclose(found.matrix[4], text_vector(encoder, "harbour"), atol=1e-6)
    assert found.manifest["origin"]["texts_cut"] == 1


def test_pictures_of_every_kind(tiny, content, tmp_path):
    data = content()
    images = tmp_path / "raw" / "images"
    Image.new("CMYK", (30, 20), (0, 200, 200, 0)).save(images / "i000.jpg")
    (images / "i000.png").unlink()
    Image.new("P", (9, 9), 7).save(images / "i001.png")
    Image.new("RGB", (1, 1), "red").save(images / "i002.png")
    frames = [Image.new("P", (12, 12), k) for k in range(3)]
    with (images / "i004.png").open("wb") as file:  # the name lies, as names of strangers do
        frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    Image.new("RGB", (20_000, 9), "blue").save(images / "i006.png")
    prepare("mine", source=tmp_path / "raw", data_dir=data, force=True)
    found = run(data, tiny.TinyPicture())[0].features
    assert found.manifest["origin"]["without"] == {
        "no picture (missing)": 1, "no picture (placeholder)": 1
    }  # fmt: skip
    assert np.flatnonzero(~found.mask).tolist() == [2, 5]


def test_changed_and_missing_pictures_are_refused(tiny, content, tmp_path):
    data = content()
    path = tmp_path / "raw" / "images" / "i002.png"
    whole = path.read_bytes()
    Image.new("RGB", (20, 20), "black").save(path)
    with pytest.raises(DataError, match=r"E105 picture .*i002\.png changed since"):
        run(data, tiny.Tiny())
    path.unlink()
    with pytest.raises(DataError, match=r"i002\.png cannot be read \(No such file"):
        run(data, tiny.Tiny())
    path.write_bytes(whole)
    assert len(run(data, tiny.Tiny())) == 2


class Picky:
    """Refuses some items; mixed into an encoder."""

    refused = ()

    def read_picture(self, picture, item):
        if item in self.refused:
            raise DataError(f"picture of {item} is of no use")
        return super().read_picture(picture, item)


def test_a_few_failures_are_listed_and_many_stop_the_run(tiny, content):
    data = content(n_items=30)
    made = type("Picky", (Picky, tiny.TinyPicture), {"refused": ("i004", "i009")})
    found = run(data, made(), replace(CPU, batch_size=2))[0].features
    assert np.flatnonzero(~found.mask).tolist() == [4, 5, 9]
    assert found.manifest["origin"]["without"] == {
        "cannot be encoded": 2, "no picture (missing)": 1
    }  # fmt: skip
    lines = (data / "mine/features/visual__tiny/problems.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["cause"] == "picture of i004 is of no use"
    many = {"refused": tuple(f"i{k:03d}" for k in range(6, 12))}
    with pytest.raises(DataError, match=r"E116 \d of 29 items cannot be encoded, more than 5%"):
        run(data, type("Picky", (Picky, tiny.TinyPicture), many)(), name="other")
    assert "visual__other" not in left_in(data)


def test_out_of_memory_halves_the_batch_and_says_so_once(tiny, content, monkeypatch):
    data = content()
    monkeypatch.setattr(extraction, "POOLED_ITEMS", 6)
    plain = run(data, tiny.TinyPicture(), name="plain")[0].features
    watch = Listening()
    encoder = tiny.TinyPicture(most=3)
    found = run(data, encoder, replace(CPU, watch=watch, batch_size=6))[0].features
    assert watch.said == ["out of memory with 5 items at a time; going on with at most 3"]
    assert encoder.batches == [5, 3, 2, 3, 3]
    assert sum(watch.advanced) == 11
    np.testing.assert_allclose(found.matrix, plain.matrix, atol=1e-6)
    with pytest.raises(DataError, match=r"E409 the memory of cpu does not suffice for one item"):
        run(data, tiny.TinyPicture(most=0), name="none")


def test_other_errors_of_a_model_are_not_taken_for_memory(tiny, content):
    data = content()

    class Broken(tiny.TinyText):
        def encode_text(self, texts):
            raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run(data, Broken())


def test_a_vector_that_is_no_number_is_refused(tiny, content):
    data = content()

    class Broken(tiny.TinyText):
        def encode_text(self, texts):
            found = super().encode_text(texts)
            found.pooled[0, 0] = float("nan")
            return found

    with pytest.raises(DataError, match=r"E118 textual__tiny: the vector of item 'i\d+' holds NaN"):
        run(data, Broken())
    assert "textual__tiny" not in left_in(data)


def test_bfloat16_is_near_and_stated(tiny, content):
    data = content()
    exact = run(data, tiny.TinyText())[0].features
    near = run(data, tiny.TinyText(), replace(CPU, precision="bfloat16"), name="half")[0].features
    assert near.manifest["settings"]["precision"] == "bfloat16"
    assert not np.array_equal(exact.matrix, near.matrix)
    np.testing.assert_allclose(exact.matrix, near.matrix, atol=0.05)
    with pytest.raises(ConfigError, match="float16 needs a GPU"):
        run(data, tiny.TinyText(), replace(CPU, precision="float16"))
    with pytest.raises(UnknownNameError, match='Did you mean "bfloat16"'):
        run(data, tiny.TinyText(), replace(CPU, precision="bflaot16"))


def test_a_modality_that_no_item_has_is_left_out_and_said(tiny, content, tmp_path):
    source = tmp_path / "bare"
    source.mkdir()
    rows = [f"u{u},i{i}" for u in range(6) for i in range(8)]
    (source / "interactions.csv").write_text("\n".join(["user_id,item_id", *rows]) + "\n")
    lines = [f"i{i},film {i}" for i in range(8)]
    (source / "items.csv").write_text("\n".join(["item_id,title", *lines]) + "\n")
    prepare("mine", source=source, data_dir=tmp_path / "data")
    watch = Listening()
    done = run(tmp_path / "data", tiny.Tiny(), replace(CPU, watch=watch))
    assert [found.features.key for found in done] == ["textual__tiny"]
    assert watch.said == ["no item of mine has a picture: no visual set is made"]
    with pytest.raises(DataError, match="no item of mine has a text and a picture, so TinyJoint"):
        run(tmp_path / "data", tiny.TinyJoint())


def test_another_writer_is_refused(tiny, content):
    data = content()
    features = data / "mine" / "features"
    features.mkdir(exist_ok=True)
    with (features / ".tiny.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process is extracting tiny into"):
            run(data, tiny.Tiny())
    assert run(data, tiny.Tiny())[0].is_new


def test_too_small_a_disk_is_noticed_after_the_first_shard(tiny, content, monkeypatch):
    data = content()
    monkeypatch.setattr(extraction, "POOLED_ITEMS", 4)
    from mmbench.engine import shards

    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=r"E108 .*GiB more are needed for visual__tiny"):
        run(data, tiny.TinyPicture())


def test_work_of_another_configuration_is_neither_used_nor_left(tiny, content, monkeypatch):
    data = content()
    monkeypatch.setattr(extraction, "POOLED_ITEMS", 4)

    class Stopped(tiny.TinyPicture):
        def encode_picture(self, pictures):
            if len(self.batches) == 2:
                raise DataError("stopped here")
            return super().encode_picture(pictures)

    Stopped.__qualname__ = "TinyPicture"  # one kind of encoder, as far as settings tell
    with pytest.raises(DataError, match="stopped here"):
        run(data, Stopped())
    assert len(list((data / "mine/features").glob(".visual__tiny~*.work/0*.json"))) == 2
    other = tiny.TinyPicture()
    other.seed = 3
    assert run(data, other, name="tiny")[0].is_new
    assert sum(other.batches) == 11
    assert left_in(data) == ["visual__tiny"]
    with pytest.raises(DataError, match="stopped here"):
        run(data, Stopped(), replace(CPU, force=True))
    watch = Listening()
    resumed = tiny.TinyPicture()
    run(data, resumed, replace(CPU, force=True, watch=watch))
    assert watch.begun == [("visual__tiny", 7, 11)]
    assert sum(resumed.batches) == 4
