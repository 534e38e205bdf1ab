"""VQ-Rec against loops over its equations; its codes, its options and what it refuses."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from mmbench.errors import ConfigError, DataError
from mmbench.models.base import ItemEncoder
from mmbench.models.sequential.vqrec import VQRec, VQRecConfig

spec = importlib.util.spec_from_file_location(
    "literal_cosine", Path(__file__).with_name("literal_cosine.py")
)
literal = importlib.util.module_from_spec(spec)
spec.loader.exec_module(literal)

SIZES = {
    "embedding_size": 4,
    "inner_size": 6,
    "n_layers": 2,
    "max_length": literal.LENGTH,
    "dropout": 0.0,
    "n_parts": 3,
    "n_centroids": 4,
    "rotation_rounds": 3,
}
AUTHORS = {"similarity": "cosine", "loss": "softmax"}
CONTRAST = {"similarity": "cosine", "objective": "contrast"}


def made(seed=0, given=None, train=None, **settings):
    torch.manual_seed(seed)
    return VQRec(
        VQRecConfig(**{**SIZES, **settings}),
        literal.world() if train is None else train,
        [literal.texts()] if given is None else given,
    )


def item_of(model, p):
    """e(i) by the equation: the mean over parts k of row k M + c_{i,k} of V."""
    codes, size = model.codes.tolist(), model.config.n_centroids

    def item(i, own=None):
        chosen = codes[i] if own is None else own
        return sum(p["table"][k * size + c] for k, c in enumerate(chosen)) / len(chosen)

    return item


SCORES = {
    "dot": literal.dot,
    "cosine": lambda a, b: literal.cosine(a, b, 0.07),
}


@pytest.mark.parametrize(
    ("similarity", "loss"),
    [("dot", "bce"), ("dot", "softmax"), ("cosine", "bce"), ("cosine", "softmax")],
)
def test_losses_and_gradients_equal_loops_over_the_equations(similarity, loss):
    model = literal.disturbed(made(similarity=similarity, loss=loss))
    p = literal.parameters(model)
    compute = {"bce": literal.bce_loss, "softmax": literal.softmax_loss}[loss]
    expected = compute(p, item_of(model, p), SCORES[similarity], 2, 2)
    terms = model.training_step(literal.batch())
    assert list(terms) == [loss]
    literal.assert_same(model, terms[loss], p, expected)


def test_the_contrast_with_fakes_equals_loops_over_the_equations(monkeypatch):
    model = literal.disturbed(made(**CONTRAST))
    codes = torch.randint(4, (16, 3), generator=torch.Generator().manual_seed(1)).int()
    monkeypatch.setattr(model, "fake_codes", lambda items: codes)
    p = literal.parameters(model)
    item = item_of(model, p)
    rows = [
        (user, slot, h, item(target), target)
        for user, slot, h, target in literal.positions(p, item, 2, 2)
    ]

    def fake(user, slot):
        return item(None, own=codes[user * literal.LENGTH + slot].tolist())

    expected = literal.contrast(rows, SCORES["cosine"], fake)
    terms = model.training_step(literal.batch())
    literal.assert_same(model, terms["contrast"], p, expected)


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_scores_equal_loops_over_the_equations(similarity):
    model = literal.disturbed(made(similarity=similarity, loss="softmax")).eval()
    p = {name: value.detach() for name, value in literal.parameters(model).items()}
    item = item_of(model, p)
    inputs = literal.batch().inputs
    with torch.no_grad():
        scores = model.score(model.catalogue(), inputs)
    for user, items in enumerate(literal.HISTORIES):
        h = literal.encoder(p, [item(i) for i in items[:-1]], 2, 2)[-1]
        for i in range(literal.N_ITEMS):
            expected = float(SCORES[similarity](h, item(i)))
            assert float(scores[user, i]) == pytest.approx(expected, rel=1e-6)
    assert model.factors == (similarity == "dot")


def test_codes_are_those_of_a_quantiser_of_the_trained_items_alone():
    features = literal.texts()
    moved = dataclasses.replace(features, matrix=features.matrix.clone())
    moved.matrix[6] = 100.0  # nobody's item
    one, two = made(), made(given=[moved])
    for a, b in zip(one.quantiser.buffers(), two.quantiser.buffers(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(one.codes[:6], two.codes[:6])
    assert torch.equal(one.codes.long(), one.quantiser.quantise(features.matrix))


def test_an_item_without_text_is_coded_but_not_fitted():
    features = literal.texts()
    present = torch.ones(7).bool()
    present[2] = False
    one, two = (
        dataclasses.replace(features, matrix=features.matrix.clone(), present=present)
        for _ in range(2)
    )
    two.matrix[2] = -50.0
    first, second = made(given=[one]), made(given=[two])
    for a, b in zip(first.quantiser.buffers(), second.quantiser.buffers(), strict=True):
        assert torch.equal(a, b)
    assert first.codes.shape == (7, 3)


def test_another_order_of_items_gives_the_codes_in_that_order():
    train, features = literal.world(), literal.texts()
    order = torch.tensor([3, 0, 6, 5, 1, 2, 4])  # new item j is the old order[j]
    place = order.argsort()
    items, rows = place[train.items], features.matrix[order]
    other = made(
        train=dataclasses.replace(train, items=items),
        given=[dataclasses.replace(features, matrix=rows)],
    )
    assert torch.equal(other.codes, made().codes[order])


def test_one_seed_one_model_and_another_seed_other_codes():
    texts = [literal.texts(width=8, n_items=200)]
    users = torch.arange(200) // 2
    train = dataclasses.replace(
        literal.world(), n_users=100, n_items=200, users=users, items=torch.arange(200)
    )
    one, two, other = (made(seed, given=texts, train=train) for seed in (0, 0, 1))
    for (name, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(one.codes, other.codes)


def test_stored_weights_bring_their_codes():
    model, other = made(0).eval(), made(1).eval()
    other.load_state(load(save({k: v.contiguous() for k, v in model.state_dict().items()})))
    assert torch.equal(model.codes, other.codes)
    inputs = literal.batch().inputs
    with torch.no_grad():
        assert torch.equal(
            model.score(model.catalogue(), inputs), other.score(other.catalogue(), inputs)
        )
        torch.testing.assert_close(
            model.new_items(literal.texts().matrix), other.new_items(literal.texts().matrix)
        )


def test_a_new_item_is_coded_and_looked_up():
    model = made().eval()
    with torch.no_grad():
        torch.testing.assert_close(model.new_items(literal.texts().matrix), model.catalogue())
        new = model.new_items(torch.full((2, literal.WIDTH), 0.3))
        assert new.shape == (2, 4)
        torch.testing.assert_close(new[0], new[1])


def test_fakes_keep_a_quarter_of_the_codes_and_draw_the_others():
    model = made(n_parts=5)
    items = torch.full((4000,), 2)
    torch.manual_seed(0)
    fakes = model.fake_codes(items)
    kept = (fakes == model.codes[2]).double().mean()
    n_centroids = model.quantiser.n_centroids
    assert float(kept) == pytest.approx(0.25 + 0.75 / n_centroids, abs=0.02)
    assert set(fakes.unique().tolist()) == set(range(n_centroids))
    assert torch.equal(made(n_parts=5, fake_share=0.0).fake_codes(items), model.codes[items])
    model.fake_codes(torch.tensor([literal.N_ITEMS]))  # padding has a fake too, which is unread


def test_a_frozen_encoder_leaves_only_its_norm_to_learn():
    model = made(freeze_encoder=True)
    learns = {name for name, value in model.named_parameters() if value.requires_grad}
    assert learns == {"table", "encoder.norm.weight", "encoder.norm.bias"}
    sum(model.training_step(literal.batch()).values()).backward()
    assert float(model.table.grad.abs().max()) > 0
    assert model.encoder.positions.weight.grad is None


def test_two_feature_sets_are_read_side_by_side():
    both = [literal.texts(), literal.texts(width=4, modality="joint", seed=5)]
    model = made(given=both)
    joined = torch.cat([features.matrix for features in both], dim=1)
    assert torch.equal(model.quantiser.quantise(joined).int(), model.codes)


def test_training_lowers_the_loss():
    for settings in (AUTHORS, CONTRAST, {}):
        model = made(**settings)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        losses = []
        for _ in range(20):
            loss = sum(model.training_step(literal.batch()).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_bad_settings_and_inputs_are_refused():
    with pytest.raises(ValueError, match="does not divide into n_heads 2"):
        VQRecConfig(embedding_size=5)
    with pytest.raises(ValueError, match="set similarity: dot"):
        VQRecConfig(similarity="cosine", loss="in-batch")
    with pytest.raises(ValueError, match="set similarity: cosine"):
        VQRecConfig(objective="contrast")
    with pytest.raises(ConfigError, match=r"give features\.textual"):
        made(given=[])
    encoder = ItemEncoder()
    learns = dataclasses.replace(literal.texts(), matrix=torch.zeros(7, 0), encoder=encoder)
    with pytest.raises(ConfigError, match=r"in place of encoders\.textual"):
        made(given=[learns])
    without = dataclasses.replace(literal.texts(), present=torch.zeros(7).bool())
    with pytest.raises(DataError, match="no item of the training interactions has a text"):
        made(given=[without])
    model = made()
    with pytest.raises(DataError, match="do not fit this VQRec"):
        model.load_state(made(n_parts=5).state_dict())
