"""The traps of BLIP: the final norm once, padding kept out by the mask."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from mmbench.encoders.blip import BLIP
from mmbench.encoders.neural import Options


def test_pictures_pass_the_final_norm_once(dual_folders: dict[str, Path]) -> None:
    encoder = BLIP(Options(weights=dual_folders["blip"], variant="hidden"))
    encoder.load()
    picture = encoder.read_picture(Image.new("RGB", (50, 40), (10, 200, 90)), "7")
    batch = encoder.picture_batch([picture])
    tower = encoder.module.vision_model
    with torch.inference_mode():
        found = encoder.encode_picture(batch).pooled
        before = tower.encoder(tower.embeddings(batch["pixel_values"])).last_hidden_state
        once = tower.post_layernorm(before[:, 0])
        torch.testing.assert_close(found, once, atol=1e-5, rtol=0)
        assert (found - tower.post_layernorm(once)).abs().max() > 0.01


def test_padding_is_kept_out_of_texts(dual_folders: dict[str, Path]) -> None:
    encoder = BLIP(Options(weights=dual_folders["blip"]))
    encoder.load()
    texts = encoder.tokenize(["tent", "tent for two, and for rain"])
    batch = dict(encoder.text_batch(texts))
    with torch.inference_mode():
        expected = encoder.encode_text(batch).pooled
        batch["input_ids"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 9)
        found = encoder.encode_text(batch).pooled
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
