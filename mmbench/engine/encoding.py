"""The loop of an extraction: batches through the model, rows of finished shards to disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmbench.encoders.neural import Encoded, NeuralEncoder
from mmbench.engine.contents import Contents
from mmbench.engine.device import Compute
from mmbench.engine.feeding import BatchSize, Feed, Ready, to_device
from mmbench.engine.shards import Done, Shard, WorkFolder
from mmbench.errors import ConfigError, DataError

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
MOST_FAILURES = 0.05
"""Share of the items that may fail; more is no dataset with a few broken files."""
FEW_FAILURES = 3
"""As many may fail in any dataset, however small."""
Rows = dict[str, list[tuple[NDArray[np.int64], Encoded]]]


class Watch:
    """What an extraction tells while it works; this one does not listen."""

    def begin(self, what: str, done: int, total: int, unit: str = "items") -> None:
        """A feature set is begun, of which `done` of `total` items were there already.

        Args:
            unit: what is counted, in the plural: of a fine-tuning "epochs".
        """

    def advance(self, n_items: int) -> None:
        """So many items more were encoded, or whatever is counted."""

    def say(self, message: str) -> None:
        """Something that the user should know."""


@dataclass(frozen=True)
class Job:
    """What is encoded in one go.

    Attributes:
        needs: "textual", "visual" or both; items that lack one are left out.
        gives: modalities of the feature sets that come of it.
    """

    needs: tuple[str, ...]
    gives: tuple[str, ...]

    @property
    def name(self) -> str:
        """Modality that the unfinished work is called after."""
        return self.gives[0] if len(self.gives) == 1 else "joint"


@dataclass
class Encoding:
    """One encoder at work on the items of one dataset.

    Attributes:
        work: where shards are kept; `shards` are all of them.
        ids: raw id of each item.
        size: largest batch; halved where memory does not suffice.
    """

    encoder: NeuralEncoder
    job: Job
    contents: Contents
    ids: Sequence[str]
    work: WorkFolder
    shards: Sequence[Shard]
    compute: Compute
    precision: str
    workers: int
    size: BatchSize
    watch: Watch = field(default_factory=Watch)

    def run(self, mine: Sequence[Shard]) -> None:
        """Encode those of the shards `mine` that are not finished.

        Raises:
            DataError: too many items fail, a vector is not finite, a picture was changed since
                the preparation, or the disk is full.
        """
        done = {shard.index: self.work.read(shard) for shard in mine}
        left = [shard for shard in mine if done[shard.index] is None]
        failures = sum(len(found.problems) for found in done.values() if found is not None)
        counts = {shard.index: self._count(shard) for shard in mine}
        total = sum(counts.values())
        remaining = sum(counts[shard.index] for shard in left)
        self.watch.begin(f"{self.work.key}", total - remaining, total)
        while left:
            try:
                for shard, result in self._encode(left, failures):
                    failures += len(result.problems)
                    left = [other for other in left if other.index > shard.index]
            except _OutOfMemoryError as problem:
                self._halve(problem)

    def _count(self, shard: Shard) -> int:
        return int(self.contents.has[shard.start : shard.stop].sum())

    def _halve(self, problem: _OutOfMemoryError) -> None:
        """Go on with half the batch, from the shard that did not fit."""
        if problem.n_items <= 1:
            raise DataError(
                f"E409 the memory of {self.compute.device} does not suffice for one item of "
                f"{self.work.key} ({problem}); try --device cpu, --precision bfloat16 or a "
                "smaller --max-tokens"
            ) from problem
        smaller = self.size.halved()
        while smaller.items >= problem.n_items:  # the token budget made it smaller already
            smaller = smaller.halved()
        if self.compute.is_cuda:
            torch.cuda.empty_cache()
        self.watch.say(
            f"out of memory with {problem.n_items} items at a time; going on with at most "
            f"{smaller.items}"
        )
        self.size = smaller
        self.work.record({**(self.work.recorded() or {}), **asdict(smaller)})

    def _encode(self, shards: Sequence[Shard], failures: int) -> Iterator[tuple[Shard, Done]]:
        feed = Feed(
            self.encoder,
            self.contents,
            self.ids,
            shards,
            self.size,
            workers=self.workers,
            pin=self.compute.is_cuda,
        )
        n_with = int(self.contents.has.sum())
        allowed = max(FEW_FAILURES, MOST_FAILURES * n_with)
        rows: Rows = {}
        launched: tuple[NDArray[np.int64], Mapping[str, Encoded]] | None = None
        problems: dict[int, str] = {}
        n_cut = n_told = 0
        is_first = True
        try:
            with computing(self.compute, self.precision):
                for ready in feed:
                    problems |= ready.problems
                    n_cut += ready.n_cut
                    if failures + len(problems) > allowed:
                        raise DataError(_too_many(failures + len(problems), n_with, problems))
                    before = launched
                    launched = (ready.items, self._forward(ready)) if len(ready.items) else None
                    # Fetched only now, while the GPU is at work on the next batch already.
                    self._fetch(before, rows)
                    self.watch.advance(len(ready.items) + len(ready.problems))
                    n_told += len(ready.items) + len(ready.problems)
                    if not ready.is_last:
                        continue
                    self._fetch(launched, rows)
                    arrays = self._arrays(ready.shard, rows)
                    result = self.work.write(ready.shard, arrays, problems, n_cut)
                    failures += len(problems)
                    if is_first and arrays:
                        self.work.check_room(1, len(self.shards))
                        is_first = False
                    rows, launched, problems, n_cut, n_told = {}, None, {}, 0, 0
                    yield ready.shard, result
        except _OutOfMemoryError:
            self.watch.advance(-n_told)  # the shard is begun anew
            raise
        finally:
            feed.close()

    def _fetch(
        self, launched: tuple[NDArray[np.int64], Mapping[str, Encoded]] | None, rows: Rows
    ) -> None:
        if launched is None:
            return
        for modality, encoded in launched[1].items():
            on_cpu = _on_cpu(encoded, self.encoder.options.tokens)
            rows.setdefault(modality, []).append((launched[0], on_cpu))

    def _forward(self, ready: Ready) -> Mapping[str, Encoded]:
        """Vectors of a batch, by modality, on the device; there they may still be computed."""
        encoder, device = self.encoder, self.compute.device
        try:
            texts, pictures = to_device(ready.texts, device), to_device(ready.pictures, device)
            if encoder.is_joint:
                found = encoder.encode_joint(texts, pictures)
            elif ready.texts is not None:
                found = {"textual": encoder.encode_text(texts)}
            else:
                found = {"visual": encoder.encode_picture(pictures)}
            return {
                modality: encoded
                for modality, encoded in found.items()
                if modality in self.job.gives
            }
        except (MemoryError, RuntimeError) as problem:
            if not _is_out_of_memory(problem):
                raise
            text = str(problem).partition("\n")[0]
        # Raised outside, so that what the model held is not kept alive by the traceback.
        raise _OutOfMemoryError(len(ready.items), text)

    def _arrays(self, shard: Shard, rows: Rows) -> dict[str, NDArray[Any]]:
        """The rows of a finished shard in item order, zero for items without a vector."""
        n = shard.stop - shard.start
        arrays: dict[str, NDArray[Any]] = {}
        for modality, batches in rows.items():
            pooled = np.zeros((n, batches[0][1].pooled.shape[1]), dtype=np.float32)
            for items, encoded in batches:
                pooled[items - shard.start] = encoded.pooled.numpy()
            finite = np.isfinite(pooled).all(axis=1)
            if not finite.all():
                item = self.ids[shard.start + int((~finite).argmax())]
                raise DataError(
                    f"E118 {self.work.key}: the vector of item {item!r} holds NaN or infinity"
                    + (f"; try --precision float32 in place of {self.precision}")
                    * (self.precision != "float32")
                )
            arrays[f"{modality}.matrix"] = pooled
            if batches[0][1].tokens is not None:
                tokens, mask = _tokens(shard, batches)
                arrays[f"{modality}.tokens"], arrays[f"{modality}.token_mask"] = tokens, mask
        return arrays


def _tokens(
    shard: Shard, batches: Sequence[tuple[NDArray[np.int64], Encoded]]
) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    """Token vectors [n, N, E] of a shard, N the longest of its batches, and which there are."""
    n = shard.stop - shard.start
    found = [(items, e.tokens, e.mask) for items, e in batches if e.tokens is not None]
    longest = max(tokens.shape[1] for _, tokens, _ in found)
    stacked = np.zeros((n, longest, found[0][1].shape[2]), dtype=np.float16)
    known = np.zeros((n, longest), dtype=np.bool_)
    for items, tokens, mask in found:
        width = tokens.shape[1]
        here = np.ones((len(items), width), np.bool_) if mask is None else mask.numpy()
        with np.errstate(over="ignore"):  # infinity is refused when the set is written
            narrow = tokens.numpy().astype(np.float16)
        stacked[items - shard.start, :width] = np.where(here[:, :, None], narrow, np.float16(0))
        known[items - shard.start, :width] = here
    return stacked, known


@contextmanager
def computing(compute: Compute, precision: str) -> Iterator[None]:
    """Inference in the precision asked for, and in no less.

    Raises:
        ConfigError: the device has no such precision.
    """
    dtype = precision_type(precision, compute)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        if compute.is_cuda:
            # By default convolutions round float32 to 10 bits, and pick whichever of several
            # algorithms is fastest at that moment.
            stack.enter_context(
                torch.backends.cudnn.flags(
                    enabled=True, benchmark=False, deterministic=True, allow_tf32=False
                )
            )
        if dtype is not None:
            stack.enter_context(torch.autocast(compute.device.type, dtype=dtype))
        yield


def precision_type(precision: str, compute: Compute) -> torch.dtype | None:
    """The type that a precision casts to; None for float32.

    Raises:
        ConfigError: the device has no such precision.
    """
    dtype = PRECISIONS[precision]
    if dtype is torch.float16 and not compute.is_cuda:
        raise ConfigError("float16 needs a GPU; take --precision bfloat16 or float32 on a CPU")
    if dtype is torch.bfloat16 and compute.is_cuda and not torch.cuda.is_bf16_supported():
        raise ConfigError("this GPU has no bfloat16; take --precision float16 or float32")
    return dtype


def default_size(encoder: NeuralEncoder, job: Job, compute: Compute) -> BatchSize:
    """The batch to begin with where none is asked for."""
    items, tokens = (256, 2**15) if compute.is_cuda else (32, 2**11)
    if "visual" in job.needs:
        return BatchSize(items // 2, tokens if "textual" in job.needs else None)
    return BatchSize(items * 2, tokens)


def _on_cpu(encoded: Encoded, keep_tokens: bool) -> Encoded:
    tokens = encoded.tokens if keep_tokens else None
    mask = encoded.mask if tokens is not None else None
    return Encoded(
        encoded.pooled.float().cpu(),
        None if tokens is None else tokens.float().cpu(),
        None if mask is None else mask.cpu().bool(),
    )


class _OutOfMemoryError(Exception):
    def __init__(self, n_items: int, text: str) -> None:
        super().__init__(text)
        self.n_items = n_items


def _is_out_of_memory(problem: BaseException) -> bool:
    if isinstance(problem, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    text = str(problem).lower()
    return "out of memory" in text or "can't allocate memory" in text


def _too_many(n_failed: int, n_with: int, problems: Mapping[int, str]) -> str:
    listed = "\n".join(list(problems.values())[:3])
    return (
        f"E116 {n_failed} of {n_with} items cannot be encoded, more than "
        f"{MOST_FAILURES:.0%}; mend them, then prepare the dataset again. Among them:\n{listed}"
    )
