from __future__ import annotations

import pytest

from mmbench.errors import ConfigError, UnknownNameError
from mmbench.metrics.base import METRICS, Metric, parse_metric


def test_a_name_is_read_with_its_cut_off() -> None:
    assert parse_metric(" NDCG@20 ") == Metric("ndcg", 20)
    assert str(Metric("ndcg", 20)) == "ndcg@20"
    assert Metric("ndcg", 20).label == "NDCG@20"


@pytest.mark.parametrize("text", ["ndcg", "ndcg@", "ndcg@0", "ndcg@-1", "ndcg@ten", "ndcg@1.5"])
def test_a_missing_or_odd_cut_off_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match='needs a cut-off: write for example "ndcg@20"'):
        parse_metric(text)


def test_an_unknown_metric_offers_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown metric 'ndgc'\. Did you mean \"ndcg\"\?"):
        parse_metric("ndgc@20")


def test_every_metric_states_its_facts() -> None:
    per_user = {name: Metric(name, 10).per_user for name in METRICS.names()}
    assert per_user.pop("coverage") is False
    assert len(per_user) == 7
    assert all(per_user.values())
    direction = {name: Metric(name, 10).higher_is_better for name in METRICS.names()}
    assert direction.pop("popularity") is None
    assert len(direction) == 7
    assert all(better is True for better in direction.values())
