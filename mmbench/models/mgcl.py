"""MGCL: a graph of preferences for each modality, whose starting points are held together.

Liu, Xue, Guo, Sun, Qian and Hong, IEEE TMM 2023. https://doi.org/10.1109/TMM.2023.3251108

    1. ids        E = H^L [P; Q],  H = (D + I)^-a (A + I) (D + I)^-b, the last level alone
    2. modality m E_m = H [P_m; y_m],  y_m = X_m W_m
    3. score      x_ui = e_u . e_i + sum over m of w_m e_m,u . e_m,i
                  w_m = visual_weight of pictures and 1 of others, in ranking only
    4. loss A     BPR(e_u . e_i, e_u . e_j) + sum over m of BPR(e_m,u . e_m,i, e_m,u . e_m,j)
                  + regularization * (L2(p_u, q_i, q_j)
                                      + 0.1 * sum over m of L2(p_m,u, y_m,i, y_m,j))
                  L2 = half the sum of squares of the batch's rows / B
    5. loss B     sum over ordered pairs (a, b) of ids and modalities, a not b, of
                  NCE(x^a, x^b; t), of the batch's users (x = p, p_m) and positives (q, y_m)

Shapes: U users, I items, N = U + I, B batch, M modalities, C = M + 1 branches, D =
config.embedding_size.
Departures: the released code minimises A and B in turn on the same batch, with an Adam for each
and a tenth of the rate for B; here one Adam minimises A + contrast_weight * B. NCE is the mean
over rows, not the sum: an Adam of its own does not see that factor, a shared one does. The weight
was chosen on the validation part of the demo shop (30 epochs, one seed), where Recall@20 is .284,
.285, .272 and .135 with 0, .001, .01 and .1: choose it again on other data. On MovieLens-100K it is
.287 and .304 after 2 and 4 epochs so, and .286 and .301 with the two Adams in turn, which pass over
every batch twice. Users are drawn with their interactions and not each once in a batch. `contrast:
released` repeats a slip in its denominators: of the items' pairs (text, ids) they compare text with
pictures, of (text, pictures) text with text. Without features this is E with BPR.
`integration: fusion` scores by one vector for each user and item, the mean of the branches':
x_ui = e*_u . e*_i, and loss A has one BPR, of that score.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from mmbench.modality import MODALITIES
from mmbench.models import losses
from mmbench.models.base import (
    Batch,
    Interactions,
    ItemFeatures,
    ModelConfig,
    Recommender,
    register_model,
)
from mmbench.models.fusion import FeatureTables
from mmbench.models.graph import powered_adjacency


class MGCLConfig(ModelConfig):
    """Settings of MGCL."""

    embedding_size: PositiveInt = 64  # D
    n_layers: PositiveInt = 5  # L
    receiver_power: NonNegativeFloat = 0.5  # a
    sender_power: NonNegativeFloat = 0.4  # b
    visual_weight: NonNegativeFloat = 0.4
    regularization: NonNegativeFloat = 1e-3
    contrast: Literal["paper", "released"] = "paper"
    contrast_weight: NonNegativeFloat = 0.001
    temperature: PositiveFloat = 0.04  # t
    integration: Literal["fusion", "ensemble"] = "ensemble"


@register_model(
    "mgcl",
    config=MGCLConfig,
    citation=(
        "Liu, Xue, Guo, Sun, Qian and Hong. Multimodal graph contrastive learning for "
        "multimedia-based recommendation. IEEE Transactions on Multimedia 2023."
    ),
)
class MGCL(Recommender):
    """A score from ids and one from each modality, added."""

    integration = "ensemble"
    modalities = frozenset(MODALITIES)
    reads_features = "all"
    config: MGCLConfig

    def __init__(self, config: MGCLConfig, train: Interactions, given: list[ItemFeatures]) -> None:
        super().__init__()
        self.config = config
        self.n_users, n_items, size = train.n_users, train.n_items, config.embedding_size
        self.nodes = nn.Parameter(torch.empty(self.n_users + n_items, size))  # P above Q
        nn.init.xavier_uniform_(self.nodes[: self.n_users])
        nn.init.xavier_uniform_(self.nodes[self.n_users :])
        self.graph = powered_adjacency(train, config.receiver_power, config.sender_power)  # H
        self.given = tuple(features.modality for features in given)
        self.features = FeatureTables(given, frozen=True)  # X_m
        self.users, self.project = nn.ParameterDict(), nn.ModuleDict()  # P_m, W_m
        for features in given:
            users = nn.Parameter(torch.empty(self.n_users, size))
            project = nn.Linear(features.matrix.shape[1], size, bias=False)
            nn.init.xavier_uniform_(users)
            nn.init.xavier_uniform_(project.weight)
            self.users[features.modality], self.project[features.modality] = users, project

    def vectors(self) -> tuple[Tensor, Tensor]:
        """Users' [U, C D] and items' [I, C D] branches, whose product is equation 3.

        Of a fusion their means, [U, D] and [I, D].
        """
        branches = self._propagated(self._starts())
        users = [rows[: self.n_users] for rows in branches]
        items = [rows[self.n_users :] for rows in branches]
        if self.config.integration == "fusion":
            return torch.stack(users).mean(0), torch.stack(items).mean(0)
        weights = [
            self.config.visual_weight if name == "visual" else 1.0 for name in ("", *self.given)
        ]
        weighted = [weight * rows for weight, rows in zip(weights, items, strict=True)]
        return torch.cat(users, dim=1), torch.cat(weighted, dim=1)

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of losses A and B for B triples, scalars."""
        starts = self._starts()
        items = torch.cat([batch.positives, batch.negatives]) + self.n_users
        rows = torch.cat([batch.users, items])  # [3 B]
        branches = [final.index_select(0, rows) for final in self._propagated(starts)]
        if self.config.integration == "fusion":
            terms = {"bpr": _bpr(torch.stack(branches).mean(0))}
        else:
            terms = {
                f"bpr_{name}": _bpr(branch)
                for name, branch in zip(("ids", *self.given), branches, strict=True)
            }
        first = {name: start.index_select(0, rows) for name, start in starts.items()}
        if self.config.regularization:
            ids, *views = (losses.squared(*start.chunk(3)) for start in first.values())
            penalty = ids + 0.1 * torch.stack(views).sum() if views else ids
            terms["regularization"] = self.config.regularization * penalty
        if self.config.contrast_weight and self.given:
            of_users, of_items, _ = zip(*(start.chunk(3) for start in first.values()), strict=True)
            contrast = self._contrast(dict(zip(first, of_users, strict=True)))
            contrast = contrast + self._contrast(
                dict(zip(first, of_items, strict=True)), slip=self.config.contrast == "released"
            )
            terms["contrast"] = self.config.contrast_weight * contrast
        return terms

    def _starts(self) -> dict[str, Tensor]:
        """[P; Q] and [P_m; y_m], [N, D] each."""
        starts: dict[str, Tensor] = {"ids": self.nodes}
        for name in self.given:
            view = self.project[name](self.features[name])
            starts[name] = torch.cat([self.users[name], view])
        return starts

    def _propagated(self, starts: Mapping[str, Tensor]) -> list[Tensor]:
        """E and E_m, [N, D] each."""
        ids, *views = starts.values()
        branches = [self.graph.last_power(ids, self.config.n_layers)]
        if views:  # one product for all modalities
            branches += self.graph(torch.cat(views, dim=1)).chunk(len(views), dim=1)
        return branches

    def _contrast(self, views: Mapping[str, Tensor], *, slip: bool = False) -> Tensor:
        """Loss B of the starting rows [B, D] of users or of items."""
        first = next(iter(views.values()))
        with torch.autocast(first.device.type, enabled=False):
            units = {
                name: F.normalize(losses.full_precision(rows), dim=1, eps=1e-12)
                for name, rows in views.items()
            }
            total, names = first.new_zeros((), dtype=units["ids"].dtype), list(units)
            for place, one in enumerate(names):
                for other in names[place + 1 :]:
                    total = total + _mutual_nce(units[one], units[other], self.config.temperature)
            if slip and {"textual", "visual"} <= set(names):
                total = total + self._slip(units)
        return total

    def _slip(self, units: Mapping[str, Tensor]) -> Tensor:
        """What the released denominators of the items' text rows add to equation 5."""
        text, picture = units["textual"], units["visual"]
        right = {name: units[name] for name in ("ids", "visual")}
        wrong = {"ids": picture, "visual": text}
        return torch.stack(
            [
                self._log_sums(text, wrong[name]) - self._log_sums(text, right[name])
                for name in right
            ]
        ).sum()

    def _log_sums(self, anchors: Tensor, others: Tensor) -> Tensor:
        return (anchors @ others.T / self.config.temperature).logsumexp(dim=1).mean()


def _mutual_nce(one: Tensor, other: Tensor, temperature: float) -> Tensor:
    """NCE in both directions of rows of length one [B, D], a scalar."""
    if 2 / temperature <= _LARGEST_SPAN:
        result: Tensor = _MutualNCE.apply(one, other, temperature)
        return result
    logits, labels = one @ other.T / temperature, torch.arange(len(one), device=one.device)
    return F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)


_LARGEST_SPAN = 80.0
"""What exponents of float32 may span; cos / t spans 2 / t."""


class _MutualNCE(torch.autograd.Function):
    """NCE by the rows and by the columns of one matrix of logits, which is not kept.

    As cos / t is at most 1 / t, exp((cos - 1) / t) neither overflows nor vanishes, and serves
    both directions. With E of these, row sums r and column sums c, the gradient to the logits is
    (E_rs (1 / r_r + 1 / c_s) - 2 [r = s]) / B.
    """

    @staticmethod
    def forward(ctx: Any, one: Tensor, other: Tensor, temperature: float) -> Tensor:
        one, other = one.detach(), other.detach()
        scaled = one / temperature
        shares = (scaled @ other.T).sub_(1 / temperature).exp_()
        rows, columns = shares.sum(dim=1), shares.sum(dim=0)
        same = (scaled * other).sum()
        loss = rows.log().sum() + columns.log().sum() - 2 * same
        shares.mul_(rows.reciprocal()[:, None] + columns.reciprocal())
        # Products with few rows instead of few columns: several times as fast.
        of_one = ((other.T @ shares.T).T - 2 * other) / (temperature * len(one))
        of_other = ((scaled.T @ shares).T - 2 * scaled) / len(one)
        ctx.save_for_backward(of_one, of_other)
        return loss / len(one) + 2 / temperature

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor, None]:
        of_one, of_other = ctx.saved_tensors
        return gradients[0] * of_one, gradients[0] * of_other, None


def _bpr(rows: Tensor) -> Tensor:
    """BPR of the rows [3 B, D] of users, positives and negatives."""
    users, positives, negatives = rows.chunk(3)
    return losses.bpr((users * positives).sum(1), (users * negatives).sum(1))
