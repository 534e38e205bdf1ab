import numpy as np
import pytest
import torch

from mmbench.models import user_graphs
from mmbench.models.base import Interactions
from mmbench.models.user_graphs import CommonItems, UserGraph, common_items


def of_matrix(dense):
    users, items = (torch.from_numpy(column) for column in np.nonzero(dense))
    return Interactions(*dense.shape, users, items)


def best_by_loops(dense, k):
    """The k users with the most common items of each, most first, then the lowest index."""
    lists = []
    for user, row in enumerate(dense):
        shared = [
            (-sum(a and b for a, b in zip(row, other, strict=True)), w)
            for w, other in enumerate(dense)
            if w != user
        ]
        lists.append([(w, -count) for count, w in sorted(shared) if count < 0][:k])
    return lists


def as_lists(graph: CommonItems, n_users):
    ends = graph.pointers
    return [
        list(
            zip(
                graph.neighbours[ends[u] : ends[u + 1]].tolist(),
                graph.counts[ends[u] : ends[u + 1]].tolist(),
                strict=True,
            )
        )
        for u in range(n_users)
    ]


def test_the_users_with_most_common_items_by_loops(train, dense):
    assert as_lists(common_items(train), 12) == best_by_loops(dense, 200)
    assert not as_lists(common_items(train), 12)[3]  # who has no item


@pytest.mark.parametrize("products", [1, 7, 40])
def test_blocks_and_the_number_stored(products, monkeypatch):
    dense = (np.random.default_rng(3).random((40, 11)) < 0.3).astype(float)
    dense[[0, 17, 39]] = 0
    monkeypatch.setattr(user_graphs, "_graphs", type(user_graphs._graphs)())
    monkeypatch.setattr(user_graphs, "BLOCK_PRODUCTS", products)
    monkeypatch.setattr(user_graphs, "STORED", 5)
    assert as_lists(common_items(of_matrix(dense)), 40) == best_by_loops(dense, 5)


def test_it_is_kept_by_content(train, monkeypatch):
    monkeypatch.setattr(user_graphs, "_graphs", type(user_graphs._graphs)())
    first = common_items(train)
    again = Interactions(train.n_users, train.n_items, train.users.clone(), train.items.clone())
    assert common_items(again) is first
    fewer = Interactions(train.n_users, train.n_items, train.users[1:], train.items[1:])
    assert common_items(fewer) is not first


def weights_by_loops(lists, n_users):
    beta = np.zeros((n_users, n_users))
    for user, neighbours in enumerate(lists):
        total = sum(np.exp(float(count)) for _, count in neighbours)
        for other, count in neighbours:
            beta[user, other] += np.exp(float(count)) / total
    return beta


@pytest.mark.parametrize("k", [1, 2, 40])
def test_sums_over_users_and_their_gradient(k, train, dense):
    graph = UserGraph(train, k, "none").double()
    beta = torch.from_numpy(weights_by_loops(best_by_loops(dense, k), 12))
    vectors = torch.randn(12, 3, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(graph(vectors), beta @ vectors, atol=1e-6, rtol=1e-6)
    some = torch.tensor([4, 0, 4, 3])
    torch.testing.assert_close(graph(vectors, some), (beta @ vectors)[some], atol=1e-6, rtol=1e-6)
    assert torch.autograd.gradcheck(graph, (vectors,))
    assert torch.autograd.gradcheck(lambda x: graph(x, some), (vectors,))
    assert not graph(vectors)[3].any()


def test_large_counts_do_not_overflow():
    dense = np.ones((3, 900))
    dense[2, 5:] = 0
    graph = UserGraph(of_matrix(dense), 40, "none")
    torch.testing.assert_close(graph(torch.eye(3))[0], torch.tensor([0.0, 1, 0]))
    torch.testing.assert_close(graph(torch.eye(3))[2], torch.tensor([0.5, 0.5, 0]))


def test_without_common_items_all_sums_are_zero():
    graph = UserGraph(of_matrix(np.eye(4)), 40, "resample")
    graph.draw()
    vectors = torch.ones(4, 2, requires_grad=True)
    assert torch.equal(graph(vectors), torch.zeros(4, 2))
    assert torch.equal(graph(vectors, torch.tensor([1])), torch.zeros(1, 2))


def test_resampled_padding_weighs_by_the_times_drawn(train, dense):
    graph = UserGraph(train, 9, "resample")
    plain = UserGraph(train, 9, "none")
    assert torch.equal(graph.weights, plain.weights)
    assert "weights" in graph.state_dict()
    assert not plain.state_dict()
    lists, seen = best_by_loops(dense, 9), []
    assert any(0 < len(neighbours) < 9 for neighbours in lists)
    for seed in range(3):
        torch.manual_seed(seed)
        graph.draw()
        seen.append(graph.weights.clone())
        for user, neighbours in enumerate(lists):
            weights = graph.weights[user].double().numpy()
            assert weights.sum() == pytest.approx(1 if neighbours else 0)
            if neighbours:
                shares = np.array([np.exp(float(count)) for _, count in neighbours])
                # Up to a common factor the weights are whole numbers of times; nine in all.
                times = weights[: len(shares)] / shares
                times *= 9 / times.sum()
                np.testing.assert_allclose(times, times.round(), atol=1e-4)
                assert times.round().min() >= 1
    assert not torch.equal(seen[0], seen[1])
    torch.manual_seed(0)
    graph.draw()
    assert torch.equal(graph.weights, seen[0])


def test_half_precision_is_summed_in_full(train):
    vectors = torch.randn(12, 3, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        result = UserGraph(train, 5, "none")(vectors, torch.tensor([1, 2]))
    assert result.dtype == torch.float32
    result.sum().backward()
    assert vectors.grad is not None
    assert vectors.grad.dtype == torch.bfloat16
