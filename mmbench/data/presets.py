"""How papers prepared their data: settings and splits under one name.

lmm-rec   2310.20343: 5-core, then items without a picture dropped (the core is not taken
          again), 8:1:1 within each user
mm-eval   2508.05377: 5-core; 8:1:1 within each user, and leave-one-out
mmsr      2403.17372: users with fewer than 5 interactions dropped, no core of items;
          leave-one-out, and the sequences that end in rarely seen items
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mmbench.errors import UnknownNameError


@dataclass(frozen=True)
class Preset:
    """Settings of `PrepareConfig` by name, and split rules, the default one first."""

    settings: Mapping[str, object] = field(default_factory=dict)
    splits: tuple[str, ...] = ()


PRESETS: Mapping[str, Preset] = {
    "lmm-rec": Preset(
        {"user_min": 5, "item_min": 5, "require": "image", "when": "after_core"},
        ("random-per-user",),
    ),
    "mm-eval": Preset({"user_min": 5, "item_min": 5}, ("random-per-user", "leave-one-out")),
    "mmsr": Preset({"user_min": 5, "item_min": 0}, ("leave-one-out", "cold-sequences")),
}


def find_preset(name: str) -> Preset:
    """The preset called `name`.

    Raises:
        UnknownNameError: there is none.
    """
    key = name.lower().replace("_", "-")
    if key not in PRESETS:
        raise UnknownNameError("preset", name, PRESETS)
    return PRESETS[key]
