"""The contrast, the softmax over all items, and how stored vectors are joined."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from pathlib import Path

import pytest
import torch

from mmbench.models.sequential.cosine import slot_contrast, softmax_over_all, stored_vectors

spec = importlib.util.spec_from_file_location(
    "literal_cosine", Path(__file__).with_name("literal_cosine.py")
)
literal = importlib.util.module_from_spec(spec)
spec.loader.exec_module(literal)

REAL = torch.tensor([[1, 1], [0, 1], [1, 1]]).bool()
TARGETS = torch.tensor([[2, 0], [5, 0], [1, 3]])  # users 0 and 1 share the last target


def vectors(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)


def test_softmax_over_all_items_equals_loops():
    users, items = vectors(3, 2, 4), vectors(6, 4, seed=1)
    targets = TARGETS.where(REAL, torch.tensor(6))  # padding, which is no row of the items
    losses = []
    for b in range(3):
        for t in range(2):
            if REAL[b, t]:
                logits = [sum(users[b, t] * items[i]) for i in range(6)]
                total = sum(torch.exp(x) for x in logits)
                losses.append(-torch.log(torch.exp(logits[targets[b, t]]) / total))
    expected = sum(losses) / len(losses)
    found = softmax_over_all(users, items, targets, REAL)
    torch.testing.assert_close(found, expected)
    for one, two in zip(
        torch.autograd.grad(found, [users, items]),
        torch.autograd.grad(expected, [users, items]),
        strict=True,
    ):
        torch.testing.assert_close(one, two)


def test_softmax_of_zero_vectors_is_the_logarithm_of_the_items_and_of_nothing_zero():
    users, items = torch.zeros(3, 2, 4), torch.zeros(6, 4)
    found = softmax_over_all(users, items, TARGETS, REAL)
    assert float(found) == pytest.approx(math.log(6), rel=1e-6)
    nothing = softmax_over_all(users, items, TARGETS, torch.zeros_like(REAL))
    assert float(nothing) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("with_fakes", [False, True])
def test_the_contrast_equals_loops(with_fakes):
    users, keys, fakes = vectors(3, 2, 4), vectors(3, 2, 4, seed=1), vectors(3, 2, 4, seed=2)
    rows = [
        (b, t, users[b, t], keys[b, t], int(TARGETS[b, t]))
        for b in range(3)
        for t in range(2)
        if REAL[b, t]
    ]
    fake = (lambda user, slot: fakes[user, slot]) if with_fakes else None
    expected = literal.contrast(rows, literal.dot, fake)
    found = slot_contrast(users, keys, TARGETS, REAL, fakes if with_fakes else None)
    torch.testing.assert_close(found, expected)
    given = [users, keys, fakes] if with_fakes else [users, keys]
    for one, two in zip(
        torch.autograd.grad(found, given), torch.autograd.grad(expected, given), strict=True
    ):
        torch.testing.assert_close(one, two)


def test_a_user_alone_in_a_slot_has_nobody_to_be_told_from():
    users, keys = vectors(1, 2, 4), vectors(1, 2, 4, seed=1)
    found = slot_contrast(users, keys, TARGETS[:1], REAL[:1])
    torch.testing.assert_close(found, torch.zeros((), dtype=torch.float64))


def test_padding_is_read_neither_as_user_nor_as_key():
    users, keys = vectors(3, 2, 4), vectors(3, 2, 4, seed=1)
    found = slot_contrast(users, keys, TARGETS, REAL)
    other = keys.detach().clone()
    other[1, 0] = 1e6
    torch.testing.assert_close(slot_contrast(users, other, TARGETS, REAL), found)
    nobody = slot_contrast(users, keys, TARGETS, torch.zeros_like(REAL))
    (slope,) = torch.autograd.grad(nobody, users)
    assert float(nobody.detach()) == 0.0
    assert float(slope.abs().max()) == 0.0


def test_stored_vectors_stand_side_by_side():
    one, two = literal.texts(), literal.texts(width=2, modality="joint", seed=4)
    present = torch.tensor([1, 1, 0, 1, 0, 1, 1]).bool()
    one = dataclasses.replace(one, present=present)
    two = dataclasses.replace(two, present=torch.arange(7) == 2)
    matrix, known = stored_vectors("vqrec", [one, two])
    assert torch.equal(matrix, torch.cat([one.matrix, two.matrix], dim=1))
    assert known.tolist() == [True, True, True, True, False, True, True]
