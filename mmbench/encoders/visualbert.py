"""VisualBERT: BERT on the words of a text and on vectors of what another network saw.

Li et al., 2019. https://arxiv.org/abs/1908.03557

    sequence  [CLS] words [SEP] | P r_1 + p, ..., P r_R + p     r_k: vectors of the picture
    pooled    tanh(W h_1 + b), h_1 the state of [CLS]

12 blocks, 768 dimensions, 110.7 M parameters; WordPiece, 512 positions; where a region lies is not
told. Four variants, the visual representations of MMSR (https://arxiv.org/abs/2403.17372, Table 7):

    region      at most 49 regions of Faster R-CNN [1024]; weights pre-trained on NLVR2
    grid        the 49 cells of a ResNet-50 [2048]; weights pre-trained on VQA 2.0
    patch-emb   what enters the blocks of CLIP ViT-B/32: class token and 49 patches [768]
    patch-vit   what leaves its last block and norm [768]

The published P takes regions or cells. For patches there is none: P is new, drawn (Xavier-normal,
bias 0) with the seed of a run, and learns with the recommender, so these two are no features to
extract. All else of theirs is of the weights of `grid`. Of what looks at the picture, MMSR tunes
three bottlenecks (grid), two blocks (patch-vit), nothing (region, patch-emb).
Departures: the published weights were trained on vectors of other detectors of the same widths.

A folder of weights has two folders in it: `visualbert` (config.json, weights, tokenizer.json or
vocab.txt) and `detector` (what `faster-rcnn`, `resnet50` or `clip-vit-b32` takes as its weights).
Where there is no detector, or the folder is that of VisualBERT itself, the detector is looked for
where that encoder's weights are. The published repositories hold no tokenizer: it is that of
BERT-base, uncased, and is taken from there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from mmbench.encoders.base import ENCODERS, register_encoder
from mmbench.encoders.hub import cached_snapshot
from mmbench.encoders.joint import PairEncoder
from mmbench.encoders.loading import Weights, find_weights, tokenizer_files
from mmbench.encoders.neural import Batch, Encoded, Hub, NeuralEncoder, Options
from mmbench.encoders.preprocessing import Preprocessing
from mmbench.encoders.pretrained import load_transformer
from mmbench.errors import ConfigError, DataError

_BERT = Hub("google-bert/bert-base-uncased")
_HUBS = {
    "region": Hub("uclanlp/visualbert-nlvr2-coco-pre", licence="Apache-2.0"),
    **dict.fromkeys(
        ("grid", "patch-emb", "patch-vit"),
        Hub("uclanlp/visualbert-vqa-coco-pre", licence="Apache-2.0"),
    ),
}
_DETECTORS = {
    "region": "faster-rcnn",
    "grid": "resnet50",
    "patch-emb": "clip-vit-b32",
    "patch-vit": "clip-vit-b32",
}
_WIDTHS = {"region": 1024, "grid": 2048}
_PATCHES = ("patch-emb", "patch-vit")
_PROJECTION = "visualbert.embeddings.visual_projection"


@register_encoder("visualbert")
class VisualBert(PairEncoder):
    """A vector of a text and of the regions of a picture read together [768].

    Attributes:
        detector: the encoder that the vectors of a picture come from.
    """

    hub = _HUBS["region"]
    variants = ("region", "grid", *_PATCHES)
    citation = "Li et al., 2019"
    architecture = "VisualBertModel"
    max_tokens: ClassVar[int] = 512
    detector: NeuralEncoder
    _bert: Any

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        self.hub = _HUBS[self.variant]  # type: ignore[misc]  # of this one, not of the class
        if self.variant == "region" and self.options.preprocess != "own":
            raise ConfigError(
                "VisualBert takes no preprocess with the variant region, whose detector shows "
                "the whole picture; --variant grid takes it"
            )
        if self.variant in _PATCHES:
            self.new = frozenset({f"{_PROJECTION}.weight", f"{_PROJECTION}.bias"})
        self.detector = self._detector(Options())

    def load(self) -> None:
        """Read the weights, those of the detector, and the tokenizer.

        Raises:
            DataError: E401 to E406 as of all encoders, of each of the three parts.
        """
        own, seen = self._places()
        self._load_bert(own)
        self.detector = self._detector(seen)
        try:
            self.detector.load()
        except DataError as problem:
            name = _DETECTORS[self.variant]
            raise DataError(
                f"{problem}. VisualBert looks at pictures with {name}; `mmbench extract DATASET "
                f"--encoder {name} --download` fetches that"
            ) from problem
        if self.variant in _PATCHES:
            self._take_patches()
        self.module = nn.ModuleDict({"visualbert": self._bert, "detector": self.detector.module})

    def draw(self, seed: int) -> None:
        """Draw the projection of patches: Xavier-normal weights, zero biases."""
        if not self.new:
            return
        project: nn.Linear = self._bert.embeddings.visual_projection
        deviation = (2 / (project.in_features + project.out_features)) ** 0.5
        # On the CPU, so that a seed gives the same weights on every device.
        drawn = torch.empty(project.weight.shape)
        drawn.normal_(std=deviation, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            project.weight.copy_(drawn)
            project.bias.zero_()

    def _take_patches(self) -> None:
        """Put the new projection in place of the published one, and drop what is not read."""
        clip: Any = self.detector.module
        width = clip.config.vision_config.hidden_size
        self._bert.embeddings.visual_projection = nn.Linear(width, self._bert.config.hidden_size)
        self.draw(0)
        clip.text_model = clip.text_projection = clip.visual_projection = nn.Identity()
        if self.variant == "patch-emb":
            clip.vision_model.encoder = clip.vision_model.post_layernorm = nn.Identity()

    def _places(self) -> tuple[Options, Options]:
        """Where VisualBERT's weights are, and where those of the detector."""
        place = self.options.weights
        if place is None:
            return self.options, Options()
        beside = place / "detector"
        if (place / "visualbert").is_dir():
            own = replace(self.options, weights=place / "visualbert")
            return own, Options(weights=beside if beside.exists() else None)
        if (place / "config.json").is_file() and not beside.exists():
            return self.options, Options()
        raise DataError(
            f"E403 {place} holds no folder visualbert: put VisualBERT's config.json, weights and "
            f"tokenizer into {place / 'visualbert'}, and the weights of "
            f"{_DETECTORS[self.variant]} into {beside}"
        )

    def _load_bert(self, options: Options) -> None:
        import transformers

        self.weights = find_weights(self.hub, options)
        self._bert = load_transformer(transformers.VisualBertModel, self.weights)
        taken = self._bert.config.visual_embedding_dim
        given = _WIDTHS.get(self.variant, taken)
        if taken != given:
            raise DataError(
                f"E406 {self.weights.folder} takes visual vectors of {taken} numbers and the "
                f"variant {self.variant} gives {given}; it needs {self.hub.id}"
            )
        self._load_tokenizer(self._with_tokenizer())

    def _detector(self, options: Options) -> NeuralEncoder:
        """The encoder that sees the picture, which always gives all its vectors."""
        found = ENCODERS.get(_DETECTORS[self.variant]).obj
        assert issubclass(found, NeuralEncoder)
        variant = self.variant if self.variant in _PATCHES else None
        preprocess = self.options.preprocess
        return found(replace(options, tokens=True, preprocess=preprocess, variant=variant))

    def _with_tokenizer(self) -> Weights:
        """The folder with the tokenizer: VisualBERT's, or BERT's in the cache of the hub."""
        try:
            tokenizer_files(self.weights.folder)
        except DataError:
            folder = cached_snapshot(_BERT.id, _BERT.revision)
            if folder is None:
                raise DataError(
                    f"E401 {self.weights.folder} holds no tokenizer, and that of {_BERT.id} is not "
                    f"in the cache of the hub: fetch it with `hf download {_BERT.id} config.json "
                    "tokenizer.json tokenizer_config.json vocab.txt`, or put its vocab.txt beside "
                    "the weights"
                ) from None
            return replace(self.weights, name=_BERT.id, folder=folder)
        return self.weights

    def _config(self) -> Any:
        return self._bert.config

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that determines the result, after `load`."""
        # What the detector's weights are matters, not whence they came.
        whence = ("model", "revision")
        seen = {key: value for key, value in self.detector.settings.items() if key not in whence}
        return {**super().settings, "preprocess": self.options.preprocess, "detector": seen}

    @property
    def framing(self) -> Preprocessing | None:
        """How the detector's pictures are prepared."""
        return self.detector.framing

    def read_picture(self, picture: Image.Image, item: str) -> Tensor:
        """A picture as the detector takes it."""
        return self.detector.read_picture(picture, item)

    def picture_batch(self, pictures: Sequence[Tensor]) -> Batch:
        """Pictures as one batch of the detector."""
        return self.detector.picture_batch(pictures)

    def encode_joint(self, texts: Batch, pictures: Batch) -> Mapping[str, Encoded]:
        """Vectors of pairs [B, D] and, where asked for, of their words and regions."""
        seen = self.detector.encode_picture(pictures)
        assert seen.tokens is not None
        words = texts["attention_mask"]
        regions = words.new_ones(seen.tokens.shape[:2]) if seen.mask is None else seen.mask.long()
        # Without a mask the library would look for the id that its configuration pads with,
        # which is another than that of the tokenizer.
        found = self._bert(**texts, visual_embeds=seen.tokens, visual_attention_mask=regions)
        mask = torch.cat([words, regions], dim=1)
        return {"joint": self._encoded(found.pooler_output, found.last_hidden_state, mask)}
