"""The optimiser of a fine-tuning: what decays, which rate is whose, and how rates go."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor, nn

from mmbench.engine.tuning_settings import FineTuning
from mmbench.errors import ConfigError


def rate_factor(settings: FineTuning, step: int, n_steps: int) -> float:
    """The factor on the learning rate in a step, counted from 0."""
    rising = settings.warmup * n_steps
    if step < rising:
        return (step + 1) / (rising + 1)
    if settings.schedule == "constant":
        return 1.0
    done = (step - rising) / max(1.0, n_steps - rising)
    return 1 - done if settings.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def make_optimizer(
    module: nn.Module,
    learning: Mapping[str, Tensor],
    new: Collection[str],
    settings: FineTuning,
) -> torch.optim.Optimizer:
    """The optimiser of what learns; each group knows the highest rate that it is to have.

    Args:
        module: the encoder's.
        learning: by name; "own." before what is not of the module, which does not decay.
        new: names of weights that no published ones are behind; they have a rate of their own.

    Raises:
        ConfigError: nothing learns.
    """
    if not learning:
        raise ConfigError("nothing of the encoder learns from pairs; take --tune full")
    (rate,) = settings.learning_rate
    bare = set(_without_decay(module))
    found: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, weight in learning.items():
        is_bare = name in bare or name.startswith("own.")
        found.setdefault((name in new, is_bare), []).append(weight)
    groups = [
        {
            "params": weights,
            "weight_decay": 0.0 if is_bare else settings.weight_decay,
            "highest": settings.rate_of_new if is_new else rate,
        }
        for (is_new, is_bare), weights in sorted(found.items(), key=lambda one: one[0])
    ]
    if settings.optimizer == "adam":
        return torch.optim.Adam(groups, lr=rate)
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), eps=1e-6)


def _without_decay(module: nn.Module) -> Iterator[str]:
    """Norms, biases, temperatures and embeddings."""
    tables = {
        f"{name}.{inner}"
        for name, part in module.named_modules()
        if isinstance(part, nn.Embedding)
        for inner, _ in part.named_parameters(recurse=False)
    }
    for name, weight in module.named_parameters():
        leaf = name.rpartition(".")[2]
        if weight.dim() <= 1 or name in tables or "embed" in leaf or leaf.endswith("token"):
            yield name
