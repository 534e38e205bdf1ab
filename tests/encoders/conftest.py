"""Tiny dual encoders on the disk, in the layout of their published folders."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

SIDE = 32  # pixels
ROWS = {"clip": 77, "groupvit": 77, "siglip": 64, "siglip2": 64, "blip": 60}  # positions of texts
_SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
_PICTURES = {"image_size": SIDE, "patch_size": 8}
_CLIP_MEAN, _CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def _clip_tokenizer() -> Any:
    import transformers
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    merges = [("t", "e"), ("n", "t</w>"), ("te", "nt</w>"), ("a", "n")]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def _sentence_piece() -> Any:
    """As the tokenizer.json of SigLIP: Unigram, the end token 1 pads too."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁tent", -3.0)]
    pieces += [(letter, -5.0) for letter in string.ascii_letters + string.digits + ",.!'"]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    )


def _gemma() -> Any:
    """As the tokenizer.json of SigLIP 2: BPE that falls back to bytes, and knows capitals."""
    import transformers
    from tokenizers import Tokenizer, models, normalizers, processors

    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *string.ascii_letters, *string.punctuation, "te"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=[("t", "e")],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
    )


def _bert() -> Any:
    import transformers

    letters = string.ascii_lowercase + string.punctuation
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces += [*letters, *(f"##{letter}" for letter in letters), "tent"]
    return transformers.BertTokenizer(vocab={piece: n for n, piece in enumerate(pieces)})


def _clip(tokenizer: Any) -> Any:
    import transformers

    text = {
        **_SHAPE,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 77,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    picture = {**_SHAPE, **_PICTURES, "hidden_size": 48}
    return transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=picture, projection_dim=24)
    )


def _groupvit(tokenizer: Any) -> Any:
    import transformers

    text = {
        **_SHAPE,
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    picture = {
        **_PICTURES,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "depths": [1, 1, 1],
        "num_group_tokens": [8, 4, 0],
        "num_output_groups": [8, 4, 0],
    }
    config = transformers.GroupViTConfig(
        text_config=text,
        vision_config=picture,
        projection_dim=24,
        projection_intermediate_dim=40,
    )
    model = transformers.GroupViTModel(config)
    for name, values in model.named_buffers():  # as after training: BatchNorm has seen something
        if name.endswith("running_mean"):
            values.normal_()
        elif name.endswith("running_var"):
            values.uniform_(0.5, 2.0)
    return model


def _siglip(tokenizer: Any) -> Any:
    import transformers

    text = {**_SHAPE, "vocab_size": len(tokenizer), "max_position_embeddings": 64}
    picture = {**_SHAPE, **_PICTURES}
    return transformers.SiglipModel(
        transformers.SiglipConfig(text_config=text, vision_config=picture)
    )


def _blip(tokenizer: Any) -> Any:
    import transformers

    text = {
        **_SHAPE,
        "vocab_size": len(tokenizer) + 2,  # two more, as [DEC] and [ENC] of the published one
        "encoder_hidden_size": 32,
        "max_position_embeddings": ROWS["blip"],
        "pad_token_id": 0,
        "bos_token_id": len(tokenizer),
        "sep_token_id": 3,
    }
    config = transformers.BlipConfig(
        text_config=text, vision_config={**_SHAPE, **_PICTURES}, image_text_hidden_size=24
    )
    return transformers.BlipForImageTextRetrieval(config)


_CROPPED = {
    "crop_size": {"height": SIDE, "width": SIDE},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": _CLIP_MEAN,
    "image_processor_type": "CLIPImageProcessor",
    "image_std": _CLIP_STD,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": SIDE},
}
_SQUASHED = {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "SiglipImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"height": SIDE, "width": SIDE},
}
_PREPARED: dict[str, dict[str, Any]] = {
    "clip": _CROPPED,
    "groupvit": {  # of the form that files from 2022 have
        "crop_size": SIDE,
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": _CLIP_MEAN,
        "image_std": _CLIP_STD,
        "processor_class": "CLIPProcessor",
        "resample": 3,
        "size": SIDE,
    },
    "siglip": _SQUASHED,
    "siglip2": {**_SQUASHED, "do_convert_rgb": None, "resample": 2},
    "blip": {
        **_SQUASHED,
        "image_mean": _CLIP_MEAN,
        "image_processor_type": "BlipImageProcessor",
        "image_std": _CLIP_STD,
    },
}
_BUILDERS = {
    "clip": (_clip_tokenizer, _clip),
    "groupvit": (_clip_tokenizer, _groupvit),
    "siglip": (_sentence_piece, _siglip),
    "siglip2": (_gemma, _siglip),
    "blip": (_bert, _blip),
}
_CLASSES = {"siglip": "SiglipTokenizer", "siglip2": "GemmaTokenizer"}


@pytest.fixture(scope="session")
def dual_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of "clip", "groupvit", "siglip", "siglip2" and "blip"; tests only read them."""
    root = tmp_path_factory.mktemp("dual")
    for number, (name, (tokenizer_of, model_of)) in enumerate(_BUILDERS.items()):
        folder = root / name
        tokenizer = tokenizer_of()
        torch.manual_seed(number)
        model = model_of(tokenizer)
        with torch.no_grad():
            # Fresh norms do nothing, which would hide one that is forgotten or applied twice, and
            # fresh weights are so small that all texts have nearly the same vector.
            for parameter in model.parameters():
                if parameter.dim() <= 1:
                    parameter.add_(0.3 * torch.randn_like(parameter))
                else:
                    parameter.normal_(std=1.5 * parameter.shape[-1] ** -0.5)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if name in _CLASSES:
            file = folder / "tokenizer_config.json"
            stated = json.loads(file.read_text(encoding="utf-8"))
            stated |= {"tokenizer_class": _CLASSES[name], "model_max_length": 64}
            if name == "siglip2":
                stated["padding_side"] = "right"
            file.write_text(json.dumps(stated), encoding="utf-8")
        prepared = json.dumps(_PREPARED[name], indent=2)
        (folder / "preprocessor_config.json").write_text(prepared, encoding="utf-8")
    return {name: root / name for name in _BUILDERS}


@pytest.fixture(scope="session")
def two_pictures() -> list[Image.Image]:
    """An upright and a wide RGB picture, of odd sides."""
    rng = np.random.default_rng(3)
    shapes = ((61, 43), (40, 75))
    return [
        Image.fromarray(rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        for height, width in shapes
    ]
