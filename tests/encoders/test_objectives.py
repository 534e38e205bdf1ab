"""The losses of VLMo item by item, in float64 and without padding, from their definitions."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmbench.encoders.contrastive import same_group
from mmbench.encoders.objectives import Draws, Objective, VlmoObjective, refuse_other
from mmbench.encoders.vlmo_base_plus import VlmoBasePlus
from mmbench.encoders.vlmo_model import Vlmo, VlmoShape
from mmbench.errors import ConfigError, DataError, UnknownNameError

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdef", *(f"##{x}" for x in "abcdef")]
SHAPE = VlmoShape(
    width=8, blocks=3, heads=2, vl_from=2, image_size=8, patch_size=4,
    vocabulary=len(PIECES), text_length=6,
)  # fmt: skip
TEXTS = [[2, 5, 3, 0, 0], [2, 6, 12, 7, 3], [2, 8, 9, 3, 0], [2, 10, 11, 3, 0]]
GROUPS = [0, 1, 1, 2]


def encoder(scale: float = 1.2) -> Any:
    """A VLMo with random weights in the place of those of a file."""
    made = VlmoBasePlus()
    model = Vlmo(SHAPE)
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(0.3 * torch.randn(weight.shape, generator=rng))
            if "norm" in name.lower() and name.endswith("weight"):
                weight.add_(1)
        model.logit_scale.fill_(scale)
        model.logit_vl_scale.fill_(0.7)
    made.module = model.eval()
    vocabulary = {piece: number for number, piece in enumerate(PIECES)}
    made.tokenizer = SimpleNamespace(
        get_vocab=lambda: vocabulary, all_special_ids=[0, 1, 2, 3, 4], pad_token_id=0
    )
    return made


@pytest.fixture
def batch() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    ids = torch.tensor(TEXTS)
    pixels = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}, {"pixel_values": pixels}


def draws() -> Draws:
    rng = torch.Generator().manual_seed(2)
    return Draws(torch.rand(2, 4, generator=rng), torch.rand(3, 4, 5, generator=rng))


Inputs = dict[str, torch.Tensor]


def batch_losses(
    objective: Objective, texts: Inputs, pictures: Inputs, groups: torch.Tensor, draws: Draws
) -> dict[str, torch.Tensor]:
    """All losses of a small batch in one go, means, not weighted."""
    same = same_group(groups)
    vectors = objective.vectors(texts, pictures)
    losses = objective.coupled(vectors, same)
    plan = objective.plan(vectors, texts, same, draws)
    sums = objective.apart(plan, texts, pictures, slice(None))
    counts = plan.counts
    return {**losses, **{name: total / max(1, counts[name]) for name, total in sums.items()}}


def softmax_loss(logits: list[float], label: int) -> float:
    top = max(logits)
    return top + math.log(math.fsum(math.exp(x - top) for x in logits)) - logits[label]


def test_losses_equal_the_definitions(batch) -> None:
    texts, pictures = batch
    made = encoder()
    objective = VlmoObjective(made)
    losses = batch_losses(objective, texts, pictures, torch.tensor(GROUPS), draws())
    same = same_group(torch.tensor(GROUPS))
    plan = objective.plan(objective.vectors(texts, pictures), texts, same, draws())

    model = copy.deepcopy(made.module).double()
    ids = [torch.tensor([[i for i in text if i]]) for text in TEXTS]
    pixels = [picture[None].double() for picture in pictures["pixel_values"]]

    def joint(words: torch.Tensor, k: int) -> torch.Tensor:
        return model.joint(words, torch.ones_like(words), pixels[k])

    with torch.no_grad():
        for name, vl, t in (("itc", False, 1.2), ("itc-vl", True, 0.7)):
            part = "_vl" if vl else ""
            seen, read = [], []
            for k in range(4):
                row = model.image(pixels[k], vl_top=vl)[0, 0]
                seen.append(getattr(model, f"itc{part}_image_proj")(row))
                row = model.text(ids[k], torch.ones_like(ids[k]), vl_top=vl)[0, 0]
                read.append(getattr(model, f"itc{part}_text_proj")(row))
            total = 0.0
            for rows, others in ((seen, read), (read, seen)):
                for k in range(4):
                    kept = [j for j in range(4) if j == k or GROUPS[j] != GROUPS[k]]
                    logits = [
                        math.exp(t) * float(rows[k] @ others[j] / rows[k].norm() / others[j].norm())
                        for j in kept
                    ]
                    total += softmax_loss(logits, kept.index(k))
            assert float(losses[name].detach()) == pytest.approx(total / 8, abs=2e-5)

        assert plan.pairs is not None
        pairs = plan.pairs.tolist()
        assert pairs[:4] == [[k, k, 1] for k in range(4)]
        assert [text for text, _, _ in pairs[4:8]] == [0, 1, 2, 3]
        assert [picture for _, picture, _ in pairs[8:]] == [0, 1, 2, 3]
        assert all(GROUPS[text] != GROUPS[picture] for text, picture, _ in pairs[4:])
        total = 0.0
        for text, picture, label in pairs:
            cls = joint(ids[text], picture)[0, 0]
            logits = model.itm_score(torch.tanh(model.pooler.dense(cls))).tolist()
            total += softmax_loss(logits, label)
        assert float(losses["itm"].detach()) == pytest.approx(total / 12, abs=2e-5)

        assert plan.ids is not None
        assert plan.hidden is not None
        assert plan.hidden.any(dim=1).all()
        total, n = 0.0, 0
        for k in range(4):
            words = plan.ids[k][: ids[k].shape[1]][None]
            logits = model.mlm_score(joint(words, k)[0, : words.shape[1]])
            for place in range(words.shape[1]):
                if plan.hidden[k, place]:
                    total += softmax_loss(logits[place].tolist(), int(ids[k][0, place]))
                    n += 1
        assert plan.counts == {"itm": 12, "mlm": n}
        assert float(losses["mlm"].detach()) == pytest.approx(total / n, abs=2e-5)


def test_gradients_equal_differences(batch) -> None:
    texts, pictures = batch
    pictures = {"pixel_values": pictures["pixel_values"].double()}
    made = encoder()
    made.module.double()
    objective = VlmoObjective(made)

    def total() -> torch.Tensor:
        found = batch_losses(objective, texts, pictures, torch.tensor(GROUPS), draws())
        return torch.stack([objective.weights[n] * x.double() for n, x in found.items()]).sum()

    names = objective.learning("full", None)
    total().backward()
    weights = dict(made.module.named_parameters())
    assert {"logit_scale", "logit_vl_scale", "itm_score.fc.weight", "mlm_score.bias"} <= set(names)
    for name in names[::7]:
        weight = weights[name]
        assert weight.grad is not None, name
        place = int(weight.grad.abs().argmax())
        ends = []
        for step in (1e-3, -1e-3):
            with torch.no_grad():
                weight.view(-1)[place] += step
                ends.append(float(total()))
                weight.view(-1)[place] -= step
        slope = (ends[0] - ends[1]) / 2e-3
        # The losses themselves are in float32.
        assert float(weight.grad.view(-1)[place]) == pytest.approx(slope, abs=2e-3, rel=2e-2), name


def test_both_routes_equal_those_of_one_at_a_time(batch) -> None:
    texts, pictures = batch
    model = encoder().module
    ids, mask, pixels = texts["input_ids"], texts["attention_mask"], pictures["pixel_values"]
    with torch.no_grad():
        for vl, found in enumerate(model.text_routes(ids, mask)):
            assert torch.equal(found, model.text(ids, mask, vl_top=bool(vl))[:, 0])
        for vl, found in enumerate(model.image_routes(pixels)):
            assert torch.equal(found, model.image(pixels, vl_top=bool(vl))[:, 0])


def test_one_group_in_a_batch_has_no_negatives_and_no_nan(batch) -> None:
    texts, pictures = batch
    objective = VlmoObjective(encoder())
    losses = batch_losses(objective, texts, pictures, torch.zeros(4), draws())
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert float(losses["itc"].detach()) == pytest.approx(0)


def test_losses_are_chosen_and_temperatures_kept(batch) -> None:
    made = encoder()
    objective = VlmoObjective(made)
    with torch.no_grad():
        made.module.logit_scale.fill_(9.0)
        made.module.logit_vl_scale.fill_(-2.0)
    assert objective.clamp() == {"itc": pytest.approx(100), "itc-vl": pytest.approx(1)}
    objective.choose(("itc", "mlm"))
    assert objective.weights == {"itc": 0.5, "mlm": 0.25}
    losses = batch_losses(objective, *batch, torch.tensor(GROUPS), draws())
    assert set(losses) == {"itc", "mlm"}
    assert not any(name.startswith("itm_score") for name in objective.learning("top", 1))
    assert any(name.startswith("mlm_score") for name in objective.learning("top", 1))
    with pytest.raises(UnknownNameError, match="itx"):
        objective.choose(("itc", "itx"))
    with pytest.raises(ConfigError, match="needs itc"):
        objective.choose(("itm",))
    with pytest.raises(DataError, match="E406 the temperature of these weights exploded"):
        VlmoObjective(encoder(scale=6.0))
    with pytest.raises(DataError, match="E406 the temperature of these weights is nan"):
        VlmoObjective(encoder(scale=math.nan))


def test_encoders_without_a_common_space_are_refused() -> None:
    from mmbench.encoders.base import ENCODERS

    fit = []
    for name in ENCODERS.names():
        try:
            refuse_other(ENCODERS.get(name).obj)
        except (ConfigError, AttributeError):
            continue
        fit.append(name)
    assert {"clip-vit-b16", "siglip-b16", "siglip2-b16", "groupvit", "blip", "flava"} <= set(fit)
    assert "vlmo-base-plus" in fit
    assert not {"minilm-l6", "resnet50", "vilt", "visualbert", "mae-b16"} & set(fit)
