"""Every sequence encoder against loops over its equations; causality; padding; the chooser."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from mmbench.errors import ConfigError
from mmbench.models.sequential.dropout import dropout
from mmbench.models.sequential.sequence_encoders import (
    BertSASRecEncoder,
    GRURecEncoder,
    NextItNetEncoder,
    SASRecEncoder,
    SequenceEncoderConfig,
    make_sequence_encoder,
)

SIZE, LENGTH = 4, 6
NAMES = ["sasrec", "grurec", "nextitnet"]


def made(name, seed=0, **settings):
    """In float64, with norms that are not the identity and biases that are not zero."""
    torch.manual_seed(seed)
    encoder = make_sequence_encoder(name, SIZE, LENGTH, **{"dropout": 0.0, **settings}).double()
    for key, parameter in encoder.named_parameters():
        if "norm" in key or key.endswith("bias"):
            torch.nn.init.normal_(parameter, mean=0.5, std=0.5)
    return encoder


def rows(seed=1):
    """Inputs of four sequences: of six, three, one and no item."""
    real = torch.arange(LENGTH) >= LENGTH - torch.tensor([6, 3, 1, 0])[:, None]
    inputs = torch.randn(4, LENGTH, SIZE, generator=torch.Generator().manual_seed(seed)).double()
    return inputs * real[:, :, None], real


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n_layers", [1, 3])
def test_it_equals_its_loops(name, n_layers, literal):
    encoder = made(name, n_layers=n_layers)
    inputs, real = rows()
    inputs.requires_grad_()
    free = inputs.detach().clone().requires_grad_()
    w = literal.leaves(encoder)
    found = encoder(inputs, real)
    weights = torch.randn_like(found) * real[:, :, None]  # so that slots do not cancel out
    (found * weights).sum().backward()
    total = 0.0
    for row in range(4):
        x, there = list(free[row]), real[row].tolist()
        out = {
            "sasrec": lambda x=x, there=there: literal.sasrec(w, "", x, there, n_layers, 2),
            "grurec": lambda x=x: literal.grurec(w, "", x, n_layers),
            "nextitnet": lambda x=x: literal.nextitnet(w, "", x, n_layers),
        }[name]()
        for slot in range(LENGTH):
            if there[slot]:
                torch.testing.assert_close(found[row, slot], out[slot], rtol=1e-9, atol=1e-10)
                total = total + out[slot] @ weights[row, slot]
    total.backward()
    torch.testing.assert_close(inputs.grad, free.grad, rtol=1e-8, atol=1e-10)
    for key, parameter in encoder.named_parameters():
        expected = w[key].grad
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-8, atol=1e-10, msg=key)


@pytest.mark.parametrize("name", [*NAMES, "bert"])
def test_an_item_does_not_change_what_comes_before_it(name):
    encoder = (
        BertSASRecEncoder(SIZE, LENGTH, 2, 2, 0.0, 8).double() if name == "bert" else made(name)
    )
    inputs, real = rows()
    before = encoder(inputs, real)
    for slot in range(LENGTH):
        changed = inputs.clone()
        changed[:, slot] += torch.randn(SIZE) * real[:, slot, None]  # a constant: LN removes it
        after = encoder(changed, real)
        assert torch.equal(before[:, :slot][real[:, :slot]], after[:, :slot][real[:, :slot]])
        # Which of the later slots change depends on what NextItNet's relu lets through.
        assert not torch.equal(before[0, slot:], after[0, slot:])


@pytest.mark.parametrize("real_slots", [1, 3])
def test_padding_does_nothing_to_grurec(real_slots):
    encoder = made("grurec")
    items = torch.randn(2, real_slots, SIZE).double()
    padded = torch.cat([torch.zeros(2, 9, SIZE).double(), items], dim=1)
    alone = encoder(items, torch.ones(2, real_slots).bool())
    hidden = encoder(padded, padded.any(dim=2))
    torch.testing.assert_close(hidden[:, 9:], alone, rtol=1e-12, atol=1e-15)
    assert not hidden[:, :9].any()


def test_padding_does_nothing_to_sasrec_whose_positions_are_shifted_alike():
    torch.manual_seed(0)
    short, long = SASRecEncoder(SIZE, 4, dropout=0.0), SASRecEncoder(SIZE, 9, dropout=0.0)
    state = short.state_dict()
    garbage = torch.randn(5, SIZE)
    state["positions.weight"] = torch.cat([garbage, state["positions.weight"]])
    long.load_state_dict(state)
    items = torch.randn(2, 3, SIZE)
    padded = [torch.cat([torch.zeros(2, n, SIZE), items], dim=1) for n in (0, 1, 6)]
    hidden = [e(p, p.any(dim=2))[:, -3:] for e, p in zip((short, short, long), padded, strict=True)]
    torch.testing.assert_close(hidden[0], hidden[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(hidden[0], hidden[2], rtol=1e-5, atol=1e-6)


def test_padding_is_part_of_what_nextitnet_sees():
    encoder = made("nextitnet")
    items = torch.randn(1, 2, SIZE).double()
    padded = torch.cat([torch.zeros(1, 3, SIZE).double(), items], dim=1)
    real = padded.any(dim=2)
    assert not torch.allclose(encoder(padded, real)[:, 3:], encoder(items, real[:, 3:]))


def test_nextitnet_sees_31_slots_a_pair_of_blocks():
    torch.manual_seed(0)
    encoder = NextItNetEncoder(SIZE, 1).double()
    inputs = torch.randn(1, 40, SIZE).double().requires_grad_()
    encoder(inputs, torch.ones(1, 40).bool())[0, -1].sum().backward()
    reached = inputs.grad[0].abs().sum(dim=1) > 0
    assert not reached[: 40 - 31].any()
    assert reached[40 - 31 :].all()


@pytest.mark.parametrize("name", NAMES)
def test_padding_makes_no_nan_even_in_half_precision(name):
    encoder = made(name).float()
    inputs, real = rows()
    with torch.autocast("cpu", torch.bfloat16):
        hidden = encoder(inputs.float().requires_grad_(), real)
    hidden.float().sum().backward()
    assert torch.isfinite(hidden).all()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters())


def test_dropout_falls_on_grurecs_inputs_alone():
    encoder = GRURecEncoder(SIZE, 3, dropout=0.5)
    inputs = torch.randn(2, LENGTH, SIZE)
    real = torch.ones(2, LENGTH).bool()
    torch.manual_seed(5)
    dropped = dropout(inputs, 0.5, training=True)
    torch.manual_seed(5)
    noisy = encoder(inputs, real)
    assert torch.equal(noisy, encoder.eval()(dropped, real))


def test_nextitnet_draws_nothing():
    encoder, (inputs, real) = made("nextitnet", dropout=0.9).train(), rows()
    assert torch.equal(encoder(inputs, real), encoder(inputs, real))


@pytest.mark.parametrize("name", NAMES)
def test_the_published_depths_have_equal_weights(name):
    size = 32
    encoder = make_sequence_encoder(name, size, 20)
    matrices = [p for key, p in encoder.named_parameters() if p.dim() > 1 and "posit" not in key]
    assert sum(p.numel() for p in matrices) == 24 * size**2


def test_grurec_starts_as_published():
    torch.manual_seed(0)
    size = 40
    layers = GRURecEncoder(size, 2).layers
    first = (6 / (3 * size + size)) ** 0.5  # Xavier over the stacked matrix
    for name, bound in (("l0", first), ("l1", size**-0.5)):
        for kind in ("ih", "hh"):
            weight = getattr(layers, f"weight_{kind}_{name}").detach()
            assert float(weight.abs().max()) == pytest.approx(bound, rel=0.01)
            assert float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.03)
    assert not [name for name, _ in layers.named_parameters() if "bias" in name]


def test_the_choice_by_name():
    assert isinstance(make_sequence_encoder("sasrec", 4, 5), SASRecEncoder)
    assert make_sequence_encoder("grurec", 4, 5).layers.num_layers == 4
    assert make_sequence_encoder("grurec", 4, 5, n_layers=1).layers.num_layers == 1
    encoder = make_sequence_encoder("nextitnet", 4, 5)
    assert [block.first.dilation[0] for block in encoder.blocks] == [1, 4, 1, 4]
    assert [block.second.dilation[0] for block in encoder.blocks] == [2, 8, 2, 8]


def test_the_settings_of_the_choice():
    config = SequenceEncoderConfig()
    assert (config.sequence_encoder, config.n_layers, config.n_heads) == ("sasrec", None, 2)
    for wrong in ({"sequence_encoder": "lstm"}, {"n_layers": 0}, {"dropout": 1.0}):
        with pytest.raises(ValidationError):
            SequenceEncoderConfig(**wrong)


def test_heads_that_do_not_divide_the_size_are_named():
    with pytest.raises(ConfigError, match="n_heads: vectors of 4 numbers do not divide into 3"):
        make_sequence_encoder("sasrec", 4, 5, n_heads=3)
