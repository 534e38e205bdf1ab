import math

import numpy as np
import pytest
import torch

from mmbench.models.branches import BranchEncoder, HalvedGraph, ReadOut


def laplacian(dense):
    """S = D^-1/2 A D^-1/2, by loops."""
    n_users, n_items = dense.shape
    degrees = [*dense.sum(axis=1), *dense.sum(axis=0)]
    result = np.zeros((n_users + n_items,) * 2)
    for u in range(n_users):
        for i in range(n_items):
            if dense[u, i]:
                value = 1 / math.sqrt(degrees[u] * degrees[n_users + i])
                result[u, n_users + i] = result[n_users + i, u] = value
    return result


def blocks(halves, n_users):
    return halves.to_users.matrix().to_dense(), halves.to_items.matrix().to_dense()


@pytest.mark.parametrize("n_layers", [1, 2, 3, 4])
def test_halves_together_equal_branches_apart(n_layers, train, given, dense):
    torch.manual_seed(0)
    encoder = BranchEncoder(train, given, 3, n_layers).double()
    users, items = encoder.propagate(encoder.starts())
    graph = torch.from_numpy(laplacian(dense))
    starts = encoder.starts().chunk(4, dim=1)
    for branch, start in enumerate(starts):
        level = total = torch.cat([encoder.users, start])
        for _ in range(n_layers):
            level = graph @ level
            total = total + level
        expected, columns = total / (n_layers + 1), slice(3 * branch, 3 * branch + 3)
        torch.testing.assert_close(users[:, columns], expected[:12])
        torch.testing.assert_close(items[:, columns], expected[12:])


def test_projected_features_have_rows_of_length_one(train, given):
    encoder = BranchEncoder(train, given, 3, 1).double()
    assert encoder.modalities == ("visual", "acoustic", "textual")
    raw = given[2].matrix.double()  # acoustic, the second branch after the ids
    unit = raw / raw.norm(dim=1, keepdim=True)
    layer = encoder.project["acoustic"]
    torch.testing.assert_close(
        encoder.starts()[:, 6:9], unit @ layer.weight.T + layer.bias, rtol=1e-6, atol=1e-7
    )
    zero = encoder.starts()[2, 3:6]  # an all-zero picture leaves the bias
    torch.testing.assert_close(zero, encoder.project["visual"].bias)
    assert not any("features" in key for key in encoder.state_dict())


def test_dropped_edges_are_counted_and_normalised_on_what_stays(train, dense):
    graph = HalvedGraph(train)
    torch.manual_seed(0)
    halves = graph.without_edges(0.3)
    to_users, to_items = blocks(halves, 12)
    kept = (to_users > 0).numpy()
    assert kept.sum() == math.floor(0.7 * dense.sum())
    assert (dense[kept] == 1).all()
    expected = laplacian(kept.astype(float))[:12, 12:]
    np.testing.assert_allclose(to_users.numpy(), expected, rtol=1e-6)
    torch.testing.assert_close(to_items, to_users.T)
    # The whole graph is as it was.
    whole, _ = blocks(graph.whole(), 12)
    np.testing.assert_allclose(whole.numpy(), laplacian(dense)[:12, 12:], rtol=1e-6)


def test_dropped_nodes_lose_their_edges_and_others_only_theirs(train, dense):
    torch.manual_seed(1)
    halves = HalvedGraph(train).without_nodes(0.25)  # 3 of 12 users, 2 of 9 items
    to_users, to_items = blocks(halves, 12)
    kept = (to_users > 0).numpy()
    torch.manual_seed(1)
    users = torch.randperm(12)[:3].numpy()
    items = torch.randperm(9)[:2].numpy()
    expected = dense.copy()
    expected[users] = 0
    expected[:, items] = 0
    np.testing.assert_array_equal(kept, expected > 0)
    np.testing.assert_allclose(to_users.numpy(), laplacian(expected)[:12, 12:], rtol=1e-6)
    torch.testing.assert_close(to_items, to_users.T)


def test_every_edge_is_dropped_equally_often(train):
    graph, counts = HalvedGraph(train), torch.zeros(len(train.users))
    torch.manual_seed(2)
    n_draws = 400
    for _ in range(n_draws):
        counts += graph.without_edges(0.5).to_users.values > 0
    share = math.floor(0.5 * len(counts)) / len(counts)
    deviation = math.sqrt(n_draws * share * (1 - share))
    assert float((counts - n_draws * share).abs().max()) < 4.5 * deviation


def test_nothing_dropped_is_the_whole_graph(train):
    graph = HalvedGraph(train)
    for halves in (graph.without_edges(0.0), graph.without_nodes(0.0)):
        for part, whole in zip(blocks(halves, 12), blocks(graph.whole(), 12), strict=True):
            torch.testing.assert_close(part, whole)


def test_an_ensemble_reads_the_mean_of_branch_scores():
    torch.manual_seed(0)
    users, items = ReadOut(3, 2, fused=False), ReadOut(3, 2, fused=False)
    one, two = torch.randn(4, 6), torch.randn(5, 6)
    parts = [
        users.maps[b](one[:, 2 * b : 2 * b + 2]) @ items.maps[b](two[:, 2 * b : 2 * b + 2]).T
        for b in range(3)
    ]
    torch.testing.assert_close(users(one) @ items(two).T, sum(parts) / 3)
