import pytest

from mmbench.data.split_requests import PARAMETERS, SplitRequest, with_seeds
from mmbench.data.splits import RULES
from mmbench.errors import ConfigError, UnknownNameError


def test_every_rule_has_its_parameters_and_the_other_way_round():
    assert set(PARAMETERS) == set(RULES)


def test_a_request_is_read_and_named():
    assert SplitRequest.parse("random_per_user").name == "random-per-user"
    assert SplitRequest.parse("random-per-user:odd_to=test").name == "random-per-user"
    both = SplitRequest.parse("random-per-user:seed=7,odd_to=valid")
    assert both.name == "random-per-user.odd_to-valid.seed-7"
    cold = SplitRequest.parse("cold_sequences:positions=all,below=10")
    assert cold.name == "cold-sequences.positions-all"
    assert SplitRequest.parse("cold-items:seed=1").name == "cold-items.seed-1"


def names(requests):
    return [request.name for request in requests]


def test_several_seeds_repeat_the_rules_that_draw():
    texts = ["random-per-user:odd_to=valid", "leave-one-out", "cold-items", "random-global:seed=5"]
    requests = [SplitRequest.parse(text) for text in texts]
    assert names(with_seeds(requests, [0, 7, 0])) == [
        "random-per-user.odd_to-valid.seed-0",
        "random-per-user.odd_to-valid.seed-7",
        "leave-one-out",
        "cold-items.seed-0",
        "cold-items.seed-7",
        "random-global.seed-5",  # its own seed stays
    ]
    assert with_seeds(requests, []) == requests
    twice = [SplitRequest.parse("random-global"), SplitRequest.parse("random-global:seed=1")]
    assert names(with_seeds(twice, [1])) == ["random-global.seed-1"]


@pytest.mark.parametrize(
    ("rule", "seeds", "message"),
    [
        ("random-global", [0, -1], "split seed -1 must be a whole number from 0"),
        ("random-global", [1.5], "split seed 1.5 must be"),
        ("random-global", [True], "split seed True must be"),
        ("leave-one-out", [0, 1], "no requested split draws at random; add one of --split random"),
    ],
)
def test_seeds_that_cannot_be_are_refused(rule, seeds, message):
    with pytest.raises(ConfigError, match=f"E274 .*{message}"):
        with_seeds([SplitRequest.parse(rule)], seeds)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("leave-one-ot", UnknownNameError, 'Did you mean "leave-one-out"'),
        ("random-global:sed=1", UnknownNameError, 'Did you mean "seed"'),
        ("random-global:seed=x", ConfigError, "seed=x must be a whole number from 0"),
        ("random-per-user:odd_to=train", ConfigError, "odd_to=train must be test or valid"),
        ("global-temporal:drop_new_users=1", ConfigError, "must be true or false"),
        ("cold-sequences:positions=any", ConfigError, "positions=any must be heldout or all"),
        ("cold-sequences:below=0", ConfigError, "below=0 must be a whole number from 1"),
        ("cold-items:seed=-1", ConfigError, "seed=-1 must be a whole number from 0"),
    ],
)
def test_a_wrong_request_is_refused(text, error, message):
    with pytest.raises(error, match=message):
        SplitRequest.parse(text)
