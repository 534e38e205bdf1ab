"""A graph whose edges get their weights anew in each step, as attention gives them.

Shapes: E' directed edges from m senders to n receivers, D columns.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmbench.models.graph import csr_tensor
from mmbench.models.losses import full_precision


class EdgeGraph(nn.Module):
    """Directed edges whose weights are computed in each step, from m senders to n receivers.

    Edges are sorted by receiver, then sender: `receivers` and `senders` are int64 [E']. What is
    given per edge in the caller's order is brought into this one by `order`. Every product reads
    the rows of a table through the edges and writes rows or one number an edge; nothing of size
    E' x D exists.
    """

    receivers: Tensor
    senders: Tensor
    pointers: Tensor  # where the edges of each receiver start, int64 [n + 1]
    order: Tensor  # the caller's place of each edge, int64 [E']
    by_sender: Tensor  # places of the edges sorted by sender, int64 [E']
    sent_to: Tensor  # receivers in that order, int64 [E']
    sender_pointers: Tensor  # where the edges of each sender start there, int64 [m + 1]

    def __init__(
        self, receivers: Tensor, senders: Tensor, n_nodes: int, n_senders: int | None = None
    ) -> None:
        super().__init__()
        n_senders = n_nodes if n_senders is None else n_senders
        self.shape = (n_nodes, n_senders)
        order = torch.argsort(receivers * n_senders + senders)
        receivers, senders = receivers[order], senders[order]
        by_sender = torch.argsort(senders, stable=True)
        starts = torch.bincount(receivers, minlength=n_nodes).cumsum(0)
        sender_starts = torch.bincount(senders, minlength=n_senders).cumsum(0)
        for name, tensor in {
            "receivers": receivers,
            "senders": senders,
            "pointers": F.pad(starts, (1, 0)),
            "order": order,
            "by_sender": by_sender,
            "sent_to": receivers[by_sender],
            "sender_pointers": F.pad(sender_starts, (1, 0)),
        }.items():
            self.register_buffer(name, tensor, persistent=False)

    def softmax(self, logits: Tensor) -> Tensor:
        """Softmax of edge logits [E'] or [E', M] over the edges of each receiver."""
        shares: Tensor = _EdgeSoftmax.apply(self, logits)
        return shares

    def dots(self, received: Tensor, sent: Tensor) -> Tensor:
        """The products r_receiver . s_sender of every edge, [E'], with gradient to both.

        Args:
            received: rows of the receivers, [n, D].
            sent: rows of the senders, [m, D].
        """
        products: Tensor = _EdgeDots.apply(self, received, sent)
        return products

    def forward(self, weights: Tensor, dense: Tensor) -> Tensor:
        """The sums over senders of w_e x_sender, [n, D], with gradient to both.

        Args:
            weights: of the edges, [E'].
            dense: rows of the senders, [m, D].
        """
        summed: Tensor = _WeightedSum.apply(self, weights, dense)
        return summed

    def received_sums(self, weights: Tensor, dense: Tensor) -> Tensor:
        """For each receiver the sum of w_e x_sender, [n, D], without gradient."""
        return _bag(self.senders, dense, self.pointers, weights)

    def sent_sums(self, weights: Tensor, dense: Tensor) -> Tensor:
        """For each sender the sum of w_e x_receiver, [m, D], without gradient."""
        weights = weights.index_select(0, self.by_sender)
        return _bag(self.sent_to, dense, self.sender_pointers, weights)

    def sampled(self, received: Tensor, sent: Tensor) -> Tensor:
        """The products r_receiver . s_sender, [E'], without gradient."""
        # Thirty times as fast as gathering both rows of every edge.
        pattern = csr_tensor(
            self.pointers, self.senders, received.new_zeros(len(self.senders)), self.shape
        )
        product: Tensor = torch.sparse.sampled_addmm(pattern, received, sent.T, beta=0.0)
        return product.values()

    def totals(self, values: Tensor) -> Tensor:
        """The sum of edge values [E', ...] of each receiver, spread over its edges again."""
        sums = torch.segment_reduce(values, "sum", offsets=self.pointers, axis=0)
        return sums.index_select(0, self.receivers)


class _EdgeSoftmax(torch.autograd.Function):
    """y_e = exp(l_e) / sum over the receiver's edges; the gradient is y (g - sum of y g)."""

    @staticmethod
    def forward(ctx: Any, graph: EdgeGraph, logits: Tensor) -> Tensor:
        ctx.graph, ctx.dtype = graph, logits.dtype
        logits = full_precision(logits.detach()).contiguous()
        largest = torch.segment_reduce(logits, "max", offsets=graph.pointers, axis=0)
        shifted = (logits - largest.index_select(0, graph.receivers)).exp_()
        shares = shifted.div_(graph.totals(shifted))  # a total is at least 1, that of the largest
        ctx.save_for_backward(shares)
        return shares

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[None, Tensor]:
        (shares,) = ctx.saved_tensors
        weighted = gradients[0] * shares
        result = torch.addcmul(weighted, shares, ctx.graph.totals(weighted), value=-1.0)
        return None, result.to(ctx.dtype)


class _EdgeDots(torch.autograd.Function):
    """l_e = r_receiver . s_sender; the gradients are weighted sums over the edges."""

    @staticmethod
    def forward(ctx: Any, graph: EdgeGraph, received: Tensor, sent: Tensor) -> Tensor:
        ctx.graph, ctx.dtypes = graph, (received.dtype, sent.dtype)
        with torch.autocast(sent.device.type, enabled=False):
            received = full_precision(received.detach()).contiguous()
            sent = full_precision(sent.detach()).contiguous()
            ctx.save_for_backward(received, sent)
            return graph.sampled(received, sent)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[None, Tensor, Tensor]:
        graph, (received, sent) = ctx.graph, ctx.saved_tensors
        gradient = gradients[0].contiguous()
        of_received = graph.received_sums(gradient, sent).to(ctx.dtypes[0])
        return None, of_received, graph.sent_sums(gradient, received).to(ctx.dtypes[1])


class _WeightedSum(torch.autograd.Function):
    """Y_r = sum over edges e of r: w_e X_(s_e); nothing of size E' x D is kept for later."""

    @staticmethod
    def forward(ctx: Any, graph: EdgeGraph, weights: Tensor, dense: Tensor) -> Tensor:
        ctx.graph, ctx.dtypes = graph, (weights.dtype, dense.dtype)
        with torch.autocast(dense.device.type, enabled=False):
            weights = full_precision(weights.detach()).contiguous()
            dense = full_precision(dense.detach()).contiguous()
            ctx.save_for_backward(weights, dense)
            return graph.received_sums(weights, dense)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[None, Tensor, Tensor]:
        graph, (weights, dense) = ctx.graph, ctx.saved_tensors
        gradient = gradients[0].contiguous()
        of_weights = graph.sampled(gradient, dense).to(ctx.dtypes[0])
        return None, of_weights, graph.sent_sums(weights, gradient).to(ctx.dtypes[1])


def _bag(columns: Tensor, dense: Tensor, pointers: Tensor, weights: Tensor) -> Tensor:
    return F.embedding_bag(
        columns, dense, pointers, mode="sum", per_sample_weights=weights, include_last_offset=True
    )
