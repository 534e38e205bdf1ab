"""Checkpoints of VLMo: read without running anything, fitted to the model, and compared with it.

The file is a safetensors file, or what `torch.save` makes of named tensors, bare or under
"state_dict", "module" or "model", with or without a leading "module." in all names. Trunk,
embeddings and type vectors must all be there; heads may be absent, as fine-tuned checkpoints lack
some, and are then drawn at random.
"""

from __future__ import annotations

import math
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmbench.encoders.hub import SAFE, first_line
from mmbench.encoders.loading import check_file
from mmbench.encoders.vlmo_model import TEMPERATURE, Vlmo, VlmoShape
from mmbench.errors import DataError

_WRAPPERS = ("state_dict", "module", "model")
_REQUIRED = ("transformer.", "text_embeddings.", "token_type_embeddings.")
_IGNORED = re.compile(
    r"text_embeddings\.position_ids$|relative_position_index$"
    r"|^(optimizer|lr_scheduler|scheduler|grad_scaler|loss_scaler)(\.|_|s\b|$)"
)
_OTHER_SIZES = ("relative_position_bias", "gamma_1")
_TEXT_POSITIONS = "text_embeddings.position_embeddings.weight"
_IMAGE_POSITIONS = "transformer.pos_embed"
_TYPES = "token_type_embeddings.weight"
_FINGERPRINT = (
    "transformer.cls_token",
    "transformer.pos_embed",
    "transformer.blocks.0.attn.qkv.weight",
    "text_embeddings.word_embeddings.weight",
    "transformer.norm.weight",
)


@dataclass(frozen=True)
class Fit:
    """How a checkpoint and a model go together, by names of parameters.

    Attributes:
        matched: those of the model that the file has in their shape.
        missing: those of the model that the file lacks.
        unexpected: those of the file that the model lacks.
        unfit: those that the file has in another shape, with both shapes.
        share: of the numbers in the model, those that are matched.
        changes: what was done to tensors of the file to make them fit.
        sums: of five named tensors, as a fingerprint.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    unfit: tuple[str, ...]
    share: float
    changes: tuple[str, ...]
    sums: Mapping[str, float]

    @property
    def drawn(self) -> tuple[str, ...]:
        """Heads that are random, because the file does not have them."""
        unfit = [name.partition(" ")[0] for name in self.unfit]
        return tuple(sorted({name.partition(".")[0] for name in (*self.missing, *unfit)}))


def load_vlmo(path: Path, shape: VlmoShape, *, extend_text: bool = False) -> tuple[Vlmo, Fit]:
    """A VLMo with the weights of a checkpoint: float32, on the CPU, in evaluation mode.

    Args:
        extend_text: interpolate text positions where the file has fewer than `shape` asks for.

    Raises:
        DataError: E403 the file is missing, E404 broken, E405 unsafe, E406 of another model, of
            another size or incomplete.
    """
    tensors = read_tensors(path)
    with torch.device("meta"):
        model = Vlmo(shape)
    wanted = model.state_dict()
    changes = _fit_positions(tensors, shape, path, extend_text=extend_text)
    fit = compare(tensors, wanted, changes)
    _check(fit, path)
    for name in fit.matched:
        if not torch.isfinite(tensors[name]).all():
            raise DataError(f"E404 {path} is broken ({name} holds NaN or infinity)")
    model.to_empty(device="cpu")
    _draw_heads(model, fit.drawn)
    # Copied, so that the file can be moved or replaced while the model is in use.
    model.load_state_dict({name: tensors[name] for name in fit.matched}, strict=False)
    return model.eval(), fit


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The named tensors of a checkpoint in float32, without wrappers and training state.

    Raises:
        DataError: E403 the file is missing, E404 broken, E405 unsafe, E406 it holds something else.
    """
    if not path.is_file():
        raise DataError(f"E403 {path} is not here; --weights names the checkpoint or its folder")
    check_file(path)
    content = _load(path)
    if not isinstance(content, dict):
        raise DataError(
            f"E406 {path} holds a {type(content).__name__}, not tensors by name; take a checkpoint "
            "of VLMo-Base-Plus"
        )
    for key in _WRAPPERS:
        if isinstance(content.get(key), dict):
            content = content[key]
            break
    named = {str(name): value for name, value in content.items()}
    if named and all(name.startswith("module.") for name in named):
        named = {name.removeprefix("module."): value for name, value in named.items()}
    named = {name: value for name, value in named.items() if not _IGNORED.search(name)}
    for name, value in named.items():
        if any(part in name for part in _OTHER_SIZES):
            raise DataError(
                f"E406 {path} is a VLMo-Base or VLMo-Large (it has {name}); only Base-Plus, which "
                "has absolute positions and no layer scale, is known here"
            )
        if not isinstance(value, Tensor) or _is_odd(value):
            raise DataError(
                f"E406 {path}: {name} is no dense tensor of numbers; take a checkpoint that holds "
                "the weights of VLMo-Base-Plus alone"
            )
    return {name: value.detach().float() for name, value in named.items()}


def compare(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], changes: tuple[str, ...] = ()
) -> Fit:
    """Compare tensors with those of a model, name by name and shape by shape."""
    known = [name for name in wanted if name in tensors]
    matched = [name for name in known if tensors[name].shape == wanted[name].shape]
    n_matched = sum(wanted[name].numel() for name in matched)
    return Fit(
        matched=tuple(matched),
        missing=tuple(name for name in wanted if name not in tensors),
        unexpected=tuple(name for name in tensors if name not in wanted),
        unfit=tuple(
            f"{name} {list(tensors[name].shape)} for {list(wanted[name].shape)}"
            for name in known
            if tensors[name].shape != wanted[name].shape
        ),
        share=n_matched / sum(tensor.numel() for tensor in wanted.values()),
        changes=changes,
        sums={name: float(tensors[name].double().sum()) for name in _FINGERPRINT if name in known},
    )


def unsafe_names(path: Path) -> list[str]:
    """What a pickle would call or make beside tensors, read off without running any of it."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (ValueError, RuntimeError, pickle.UnpicklingError, EOFError):
        pass  # an old file of torch, or a plain pickle
    found: set[str] = set()
    texts: list[str] = []
    with path.open("rb") as file:
        try:
            while True:  # an old file of torch is a row of pickles
                for opcode, argument, _ in pickletools.genops(file):
                    if opcode.name == "GLOBAL":
                        found.add(str(argument).replace(" ", "."))
                    elif opcode.name == "STACK_GLOBAL":
                        found.add(".".join(texts[-2:]))
                    elif isinstance(argument, str):
                        texts.append(argument)
        except Exception:  # noqa: BLE001  behind the pickles come the numbers
            pass
    return sorted(name for name in found if not name.startswith(("torch.", "collections.")))


def _is_odd(tensor: Tensor) -> bool:
    return tensor.layout != torch.strided or tensor.is_complex() or tensor.device.type != "cpu"


def _load(path: Path) -> object:
    try:
        if path.suffix == SAFE:
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old protocols and slow checks
            # Old files, which are no zip archives, cannot be mapped into memory.
            mapped = zipfile.is_zipfile(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as problem:
        unsafe = unsafe_names(path)
        if not unsafe:
            raise DataError(f"E404 {path} is broken ({first_line(problem)})") from None
        raise DataError(
            f"E405 {path} is a pickle that holds more than tensors ({', '.join(unsafe[:8])}); it "
            "could run code and is not opened. Take the published checkpoint, or its tensors "
            "saved as a safetensors file"
        ) from None
    except Exception as problem:  # noqa: BLE001  what a damaged file makes torch stumble over
        raise DataError(
            f"E404 {path} is broken ({first_line(problem)}); fetch it again or take it from a "
            "backup"
        ) from None


def _fit_positions(
    tensors: dict[str, Tensor], shape: VlmoShape, path: Path, *, extend_text: bool
) -> tuple[str, ...]:
    """Cut or interpolate the position tables in place; what was done, in words."""
    changes = []
    text = tensors.get(_TEXT_POSITIONS)
    if text is not None and text.dim() == 2 and len(text) != shape.text_length:
        if len(text) > shape.text_length:
            tensors[_TEXT_POSITIONS] = text[: shape.text_length]
            changes.append(f"text positions: the first {shape.text_length} of {len(text)}")
        elif extend_text and len(text):
            tensors[_TEXT_POSITIONS] = _stretched(text, shape.text_length)
            changes.append(f"text positions: {len(text)} stretched to {shape.text_length}")
        else:
            raise DataError(
                f"E406 {path} has {len(text)} text positions, and {shape.text_length} are asked "
                'for; give "text_length" in vlmo_config.json beside it, or "extend_text": true to '
                "interpolate them"
            )
    image = tensors.get(_IMAGE_POSITIONS)
    if image is not None and image.dim() == 3 and image.shape[1] != 1 + shape.grid**2:
        side = math.isqrt(max(0, image.shape[1] - 1))
        if side and 1 + side**2 == image.shape[1]:
            tensors[_IMAGE_POSITIONS] = _regridded(image, side, shape.grid)
            changes.append(
                f"image positions: {side} x {side} interpolated to {shape.grid} x {shape.grid}"
            )
    types = tensors.get(_TYPES)
    if types is not None and types.dim() == 2 and len(types) == 3:
        # Fine-tuned on NLVR2, where the third is for the second of two pictures.
        tensors[_TYPES] = types[:2]
        changes.append("modality types: the first 2 of 3")
    return tuple(changes)


def _stretched(table: Tensor, length: int) -> Tensor:
    stretched = F.interpolate(table.T[None], size=length, mode="linear", align_corners=True)
    return stretched[0].T


def _regridded(table: Tensor, side: int, grid: int) -> Tensor:
    """Positions [1, 1 + side^2, D] on another grid; that of [CLS] stays."""
    cls, patches = table[:, :1], table[:, 1:]
    squares = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    other = F.interpolate(squares, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([cls, other.permute(0, 2, 3, 1).reshape(1, grid**2, -1)], dim=1)


def _check(fit: Fit, path: Path) -> None:
    """Refuse a checkpoint in which something of the trunk differs."""
    problems = []
    for words, names in (
        ("lacks", fit.missing),
        ("has in another shape", fit.unfit),
        ("has besides", fit.unexpected),
    ):
        found = [name for name in names if name.startswith(_REQUIRED)]
        if found:
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            problems.append(f"it {words} {', '.join(found[:3])}{more}")
    if problems:
        n_wanted = len(fit.matched) + len(fit.missing) + len(fit.unfit)
        raise DataError(
            f"E406 {path} does not fit VLMo-Base-Plus: {'; '.join(problems)} "
            f"({len(fit.matched)} of {n_wanted} tensors match). Take a checkpoint of "
            "Base-Plus, or describe other sizes in vlmo_config.json beside it"
        )


def _draw_heads(model: Vlmo, heads: tuple[str, ...]) -> None:
    """Initialise the heads that a checkpoint lacks, always alike."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in heads:
            head = getattr(model, name)
            if isinstance(head, nn.Parameter):
                head.fill_(-math.log(TEMPERATURE))
                continue
            for part in head.modules():
                if isinstance(part, nn.LayerNorm):
                    part.reset_parameters()
                elif isinstance(part, nn.Linear):
                    part.weight.normal_(std=0.02, generator=rng)
                    if part.bias is not None:
                        part.bias.zero_()
            if name == "mlm_score":
                head.bias.zero_()
