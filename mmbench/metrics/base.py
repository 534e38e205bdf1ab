"""The registry of metrics, and how a metric's name with its cut-off is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mmbench.errors import ConfigError
from mmbench.metrics.lists import FloatArray, RankedLists
from mmbench.registry import Registry

MetricFunction = Callable[[RankedLists, int], FloatArray]
METRICS: Registry[MetricFunction] = Registry("metric", "mmbench.metrics", "register_metric")


def register_metric(
    name: str, *, label: str, per_user: bool = True, higher_is_better: bool | None = True
) -> Callable[[MetricFunction], MetricFunction]:
    """Register a function (lists, k) -> one value per user [U], or one value [1] for the system.

    Args:
        name: the name in recipes; the file name.
        label: how tables head its column, for example "Recall".
        per_user: whether it has one value per user; a metric of the whole system has one
            value [1] and is never tested for significance.
        higher_is_better: True where more is better, False where less is, None where neither
            is: such a metric describes a system, and nothing is selected or failed by it.
    """
    return METRICS.register(name, label=label, per_user=per_user, higher_is_better=higher_is_better)


@dataclass(frozen=True, order=True)
class Metric:
    """A metric at a cut-off, for example recall@20."""

    name: str
    k: int

    def __str__(self) -> str:
        return f"{self.name}@{self.k}"

    @property
    def label(self) -> str:
        """Column head, for example "Recall@20"."""
        return f"{METRICS.get(self.name).info['label']}@{self.k}"

    @property
    def per_user(self) -> bool:
        """Whether it has one value per user, and so can be tested."""
        return bool(METRICS.get(self.name).info["per_user"])

    @property
    def higher_is_better(self) -> bool | None:
        """Whether a larger value is better; None where neither direction is."""
        direction = METRICS.get(self.name).info["higher_is_better"]
        return None if direction is None else bool(direction)

    def values(self, lists: RankedLists) -> FloatArray:
        """One value per user [U], or one value [1] for a metric of the whole system.

        Raises:
            ConfigError: the lists are shorter than k.
        """
        if self.k > lists.depth:
            raise ConfigError(
                f"{self} needs lists of {self.k} items, but only {lists.depth} were stored; "
                f"choose k <= {lists.depth}, or train again with a larger evaluation.depth"
            )
        return METRICS.get(self.name).obj(lists, self.k)


def parse_metric(text: str) -> Metric:
    """Read "ndcg@20".

    Raises:
        ConfigError: it is not NAME@K with K >= 1.
        UnknownNameError: there is no such metric.
    """
    name, at, k = text.strip().lower().partition("@")
    METRICS.get(name)
    if not at or not k.isdecimal() or int(k) < 1:
        raise ConfigError(f'metric {text!r} needs a cut-off: write for example "{name}@20"')
    return Metric(name.replace("_", "-"), int(k))
