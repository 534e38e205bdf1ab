"""What an encoder of pictures and texts learns from items that have both: its own losses.

    encoder                     loss
    CLIP, GroupViT, BLIP, FLAVA ITC
    SigLIP, SigLIP 2            the sigmoid loss
    VLMo                        1/2 ITC + 1/2 ITC-VL + ITM + 1/4 MLM; any of the last three may be
                                left out

A contrastive loss couples all items of a batch, so vectors and losses are apart: `vectors` of some
items at a time, then `coupled` of all of them. What does not couple them comes in `apart`, by
slices. So a batch that does not fit into memory is computed in parts with the same result.

The encoder is in evaluation mode, without dropout and stochastic depth (departure: the reference
of VLMo drops up to 20 % of the residuals). Weights of encoders without a temperature get one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmbench.encoders.contrastive import (
    MOST,
    contrastive_loss,
    hard_negatives,
    hide_words,
    sigmoid_loss,
)
from mmbench.encoders.neural import Batch, NeuralEncoder
from mmbench.encoders.trunks import learning_names, towers_of
from mmbench.encoders.vlmo_base_plus import VlmoBasePlus
from mmbench.encoders.vlmo_model import TEMPERATURE
from mmbench.errors import ConfigError, DataError, UnknownNameError

Vectors = dict[str, tuple[Tensor, Tensor]]
"""Unit vectors [B, D] of pictures and of texts, by the name of a contrastive loss."""


@dataclass(frozen=True)
class Draws:
    """What chance decides in one step, drawn before it: the same for any size of its parts.

    Attributes:
        negatives: uniform in [0, 1), [2, B]: pictures for texts, texts for pictures.
        words: uniform in [0, 1), [3, B, T].
    """

    negatives: Tensor
    words: Tensor


@dataclass(frozen=True)
class Plan:
    """What `apart` is to do in a step, told from the whole batch.

    Attributes:
        pairs: item positions of text and picture read together, and whether they belong
            together, int64 [N, 3]; the B true ones first.
        ids: of the texts with hidden words [B, T]; `hidden` is what is to be told.
    """

    pairs: Tensor | None = None
    ids: Tensor | None = None
    hidden: Tensor | None = None

    @property
    def counts(self) -> dict[str, int]:
        """Over how much each loss is averaged."""
        found = {}
        if self.pairs is not None:
            found["itm"] = len(self.pairs)
        if self.hidden is not None:
            found["mlm"] = int(self.hidden.sum())
        return found


class Objective(ABC):
    """The losses of one encoder.

    Attributes:
        weights: of the losses, by name, in their sum.
        temperatures: t of each contrastive loss; they learn with the encoder.
        own: parameters that are no part of the encoder's module, by name.
        hits: how many of how many `apart` got right, by loss; None not to count.
    """

    known: ClassVar[tuple[str, ...]]

    def __init__(self, encoder: NeuralEncoder) -> None:
        self.encoder = encoder
        self._limit = MOST
        self.weights: dict[str, float] = {}
        self.hits: dict[str, tuple[Tensor, int]] | None = None
        self.temperatures: dict[str, nn.Parameter] = {}
        self.own: dict[str, nn.Parameter] = {}

    @abstractmethod
    def vectors(self, texts: Batch, pictures: Batch) -> Vectors:
        """Unit vectors of items, by contrastive loss."""

    @abstractmethod
    def coupled(self, vectors: Vectors, same: Tensor) -> dict[str, Tensor]:
        """The contrastive losses of all items of a batch.

        Args:
            same: pairs off the diagonal that are left out, bool [B, B].
        """

    def plan(self, vectors: Vectors, texts: Batch, same: Tensor, draws: Draws) -> Plan:
        """What else is to be computed in a step, from vectors without a gradient."""
        return Plan()

    def apart(self, plan: Plan, texts: Batch, pictures: Batch, part: slice) -> dict[str, Tensor]:
        """Sums of the losses that do not couple the batch, over a part of what `plan` lists."""
        return {}

    def learning(self, tune: str, blocks: int | None) -> list[str]:
        """Names of the module's parameters that learn: all, or the top and what is behind it."""
        module = self.encoder.module
        chosen: set[str] = set()
        for modality in ("visual", "textual"):
            towers = towers_of(module, modality) if tune == "top" else ()
            chosen.update(learning_names(module, towers, tune, blocks))
        scalars = {id(weight) for weight in (*self.temperatures.values(), *self._biases())}
        return [
            name
            for name, weight in module.named_parameters()
            if (name in chosen or id(weight) in scalars) and name not in self.encoder.constants
        ]

    def _biases(self) -> tuple[nn.Parameter, ...]:
        return ()

    def clamp(self) -> dict[str, float]:
        """Keep the temperatures between 1 and 100 after a step; their values of s, by loss."""
        with torch.no_grad():
            for name, value in self.temperatures.items():
                value.clamp_(0.0, self._most[name])
            return {name: float(value.exp()) for name, value in self.temperatures.items()}

    def is_limited(self, name: str, scale: float) -> bool:
        """Whether a temperature's value of s stands where it is held."""
        return scale >= math.exp(self._most[name]) * (1 - 1e-6)

    def _count(self, name: str, logits: Tensor, labels: Tensor) -> None:
        if self.hits is not None:
            right, n = self.hits.get(name, (torch.zeros((), device=logits.device), 0))
            found = (logits.detach().argmax(dim=1) == labels).sum()
            self.hits[name] = (right + found, n + len(labels))

    def check(self) -> None:
        """Refuse weights whose temperature no training ends with.

        Raises:
            DataError: E406 one is not finite, or above what is known to work.
        """
        self._most = dict.fromkeys(self.temperatures, MOST)
        for name, value in self.temperatures.items():
            t = float(value.detach())
            if not math.isfinite(t):
                raise DataError(
                    f"E406 the temperature of these weights is {t} ({name}: the logarithm of the "
                    "scale); they come of a training that diverged, take others"
                )
            if t > self._limit + 1e-3:
                raise DataError(
                    f"E406 the temperature of these weights exploded: a scale of exp({t:.4g}) "
                    f"({name}), where {math.exp(self._limit):,.0f} is the most; take other weights"
                )
            self._most[name] = max(MOST, t)

    def choose(self, losses: Sequence[str]) -> None:
        """Learn from some of the losses only.

        Raises:
            UnknownNameError: the encoder has no such loss.
            ConfigError: no contrastive loss is left.
        """
        for name in losses:
            if name not in self.known:
                raise UnknownNameError(
                    f"objective of {type(self.encoder).__name__}", name, self.known
                )
        if losses and self.known[0] not in losses:
            raise ConfigError(
                f"the objective needs {self.known[0]}, by which held-out items are judged; add it"
            )
        if losses:
            self.weights = {name: w for name, w in self.weights.items() if name in losses}


class DualObjective(Objective):
    """ITC, or the sigmoid loss, of an encoder that reads pictures and texts apart."""

    known = ("itc",)

    def __init__(self, encoder: NeuralEncoder) -> None:
        super().__init__(encoder)
        module: Any = encoder.module
        scale = getattr(module, "logit_scale", None)
        if not isinstance(scale, nn.Parameter):
            device = next(module.parameters()).device
            scale = nn.Parameter(torch.tensor(-math.log(TEMPERATURE), device=device))
            self.own["logit_scale"] = scale
        bias = getattr(module, "logit_bias", None)
        self._bias = bias if isinstance(bias, nn.Parameter) else None
        self.temperatures = {"itc": scale}
        self.weights = {"itc": 1.0}
        if self._bias is not None:
            # Published SigLIP weights stand above 100.
            self._limit = math.log(200.0)
        self.check()

    def _biases(self) -> tuple[nn.Parameter, ...]:
        return () if self._bias is None else (self._bias,)

    def vectors(self, texts: Batch, pictures: Batch) -> Vectors:
        """Unit vectors of items."""
        seen = self.encoder.encode_picture(pictures).pooled
        return {"itc": (seen, self.encoder.encode_text(texts).pooled)}

    def coupled(self, vectors: Vectors, same: Tensor) -> dict[str, Tensor]:
        """The contrastive loss."""
        seen, read = vectors["itc"]
        if self._bias is None:
            return {"itc": contrastive_loss(seen, read, self.temperatures["itc"], same)}
        return {"itc": sigmoid_loss(seen, read, self.temperatures["itc"], self._bias, same)}


class VlmoObjective(Objective):
    """ITC by both routes, matching with hard negatives, and masked words."""

    known = ("itc", "itc-vl", "itm", "mlm")
    encoder: VlmoBasePlus

    def __init__(self, encoder: VlmoBasePlus) -> None:
        super().__init__(encoder)
        module = encoder.module
        self.temperatures = {"itc": module.logit_scale, "itc-vl": module.logit_vl_scale}
        self.weights = {"itc": 0.5, "itc-vl": 0.5, "itm": 1.0, "mlm": 0.25}
        self.check()
        tokenizer: Any = encoder.tokenizer
        vocabulary = tokenizer.get_vocab()
        special = torch.zeros(module.shape.vocabulary, dtype=torch.bool)
        special[list(tokenizer.all_special_ids)] = True
        goes_on = torch.zeros_like(special)
        goes_on[[number for piece, number in vocabulary.items() if piece.startswith("##")]] = True
        known = torch.zeros_like(special)
        known[list(vocabulary.values())] = True
        device = module.logit_scale.device
        self._special, self._goes_on = special.to(device), goes_on.to(device)
        self._words = (known & ~special).nonzero()[:, 0].to(device)
        self._mask_id = vocabulary.get("[MASK]")

    def learning(self, tune: str, blocks: int | None) -> list[str]:
        """As any objective's, with the heads of the losses."""
        module = self.encoder.module
        heads = tuple(
            f"{head}."
            for head, loss in (("itm_score", "itm"), ("mlm_score", "mlm"), ("pooler", "itm"))
            if loss in self.weights
        )
        chosen = set(super().learning(tune, blocks))
        return [n for n, _ in module.named_parameters() if n in chosen or n.startswith(heads)]

    def choose(self, losses: Sequence[str]) -> None:
        """Learn from some of the losses only."""
        super().choose(losses)
        if "mlm" in self.weights and self._mask_id is None:
            raise DataError(
                "E406 the tokenizer of these weights has no [MASK], which masked words need; give "
                "the tokenizer of bert-base-uncased, or choose an objective without mlm"
            )

    def vectors(self, texts: Batch, pictures: Batch) -> Vectors:
        """Unit vectors of items by the routes that are learnt."""
        module = self.encoder.module
        ids, mask = texts["input_ids"], texts["attention_mask"]
        seen, seen_vl = module.image_routes(pictures["pixel_values"])
        read, read_vl = module.text_routes(ids, mask)
        found = {"itc": (_unit(module.itc_image_proj(seen)), _unit(module.itc_text_proj(read)))}
        if "itc-vl" in self.weights:
            found["itc-vl"] = (
                _unit(module.itc_vl_image_proj(seen_vl)),
                _unit(module.itc_vl_text_proj(read_vl)),
            )
        return found

    def coupled(self, vectors: Vectors, same: Tensor) -> dict[str, Tensor]:
        """The contrastive losses."""
        return {
            name: contrastive_loss(seen, read, self.temperatures[name], same)
            for name, (seen, read) in vectors.items()
        }

    def plan(self, vectors: Vectors, texts: Batch, same: Tensor, draws: Draws) -> Plan:
        """Draw hard negatives and hide words."""
        pairs = ids = hidden = None
        seen, read = vectors["itc"]
        own = torch.arange(len(seen), device=seen.device)
        if "itm" in self.weights:
            scale, one = self.temperatures["itc"], torch.ones_like(own)
            picture, has_picture = hard_negatives(read, seen, scale, same, draws.negatives[0])
            text, has_text = hard_negatives(seen, read, scale, same, draws.negatives[1])
            pairs = torch.cat(
                [
                    torch.stack([own, own, one], dim=1),
                    torch.stack([own, picture, 0 * one], dim=1)[has_picture],
                    torch.stack([text, own, 0 * one], dim=1)[has_text],
                ]
            )
        if "mlm" in self.weights:
            assert self._mask_id is not None
            given = texts["input_ids"]
            special = self._special[given] | (texts["attention_mask"] == 0)
            begins = ~self._goes_on[given]
            ids, hidden = hide_words(
                given,
                special,
                begins,
                self._mask_id,
                self._words,
                draws.words[:, :, : given.shape[1]],
            )
        return Plan(pairs, ids, hidden)

    def apart(self, plan: Plan, texts: Batch, pictures: Batch, part: slice) -> dict[str, Tensor]:
        """Sums of the matching loss and of that of the masked words, over a part of each."""
        module = self.encoder.module
        mask, pixels = texts["attention_mask"], pictures["pixel_values"]
        found: dict[str, Tensor] = {}
        if plan.pairs is not None and len(plan.pairs[part]):
            text, picture, label = plan.pairs[part].unbind(dim=1)
            hidden = module.joint(texts["input_ids"][text], mask[text], pixels[picture])
            logits = module.itm_score(module.pooler(hidden[:, 0])).float()
            found["itm"] = F.cross_entropy(logits, label, reduction="sum")
            self._count("itm", logits, label)
        if plan.ids is not None and plan.hidden is not None and len(plan.ids[part]):
            asked, ids = plan.hidden[part], texts["input_ids"][part]
            joint = module.joint(plan.ids[part], mask[part], pixels[part])
            # The decoder has a column per word: only where there is something to tell.
            logits = module.mlm_score(joint[:, : ids.shape[1]][asked]).float()
            found["mlm"] = F.cross_entropy(logits, ids[asked], reduction="sum")
            self._count("mlm", logits, ids[asked])
        return found


def objective_of(encoder: NeuralEncoder, losses: Sequence[str] = ()) -> Objective:
    """The losses of an encoder whose weights are loaded.

    Args:
        losses: some of them by name; none for all.

    Raises:
        ConfigError: it has no common space of pictures and texts.
        DataError: E406 its temperature is not usable.
    """
    made: Objective
    if isinstance(encoder, VlmoBasePlus):
        made = VlmoObjective(encoder)
    else:
        refuse_other(type(encoder))
        made = DualObjective(encoder)
    made.choose(losses)
    return made


def refuse_other(kind: type[NeuralEncoder]) -> None:
    """Refuse encoders that cannot be fine-tuned on pairs.

    Raises:
        ConfigError: it has no common space of pictures and texts.
    """
    if not {"visual", "textual"} <= set(kind.modalities) or "proj" not in kind.variants:
        raise ConfigError(
            f"{kind.__name__} has no common space of pictures and texts, so there is nothing to "
            "learn from items that have both; fine-tune clip-vit-b16, siglip-b16, flava, "
            "vlmo-base-plus or the like"
        )


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(vectors.float(), dim=1)
