import numpy as np
import pytest
import scipy.sparse as sp
import torch

from mmbench.models.base import Interactions
from mmbench.models.graph import SparseOperator, normalised_adjacency
from mmbench.models.item_graphs import item_neighbours, largest_columns


def dense_adjacency(matrix: np.ndarray) -> np.ndarray:
    """S, one edge at a time."""
    n_users, n_items = matrix.shape
    result = np.zeros((n_users + n_items, n_users + n_items))
    for user in range(n_users):
        for item in range(n_items):
            if matrix[user, item]:
                value = 1 / np.sqrt(matrix[user].sum() * matrix[:, item].sum())
                result[user, n_users + item] = result[n_users + item, user] = value
    return result


def star() -> Interactions:
    return Interactions(1, 3, torch.zeros(3, dtype=torch.int64), torch.arange(3))


def test_adjacency_of_a_star_of_one_user_and_three_items():
    values = normalised_adjacency(star()).matrix().to_dense()
    third = 1 / np.sqrt(3)
    expected = torch.tensor(
        [[0, third, third, third], [third, 0, 0, 0], [third, 0, 0, 0], [third, 0, 0, 0]]
    )
    torch.testing.assert_close(values.double(), expected.double(), atol=1e-7, rtol=0)


def test_adjacency_is_the_edge_by_edge_one(train, dense):
    values = normalised_adjacency(train).matrix().to_dense()
    np.testing.assert_allclose(values.numpy(), dense_adjacency(dense), atol=1e-7)


def test_isolated_nodes_have_rows_of_zeros_not_nan(train):
    values = normalised_adjacency(train).matrix().to_dense()
    assert torch.equal(values[3], torch.zeros(len(values)))
    assert torch.equal(values[train.n_users + 5], torch.zeros(len(values)))


@pytest.mark.parametrize("n_layers", [1, 2, 3, 5])
def test_mean_of_powers_and_its_gradient_equal_the_dense_ones(train, dense, n_layers):
    graph = normalised_adjacency(train).double()
    # Float64 from the start, where the module's own values were rounded to float32.
    matrix = graph.matrix().to_dense()
    np.testing.assert_allclose(matrix.numpy(), dense_adjacency(dense), atol=1e-7)
    start = torch.randn(21, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    layers = [start.clone().requires_grad_()]
    for _ in range(n_layers):
        layers.append(matrix @ layers[-1])
    expected = sum(layers) / (n_layers + 1)
    leaf = start.clone().requires_grad_()
    result = graph.mean_of_powers(leaf, n_layers)
    torch.testing.assert_close(result, expected)
    weight = torch.randn(21, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (result * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(leaf.grad, layers[0].grad)


def test_product_and_its_gradient_equal_the_dense_ones(train):
    graph = normalised_adjacency(train).double()
    leaf = torch.randn(21, 2, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(graph(leaf), graph.matrix().to_dense() @ leaf)
    assert torch.autograd.gradcheck(graph, (leaf,))
    graph(leaf).sum().backward()
    torch.testing.assert_close(leaf.grad, graph.matrix().to_dense() @ torch.ones_like(leaf))


def test_propagation_of_a_constant_is_not_constant():
    result = normalised_adjacency(star()).mean_of_powers(torch.ones(4, 1), 2)
    assert float(result.std()) > 0.1


def test_the_operator_moves_with_the_model_but_is_not_stored(train):
    graph = normalised_adjacency(train)
    assert not graph.state_dict()
    assert graph.double().values.dtype == torch.float64
    assert graph.columns.dtype == graph.pointers.dtype == torch.int32


@pytest.mark.parametrize("include_self", [True, False])
def test_item_neighbours_by_loops(include_self):
    features = torch.randn(30, 5, generator=torch.Generator().manual_seed(3))
    features[7] = 0.0
    features[11] = features[4]
    features[20] = 2 * features[4]
    indices, values = item_neighbours(features, 6, shrinkage=0.5, include_self=include_self)
    for i in range(30):
        similarities = {}
        for j in range(30):
            if include_self or i != j:
                lengths = float(features[i].norm() * features[j].norm())
                similarities[j] = float(features[i] @ features[j]) / (lengths + 0.5)
        best = sorted(similarities.values(), reverse=True)[:6]
        assert len(set(indices[i].tolist())) == 6
        assert include_self or i not in indices[i]
        np.testing.assert_allclose(np.sort(values[i].numpy())[::-1], best, atol=1e-6)
        np.testing.assert_allclose(
            values[i], [similarities[j] for j in indices[i].tolist()], atol=1e-6
        )


def test_item_neighbours_of_one_hot_features_with_k_1_are_the_items_themselves():
    indices, values = item_neighbours(torch.eye(6), 1)
    assert indices[:, 0].tolist() == list(range(6))
    assert values[:, 0].tolist() == [1.0] * 6


def test_a_row_of_zeros_is_similar_to_nothing_and_never_nan():
    features = torch.ones(4, 2)
    features[1] = 0.0
    _, values = item_neighbours(features, 4)
    assert torch.isfinite(values).all()
    assert torch.equal(values[1], torch.zeros(4))


def test_item_neighbours_do_not_depend_on_the_block(monkeypatch):
    features = torch.randn(23, 4, generator=torch.Generator().manual_seed(0))
    whole = item_neighbours(features, 5, include_self=False)
    monkeypatch.setattr("mmbench.models.item_graphs.BLOCK_ROWS", 4)
    parts = item_neighbours(features, 5, include_self=False)
    assert torch.equal(whole[0], parts[0])
    torch.testing.assert_close(whole[1], parts[1])


def test_k_beyond_the_number_of_items_keeps_all():
    indices, _ = item_neighbours(torch.randn(4, 2), 50, include_self=False)
    assert indices.shape == (4, 3)


def test_among_equals_the_lowest_columns_win():
    block = torch.tensor([[1.0, 2, 1, 2, 1], [0, 0, 0, 0, 0]])
    assert largest_columns(block, 3).tolist() == [[0, 1, 3], [0, 1, 2]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_some_rows_of_a_product_beside_rows_of_the_table(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(3)
    matrix = (rng.random((7, 5)) < 0.4) * rng.standard_normal((7, 5))
    matrix[2] = 0.0  # a row without entries
    operator = SparseOperator(sp.csr_array(matrix))
    table = torch.from_numpy(rng.standard_normal((5, 3))).to(dtype).requires_grad_()
    rows, own = torch.tensor([6, 2, 0, 6]), torch.tensor([1, 1, 4])
    joined = operator.rows_beside(table, rows, own)
    exact = table.detach().double().requires_grad_()
    whole = torch.cat([(torch.from_numpy(matrix) @ exact)[rows], exact[own]])
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    assert torch.allclose(joined.double(), whole, atol=tolerance)
    weights = torch.from_numpy(rng.standard_normal((7, 3)))
    (joined.double() * weights).sum().backward()
    (whole * weights).sum().backward()
    assert table.grad is not None
    assert exact.grad is not None
    assert torch.allclose(table.grad.double(), exact.grad, atol=tolerance)


def test_no_rows_of_a_product_are_asked_for() -> None:
    operator = SparseOperator(sp.csr_array(np.eye(4)))
    nothing = torch.empty(0, dtype=torch.int64)
    assert operator.rows_beside(torch.ones(4, 2), nothing, nothing).shape == (0, 2)
