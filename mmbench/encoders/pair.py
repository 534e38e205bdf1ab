"""A text encoder and a vision encoder joined by projections that are learnt into one dual encoder.

    pair:minilm-l6+resnet50                     two registered encoders
    pair:hf:intfloat/e5-base-v2+timm:resnet18   any text model, any vision model
    pair:minilm-l6=TEXT+timm=VISION             with the weights in these folders

    z_t = L2(W_t f_t),   z_v = L2(W_v f_v),   W_t [D, E_t], W_v [D, E_v]

f_t and f_v are the pooled vectors of the two encoders, as each gives them alone. The projections
and the temperature are those of Radford et al., ICML 2021 (https://arxiv.org/abs/2103.00020):
linear, without a bias, drawn from N(0, 1/E). No published weights hold them, so the pair is
fine-tuned on a dataset's pictures and texts, or learns with a recommender, before its vectors mean
anything.

A folder of a fine-tuned pair holds `pair.json`, the projections in `model.safetensors`, and the
two encoders in `textual` and `visual`, each in the layout that it was read from.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from mmbench.encoders.base import ENCODERS, register_encoder
from mmbench.encoders.loading import Weights, local_weights, read_json
from mmbench.encoders.neural import Batch, Encoded, Hub, NeuralEncoder, Options, TokenIds
from mmbench.encoders.preprocessing import Preprocessing
from mmbench.encoders.timm_vision import read_weights
from mmbench.errors import ConfigError, DataError

DESCRIPTION = "pair.json"
"""In a folder of a fine-tuned pair: which two encoders it is of."""
DIM = 256
"""Columns of the common space, D."""
TEMPERATURE = 0.07
_KINDS = {"textual": "text", "visual": "vision"}
_SOURCE = ("model", "revision")


class PairModel(nn.Module):
    """Two models, two projections and the logarithm of the temperature's inverse."""

    def __init__(self, textual: nn.Module, visual: nn.Module, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.textual, self.visual = textual, visual
        self.textual_projection = nn.Linear(widths["textual"], DIM, bias=False)
        self.visual_projection = nn.Linear(widths["visual"], DIM, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(TEMPERATURE)))

    def own(self) -> dict[str, Tensor]:
        """What belongs to neither of the two models, by name."""
        return {
            name: value
            for name, value in self.state_dict().items()
            if not name.startswith(("textual.", "visual."))
        }


@register_encoder("pair")
class Pair(NeuralEncoder):
    """Pooled vectors of a text and of a vision encoder, projected into one space [256]."""

    hub = Hub("")
    modalities = ("visual", "textual")
    variants: ClassVar[tuple[str, ...]] = ("proj",)
    takes = frozenset({"tokens", "max_tokens", "preprocess", "model"})
    citation = "projections as Radford et al., ICML 2021"
    module: PairModel
    weights: Weights | None

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        given, place = self.options, self.options.weights
        if given.revision is not None:
            raise ConfigError("a pair has no revision; name folders, as in pair:NAME=DIR+NAME=DIR")
        if given.model is None and place is None:
            raise ConfigError(
                "pair needs two encoders: --encoder pair:TEXT+VISION, as in "
                "pair:minilm-l6+resnet50, or --weights with the folder of a fine-tuned pair"
            )
        self._known: Mapping[str, Any] = {} if place is None else _described(place)
        if place is not None:
            names = {kind: str(self._known[kind]["encoder"]) for kind in _KINDS}
            folders: Mapping[str, Path | None] = {kind: place / kind for kind in _KINDS}
            if given.model is not None and (asked := _named(given.model)[0]) != names:
                raise ConfigError(
                    f"{place} is a pair of {names['textual']} and {names['visual']}, not of "
                    f"{asked['textual']} and {asked['visual']}; leave the names out"
                )
        else:
            names, folders = _named(str(given.model))
        self.names = names
        # What was cut and framed while it was learnt is so ever after.
        tokens = given.max_tokens or self._known.get("textual", {}).get("max_tokens")
        framing = given.preprocess
        if framing == "own":
            framing = self._known.get("visual", {}).get("preprocess", "own")
        made = {}
        for kind, name in names.items():
            options = Options(weights=folders[kind], tokens=given.tokens)
            if kind == "textual":
                options = replace(options, max_tokens=tokens)
            else:
                options = replace(options, preprocess=framing)
            made[kind] = _made(name, kind, options)
        self.text, self.vision = made["textual"], made["visual"]
        self.fixed_length = self.text.fixed_length  # type: ignore[misc]  # of this one
        licences = {part.hub.licence for part in made.values() if part.hub.licence}
        self.hub = Hub("", licence="; ".join(sorted(licences)))  # type: ignore[misc]
        self.weights = None
        if place is None:
            self.new = frozenset({"textual_projection.weight", "visual_projection.weight"})

    @property
    def parts(self) -> Mapping[str, NeuralEncoder]:
        """The two encoders, by modality."""
        return {"textual": self.text, "visual": self.vision}

    def load(self) -> None:
        """Read both encoders, and the projections of a fine-tuned pair.

        Raises:
            DataError: as both raise; E404 a part is not the one that was stored; E406 the
                projections are of other encoders.
        """
        for part in self.parts.values():
            part.load()
        widths = {kind: _width(part, kind) for kind, part in self.parts.items()}
        self.module = PairModel(self.text.module, self.vision.module, widths)
        if self.options.weights is None:
            self.draw(0)
        else:
            self._read(self.options.weights)
        self.module.eval()

    def _read(self, folder: Path) -> None:
        self.weights = local_weights(folder)
        for kind, part in self.parts.items():
            stated, found = self._known[kind]["weights_sha256"], _digest(part)
            if stated != found:
                raise DataError(
                    f"E404 {folder / kind} is not what {DESCRIPTION} says (SHA-256 {found[:12]}, "
                    f"stated {str(stated)[:12]}); take the folder as it was stored"
                )
        found_own, own = read_weights(self.weights), self.module.own()
        shapes = {name: tuple(value.shape) for name, value in found_own.items()}
        if shapes != {name: tuple(value.shape) for name, value in own.items()}:
            listed = ", ".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items()))
            raise DataError(
                f"E406 {self.weights.files[0]} holds {listed or 'nothing'}, not the projections of "
                f"{self.names['textual']} and {self.names['visual']}"
            )
        self.module.load_state_dict(found_own, strict=False)

    def draw(self, seed: int) -> None:
        """Draw the projections anew, where no stored ones are there."""
        if not self.new:
            return
        generator = torch.Generator().manual_seed(seed)
        for layer in (self.module.textual_projection, self.module.visual_projection):
            drawn = torch.randn(layer.weight.shape, generator=generator)
            with torch.no_grad():
                layer.weight.copy_(drawn * layer.in_features**-0.5)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that determines the result, after `load`; drawn projections are none."""
        own = "" if self.weights is None else self.weights.digest
        told = {
            kind: {key: value for key, value in part.settings.items() if key not in _SOURCE}
            for kind, part in self.parts.items()
        }
        hashes = [own, *(_digest(part) for part in self.parts.values())]
        return {
            "version": 1,
            "model": "+".join(self.names[kind] for kind in _KINDS),
            "revision": "",
            "weights_sha256": hashlib.sha256("".join(hashes).encode()).hexdigest(),
            "variant": self.variant,
            "dim": DIM,
            "projected": True,
            "l2_normalised": True,
            **told,
        }

    def described(self) -> dict[str, Any]:
        """What `pair.json` says, but for the hashes of the two encoders' stored weights."""
        return {
            "schema": 1,
            "dim": DIM,
            "textual": {
                "encoder": self.names["textual"],
                "max_tokens": self.text.options.max_tokens,
            },
            "visual": {
                "encoder": self.names["visual"],
                "preprocess": self.vision.options.preprocess,
            },
        }

    def tokenize(self, texts: Sequence[str]) -> list[TokenIds]:
        """As the text encoder does."""
        return self.text.tokenize(texts)

    def text_batch(self, texts: Sequence[TokenIds]) -> Batch:
        """As the text encoder does."""
        return self.text.text_batch(texts)

    @property
    def framing(self) -> Preprocessing | None:
        """As the vision encoder has it."""
        return self.vision.framing

    def read_picture(self, picture: Image.Image, item: str) -> Tensor:
        """As the vision encoder does."""
        return self.vision.read_picture(picture, item)

    def picture_batch(self, pictures: Sequence[Tensor]) -> Batch:
        """As the vision encoder does."""
        return self.vision.picture_batch(pictures)

    def encode_text(self, texts: Batch) -> Encoded:
        """Projected vectors [B, D]; tokens as the text encoder gives them."""
        return self._projected(self.text.encode_text(texts), "textual")

    def encode_picture(self, pictures: Batch) -> Encoded:
        """Projected vectors [B, D]; tokens as the vision encoder gives them."""
        return self._projected(self.vision.encode_picture(pictures), "visual")

    def read(self, texts: Batch, pictures: Batch, modality: str) -> Encoded:
        """Projected vectors and the states of all tokens of one of the two encoders."""
        return self._projected(self.parts[modality].read(texts, pictures, modality), modality)

    def _projected(self, found: Encoded, modality: str) -> Encoded:
        model = self.module
        project = model.textual_projection if modality == "textual" else model.visual_projection
        return replace(found, pooled=F.normalize(project(found.pooled).float(), dim=1))


def label(address: str) -> str:
    """What the sets of a pair are called after: its two encoders, without folders."""
    names, folders = _named(address)
    shown = []
    for kind, name in names.items():
        folder, (key, _, model) = folders[kind], name.partition(":")
        if not model and folder is not None and key in ("timm", "hf"):
            model = folder.resolve().name
        shown.append("-".join(part for part in (key, model) if part))
    return "+".join(shown)


def names_of(address: str) -> tuple[str, str]:
    """Names of the text and of the vision encoder, without folders.

    Raises:
        ConfigError: it does not name two.
    """
    names, _ = _named(address)
    return names["textual"], names["visual"]


def bare_name(encoder: str) -> str:
    """An encoder's name in a recipe without folders, as where weights lie says nothing of them.

    Raises:
        ConfigError: a pair does not name two encoders.
    """
    key, _, model = encoder.partition(":")
    if key == "pair" and model:
        names, folders = _named(model)
        return f"{key}:{'+'.join(names.values())}" if any(folders.values()) else encoder
    return key if model and Path(model).is_dir() else encoder


def _named(address: str) -> tuple[dict[str, str], dict[str, Path | None]]:
    """Names of the two encoders, and folders of their weights, of "TEXT[=DIR]+VISION[=DIR]"."""
    halves = [
        (address[: at.start()], address[at.end() :])
        for at in re.finditer(r"\+", address)
        # A folder may hold a "+" too; an encoder's name stands behind the one that is meant.
        if re.split(r"[:=]", address[at.end() :])[0].replace("_", "-") in ENCODERS.names()
    ]
    if len(halves) != 1 or not halves[0][0]:
        raise ConfigError(
            f"pair:{address} does not name a text and a vision encoder; write pair:TEXT+VISION, "
            "as in pair:minilm-l6+resnet50, with =FOLDER behind a name for local weights"
        )
    names, folders = {}, {}
    for kind, half in zip(_KINDS, halves[0], strict=True):
        name, has_folder, folder = half.partition("=")
        if has_folder and not folder:
            raise ConfigError(f"pair:{address}: a folder belongs behind {name}=")
        folders[kind] = Path(folder).expanduser() if folder else None
        key, _, model = name.partition(":")
        if model and not folder and Path(model).is_dir():
            folders[kind], model = Path(model), ""
        # Without a folder: where a model once lay says nothing about it.
        names[kind] = ":".join(part for part in (key.replace("_", "-"), model) if part)
    return names, folders


def _made(name: str, modality: str, options: Options) -> NeuralEncoder:
    """One of the two encoders, checked to give vectors of the modality and to learn."""
    key, _, model = name.partition(":")
    entry = ENCODERS.get(key)
    kind: Any = entry.obj
    if not issubclass(kind, NeuralEncoder) or not kind.learns or entry.name == "pair":
        raise ConfigError(f"{entry.name} cannot be one of a pair: it has no weights that can learn")
    if modality not in kind.modalities or kind.is_joint:
        raise ConfigError(
            f"{entry.name} gives no {modality} vectors of {_KINDS[modality]} alone; a pair is "
            "TEXT+VISION, as in pair:minilm-l6+resnet50"
        )
    for option, usual in (("tokens", False), ("max_tokens", None), ("preprocess", "own")):
        if option not in kind.takes and getattr(options, option) != usual:
            options = replace(options, **{option: usual})  # type: ignore[arg-type]
    if model:
        # Read from its own folder, the name it once had is no address any more.
        options = replace(options, model=None if options.weights is not None else model)
    made: NeuralEncoder = kind(options)
    if made.new:
        raise ConfigError(f"{entry.name} has random weights of its own; take another encoder")
    return made


def _described(folder: Path) -> Mapping[str, Any]:
    """The content of `pair.json`.

    Raises:
        DataError: E403 it is missing; E404 it is broken.
    """
    path = folder / DESCRIPTION
    if not folder.is_dir():
        raise DataError(f"E403 {folder} is no folder; --weights names one of a fine-tuned pair")
    known = read_json(path)
    for kind in _KINDS:
        part = known.get(kind)
        if not isinstance(part, dict) or not {"encoder", "weights_sha256"} <= set(part):
            raise DataError(f"E404 {path} is broken (it names no {_KINDS[kind]} encoder)")
    if known.get("schema") != 1 or known.get("dim") != DIM:
        raise DataError(
            f"E406 {path} is of another version of mmbench (schema {known.get('schema')}, "
            f"{known.get('dim')} columns); fine-tune the pair again"
        )
    return known


def _digest(part: NeuralEncoder) -> str:
    weights: Any = part.weights  # type: ignore[attr-defined]  # all that read texts or pictures
    return str(weights.digest)


def _width(part: NeuralEncoder, modality: str) -> int:
    """Columns of a part's pooled vectors, found by encoding nothing."""
    with torch.no_grad():
        if modality == "textual":
            found = part.encode_text(part.text_batch(part.tokenize(["a"])))
        else:
            blank = part.read_picture(Image.new("RGB", (64, 64)), "a")
            found = part.encode_picture(part.picture_batch([blank]))
    return int(found.pooled.shape[1])
