"""SASRec end to end against loops over its equations."""

from __future__ import annotations

import pytest
import torch

from mmbench.errors import ConfigError

SMALL = {"embedding_size": 4, "max_length": 5, "dropout": 0.0}


@pytest.mark.parametrize(("n_layers", "n_heads"), [(1, 1), (2, 2)])
def test_loss_gradients_and_scores_equal_the_loops(
    n_layers, n_heads, build, train, batch, sequences, literal, equals_the_loops
):
    model = build("sasrec", train, [], n_layers=n_layers, n_heads=n_heads, **SMALL).double()
    w = literal.leaves(model)

    def hidden(items):
        zero = torch.zeros(4, dtype=torch.float64)
        x = [zero if item == 10 else w["table.weight"][item] for item in items]
        real = [item != 10 for item in items]
        return literal.sasrec(w, "encoder.", x, real, n_layers, n_heads)

    equals_the_loops(model, w, hidden, "bce", batch, sequences)


def test_it_starts_as_published(build, train):
    model = build("sasrec", train, [], embedding_size=128, max_length=50)
    for weight, rows in (
        (model.encoder.positions.weight, 50),
        (model.encoder.blocks[0].attention.query.weight, 128),
        (model.encoder.blocks[1].outer.weight, 512),
    ):
        expected = (2 / (rows + 128)) ** 0.5
        assert float(weight.detach().std()) == pytest.approx(expected, rel=0.05)


def test_heads_that_do_not_divide_the_size(build, train):
    with pytest.raises(ConfigError, match=r"model\.n_heads"):
        build("sasrec", train, [], embedding_size=10, n_heads=3)
