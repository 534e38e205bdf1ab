"""Item graphs as neighbours and weights, and those that are built once and kept for a while."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mmbench.models.base import ItemFeatures
from mmbench.models.item_graphs import (
    LearnedGraphs,
    NeighbourGraph,
    item_neighbours,
    joined_graph,
    knn_graph,
    largest_columns,
    learned_similarities,
    raw_graph,
)


def dense_of(graph: NeighbourGraph) -> torch.Tensor:
    """Entry by entry; what stands twice is summed."""
    n_items = len(graph.indices)
    result = torch.zeros(n_items, n_items, dtype=graph.weights.dtype)
    for i in range(n_items):
        for j, weight in zip(graph.indices[i].tolist(), graph.weights[i], strict=True):
            result[i, j] = result[i, j] + weight
    return result


@pytest.fixture
def graph() -> NeighbourGraph:
    indices = torch.tensor([[0, 2, 2], [1, 0, 3], [3, 3, 3], [0, 1, 2]])
    return NeighbourGraph(indices, torch.randn(4, 3, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("n_layers", [1, 2])
def test_propagating_is_the_dense_product_with_gradient_to_both(graph, n_layers):
    dense = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    expected = torch.linalg.matrix_power(dense_of(graph), n_layers) @ dense
    result = graph.propagate(dense, n_layers)
    torch.testing.assert_close(result, expected)
    weight = torch.randn_like(result)
    mine = torch.autograd.grad((result * weight).sum(), [dense, graph.weights])
    literal = torch.autograd.grad((expected * weight).sum(), [dense, graph.weights])
    for one, two in zip(mine, literal, strict=True):
        torch.testing.assert_close(one, two)


def test_a_frozen_graph_is_the_same_one_and_leaves_it_untouched(graph):
    indices, weights = graph.indices.clone(), graph.weights.detach().clone()
    dense = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    frozen = graph.frozen()
    assert torch.equal(graph.indices, indices)
    assert torch.equal(graph.weights, weights)
    assert not frozen.values.requires_grad
    result = frozen.last_power(dense, 1)
    torch.testing.assert_close(result, graph.propagate(dense, 1), rtol=1e-6, atol=1e-6)
    (mine,) = torch.autograd.grad(result.sum(), dense)
    torch.testing.assert_close(
        mine, dense_of(graph).detach().sum(0)[:, None].expand(4, 2), rtol=1e-6, atol=1e-6
    )


def test_joined_and_scaled_graphs_add_up(graph):
    joined = joined_graph(graph.scaled(0.3), graph.scaled(torch.tensor(0.5)))
    torch.testing.assert_close(dense_of(joined), 0.8 * dense_of(graph))


def test_raw_graph_is_the_cosine_one():
    matrix = torch.randn(12, 4)
    features = ItemFeatures("visual__x", "visual", matrix, torch.ones(12).bool())
    expected = torch.from_numpy(knn_graph(features, 4, "cosine").toarray())
    torch.testing.assert_close(dense_of(raw_graph(features, 4)), expected)


def test_learned_similarities_keep_the_nearest_with_gradient():
    leaf = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    graph = learned_similarities(leaf, 4)
    full = F.cosine_similarity(leaf[:, None], leaf[None], dim=2)
    torch.testing.assert_close(graph.weights, full.gather(1, graph.indices))
    assert torch.equal(graph.indices, full.topk(4).indices.sort().values)
    assert torch.autograd.gradcheck(lambda x: learned_similarities(x, 4).weights, (leaf,))
    assert learned_similarities(leaf.bfloat16(), 4).weights.dtype == torch.float32


def test_graphs_are_built_once_until_they_are_forgotten(graph):
    calls = []
    graphs, dense = LearnedGraphs([]), torch.randn(4, 2, dtype=torch.float64)

    def build() -> list[NeighbourGraph]:
        calls.append(1)
        return [graph]

    (first,), (second,) = (graphs.propagate(dense, 1, build) for _ in range(2))
    assert len(calls) == 1
    assert first.requires_grad
    assert not second.requires_grad
    torch.testing.assert_close(first.detach(), second, rtol=1e-6, atol=1e-6)
    graphs.forget()
    graphs.propagate(dense, 1, build, keep=False)
    assert graphs.propagate(dense, 1, build, keep=False)[0].requires_grad
    assert len(calls) == 3
    assert not graphs.state_dict()


@pytest.mark.parametrize("k", [0, 1, 3, 7, 8])
def test_among_equals_the_lowest_columns_win(k):
    block = torch.randint(0, 3, (50, 8)).float()
    expected = [sorted(sorted(range(8), key=lambda j: (-row[j], j))[:k]) for row in block.tolist()]
    assert largest_columns(block, k).tolist() == expected


def test_all_zero_rows_have_similarity_zero_to_all():
    features = torch.randn(6, 3)
    features[[1, 4]] = 0.0
    indices, values = item_neighbours(features, 6)
    assert indices.tolist() == [list(range(6))] * 6
    assert not values[1].any()
    assert not values[:, 4].any()
