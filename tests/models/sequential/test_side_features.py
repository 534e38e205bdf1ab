"""Stored features beside ids, and which items a batch asks for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mmbench.models.base import ItemFeatures
from mmbench.models.sequential.side_features import SideFeatures, distinct_items


def feature_set(modality, matrix):
    return ItemFeatures(f"{modality}__made", modality, matrix, torch.ones(len(matrix)).bool())


def test_rows_are_those_given_side_by_side_and_never_learn():
    visual, textual = torch.randn(4, 3), torch.randn(4, 2)
    given = [feature_set("visual", visual), feature_set("textual", textual)]
    features = SideFeatures(given, "made")
    items = torch.tensor([3, 0, 3])
    assert (len(features), features.widths) == (2, {"visual": 3, "textual": 2})
    torch.testing.assert_close(features.rows("textual", items), textual[items])
    torch.testing.assert_close(
        features.joined(items), torch.cat([visual[items], textual[items]], dim=1)
    )
    assert not list(features.parameters())
    assert not features.state_dict()  # a run's weights hold no copy of the features


def test_half_precision_features_are_read_as_float32():
    features = SideFeatures([feature_set("visual", torch.randn(4, 3).half())], "made")
    assert features.rows("visual", torch.tensor([1])).dtype == torch.float32


@pytest.mark.parametrize("n_items", [3, 6, 7, 100])
@pytest.mark.parametrize(
    "rows",
    [[[2, 0, 2], [-1, 1, 0]], [[-1, -1, -1], [-1, 1, 1]], [[0, 1, 2], [2, 1, 0]]],
)
def test_every_slot_finds_its_item_once_encoded(n_items, rows):
    slots = torch.tensor(rows)
    slots[slots < 0] = n_items
    items, place = distinct_items(slots, n_items)
    assert len(items) == len(items.unique()) <= max(slots.numel(), n_items)
    assert n_items <= slots.numel() or len(items) == len(slots[slots < n_items].unique())
    table = torch.randn(n_items, 2)
    found = F.embedding(place, F.pad(table[items], (0, 0, 0, 1)))
    torch.testing.assert_close(found, F.pad(table, (0, 0, 0, 1))[slots])


def test_without_counting_each_slot_is_its_own_item():
    slots = torch.tensor([[50, 50, 4], [7, 4, 49]])
    items, place = distinct_items(slots, 50, counting=False)
    assert items[place[slots < 50]].tolist() == [4, 7, 4, 49]
    assert (place[slots == 50] == len(items)).all()


def test_padding_alone_asks_for_nothing():
    items, place = distinct_items(torch.full((2, 3), 50), 50)
    assert len(items) == 0
    assert (place == 0).all()
