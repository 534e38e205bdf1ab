"""Encoders that learn inside a recommender: set up for a dataset, and called by item.

What learns is part of the model, of its stored weights and of its optimiser; the rest of the
encoder is neither, as the hash of its weights, which the run is known by, says all of it. While
the trunk (see mmbench/encoders/trunks.py) rests, what it makes of each item is computed once,
kept on disk for all later runs, and read by batch: exact, as nothing in it is drawn at random and
it is computed in the precision of the pass that reads it.

Where texts and pictures go through one network (`live_sources`), the encoders of both modalities
run one model: a weight that both go through is a parameter of the first alone, is stored and
stepped once, and its gradient is the sum over both.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mmbench.encoders.neural import Encoded, NeuralEncoder
from mmbench.encoders.trunks import (
    Trunk,
    learning_names,
    recompute,
    top_names,
    towers_of,
    used_names,
)
from mmbench.engine.device import Compute
from mmbench.engine.encoding import PRECISIONS
from mmbench.engine.identity import versions
from mmbench.engine.live_contents import FOLDER, Pictures, Rows, Texts, kept
from mmbench.engine.live_sources import LiveSource
from mmbench.engine.shards import canonical_hash
from mmbench.errors import ConfigError, DataError
from mmbench.models.base import ItemEncoder, ItemFeatures
from mmbench.seeding import integer

CHUNK = {"cpu": 32, "cuda": 256}
"""Items that are encoded at once while the trunk's states or first vectors are computed."""
_NORMS = (nn.modules.batchnorm._BatchNorm,)


class LiveItemEncoder(ItemEncoder):
    """An encoder of which the upper part learns, called with items.

    Its parameters are those that learn; `state_dict` holds no others. The rest of the encoder
    moves to devices with it, and stays in evaluation mode where the recipe says so; BatchNorm
    always does, as the items of a batch are no sample of pictures.

    Args:
        reads_tokens: whether `forward` is what the model calls; else `vectors` is.
        beside: one that is not settled yet and runs the model that this one is to run too; None
            for a model of its own.
    """

    _encoder: NeuralEncoder

    def __init__(
        self,
        source: LiveSource,
        seed: int,
        precision: str,
        compute: Compute,
        *,
        reads_tokens: bool,
        beside: LiveItemEncoder | None = None,
    ) -> None:
        super().__init__()
        self.training = False
        self.modality, self.how = source.modality, source.how
        if beside is None:
            encoder = copy.deepcopy(source.encoder)
            encoder.draw(integer(seed, "encoder", self.modality))
            module = encoder.module.eval().to(compute.device)
        else:
            encoder = copy.copy(source.encoder)
            encoder.module = module = beside._encoder.module
        self._owned: set[str] = set() if beside is None else beside._owned
        """Names of what learns of the model, of all that run it."""
        # Not a submodule: what rests is no part of the model's state.
        self.__dict__["_encoder"] = encoder
        self._source, self._reads_tokens, self._device = source, reads_tokens, compute.device
        towers = towers_of(module, self.modality) if self.how.tune == "top" else ()
        if self.how.tune == "none":
            towers = _towers_or_none(module, self.modality)
        names = learning_names(module, towers, self.how.tune, self.how.blocks)
        contents = source.contents
        self._texts = None if contents.texts is None else Texts(encoder, contents.texts)
        self._pictures = None
        if contents.pictures is not None:
            ids = source.dataset.item_ids
            self._pictures = Pictures(encoder, contents, ids, seed, compute.device)
        self._trunk = Trunk(module, towers, self.how.tune, self.how.blocks)
        self._kept: dict[str, list[Rows]] = {}
        self._roots: list[str] = []
        names = [name for name in names if name not in encoder.constants]
        self._names = used_names(module, names, self._probe)
        own = [name for name in self._names if name not in self._owned]
        self._owned.update(own)
        for name, weight in module.named_parameters():
            weight.requires_grad_(name in self._owned)
        if self.how.tune == "top":
            self._roots = top_names(module, towers, self.how.blocks)
        with torch.no_grad():
            found = self._encoded(torch.zeros(1, dtype=torch.int64, device=compute.device))
            if found.tokens is None or found.tokens.ndim != 3:
                raise ConfigError(f"{self.how.name} gives no states of tokens, so it cannot learn")
            self.width = found.tokens.shape[2]
        folder = source.dataset.root / FOLDER
        if self._is_exact():
            for kind in dict.fromkeys(("float32", precision)):
                self._keep_trunk(folder, kind)
        elif self._pictures is not None:
            self._pictures.keep(folder)
        weights = dict(module.named_parameters())
        self.learning = nn.Module()
        for name in own:
            _register(self.learning, name, weights[name])
        self.train(False)

    def runs_with(self, other: LiveItemEncoder) -> bool:
        """Whether both run one model."""
        return self._encoder.module is other._encoder.module

    def settle(self, everyone: Sequence[LiveItemEncoder]) -> None:
        """Free what of the model nobody needs, once all that run it are made.

        Args:
            everyone: those that run it, this one among them.
        """
        if all(one.is_kept for one in everyone):
            self._trunk.release()
        if self is everyone[0] and self._owned and any(one.how.checkpointing for one in everyone):
            module = self._encoder.module
            recompute(module, _towers_or_none(module, self.modality))

    @property
    def weights(self) -> list[nn.Parameter]:
        """What learns of all that its vectors depend on; partly a parameter of another one."""
        known = dict(self._encoder.module.named_parameters())
        return [known[name] for name in self._names]

    @property
    def n_learning(self) -> int:
        """How many weights learn that are parameters of this one."""
        return sum(weight.numel() for weight in self.parameters())

    @property
    def is_kept(self) -> bool:
        """Whether what the trunk makes of the items is read, not computed."""
        return bool(self._kept)

    def forward(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """States of the items' tokens, float32 [N, T, E], and which are real, bool [N, T]."""
        if not len(items):
            empty = torch.zeros(0, 1, self.width, device=items.device)
            return empty, empty[:, :, 0].bool()
        found = self._encoded(items)
        assert found.tokens is not None
        states = found.tokens.float()
        if found.mask is None:
            return states, torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        return states, found.mask.bool()

    def vectors(self, items: Tensor) -> Tensor:
        """The items' pooled vectors, as an extraction makes them, float32 [N, F]."""
        return self._encoded(items).pooled.float()

    @torch.no_grad()
    def every_vector(self, chosen: Tensor | None = None) -> Tensor:
        """Pooled vectors of all items in evaluation mode [I, F], on the CPU.

        Args:
            chosen: items int64 [N], ascending, whose vectors alone are computed, [N, F].
        """
        was_training = self.training
        self.train(False)
        among = None if chosen is None else chosen.cpu().numpy()
        parts = [(items.cpu(), self.vectors(items).cpu()) for items in self._chunks(among)]
        self.train(was_training)
        order = torch.cat([items for items, _ in parts]).argsort()
        return torch.cat([vectors for _, vectors in parts])[order]

    def table(self, items: Tensor) -> Tensor:
        """`every_vector` of some items; all the others get the mean of theirs, [I, F]."""
        return filled(items.cpu(), self.every_vector(items), self._source.dataset.n_items)

    def train(self, mode: bool = True) -> LiveItemEncoder:
        """Set the mode of what learns; see the class for the rest."""
        super().train(mode)
        module: nn.Module = self._encoder.module
        if self.how.tune == "full" or not (self.how.frozen_eval or self.how.tune == "none"):
            module.train(mode)
        else:
            module.eval()
            for name in self._roots:
                module.get_submodule(name).train(mode)
        for part in module.modules():
            if isinstance(part, _NORMS):
                part.eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LiveItemEncoder:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._encoder.module._apply(fn)  # type: ignore[no-untyped-call]
        return self

    def _encoded(self, items: Tensor) -> Encoded:
        learns = torch.is_grad_enabled() and self.how.tune != "none"
        with torch.set_grad_enabled(learns):
            if not self._kept:
                return self._read(items)
            kind = _precision(items.device.type)
            states = [rows.take(items) for rows in self._kept.get(kind, self._kept["float32"])]
            texts = {} if self._texts is None else self._texts.batch(items)
            if self._texts is not None and self._texts.trims:
                width = next(iter(texts.values())).shape[1]
                states = [state[:, :width] for state in states]
            pictures = {} if self._pictures is None else self._pictures.blank(items)
            with self._trunk.given(states):
                return self._run(texts, pictures)

    def _read(self, items: Tensor) -> Encoded:
        texts = {} if self._texts is None else self._texts.batch(items)
        pictures: dict[str, Tensor] = {}
        if self._pictures is not None:
            pictures = self._pictures.batch(items, drawn=self.training)
        return self._run(texts, pictures)

    def _run(self, texts: Mapping[str, Tensor], pictures: Mapping[str, Tensor]) -> Encoded:
        return self._encoder.read(texts, pictures, self.modality)

    def _probe(self) -> Tensor:
        """Some result of the first item, to see which weights it depends on."""
        found = self._read(torch.zeros(1, dtype=torch.int64, device=self._device))
        if not self._reads_tokens:
            return found.pooled
        if found.tokens is None:
            raise ConfigError(f"{self.how.name} gives no states of tokens, so it cannot learn")
        return found.tokens

    def _chunks(self, chosen: NDArray[np.int64] | None = None) -> Iterator[Tensor]:
        """All items or some, texts of one length together."""
        order = np.arange(self._source.dataset.n_items) if chosen is None else chosen
        if self._texts is not None:
            order = order[np.argsort(self._texts.lengths[order])]
        size = CHUNK[self._device.type]
        for start in range(0, len(order), size):
            yield torch.from_numpy(order[start : start + size]).to(self._device)

    def _is_exact(self) -> bool:
        """Whether the trunk's states are constants of the items, in places that do not move."""
        how = self.how
        is_fixed = self._pictures is None or self._source.encoder.framing is not None
        rests = how.frozen_eval or how.tune == "none"
        return bool(
            how.cache and rests and not how.mask_ratio and is_fixed and self._trunk.boundaries
        )

    @torch.no_grad()
    def _keep_trunk(self, folder: Path, precision: str) -> None:
        """Compute what enters the boundaries for all items, unless it is kept already."""
        source = self._source
        known = {
            "encoder": source.settings(),
            "contents": source.facts()["contents_sha256"],
            "boundaries": self._trunk.boundaries,
            "precision": precision,
            "device": self._device.type,
            "versions": versions(),
        }
        with autocast_in(self._device, precision):
            longest = 0 if self._texts is None else int(self._texts.lengths.argmax())
            first = torch.tensor([longest], device=self._device)
            samples = self._trunk.capture(lambda: self._read(first))
        kinds = [sample.dtype for sample in samples]
        forms = [
            ((source.dataset.n_items, *sample.shape[1:]), _stored_type(sample.dtype))
            for sample in samples
        ]

        def fill(arrays: Sequence[NDArray[Any]]) -> dict[str, Any]:
            for items in self._chunks():
                with autocast_in(self._device, precision):
                    found = self._trunk.capture(lambda batch=items: self._read(batch))  # type: ignore[misc]
                rows = items.cpu().numpy()
                for array, state in zip(arrays, found, strict=True):
                    if not bool(torch.isfinite(state).all()):
                        raise DataError(
                            f"encoders.{self.modality}: {self.how.name} makes numbers in "
                            f"{precision} that are not finite; take training.precision: bfloat16 "
                            "or float32, or other weights"
                        )
                    made = _to_numpy(state)
                    if made.shape[1:] == array.shape[1:]:
                        array[rows] = made
                    else:  # texts are shorter than the longest
                        array[rows, : made.shape[1]] = made
            problems = {} if self._pictures is None else self._pictures.problems
            return {**known, "problems": {str(item): why for item, why in problems.items()}}

        name = f"trunk-{canonical_hash(known)[:16]}"
        arrays, _ = kept(folder, name, forms, fill)
        self._kept[precision] = [
            Rows(array, kind if kind == torch.bfloat16 else None)
            for array, kind in zip(arrays, kinds, strict=True)
        ]


def make_features(
    sources: Sequence[LiveSource],
    *,
    seed: int,
    precision: str,
    compute: Compute,
    is_sequential: bool,
) -> list[ItemFeatures]:
    """The encoders of a recipe as a model is given them, fresh, on their device.

    Items without the content get the mean of the others' vectors, as those of stored sets do, so
    that nothing but what is learnt sets an encoder apart from its own vectors at rest.

    Args:
        seed: of the run, from which masks of patches are drawn.
        precision: of training; evaluation is in float32.
        is_sequential: whether the model reads tokens, not pooled vectors.
    """
    made: dict[str, LiveItemEncoder] = {}
    for source in sources:
        made[source.modality] = LiveItemEncoder(
            source,
            seed,
            precision,
            compute,
            reads_tokens=is_sequential,
            beside=None if source.network is None else made[source.network],
        )
    for encoder in made.values():
        encoder.settle([other for other in made.values() if other.runs_with(encoder)])
    found = []
    for source in sources:
        encoder, n_items = made[source.modality], source.dataset.n_items
        present = torch.from_numpy(np.array(source.contents.has))
        if is_sequential:
            matrix = torch.zeros(n_items, 0)
        else:
            matrix = encoder.table(present.nonzero()[:, 0])
        name = f"{source.modality}__{source.how.name}"
        found.append(ItemFeatures(name, source.modality, matrix, present, encoder=encoder))
    return found


def filled(items: Tensor, vectors: Tensor, n_items: int) -> Tensor:
    """A table [I, F] of the vectors of some items; the others get their mean."""
    mean = vectors.mean(dim=0, dtype=torch.float64).to(vectors.dtype)
    return mean.repeat(n_items, 1).index_copy(0, items, vectors)


def _towers_or_none(module: nn.Module, modality: str) -> tuple[Any, ...]:
    """The towers, where there are any to be told apart."""
    try:
        return towers_of(module, modality)
    except ConfigError:
        return ()


def _register(owner: nn.Module, name: str, weight: nn.Parameter) -> None:
    """Make a weight a parameter of a module, under its dotted name."""
    *path, leaf = name.split(".")
    for part in path:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        inner = owner._modules[part]
        assert inner is not None
        owner = inner
    owner.register_parameter(leaf, weight)


def autocast_in(device: torch.device, precision: str) -> torch.autocast:
    """The context of a precision, as recipes name it."""
    kind = PRECISIONS[precision]
    return torch.autocast(device.type, kind or torch.bfloat16, enabled=kind is not None)


def _precision(device: str) -> str:
    """In which precision a pass is, by the name that recipes give it."""
    if not torch.is_autocast_enabled(device):
        return "float32"
    kind = torch.get_autocast_dtype(device)
    return next((name for name, known in PRECISIONS.items() if known == kind), "float32")


def _stored_type(kind: torch.dtype) -> np.dtype[Any]:
    stored = {torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: np.uint16}
    return np.dtype(stored[kind])


def _to_numpy(states: Tensor) -> NDArray[Any]:
    states = states.detach().cpu().contiguous()
    if states.dtype == torch.bfloat16:
        states = states.view(torch.uint16)
    found: NDArray[Any] = states.numpy()
    return found
