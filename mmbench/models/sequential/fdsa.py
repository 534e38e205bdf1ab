"""FDSA: feature-level deeper self-attention.

Zhang, Zhao, Liu, Sheng, Xu, Wang, Liu and Zhou, "Feature-level deeper self-attention network for
sequential recommendation", IJCAI 2019. https://www.ijcai.org/proceedings/2019/600

    f_ik   = relu(W_k a_ik + b_k)                                      field k of item i      (1)
    f_i    = sum_k alpha_ik f_ik,  alpha_i = softmax_k( v . relu(W_a f_ik + b_a) )            (2)
    X^0_t  = drop(LN*(E_st + P_t));   Y^0_t = drop(LN*(f_st + P_t));   f = 0 at padding       (3)
    X^n    = n BERT blocks of X^0;    Y^n = n others of Y^0,  both causal                     (4)
    h_t    = drop(LN*(W_c [X^n_t ; Y^n_t] + b_c))                                             (5)
    score  x_ui = h_L . E_i                                                                   (6)
    loss   binary cross-entropy with one negative for each position, see base.py

LN* is one norm in three places. Fields are the feature sets given, frozen. The candidate side
knows ids alone, so an item that was never trained cannot be ranked by its features.

Shapes: I items, F_k columns of a field, L = config.max_length, D = config.embedding_size.
Departures: norm and dropout in (5) as in RecBole, the map alone in the paper; fields pass a relu
as in the public code of UniSRec; the paper's offset of the attention's logits cancels in the
softmax and is left out. With one field alpha is 1 and has no weights; without any the second
stream and its half of W_c are left out.
"""

from __future__ import annotations

from collections.abc import MutableMapping

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from mmbench.modality import MODALITIES
from mmbench.models.base import Interactions, ItemFeatures, register_model
from mmbench.models.losses import full_precision
from mmbench.models.sequential.base import (
    ItemTable,
    SequenceBatch,
    SequentialConfig,
    SequentialRecommender,
    bert_normal_,
)
from mmbench.models.sequential.dropout import DropoutLayer
from mmbench.models.sequential.sequence_encoders import Dropout
from mmbench.models.sequential.side_features import SideFeatures, distinct_items
from mmbench.models.sequential.transformer import BertBlock, causal_mask

CHUNK = 8192
"""Items whose fields are mixed at once when the whole catalogue is."""


class FDSAConfig(SequentialConfig):
    """Settings of FDSA."""

    embedding_size: PositiveInt = 64  # D
    n_layers: PositiveInt = 2
    """n, of either stream."""
    n_heads: PositiveInt = 2
    dropout: Dropout = 0.1


@register_model(
    "fdsa",
    config=FDSAConfig,
    citation="Zhang et al. Feature-level deeper self-attention network for sequential "
    "recommendation. IJCAI 2019.",
)
class FDSA(SequentialRecommender):
    """Self-attention over ids beside self-attention over features."""

    integration = "fusion"
    modalities = frozenset(MODALITIES)
    config: FDSAConfig

    def __init__(self, config: FDSAConfig, train: Interactions, given: list[ItemFeatures]) -> None:
        super().__init__(config, train, given)
        size = config.embedding_size
        self.table = ItemTable(train.n_items, size)  # E
        self.positions = nn.Embedding(config.max_length, size)  # P
        self.norm = nn.LayerNorm(size, eps=1e-12)  # LN*
        self.drop = DropoutLayer(config.dropout)
        self.item_blocks = self._blocks()
        self.fields: FieldMixture | None = None
        if given:
            self.fields = FieldMixture(given, size)
            self.feature_blocks = self._blocks()
        self.join = nn.Linear(2 * size if given else size, size)  # W_c, b_c
        bert_normal_(self)
        nn.init.normal_(self.table.weight, std=0.02)
        # f of the catalogue that an evaluation holds; gone with it.
        self._mixed: MutableMapping[Tensor, Tensor] = WeakTensorKeyDictionary()

    def _blocks(self) -> nn.ModuleList:
        config = self.config
        return nn.ModuleList(
            BertBlock(config.embedding_size, config.n_heads, config.dropout)
            for _ in range(config.n_layers)
        )

    def items(self, items: Tensor) -> Tensor:
        """Rows of E, [N, D]."""
        rows: Tensor = self.table(items)
        return rows

    def encode(self, inputs: Tensor, real: Tensor) -> Tensor:
        """User vectors h after each slot, [B, L, D].

        Args:
            inputs: [E_st ; f_st], or E_st without features, [B, L, 2 D] or [B, L, D].
            real: which slots hold an item, bool [B, L].
        """
        mask = causal_mask(real)
        positions = self.positions.weight[-inputs.shape[1] :]
        streams = [self.item_blocks]
        if self.fields is not None:
            streams.append(self.feature_blocks)
        ends = []
        for blocks, start in zip(streams, inputs.chunk(len(streams), dim=2), strict=True):
            x = self.drop(self.norm(start + positions))  # (3)
            for block in blocks:
                x = block(x, mask)  # (4)
            ends.append(x)
        hidden: Tensor = self.drop(self.norm(self.join(torch.cat(ends, dim=2))))  # (5)
        return hidden

    def training_step(self, batch: SequenceBatch) -> dict[str, Tensor]:
        """The loss of a batch, a scalar."""
        inputs, targets, negatives = self._vectors(batch)
        if self.fields is not None:
            asked, place = distinct_items(batch.inputs, self.n_items)
            features = F.embedding(place, F.pad(self.fields(asked), (0, 0, 0, 1)))
            inputs = torch.cat([inputs, features], dim=2)
        hidden = self.encode(inputs, batch.inputs != self.padding)
        return {self.config.loss: self.next_item_loss(hidden, batch, targets, negatives)}

    def catalogue(self) -> Tensor:
        """E, [I, D]; an evaluation's one also remembers f of all items."""
        vectors = super().catalogue()
        if self.fields is not None and not torch.is_grad_enabled():
            every = torch.arange(self.n_items, device=vectors.device)
            self._mixed[vectors] = torch.cat(
                [self.fields(rows) for rows in torch.split(every, CHUNK)]
            )
        return vectors

    def represent(self, catalogue: Tensor, sequences: Tensor) -> Tensor:
        """User vectors after a sequence, [B, D]; see `SequentialRecommender.represent`."""
        inputs = F.embedding(sequences, F.pad(catalogue, (0, 0, 0, 1)))
        if self.fields is not None:
            place, mixed = sequences, self._mixed.get(catalogue)
            if mixed is None:  # a catalogue of someone else
                asked, place = distinct_items(sequences, self.n_items)
                mixed = self.fields(asked)
            features = F.embedding(place, F.pad(mixed, (0, 0, 0, 1)))
            inputs = torch.cat([inputs, features], dim=2)
        return self.encode(inputs, sequences != self.padding)[:, -1]


class FieldMixture(nn.Module):
    """f_i of some items: equations (1) and (2)."""

    def __init__(self, given: list[ItemFeatures], size: int) -> None:
        super().__init__()
        self.features = SideFeatures(given, "fdsa")
        self.project = nn.ModuleDict(
            {modality: nn.Linear(width, size) for modality, width in self.features.widths.items()}
        )  # W_k, b_k
        if len(given) > 1:
            self.hidden = nn.Linear(size, size)  # W_a, b_a
            self.query = nn.Linear(size, 1, bias=False)  # v

    def forward(self, items: Tensor) -> Tensor:
        """Mixed features [N, D] of items int64 [N]."""
        fields = [
            F.relu(project(self.features.rows(modality, items)))
            for modality, project in self.project.items()
        ]
        if len(fields) == 1:
            return fields[0]
        views = torch.stack(fields, dim=1)  # [N, K, D]
        logits = self.query(F.relu(self.hidden(views)))
        weights = full_precision(logits).softmax(dim=1)
        return (weights.to(views.dtype) * views).sum(dim=1)
