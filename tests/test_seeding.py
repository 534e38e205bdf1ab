from __future__ import annotations

import random

import numpy as np
import torch

from mmbench import seeding


def test_equal_seed_and_purpose_give_equal_streams() -> None:
    first, second = (seeding.stream(7, "init").random(5) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_purposes_and_seeds_are_independent_streams() -> None:
    draws = [
        seeding.stream(seed, *purpose).integers(2**62)
        for seed in (0, 1)
        for purpose in (("init",), ("sampling",), ("in", "it"), ("init", ""))
    ]
    assert len(set(draws)) == len(draws)


def test_integers_fit_a_generator_of_any_library() -> None:
    for seed in (0, 1, 2**63 - 1):
        value = seeding.integer(seed, "sampling")
        assert 0 <= value < 2**63
        torch.Generator().manual_seed(value)


def test_the_global_generators_are_seeded_together() -> None:
    def draws() -> tuple[float, float, float]:
        seeding.seed_globals(3, "init")
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    assert draws() == draws()
