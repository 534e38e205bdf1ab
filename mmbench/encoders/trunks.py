"""Which part of an encoder learns, and how the part below is run once and kept.

    tower   a stack of blocks; most encoders have one for a modality, FLAVA's pairs go through two
    top     the last blocks of each tower, and what stands behind them: the final norm, projections
    trunk   all that comes before: embeddings and the lower blocks; it does not learn

What enters the first learning block of a tower is a constant of the item while the trunk rests.
It is caught there by a hook, and put back there by another: then the lower blocks pass on whatever
they are given, and masks, position biases and flags are made anew by the model's own code. So one
mechanism serves every architecture, and nothing of the library's forward pass is written again.

Blocks are chosen by the names of their modules, not by the numbers of parameters, which tell two
layouts of one model apart. MMSR (https://arxiv.org/abs/2403.17372) tunes the last two blocks, the
last four of ViLT and VisualBERT, the last three bottlenecks of ResNet-50, and of FLAVA all that
fuses.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmbench.errors import ConfigError


@dataclass(frozen=True)
class Tower:
    """A stack of blocks.

    Attributes:
        blocks: regular expression of the names of its blocks, which are in the order of
            definition.
        behind: names of modules that learn with the last block.
        top: blocks that learn unless another number is asked for.
        is_fed: whether what enters it comes of an earlier tower, so that it has no trunk of its
            own while that one learns.
        is_new: whether no published weights are behind it, so that all of it learns, whatever
            number of blocks is asked for.
    """

    blocks: str
    behind: tuple[str, ...] = ()
    top: int = 2
    is_fed: bool = False
    is_new: bool = False

    def n_top(self, stack: Sequence[str], asked: int | None) -> int:
        """How many of its blocks learn where `asked` are to; more than there are if so asked."""
        return len(stack) if self.is_new else asked or min(self.top, len(stack))


_PLAIN = r"(encoder\.)?layers?\.\d+"
_CLIP_TEXT = r"text_model\.encoder\.layers\.\d+"
_CLIP_VISION = r"vision_model\.encoder\.layers\.\d+"
_RESNET = r"layer[1-4]\.\d+"
_BERT = (Tower(_PLAIN),)
_VIT = (Tower(_PLAIN, ("layernorm",)),)
_TEXT_HEAD = ("text_model.final_layer_norm", "text_model.head", "text_projection")
_FLAVA_TEXT = Tower(r"text_model\.encoder\.layer\.\d+", ("text_model.layernorm", "text_projection"))
_FLAVA_IMAGE = Tower(
    r"image_model\.encoder\.layer\.\d+", ("image_model.layernorm", "image_projection")
)
_FUSES = ("multimodal_model", "image_to_mm_projection", "text_to_mm_projection")
_TIMM_NORM = ("norm", "fc_norm", "attn_pool")

LAYOUTS: dict[str, dict[str, tuple[Tower, ...]]] = {
    "BertModel": {"textual": _BERT},
    "RobertaModel": {"textual": _BERT},
    "ElectraModel": {"textual": _BERT},
    "MPNetModel": {"textual": _BERT},
    "ViTModel": {"visual": _VIT},
    "ViTMAEModel": {"visual": _VIT},
    "Dinov2Model": {"visual": _VIT},
    "CLIPVisionModel": {"visual": (Tower(_PLAIN, ("post_layernorm",)),)},
    "SwinModel": {"visual": (Tower(r"encoder\.layers\.\d+\.blocks\.\d+", ("layernorm",)),)},
    "ResNetModel": {"visual": (Tower(r"encoder\.stages\.\d+\.layers\.\d+", top=3),)},
    "VisionTransformer": {"visual": (Tower(r"blocks\.\d+", _TIMM_NORM),)},
    "SwinTransformer": {"visual": (Tower(r"layers\.\d+\.blocks\.\d+", ("norm",)),)},
    "ResNet": {"visual": (Tower(_RESNET, top=3),)},
    "VGG": {"visual": (Tower(r"pre_logits\.fc\d"),)},
    "CLIPModel": {
        "textual": (Tower(_CLIP_TEXT, _TEXT_HEAD),),
        "visual": (Tower(_CLIP_VISION, ("vision_model.post_layernorm", "visual_projection")),),
    },
    "SiglipModel": {
        "textual": (Tower(_CLIP_TEXT, _TEXT_HEAD),),
        "visual": (Tower(_CLIP_VISION, ("vision_model.post_layernorm", "vision_model.head")),),
    },
    "GroupViTModel": {
        "textual": (Tower(_CLIP_TEXT, _TEXT_HEAD),),
        "visual": (
            Tower(
                r"vision_model\.encoder\.stages\.\d+\.layers\.\d+",
                ("vision_model.layernorm", "visual_projection"),
            ),
        ),
    },
    "BlipForImageTextRetrieval": {
        "textual": (Tower(r"text_encoder\.encoder\.layer\.\d+", ("text_proj",)),),
        "visual": (Tower(_CLIP_VISION, ("vision_model.post_layernorm", "vision_proj")),),
    },
    "FlavaModel": {
        "textual": (_FLAVA_TEXT,),
        "visual": (_FLAVA_IMAGE,),
        "joint": (_FLAVA_IMAGE, Tower(_FLAVA_TEXT.blocks, (*_FLAVA_TEXT.behind, *_FUSES))),
    },
    "ViltModel": {"joint": (Tower(_PLAIN, ("layernorm", "pooler"), top=4),)},
    "Vlmo": dict.fromkeys(
        ("textual", "visual", "joint"),
        (
            Tower(
                r"transformer\.blocks\.\d+",
                (
                    "transformer.norm",
                    "pooler",
                    "itc_text_proj",
                    "itc_image_proj",
                    "itc_vl_text_proj",
                    "itc_vl_image_proj",
                ),
            ),
        ),
    ),
}
"""Towers by the class of a model and by what is read; for any other class see `_guessed`."""

VISUALBERT = Tower(r"visualbert\.encoder\.layer\.\d+", ("visualbert.pooler",), top=4, is_fed=True)
VISUALBERT_GRID = Tower(rf"detector\.{_RESNET}", top=3)
VISUALBERT_PATCHES = Tower(rf"detector\.{_CLIP_VISION}", ("detector.vision_model.post_layernorm",))
VISUALBERT_PROJECTION = Tower(
    r"visualbert\.embeddings\.visual_projection", is_fed=True, is_new=True
)


def towers_of(module: nn.Module, modality: str) -> tuple[Tower, ...]:
    """The towers that an item's content goes through.

    Raises:
        ConfigError: it has none that is known, or none can be made out.
    """
    name = type(module).__name__
    if isinstance(module, nn.ModuleDict) and "visualbert" in module:
        return _towers_of_visualbert(module["detector"])
    if name == "PairModel":
        return _towers_of_pair(module, modality)
    known = LAYOUTS.get(name)
    if known is None:
        return (_guessed(module),)
    if modality not in known:
        raise ConfigError(f"{name} reads no {modality} content")
    return known[modality]


def _towers_of_pair(module: nn.Module, modality: str) -> tuple[Tower, ...]:
    """Those of one of two joined models; the projection, which is new, stands behind the last."""
    *below, last = towers_of(module.get_submodule(modality), modality)

    def inside(tower: Tower, *more: str) -> Tower:
        behind = tuple(f"{modality}.{name}" for name in tower.behind)
        return replace(tower, blocks=rf"{modality}\.(?:{tower.blocks})", behind=(*behind, *more))

    return (*(inside(tower) for tower in below), inside(last, f"{modality}_projection"))


def _towers_of_visualbert(detector: nn.Module) -> tuple[Tower, ...]:
    if hasattr(detector, "layer4"):
        return (VISUALBERT_GRID, VISUALBERT)
    if type(detector).__name__ != "CLIPModel":
        return (VISUALBERT,)
    has_blocks = any(re.fullmatch(_CLIP_VISION, name) for name, _ in detector.named_modules())
    below = (VISUALBERT_PATCHES,) if has_blocks else ()
    return (*below, VISUALBERT_PROJECTION, VISUALBERT)


def _guessed(module: nn.Module) -> Tower:
    """The family of numbered modules that holds most of the weights, the innermost of such."""
    sizes: Counter[str] = Counter()
    members: Counter[str] = Counter()
    for name, part in module.named_modules():
        if re.search(r"\.\d+$", f".{name}"):
            family = re.sub(r"(?<=\.)\d+(?=\.|$)", "#", f".{name}")[1:]
            sizes[family] += sum(weight.numel() for weight in part.parameters())
            members[family] += 1
    most = max(sizes.values(), default=0)
    fit = [family for family in sizes if members[family] > 1 and sizes[family] > 0.8 * most]
    if not fit:
        raise ConfigError(
            f"{type(module).__name__} has no stack of blocks, so its upper part cannot be told "
            "from its lower one; take tune: full or none"
        )
    family = max(fit, key=lambda name: name.count("#"))
    pattern = re.escape(family).replace(re.escape("#"), r"\d+")
    names = [name for name, _ in module.named_modules()]
    last = max(at for at, name in enumerate(names) if re.fullmatch(pattern, name))
    inside = names[last] + "."
    behind = tuple(name for name in names[last + 1 :] if not name.startswith(inside))
    return Tower(pattern, behind)


def block_names(module: nn.Module, tower: Tower) -> list[str]:
    """Names of the blocks of a tower, the lowest first.

    Raises:
        ConfigError: there are none.
    """
    names = [name for name, _ in module.named_modules() if re.fullmatch(tower.blocks, name)]
    if not names:
        raise ConfigError(f"{type(module).__name__} has no blocks {tower.blocks!r}")
    return names


def top_names(module: nn.Module, towers: Sequence[Tower], blocks: int | None) -> list[str]:
    """Names of the modules that learn where the last `blocks` blocks of each tower do.

    Raises:
        ConfigError: a tower has fewer blocks.
    """
    names: list[str] = []
    for tower in towers:
        stack = block_names(module, tower)
        top = tower.n_top(stack, blocks)
        if top > len(stack):
            raise ConfigError(
                f"blocks: {top} is more than the {len(stack)} blocks of {type(module).__name__}; "
                "tune: full lets all of it learn"
            )
        names += stack[-top:]
        names += [name for name in tower.behind if _has(module, name)]
    return names


def learning_names(
    module: nn.Module, towers: Sequence[Tower], tune: str, blocks: int | None = None
) -> list[str]:
    """Names of the parameters that learn, in the order of definition.

    Args:
        tune: "none", "top" (the last `blocks` blocks of each tower) or "full".
    """
    if tune == "none":
        return []
    named = [name for name, _ in module.named_parameters()]
    if tune == "full":
        return named
    roots = tuple(f"{name}." for name in top_names(module, towers, blocks))
    return [name for name in named if name.startswith(roots)]


def used_names(module: nn.Module, names: Sequence[str], run: Callable[[], Tensor]) -> list[str]:
    """Those of some parameters that a result depends on.

    Unused poolers and heads must not reach an optimiser: they would never have a gradient.

    Args:
        run: gives the result; called once, with gradients.
    """
    if not names:
        return []
    chosen = set(names)
    for name, weight in module.named_parameters():
        weight.requires_grad_(name in chosen)
    weights = dict(module.named_parameters())
    with torch.enable_grad():
        result = run().float().sum()
        found = torch.autograd.grad(result, [weights[n] for n in names], allow_unused=True)
    return [name for name, gradient in zip(names, found, strict=True) if gradient is not None]


class Trunk:
    """What of an encoder comes before its first learning blocks.

    Args:
        module: the encoder's model.
        towers: as `towers_of` has them.
        tune: "none", "top" or "full".
        blocks: how many learn; each tower's own number if None.

    Attributes:
        boundaries: names of the blocks whose input does not depend on what learns; none where the
            lowest block learns. With `tune: none` the last block is one, so that little is left
            to compute.
    """

    def __init__(
        self, module: nn.Module, towers: Sequence[Tower], tune: str, blocks: int | None
    ) -> None:
        self.module = module
        self.boundaries: list[str] = []
        self._below: list[str] = []
        self._tuples: dict[str, int] = {}
        if tune == "full":
            return
        feeds = False
        for tower in towers:
            stack = block_names(module, tower)
            top = 1 if tune == "none" else tower.n_top(stack, blocks)
            if tower.is_fed and feeds:
                continue
            feeds = True
            self.boundaries.append(stack[-top])
            self._below += stack[:-top]

    def capture(self, run: Callable[[], Any]) -> list[Tensor]:
        """What enters the boundaries when `run` calls the model, in their order.

        The pass ends at the last of them.
        """
        caught: dict[str, Tensor] = {}

        def catch(name: str) -> Callable[..., None]:
            def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                caught[name] = _hidden(args, kwargs)
                if len(caught) == len(self.boundaries):
                    raise _ReachedError

            return hook

        def note(name: str) -> Callable[..., None]:
            def hook(_: nn.Module, __: Any, output: Any) -> None:
                self._tuples[name] = len(output) if isinstance(output, tuple) else 0

            return hook

        handles = [
            self.module.get_submodule(name).register_forward_pre_hook(catch(name), with_kwargs=True)
            for name in self.boundaries
        ]
        handles += [
            self.module.get_submodule(name).register_forward_hook(note(name))
            for name in self._below
        ]
        try:
            run()
        except _ReachedError:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return [caught[name] for name in self.boundaries]

    def release(self) -> None:
        """Put what passes its input on in place of the lower blocks, whose memory is freed.

        From now on the model runs inside `given` alone.
        """
        for name in self._below:
            path, _, leaf = name.rpartition(".")
            parent = self.module.get_submodule(path)
            setattr(parent, leaf, _Pass(self._tuples.get(name, 0)))

    @contextmanager
    def given(self, states: Sequence[Tensor]) -> Iterator[None]:
        """The boundaries are given these states, whatever the blocks below made, inside."""

        def put(tensor: Tensor) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
            def hook(
                _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
            ) -> tuple[tuple[Any, ...], dict[str, Any]]:
                if args:
                    return (tensor, *args[1:]), kwargs
                return args, {**kwargs, "hidden_states": tensor}

            return hook

        handles = [
            self.module.get_submodule(name).register_forward_pre_hook(put(state), with_kwargs=True)
            for name, state in zip(self.boundaries, states, strict=True)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def recompute(module: nn.Module, towers: Sequence[Tower]) -> None:
    """Have every block compute its activations again in the backward pass instead of keeping them.

    Dropout draws the same again.
    """
    for tower in towers:
        for name in block_names(module, tower):
            block: Any = module.get_submodule(name)
            block.forward = functools.partial(_recomputed, block.forward)


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


class _ReachedError(Exception):
    """The last boundary was reached."""


class _Pass(nn.Module):
    """Gives back what it was given, in the form that the block there did."""

    def __init__(self, n_values: int) -> None:
        super().__init__()
        self.n_values = n_values

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The hidden states as they came."""
        hidden = _hidden(args, kwargs)
        return (hidden, *[None] * (self.n_values - 1)) if self.n_values else hidden


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    hidden = args[0] if args else kwargs["hidden_states"]
    assert isinstance(hidden, Tensor)
    return hidden


def _has(module: nn.Module, name: str) -> bool:
    try:
        module.get_submodule(name)
    except AttributeError:
        return False
    return True
