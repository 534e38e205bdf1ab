"""Every fusion against loops over the equations of arXiv 2403.17372."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from mmbench.errors import ConfigError
from mmbench.models.sequential.item_fusion import AttentionFusion, Fusion, make_fusion

spec = importlib.util.spec_from_file_location(
    "literal_content", Path(__file__).with_name("literal_content.py")
)
literal = importlib.util.module_from_spec(spec)
spec.loader.exec_module(literal)

NAMES = get_args(Fusion)
COARSE = [name for name in NAMES if not name.endswith("attention")]
ATTENTION = ["merge-attention", "co-attention"]
N, D, HEADS = 3, 4, 2
LENGTHS = (3, 2, 2)
MODALITIES = ("textual", "acoustic", "visual")


def made(name, n_modalities=2, n_blocks=1, type_embeddings=False, seed=0):
    torch.manual_seed(seed)
    fusion = make_fusion(
        name,
        D,
        MODALITIES[:n_modalities],
        n_blocks=n_blocks,
        n_heads=HEADS,
        type_embeddings=type_embeddings,
    ).double()
    # Away from zero biases, unit gains and the tiny start, which would hide mistakes.
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return fusion.eval()


def vectors(n_modalities=2):
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(N, D, generator=generator, dtype=torch.float64) for _ in range(n_modalities)
    ]


def tokens(n_modalities=2):
    generator = torch.Generator().manual_seed(2)
    lengths = LENGTHS[:n_modalities]
    states = [
        torch.randn(N, t, D, generator=generator, dtype=torch.float64, requires_grad=True)
        for t in lengths
    ]
    masks = [torch.ones(N, t, dtype=torch.bool) for t in lengths]
    masks[0][1, 1:] = False
    masks[0][2, 2] = False
    if n_modalities > 1:
        masks[1][0, 1] = False
    return states, masks


def weighted(result):
    """A scalar in which every entry counts differently."""
    weights = torch.arange(1.0, result.numel() + 1, dtype=result.dtype).view_as(result)
    return (weights * result).sum() / 10


def literal_coarse(name, p, given):
    rows = [literal.coarse(p, "f", name, [v[n].numpy() for v in given]) for n in range(N)]
    return np.stack(rows)


def literal_attention(name, p, states, masks, n_blocks=1):
    rows = []
    for n in range(N):
        some = [list(x[n].detach().numpy()) for x in states]
        real = [w[n].tolist() for w in masks]
        if name == "co-attention":
            rows.append(literal.co_attention(p, "f", some, real, HEADS))
        else:
            rows.append(literal.merge_attention(p, "f", some, real, n_blocks, HEADS))
    return np.stack(rows)


def named(p):
    return {f"f.{name}": value for name, value in p.items()}


def scalar(rows):
    return float((np.arange(1.0, rows.size + 1).reshape(rows.shape) * rows).sum() / 10)


def test_the_list_is_the_papers():
    assert len(NAMES) == 10
    assert set(COARSE) | set(ATTENTION) == set(NAMES)


@pytest.mark.parametrize("name", COARSE)
def test_coarse_values_and_gradients_are_those_of_the_equations(name):
    fusion, given = made(name), vectors()
    assert not isinstance(fusion, AttentionFusion)
    result = fusion(given)
    expected = literal_coarse(name, named(literal.parameters(fusion)), given)
    np.testing.assert_allclose(result.detach().numpy(), expected, rtol=1e-6, atol=1e-7)
    weighted(result).backward()
    literal.check_gradients(fusion, lambda p: scalar(literal_coarse(name, named(p), given)))


@pytest.mark.parametrize("name", ["sum", "concat", "sum+dnn", "concat+dnn"])
def test_some_coarse_fusions_take_three_modalities(name):
    fusion, given = made(name, 3), vectors(3)
    expected = literal_coarse(name, named(literal.parameters(fusion)), given)
    np.testing.assert_allclose(fusion(given).detach().numpy(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "n_modalities", "n_blocks", "types"),
    [
        ("merge-attention", 2, 1, False),
        ("merge-attention", 2, 2, True),
        ("merge-attention", 3, 1, False),
        ("co-attention", 2, 1, False),
    ],
)
def test_attention_values_and_gradients_are_those_of_the_equations(
    name, n_modalities, n_blocks, types
):
    fusion = made(name, n_modalities, n_blocks, types)
    states, masks = tokens(n_modalities)
    assert isinstance(fusion, AttentionFusion)
    result = fusion(states, masks)
    expected = literal_attention(name, named(literal.parameters(fusion)), states, masks, n_blocks)
    np.testing.assert_allclose(result.detach().numpy(), expected, rtol=1e-6, atol=1e-7)
    weighted(result).backward()
    literal.check_gradients(
        fusion, lambda p: scalar(literal_attention(name, named(p), states, masks, n_blocks))
    )


def test_four_blocks_follow_each_other():
    fusion, (states, masks) = made("merge-attention", n_blocks=4), tokens()
    p = named(literal.parameters(fusion))
    expected = literal_attention("merge-attention", p, states, masks, 4)
    found = fusion(states, masks).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ATTENTION)
def test_padding_tokens_are_inert(name):
    fusion = made(name)
    states, masks = tokens()
    before = fusion(states, masks)
    before.sum().backward()
    for state, mask in zip(states, masks, strict=True):
        assert (state.grad[~mask] == 0).all()
        assert (state.grad[mask] != 0).any()
    with torch.no_grad():
        spoilt = [torch.where(m[:, :, None], s, 1e3) for s, m in zip(states, masks, strict=True)]
        torch.testing.assert_close(fusion(spoilt, masks), before, rtol=0, atol=1e-6)
        longer = [torch.cat([s, torch.full_like(s, -50.0)], dim=1) for s in states]
        hidden = [torch.cat([m, torch.zeros_like(m)], dim=1) for m in masks]
        torch.testing.assert_close(fusion(longer, hidden), before, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ATTENTION)
def test_an_item_without_any_token_is_finite(name):
    states, masks = tokens()
    for mask in masks:
        mask[1] = False
    assert torch.isfinite(made(name)(states, masks)).all()


def test_the_order_of_tokens_does_not_matter():
    states, masks = tokens()
    for name in ATTENTION:
        fusion = made(name)
        turned = [s.flip(1) for s in states], [m.flip(1) for m in masks]
        torch.testing.assert_close(fusion(*turned), fusion(states, masks), rtol=0, atol=1e-6)


def test_merge_attention_tells_modalities_apart_by_type_embeddings_alone():
    states, masks = tokens()
    masks = [torch.ones_like(mask) for mask in masks]
    swapped = [states[1], states[0]], [masks[1], masks[0]]
    plain = made("merge-attention")
    assert plain.types is None
    torch.testing.assert_close(plain(*swapped), plain(states, masks), rtol=0, atol=1e-6)
    typed = made("merge-attention", type_embeddings=True)
    assert not torch.allclose(typed(*swapped), typed(states, masks), atol=1e-3)


def test_one_norm_and_one_set_of_cross_weights_serve_both_modalities():
    assert sum("norm" in name for name, _ in made("gate").named_parameters()) == 2
    cross = [name for name, _ in made("co-attention").named_parameters() if "cross" in name]
    assert len(cross) == 8  # query, key, value and output, weight and bias each


@pytest.mark.parametrize("name", [name for name in COARSE if name.endswith("+dnn")])
def test_the_last_relu_stays(name):
    assert (made(name)(vectors()) >= 0).all()


def test_dropout_of_the_dnn_acts_on_its_inputs_in_training_alone():
    fusion = make_fusion("sum+dnn", 64, ("textual", "visual"), coarse_dropout=0.5)
    given = [torch.randn(5, 64), torch.randn(5, 64)]
    assert not torch.equal(fusion(given), fusion(given))
    fusion.eval()
    assert torch.equal(fusion(given), fusion(given))
    assert fusion.drop.p == 0.5


@pytest.mark.parametrize("name", NAMES)
def test_starts_as_published(name):
    torch.manual_seed(3)
    size = 96
    fusion = make_fusion(name, size, ("textual", "visual"), n_heads=2)
    for key, parameter in fusion.named_parameters():
        if "norm" in key:
            assert (parameter == float(key.endswith("weight"))).all()
        elif key.endswith("bias"):
            assert (parameter == 0).all()
        else:
            rows, columns = parameter.shape
            std = 0.02 if name in ATTENTION else (2 / (rows + columns)) ** 0.5
            assert float(parameter.detach().std()) == pytest.approx(std, rel=0.15), key


@pytest.mark.parametrize("name", ["film", "gate", "film+dnn", "gate+dnn", "co-attention"])
def test_a_fusion_of_two_refuses_three(name):
    with pytest.raises(ConfigError, match=r"of two modalities, but 3 are given .*choose sum"):
        made(name, 3)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_stays_finite_with_hidden_tokens(name):
    fusion = make_fusion(name, D, ("textual", "visual"), n_heads=HEADS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if name in ATTENTION:
            states, masks = tokens()
            result = fusion([state.float() for state in states], masks)
        else:
            result = fusion([vector.float() for vector in vectors()])
    assert torch.isfinite(result).all()
