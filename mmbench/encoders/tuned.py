"""Fine-tuned weights as a folder in the layout that the encoder was read from.

What `--weights` takes: model.safetensors with the names of the published files, the configuration,
and copies of the tokenizer's files and of how pictures are prepared.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmbench.encoders.dual import PROCESSOR_FILES
from mmbench.encoders.loading import hash_files, quiet, tokenizer_files, weights_files
from mmbench.encoders.neural import NeuralEncoder
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
    from safetensors.torch import save_file

    module: Any = encoder.module
    weights: Any = encoder.weights  # type: ignore[attr-defined]  # of all that have a space
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(encoder, VlmoBasePlus):
            tensors = {n: t.detach().cpu().contiguous() for n, t in module.state_dict().items()}
            save_file(tensors, folder / "model.safetensors")
            sizes = json.dumps(asdict(encoder.module.shape), indent=2)
            (folder / CONFIG).write_text(sizes + "\n", encoding="utf-8")
            source = encoder.tokenizer_folder
        else:
            with quiet():
                module.save_pretrained(folder)
            source = weights.folder
        beside = [weights.folder / name for name, _ in PROCESSOR_FILES]
        for file in (*tokenizer_files(source), *beside):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)
    except (OSError, SafetensorError) as problem:
        raise DataError(
            f"E108 {folder} cannot be written ({problem}); make room, then run this again"
        ) from problem
    return "".join(hash_files(weights_files(folder)).values())


def tuning_of(folder: Path) -> dict[str, Any] | None:
    """What is known of how the weights in a folder were fine-tuned; None where they were not."""
    try:
        facts = json.loads((folder / FACTS).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) else None
