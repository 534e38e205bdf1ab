"""MicroLens fetched from a local server; PixelRec, NineRec and MoRec brought by hand."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

N_USERS, N_ITEMS = 10, 8
T0 = 1_583_378_629_552
SITE = "https://recsys.westlake.edu.cn/"


def rows() -> list[tuple[int, int, int]]:
    """Every user with six of eight items, one after the other, in milliseconds."""
    return [
        (user, (user + k) % N_ITEMS + 1, T0 + 1000 * user + k)
        for user in range(1, N_USERS + 1)
        for k in range(6)
    ]


def zipped(name: str) -> bytes:
    """An archive of covers in the folder `name`; the last item has none."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for item in range(1, N_ITEMS):
            pixels = np.random.default_rng(item).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            picture = io.BytesIO()
            Image.fromarray(pixels).save(picture, "JPEG")
            archive.writestr(f"{name}/{item}.jpg", picture.getvalue())
    return packed.getvalue()


def microlens(subset: str, titles: str, covers: str) -> dict[str, bytes]:
    """What the site of MicroLens serves, by path."""
    pairs = "".join(f"{user},{item},{time}\n" for user, item, time in rows())
    files = {
        f"MicroLens-{subset}_pairs.csv": b"user,item,timestamp\n" + pairs.encode(),
        titles: "".join(f'{item},Film {item}, "cut"\n' for item in range(1, N_ITEMS + 1)).encode(),
        f"MicroLens-{subset}_covers.zip": zipped(covers),
        "tags_to_summary.csv": b"".join(b"%d,Food\n" % item for item in range(1, N_ITEMS + 1)),
    }
    for name in (
        "title_en_text_features_BgeM3", "image_features_CLIPRN50", "video_features_VideoMAE"
    ):  # fmt: skip
        matrix = io.BytesIO()
        np.save(matrix, np.random.default_rng(len(name)).random((N_ITEMS, 4), dtype=np.float32))
        files[f"extracted_modality_features/MicroLens-{subset}_{name}.npy"] = matrix.getvalue()
    return {f"MicroLens-{subset}-Dataset/{path}": content for path, content in files.items()}


@pytest.fixture
def site(serve: Callable, monkeypatch: pytest.MonkeyPatch):
    files = microlens("100k", "MicroLens-100k_title_en.csv", "MicroLens-100k_covers")
    files |= microlens("50k", "MicroLens-50k_titles.csv", "MicroLens-50k_covers")
    server = serve(files)
    monkeypatch.setenv("MMBENCH_MIRRORS", f"{SITE}={server.url}")
    return server


def said(done) -> str:
    return " ".join(done.err.split())


def test_microlens_100k_with_all_its_parts(mmbench: Callable, site, tmp_path: Path) -> None:
    pairs = "MicroLens-100k-Dataset/MicroLens-100k_pairs.csv"
    covers = "MicroLens-100k-Dataset/MicroLens-100k_covers.zip"
    site.fault(covers, cut_after=700)
    done = mmbench(
        "prepare", "microlens-100k", "--download", "--with", "features,pictures,tags",
        "--no-features", "--output-format", "json",
    )  # fmt: skip
    assert done.status == 0, done.err
    facts = json.loads(done.out)
    assert (facts["counts"]["users"], facts["counts"]["items"]) == (N_USERS, N_ITEMS)
    assert facts["counts"]["interactions"] == len(rows())
    assert [asked.range for asked in site.gets(covers)] == ["", "bytes=700-"]
    assert "W276" in said(done)  # the sample is smaller than what was published
    root = tmp_path / "data/microlens-100k"
    items = [json.loads(line) for line in (root / "items.jsonl").read_text("utf-8").splitlines()]
    assert items[0]["text"] == 'Film 1, "cut"'
    assert items[0]["fields"]["category"] == "Food"
    assert [item["image_status"] for item in items] == ["ok"] * 7 + ["missing"]
    stored = sorted(path.name for path in (root / "features").iterdir())
    assert stored == ["textual__bge-m3", "visual__clip-rn50", "visual__videomae"]
    again = mmbench("prepare", "microlens-100k", "--force", "--no-features")
    assert again.status == 0, again.err
    assert len(site.gets(pairs)) == 1


def test_only_the_core_is_fetched_unless_more_is_asked_for(
    mmbench: Callable, site, tmp_path: Path
) -> None:
    done = mmbench("prepare", "microlens-100k", "--download", "--no-features")
    assert done.status == 0, done.err
    fetched = {asked.path.rpartition("/")[2] for asked in site.requests if asked.method == "GET"}
    assert fetched == {"MicroLens-100k_pairs.csv", "MicroLens-100k_title_en.csv"}


def test_microlens_50k_is_checked_against_its_recorded_hash(
    mmbench: Callable, site, tmp_path: Path
) -> None:
    pairs = "MicroLens-50k-Dataset/MicroLens-50k_pairs.csv"
    sample = site.files[pairs]
    # Of another size, and of the recorded size with other content.
    for content, recorded in (
        (sample, "9431093"),
        (sample.ljust(9_431_093, b"\n"), "7ff8b91bcc84"),
    ):
        site.files[pairs] = content
        done = mmbench("prepare", "microlens-50k", "--download", "--no-features")
        assert done.status == 2
        assert "E105" in said(done)
        assert f"recorded {recorded}" in said(done)
        assert not (tmp_path / "data/microlens-50k").exists()
    site.files[pairs] = sample
    done = mmbench("prepare", "microlens-50k", "--download", "--accept-changed", "--no-features")
    assert done.status == 0, done.err
    assert f"{N_USERS} users, {N_ITEMS} items, {len(rows())} interactions" in done.out


def test_a_login_page_in_the_place_of_pairs_is_refused(mmbench: Callable, site) -> None:
    site.fault("MicroLens-100k-Dataset/MicroLens-100k_pairs.csv", html=True)
    done = mmbench("prepare", "microlens-100k", "--download", "--no-features")
    assert done.status == 2
    assert "E106" in said(done) or "E104" in said(done)


def test_covers_that_would_leave_the_folder_are_refused(
    mmbench: Callable, site, tmp_path: Path
) -> None:
    path = "MicroLens-100k-Dataset/MicroLens-100k_covers.zip"
    site.files[path] = zipped("../../outside")
    done = mmbench("prepare", "microlens-100k", "--download", "--with", "pictures", "--no-features")
    assert done.status == 2
    assert "E107" in said(done)
    assert not list(tmp_path.rglob("outside"))


def by_hand(name: str, folder: Path) -> list[str]:
    """Writes a by-hand dataset's files where its card says; returns the names it must say."""
    pairs = [(f"u{user}", f"v{item}", time) for user, item, time in rows()]
    histories = "".join(
        f"u{user}\t" + " ".join(v for u, v, _ in pairs if u == f"u{user}") + "\n"
        for user in range(1, N_USERS + 1)
    )
    items = [f"v{item}" for item in range(1, N_ITEMS + 1)]
    if name == "pixelrec-1m":
        files = {
            "interaction/Pixel1M.csv": "item_id,user_id,timestamp\n"
            + "".join(f"{v},{u},{t // 1000}\n" for u, v, t in pairs),
            "item_info/Pixel1M.csv": "item_id,title,tag\n" + "".join(f"{v},T,\n" for v in items),
        }
    elif name == "ninerec-kwai":
        files = {
            "KU_pair.csv": "".join(f"{v},{u},{t}\n" for u, v, t in pairs),
            "KU_item.csv": "".join(f'{v},字,"A, b"\n' for v in items),
        }
    elif name == "ninerec-qb":
        files = {
            "QB_behaviour.tsv": histories,
            "QB_item.csv": "".join(f"{v},字,T\n" for v in items),
        }
    else:
        files = {"hm_50w_users.tsv": histories, "hm_50w_items.tsv": "\n".join(items) + "\n"}
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content, encoding="utf-8")
    return list(files)


@pytest.mark.parametrize(
    ("name", "known_as"),
    [
        ("pixelrec-1m", "pixelrec-1m"), ("ninerec-kwai", "ninerec-ku"),
        ("ninerec-qb", "ninerec-qb"), ("morec-hm", "morec-hm"),
    ],
)  # fmt: skip
def test_by_hand_the_command_says_what_goes_where_and_goes_on_from_there(
    mmbench: Callable, tmp_path: Path, name: str, known_as: str
) -> None:
    asked = mmbench("prepare", name, "--download")
    assert asked.status == 2
    assert not (tmp_path / "data" / known_as).exists()
    named = by_hand(name, tmp_path / "mine")
    for path in named:
        assert path.rpartition("/")[2] in said(asked)
    assert f"data/_raw/{known_as}" in said(asked).replace(" ", "")
    for options in (["--source", "mine"], ["--as", "second"]):
        if "--as" in options:
            by_hand(name, tmp_path / "data/_raw" / known_as)
        done = mmbench("prepare", name, *options, "--no-features")
        assert done.status == 0, done.err
        assert f"{N_USERS} users, {N_ITEMS} items, {len(rows())} interactions" in done.out
