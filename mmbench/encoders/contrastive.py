"""Losses on the pictures and texts of items: contrastive, matching, masked words.

    ITC    l = s A B^T, s = exp(t);  mean of cross-entropy(l, 1..B) and cross-entropy(l^T, 1..B)
           Radford et al., ICML 2021, https://arxiv.org/abs/2103.00020
    sigmoid  mean over k of sum over l of -log sigmoid(y_kl (s a_k . b_l + c)), y 1 if k = l else -1
           Zhai et al., ICCV 2023, https://arxiv.org/abs/2303.15343
    ITM    cross-entropy of "they belong together" over each pair, and over each picture and each
           text with one of another item, drawn with the probabilities of ITC (hard negatives)
    MLM    cross-entropy of words hidden from the text of a pair
           Bao et al., NeurIPS 2022, https://arxiv.org/abs/2111.02358

A [B, D] are unit vectors of pictures, B those of texts. Two items with the same picture or text
are no negatives of each other: their products off the diagonal are left out. All is computed in
float32, as bfloat16 has a spacing of 0.5 where s a.b is near 100.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

MOST = math.log(100.0)
"""The largest t; the public weights of CLIP stand there."""
MASKED, WITH_MASK, WITH_OTHER = 0.15, 0.8, 0.1


def same_group(groups: Tensor) -> Tensor:
    """Which pairs of different items must not be told apart, bool [B, B]; never the diagonal."""
    same = groups[:, None] == groups[None, :]
    return same & ~torch.eye(len(groups), dtype=torch.bool, device=groups.device)


def contrastive_loss(pictures: Tensor, texts: Tensor, log_scale: Tensor, same: Tensor) -> Tensor:
    """ITC of unit vectors [B, D].

    Args:
        log_scale: t, a scalar.
        same: pairs off the diagonal that are left out, bool [B, B].
    """
    logits = log_scale.float().exp() * (pictures.float() @ texts.float().T)
    logits = logits.masked_fill(same, float("-inf"))
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def sigmoid_loss(
    pictures: Tensor, texts: Tensor, log_scale: Tensor, bias: Tensor, same: Tensor
) -> Tensor:
    """The pairwise loss of SigLIP on unit vectors [B, D].

    Args:
        log_scale: t, a scalar; `bias` is c.
        same: pairs off the diagonal that are left out, bool [B, B].
    """
    logits = log_scale.float().exp() * (pictures.float() @ texts.float().T) + bias.float()
    signs = 2 * torch.eye(len(logits), device=logits.device) - 1
    losses = -F.logsigmoid(signs * logits).masked_fill(same, 0.0)
    return losses.sum() / len(logits)


def hard_negatives(
    rows: Tensor, columns: Tensor, log_scale: Tensor, same: Tensor, draws: Tensor
) -> tuple[Tensor, Tensor]:
    """One other item for each, drawn by softmax(s a_k . b_l) over those it may be told from.

    Args:
        rows: unit vectors [B, D] of what looks for a negative among `columns` [B, D].
        draws: uniform in [0, 1), float [B]; one draw decides for one row.

    Returns:
        Its index [B], and whether there is one [B]: not where all items are of one group.
    """
    with torch.no_grad():
        barred = same | torch.eye(len(rows), dtype=torch.bool, device=rows.device)
        logits = log_scale.float().exp() * (rows.float() @ columns.float().T)
        # Never empty, unlike the softmax over all columns without the barred ones: where one
        # takes all its mass, what is left underflows to zero.
        chances = logits.double().masked_fill(barred, float("-inf")).softmax(dim=1)
        exists = ~barred.all(dim=1)
        chances = torch.where(exists[:, None], chances, torch.zeros_like(chances))
        ends = chances.cumsum(dim=1)
        aim = draws.to(ends)[:, None] * ends[:, -1:]
        found = torch.searchsorted(ends, aim, right=True)[:, 0]
        # Rounding can put the aim at the very end; the last that may be drawn is meant.
        places = torch.arange(len(rows), device=rows.device)
        last = torch.where(chances > 0, places, torch.zeros_like(places)).amax(dim=1)
        return torch.minimum(found, last), exists


def hide_words(
    ids: Tensor, special: Tensor, begins: Tensor, mask_id: int, words: Tensor, draws: Tensor
) -> tuple[Tensor, Tensor]:
    """Hide whole words of texts: 15 % of them, at least one of each text that has any.

    Of the tokens of hidden words 80 % become the mask, 10 % any word, 10 % stay.

    Args:
        ids: of tokens, int64 [B, T].
        special: which are no words (padding, [CLS], ..), bool [B, T].
        begins: which begin a word, bool [B, T]; the others go on with the one before.
        words: ids that may stand in for one, int64 [V].
        draws: uniform in [0, 1), float [3, B, T].

    Returns:
        The changed ids [B, T], and which tokens are to be told, bool [B, T].
    """
    there = ~special
    length = ids.shape[1]
    places = torch.arange(length, device=ids.device).expand_as(ids)
    # Of each token, where its word begins; a word decides by the draw of its first token.
    first = torch.where(begins | special, places, torch.zeros_like(places)).cummax(dim=1).values
    draw = draws[0].to(ids.device).gather(1, first)
    lowest = draw.masked_fill(special, 2.0).amin(dim=1, keepdim=True)
    hidden = there & ((draw < MASKED) | (draw == lowest))
    fate = draws[1].to(ids.device)
    other = words[(draws[2].to(ids.device) * len(words)).long().clamp(max=len(words) - 1)]
    changed = torch.where(fate < WITH_MASK, torch.full_like(ids, mask_id), ids)
    changed = torch.where((fate >= WITH_MASK) & (fate < WITH_MASK + WITH_OTHER), other, changed)
    return torch.where(hidden, changed, ids), hidden
