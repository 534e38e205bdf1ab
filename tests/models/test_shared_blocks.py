"""What several papers share, against dense computations written from the equations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch
import torch.nn.functional as F

from mmbench.errors import ConfigError
from mmbench.models import item_graphs
from mmbench.models.base import Interactions, ItemFeatures
from mmbench.models.fusion import FeatureTables, QueryAttention, unit_rows
from mmbench.models.graph import (
    SparseOperator,
    adjacency_of_edges,
    mean_adjacency,
    normalised_adjacency,
    powered_adjacency,
    row_means,
    weighted_subset,
)
from mmbench.models.losses import info_nce


def star() -> Interactions:
    """One user, three items."""
    return Interactions(1, 3, torch.zeros(3, dtype=torch.int64), torch.arange(3))


def features(matrix: torch.Tensor, name: str = "visual__x") -> ItemFeatures:
    return ItemFeatures(name, "visual", matrix.float(), torch.ones(len(matrix), dtype=torch.bool))


def dense_of(operator: SparseOperator) -> torch.Tensor:
    return operator.matrix().to_dense()


def test_means_over_a_star_with_and_without_self_loops():
    own = dense_of(mean_adjacency(star(), self_loops=True))
    torch.testing.assert_close(own[0], torch.full((4,), 1 / 4))
    torch.testing.assert_close(own[1], torch.tensor([0.5, 0.5, 0, 0]))
    bare = dense_of(mean_adjacency(star(), self_loops=False))
    torch.testing.assert_close(bare[0], torch.tensor([0, 1 / 3, 1 / 3, 1 / 3]))
    torch.testing.assert_close(bare[2], torch.tensor([1.0, 0, 0, 0]))


def test_a_constant_stays_constant_under_means_alone():
    ones = torch.ones(4, 2)
    own = mean_adjacency(star(), self_loops=True)
    torch.testing.assert_close(own.mean_of_powers(ones, 3), ones)
    assert float(normalised_adjacency(star()).mean_of_powers(ones, 3).std()) > 0.1


def test_powers_of_degrees_belong_to_receiver_and_sender():
    values = dense_of(powered_adjacency(star(), 0.5, 0.4))
    assert float(values[0, 1]) == pytest.approx(4**-0.5 * 2**-0.4)
    assert float(values[1, 0]) == pytest.approx(2**-0.5 * 4**-0.4)
    assert float(values[2, 2]) == pytest.approx(2**-0.9)


def test_isolated_nodes_get_rows_of_zeros():
    lonely = Interactions(2, 3, torch.tensor([0]), torch.tensor([1]))
    for operator in (mean_adjacency(lonely, self_loops=False), normalised_adjacency(lonely)):
        values = dense_of(operator)
        assert torch.isfinite(values).all()
        assert not values[1].any()
        assert not values[2].any()


@pytest.mark.parametrize("call", ["mean_of_powers", "sum_of_powers", "last_power", "product"])
def test_products_of_a_directed_graph_and_their_gradients(train, call):
    operator = powered_adjacency(train, 0.5, 0.3).double()
    matrix = dense_of(operator)
    leaf = torch.randn(len(matrix), 3, dtype=torch.float64, requires_grad=True)
    first, second = matrix @ leaf, matrix @ matrix @ leaf
    expected = {
        "mean_of_powers": (leaf + first + second) / 3,
        "sum_of_powers": leaf + first + second,
        "last_power": second,
        "product": first,
    }[call]
    result = operator(leaf) if call == "product" else getattr(operator, call)(leaf, 2)
    torch.testing.assert_close(result, expected)
    weight = torch.randn_like(result)
    (mine,) = torch.autograd.grad((result * weight).sum(), leaf, retain_graph=True)
    (literal,) = torch.autograd.grad((expected * weight).sum(), leaf)
    torch.testing.assert_close(mine, literal)


def test_half_precision_goes_through_the_sparse_product_in_full():
    operator = mean_adjacency(star(), self_loops=True)
    leaf = torch.randn(4, 2, dtype=torch.bfloat16, requires_grad=True)
    result = operator(leaf)
    assert result.dtype == torch.float32
    result.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == torch.bfloat16


def test_a_graph_of_some_edges_counts_their_degrees_alone(train):
    kept = torch.arange(0, len(train.users), 2)
    users, items = train.users[kept], train.items[kept]
    values = dense_of(adjacency_of_edges(users, items, train.n_users, train.n_items))
    for user, item in zip(users.tolist(), items.tolist(), strict=True):
        degrees = int((users == user).sum()) * int((items == item).sum())
        assert float(values[user, train.n_users + item]) == pytest.approx(1 / math.sqrt(degrees))
    assert int((values > 0).sum()) == 2 * len(kept)


def test_a_subset_drawn_by_weight_has_no_repetition_and_prefers_the_heavy():
    torch.manual_seed(0)
    weights = torch.tensor([100.0] * 5 + [1.0] * 5)
    counts = torch.zeros(10)
    for _ in range(400):
        drawn = weighted_subset(weights, 4)
        assert len(drawn.unique()) == 4
        counts[drawn] += 1
    # Of 4 draws without replacement, about 3.9 fall on the five heavy entries.
    assert float(counts[:5].sum() / counts.sum()) == pytest.approx(0.97, abs=0.02)


def test_uniform_neighbours_weigh_one_over_k_and_hold_the_item_itself():
    matrix = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    graph = item_graphs.knn_graph(features(matrix), 3, "uniform")
    assert np.allclose(graph.data, 1 / 3)
    assert np.allclose(graph.sum(axis=1), 1)
    assert (graph.diagonal() > 0).all()


def test_cosine_neighbours_against_the_equation():
    matrix = torch.randn(8, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    graph = item_graphs.knn_graph(features(matrix), 3, "cosine").toarray()
    unit = matrix / matrix.norm(dim=1, keepdim=True)
    cosines = (unit @ unit.T).numpy()
    kept = np.zeros_like(cosines)
    for row in range(8):
        for column in np.argsort(-cosines[row], kind="stable")[:3]:
            kept[row, column] = cosines[row, column]
    sums = kept.sum(axis=1)
    assert (sums > 0).all()
    expected = kept / np.sqrt(np.outer(sums, sums))
    assert np.allclose(graph, expected, atol=1e-6)


def test_one_hot_features_have_themselves_as_the_only_neighbour():
    graph = item_graphs.knn_graph(features(torch.eye(5)), 1, "cosine")
    assert np.allclose(graph.toarray(), np.eye(5))


def test_zero_rows_and_negative_sums_give_zeros_not_nan():
    matrix = torch.tensor([[0.0, 0], [1, 0], [-1, 0], [0, 1]])
    graph = item_graphs.knn_graph(features(matrix), 2, "cosine").toarray()
    assert np.isfinite(graph).all()
    assert not graph[0].any()


def test_features_that_tell_nothing_apart_are_refused():
    with pytest.raises(ConfigError, match="visual__x: all rows are equal"):
        item_graphs.knn_graph(features(torch.ones(5, 2)), 2, "uniform")


def test_neighbours_are_kept_by_content_not_by_name(monkeypatch):
    calls = []
    literal = item_graphs.item_neighbours
    monkeypatch.setattr(item_graphs, "_neighbours", type(item_graphs._neighbours)())
    monkeypatch.setattr(
        item_graphs, "item_neighbours", lambda *a, **k: calls.append(1) or literal(*a, **k)
    )
    one, two = torch.randn(6, 2), torch.randn(6, 2)
    first = item_graphs.raw_neighbours(features(one), 2)
    assert item_graphs.raw_neighbours(features(one.clone(), "visual__other"), 2) is first
    assert len(calls) == 1
    item_graphs.raw_neighbours(features(two), 2)  # the name is the same, the content is not
    item_graphs.raw_neighbours(features(one), 3)
    assert len(calls) == 3


def test_cosines_of_pairs_and_their_normalisation_have_gradients():
    matrix = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    indices = torch.randint(0, 7, (7, 3), generator=torch.Generator().manual_seed(0))
    cosines = item_graphs.cosine_of_pairs(matrix, indices)
    for row in range(7):
        for slot in range(3):
            other = matrix[indices[row, slot]]
            torch.testing.assert_close(
                cosines[row, slot], F.cosine_similarity(matrix[row], other, dim=0)
            )
    assert torch.autograd.gradcheck(lambda x: item_graphs.cosine_of_pairs(x, indices), (matrix,))
    values = torch.rand(7, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: item_graphs.normalised_similarities(indices, x), (values,)
    )


@pytest.mark.parametrize(
    ("modalities", "expected"),
    [
        (["visual", "textual"], {"visual": 0.1, "textual": 0.9}),
        (["visual"], {"visual": 1.0}),
        (["textual"], {"textual": 1.0}),
        (["visual", "textual", "acoustic"], {"visual": 0.1, "textual": 0.45, "acoustic": 0.45}),
        (["textual", "acoustic"], {"textual": 0.5, "acoustic": 0.5}),
    ],
)
def test_mixing_weights_sum_to_one_over_those_present(modalities, expected):
    assert item_graphs.mixing_weights(modalities, 0.1) == pytest.approx(expected)


def test_mixed_graphs_sum_their_shared_edges():
    one, two = torch.randn(6, 2), torch.randn(6, 2)
    graphs = {
        name: item_graphs.knn_graph(features(matrix, name), 2, "uniform")
        for name, matrix in (("visual", one), ("textual", two))
    }
    mixed = item_graphs.mix_graphs(graphs, {"visual": 0.1, "textual": 0.9})
    expected = 0.1 * graphs["visual"].toarray() + 0.9 * graphs["textual"].toarray()
    assert np.allclose(mixed.toarray(), expected)


def test_contrast_against_the_sums():
    a, b = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    total = 0.0
    for row in range(5):
        cosines = [float(F.cosine_similarity(a[row], b[other], dim=0)) for other in range(5)]
        shares = [math.exp(value / 0.2) for value in cosines]
        total -= math.log(shares[row] / sum(shares))
    assert float(info_nce(a, b, 0.2)) == pytest.approx(total / 5, rel=1e-5)


def test_contrast_keeps_double_precision_and_lifts_half():
    a, b = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    leaf = a.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: info_nce(x, b, 0.2), (leaf,))
    assert info_nce(a.bfloat16(), b.bfloat16(), 0.2).dtype == torch.float32


def test_raw_features_are_parameters_or_constants_and_never_the_given_memory():
    given = features(torch.randn(5, 2))
    trained, frozen = (FeatureTables([given], frozen=frozen) for frozen in (False, True))
    assert list(trained.state_dict()) == ["visual"]
    assert not list(frozen.state_dict())
    assert not list(frozen.parameters())
    assert torch.equal(trained["visual"], given.matrix)
    assert torch.equal(frozen["visual"], given.matrix)
    with torch.no_grad():
        trained["visual"].add_(1.0)
    assert not torch.equal(trained["visual"], given.matrix)


def test_projected_features_and_their_gradients():
    tables = FeatureTables([features(torch.randn(5, 3))], frozen=False).double()
    layer = torch.nn.Linear(3, 2).double()
    table = tables["visual"]
    torch.testing.assert_close(tables.projected("visual", layer), layer(table))
    weight = torch.randn(5, 2, dtype=torch.float64)
    leaves = [table, layer.weight, layer.bias]
    mine = torch.autograd.grad((tables.projected("visual", layer) ** 2 * weight).sum(), leaves)
    literal = torch.autograd.grad((layer(table) ** 2 * weight).sum(), leaves)
    torch.testing.assert_close(mine, literal)


def test_a_gradient_that_is_still_held_is_not_written_over():
    tables = FeatureTables([features(torch.randn(5, 3))], frozen=False)
    layer = torch.nn.Linear(3, 2)
    table = tables["visual"]
    (first,) = torch.autograd.grad(tables.projected("visual", layer).sum(), table)
    before = first.clone()
    (second,) = torch.autograd.grad(3 * tables.projected("visual", layer).sum(), table)
    assert torch.equal(first, before)
    torch.testing.assert_close(second, 3 * before)
    for _ in range(2):  # two steps without clearing add up
        tables.projected("visual", layer).sum().backward()
    torch.testing.assert_close(table.grad, 2 * before)
    del first, second
    table.grad = None
    tables.projected("visual", layer).sum().backward()
    place = table.grad.data_ptr()
    table.grad = None
    tables.projected("visual", layer).sum().backward()
    assert table.grad.data_ptr() == place
    torch.testing.assert_close(table.grad, before)


def test_attention_weighs_views_per_row():
    attention = QueryAttention(3).double()
    views = [torch.randn(4, 3, dtype=torch.float64) for _ in range(3)]
    fused, weights = attention(views)
    for row in range(4):
        scores = torch.stack(
            [attention.query(torch.tanh(attention.hidden(view[row]))) for view in views]
        ).squeeze(1)
        torch.testing.assert_close(weights[row], scores.softmax(0))
        expected = sum(w * view[row] for w, view in zip(scores.softmax(0), views, strict=True))
        torch.testing.assert_close(fused[row], expected)


def test_unit_rows_are_those_of_the_framework_with_the_same_gradient():
    rows = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(unit_rows(rows), F.normalize(rows, dim=1))
    assert torch.autograd.gradcheck(unit_rows, (rows,))
    low = torch.randn(5, 3).bfloat16().requires_grad_()
    unit_rows(low).sum().backward()
    assert low.grad is not None
    assert low.grad.dtype == torch.bfloat16


def test_a_unit_row_of_zeros_is_zeros_and_so_is_its_gradient():
    rows = torch.tensor([[0.0, 0], [3, 4]], requires_grad=True)
    result = unit_rows(rows)
    assert result.tolist() == [[0, 0], [pytest.approx(0.6), pytest.approx(0.8)]]
    result.sum().backward()
    assert rows.grad is not None
    assert rows.grad[0].tolist() == [0, 0]
    assert torch.isfinite(rows.grad).all()


def test_means_of_rows_leave_rows_of_zeros():
    matrix = sp.csr_array(np.array([[1.0, 0, 3], [0, 0, 0]]))
    assert row_means(matrix).toarray().tolist() == [[0.25, 0, 0.75], [0, 0, 0]]
