"""GRURec end to end against loops over its equations."""

from __future__ import annotations

import pytest
import torch

SMALL = {"embedding_size": 4, "max_length": 5, "dropout": 0.0}


@pytest.mark.parametrize("loss", ["bce", "softmax"])
def test_loss_gradients_and_scores_equal_the_loops(
    loss, build, train, batch, sequences, literal, equals_the_loops
):
    model = build("grurec", train, [], n_layers=2, loss=loss, **SMALL).double()
    w = literal.leaves(model)

    def hidden(items):
        zero = torch.zeros(4, dtype=torch.float64)
        x = [zero if item == 10 else w["table.weight"][item] for item in items]
        return literal.grurec(w, "encoder.", x, 2)

    equals_the_loops(model, w, hidden, loss, batch, sequences)


def test_a_user_without_history_has_the_vector_zero(build, train):
    model = build("grurec", train, [], **SMALL).eval()
    assert not model.represent(model.catalogue(), torch.full((1, 5), 10)).any()


def test_the_published_depth_is_the_default(build, train):
    assert build("grurec", train, []).encoder.layers.num_layers == 4
