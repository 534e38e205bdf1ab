"""What every registered model must do, whichever it is; tests/test_registries.py finds them all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from mmbench.errors import ConfigError, DataError
from mmbench.modality import MODALITIES
from mmbench.models.base import MODELS, Batch

# The sequential ones have a face and tests of their own: sequential/test_every_sequential.py.
NAMES = [name for name in MODELS.names() if MODELS.get(name).obj.family == "general"]
SETTINGS = {
    "slim-bpr": {"learning_rate": 0.1, "batch_size": 8},
    "vbpr": {"visual_bias": True},
    "bpr-mf": {"regularization": 0.01},
    "lattice": {"rebuild": "batch"},  # then every step has the gradient of the first
    "micro": {"rebuild": "batch"},
    "mcln": {"counterfactuals": "negatives"},
    # So a step draws nothing, and the contrast leaves the checkerboard's equal users equal.
    "mmgcl": {"dropout": 0.0, "masking": {"visual": 1.0}, "ssl_weight": 0.05},
    "bm3": {"dropout": 0.0},
    "smore": {"dropout": 0.0},
    # Turning gradients round makes them those of no function; its own tests look at each side.
    "mmssl": {"dropout": 0.0, "adversary_weight": 0.0},
    "lgmrec": {"noise": "never", "dropout": 0.0},
    # Gates draw in every step, and each side holds the other still: its own tests look at both.
    "gated-ensemble": {"gate": "fixed"},
}
GRADIENT = [name for name in NAMES if MODELS.get(name).obj.fitting == "gradient"]
# BM3 predicts targets that it holds still, so its loss is not the function whose gradient it
# follows (its own tests hold them still too), and it has no negatives that it could score below.
PAIRWISE = [name for name in GRADIENT if name != "bm3"]
MULTIMODAL = [name for name in NAMES if MODELS.get(name).obj.modalities]
PERSONAL = [name for name in NAMES if name != "popularity"]  # which knows no user


def settings(name):
    return SETTINGS.get(name, {})


def needed(name, given):
    return given if MODELS.get(name).obj.requires_modality else []


def used(name, given):
    return given if MODELS.get(name).obj.modalities else []


def test_the_lists_above_hold_models_alone():
    assert len(NAMES) >= 10
    assert set(GRADIENT) >= {"bpr-mf", "lightgcn", "vbpr"}
    assert set(MULTIMODAL) >= {"vbpr", "itemknn-cbf"}
    assert set(SETTINGS) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_states_its_kind_and_its_source(name):
    entry = MODELS.get(name)
    assert entry.obj.family == "general"
    assert entry.obj.integration in ("none", "fusion", "ensemble")
    assert (entry.obj.integration == "none") == (not entry.obj.modalities)
    assert entry.obj.modalities <= set(MODALITIES)
    assert len(entry.info["citation"]) > 20
    assert (entry.info["config"].__doc__ or "").strip()


@pytest.mark.parametrize("name", NAMES)
def test_unknown_settings_are_refused(name):
    with pytest.raises(ValueError, match="no_such_setting"):
        MODELS.get(name).info["config"](no_such_setting=1)


@pytest.mark.parametrize("name", NAMES)
def test_shapes(name, build, fit, train, given):
    model = fit(build(name, train, used(name, given), **settings(name)), train, epochs=2)
    scores = model.scores(torch.tensor([4, 0, 3]))
    assert scores.shape == (3, train.n_items)
    assert scores.dtype == torch.float32
    assert torch.isfinite(scores).all()
    if model.factors:
        users, items = model.vectors()
        assert (len(users), len(items)) == (train.n_users, train.n_items)
        torch.testing.assert_close(users, model.user_vectors())
        torch.testing.assert_close(items, model.item_vectors())
        torch.testing.assert_close(scores, (users @ items.T)[[4, 0, 3]])


@pytest.mark.parametrize("name", NAMES)
def test_scores_of_a_user_do_not_depend_on_the_block(name, build, fit, train, given, all_scores):
    model = fit(build(name, train, used(name, given), **settings(name)), train, epochs=2)
    together = all_scores(model, train)
    with torch.no_grad():
        alone = np.concatenate([model.scores(torch.tensor([u])) for u in range(train.n_users)])
    np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", GRADIENT)
def test_every_parameter_has_a_gradient(name, build, train, given, batch):
    model = build(name, train, used(name, given), **settings(name))
    terms = model.training_step(batch)
    assert all(term.shape == () for term in terms.values())
    sum(terms.values()).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", PAIRWISE)
def test_gradients_equal_central_differences(name, build, train, given, batch):
    model = build(name, train, used(name, given), **settings(name)).double()
    rng = np.random.default_rng(0)
    sum(model.training_step(batch).values()).backward()
    for key, parameter in model.named_parameters():
        flat, slope = parameter.detach().view(-1), parameter.grad.view(-1)
        likely = slope.abs().argsort(descending=True)[: max(20, len(slope) // 4)].numpy()
        for position in rng.choice(likely, min(8, len(likely)), replace=False):
            values = []
            for step in (1e-5, -1e-5):
                flat[position] += step
                with torch.no_grad():
                    values.append(float(sum(model.training_step(batch).values())))
                flat[position] -= step
            difference = (values[0] - values[1]) / 2e-5
            assert difference == pytest.approx(float(slope[position]), rel=1e-4, abs=1e-9), key


@pytest.mark.parametrize("name", PAIRWISE)
def test_the_loss_prefers_what_the_score_prefers(name, build, train, given, all_scores):
    model = build(name, train, used(name, given), **settings(name))
    scores = torch.from_numpy(all_scores(model, train))
    users = torch.arange(train.n_users)
    best, worst = scores.argmax(dim=1), scores.argmin(dim=1)
    with torch.no_grad():
        right = sum(model.training_step(Batch(users, best, worst)).values())
        wrong = sum(model.training_step(Batch(users, worst, best)).values())
    assert right < wrong


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_weights(name, build, fit, train, given):
    one, two = (
        fit(build(name, train, used(name, given), **settings(name)), train, epochs=3).state_dict()
        for _ in range(2)
    )
    assert list(one) == list(two)
    for key, tensor in one.items():
        assert torch.equal(tensor, two[key]), key


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded_it_scores_the_same(name, build, fit, train, given, all_scores):
    features = used(name, given)
    model = fit(build(name, train, features, **settings(name)), train, epochs=3)
    other = build(name, train, features, seed=1, **settings(name))
    if name != "popularity" and model.fitting == "gradient":
        assert not np.array_equal(all_scores(model, train), all_scores(other, train))
    other.load_state(load(save({k: v.contiguous() for k, v in model.state_dict().items()})))
    np.testing.assert_array_equal(all_scores(model, train), all_scores(other, train))


@pytest.mark.parametrize("name", ["bpr-mf", "lightgcn", "vbpr", "slim-bpr", "popularity"])
def test_weights_of_another_dataset_are_refused(name, build, fit, train, checkerboard):
    other, _ = checkerboard
    stored = fit(build(name, other, []), other, epochs=1).state_dict()
    with pytest.raises(DataError, match="do not fit this"):
        build(name, train, []).load_state(stored)


@pytest.mark.parametrize("name", MULTIMODAL)
@pytest.mark.parametrize("dropped", ["visual", "textual", "acoustic"])
def test_a_dropped_modality_leaves_nothing_behind(
    name, dropped, build, fit, train, given, all_scores
):
    kept = [features for features in given if features.modality != dropped]
    model = fit(build(name, train, kept, **settings(name)), train, epochs=3)
    names = [*dict(model.named_parameters()), *dict(model.named_buffers())]
    assert not [key for key in names if dropped in key]
    full = fit(build(name, train, given, **settings(name)), train, epochs=3)
    assert not np.allclose(all_scores(full, train), all_scores(model, train))


@pytest.mark.parametrize("name", MULTIMODAL)
def test_without_any_modality_it_reduces_or_refuses(name, build, train, batch):
    if MODELS.get(name).obj.requires_modality:
        with pytest.raises(ConfigError, match="features"):
            build(name, train, [], **settings(name))
    else:
        model = build(name, train, [], **settings(name))
        assert torch.isfinite(sum(model.training_step(batch).values()))


@pytest.mark.parametrize("name", PERSONAL)
def test_the_checkerboard(name, build, fit, checkerboard, all_scores):
    train, hidden = checkerboard
    parity = np.arange(train.n_items) % 2
    from_parity = np.stack([parity, 1 - parity], axis=1) + 0.01
    features = [_features("visual", from_parity)] if MODELS.get(name).obj.modalities else []
    model = fit(build(name, train, features, **settings(name)), train, epochs=300)
    scores = all_scores(model, train)
    scores[train.matrix.toarray() > 0] = -np.inf
    np.testing.assert_array_equal(scores.argmax(axis=1), hidden)


def _features(modality, matrix):
    from mmbench.models.base import ItemFeatures

    values = torch.from_numpy(matrix.astype(np.float32))
    return ItemFeatures(f"{modality}__made", modality, values, torch.ones(len(matrix)).bool())
