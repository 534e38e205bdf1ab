"""Raw files of a tiny dataset, written for one test."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Row = tuple[object, ...]
Write = Callable[..., Path]


@pytest.fixture
def write_table(tmp_path: Path) -> Write:
    """Writes `raw/<name>` from a header and rows, comma-separated; returns the folder `raw`."""

    def write(
        rows: Iterable[Row], header: str = "user_id,item_id", name: str = "interactions.csv"
    ) -> Path:
        folder = tmp_path / "raw"
        folder.mkdir(exist_ok=True)
        lines = [
            header,
            *(",".join("" if cell is None else str(cell) for cell in row) for row in rows),
        ]
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return folder

    return write


@pytest.fixture
def full_rows() -> list[Row]:
    """Every one of 8 users with every one of 7 items, each at its own time: a true 5-core."""
    return [
        (f"u{u}", f"i{i}", 1 + (u + i) % 5, 10**9 + 1000 * u + i)
        for u in range(8)
        for i in range(7)
    ]


@pytest.fixture
def write_picture() -> Callable[..., Path]:
    """Writes a small picture of noise drawn from a seed."""

    def write(path: Path, seed: int = 0, side: int = 16) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return write


@pytest.fixture
def write_inter(tmp_path: Path) -> Write:
    """Writes `raw/x.inter` from rows of three cells; returns the folder `raw`."""

    def write(rows: Iterable[Row], header: str = "userID\titemID\tx_label") -> Path:
        folder = tmp_path / "raw"
        folder.mkdir(exist_ok=True)
        lines = [header, *("\t".join(map(str, row)) for row in rows)]
        (folder / "x.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return folder

    return write


@pytest.fixture
def labelled_rows() -> list[Row]:
    """Six users, four items; each user has two training rows, one valid, one test."""
    return [(u, (u + k) % 4, (0, 0, 1, 2)[k]) for u in range(6) for k in range(4)]
