"""Batches for an encoder, made ready ahead of the model.

One thread tokenises, sorts and stacks; a pool of threads decodes pictures. Both stay a bounded
number of batches ahead, so memory does not grow with the dataset. Which items form a batch is a
function of their shard and of the batch size alone, never of timing.
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmbench.encoders.neural import Batch, NeuralEncoder, TokenIds
from mmbench.encoders.pictures import open_picture
from mmbench.engine.contents import Contents
from mmbench.engine.shards import Shard
from mmbench.errors import DataError

AHEAD = 3
"""Batches whose pictures are being decoded, and as many that are ready."""
Read = tuple[list[int], list[TokenIds] | None, "list[Future[Tensor | str]] | None"]


@dataclass(frozen=True)
class BatchSize:
    """The largest batch.

    Attributes:
        items: at most so many items.
        tokens: at most so many tokens, padding included; None for no such limit.
    """

    items: int
    tokens: int | None = None

    def halved(self) -> BatchSize:
        """Half of it, at least one item."""
        tokens = None if self.tokens is None else max(1, self.tokens // 2)
        return BatchSize(max(1, self.items // 2), tokens)


@dataclass(frozen=True)
class Ready:
    """A batch on the CPU.

    Attributes:
        shard: to which its items belong; `is_last` if none of that shard follow.
        items: item indices, in the order of the batch; those with problems are not among them.
        problems: why items cannot be encoded, by item index.
        n_cut: texts that were cut.
    """

    shard: Shard
    items: NDArray[np.int64]
    texts: Batch | None
    pictures: Batch | None
    is_last: bool
    n_cut: int = 0
    problems: dict[int, str] = field(default_factory=dict)


class Feed:
    """The batches of some shards, in order; to be closed where it is not read to its end.

    Args:
        ids: raw id of each item.
        workers: threads that decode pictures.
        pin: whether batches are put where a GPU can fetch them while it computes.
    """

    def __init__(
        self,
        encoder: NeuralEncoder,
        contents: Contents,
        ids: Sequence[str],
        shards: Sequence[Shard],
        size: BatchSize,
        *,
        workers: int,
        pin: bool,
    ) -> None:
        self._encoder, self._contents, self._ids = encoder, contents, ids
        self._shards, self._size, self._pin = shards, size, pin
        self._pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="decode")
        self._ready: queue.Queue[Ready | BaseException | None] = queue.Queue(AHEAD)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._produce, name="feed", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Ready]:
        while (found := self._ready.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            yield found

    def close(self) -> None:
        """End the threads; what is ready is thrown away."""
        self._stopped.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        while self._thread.is_alive():
            try:
                self._ready.get(timeout=0.05)
            except queue.Empty:
                continue
        self._pool.shutdown(wait=True)

    def _produce(self) -> None:
        try:
            for ready in self._batches():
                if not self._put(ready):
                    return
            self._put(None)
        except BaseException as problem:  # noqa: BLE001  raised again where the batches are read
            self._put(problem)

    def _put(self, value: Ready | BaseException | None) -> bool:
        while not self._stopped.is_set():
            try:
                self._ready.put(value, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def _batches(self) -> Iterator[Ready]:
        waiting: deque[tuple[Shard, Read, bool]] = deque()
        for shard in self._shards:
            items = shard.start + np.flatnonzero(self._contents.has[shard.start : shard.stop])
            texts = self._tokenize(items)
            groups = split_batches(items, texts, self._size)
            if not groups:
                waiting.append((shard, ([], None, None), True))
            for number, group in enumerate(groups):
                waiting.append((shard, self._read(group, texts), number == len(groups) - 1))
                if len(waiting) > AHEAD:
                    yield self._finish(*waiting.popleft())
        while waiting:
            yield self._finish(*waiting.popleft())

    def _tokenize(self, items: NDArray[np.int64]) -> dict[int, TokenIds] | None:
        if self._contents.texts is None or not len(items):
            return None
        found = self._encoder.tokenize([self._contents.texts[item] for item in items])
        return dict(zip(items.tolist(), found, strict=True))

    def _read(self, group: list[int], texts: dict[int, TokenIds] | None) -> Read:
        pictures = None
        if self._contents.pictures is not None:
            pictures = [self._pool.submit(self._decode, item) for item in group]
        return group, None if texts is None else [texts[item] for item in group], pictures

    def _decode(self, item: int) -> Tensor | str:
        """A picture as the model takes it, or why it cannot be.

        Raises:
            DataError: the file is gone, or is not the one that was prepared.
        """
        assert self._contents.pictures is not None
        path = self._contents.pictures[item]
        assert path is not None
        refuse_changed(path, self._contents.picture_hashes[item])
        try:
            return self._encoder.read_picture(open_picture(path), self._ids[item])
        except (DataError, ValueError, OSError) as problem:
            return str(problem) or type(problem).__name__

    def _finish(self, shard: Shard, read: Read, is_last: bool) -> Ready:
        group, texts, futures = read
        problems: dict[int, str] = {}
        good = list(range(len(group)))
        tensors: list[Tensor] = []
        if futures is not None:
            good = []
            for position, future in enumerate(futures):
                found = future.result()
                if isinstance(found, str):
                    problems[group[position]] = found
                else:
                    good.append(position)
                    tensors.append(found)
        items = np.array([group[position] for position in good], dtype=np.int64)
        if not good:
            return Ready(shard, items, None, None, is_last, 0, problems)
        kept = None if texts is None else [texts[position] for position in good]
        return Ready(
            shard,
            items,
            None if kept is None else self._pinned(self._encoder.text_batch(kept)),
            None if futures is None else self._pinned(self._encoder.picture_batch(tensors)),
            is_last,
            0 if kept is None else sum(text.cut for text in kept),
            problems,
        )

    def _pinned(self, batch: Batch) -> Batch:
        if not self._pin:
            return batch
        return {name: tensor.pin_memory() for name, tensor in batch.items()}


def split_batches(
    items: NDArray[np.int64], texts: dict[int, TokenIds] | None, size: BatchSize
) -> list[list[int]]:
    """Items in batches: long texts first and alike ones together, or in their order.

    Padding is computed as words are, so texts of one length in a batch save most of the time.
    """
    if texts is None:
        chosen = items.tolist()
        return [chosen[at : at + size.items] for at in range(0, len(chosen), size.items)]
    ordered = sorted(items.tolist(), key=lambda item: (-len(texts[item].ids), item))
    groups: list[list[int]] = []
    at = 0
    while at < len(ordered):
        count = size.items
        if size.tokens is not None:  # the first is the longest: all are padded to it
            count = min(count, max(1, size.tokens // max(1, len(texts[ordered[at]].ids))))
        groups.append(ordered[at : at + count])
        at += count
    return groups


def default_workers(is_cuda: bool) -> int:
    """Threads that decode pictures: on a CPU the model needs the cores too."""
    cores = os.cpu_count() or 1
    return min(16, cores) if is_cuda else max(1, min(4, cores // 2))


def refuse_changed(path: Path, sha256: str | None) -> None:
    """Refuse a picture that is not the one of the preparation.

    Raises:
        DataError: E105, or it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError as problem:
        raise DataError(
            f"picture {path} cannot be read ({problem.strerror}); put it back, or prepare the "
            "dataset again with --force"
        ) from problem
    if sha256 is not None and digest.hexdigest() != sha256:
        raise DataError(
            f"E105 picture {path} changed since the dataset was prepared; put it back, or prepare "
            "it again with --force"
        )


def to_device(batch: Batch | None, device: torch.device) -> dict[str, Any]:
    """A batch on the device; from pinned memory the copy overlaps with what is computed."""
    if batch is None:
        return {}
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
