"""NextItNet end to end against loops over its equations."""

from __future__ import annotations

import pytest
import torch

SMALL = {"embedding_size": 4, "max_length": 5}


@pytest.mark.parametrize("loss", ["bce", "softmax"])
def test_loss_gradients_and_scores_equal_the_loops(
    loss, build, train, batch, sequences, literal, equals_the_loops
):
    model = build("nextitnet", train, [], n_layers=1, loss=loss, **SMALL).double()
    w = literal.leaves(model)

    def hidden(items):
        zero = torch.zeros(4, dtype=torch.float64)
        x = [zero if item == 10 else w["table.weight"][item] for item in items]
        return literal.nextitnet(w, "encoder.", x, 1)

    equals_the_loops(model, w, hidden, loss, batch, sequences)


def test_it_has_no_dropout_to_set(build, train):
    with pytest.raises(ValueError, match="dropout"):
        build("nextitnet", train, [], dropout=0.1)


def test_the_published_depth_is_the_default(build, train):
    model = build("nextitnet", train, [])
    assert [block.first.dilation[0] for block in model.encoder.blocks] == [1, 4, 1, 4]
