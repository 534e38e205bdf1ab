"""Archives: unpacked whole or not at all, and nothing of a bad one ever outside its place."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from mmbench.data.fetch.archives import unpack
from mmbench.errors import DataError

CONTENT = {
    "ml/u.data": b"1\t2\t3\t4\n" * 2000,
    "ml/deep/er/u.item": "1|Léon\n".encode("latin-1"),
    "top.txt": b"",
}
Make = Callable[[Path, Mapping[str, bytes]], Path]


def make_zip(path: Path, content: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("empty folder/", b"")
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def make_tar(path: Path, content: Mapping[str, bytes]) -> Path:
    mode = {".gz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}.get(path.suffix, "w")
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        folder = tarfile.TarInfo("./empty folder")
        folder.type, folder.mode = tarfile.DIRTYPE, 0
        archive.addfile(folder)
        for name, data in content.items():
            member = tarfile.TarInfo("./" + name)
            member.size, member.mode = len(data), 0o4777
            archive.addfile(member, io.BytesIO(data))
    return path


def add_member(path: Path, name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> Path:
    """A tar with one harmless member and then the one that is asked for."""
    with tarfile.open(path, "w") as archive:
        for member in (tarfile.TarInfo("fine.txt"), tarfile.TarInfo(name)):
            member.size = 4
            if member.name == name:
                member.type, member.linkname = kind, link
                member.size = 4 if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(b"text"[: member.size]))
    return path


def found(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("x.zip", make_zip),
        ("x.tar", make_tar),
        ("x.tar.gz", make_tar),
        ("x.tgz.gz", make_tar),
        ("x.tar.bz2", make_tar),
        ("x.tar.xz", make_tar),
    ],
)
def test_what_was_packed_comes_out(name: str, make: Make, tmp_path: Path) -> None:
    archive = make(tmp_path / name, CONTENT)
    seen: list[tuple[str, int, int | None, str]] = []
    names = unpack(archive, tmp_path / "a" / "b", watch=lambda *told: seen.append(told))
    assert found(tmp_path / "a" / "b") == CONTENT
    assert (tmp_path / "a" / "b" / "empty folder").is_dir()
    assert names == ("empty folder", "ml", "top.txt")
    size = archive.stat().st_size
    assert seen[-1] == (f"unpacking {name}", size, size, "bytes")
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == list(names)


def test_modes_of_the_archive_are_not_taken_over(tmp_path: Path) -> None:
    unpack(make_tar(tmp_path / "x.tar", CONTENT), tmp_path / "out")
    file = stat.S_IMODE((tmp_path / "out" / "top.txt").stat().st_mode)
    folder = stat.S_IMODE((tmp_path / "out" / "empty folder").stat().st_mode)
    assert not file & 0o7111
    assert folder & 0o700 == 0o700


def test_files_that_are_there_already_stay(tmp_path: Path) -> None:
    target = tmp_path / "out"
    (target / "ml").mkdir(parents=True)
    (target / "ml" / "mine.txt").write_bytes(b"mine")
    (target / "ml" / "u.data").write_bytes(b"old")
    archive = make_zip(tmp_path / "x.zip", CONTENT)
    for _ in range(2):
        unpack(archive, target)
        assert found(target) == CONTENT | {"ml/mine.txt": b"mine"}


def test_a_single_gzip_is_one_file(tmp_path: Path) -> None:
    (tmp_path / "u.data.gz").write_bytes(gzip.compress(CONTENT["ml/u.data"]))
    assert unpack(tmp_path / "u.data.gz", tmp_path / "out") == ("u.data",)
    assert found(tmp_path / "out") == {"u.data": CONTENT["ml/u.data"]}


def check_refused(archive: Path, message: str, target: Path, **bounds: int) -> None:
    """It is refused, `target` is as it was, and nothing appeared beside it."""
    target.mkdir()
    (target / "mine.txt").write_bytes(b"mine")
    before = sorted(target.parent.rglob("*"))
    with pytest.raises(DataError, match=message):
        unpack(archive, target, **bounds)
    assert sorted(target.parent.rglob("*")) == before
    assert found(target) == {"mine.txt": b"mine"}


UNSAFE = [
    "../evil.txt",
    "a/../../evil.txt",
    "/evil.txt",
    "C:evil.txt",
    "c:/evil.txt",
    "..\\evil.txt",
    "a\\b.txt",
    "line\nbreak.txt",
]


@pytest.mark.parametrize("name", UNSAFE)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_member_that_leads_elsewhere_is_refused(name: str, kind: str, tmp_path: Path) -> None:
    if kind == "zip":
        archive = make_zip(tmp_path / "x.zip", {"fine.txt": b"text", name: b"evil"})
    else:
        archive = add_member(tmp_path / "x.tar", name)
    shown = ascii(name).strip("'").replace("\\", "\\\\")
    check_refused(archive, f"^E107 .*unsafe member '{shown}'", tmp_path / "out")
    assert not list(tmp_path.rglob("evil*"))


def test_a_nul_in_a_name_is_refused_not_cut_off(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "x.zip", {"fine.txtXevil": b"text"})
    archive.write_bytes(archive.read_bytes().replace(b"fine.txtXevil", b"fine.txt\0evil"))
    check_refused(archive, r"^E107 .*unsafe member 'fine.txt\\x00evil'", tmp_path / "out")


@pytest.mark.parametrize(
    ("kind", "link"),
    [
        (tarfile.SYMTYPE, "/etc"),
        (tarfile.SYMTYPE, "fine.txt"),
        (tarfile.LNKTYPE, "fine.txt"),
        (tarfile.CHRTYPE, ""),
        (tarfile.BLKTYPE, ""),
        (tarfile.FIFOTYPE, ""),
    ],
)
def test_links_and_devices_in_a_tar_are_refused(kind: bytes, link: str, tmp_path: Path) -> None:
    archive = add_member(tmp_path / "x.tar", "odd", kind, link)
    check_refused(archive, "^E107 .*unsafe member 'odd', a link or a device", tmp_path / "out")


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    member = zipfile.ZipInfo("odd")
    member.create_system = 3
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(member, "/etc/passwd")
    check_refused(tmp_path / "x.zip", "^E107 .*unsafe member 'odd', a link", tmp_path / "out")


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_names_that_are_one_file_elsewhere_must_agree(make: Make, tmp_path: Path) -> None:
    name = "x.zip" if make is make_zip else "x.tar"
    check_refused(
        make(tmp_path / name, {"a/X.txt": b"one", "A/x.txt": b"two"}),
        "^E107 .*unsafe member '(./)?A/x.txt', there twice with other content",
        tmp_path / "out",
    )
    unpack(make(tmp_path / name, {"a/X.txt": b"one", "A/x.txt": b"one"}), tmp_path / "agreed")
    assert found(tmp_path / "agreed") == {"a/X.txt": b"one"}


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a")])
def test_a_file_cannot_be_a_folder_too(names: tuple[str, str], tmp_path: Path) -> None:
    archive = make_tar(tmp_path / "x.tar", dict.fromkeys(names, b"text"))
    check_refused(archive, "^E107 .*a file and a folder", tmp_path / "out")


def test_a_folder_in_the_way_is_named_and_nothing_is_moved(tmp_path: Path) -> None:
    (tmp_path / "out" / "z").mkdir(parents=True)
    archive = make_zip(tmp_path / "x.zip", {"a": b"text", "z": b"text"})
    with pytest.raises(DataError, match=r"^E107 .*out/z is in the way"):
        unpack(archive, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["z"]


def test_more_files_or_bytes_than_allowed_are_refused(tmp_path: Path) -> None:
    many = {f"{n}.txt": b"text" for n in range(20)}
    os_zip = make_zip(tmp_path / "x.zip", many)
    os_tar = make_tar(tmp_path / "x.tar", many)
    check_refused(os_zip, "^E107 .*more than the 19 files", tmp_path / "a", max_files=19)
    check_refused(os_tar, "^E107 .*more than the 19 files", tmp_path / "b", max_files=19)
    check_refused(os_zip, "^E107 .*more than the 79 bytes", tmp_path / "c", max_bytes=79)
    check_refused(os_tar, "^E107 .*more than the 79 bytes", tmp_path / "d", max_bytes=79)
    unpack(os_zip, tmp_path / "e", max_bytes=80, max_files=21)
    assert found(tmp_path / "e") == many


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz", "x.tar.xz"])
def test_a_bomb_is_stopped_while_it_goes_off(name: str, tmp_path: Path) -> None:
    make = make_zip if name == "x.zip" else make_tar
    archive = make(tmp_path / name, {"zeros": bytes(80 * 2**20)})
    assert archive.stat().st_size < 100_000
    check_refused(archive, "^E107 .*more than 200 times its own size", tmp_path / "out")


def test_a_zip_that_lies_about_a_size_is_broken(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "x.zip", {"zeros": bytes(2**20)})
    lie = archive.read_bytes().replace((2**20).to_bytes(4, "little"), (5).to_bytes(4, "little"))
    archive.write_bytes(lie)
    check_refused(archive, "^E106 .*not a complete zip file", tmp_path / "out")


def test_an_endless_header_is_stopped(tmp_path: Path) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 60 * 2**20
    with gzip.open(tmp_path / "x.tar.gz", "wb") as file:
        file.write(header.tobuf() + bytes(header.size))
    check_refused(tmp_path / "x.tar.gz", "^E107 .*a header in it is too long", tmp_path / "out")


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz", "x.tar.bz2", "x.tar.xz"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.9])
def test_a_half_written_archive_is_broken(name: str, kept: float, tmp_path: Path) -> None:
    make = make_zip if name == "x.zip" else make_tar
    noise = {f"{n}.bin": os.urandom(5000) for n in range(20)}
    content = make(tmp_path / name, noise).read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * kept)])
    check_refused(tmp_path / name, "^E106 .*download it again$", tmp_path / "out")


def test_a_tar_that_ends_between_two_members_is_broken(tmp_path: Path) -> None:
    archive = make_tar(tmp_path / "x.tar", {"a.bin": bytes(512), "b.bin": bytes(512)})
    archive.write_bytes(archive.read_bytes()[: 512 + 2 * 512])
    check_refused(archive, "^E106 .*its end is missing", tmp_path / "out")


def test_a_broken_header_in_the_middle_is_not_taken_for_the_end(tmp_path: Path) -> None:
    content = bytearray(make_tar(tmp_path / "x.tar", {"a": b"a", "b": b"b"}).read_bytes())
    content[512 + 1024 + 100] ^= 0xFF
    (tmp_path / "x.tar").write_bytes(content)
    check_refused(tmp_path / "x.tar", "^E106 .*a header in it is broken", tmp_path / "out")


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    for name, make in (("x.zip", make_zip), ("y.tar.gz", make_tar), ("z.tar.xz", make_tar)):
        archive = make(tmp_path / name, {"a.bin": os.urandom(3000)})
        content = bytearray(archive.read_bytes())
        content[len(content) // 2] ^= 0x10
        archive.write_bytes(content)
        check_refused(archive, "^E106 ", tmp_path / f"out {name}")


def test_a_zip_with_a_password_is_named(tmp_path: Path) -> None:
    content = bytearray(make_zip(tmp_path / "x.zip", {"a.txt": b"text"}).read_bytes())
    start = content.rindex(b"PK\x01\x02")
    content[start + 8] |= 1
    (tmp_path / "x.zip").write_bytes(content)
    check_refused(tmp_path / "x.zip", "^E106 .*needs a password for 'a.txt'", tmp_path / "out")


def test_what_is_no_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.rar").write_bytes(b"Rar!\x1a\x07" + bytes(1000))
    check_refused(tmp_path / "x.rar", "^E106 .*neither a zip nor a tar", tmp_path / "a")
    (tmp_path / "x.zip").write_bytes(b"<!DOCTYPE html><title>Sign in</title>")
    check_refused(tmp_path / "x.zip", "^E106 x.zip is a web page, perhaps a login", tmp_path / "b")
    (tmp_path / "y.zip").write_bytes(b"")
    check_refused(tmp_path / "y.zip", "^E106 y.zip is empty", tmp_path / "c")
    (tmp_path / "x.tar.xz").write_bytes(lzma.compress(b"no archive" * 100))
    check_refused(tmp_path / "x.tar.xz", "^E106 ", tmp_path / "d")


def test_what_killed_processes_left_is_cleared_away(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    (target / f".unpacking-{dead.pid}" / "half").mkdir(parents=True)
    (target / f".unpacking-{os.getppid()}").mkdir()
    unpack(make_tar(tmp_path / "x.tar", {}), target)
    left = sorted(path.name for path in target.iterdir())
    assert left == [f".unpacking-{os.getppid()}", "empty folder"]
