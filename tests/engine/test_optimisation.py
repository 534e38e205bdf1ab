"""Which parameters learn, and at which rate."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from mmbench.engine.device import choose
from mmbench.engine.optimisation import make_optimizer, parameter_groups
from mmbench.engine.step import Step
from mmbench.models.base import Batch, ItemEncoder, Recommender
from mmbench.recipe_keys import Training


class Encoder(ItemEncoder):
    """Two layers, of which the first one does not learn."""

    modality, width = "textual", 3

    def __init__(self) -> None:
        super().__init__()
        self.lower, self.upper = nn.Linear(3, 3), nn.Linear(3, 3)
        self.lower.requires_grad_(False)

    def forward(self, items: Tensor) -> tuple[Tensor, Tensor]:
        states = self.upper(self.lower(torch.eye(3)[items]))[:, None]
        return states, torch.ones(len(items), 1, dtype=torch.bool)


class Model(Recommender):
    """A table of users beside what an encoder makes of the items."""

    def __init__(self, encoder: ItemEncoder | None) -> None:
        super().__init__()
        self.users = nn.Parameter(torch.randn(4, 3))
        self.encoder = encoder
        self.items = nn.Parameter(torch.randn(3, 3))

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        items = self.items[batch.positives]
        if self.encoder is not None:
            items = items + self.encoder(batch.positives)[0][:, 0]
        return {"loss": (self.users[batch.users] * items).sum(dim=1).square().mean()}


def batch() -> Batch:
    users = torch.tensor([0, 1, 2, 3, 0])
    return Batch(users, torch.tensor([0, 1, 2, 0, 1]), torch.tensor([1, 2, 0, 1, 2]))


def test_encoders_have_rates_and_decays_of_their_own() -> None:
    model = Model(Encoder())
    training = Training(
        learning_rate=0.1, weight_decay=0.2, encoder_learning_rate=0.01, encoder_weight_decay=0.3
    )
    own, of_encoder = parameter_groups(model, training)
    assert [id(p) for p in own["params"]] == [id(model.users), id(model.items)]
    assert (own["lr"], own["weight_decay"]) == (0.1, 0.2)
    upper = model.encoder.upper
    assert [id(p) for p in of_encoder["params"]] == [id(upper.weight), id(upper.bias)]
    assert (of_encoder["lr"], of_encoder["weight_decay"]) == (0.01, 0.3)


def test_without_a_rate_of_its_own_an_encoder_learns_at_the_models() -> None:
    groups = parameter_groups(Model(Encoder()), Training(learning_rate=0.1, weight_decay=0.2))
    assert [group["lr"] for group in groups] == [0.1, 0.1]
    assert [group["weight_decay"] for group in groups] == [0.2, 0.0]


def test_an_encoder_that_does_not_learn_has_no_group() -> None:
    model = Model(Encoder().requires_grad_(False))
    assert len(parameter_groups(model, Training())) == 1


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "adagrad"])
def test_a_step_moves_each_group_at_its_rate_and_nothing_else(name: str) -> None:
    torch.manual_seed(0)
    model = Model(Encoder())
    before = copy.deepcopy(model)
    training = Training(
        optimizer=name, learning_rate=0.1, encoder_learning_rate=1e-4, encoder_weight_decay=0.5
    )
    step = Step(model, training, choose("cpu"))
    step.set_rate(0.5)
    assert [group["lr"] for group in step.optimizer.param_groups] == [0.05, 5e-5]
    step(batch())
    assert torch.equal(model.encoder.lower.weight, before.encoder.lower.weight)
    # The same step by two plain optimisers, one for each group.
    plain = {
        "adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD,
        "adagrad": torch.optim.Adagrad,
    }[name]  # fmt: skip
    before.training_step(batch())["loss"].backward()
    plain([before.users, before.items], lr=0.05, weight_decay=0).step()
    plain(before.encoder.upper.parameters(), lr=5e-5, weight_decay=0.5).step()
    for parameter, expected in zip(model.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=1e-6, atol=1e-7)


def test_the_schedule_does_not_add_up() -> None:
    step = Step(Model(Encoder()), Training(learning_rate=0.1), choose("cpu"))
    for factor in (0.5, 0.5, 0.25):
        step.set_rate(factor)
    assert [group["lr"] for group in step.optimizer.param_groups] == [0.025, 0.025]


def test_without_encoders_all_is_one_group_in_the_models_order() -> None:
    model = Model(None)
    (group,) = make_optimizer(model, Training(weight_decay=0.3)).param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]
    assert group["weight_decay"] == 0.3
