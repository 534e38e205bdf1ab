from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mmbench.encoders.vlmo_model import Vlmo, VlmoShape
from mmbench.errors import ConfigError

Array = NDArray[np.float64]
State = Mapping[str, Array]

TINY = VlmoShape(
    width=24,
    blocks=4,
    heads=4,
    vl_from=2,
    image_size=32,
    patch_size=16,
    vocabulary=60,
    text_length=9,
)
TEXTS = [[2, 17, 5, 31, 44, 8, 3], [2, 59, 3]]  # [CLS] .. [SEP]


# --------------------------------------------------------------------------------------------
# The equations, literally: one item at a time, in float64, head by head, without torch.


def linear(x: Array, state: State, name: str) -> Array:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def norm(x: Array, state: State, name: str, eps: float = 1e-6) -> Array:
    mean = x.mean(axis=1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=1, keepdims=True)
    scaled = (x - mean) / np.sqrt(variance + eps)
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def gelu(x: Array) -> Array:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def attention(x: Array, state: State, name: str, heads: int) -> Array:
    width = x.shape[1]
    each = width // heads
    fused = state[f"{name}.qkv.weight"]
    queries = x @ fused[:width].T + state[f"{name}.q_bias"]
    keys = x @ fused[width : 2 * width].T
    values = x @ fused[2 * width :].T + state[f"{name}.v_bias"]
    mixed = np.empty_like(x)
    for head in range(heads):
        own = slice(head * each, (head + 1) * each)
        for position in range(len(x)):
            scores = np.array([queries[position, own] @ key[own] for key in keys])
            weights = np.exp(scores / math.sqrt(each))
            mixed[position, own] = (weights / weights.sum()) @ values[:, own]
    return linear(mixed, state, f"{name}.proj")


def expert(x: Array, state: State, block: str, modality: str) -> Array:
    hidden = gelu(
        linear(norm(x, state, f"{block}.norm2_{modality}"), state, f"{block}.mlp_{modality}.fc1")
    )
    return x + linear(hidden, state, f"{block}.mlp_{modality}.fc2")


def blocks(x: Array, state: State, shape: VlmoShape, kinds: list[str], vl_top: bool) -> Array:
    for number in range(shape.blocks):
        block = f"transformer.blocks.{number}"
        x = x + attention(norm(x, state, f"{block}.norm1"), state, f"{block}.attn", shape.heads)
        top = vl_top and number >= shape.vl_from
        # Experts see one position at a time, so each may be sent through its own.
        rows = [
            expert(x[k : k + 1], state, block, "vl" if top else kind)
            for k, kind in enumerate(kinds)
        ]
        x = np.concatenate(rows)
    return norm(x, state, "transformer.norm")


def embedded_text(ids: list[int], state: State) -> Array:
    rows = [
        state["text_embeddings.word_embeddings.weight"][token]
        + state["text_embeddings.position_embeddings.weight"][position]
        + state["text_embeddings.token_type_embeddings.weight"][0]
        for position, token in enumerate(ids)
    ]
    normed = norm(np.stack(rows), state, "text_embeddings.LayerNorm", eps=1e-12)
    return normed + state["token_type_embeddings.weight"][0]


def embedded_image(pixels: Array, state: State, shape: VlmoShape) -> Array:
    side = shape.patch_size
    rows = [state["transformer.cls_token"][0, 0]]
    for top in range(0, shape.image_size, side):
        for left in range(0, shape.image_size, side):
            patch = pixels[:, top : top + side, left : left + side]
            kernel = state["transformer.patch_embed.proj.weight"]
            rows.append(
                (kernel * patch).sum(axis=(1, 2, 3)) + state["transformer.patch_embed.proj.bias"]
            )
    return (
        np.stack(rows)
        + state["transformer.pos_embed"][0]
        + state["token_type_embeddings.weight"][1]
    )


def of_text(ids: list[int], state: State, shape: VlmoShape, *, vl_top: bool = False) -> Array:
    x = embedded_text(ids, state)
    return blocks(x, state, shape, ["text"] * len(x), vl_top)


def of_image(pixels: Array, state: State, shape: VlmoShape, *, vl_top: bool = False) -> Array:
    x = embedded_image(pixels, state, shape)
    return blocks(x, state, shape, ["imag"] * len(x), vl_top)


def of_pair(ids: list[int], pixels: Array, state: State, shape: VlmoShape) -> Array:
    text, image = embedded_text(ids, state), embedded_image(pixels, state, shape)
    kinds = ["text"] * len(text) + ["imag"] * len(image)
    return blocks(np.concatenate([text, image]), state, shape, kinds, True)


# --------------------------------------------------------------------------------------------


def random_model(shape: VlmoShape = TINY) -> Vlmo:
    """Every parameter matters: biases are not 0, norms not 1."""
    rng = torch.Generator().manual_seed(11)
    model = Vlmo(shape).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.3, generator=rng)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.add_(1)
    return model


@pytest.fixture(scope="module")
def model() -> Vlmo:
    return random_model()


@pytest.fixture(scope="module")
def state(model: Vlmo) -> State:
    return {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def padded(texts: list[list[int]], length: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    width = length or max(len(text) for text in texts)
    # Padding is an id that a text may hold too, so nothing but the mask keeps it out.
    ids = torch.tensor([text + [7] * (width - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
    return ids, mask


def close(found: torch.Tensor, expected: Array, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(found.double().numpy(), expected, atol=atol, rtol=0)


def test_attention_is_that_of_the_equations(model: Vlmo, state: State) -> None:
    x = torch.randn(1, 6, 24, generator=torch.Generator().manual_seed(1))
    block = next(model.transformer.stack())
    with torch.no_grad():
        found = block.attn(x, None)[0]
    expected = attention(x[0].double().numpy(), state, "transformer.blocks.0.attn", 4)
    assert np.abs(expected).max() > 0.5
    close(found, expected)


@pytest.mark.parametrize("modality", ["text", "image", "vl"])
def test_a_block_is_that_of_the_equations(model: Vlmo, state: State, modality: str) -> None:
    x = torch.randn(1, 6, 24, generator=torch.Generator().manual_seed(2))
    *_, last = model.transformer.stack()
    chosen: Callable[[torch.Tensor], torch.Tensor] = getattr(last, modality)
    with torch.no_grad():
        found = chosen(last.attend(x, None))[0]
    name, start = "transformer.blocks.3", x[0].double().numpy()
    between = start + attention(norm(start, state, f"{name}.norm1"), state, f"{name}.attn", 4)
    close(found, expert(between, state, name, {"image": "imag"}.get(modality, modality)))


@pytest.mark.parametrize("vl_top", [False, True])
def test_texts_alone(model: Vlmo, state: State, vl_top: bool) -> None:
    expected = [of_text(text, state, TINY, vl_top=vl_top) for text in TEXTS]
    with torch.no_grad():
        together = model.text(*padded(TEXTS), vl_top=vl_top)
        for row, text in enumerate(TEXTS):
            close(model.text(*padded([text]), vl_top=vl_top)[0], expected[row])
            close(together[row, : len(text)], expected[row])


@pytest.mark.parametrize("vl_top", [False, True])
def test_pictures_alone(model: Vlmo, state: State, pixels: torch.Tensor, vl_top: bool) -> None:
    expected = [of_image(one.double().numpy(), state, TINY, vl_top=vl_top) for one in pixels]
    with torch.no_grad():
        close(model.image(pixels, vl_top=vl_top), np.stack(expected))
        for row in range(2):
            close(model.image(pixels[row : row + 1], vl_top=vl_top)[0], expected[row])


def test_pairs(model: Vlmo, state: State, pixels: torch.Tensor) -> None:
    expected = [
        of_pair(text, one.double().numpy(), state, TINY)
        for text, one in zip(TEXTS, pixels, strict=True)
    ]
    with torch.no_grad():
        together = model.joint(*padded(TEXTS), pixels)
        width = max(len(text) for text in TEXTS)
        for row, text in enumerate(TEXTS):
            close(model.joint(*padded([text]), pixels[row : row + 1])[0], expected[row])
            close(together[row, : len(text)], expected[row][: len(text)])
            close(together[row, width:], expected[row][len(text) :])


def test_the_routes_differ(model: Vlmo, pixels: torch.Tensor) -> None:
    ids, mask = padded(TEXTS)
    with torch.no_grad():
        texts = [model.text(ids, mask), model.text(ids, mask, vl_top=True)]
        images = [model.image(pixels), model.image(pixels, vl_top=True)]
        pair = model.joint(ids, mask, pixels)
    assert (texts[0] - texts[1])[:, 0].abs().max() > 0.1
    assert (images[0] - images[1])[:, 0].abs().max() > 0.1
    assert (pair[:, 0] - texts[1][:, 0]).abs().max() > 0.1
    assert (pair[:, ids.shape[1]] - images[1][:, 0]).abs().max() > 0.1


def test_padding_changes_nothing_up_to_rounding(model: Vlmo, pixels: torch.Tensor) -> None:
    exact = random_model().double()
    short, long = padded(TEXTS), padded(TEXTS, TINY.text_length)
    with torch.no_grad():
        for vl_top in (False, True):
            few, many = (exact.text(*given, vl_top=vl_top)[:, 0] for given in (short, long))
            torch.testing.assert_close(few, many, atol=1e-12, rtol=0)
        few, many = (exact.joint(*given, pixels.double()) for given in (short, long))
    width = short[0].shape[1]
    torch.testing.assert_close(few[:, 0], many[:, 0], atol=1e-12, rtol=0)
    torch.testing.assert_close(few[:, width:], many[:, TINY.text_length :], atol=1e-12, rtol=0)


def test_heads_are_those_of_the_equations(model: Vlmo, state: State) -> None:
    x = torch.randn(3, 24, generator=torch.Generator().manual_seed(3))
    start = x.double().numpy()
    with torch.no_grad():
        close(model.pooler(x), np.tanh(linear(start, state, "pooler.dense")))
        close(model.itm_score(x), linear(start, state, "itm_score.fc"))
        for name in ("itc_text_proj", "itc_image_proj", "itc_vl_text_proj", "itc_vl_image_proj"):
            close(getattr(model, name)(x), start @ state[f"{name}.fc.weight"].T)
        hidden = gelu(linear(start, state, "mlm_score.transform.dense"))
        hidden = norm(hidden, state, "mlm_score.transform.LayerNorm", eps=1e-12)
        expected = hidden @ state["mlm_score.decoder.weight"].T + state["mlm_score.bias"]
        close(model.mlm_score(x), expected)


def test_temperatures_begin_at_that_of_the_losses() -> None:
    fresh = Vlmo(TINY)
    assert fresh.logit_scale.item() == pytest.approx(2.6592600)  # ln(1 / 0.07)
    assert fresh.logit_vl_scale.shape == ()


# --------------------------------------------------------------------------------------------
# The layout of the published checkpoint.


def published_layout() -> dict[str, tuple[int, ...]]:
    """Names and shapes of all 502 tensors."""
    d, h = 544, 2176

    def pair(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}

    layout: dict[str, tuple[int, ...]] = {
        "transformer.cls_token": (1, 1, d),
        "transformer.pos_embed": (1, 197, d),
        **pair("transformer.patch_embed.proj", d, 3, 16, 16),
        **pair("transformer.norm", d),
    }
    for number in range(24):
        block = f"transformer.blocks.{number}"
        layout |= {
            **pair(f"{block}.norm1", d),
            f"{block}.attn.qkv.weight": (1632, d),
            f"{block}.attn.q_bias": (d,),
            f"{block}.attn.v_bias": (d,),
            **pair(f"{block}.attn.proj", d, d),
        }
        for modality in ("text", "imag", *(["vl"] if number in {21, 22, 23} else [])):
            layout |= {
                **pair(f"{block}.norm2_{modality}", d),
                **pair(f"{block}.mlp_{modality}.fc1", h, d),
                **pair(f"{block}.mlp_{modality}.fc2", d, h),
            }
    layout |= {
        "text_embeddings.word_embeddings.weight": (30522, d),
        "text_embeddings.position_embeddings.weight": (40, d),
        "text_embeddings.token_type_embeddings.weight": (2, d),
        **pair("text_embeddings.LayerNorm", d),
        "token_type_embeddings.weight": (2, d),
        **pair("pooler.dense", d, d),
        **pair("itm_score.fc", 2, d),
        "itc_text_proj.fc.weight": (d, d),
        "itc_image_proj.fc.weight": (d, d),
        "itc_vl_text_proj.fc.weight": (d, d),
        "itc_vl_image_proj.fc.weight": (d, d),
        "logit_scale": (),
        "logit_vl_scale": (),
        "mlm_score.bias": (30522,),
        **pair("mlm_score.transform.dense", d, d),
        **pair("mlm_score.transform.LayerNorm", d),
        "mlm_score.decoder.weight": (30522, d),
    }
    return layout


def test_names_and_shapes_are_those_of_the_published_checkpoint() -> None:
    with torch.device("meta"):
        found = {name: tuple(t.shape) for name, t in Vlmo(VlmoShape()).state_dict().items()}
    assert found == published_layout()
    assert len(found) == 502


@pytest.mark.parametrize(("has_heads", "expected"), [(False, 166_863_840), (True, 184_980_734)])
def test_parameters_are_as_many_as_published(has_heads: bool, expected: int) -> None:
    with torch.device("meta"):
        model = Vlmo(VlmoShape(), has_heads=has_heads)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_a_picture_alone_takes_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        names = dict(Vlmo(VlmoShape(), has_heads=False).transformer.named_parameters())
    used = [t.numel() for name, t in names.items() if "_text" not in name and "_vl" not in name]
    assert round(sum(used) / 1e6, 1) == 85.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "width of a VLMo must be a positive whole number, not 0"),
        ({"blocks": 1.5}, "blocks of a VLMo must be a positive whole number, not 1.5"),
        ({"heads": True}, "heads of a VLMo must be"),
        ({"vocabulary": "60"}, "vocabulary of a VLMo must be"),
        ({"vl_from": -1}, "vl_from of a VLMo must be"),
        ({"heads": 5}, "a width of 24 does not split into 5 heads"),
        ({"patch_size": 5}, "pictures of 32 pixels do not split into patches of 5"),
        ({"vl_from": 5}, "vl_from 5 is behind the last of 4 blocks"),
    ],
)
def test_impossible_sizes_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VlmoShape(**{**asdict(TINY), **change})


def test_a_model_may_have_no_vision_language_experts_or_nothing_but_them() -> None:
    for vl_from in (0, 4):
        shape = replace(TINY, vl_from=vl_from)
        found = random_model(shape)
        state = {name: tensor.double().numpy() for name, tensor in found.state_dict().items()}
        assert sum(".mlp_vl.fc1.weight" in name for name in state) == 4 - vl_from
        with torch.no_grad():
            close(
                found.text(*padded([TEXTS[0]]), vl_top=True)[0],
                of_text(TEXTS[0], state, shape, vl_top=True),
            )
