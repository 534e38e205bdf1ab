"""Randomness: one independent stream per purpose, spawned from the recipe's seed.

One more draw in one stream leaves every other stream unchanged. This file alone touches the
global generators.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np


def spawn(seed: int, *purpose: str) -> np.random.SeedSequence:
    """The seed sequence of one purpose, a function of `seed` and the words alone."""
    digest = hashlib.blake2b("\x1f".join(purpose).encode(), digest_size=16).digest()
    words = [int.from_bytes(digest[i : i + 4], "little") for i in range(0, 16, 4)]
    return np.random.SeedSequence([seed, *words])


def stream(seed: int, *purpose: str) -> np.random.Generator:
    """A NumPy generator for one purpose, for example `stream(7, "init")`."""
    return np.random.default_rng(spawn(seed, *purpose))


def integer(seed: int, *purpose: str) -> int:
    """A 63-bit seed for one purpose, for libraries that take an integer."""
    return int(spawn(seed, *purpose).generate_state(1, np.uint64)[0] >> np.uint64(1))


def seed_globals(seed: int, *purpose: str) -> None:
    """Seed Python's, NumPy's and torch's global generators, which libraries draw from."""
    import torch

    value = integer(seed, *purpose)
    random.seed(value)
    np.random.seed(value % 2**32)  # noqa: NPY002 - libraries still read the legacy state
    torch.manual_seed(value)
