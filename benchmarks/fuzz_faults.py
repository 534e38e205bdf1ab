"""What a case of `fuzz.py` does to files and folders before the command runs."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml


def spoil(rng: random.Random, root: Path) -> str:
    """Do something to one file of the playground; says what."""
    files = sorted(p for p in root.rglob("*") if p.is_file() and p.name not in ("notes.txt",))
    # Every folder equally often, or the pictures would be all that is ever spoilt.
    folder = rng.choice(sorted({p.parent for p in files}))
    path = rng.choice([p for p in files if p.parent == folder])
    ways: list[Callable[[random.Random, Path], None]] = [_cut, _noise, _empty, _delete, _folder]
    ways += [_flip, _flip]
    if path.suffix in (".json", ".yaml", ".npy", ".jsonl", ".csv"):
        ways += [_one_value] * 6
    way = rng.choice(ways)
    way(rng, path)
    return f"{way.__name__.lstrip('_')} {path.relative_to(root)}"


def _cut(rng: random.Random, path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content) + 1)])


def _noise(rng: random.Random, path: Path) -> None:
    path.write_bytes(rng.randbytes(rng.choice((1, 100, 5000))))


def _empty(rng: random.Random, path: Path) -> None:
    path.write_bytes(b"")


def _delete(rng: random.Random, path: Path) -> None:
    path.unlink()


def _folder(rng: random.Random, path: Path) -> None:
    path.unlink()
    path.mkdir()


def _flip(rng: random.Random, path: Path) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 3, 20))):
        if content:
            content[rng.randrange(len(content))] = rng.randrange(256)
    path.write_bytes(bytes(content))


def _one_value(rng: random.Random, path: Path) -> None:
    """Another value at one place of a file that stays readable."""
    if path.suffix == ".npy":
        _other_array(rng, path)
        return
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".csv":
        cells = text.split(",")
        cells[rng.randrange(len(cells))] = rng.choice(("", "x", "-1", "1e400", '"', "\x00"))
        path.write_text(",".join(cells), encoding="utf-8")
        return
    if path.suffix == ".jsonl":
        lines = text.splitlines() or ["{}"]
        place = rng.randrange(len(lines))
        lines[place] = json.dumps(_other(rng, json.loads(lines[place])))
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return
    is_json = path.suffix == ".json"
    value = _other(rng, json.loads(text) if is_json else yaml.safe_load(text))
    path.write_text(json.dumps(value) if is_json else yaml.safe_dump(value), encoding="utf-8")


def _other(rng: random.Random, value: Any) -> Any:
    """The value with one place of it changed."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.9:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = rng.choice(keys)
        if rng.random() < 0.2:
            del value[key]
        else:
            value[key] = _other(rng, value[key])
        return value
    return rng.choice((None, -1, 0, 1.5, 10**30, "x", "../..", [], {}, True, [[]], {"x": None}))


def _other_array(rng: random.Random, path: Path) -> None:
    array = np.load(path, allow_pickle=False)
    numbers = np.random.default_rng(rng.randrange(2**32))
    way = rng.randrange(7)
    if way == 0:
        array = array.astype(rng.choice(("float64", "int8", "U3", "complex64", "bool")))
    elif way == 1:
        array = array[: len(array) // 2] if array.ndim else array
    elif way == 2:
        array = array[..., None]
    elif way == 3:
        array = np.array([{"x": 1}, None], dtype=object)
    elif way == 4 and array.size:
        array = array.copy()
        place = numbers.integers(array.size)
        array.flat[place] = np.nan if array.dtype.kind == "f" else 0
    elif way == 5 and array.dtype.kind in "iu" and array.size:
        array = array.copy()
        array.flat[numbers.integers(array.size)] = rng.choice((-1, 100))
    else:
        array = numbers.permutation(array.ravel()).reshape(array.shape)
    np.save(path, array, allow_pickle=True)


# --------------------------------------------------------------------------------------------
# Disks


def can_mount() -> bool:
    """Whether this process may put a file system of its own below a folder."""
    return os.geteuid() == 0 and shutil.which("mount") is not None


@contextlib.contextmanager
def own_disk(folder: Path, free: int | None) -> Iterator[bool]:
    """Put `folder` on a disk of its own: read-only, or with so many free bytes.

    Args:
        folder: an existing folder, whose content is kept.
        free: bytes that can still be written; None makes it read-only.

    Yields:
        Whether it worked; a container may forbid it.
    """
    held = sum(-(-p.stat().st_size // 4096) * 4096 + 4096 for p in folder.rglob("*"))
    size = held + 65536 + (free or 0)
    away = folder.with_name(f"{folder.name}.away")
    folder.rename(away)
    folder.mkdir()
    mounted = _mounts("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    try:
        for path in away.iterdir():
            copy: Any = shutil.copytree if path.is_dir() else shutil.copy2
            copy(path, folder / path.name)
        if mounted and free is None:
            mounted = _mounts("-o", "remount,ro", str(folder))
        elif mounted and free is not None:  # what the estimate left beyond that
            rest = shutil.disk_usage(folder).free - free
            (folder / ".filler").write_bytes(b"x" * max(0, rest))
        yield mounted
    finally:
        subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)
        shutil.rmtree(away, ignore_errors=True)


def _mounts(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0
