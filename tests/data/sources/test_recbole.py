"""RecBole's atomic files: whole and split, items, vectors, and everything that can be wrong."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mmbench.data.cleaning import PrepareConfig
from mmbench.data.finding import find_source
from mmbench.data.prepare import prepare
from mmbench.data.sources.mmrec import MMRecFolder
from mmbench.data.sources.recbole import RecBoleFiles
from mmbench.errors import DataError

NO_CORE = PrepareConfig(user_min=0, item_min=0)
INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float"


@pytest.fixture
def folder(tmp_path) -> Path:
    made = tmp_path / "shop"
    made.mkdir()
    return made


def write(folder: Path, suffix: str, header: str, *rows: str) -> Path:
    path = folder / f"shop.{suffix}"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def write_parts(
    folder: Path, names=("train", "valid", "test"), header="user_id:token\titem_id:token"
):
    """Three users, four items; user u has items u, u+1 in training, u+2 and u+3 held out."""
    rows = {name: [] for name in names}
    for user in "abc":
        start = ord(user) - ord("a")
        items = [f"i{(start + k) % 4}" for k in range(4)]
        for name, item in zip((names[0], *names), items, strict=True):
            rows[name].append(f"{user}\t{item}")
    for name in names:
        write(folder, f"{name}.inter", header, *rows[name])


def read(folder: Path, scratch: Path):
    scratch.mkdir(exist_ok=True)
    return RecBoleFiles().read(folder, scratch)


def test_whole_interactions_with_items(tmp_path, folder):
    write(
        folder,
        "inter",
        INTER,
        "007\tNA\t4\t881250949",
        "007\tnull\t3.5\t881250950.0",
        "é\tNA\t1e0\t8.8125e8",
        "a b\tB\t\t881250952",
    )
    write(
        folder,
        "item",
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq",
        'NA\t"Awake" at last\t1995\tComedy Drama',
        'null\t"""Quoted"" (1994)"\t\tCrime',
        "B\tNA\t1996\t",
    )
    result = prepare("shop", source=folder, data_dir=tmp_path / "data", config=NO_CORE)
    dataset = result.dataset
    assert result.notes == (f"recognised layout recbole in {folder}",)
    assert dataset.user_ids == ["007", "a b", "é"]
    assert dataset.item_ids == ["B", "NA", "null"]
    assert dataset.user.tolist() == [0, 0, 1, 2]
    assert dataset.item.tolist() == [1, 2, 0, 1]
    assert dataset.rating[0] == 4.0
    assert dataset.rating[1] == 3.5
    assert np.isnan(dataset.rating[2])
    assert dataset.timestamp.tolist() == [
        881250949000, 881250950000, 881250952000, 881250000000,
    ]  # fmt: skip
    assert [line["title"] for line in dataset.items] == [
        "NA",
        '"Awake" at last',
        '"Quoted" (1994)',
    ]
    assert dataset.texts == ["NA", '"Awake" at last. Comedy Drama', '"Quoted" (1994). Crime']
    assert dataset.items[1]["fields"]["release_year"] == "1995"
    assert dataset.split_names == ["random-per-user"]


def test_a_five_core_is_taken_of_a_whole_file_and_none_of_a_split(tmp_path, folder):
    rows = [f"u{u}\ti{i}\t1\t{10**9 + i}" for u in range(6) for i in range(5)]
    write(folder, "inter", INTER, *rows, "rare\ti0\t1\t1000000000")
    dataset = prepare("a", source=folder, data_dir=tmp_path / "data").dataset
    assert (dataset.n_users, dataset.n_items) == (6, 5)
    (folder / "shop.inter").unlink()
    write_parts(folder)
    dataset = prepare("b", source=folder, data_dir=tmp_path / "data").dataset
    assert (dataset.n_users, dataset.n_items, dataset.user.size) == (3, 4, 12)


@pytest.mark.parametrize(
    "names", [("train", "valid", "test"), ("part1", "part2", "part3"), ("train", "val", "test")]
)
def test_parts_become_labels(tmp_path, folder, names):
    write_parts(folder, names)
    dataset = prepare("shop", source=folder, data_dir=tmp_path / "data").dataset
    assert dataset.split_names == ["imported"]
    label = dataset.split().label
    parts = {
        part: {
            (dataset.user_ids[u], dataset.item_ids[i])
            for u, i in zip(dataset.user[label == part], dataset.item[label == part], strict=True)
        }
        for part in (0, 1, 2)
    }
    assert parts == {
        0: {("a", "i0"), ("a", "i1"), ("b", "i1"), ("b", "i2"), ("c", "i2"), ("c", "i3")},
        1: {("a", "i2"), ("b", "i3"), ("c", "i0")},
        2: {("a", "i3"), ("b", "i0"), ("c", "i1")},
    }


@pytest.mark.parametrize(
    ("cells", "kept"),
    [
        (("881250949.25", "881250950"), [881250949250, 881250950000]),  # seconds with a fraction
        (("1600000000000", "1600000000001.0"), [1600000000000, 1600000000001]),
        (("1600000000000.75", "1600000000001"), [1600000000000, 1600000000001]),
        (("1.6e9", "1600000001"), [1600000000000, 1600000001000]),
    ],
)
def test_times_as_floats(tmp_path, folder, cells, kept):
    write(folder, "inter", INTER, f"a\tx\t1\t{cells[0]}", f"a\ty\t1\t{cells[1]}")
    dataset = prepare("x", source=folder, data_dir=tmp_path / "data", config=NO_CORE).dataset
    assert dataset.timestamp.tolist() == kept


def test_columns_not_used_are_told(tmp_path, folder):
    write(folder, "inter", "user_id:token\titem_id:token\tlabel:float\tplace:token", "a\tx\t0\tp")
    raw = read(folder, tmp_path / "scratch")
    assert raw.facts == {"columns_ignored": ["label", "place"]}
    assert raw.warnings == [
        "W115 column 'label' of shop.inter is not used: every line counts as liked"
    ]


def test_text_fields_stand_in_order_and_pictures_by_address(tmp_path, folder):
    write(folder, "inter", "user_id:token\titem_id:token", "a\tx", "b\ty")
    write(
        folder,
        "item",
        "description:token_seq\tcategories:token_seq\tbrand:token\ttitle:token\tprice:float\t"
        "item_id:token\timage:token",
        "soft & warm\tBaby Toys\tAcme\tBear\t3.5\tx\thttps://shop.example/x.jpg",
        "\t\t\tBall\t\ty\t",
    )
    raw = read(folder, tmp_path / "scratch")
    assert raw.text_fields == ("title", "brand", "categories", "description")
    assert isinstance(raw.items, pl.DataFrame)
    assert raw.items["image"].to_list() == ["https://shop.example/x.jpg", None]
    assert raw.items["price"].to_list() == ["3.5", None]
    (folder / "shop.item").write_text("item_id:token\timage:token\nx\t../x.jpg\n")
    raw = read(folder, tmp_path / "scratch")
    assert isinstance(raw.items, pl.DataFrame)
    assert raw.items.columns == ["item", "image_path"]


def test_items_of_a_split_without_interactions_are_told(tmp_path, folder):
    write_parts(folder)
    write(folder, "item", "item_id:token\ttitle:token_seq", *(f"i{k}\tItem {k}" for k in range(7)))
    warnings = prepare("shop", source=folder, data_dir=tmp_path / "data").warnings
    assert any(w.startswith("W213 3 items of shop.item have no interactions") for w in warnings)


def test_vectors_become_features(tmp_path, folder):
    write_parts(folder)
    write(
        folder,
        "image",
        "iid:token\titem_emb:float_seq",
        "i3\t0.5 -1.25 3e-5",
        "elsewhere\t9 9 9",
        "i0\t1 2  3",
        "i1\t",
    )
    write(
        folder,
        "item",
        "item_id:token\ttitle_emb_float16:float_seq\ttitle:token_seq",
        *(f"i{k}\t{k}.5 0.1\tItem {k}" for k in range(4)),
    )
    dataset = prepare("shop", source=folder, data_dir=tmp_path / "data").dataset
    assert dataset.feature_keys == ["textual__imported", "visual__imported"]
    visual = dataset.features("visual")
    assert visual.mask.tolist() == [True, False, False, True]
    np.testing.assert_array_equal(
        visual.matrix, np.array([[1, 2, 3], [0] * 3, [0] * 3, [0.5, -1.25, 3e-5]], np.float32)
    )
    textual = dataset.features("textual")
    assert textual.matrix.dtype == np.float16
    assert textual.matrix[2].tolist() == [2.5, float(np.float16(0.1))]
    assert "title_emb_float16" not in dataset.items[0]["fields"]
    files = [file["path"] for file in dataset.manifest["source"]["files"]]
    assert sorted(files) == [
        "shop.image", "shop.item", "shop.test.inter", "shop.train.inter", "shop.valid.inter",
    ]  # fmt: skip


def test_vectors_of_long_files_are_read_block_by_block(tmp_path, folder, monkeypatch):
    monkeypatch.setattr("mmbench.data.sources.recbole_vectors._BLOCK_BYTES", 64)
    write_parts(folder)
    expected = np.random.default_rng(0).standard_normal((200, 3)).astype(np.float32)
    lines = [f"i{k}\t{' '.join(map(str, row.tolist()))}" for k, row in enumerate(expected)]
    write(folder, "visual__clip.v2", "iid:token\te:float_seq", *lines)
    raw = read(folder, tmp_path / "scratch")
    (feature,) = raw.features
    assert (feature.modality, feature.encoder) == ("visual", "clip.v2")
    np.testing.assert_array_equal(np.load(feature.path), expected)
    assert feature.item_ids == tuple(f"i{k}" for k in range(200))


@pytest.mark.parametrize(
    ("suffix", "header", "row", "message"),
    [
        ("itememb", "iid:token\titem_emb:float_seq", "i0\t1 2", "W118 shop.itememb: vectors"),
        ("useremb", "uid:token\timage_emb:float_seq", "a\t1 2", "W118 shop.useremb: vectors"),
        ("image", "iid:token\te:float_seq", "i0\t", "W118 shop.image: column 'e' holds no vectors"),
    ],
)
def test_vectors_that_nobody_can_place_are_told(tmp_path, folder, suffix, header, row, message):
    write_parts(folder)
    write(folder, suffix, header, row)
    raw = read(folder, tmp_path / "scratch")
    assert raw.features == ()
    assert len(raw.warnings) == 1
    assert raw.warnings[0].startswith(message)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["i0\t1 2", "i1\t1 2 3"], r"E112 .*shop\.image:3: a vector of 3 numbers, the first has 2"),
        (["i0\t1 2", "", "i1\t1 x"], r"E211 .*shop\.image:4: 'x' in a vector is not"),
        (["i0\t1 nan"], r"E211 .*shop\.image:2: 'nan' in a vector"),
        (["i0\t1 2\t3"], r"E112 .*shop\.image:2: 3 fields, expected 2"),
        (["\t1 2"], r"E113 .*shop\.image:2: no id"),
        (["i0\t1 2", "i0\t2 1"], r"E261 .*item 'i0' is listed more than once"),
        (["x\t1 2"], r"E251 .*none of its item ids is in the dataset"),
        (["i0\t1e300 0"], r"E118 .*visual__imported\.npy: NaN or infinity in row 0"),
        (["i0\t0 0"], r"E118 .*no item has this modality"),
    ],
)
def test_bad_vectors_are_refused(tmp_path, folder, rows, message):
    write_parts(folder)
    write(folder, "image", "iid:token\te:float_seq", *rows)
    with pytest.raises(DataError, match=message):
        prepare("x", source=folder, data_dir=tmp_path / "data")
    assert not (tmp_path / "data/x").exists()


def test_two_vectors_of_one_name_are_refused(tmp_path, folder):
    write_parts(folder)
    for suffix in ("image1", "image2"):
        write(folder, suffix, "iid:token\te:float_seq", "i0\t1 2")
    with pytest.raises(DataError, match=r"E118 .*shop\.image2: shop\.image1 would be stored"):
        read(folder, tmp_path / "scratch")


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("user_id\titem_id:token", ["a\tx"], r"E115 .*header field 'user_id' needs name:type"),
        ("user_id:int\titem_id:token", ["a\tx"], r"E115 .*'user_id:int' needs name:type with type"),
        ("user_id:token item_id:token", ["a x"], r"E115 .*'user_id:token item_id:token'"),
        ("user_id:token\tmovie:token", ["a\tx"], r"E113 .*'item_id' missing; found user_id, movie"),
        ("user_id:token\titem_id:token_seq", ["a\tx y"], r"E115 .*'item_id' is a token_seq"),
        (
            "user_id:token\titem_id:token\titem_id:float",
            ["a\tx\t1"],
            r"E113 .*column 'item_id' stands twice",
        ),
        (INTER, ["a\tx\t1\t881250949", "a\ty\t1"], r"E112 .*shop\.inter:3: 3 fields, expected 4"),
        (INTER, ["a\tx\tgood\t881250949"], r"E211 .*shop\.inter:2: rating:float 'good'"),
        (INTER, ["a\tx\tinf\t881250949"], r"E211 .*shop\.inter:2: rating:float 'inf'"),
        (INTER, ["a\tx\t1\t1e300"], r"E216 .*shop\.inter:2: timestamp '1e\+?300'"),
        (INTER, ["a\tx\t1\t", "a\ty\t1\t881250949"], r"E215 1 of 2 rows"),
        (INTER, [], r"E241 .*has a header and no rows"),
    ],
)
def test_bad_interactions_are_refused(tmp_path, folder, header, rows, message):
    write(folder, "inter", header, *rows)
    with pytest.raises(DataError, match=message):
        prepare("x", source=folder, data_dir=tmp_path / "data", config=NO_CORE)
    assert not (tmp_path / "data/x").exists()


def test_few_malformed_lines_are_counted_and_left_out(tmp_path, folder):
    rows = [f"u{k % 40}\ti{k % 101}\t1\t{10**9 + k}" for k in range(4000)]
    rows[7] = "u7\ti7"
    write(folder, "inter", INTER, *rows)
    raw = read(folder, tmp_path / "scratch")
    assert raw.interactions.height == 3999
    assert len(raw.warnings) == 1
    assert "shop.inter" in raw.warnings[0]
    assert "line 9" in raw.warnings[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"user_id:token\titem_id:token\na\t\xff\n",
            r"E111 .*shop\.inter:2: byte 0xff is not UTF-8",
        ),
        (b"<!DOCTYPE html>\n<html><body>log in: here</body></html>\n", r"E106 .*shop\.inter"),
        (b"", r"E1\d\d .*shop\.inter"),
        (b"\n\n", r"E1\d\d .*shop\.inter"),
    ],
)
def test_files_that_are_no_tables_are_refused(tmp_path, folder, content, message):
    (folder / "shop.inter").write_bytes(content)
    with pytest.raises(DataError, match=message):
        prepare("x", source=folder, format="recbole", data_dir=tmp_path / "data")


def test_other_separators_and_a_byte_order_mark(tmp_path, folder):
    text = "\ufeffuser_id:token,item_id:token,rating:float\na,x,3\nb,y,4\n"
    (folder / "shop.inter").write_text(text, encoding="utf-8")
    raw = read(folder, tmp_path / "scratch")
    assert raw.interactions.select("user", "item", "rating").rows() == [
        ("a", "x", 3.0), ("b", "y", 4.0),
    ]  # fmt: skip


def test_a_part_without_rows_is_refused(tmp_path, folder):
    write_parts(folder, ("part1", "part2", "part3"))
    write(folder, "part2.inter", "user_id:token\titem_id:token")
    with pytest.raises(DataError, match=r"E222 imported split has no valid rows"):
        prepare("x", source=folder, data_dir=tmp_path / "data")


def test_an_empty_part_and_a_missing_one_are_refused(tmp_path, folder):
    write_parts(folder)
    (folder / "shop.valid.inter").write_bytes(b"")
    with pytest.raises(DataError, match=r"E113 .*shop\.valid\.inter"):
        prepare("x", source=folder, format="recbole", data_dir=tmp_path / "data")
    (folder / "shop.valid.inter").unlink()
    with pytest.raises(
        DataError, match=r"E101 shop\.valid\.inter not found under .*only shop\.tra"
    ):
        prepare("x", source=folder, data_dir=tmp_path / "data")


def test_a_pair_in_two_parts_is_refused(tmp_path, folder):
    write_parts(folder)
    with (folder / "shop.test.inter").open("a") as file:
        file.write("a\ti0\n")
    with pytest.raises(DataError, match=r"E231 1 user-item pairs .*\(a,i0\)"):
        prepare("x", source=folder, data_dir=tmp_path / "data")


def test_more_than_one_dataset_or_form_is_refused(tmp_path, folder):
    write_parts(folder)
    write(folder, "inter", "user_id:token\titem_id:token", "a\tx")
    with pytest.raises(DataError, match=r"E103 .*shop\.inter and the parts of a split"):
        read(folder, tmp_path / "scratch")
    (folder / "shop.inter").rename(folder / "other.inter")
    write(folder, "val.inter", "user_id:token\titem_id:token", "a\tx")
    with pytest.raises(DataError, match=r"E103 .*shop\.val\.inter and shop\.valid\.inter for one"):
        read(folder, tmp_path / "scratch")
    (folder / "shop.val.inter").unlink()
    assert read(folder, tmp_path / "scratch").interactions.height == 12  # the folder's name decides
    folder = folder.rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"E103 .*holds files of other, shop; keep one dataset"):
        read(folder, tmp_path / "scratch")


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("item_id:token\ttitle", ["i0\tA"], r"E115 .*shop\.item: header field 'title'"),
        ("movie_id:token\ttitle:token", ["i0\tA"], r"E113 .*shop\.item: column 'item_id' missing"),
        ("item_id:token\titem:token", ["i0\tA"], r"E113 .*column 'item' beside 'item_id'"),
        ("item_id:token\ttitle:token", ["i0\tA", "\tB"], r"E113 .*shop\.item:3: item_id ''"),
        (
            "item_id:token\ttitle:token",
            ["i0\tA", "i0\tB"],
            r"E261 items of .*'i0' listed 2 times with different content",
        ),
        ("item_id:token\ttitle:token", ["zz\tA"], r"E266 .*no item of the interactions"),
    ],
)
def test_bad_items_are_refused(tmp_path, folder, header, rows, message):
    write_parts(folder)
    write(folder, "item", header, *rows)
    with pytest.raises(DataError, match=message):
        prepare("x", source=folder, data_dir=tmp_path / "data")
    assert not (tmp_path / "data/x").exists()


def test_identical_item_rows_are_merged(tmp_path, folder):
    write_parts(folder)
    write(folder, "item", "item_id:token\ttitle:token", "i0\tA", "i0\tA", "i1\tB")
    warnings = prepare("x", source=folder, data_dir=tmp_path / "data").warnings
    assert any(w.startswith("W261 1 identical rows") for w in warnings)


def test_numbers_of_an_export_are_checked(tmp_path, folder):
    write_parts(folder)
    write(folder, "user", "user_id:token\tmmbench_index:float", "c\t0", "b\t1", "a\t2")
    items = [f"i{k}\t{6 - k}" for k in range(7)]
    write(folder, "item", "item_id:token\tmmbench_index:float", *items)
    dataset = prepare("x", source=folder, data_dir=tmp_path / "data").dataset
    assert dataset.user_ids == ["c", "b", "a"]
    assert dataset.item_ids == [f"i{k}" for k in (6, 5, 4, 3, 2, 1, 0)]
    write(folder, "item", "item_id:token\tmmbench_index:float", *items[1:])
    with pytest.raises(DataError, match=r"E266 .*shop\.item: 1 items of the interactions .*'i0'"):
        prepare("y", source=folder, data_dir=tmp_path / "data")
    write(folder, "item", "item_id:token\tmmbench_index:float", *items[:-1])
    with pytest.raises(
        DataError, match=r"E213 .*shop\.item: mmbench_index must hold each of 0\.\.5"
    ):
        prepare("y", source=folder, data_dir=tmp_path / "data")


def test_it_is_told_from_mmrec_and_odd_folders(tmp_path, folder):
    assert not RecBoleFiles.recognises(folder)
    (folder / "d.inter").mkdir()
    (folder / "b.inter").write_bytes(bytes(range(256)).replace(b":", b""))
    assert not RecBoleFiles.recognises(folder)
    (folder / "d.inter").rmdir()
    (folder / "b.inter").unlink()
    write(folder, "inter", "userID\titemID\tx_label", "0\t0\t0")
    assert not RecBoleFiles.recognises(folder)
    write(folder, "inter", "user_id:token\titem_id:token", "a\tx")
    assert RecBoleFiles.recognises(folder)
    assert not MMRecFolder.recognises(folder)
    assert find_source("mine", folder, "auto", tmp_path).format == "recbole"
