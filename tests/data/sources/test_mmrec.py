import numpy as np
import pytest

from mmbench.data.prepare import prepare
from mmbench.data.sources.mmrec import MMRecFolder
from mmbench.errors import ConfigError, DataError


def test_indices_labels_and_features_are_taken_as_they_are(tmp_path, write_inter, labelled_rows):
    folder = write_inter(labelled_rows)
    visual = np.arange(12, dtype=np.float64).reshape(4, 3)  # row 0 is not zero in column 1, 2
    acoustic = np.ones((4, 2), dtype=np.float16)
    acoustic[2] = 0
    np.save(folder / "image_feat.npy", visual)
    np.save(folder / "audio_feat.npy", acoustic)
    result = prepare("x", source=folder, data_dir=tmp_path / "data")
    dataset = result.dataset
    assert result.notes == (f"recognised layout mmrec in {folder}",)
    assert dataset.split_names == ["imported"]
    stored = zip(dataset.user, dataset.item, dataset.split().label, strict=True)
    assert sorted(map(tuple, np.array(list(stored)).tolist())) == sorted(labelled_rows)
    assert dataset.item_ids == ["0", "1", "2", "3"]
    assert dataset.feature_keys == ["acoustic__imported", "visual__imported"]
    np.testing.assert_array_equal(dataset.features("visual").matrix, visual)
    assert dataset.features("visual").matrix.dtype == np.float32
    assert dataset.features("acoustic").matrix.dtype == np.float16
    assert dataset.features("acoustic").mask.tolist() == [True, True, False, True]


def test_id_mappings_name_the_indices(tmp_path, write_inter, labelled_rows):
    folder = write_inter(labelled_rows)
    # An item more than the interactions use, in another order than the indices.
    lines = ["asin\titemID", *(f"B{k}\t{k}" for k in (4, 0, 3, 1, 2))]
    (folder / "i_id_mapping.csv").write_text("\n".join(lines) + "\n")
    users = ["user_id\tuserID", *(f"A{k}\t{k}" for k in range(6))]
    (folder / "u_id_mapping.csv").write_text("\n".join(users) + "\n")
    dataset = prepare("x", source=folder, data_dir=tmp_path / "data").dataset
    assert dataset.item_ids == ["B0", "B1", "B2", "B3", "B4"]
    assert dataset.user_ids == ["A0", "A1", "A2", "A3", "A4", "A5"]
    assert dataset.manifest["counts"]["items_unseen"] == 1


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        (
            "user\titem\tlabel",
            (0, 0, 0),
            r"E113 .*column 'userID' missing; found user, item, label",
        ),
        (None, (-1, 0, 0), r"E212 .*x\.inter:26: userID '-1'"),
        (None, (0, "1.0", 0), r"E212 .*x\.inter:26: itemID '1\.0'"),
        (None, (0, 0, 3), r"E221 .*x\.inter:26: x_label '3'; labels are"),
        (None, (0, 0, "train"), r"E221 .*x_label 'train'"),
        (None, (0, 0), r"E112 .*x\.inter:26: 2 fields, expected 3"),
        (None, (0, 0, 1), r"E231 1 user-item pairs are in more than one split, e\.g\. \(0,0\)"),
    ],
)
def test_bad_rows_are_refused(tmp_path, write_inter, labelled_rows, header, row, message):
    folder = write_inter([*labelled_rows, row], **({"header": header} if header else {}))
    with pytest.raises(DataError, match=message):
        prepare("x", source=folder, data_dir=tmp_path / "data")
    assert not (tmp_path / "data").exists()


def feature(kind):
    matrix = np.ones((4, 2), dtype=np.float32)
    if kind == "rows":
        return matrix[:3], r"E251 .*image_feat\.npy: 3 rows, dataset has 4 items"
    if kind == "nan":
        matrix[1, 1] = np.nan
        return matrix, r"E118 .*image_feat\.npy: NaN or infinity in row 1"
    if kind == "inf":
        matrix[2, 0] = np.inf
        return matrix, r"E118 .*image_feat\.npy: NaN or infinity in row 2"
    if kind == "vector":
        return matrix[:, 0], r"E118 .*image_feat\.npy"
    if kind == "text":
        return np.full((4, 2), "x"), r"E118 .*image_feat\.npy"
    return np.zeros((4, 2)), r"E118 .*no item has this modality"


@pytest.mark.parametrize("kind", ["rows", "nan", "inf", "vector", "text", "zeros"])
def test_bad_features_are_refused_and_nothing_is_left(tmp_path, write_inter, labelled_rows, kind):
    folder = write_inter(labelled_rows)
    matrix, message = feature(kind)
    np.save(folder / "image_feat.npy", matrix)
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match=message) as caught:
        prepare("x", source=folder, data_dir=tmp_path / "data")
    assert ".partial-" not in str(caught.value)
    assert not list((tmp_path / "data").iterdir())


class Bomb:
    """Unpickling it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_pickled_features_are_never_unpickled(tmp_path, write_inter, labelled_rows):
    folder = write_inter(labelled_rows)
    np.save(folder / "text_feat.npy", np.array([Bomb(tmp_path / "boom")] * 4), allow_pickle=True)
    with pytest.raises(DataError, match=r"E118 .*text_feat\.npy: .*Python objects"):
        prepare("x", source=folder, data_dir=tmp_path / "data")
    assert not (tmp_path / "boom").exists()


def test_a_feature_file_of_no_known_modality_is_refused(tmp_path, write_inter, labelled_rows):
    folder = write_inter(labelled_rows)
    np.save(folder / "smell_feat.npy", np.ones((4, 2)))
    with pytest.raises(DataError, match="no modality is called 'smell'"):
        prepare("x", source=folder, data_dir=tmp_path / "data")


def test_gaps_are_fine_only_where_the_features_know_them(tmp_path, write_inter):
    rows = [(u, i, k) for u in range(3) for k, i in enumerate((0, 2, 3))]  # item 1 is unseen
    folder = write_inter(rows)
    np.save(folder / "image_feat.npy", np.ones((4, 2)))
    result = prepare("x", source=folder, data_dir=tmp_path / "data")
    assert result.dataset.n_items == 4
    assert any(w.startswith("W213 item indices 0..3 have 1 gaps, first 1") for w in result.warnings)
    np.save(folder / "image_feat.npy", np.ones((3, 2)))
    with pytest.raises(DataError, match=r"E213 item indices 0..3 have 1 gaps, first 1; positional"):
        prepare("y", source=folder, data_dir=tmp_path / "data")


def test_indices_that_are_ids_are_refused(tmp_path, write_inter):
    rows = [(u, 10**8 + i, i) for u in range(3) for i in range(3)]
    with pytest.raises(DataError, match=r"E213 .*number the items 0, 1, 2"):
        prepare("x", source=write_inter(rows), data_dir=tmp_path / "data")


def test_a_core_would_tear_positional_features_from_their_items(
    tmp_path, write_inter, labelled_rows
):
    from mmbench.data.cleaning import PrepareConfig

    with pytest.raises(
        ConfigError, match=r"E274 user_min=5 must be 0: .* has item indices of its own"
    ):
        prepare(
            "x",
            source=write_inter(labelled_rows),
            config=PrepareConfig(user_min=5),
            data_dir=tmp_path / "data",
        )


def test_an_index_that_tells_the_answer_is_a_warning(tmp_path, write_inter):
    # Every user's held-out items have larger indices than the training ones.
    rows = [(u, i, (0, 0, 1, 2)[i]) for u in range(5) for i in range(4)]
    result = prepare("x", source=write_inter(rows), data_dir=tmp_path / "data")
    assert any(warning.startswith("W275 in 100 % of users") for warning in result.warnings)


def test_recbole_files_are_not_taken_for_mmrec(tmp_path):
    (tmp_path / "a.inter").write_text("user_id:token\titem_id:token\n1\t2\n")
    assert not MMRecFolder.recognises(tmp_path)


def test_several_interaction_files_are_ambiguous(tmp_path, write_inter, labelled_rows):
    folder = write_inter(labelled_rows)
    (folder / "y.inter").write_text((folder / "x.inter").read_text())
    with pytest.raises(DataError, match=r"E103 .* holds x\.inter, y\.inter"):
        prepare("x", source=folder, data_dir=tmp_path / "data")
    (folder / "x.inter").rename(folder / "raw.inter")  # named like its folder: that one is meant
    assert prepare("x", source=folder, data_dir=tmp_path / "data").status == "prepared"


def test_rating_and_time_are_read_where_there_are_any(tmp_path, write_inter):
    rows = [(u, i, f"{i}.5", 10**9 + i, "x", k) for u in range(2) for k, i in enumerate((0, 1, 2))]
    folder = write_inter(rows, header="userID\titemID\trating\ttimestamp\tother\tx_label")
    table = MMRecFolder().read(folder, tmp_path).interactions
    assert table["rating"].to_list() == [0.5, 1.5, 2.5] * 2
    assert table["timestamp"].to_list() == [10**9, 10**9 + 1, 10**9 + 2] * 2
    assert table["split"].to_list() == [0, 1, 2] * 2


def test_malformed_lines_are_left_out_and_later_lines_keep_their_number(tmp_path, write_inter):
    rows = [(u, i, (0, 0, 1, 2)[i]) for u in range(600) for i in range(4)]
    folder = write_inter([*rows[:15], (1, 2), *rows[15:]])
    raw = MMRecFolder().read(folder, tmp_path)
    assert raw.interactions.height == 2400
    assert raw.warnings == [
        f"W112 1 of 2,402 lines of {folder / 'x.inter'} are malformed and left out, e.g. line 17: "
        "2 fields, expected 3"
    ]
    write_inter([*rows[:15], (1, 2), *rows[15:], (1, 2, 9)])
    with pytest.raises(DataError, match=r"E221 .*x\.inter:2403: x_label '9'"):
        MMRecFolder().read(folder, tmp_path)
    write_inter([*rows[:15], (1, 2), *rows[15:], (1, "x", 0)])
    with pytest.raises(DataError, match=r"E212 .*x\.inter:2403: itemID 'x'"):
        MMRecFolder().read(folder, tmp_path)


def test_a_mapping_may_not_lack_a_line(tmp_path, write_inter, labelled_rows):
    folder = write_inter(labelled_rows)
    ids = "".join(f"B{k}\t{k}\n" for k in range(3000))
    (folder / "i_id_mapping.csv").write_text(f"asin\titemID\n{ids}broken\n")
    with pytest.raises(DataError, match=r"E112 .*i_id_mapping\.csv:3002: 1 fields, expected 2"):
        MMRecFolder().read(folder, tmp_path)


def test_odd_folders_are_not_recognised(tmp_path):
    assert not MMRecFolder.recognises(tmp_path)
    assert not MMRecFolder.recognises(tmp_path / "nowhere")
    (tmp_path / "x.inter").mkdir()
    assert not MMRecFolder.recognises(tmp_path)
