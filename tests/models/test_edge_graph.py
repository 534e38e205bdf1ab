"""Edges with weights of their own, against loops over the edges."""

from __future__ import annotations

import pytest
import torch

from mmbench.models.edge_graph import EdgeGraph


@pytest.fixture
def edges() -> EdgeGraph:
    receivers = torch.tensor([2, 0, 0, 3, 2])
    senders = torch.tensor([1, 3, 1, 0, 2])
    return EdgeGraph(receivers, senders, 4)


def test_softmax_over_the_edges_of_each_receiver(edges):
    logits = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    weights = edges.softmax(logits)
    for node in range(4):
        mine = edges.receivers == node
        torch.testing.assert_close(weights[mine], logits[mine].softmax(dim=0))
    assert torch.autograd.gradcheck(edges.softmax, (logits,))
    large = edges.softmax(torch.tensor([900.0, -900, 900, 0, 1]))
    assert torch.isfinite(large).all()


def test_weighted_sums_over_edges_and_both_gradients(edges):
    weights = torch.randn(5, dtype=torch.float64, requires_grad=True)
    dense = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    expected = torch.zeros(4, 3, dtype=torch.float64)
    for edge in range(5):
        row = weights[edge] * dense[edges.senders[edge]]
        expected = expected.index_add(0, edges.receivers[edge : edge + 1], row[None])
    torch.testing.assert_close(edges(weights, dense), expected)
    assert torch.autograd.gradcheck(edges, (weights, dense))


def test_products_along_edges_from_more_senders_than_receivers():
    receivers, senders = torch.tensor([2, 0, 2, 0]), torch.tensor([4, 3, 0, 1])
    edges = EdgeGraph(receivers, senders, 3, 5)
    assert edges.receivers.tolist() == receivers[edges.order].tolist() == [0, 0, 2, 2]
    assert edges.senders.tolist() == senders[edges.order].tolist() == [1, 3, 0, 4]
    received = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    sent = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    expected = [received[r] @ sent[s] for r, s in zip([0, 0, 2, 2], [1, 3, 0, 4], strict=True)]
    torch.testing.assert_close(edges.dots(received, sent), torch.stack(expected))
    assert torch.autograd.gradcheck(edges.dots, (received, sent))
    weights = torch.randn(4, dtype=torch.float64, requires_grad=True)
    result = edges(weights, sent)
    assert result.shape == (3, 2)
    assert not result[1].any()  # which receives nothing
    torch.testing.assert_close(result[2], weights[2] * sent[0] + weights[3] * sent[4])
    assert torch.autograd.gradcheck(edges, (weights, sent))


def test_edges_take_half_precision_in_full(edges):
    rows = torch.randn(4, 3, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        weights = edges.softmax(edges.dots(rows, rows))
        result = edges(weights, rows)
    assert result.dtype == torch.float32
    result.square().sum().backward()
    assert rows.grad is not None
    assert rows.grad.dtype == torch.bfloat16
    assert torch.isfinite(rows.grad).all()
