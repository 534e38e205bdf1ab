"""MGCE: interest and conformity, told apart for each modality, beside a graph of ids.

Li, Xue, Liu, Guo and Hong, IEEE TKDE 2024. https://doi.org/10.1109/TKDE.2024.3424268

    1. features    y_m = X_m W_m,  whitened over all items:  z_m = y_m (Cov + 1e-5)^-1/2,
                   Cov = y_m' y_m / I
    2. popularity  b_i = floor(3 (d_i - min d) / (max d - min d)), at most 2;  a vector pop_b each
    3. base        e = H(a, b)^L [P; Q], the last level alone
    4. interest    s_m = H(a', b') [A_m; z_m]
    5. conformity  t_m = H(1/2, 1/2)^2 [C_m; z_m + pop_b]
                   H(a, b) = (D + I)^-a (A + I) (D + I)^-b
    6. score       x_ui = e_u . e_i + sum over m of w_m (s_m,u . s_m,i + t_m,u . t_m,i)
                   w_m = visual_weight of pictures and 1 of others, in ranking only
    7. loss        BPR of e + causal_weight * sum over m of (BPR of s_m + BPR of t_m)
                   + distance_weight * distance
                   + regularization * (L2(p_u, q_i, q_j) + causal_regularization *
                       sum over m of (L2(a_m,u, z_m,i, z_m,j) + L2(c_m,u, z_m,i, z_m,j)))
                   L2 = half the sum of squares of the batch's rows / B
    8. distance    (1 / B) * sum over m, and over the batch's users and its positives, of
                   cos(mean over rows of s_m, mean over rows of t_m)

Shapes: U users, I items, N = U + I, B batch, M modalities, D = config.embedding_size.
Departures: users are drawn with their interactions and not each once in a batch. The gradient of
Cov^-1/2 is that of the matrix power itself, which is finite where eigenvalues meet; the release
goes through its eigenvectors, where it is not. `zca_grad: stop` holds the power still; y_m has a
gradient either way. The release whitens by its first dataset's number of items, and its most
popular items have a bucket that does not exist. `distance: released` has the sign of the release,
which rewards similar interest and conformity. Without features this is e with BPR.
`integration: fusion` scores by one vector for each user and item, the mean of e, s_m and t_m, and
the loss has one BPR, of that score.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveInt
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

N_BUCKETS = 3
_RIDGE = 1e-5


class MGCEConfig(ModelConfig):
    """Settings of MGCE."""

    embedding_size: PositiveInt = 64  # D
    n_layers: PositiveInt = 5  # L
    receiver_power: NonNegativeFloat = 0.5  # a
    sender_power: NonNegativeFloat = 0.4  # b
    interest_receiver_power: NonNegativeFloat = 0.5  # a'
    interest_sender_power: NonNegativeFloat = 0.5  # b'
    visual_weight: NonNegativeFloat = 0.6
    causal_weight: NonNegativeFloat = 0.7
    causal_regularization: NonNegativeFloat = 0.2
    distance_weight: NonNegativeFloat = 0.5
    distance: Literal["apart", "released"] = "apart"
    regularization: NonNegativeFloat = 1e-3
    zca_grad: Literal["flow", "stop"] = "flow"
    integration: Literal["fusion", "ensemble"] = "ensemble"


@register_model(
    "mgce",
    config=MGCEConfig,
    citation=(
        "Li, Xue, Liu, Guo and Hong. Multimodal graph causal embedding for multimedia-based "
        "recommendation. IEEE Transactions on Knowledge and Data Engineering 2024."
    ),
)
class MGCE(Recommender):
    """Scores from ids, and from interest and conformity for each modality, added."""

    integration = "ensemble"
    modalities = frozenset(MODALITIES)
    reads_features = "all"
    config: MGCEConfig
    buckets: Tensor

    def __init__(self, config: MGCEConfig, train: Interactions, given: list[ItemFeatures]) -> None:
        super().__init__()
        self.config = config
        self.n_users, n_items, size = train.n_users, train.n_items, config.embedding_size
        self.nodes = nn.Parameter(torch.empty(self.n_users + n_items, size))  # P above Q
        nn.init.xavier_uniform_(self.nodes[: self.n_users])
        nn.init.xavier_uniform_(self.nodes[self.n_users :])
        self.base_graph = powered_adjacency(train, config.receiver_power, config.sender_power)
        self.given = tuple(features.modality for features in given)
        self.features = FeatureTables(given, frozen=True)  # X_m
        if not given:
            return
        powers = config.interest_receiver_power, config.interest_sender_power
        self.conformity_graph = powered_adjacency(train, 0.5, 0.5)
        # None if it is the graph of conformity: then both take their first step together.
        self.interest_graph = None if powers == (0.5, 0.5) else powered_adjacency(train, *powers)
        self.project = nn.ModuleDict()  # W_m
        self.interest, self.conformity = nn.ParameterDict(), nn.ParameterDict()  # A_m, C_m
        for features in given:
            name = features.modality
            project = nn.Linear(features.matrix.shape[1], size, bias=False)
            nn.init.xavier_uniform_(project.weight)
            self.project[name] = project
            for tables in (self.interest, self.conformity):
                tables[name] = nn.Parameter(torch.empty(self.n_users, size))
                nn.init.xavier_uniform_(tables[name])
        self.popularity = nn.Parameter(torch.empty(N_BUCKETS, size).uniform_(-0.05, 0.05))
        self.register_buffer("buckets", _buckets(train.item_degrees), persistent=False)

    def vectors(self) -> tuple[Tensor, Tensor]:
        """Users' [U, (2 M + 1) D] and items' [I, (2 M + 1) D] branches: equation 6.

        Of a fusion their means, [U, D] and [I, D].
        """
        branches = self._propagated(self._content())
        users = [rows[: self.n_users] for rows in branches]
        items = [rows[self.n_users :] for rows in branches]
        if self.config.integration == "fusion":
            return torch.stack(users).mean(0), torch.stack(items).mean(0)
        weights = [self.config.visual_weight if name == "visual" else 1.0 for name in self.given]
        scales = [1.0, *weights, *weights]
        weighted = [scale * rows for scale, rows in zip(scales, items, strict=True)]
        return torch.cat(users, dim=1), torch.cat(weighted, dim=1)

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of equation 7 for B triples, scalars."""
        config, n_modalities = self.config, len(self.given)
        content = self._content()
        pairs = torch.cat([batch.positives, batch.negatives])
        rows = torch.cat([batch.users, pairs + self.n_users])  # [3 B]
        branches = [final.index_select(0, rows) for final in self._propagated(content)]
        if config.integration == "fusion":
            terms = {"bpr": _bpr(torch.stack(branches).mean(0))}
        else:
            terms = {"bpr_ids": _bpr(branches[0])}
            kinds = [f"{kind}_{name}" for kind in ("interest", "conformity") for name in self.given]
            for kind, branch in zip(kinds, branches[1:], strict=True):
                terms[f"bpr_{kind}"] = config.causal_weight * _bpr(branch)
        if self.given and config.distance_weight:
            alike = torch.zeros((), device=rows.device)
            for interest, conformity in zip(
                branches[1 : n_modalities + 1], branches[n_modalities + 1 :], strict=True
            ):
                alike = alike + _alike(interest, conformity)
            sign = 1.0 if config.distance == "apart" else -1.0
            terms["distance"] = sign * config.distance_weight * alike
        if config.regularization:
            penalty = losses.squared(*self.nodes.index_select(0, rows).chunk(3))
            for name, view in zip(self.given, content, strict=True):
                items = view.index_select(0, pairs).chunk(2)
                for tables in (self.interest, self.conformity):
                    users = tables[name].index_select(0, batch.users)
                    penalty = penalty + config.causal_regularization * losses.squared(users, *items)
            terms["regularization"] = config.regularization * penalty
        return terms

    def _content(self) -> list[Tensor]:
        """z_m of every modality, [I, D]."""
        if not self.given:
            return []
        views = torch.stack([self.project[name](self.features[name]) for name in self.given])
        with torch.autocast(views.device.type, enabled=False):
            views = losses.full_precision(views)  # [M, I, D]
            # In double precision: small eigenvalues weigh most. One batch for all modalities.
            exact = views.double()
            power = inverse_root(exact.mT @ exact / views.shape[1], _RIDGE)
            if self.config.zca_grad == "stop":
                power = power.detach()
            return list((views @ power.to(views.dtype)).unbind())

    def _propagated(self, content: list[Tensor]) -> list[Tensor]:
        """e, then s_m and then t_m of every modality, [N, D] each."""
        branches = [self.base_graph.last_power(self.nodes, self.config.n_layers)]
        if not content:
            return branches
        popularity = self.popularity.index_select(0, self.buckets)
        interest, conformity = (
            torch.cat(
                [
                    torch.cat([tables[name] for name in self.given], dim=1),
                    torch.cat([view + offset for view in content], dim=1),
                ]
            )
            for tables, offset in ((self.interest, 0.0), (self.conformity, popularity))
        )  # [N, M D] each
        if self.interest_graph is None:
            first = self.conformity_graph(torch.cat([interest, conformity], dim=1))
            interest, conformity = first.chunk(2, dim=1)
        else:
            interest, conformity = self.interest_graph(interest), self.conformity_graph(conformity)
        conformity = self.conformity_graph(conformity)
        n_modalities = len(self.given)
        return [
            *branches,
            *interest.chunk(n_modalities, dim=1),
            *conformity.chunk(n_modalities, dim=1),
        ]


class _InverseRoot(torch.autograd.Function):
    """(A + ridge)^-1/2 of symmetric matrices [..., D, D] without negative eigenvalues.

    With A = V diag(s) V' and r_i = (s_i + ridge)^1/2 the derivative in the direction G is
    V (F (.) V' G V) V', where F_ij = (1 / r_i - 1 / r_j) / (r_i^2 - r_j^2), the divided
    difference of Daleckii and Krein, which is -1 / (r_i r_j (r_i + r_j)): nothing cancels.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, ridge: float) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix.detach())
        roots = (values.clamp_min(0) + ridge).sqrt()
        ctx.save_for_backward(roots, vectors)
        power: Tensor = vectors @ (vectors / roots.unsqueeze(-2)).mT
        return power

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        roots, vectors = ctx.saved_tensors
        one, other = roots.unsqueeze(-1), roots.unsqueeze(-2)
        inner = vectors.mT @ gradients[0] @ vectors / (one * other * (one + other))
        return -(vectors @ inner @ vectors.mT), None


def inverse_root(matrix: Tensor, ridge: float) -> Tensor:
    """(A + ridge)^-1/2 of symmetric positive semidefinite matrices A [..., D, D], with gradient."""
    result: Tensor = _InverseRoot.apply(matrix, ridge)
    return result


def _buckets(degrees: Tensor) -> Tensor:
    """Popularity of items in `N_BUCKETS` equally wide steps, int64 [I]; 0 where all are equal."""
    above = degrees - degrees.min()
    return (N_BUCKETS * above // above.max().clamp_min(1)).clamp_max(N_BUCKETS - 1)


def _alike(interest: Tensor, conformity: Tensor) -> Tensor:
    """Equation 8 of one modality from the rows [3 B, D] of users, positives and negatives."""
    n_rows = len(interest) // 3
    total = interest.new_zeros(())
    for part in (slice(0, n_rows), slice(n_rows, 2 * n_rows)):
        total = total + F.cosine_similarity(interest[part].mean(0), conformity[part].mean(0), dim=0)
    return total / n_rows


def _bpr(rows: Tensor) -> Tensor:
    """BPR of the rows [3 B, D] of users, positives and negatives."""
    users, positives, negatives = rows.chunk(3)
    return losses.bpr((users * positives).sum(1), (users * negatives).sum(1))
