"""H&M, in samples written in the form of Kaggle's files."""

import csv
import shutil
from pathlib import Path

import pytest

from mmbench.data.cleaning import PrepareConfig
from mmbench.data.prepare import prepare
from mmbench.data.prepared import open_dataset
from mmbench.data.sources import hm
from mmbench.data.sources.hm import HM
from mmbench.errors import DataError

COLUMNS = (
    "article_id,product_code,prod_name,product_type_no,product_type_name,product_group_name,"
    "graphical_appearance_no,graphical_appearance_name,colour_group_code,colour_group_name,"
    "perceived_colour_value_id,perceived_colour_value_name,perceived_colour_master_id,"
    "perceived_colour_master_name,department_no,department_name,index_code,index_name,"
    "index_group_no,index_group_name,section_no,section_name,garment_group_no,"
    "garment_group_name,detail_desc"
)
TOP = (
    "0108775015,0108775,Strap top,253,Vest top,Garment Upper body,1010016,Solid,09,Black,4,Dark,5,"
    "Black,1676,Jersey Basic,A,Ladieswear,1,Ladieswear,16,Womens Everyday Basics,1002,"
    'Jersey Basic,"Jersey top with narrow, ""thin"" straps."'
)
BRA = (
    "0110065001,0110065,OP T-shirt (Idro),306,Bra,Underwear,1010016,Solid,09,Black,4,Dark,5,"
    "Black,1339,Clean Lingerie,B,Lingeries/Tights,1,Ladieswear,61,Womens Lingerie,1017,"
    '"Under-, Nightwear","Microfibre bra, moulded cups."'
)
SOCKS = (
    "0111565001,0111565,20 den 1p Stockings,304,Underwear Tights,Socks & Tights,1010016,Solid,09,"
    "Black,4,Dark,5,Black,3608,Tights basic,B,Lingeries/Tights,1,Ladieswear,62,"
    "Womens Nightwear,1021,Socks and Tights,"
)
HEADER = "t_dat,customer_id,article_id,price,sales_channel_id"


def customer(number):
    return f"{number:064x}"


def purchases():
    """Three customers buy each article twice or thrice; a fourth buys once."""
    rows = []
    for k in range(3):
        for j, article in enumerate(("0108775015", "0110065001", "0111565001")):
            rows += [
                f"2018-09-{20 + j},{customer(k)},{article},0.0508305084745762,2",
                f"2019-01-{10 + k},{customer(k)},{article},0.0338813559322034,1",
            ]
    rows.append(rows[0])  # two units in one purchase
    rows.append(f"2020-09-22,{customer(9)},0108775015,0.0169,2")
    return rows


@pytest.fixture
def folder(tmp_path, write_picture):
    raw = tmp_path / "hm"
    raw.mkdir()
    (raw / "articles.csv").write_text("\n".join([COLUMNS, TOP, BRA, SOCKS]) + "\n")
    (raw / "transactions_train.csv").write_text("\n".join([HEADER, *purchases()]) + "\n")
    (raw / "customers.csv").write_text("customer_id,FN,Active\n")
    write_picture(raw / "images/010/0108775015.jpg", 1)
    write_picture(raw / "images/011/0111565001.jpg", 2)
    return raw


def test_articles_texts_and_pictures_are_read(tmp_path, folder):
    assert len(next(csv.reader([TOP]))) == len(COLUMNS.split(",")) == 25
    raw = HM().read(folder, tmp_path)
    first = raw.interactions.row(0, named=True)
    assert first == {
        "user": customer(0),
        "item": "0108775015",
        "rating": None,
        "timestamp": 1537401600000,  # 2018-09-20, midnight UTC
        "split": None,
    }
    assert raw.interactions.height == 20
    assert raw.items["item"].to_list() == ["0108775015", "0110065001", "0111565001"]
    assert raw.items["title"][1] == "OP T-shirt (Idro)"
    assert raw.items["image"].to_list() == ["010/0108775015.jpg", None, "011/0111565001.jpg"]
    assert raw.image_root == folder / "images"
    assert raw.warnings == []


def test_rare_customers_go_and_repeats_are_merged(tmp_path, folder):
    result = prepare(
        "hm", source=folder, data_dir=tmp_path / "data", config=PrepareConfig(user_min=3)
    )
    dataset = result.dataset
    assert dataset.user_ids == [customer(0), customer(1), customer(2)]
    assert dataset.item_ids == ["0108775015", "0110065001", "0111565001"]
    assert dataset.manifest["counts"]["interactions"] == 9
    assert dataset.timestamp[0] == 1537401600000  # the first of the purchases of one article
    assert dataset.texts[0] == (
        'Strap top. Jersey top with narrow, "thin" straps.. Vest top. Garment Upper body. '
        "Womens Everyday Basics. Jersey Basic"
    )
    assert dataset.texts[2] == (
        "20 den 1p Stockings. Underwear Tights. Socks & Tights. Womens Nightwear. Socks and Tights"
    )
    assert dataset.image_paths == [
        folder / "images/010/0108775015.jpg",
        None,
        folder / "images/011/0111565001.jpg",
    ]


def test_the_defaults_filter_customers_and_not_articles(tmp_path, folder):
    rows = [f"2019-02-{d:02d},{customer(k)},0{k}0000000{d},0.01,2" for k in range(2)
            for d in range(1, 6)]  # fmt: skip
    rows.append(f"2019-03-01,{customer(5)},0108775015,0.01,2")
    rows.append(f"2019-03-01,{customer(1)},0108775015,0.01,2")
    (folder / "transactions_train.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    dataset = prepare("hm", source=folder, data_dir=tmp_path / "data").dataset
    counts = dataset.manifest["counts"]
    assert (counts["users"], counts["items"], counts["interactions"]) == (2, 11, 11)


def test_blocks_of_any_size_give_the_same_rows(tmp_path, folder, monkeypatch):
    whole = HM().read(folder, tmp_path).interactions
    for size in (100, 333, 4096):
        monkeypatch.setattr(hm, "BLOCK", size)
        assert HM().read(folder, tmp_path).interactions.equals(whole)


def test_without_pictures_it_goes_on_and_says_so(tmp_path, folder):
    shutil.rmtree(folder / "images")
    raw = HM().read(folder, tmp_path)
    assert "image" not in raw.items.columns
    assert raw.image_root is None
    assert len(raw.warnings) == 1
    assert raw.warnings[0].startswith(f"W262 {folder / 'images'} is not there")


def test_quotes_windows_lines_and_a_missing_last_line_feed_are_fine(tmp_path, folder):
    lines = [HEADER, *(",".join(f'"{c}"' for c in row.split(",")) for row in purchases())]
    whole = HM().read(folder, tmp_path).interactions
    (folder / "transactions_train.csv").write_bytes("\r\n".join(lines).encode())
    assert HM().read(folder, tmp_path).interactions.equals(whole)


def test_a_few_malformed_lines_are_left_out_and_told(tmp_path, folder):
    rows = purchases() * 150
    rows[40] = "2018-09-20,cut"
    rows[41] = ""
    (folder / "transactions_train.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    raw = HM().read(folder, tmp_path)
    assert raw.interactions.height == len(rows) - 2
    assert len(raw.warnings) == 1
    assert "malformed" in raw.warnings[0]
    assert "line 42: 2 fields, expected 5" in raw.warnings[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("articles.csv", None, r"E101 articles\.csv not found under .*kaggle\.com"),
        ("transactions_train.csv", None, r"E101 transactions_train\.csv not found .*kaggle\.com"),
        ("transactions_train.csv", "", r"E113 .*transactions_train\.csv is empty"),
        (
            "transactions_train.csv",
            f"{HEADER}\n",
            r"E241 .*transactions_train\.csv has a header and",
        ),
        (
            "transactions_train.csv",
            "<!DOCTYPE html>\n<html><body>Sign in</body></html>\n",
            r"E106 .*transactions_train\.csv is a web page",
        ),
        ("articles.csv", "\n <html lang='en'>\n", r"E106 .*articles\.csv is a web page"),
        (
            "transactions_train.csv",
            "date,customer,article\n2018-09-20,a,0108775015\n",
            r"E113 .*column 't_dat' missing; found date, customer, article",
        ),
        ("articles.csv", "article_id,prod_name\n0108775015,x\n", r"E113 .*'detail_desc' missing"),
        (
            "transactions_train.csv",
            f"{HEADER}\n2018-09-20,a,0108775015,0.1,2\n20.09.2018,a,0108775015,0.1,2\n",
            r"E216 .*transactions_train\.csv:3: '20\.09\.2018'; days must be written as 2018-09-20",
        ),
        (
            "transactions_train.csv",
            f"{HEADER}\n2018-02-30,a,0108775015,0.1,2\n",
            r"E216 .*:2: '2018-02-30'",
        ),
        (
            "transactions_train.csv",
            f"{HEADER}\n2018-09-20,a,108775015,0.1,2\n",
            r"E266 none of the 3 item ids of .*articles\.csv occurs in transactions_train\.csv, "
            r"e\.g\. '0108775015' in the one and '108775015' in the other; leading zeros were lost",
        ),
        (
            "transactions_train.csv",
            f"{HEADER}\n2018-09-20,a,0999999999,0.1,2\n",
            r"E266 .*the two files do not belong together",
        ),
        (
            "transactions_train.csv",
            f"{HEADER}\n2018-09-20,a,0108775015,0.1,2\n2018-09-20,a\n",
            r"E112 .*transactions_train\.csv:3: 2 fields, expected 5 separated by comma; 1 of 3 ",
        ),
        (
            "articles.csv",
            "\n".join([COLUMNS, TOP, TOP.replace("Strap", "Other")]) + "\n",
            r"E261 .*'0108775015' listed 2 times with different content",
        ),
    ],
)
def test_broken_files_are_refused(tmp_path, folder, name, content, message):
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(DataError, match=message):
        prepare("hm", source=folder, data_dir=tmp_path / "data")
    assert not (tmp_path / "data/hm").exists()


def test_bytes_that_are_no_text_are_refused_with_their_line(tmp_path, folder):
    rows = "\n".join([HEADER, *purchases()]).encode() + b"\n2018-09-20,\xe9,0108775015,1,2\n"
    (folder / "transactions_train.csv").write_bytes(rows)
    with pytest.raises(DataError, match=r"E111 .*transactions_train\.csv:22: byte 0xe9"):
        HM().read(folder, tmp_path)


def test_packed_files_are_to_be_unzipped(tmp_path, folder):
    (folder / "transactions_train.csv").rename(folder / "transactions_train.csv.zip")
    with pytest.raises(DataError, match=r"transactions_train\.csv\.zip lies there still packed; u"):
        HM().read(folder, tmp_path)
    assert not HM.recognises(folder)


def test_it_says_what_to_fetch_by_hand_and_goes_on_from_there(mmbench, folder):
    said = mmbench("prepare", "hm")
    assert said.status == 2
    text = " ".join(said.err.split())
    assert "E104 hm needs a login or a manual download: https://www.kaggle.com/competitions" in text
    for place in ("articles.csv", "transactions_train.csv", "images/010/0108775015.jpg"):
        assert f"data/_raw/hm/{place}" in said.err
    assert "Traceback" not in said.err

    shutil.copytree(folder, "data/_raw/hm")
    said = mmbench("prepare", "hm", "--user-core", 3, "--no-features")
    assert said.status == 0, said.err
    said = mmbench(
        "prepare", "hm", "--as", "mine", "--source", folder, "--user-core", 3, "--no-features"
    )
    assert said.status == 0, said.err
    ours, mine = (open_dataset(Path("data") / name) for name in ("hm", "mine"))
    assert ours.fingerprint == mine.fingerprint
    assert ours.manifest["counts"]["users"] == 3
