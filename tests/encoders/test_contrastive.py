"""Against loops in float64, written from the equations; gradients by differences."""

from __future__ import annotations

import math

import pytest
import torch

from mmbench.encoders import contrastive


def rows(seed: int, n: int = 5, dim: int = 4) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, dim, generator=rng), dim=1)


def dot(x, y):
    return math.fsum(p * q for p, q in zip(x, y, strict=True))


def slow_contrastive(pictures, texts, t, same):
    n, scale = len(pictures), math.exp(t)
    total = 0.0
    for rows, others, barred in ((pictures, texts, same), (texts, pictures, None)):
        for k in range(n):
            terms = {}
            for other in range(n):
                left_out = same[k][other] if barred is not None else same[other][k]
                if not left_out:
                    terms[other] = scale * dot(rows[k], others[other])
            total -= terms[k] - math.log(math.fsum(math.exp(v) for v in terms.values()))
    return total / (2 * n)


def slow_sigmoid(pictures, texts, t, c, same):
    total = 0.0
    for k in range(len(pictures)):
        for other in range(len(texts)):
            if not same[k][other]:
                sign = 1 if k == other else -1
                z = sign * (math.exp(t) * dot(pictures[k], texts[other]) + c)
                total += math.log1p(math.exp(-z))
    return total / len(pictures)


GROUPS = [[0, 1, 2, 3, 4], [0, 0, 1, 2, 0], [7, 7, 7, 7, 7]]


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("t", [0.0, 1.7])
def test_losses_and_gradients_equal_the_loops(groups, t) -> None:
    same = contrastive.same_group(torch.tensor(groups))
    assert not same.diagonal().any()
    given = [rows(0), rows(1), torch.tensor(t), torch.tensor(-0.8)]

    def slow(kind, values):
        a, b, scale, bias = values
        if kind == "itc":
            return slow_contrastive(a, b, scale, same.tolist())
        return slow_sigmoid(a, b, scale, bias, same.tolist())

    for kind in ("itc", "sigmoid"):
        leaves = [value.clone().requires_grad_() for value in given]
        if kind == "itc":
            loss = contrastive.contrastive_loss(*leaves[:3], same)
        else:
            loss = contrastive.sigmoid_loss(*leaves, same)
        exact = [value.double().tolist() for value in given]
        assert float(loss.detach()) == pytest.approx(slow(kind, exact), abs=1e-5)
        loss.backward()
        step = 1e-6
        for number, leaf in enumerate(leaves[: 3 if kind == "itc" else 4]):
            for place in range(leaf.numel()):
                ends = []
                for sign in (1, -1):
                    moved = [value.double() for value in given]
                    moved[number] = moved[number].clone()
                    moved[number].view(-1)[place] += sign * step
                    ends.append(slow(kind, [value.tolist() for value in moved]))
                wanted = (ends[0] - ends[1]) / (2 * step)
                assert float(leaf.grad.view(-1)[place]) == pytest.approx(wanted, abs=2e-5)


def test_orthogonal_pairs_cost_nothing_and_equal_rows_the_logarithm() -> None:
    axes, none = torch.eye(6), torch.zeros(6, 6, dtype=torch.bool)
    hot = torch.tensor(contrastive.MOST)
    assert float(contrastive.contrastive_loss(axes, axes, hot, none)) < 1e-6
    same = torch.ones(6, 3) / 3**0.5
    loss = float(contrastive.contrastive_loss(same, same, hot, none))
    assert loss == pytest.approx(math.log(6))
    twins = contrastive.same_group(torch.zeros(6))
    assert float(contrastive.contrastive_loss(same, same, hot, twins)) == pytest.approx(0)


def test_bfloat16_vectors_are_compared_in_float32() -> None:
    a, b = rows(3).bfloat16(), rows(4).bfloat16()
    none = torch.zeros(5, 5, dtype=torch.bool)
    t = torch.tensor(4.0)
    loss = contrastive.contrastive_loss(a, b, t, none)
    exact = slow_contrastive(a.double().tolist(), b.double().tolist(), 4.0, none.tolist())
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(exact, rel=1e-5)


def test_hard_negatives_are_drawn_by_their_likeness() -> None:
    texts, pictures, t = rows(5), rows(6), torch.tensor(1.0)
    same = contrastive.same_group(torch.tensor([0, 1, 0, 2, 3]))
    n = 4000
    counts = torch.zeros(5, 5)
    for k in range(n):  # evenly over [0, 1): the shares are exact but for 1 / n
        draws = torch.full((5,), (k + 0.5) / n)
        found, exists = contrastive.hard_negatives(texts, pictures, t, same, draws)
        assert exists.all()
        counts[torch.arange(5), found] += 1
    for k in range(5):
        weights = [
            0.0 if other == k or same[k, other] else math.exp(math.e * dot(x, y))
            for other, (x, y) in enumerate(
                (texts[k].tolist(), pictures[other].tolist()) for other in range(5)
            )
        ]
        for other, weight in enumerate(weights):
            share = weight / math.fsum(weights)
            assert float(counts[k, other]) / n == pytest.approx(share, abs=2e-3)


def test_a_saturated_temperature_leaves_a_negative_and_one_group_none() -> None:
    axes, hot = torch.eye(4), torch.tensor(12.0)  # a scale of 160,000: all else underflows
    none = torch.zeros(4, 4, dtype=torch.bool)
    for draw in (0.0, 0.5, 0.9999999):
        found, exists = contrastive.hard_negatives(axes, axes, hot, none, torch.full((4,), draw))
        assert exists.all()
        assert (found != torch.arange(4)).all()
    twins = contrastive.same_group(torch.zeros(4))
    found, exists = contrastive.hard_negatives(axes, axes, hot, twins, torch.rand(4))
    assert not exists.any()
    assert ((found >= 0) & (found < 4)).all()


PAD, CLS, SEP, MASK, FIRST, WORDS = 0, 1, 2, 3, 10, 100


def hide(ids: torch.Tensor, begins: torch.Tensor, seed: int):
    draws = torch.rand(3, *ids.shape, generator=torch.Generator().manual_seed(seed))
    special = ids < FIRST
    return contrastive.hide_words(ids, special, begins, MASK, torch.arange(FIRST, WORDS), draws)


def test_whole_words_are_hidden_and_most_become_the_mask() -> None:
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(FIRST, WORDS, (400, 40), generator=rng)
    begins = torch.rand(400, 40, generator=rng) < 0.6
    ids[:, 0], ids[:, -1], ids[:, 1] = CLS, SEP, FIRST
    ids[:200, 30:], ids[:200, 29] = PAD, SEP
    begins[:, 1] = True
    changed, hidden = hide(ids, begins, 1)
    special = ids < FIRST
    assert not (hidden & special).any()
    assert (changed == ids)[~hidden].all()
    word = begins.cumsum(dim=1)
    for row in range(0, 400, 20):
        for number in word[row][~special[row]].unique():
            inside = hidden[row][(word[row] == number) & ~special[row]]
            assert inside.all() or not inside.any()
    assert hidden.any(dim=1).all()
    share = float(hidden.sum() / (~special).sum())
    assert share == pytest.approx(0.15, abs=0.02)
    fate = changed[hidden]
    assert float((fate == MASK).float().mean()) == pytest.approx(0.8, abs=0.03)
    kept = float((fate == ids[hidden]).float().mean())
    assert kept == pytest.approx(0.1 + 0.1 / (WORDS - FIRST), abs=0.025)
    assert ((fate == MASK) | (fate >= FIRST)).all()


def test_a_short_text_always_has_a_hidden_word_and_an_empty_one_none() -> None:
    ids = torch.tensor([[CLS, 20, SEP, PAD], [CLS, SEP, PAD, PAD]])
    for seed in range(50):
        _, hidden = hide(ids, torch.ones_like(ids, dtype=torch.bool), seed)
        assert hidden.tolist() == [[False, True, False, False], [False] * 4]
