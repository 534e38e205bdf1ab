"""What processes that train one model together give one another: gradients, sums, rows.

Gradients are added up by the loop itself, after the backward pass, and the model is not wrapped:
`training_step` keeps its face, a batch in parts is communicated once, and parameters that a step
does not use stay without a gradient, as in one process, so that the optimiser passes over them.
The price is that sending does not overlap with the backward pass. It is small: 86 million
parameters are 344 MB, some milliseconds between GPUs of one machine, beside an encoder's step of
hundreds.

Words go over gloo between the CPUs: whether memory sufficed, and which parameters have a
gradient. They cost no wait for the GPU's own work, and gloo tells at once of a process that has
ended, where NCCL would wait for a time-out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmbench.engine.ranks import Ranks

BUCKET_BYTES = 32 * 2**20
"""Gradients that are sent in one piece."""


def sum_gradients(ranks: Ranks, parameters: Sequence[nn.Parameter], *, failed: bool) -> bool:
    """Add up the gradients of all processes, in place.

    Args:
        failed: whether memory was not enough in this process.

    Returns:
        Whether memory was enough in all of them; if not, nothing is added up.

    Raises:
        TrainingError: another process has ended.
    """
    with ranks.listening():
        words = torch.tensor(
            [failed, *(parameter.grad is not None for parameter in parameters)], dtype=torch.uint8
        )
        dist.all_reduce(words, op=dist.ReduceOp.MAX)
        some_failed, *used = words.tolist()
        if some_failed:
            return False
        gradients = []
        for parameter, has_gradient in zip(parameters, used, strict=True):
            if has_gradient:
                if parameter.grad is None:  # this process has no row of the batch, for example
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
        sent = []
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            sent.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
        for bucket, flat, work in sent:
            work.wait()
            pieces = torch.split(flat, [gradient.numel() for gradient in bucket])
            for gradient, piece in zip(bucket, pieces, strict=True):
                gradient.copy_(piece.view_as(gradient))
    return True


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one type together, until a bucket is full."""
    bucket: list[Tensor] = []
    n_bytes = 0
    for tensor in tensors:
        if bucket and (n_bytes >= BUCKET_BYTES or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, n_bytes = [], 0
        bucket.append(tensor)
        n_bytes += tensor.numel() * tensor.element_size()
    if bucket:
        yield bucket


def summed(ranks: Ranks, tensor: Tensor) -> Tensor:
    """The sum of one tensor over the processes."""
    if ranks.size > 1:
        with ranks.listening():
            dist.all_reduce(tensor)
    return tensor


def from_first(ranks: Ranks, tensors: Sequence[Tensor]) -> None:
    """Overwrite tensors with those of the first process."""
    if ranks.size > 1:
        with ranks.listening():
            for tensor in tensors:
                sent = tensor.contiguous()
                dist.broadcast(sent, src=0)
                if sent is not tensor:
                    tensor.copy_(sent)


def joined_rows(ranks: Ranks, rows: Tensor, n_rows: int) -> Tensor:
    """The rows of all processes, one share after the other, [n_rows, ...].

    Args:
        rows: of this process, as many as `ranks.rows(n_rows)` says.
        n_rows: of all processes together.
    """
    if ranks.size == 1:
        return rows
    shares = [replace(ranks, rank=rank).rows(n_rows) for rank in range(ranks.size)]
    counts = [share.stop - share.start for share in shares]
    padded = rows.new_zeros((max(counts), *rows.shape[1:]))
    padded[: len(rows)] = rows  # what is gathered must have one shape
    found = [torch.empty_like(padded) for _ in counts]
    with ranks.listening():
        dist.all_gather(found, padded)
    return torch.cat([part[:count] for part, count in zip(found, counts, strict=True)])
