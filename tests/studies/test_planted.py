"""What was planted in generated shops is found, and nothing else; benchmarks/planted.py counts."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("planted")


@pytest.mark.slow
@pytest.mark.parametrize("shop", [2])
def test_texts_and_pictures_are_found_and_noise_is_not(
    planted: ModuleType, tmp_path: Path, shop: int
) -> None:
    found = {each.modality: each for each in planted.study(shop, tmp_path)}
    assert set(found) == {"textual", "visual", "acoustic"}
    for modality in ("textual", "visual"):
        assert found[modality].says("users", better=True)
        assert found[modality].says("systems", better=True)
    assert not found["acoustic"].says("users", better=True)
    assert not found["acoustic"].says("systems", better=True)


def test_the_exact_interval_of_a_share(planted: ModuleType) -> None:
    # Without a success the upper bound u solves (1 - u) ** n = 0.025.
    low, high = planted.exact_interval(0, 20)
    assert (low, (1 - high) ** 20) == (0.0, pytest.approx(0.025))
    low, high = planted.exact_interval(20, 20)
    assert (low**20, high) == (pytest.approx(0.025), 1.0)
