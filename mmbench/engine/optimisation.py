"""Optimisers and learning-rate schedules, as the recipe names them."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from mmbench.recipe import Schedule, Training


def make_optimizer(parameters: Iterable[nn.Parameter], training: Training) -> torch.optim.Optimizer:
    """The optimiser of a recipe, in its fused form: one kernel instead of one per tensor."""
    rate, decay = training.learning_rate, training.weight_decay
    kind = {
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "sgd": torch.optim.SGD,
        "adagrad": torch.optim.Adagrad,
    }[training.optimizer]
    parameters = list(parameters)
    # Fused Adagrad exists for the CPU alone.
    fused = training.optimizer != "adagrad" or parameters[0].device.type == "cpu"
    optimizer: torch.optim.Optimizer = kind(parameters, lr=rate, weight_decay=decay, fused=fused)
    return optimizer


def learning_rate_factor(schedule: Schedule, epoch: int, epochs: int) -> float:
    """The factor on the learning rate in an epoch, counted from 0."""
    if epoch < schedule.warmup_epochs:
        return (epoch + 1) / (schedule.warmup_epochs + 1)
    epoch, epochs = epoch - schedule.warmup_epochs, max(1, epochs - schedule.warmup_epochs - 1)
    if schedule.name == "step":
        return float(schedule.gamma ** ((epoch + 1) // schedule.period))
    if schedule.name == "linear":
        fallen = max(0.0, (epoch + 1 - schedule.period) / max(1, epochs + 1 - schedule.period))
        return 1 - (1 - schedule.floor) * min(1.0, fallen)
    if schedule.name == "exponential":
        return float(schedule.gamma ** (epoch / schedule.period))
    if schedule.name == "cosine":
        half = 0.5 * (1 + math.cos(math.pi * min(1.0, epoch / epochs)))
        return schedule.floor + (1 - schedule.floor) * half
    return 1.0
