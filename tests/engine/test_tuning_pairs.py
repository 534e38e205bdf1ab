"""Which pairs are learnt from and held out where there are few, and in which batches."""

from __future__ import annotations

import numpy as np
import pytest

from mmbench.engine.tuning_pairs import hold_out
from mmbench.engine.tuning_settings import fine_tuning


@pytest.mark.parametrize("seed", range(5))
def test_what_is_held_out_can_be_told_apart(seed: int) -> None:
    groups = np.arange(50) // 6  # eight groups of six, one of two
    train, held = hold_out(np.arange(50), groups, None, seed)
    assert len(np.unique(groups[held])) >= 2
    assert not set(groups[train]) & set(groups[held])


def test_of_two_groups_none_is_left_to_learn_from() -> None:
    train, held = hold_out(np.arange(20), np.arange(20) % 2, None, 0)
    assert (len(train), len(held)) == (0, 20)  # which `read_pairs` refuses


def test_a_batch_that_nobody_asked_for_fits_the_pairs() -> None:
    auto = fine_tuning(None)
    for n_pairs, size in ((4000, 128), (128, 128), (127, 63), (45, 22), (5, 2), (2, 2)):
        fitted = auto.fitted(n_pairs)
        assert fitted.batch_size == (size,)
        assert n_pairs // size >= (2 if 4 <= n_pairs < 128 else 1)
        assert [point.batch_size for point in fitted.points()] == [(size,)]
    grid = fine_tuning("arxiv-2310.20343")
    assert grid.fitted(300).batch_size == (32, 64, 128, 256)
    assert grid.fitted(20).batch_size == (10,)


def test_a_batch_that_was_asked_for_stays() -> None:
    assert fine_tuning(None, batch_size=(128,)).fitted(45).batch_size == (128,)


def test_the_identity_is_that_of_before() -> None:
    told = fine_tuning(None).identity
    assert told == fine_tuning(None, batch_size=(128,)).identity
    assert "adapts" not in told
