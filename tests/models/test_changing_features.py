"""Models that are given rows of an encoder that learns: value and gradient of a step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from mmbench.models.base import ItemEncoder, ItemFeatures, Recommender
from mmbench.models.fusion import FeatureTables

SETTINGS = {
    "grcn": {"embedding_size": 4},
    "dragon": {"embedding_size": 4, "hidden_size": 5, "k": 3, "user_k": 3},
    "dualgnn": {"embedding_size": 4, "hidden_size": 5, "user_k": 3},
    "micro": {"embedding_size": 4, "k": 3, "regularization": 0.01},
    "mmssl": {"embedding_size": 4, "n_heads": 2, "edge_rate": 0.3, "adversary_weight": 0.5},
}
CHOSEN = torch.tensor([6, 0, 4])


class Linear(ItemEncoder):
    """An encoder of one layer over what the items hold."""

    def __init__(self, modality: str, held: Tensor) -> None:
        super().__init__()
        self.modality, self.width = modality, held.shape[1]
        self.learning = nn.Linear(held.shape[1], held.shape[1], bias=False)
        with torch.no_grad():
            self.learning.weight.copy_(torch.eye(held.shape[1]))
        self.register_buffer("held", held.clone(), persistent=False)

    def vectors(self, items: Tensor) -> Tensor:
        found: Tensor = self.learning(self.held[items])
        return found


def live(given: list[ItemFeatures]) -> list[ItemFeatures]:
    return [replace(g, encoder=Linear(g.modality, g.matrix)) for g in given]


def tables_of(model: Recommender) -> list[FeatureTables]:
    return [part for part in model.modules() if isinstance(part, FeatureTables)]


def step(model: Recommender, batch: object) -> Tensor:
    """The loss of a step, with the same draws every time."""
    torch.manual_seed(5)
    return torch.stack(list(model.training_step(batch).values())).sum()


@pytest.mark.parametrize("name", SETTINGS)
def test_an_encoder_that_has_not_moved_changes_nothing(build, train, given, batch, name):
    frozen = {"freeze_features": True} if name == "micro" else {}
    rebuild = {"rebuild": "batch"} if name == "micro" else {}
    still = build(name, train, given, **SETTINGS[name], **frozen, **rebuild)
    moving = build(name, train, live(given), **SETTINGS[name], **rebuild)
    assert type(moving).reads_features == "all"
    own = {key: value for key, value in moving.state_dict().items() if ".learning." not in key}
    assert list(own) == list(still.state_dict())
    assert all(torch.equal(value, still.state_dict()[key]) for key, value in own.items())
    with torch.no_grad():
        assert all(map(torch.equal, moving.vectors(), still.vectors()))
    for model in (moving, still):
        model.on_epoch_start(1)
    assert torch.equal(step(moving, batch), step(still, batch))


@pytest.mark.parametrize("name", SETTINGS)
def test_rows_that_are_given_have_the_gradient_of_the_table(build, train, given, batch, name):
    model = build(name, train, live(given), **SETTINGS[name]).double().train()
    model.on_epoch_start(1)
    generator = torch.Generator().manual_seed(3)
    moved: dict[str, Tensor] = {}
    for tables in tables_of(model):
        for modality in tables.modalities:
            rows = tables.table(modality).clone()
            rows[CHOSEN] += 0.1 * torch.randn(3, rows.shape[1], generator=generator).double()
            moved[modality] = rows

    def loss(values: dict[str, Tensor], items: Tensor | None) -> Tensor:
        for tables in tables_of(model):
            for modality in tables.modalities:
                tables.give(modality, items, values[modality])
        total = step(model, batch)
        for tables in tables_of(model):
            tables.withdraw()
        return total

    some = {m: rows[CHOSEN].clone().requires_grad_() for m, rows in moved.items()}
    every = {m: rows.clone().requires_grad_() for m, rows in moved.items()}
    first, second = loss(some, CHOSEN), loss(every, None)
    assert torch.allclose(first, second, atol=1e-12)
    of_some = torch.autograd.grad(first, list(some.values()))
    of_every = torch.autograd.grad(second, list(every.values()))
    for part, whole in zip(of_some, of_every, strict=True):
        assert torch.allclose(part, whole[CHOSEN], atol=1e-10)
        assert float(part.abs().max()) > 1e-9
    if name == "mmssl":
        return  # what goes through its discriminator is turned round: no gradient of a loss
    direction = {m: torch.randn(3, rows.shape[1], generator=generator).double() for m, rows in
                 some.items()}  # fmt: skip
    ahead, behind = (
        loss({m: rows.detach() + scale * direction[m] for m, rows in some.items()}, CHOSEN)
        for scale in (1e-6, -1e-6)
    )
    slope = sum(
        float((gradient * direction[m]).sum()) for m, gradient in zip(some, of_some, strict=True)
    )
    assert float((ahead - behind).detach()) / 2e-6 == pytest.approx(slope, rel=1e-4, abs=1e-8)


def test_micro_needs_a_graph_that_an_encoder_can_learn_by(build, train, given):
    from mmbench.errors import ConfigError

    with pytest.raises(ConfigError, match=r"model\.raw_weight: 1 leaves nothing"):
        build("micro", train, live(given), raw_weight=1.0)
