"""The traps of GroupViT: BatchNorm, the noise of training, weights in a pickle."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mmbench.encoders.groupvit import GroupViT
from mmbench.encoders.neural import Batch, Options


def loaded(folder: Path) -> GroupViT:
    encoder = GroupViT(Options(weights=folder))
    encoder.load()
    return encoder


def pictures_of(encoder: GroupViT, n_pictures: int) -> Batch:
    rng = np.random.default_rng(5)
    pictures = [
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))
        for _ in range(n_pictures)
    ]
    return encoder.picture_batch([encoder.read_picture(one, "7") for one in pictures])


def test_nothing_depends_on_chance_or_on_the_batch(dual_folders: dict[str, Path]) -> None:
    encoder = loaded(dual_folders["groupvit"])
    batch = pictures_of(encoder, 12)
    before = {name: values.clone() for name, values in encoder.module.named_buffers()}
    with torch.inference_mode():
        together = encoder.encode_picture(batch).pooled
        torch.manual_seed(99)
        torch.testing.assert_close(encoder.encode_picture(batch).pooled, together, atol=0, rtol=0)
        for row in range(12):
            one = {"pixel_values": batch["pixel_values"][row : row + 1]}
            alone = encoder.encode_picture(one).pooled[0]
            torch.testing.assert_close(alone, together[row], atol=1e-5, rtol=0)
    for name, values in encoder.module.named_buffers():
        assert torch.equal(values, before[name]), name


def test_the_published_pickle_is_read(dual_folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = shutil.copytree(dual_folders["groupvit"], tmp_path / "groupvit")
    tensors = load_file(folder / "model.safetensors")
    # Old files hold the numbers of the positions too.
    tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    encoder, expected = loaded(folder), loaded(dual_folders["groupvit"])
    with torch.inference_mode():
        for text in ("a tent", ""):
            ids = encoder.text_batch(encoder.tokenize([text]))
            found = encoder.encode_text(ids).pooled
            again = expected.encode_text(ids).pooled
            torch.testing.assert_close(found, again, atol=1e-6, rtol=0)
