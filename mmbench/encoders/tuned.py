"""Fine-tuned weights as a folder in the layout that the encoder was read from.

What `--weights` takes: model.safetensors with the names of the published files, the configuration,
and copies of the tokenizer's files and of how pictures are prepared.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from mmbench.encoders.dual import PROCESSOR_FILES
from mmbench.encoders.hf import SENTENCES
from mmbench.encoders.loading import hash_files, local_weights, tokenizer_files, weights_files
from mmbench.encoders.neural import NeuralEncoder
from mmbench.encoders.pair import DESCRIPTION, Pair
from mmbench.encoders.pretrained import quiet
from mmbench.encoders.timm_vision import TimmVision
from mmbench.encoders.vlmo_base_plus import CONFIG, VlmoBasePlus
from mmbench.errors import DataError

FACTS = "finetuning.json"
"""In a folder of fine-tuned weights: what they came of."""


def save_tuned(encoder: NeuralEncoder, folder: Path) -> str:
    """Write an encoder's weights, as they are now, into an empty folder; their SHA-256.

    Raises:
        DataError: E108 the folder cannot be written.
    """
    from safetensors import SafetensorError

    try:
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(encoder, Pair):
            _save_pair(encoder, folder)
        else:
            _save_one(encoder, folder)
    except (OSError, SafetensorError) as problem:
        raise DataError(
            f"E108 {folder} cannot be written ({problem}); make room, then run this again"
        ) from problem
    return tuned_digest(folder)


def tuned_digest(folder: Path) -> str:
    """SHA-256 of the weights in a folder that `save_tuned` wrote; of a pair, of all its files.

    Raises:
        DataError: E403 there are none, E404 they are broken.
        OSError: they cannot be read.
    """
    found = list(hash_files(weights_files(folder)).values())
    if (folder / DESCRIPTION).is_file():
        for kind in ("textual", "visual"):
            found += hash_files(weights_files(folder / kind)).values()
        return hashlib.sha256("".join(found).encode()).hexdigest()
    return "".join(found)


def _save_pair(pair: Pair, folder: Path) -> None:
    from safetensors.torch import save_file

    known = pair.described()
    for kind, part in pair.parts.items():
        (folder / kind).mkdir(exist_ok=True)
        _save_one(part, folder / kind)
        known[kind]["weights_sha256"] = local_weights(folder / kind).digest
    save_file(_plain(pair.module.own()), folder / "model.safetensors")
    (folder / DESCRIPTION).write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")


def _save_one(encoder: NeuralEncoder, folder: Path) -> None:
    from safetensors.torch import save_file

    module: Any = encoder.module
    weights: Any = encoder.weights  # type: ignore[attr-defined]  # of all that have a space
    source = weights.folder
    if isinstance(encoder, VlmoBasePlus):
        save_file(_plain(module.state_dict()), folder / "model.safetensors")
        sizes = json.dumps(asdict(encoder.module.shape), indent=2)
        (folder / CONFIG).write_text(sizes + "\n", encoding="utf-8")
        source = encoder.tokenizer_folder
    elif isinstance(encoder, TimmVision):
        save_file(_plain(module.state_dict()), folder / "model.safetensors")
        config = json.dumps(encoder.described(), indent=2)
        (folder / "config.json").write_text(config + "\n", encoding="utf-8")
        return
    else:
        with quiet():
            module.save_pretrained(folder)
    beside = [weights.folder / name for name, _ in PROCESSOR_FILES]
    beside += [weights.folder / name for name in SENTENCES]
    for file in (*tokenizer_files(source), *beside):
        if file.is_file():
            shutil.copyfile(file, folder / file.name)
    for file in weights.folder.glob("*_Pooling/config.json"):
        (folder / file.parent.name).mkdir(exist_ok=True)
        shutil.copyfile(file, folder / file.parent.name / file.name)


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}


def tuning_of(folder: Path) -> dict[str, Any] | None:
    """What is known of how the weights in a folder were fine-tuned; None where they were not."""
    try:
        facts = json.loads((folder / FACTS).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) else None
