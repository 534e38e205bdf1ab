"""MMSSL: modality-aware edges that a discriminator judges, and a contrast of modalities.

Wei, Huang, Xia and Zhang, WWW 2023. https://arxiv.org/abs/2302.10632

Graphs: B_u = D_u^-1/2 R, B_i = D_i^-1/2 R'; A_m, the edges that modality m would add, normalised
alike. nrm(x) = x / |x| for every row.

    1. f_m = dropout(X_m W_m + b_m),  fu_m = B_u f_m,  fi_m = B_i fu_m
    2. eu_m = A_u,m Q,  ei_m = A_i,m P
    3. in every head a_mn = softmax over n of (e_m W_q) . (e_n W_k) / sqrt(D / h)
       z = mean over m of [sum_n a_mn e_n of head 1 ; ... ; of head h] W_c
    4. u^0 = P + attention_weight * nrm(z_u),  i^0 likewise from Q
    5. u^l = B_u i^(l-1),  i^l = B_i u^l; in the last layer u^L, and i^L, is a softmax over its
       columns;  u = mean of u^0 ... u^L,  i likewise
    6. user = u + content_weight * sum_m nrm(fu_m),  item likewise;  score  x_ui = user . item
    7. s_m: nrm(fu_m fi_m') with the user's items at 0. Once per epoch A_m is drawn anew for all
       users: the K = max(1, round(edge_rate * I)) largest entries of each row
    8. loss  BPR + regularization * (|user|^2 + |item_i|^2 + |item_j|^2) / 2B
             + feature_regularization * sum_m (|fu_m|^2 + |fi_m|^2) / 2I
             + contrast_weight * sum_m CL(eu_m, user) + adversary
       CL(a, b) = mean over rows r of the batch of
             -log f(a_r, b_r) / (sum_s f(a_r, b_s) + sum_(s != r) f(a_r, a_s)),
       f(a, b) = exp(cos(a, b) / temperature)
    9. adversary: Disc minimises mean Disc(s_m) - mean Disc(r) + 0.3 mean (|grad Disc| - 1)^2, the
       rest maximises adversary_weight * mean Disc(s_m);  r = nrm( softmax((R_u + 1e-5 g) / 0.005)
       + 100 nrm(user item' with the user's items at 0) ), g standard Gumbel, without gradient

Shapes: U users, I items, N = U + I, B batch, D = config.embedding_size, M modalities, h heads.
Departures: B triples instead of B distinct users. The discriminator has no optimiser of its own:
its parameters stand with all others, and the gradient that reaches s_m through it is turned
round and scaled by adversary_weight, so both sides of 9 move in the same step, at one learning
rate; `adversary_weight: 0` leaves it out. Its first layer has I^2 / 4 weights; `adversary_rows`
shows it only so many rows of a batch. A pair with s = 0 gets no edge in A_m, so a user without
interactions has none. The released code draws floor(1e-4 I) edges, which is none below 10,000
items, and forgets them after one step: `edges: released` leaves A_m, and with it 2, 3 and CL, out.
One modality attends to itself alone, which needs no W_q and W_k; without any, u and i are all.
`integration: ensemble` adds the scores of u . i and of each modality's part of 6, instead of
scoring their sum.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, NamedTuple

import scipy.sparse as sp
import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
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
from mmbench.models.fusion import FeatureTables, split_columns, unit_rows
from mmbench.models.graph import SparseOperator, inverse_root
from mmbench.models.item_graphs import largest_columns

_BLOCK_USERS = 1024
"""Users whose scores exist at once while edges are drawn."""


class MMSSLConfig(ModelConfig):
    """Settings of MMSSL."""

    embedding_size: PositiveInt = 64  # D
    n_layers: PositiveInt = 2  # L
    n_heads: PositiveInt = 4  # h
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    attention_weight: NonNegativeFloat = 0.36
    content_weight: NonNegativeFloat = 0.55
    edges: Literal["epoch", "released"] = "epoch"
    edge_rate: PositiveFloat = 1e-4
    regularization: NonNegativeFloat = 1e-5
    feature_regularization: NonNegativeFloat = 1e-5
    contrast_weight: NonNegativeFloat = 0.03
    temperature: Annotated[float, Field(ge=0.02)] = 0.5
    adversary_weight: NonNegativeFloat = 1e-4
    adversary_rows: PositiveInt | None = None
    integration: Literal["fusion", "ensemble"] = "fusion"

    @model_validator(mode="after")
    def _heads_share_columns(self) -> MMSSLConfig:
        if self.embedding_size % self.n_heads:
            raise ValueError(
                f"n_heads {self.n_heads} does not divide embedding_size {self.embedding_size}"
            )
        return self


class Views(NamedTuple):
    """One forward pass.

    Attributes:
        base: u above i, [N, D].
        content: fu above fi, one modality beside the other, [N, M D].
        edges: eu_m above ei_m, [M, N, D]; None without A_m.
    """

    base: Tensor
    content: Tensor
    edges: Tensor | None


@register_model(
    "mmssl",
    config=MMSSLConfig,
    citation=(
        "Wei, Huang, Xia and Zhang. Multi-modal self-supervised learning for recommendation. "
        "WWW 2023."
    ),
)
class MMSSL(Recommender):
    """A one-sided graph convolution, with edges and vectors that modalities suggest."""

    integration = "fusion"
    modalities = frozenset(MODALITIES)
    reads_features = "all"
    of_dataset = ("nodes", "generated", "discriminator")  # which reads rows of all items
    config: MMSSLConfig
    tie_users: Tensor  # int64 [E]
    tie_items: Tensor  # int64 [E]
    generated: Tensor | None  # items that A_m ties to each user, -1 for none, int64 [M, U, K]

    def __init__(self, config: MMSSLConfig, train: Interactions, given: list[ItemFeatures]) -> None:
        super().__init__()
        self.config, size = config, config.embedding_size
        self.n_users, self.n_items = train.n_users, train.n_items
        self.names = [features.modality for features in given]
        self.nodes = nn.Parameter(torch.empty(self.n_users + self.n_items, size))  # P above Q
        nn.init.xavier_uniform_(self.nodes[: self.n_users])
        nn.init.xavier_uniform_(self.nodes[self.n_users :])
        ties = train.matrix
        self.to_users = SparseOperator(_scaled(ties, train.user_degrees))  # B_u, [U, I]
        self.to_items = SparseOperator(
            _scaled(sp.csr_array(ties.T), train.item_degrees)
        )  # B_i, [I, U]
        self.register_buffer("tie_users", train.users, persistent=False)
        self.register_buffer("tie_items", train.items, persistent=False)
        self.features = FeatureTables(given, frozen=True)  # X_m
        self.project = nn.ModuleDict()  # W_m, b_m
        for features in given:
            layer = nn.Linear(features.matrix.shape[1], size)
            nn.init.xavier_uniform_(layer.weight)
            self.project[features.modality] = layer
        edges = None
        if given and config.edges == "epoch":
            if len(given) > 1:
                self.to_query = nn.Parameter(_xavier(size, size))  # W_q
                self.to_key = nn.Parameter(_xavier(size, size))  # W_k
            self.to_joined = nn.Parameter(_xavier(config.n_heads * size, size))  # W_c
            edges = self._draw_edges()
        # Stored with the weights: a run that goes on, or ranks again, has the same edges.
        self.register_buffer("generated", edges)
        if given and config.adversary_weight:
            self.discriminator = _discriminator(self.n_items)  # Disc

    def on_epoch_start(self, epoch: int) -> None:
        """Draws A_m anew from the present weights; nothing about it is random."""
        if self.generated is not None:
            self.generated.copy_(self._draw_edges())

    def vectors(self) -> tuple[Tensor, Tensor]:
        """Users' [U, D] and items' [I, D] vectors of equation 6; [., (1 + M) D] as an ensemble."""
        final = self._scored(self._views(0.0), None)
        return final[: self.n_users], final[self.n_users :]

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of equations 8 and 9 for B triples, scalars."""
        config = self.config
        views = self._views(config.dropout)
        items = torch.cat([batch.positives, batch.negatives]) + self.n_users
        rows = torch.cat([batch.users, items])  # [3 B]
        users, positives, negatives = self._scored(views, rows).chunk(3)  # [B, D] each
        terms = {"bpr": losses.bpr((users * positives).sum(1), (users * negatives).sum(1))}
        if config.regularization:
            penalty = losses.squared(users, positives, negatives)
            terms["regularization"] = config.regularization * penalty
        if self.names and config.feature_regularization:
            squares = views.content.square().sum() / (2 * self.n_items)
            terms["feature_regularization"] = config.feature_regularization * squares
        if views.edges is not None and config.contrast_weight:
            joined = self._fused(views, batch.users)
            contrasts = [
                _contrast(edges.index_select(0, batch.users), joined, config.temperature)
                for edges in views.edges
            ]
            terms["contrast"] = config.contrast_weight * torch.stack(contrasts).sum()
        if self.names and config.adversary_weight:
            terms["adversary"] = self._adversary(views, batch.users[: config.adversary_rows])
        return terms

    def _views(self, dropout: float) -> Views:
        """Equations 1 to 5."""
        users, items = self.nodes[: self.n_users], self.nodes[self.n_users :]  # u^0, i^0
        edges = None
        if self.generated is not None:
            edges = self._suggested()
            joined = self.config.attention_weight * unit_rows(self._attention(edges))
            users, items = users + joined[: self.n_users], items + joined[self.n_users :]
        # f_m goes over the graph beside i^0: the first layer does for both.
        content = [self._content(name, dropout) for name in self.names]
        width = sum(block.shape[1] for block in content)
        user_content = item_content = items.new_empty(0)
        user_layers, item_layers = [users], [items]
        for layer in range(1, self.config.n_layers + 1):
            beside = content if layer == 1 else []
            users = self.to_users(torch.cat([*beside, items], dim=1))
            if layer == 1:
                user_content, users = users[:, :width], users[:, width:]
            if layer == self.config.n_layers:
                users = users.softmax(dim=1)
            beside = [user_content] if layer == 1 else []
            items = self.to_items(torch.cat([*beside, users], dim=1))
            if layer == 1:
                item_content, items = items[:, :width], items[:, width:]
            if layer == self.config.n_layers:
                items = items.softmax(dim=1)
            user_layers.append(users)
            item_layers.append(items)
        means = [torch.stack(layers).mean(dim=0) for layers in (user_layers, item_layers)]
        return Views(torch.cat(means), torch.cat([user_content, item_content]), edges)

    def _content(self, name: str, dropout: float) -> Tensor:
        """f_m of equation 1, [I, D]."""
        # Not nn.Dropout: a step is a training step, whatever mode the module was left in.
        return F.dropout(self.project[name](self.features[name]), dropout, training=True)

    def _suggested(self) -> Tensor:
        """eu_m above ei_m, equation 2, [M, N, D]; A_m normalised by its own degrees."""
        assert self.generated is not None
        n_views, _, k = self.generated.shape
        exists = (self.generated >= 0).to(self.nodes.dtype)  # [M, U, K]
        chosen = self.generated.clamp_min(0)
        user_scale = exists.sum(dim=2, keepdim=True).clamp_min(1).rsqrt()  # [M, U, 1]
        of_users = F.embedding_bag(
            chosen.view(-1, k),
            self.nodes[self.n_users :],
            mode="sum",
            per_sample_weights=(exists * user_scale).view(-1, k),
        ).view(n_views, self.n_users, -1)
        shift = self.n_items * torch.arange(n_views, device=chosen.device).view(-1, 1, 1)
        places, counts = (chosen + shift).view(-1), exists.view(-1)
        degrees = self.nodes.new_zeros(n_views * self.n_items).index_add(0, places, counts)
        senders = self.nodes[: self.n_users].repeat_interleave(k, dim=0).repeat(n_views, 1)
        senders = senders * counts[:, None]
        sums = senders.new_zeros(len(degrees), senders.shape[1]).index_add(0, places, senders)
        of_items = sums * degrees.clamp_min(1).rsqrt()[:, None]
        return torch.cat([of_users, of_items.view(n_views, self.n_items, -1)], dim=1)

    def _attention(self, edges: Tensor) -> Tensor:
        """The z of equation 3, [N, D], of views [M, N, D]."""
        n_views, n_nodes, size = edges.shape
        heads = self.config.n_heads
        shares = edges.new_ones(n_nodes, heads, 1)
        if n_views > 1:
            shape = (n_views, n_nodes, heads, size // heads)
            queries, keys = (edges @ self.to_query).view(shape), (edges @ self.to_key).view(shape)
            logits = torch.einsum("inhc,jnhc->nhij", queries, keys) / math.sqrt(size / heads)
            # The mean over m is taken of the weights: all that follows is linear in them.
            shares = logits.softmax(dim=3).mean(dim=2)  # [N, h, M]
        values = torch.einsum("nhj,jnd->nhd", shares, edges)
        return values.reshape(n_nodes, heads * size) @ self.to_joined

    def _scored(self, views: Views, rows: Tensor | None) -> Tensor:
        """What is scored, of some nodes or all: equation 6, or its parts side by side."""
        if self.config.integration == "fusion":
            return self._fused(views, rows)
        return torch.cat([_rows(views.base, rows), *self._content_parts(views, rows)], dim=1)

    def _fused(self, views: Views, rows: Tensor | None) -> Tensor:
        """Equation 6 of some nodes or all, [n, D]."""
        total = _rows(views.base, rows)
        for part in self._content_parts(views, rows):
            total = total + part
        return total

    def _content_parts(self, views: Views, rows: Tensor | None) -> list[Tensor]:
        if not self.names:
            return []
        blocks = split_columns(_rows(views.content, rows), len(self.names))
        return [self.config.content_weight * unit_rows(block) for block in blocks]

    @torch.no_grad()
    def _draw_edges(self) -> Tensor:
        """The items of equation 7 for all users, -1 where s = 0, int64 [M, U, K]."""
        k = min(self.n_items, max(1, round(self.config.edge_rate * self.n_items)))
        joined = torch.cat([self._content(name, 0.0) for name in self.names], dim=1)
        user_content = self.to_users(joined)
        item_content = self.to_items(user_content)
        n_views = len(self.names)
        user_blocks = split_columns(user_content, n_views)
        item_blocks = split_columns(item_content, n_views)
        found = self.tie_items.new_empty(n_views, self.n_users, k)
        for start in range(0, self.n_users, _BLOCK_USERS):
            users = torch.arange(
                start, min(start + _BLOCK_USERS, self.n_users), device=joined.device
            )
            free = 1.0 - self._ties(users)
            for view in range(n_views):
                # A row's length does not change its order, so rows are left as they are.
                scores = (user_blocks[view][users] @ item_blocks[view].T) * free
                columns = largest_columns(scores, k)
                exists = scores.gather(1, columns) != 0
                found[view, users] = columns.where(exists, -1)
        return found

    def _ties(self, users: Tensor) -> Tensor:
        """Rows of R of some users, [B, I]; nothing in here waits for the device."""
        place = users.new_full((self.n_users,), len(users))
        place[users] = torch.arange(len(users), device=users.device)
        table = self.nodes.new_zeros(len(users) + 1, self.n_items)  # the last row takes all others
        table[place[self.tie_users], self.tie_items] = 1.0
        return table.index_select(0, place[users])

    def _adversary(self, views: Views, users: Tensor) -> Tensor:
        """Equation 9, a scalar whose gradient to s_m is turned round."""
        if len(users) < 2:  # batch normalisation needs two rows
            return views.base.new_zeros(())
        with torch.autocast(users.device.type, enabled=False):
            ties = self._ties(users)
            free = 1.0 - ties
            suggested = torch.cat(
                [
                    self._scores(block, users, free)
                    for block in split_columns(views.content, len(self.names))
                ]
            )  # s_m, [M B, I]
            with torch.no_grad():
                final = self._scores(self._scored(views, None), users, free)
                uniform = torch.rand_like(ties).clamp_(1e-12, 1.0 - 1e-7)
                noisy = (ties - 1e-5 * (-uniform.log()).log()) / 0.005
                real = unit_rows(noisy.softmax(dim=1) + 100.0 * final).repeat(len(self.names), 1)
            turned: Tensor = _Turned.apply(suggested, self.config.adversary_weight)
            gap: Tensor = self.discriminator(turned).mean() - self.discriminator(real).mean()
            with torch.enable_grad():
                share = torch.rand_like(real[:, :1])
                between = (share * real + (1.0 - share) * suggested.detach()).requires_grad_()
                judged = self.discriminator(between).sum()
                (slope,) = torch.autograd.grad(judged, between, create_graph=True)
            steepness: Tensor = torch.linalg.vector_norm(slope, dim=1)
            loss: Tensor = gap + 0.3 * (steepness - 1.0).square().mean()
            return loss

    def _scores(self, vectors: Tensor, users: Tensor, free: Tensor) -> Tensor:
        """Rows of unit length of scores, 0 where the user has the item, [B, I]."""
        vectors = losses.full_precision(vectors)
        scores = vectors.index_select(0, users) @ vectors[self.n_users :].T
        return unit_rows(scores * free)


class _Turned(torch.autograd.Function):
    """The identity, whose gradient is the one that comes in times a negative weight."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return rows.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        turned: Tensor = gradients[0] * -ctx.weight
        return turned, None


class _Hundredfold(nn.Module):
    """100 times the logistic function."""

    def forward(self, logits: Tensor) -> Tensor:
        return 100.0 * torch.sigmoid(logits)


def _discriminator(n_items: int) -> nn.Sequential:
    """I -> I / 4 -> I / 8 -> 1; normalised by the batch at hand, never by earlier ones."""
    wide, narrow = max(1, n_items // 4), max(1, n_items // 8)
    return nn.Sequential(
        nn.Linear(n_items, wide),
        nn.LeakyReLU(),
        nn.BatchNorm1d(wide, track_running_stats=False),
        nn.Dropout(0.31),
        nn.Linear(wide, narrow),
        nn.LeakyReLU(),
        nn.BatchNorm1d(narrow, track_running_stats=False),
        nn.Dropout(0.5),
        nn.Linear(narrow, 1),
        _Hundredfold(),
    )


def _contrast(anchors: Tensor, others: Tensor, temperature: float) -> Tensor:
    """CL(a, b) of equation 8 over B rows, a scalar."""
    with torch.autocast(anchors.device.type, enabled=False):
        anchors = unit_rows(losses.full_precision(anchors))
        others = unit_rows(losses.full_precision(others))
        logits = (anchors / temperature) @ torch.cat([others, anchors]).T  # [B, 2 B]
        logits.diagonal(len(anchors)).fill_(-torch.inf)  # f(a_r, a_r)
        return F.cross_entropy(logits, torch.arange(len(anchors), device=anchors.device))


def _scaled(matrix: sp.csr_array, degrees: Tensor) -> sp.csr_array:
    """D^-1/2 of the rows times a matrix."""
    return sp.csr_array(sp.diags_array(inverse_root(degrees.cpu().numpy())) @ matrix)


def _xavier(rows: int, columns: int) -> Tensor:
    return nn.init.xavier_uniform_(torch.empty(rows, columns))


def _rows(table: Tensor, rows: Tensor | None) -> Tensor:
    return table if rows is None else table.index_select(0, rows)
