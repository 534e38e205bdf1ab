"""Tiny encoders of real architectures with random weights, saved as their published folders are."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

_SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
_VIT = ("vit_base_patch16_224", 32, {"embed_dim": 16, "depth": 4, "num_heads": 2, "img_size": 32})
TIMM: dict[str, tuple[str, int, dict[str, Any]]] = {
    "mae-b16": _VIT,
    "vit-b16": _VIT,
    "dinov2-b14": ("vit_base_patch14_dinov2", 28, {**_VIT[2], "img_size": 28}),
    "swin-b": (
        "swin_base_patch4_window7_224",
        64,
        {"embed_dim": 8, "depths": [2, 2], "num_heads": [1, 2], "img_size": 64, "window_size": 4},
    ),
    "resnet50": ("resnet50", 32, {"layers": [1, 1, 1, 2], "channels": [4, 4, 8, 8]}),
}

PATCHES = "visualbert-patches"


def kind_of(name: str, options: Mapping[str, Any]) -> str:
    """What `save` takes for an encoder and its options: VisualBERT's weights are two kinds."""
    is_patches = str(options.get("variant")).startswith("patch-")
    return PATCHES if name == "visualbert" and is_patches else name


def wordpiece(specials: tuple[str, ...] = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")) -> Any:
    """Letters and their continuations."""
    letters = string.ascii_lowercase + string.digits
    pieces = [*specials, *letters, *(f"##{letter}" for letter in letters)]
    return {piece: number for number, piece in enumerate(pieces)}


def stirred(model: nn.Module) -> nn.Module:
    """Fresh norms do nothing, and fresh weights tell no two texts apart."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() <= 1:
                weight.add_(0.1 * torch.randn_like(weight))
            else:
                weight.normal_(std=weight[0].numel() ** -0.5)
        for name, values in model.named_buffers():
            if name.endswith("running_mean"):
                values.normal_(std=0.1)
            elif name.endswith("running_var"):
                values.uniform_(0.5, 1.5)
    return model


def save(name: str, folder: Path, *, n_layers: int = 4) -> Path:
    """Save a tiny encoder of a registered name; the folder is what `weights` names."""
    torch.manual_seed(7)
    if name in TIMM:
        return _save_timm(folder, *TIMM[name])
    if name.startswith("visualbert"):
        _save_visualbert(folder / "visualbert", {**_SHAPE, "num_hidden_layers": n_layers + 1})
        if name == PATCHES:
            save("clip-vit-b32", folder / "detector", n_layers=n_layers)
        else:  # the grid of a small ResNet-50, whose last map has 2048 channels as it must
            channels = {"layers": [1, 1, 1, 1], "base_width": 4}
            _save_timm(folder / "detector", "resnet50", 32, channels)
        return folder
    if name == "vlmo-base-plus":
        return _save_vlmo(folder)
    shape = {**_SHAPE, "num_hidden_layers": n_layers}
    model, tokenizer = _TRANSFORMERS[name](shape)
    stirred(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _save_timm(folder: Path, architecture: str, size: int, arguments: dict[str, Any]) -> Path:
    import timm

    given = {key: tuple(v) if isinstance(v, list) else v for key, v in arguments.items()}
    model = stirred(timm.create_model(architecture, num_classes=0, **given).eval())
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    pictures = {"input_size": [3, size, size], "interpolation": "bicubic", "crop_pct": 1.0}
    config = {
        "architecture": architecture,
        "model_args": arguments,
        "pretrained_cfg": {**pictures, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]},
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def _save_visualbert(folder: Path, shape: dict[str, Any]) -> None:
    import transformers

    words = transformers.BertTokenizer(vocab=wordpiece())
    config = transformers.VisualBertConfig(
        **shape, vocab_size=len(words), visual_embedding_dim=2048, max_position_embeddings=40
    )
    stirred(transformers.VisualBertModel(config)).save_pretrained(folder)
    words.save_pretrained(folder)


def _save_vlmo(folder: Path) -> Path:
    import transformers

    from mmbench.encoders.vlmo_model import Vlmo, VlmoShape

    words = transformers.BertTokenizer(vocab=wordpiece())
    sizes = {"width": 16, "blocks": 4, "heads": 2, "vl_from": 3, "image_size": 32}
    sizes |= {"vocabulary": len(words), "text_length": 20}
    folder.mkdir(parents=True)
    words.save_pretrained(folder)
    torch.save(stirred(Vlmo(VlmoShape(**sizes))).state_dict(), folder / "vlmo.pt")
    (folder / "vlmo_config.json").write_text(json.dumps(sizes), encoding="utf-8")
    return folder


def _bert(shape: dict[str, Any]) -> tuple[Any, Any]:
    import transformers

    words = transformers.BertTokenizer(vocab=wordpiece())
    config = transformers.BertConfig(
        **shape, vocab_size=len(words), max_position_embeddings=40, hidden_dropout_prob=0.1
    )
    return transformers.BertModel(config), words


def _electra(shape: dict[str, Any]) -> tuple[Any, Any]:
    import transformers

    words = transformers.BertTokenizer(vocab=wordpiece())
    config = transformers.ElectraConfig(
        **shape, vocab_size=len(words), max_position_embeddings=40, embedding_size=16
    )
    return transformers.ElectraModel(config), words


def _roberta(shape: dict[str, Any]) -> tuple[Any, Any]:
    import transformers
    from tokenizers.pre_tokenizers import ByteLevel

    pieces = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet()), "te", "<mask>"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    words = transformers.RobertaTokenizer(vocab=vocabulary, merges=[("t", "e")])
    config = transformers.RobertaConfig(
        **shape, vocab_size=len(words), max_position_embeddings=42, type_vocab_size=1
    )
    return transformers.RobertaModel(config), words


def _mpnet(shape: dict[str, Any]) -> tuple[Any, Any]:
    import transformers

    vocabulary = wordpiece(("<s>", "<pad>", "</s>", "[UNK]", "<mask>"))
    words = transformers.MPNetTokenizer(vocab=vocabulary)
    config = transformers.MPNetConfig(**shape, vocab_size=len(words), max_position_embeddings=42)
    return transformers.MPNetModel(config), words


def _letters() -> Any:
    import transformers
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "an"]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[("a", "n")], model_max_length=40)


def _clip_text(shape: dict[str, Any], words: Any) -> dict[str, Any]:
    return {
        **shape,
        "vocab_size": len(words),
        "max_position_embeddings": 40,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }


def _clip(shape: dict[str, Any]) -> tuple[Any, Any]:
    import transformers

    words = _letters()
    config = transformers.CLIPConfig(
        text_config=_clip_text(shape, words),
        vision_config={**shape, "image_size": 32, "patch_size": 16, "hidden_size": 24},
        projection_dim=8,
    )
    return transformers.CLIPModel(config), words


def _groupvit(shape: dict[str, Any]) -> tuple[Any, Any]:
    import transformers

    words = _letters()
    picture = {
        **{key: shape[key] for key in ("hidden_size", "num_attention_heads", "intermediate_size")},
        "image_size": 32,
        "patch_size": 8,
        "depths": [2, 1, 3],
        "num_group_tokens": [8, 4, 0],
        "num_output_groups": [8, 4, 0],
    }
    config = transformers.GroupViTConfig(
        text_config=_clip_text(shape, words),
        vision_config=picture,
        projection_dim=8,
        projection_intermediate_dim=12,
    )
    return transformers.GroupViTModel(config), words


def _vilt(shape: dict[str, Any]) -> tuple[Any, Any]:
    import transformers

    words = transformers.BertTokenizer(vocab=wordpiece())
    config = transformers.ViltConfig(
        **{**shape, "num_hidden_layers": shape["num_hidden_layers"] + 1},
        vocab_size=len(words),
        image_size=224,
        patch_size=32,
        max_position_embeddings=40,
    )
    return transformers.ViltModel(config), words


def _flava(shape: dict[str, Any]) -> tuple[Any, Any]:
    import transformers

    words = transformers.BertTokenizer(vocab=wordpiece())
    config = transformers.FlavaConfig(
        text_config={**shape, "vocab_size": len(words), "max_position_embeddings": 40},
        image_config={**shape, "image_size": 32, "patch_size": 16},
        multimodal_config={**shape, "num_hidden_layers": 2},
        projection_dim=8,
        hidden_size=shape["hidden_size"],
    )
    return transformers.FlavaModel(config), words


_TRANSFORMERS = {
    "bert": _bert,
    "roberta": _roberta,
    "electra": _electra,
    "mpnet": _mpnet,
    "clip-vit-b32": _clip,
    "groupvit": _groupvit,
    "vilt": _vilt,
    "flava": _flava,
}
