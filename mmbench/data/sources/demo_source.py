"""A second shop, larger and earlier: other users and items, tastes of the same kinds.

Generated as the demo shop is, from another seed: nobody and nothing occurs in both, and what a
theme is called and how a style looks is the same. So what a model of contents learns here, that
people keep to a few themes and styles, holds there; what a model of IDs learns does not.
"""

from __future__ import annotations

from typing import ClassVar

from mmbench.data.source import register_dataset
from mmbench.data.sources.demo import Demo, DemoConfig


@register_dataset("demo-source")
class DemoSource(Demo):
    """The shop that models are trained on before the demo shop."""

    title = "Demo shop to start from, generated, with planted tastes of the same kinds"
    config: ClassVar[DemoConfig] = DemoConfig(seed=20230517, users=1200, items=800)
