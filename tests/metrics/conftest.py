"""Small ranked lists, built from sets so that no test repeats the code's own arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from mmbench.metrics.lists import RankedLists

ListsBuilder = Callable[[Sequence[Sequence[int]], Sequence[set[int]], Sequence[int]], RankedLists]


def build(
    ranked: Sequence[Sequence[int]],
    relevant: Sequence[set[int]],
    popularity: Sequence[int],
) -> RankedLists:
    """Lists of users 0, 1, ... from the items shown to each and the set relevant to each."""
    hits = [
        [item in wanted for item in shown] for shown, wanted in zip(ranked, relevant, strict=True)
    ]
    sizes = [len(wanted) for wanted in relevant]
    return RankedLists(
        users=np.arange(len(ranked)),
        items=np.array(ranked, dtype=np.int64),
        hits=np.array(hits, dtype=np.bool_),
        relevant_offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        relevant_items=np.array(
            [item for wanted in relevant for item in sorted(wanted)], dtype=np.int64
        ),
        popularity=np.array(popularity, dtype=np.int64),
        activity=np.full(len(ranked), 3, dtype=np.int64),
    )


@pytest.fixture(scope="session")  # a pure function, so hypothesis may share it
def build_lists() -> ListsBuilder:
    return build


@pytest.fixture
def five_items() -> RankedLists:
    """Four users over five items, lists of four; the golden values below are worked on these.

    user 0: shown 3 0 4 1, relevant {0, 1}        hits at ranks 2 and 4
    user 1: shown 2 4 - -, relevant {2, 0, 1}     hit at rank 1; the list is padded
    user 2: shown 1 2 3 4, relevant {0}           no hit
    user 3: shown 0 1 2 3, relevant {}            undefined
    """
    return build(
        [[3, 0, 4, 1], [2, 4, -1, -1], [1, 2, 3, 4], [0, 1, 2, 3]],
        [{0, 1}, {0, 1, 2}, {0}, set()],
        popularity=[10, 4, 6, 2, 0],
    )
