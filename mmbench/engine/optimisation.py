"""Optimisers and learning-rate schedules, as the recipe names them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from mmbench.models.base import ItemEncoder
from mmbench.recipe_keys import EncoderTraining, Schedule, Training


def parameter_groups(model: nn.Module, training: Training) -> list[dict[str, Any]]:
    """What learns, with its rate and decay: the model's own parameters, then its encoders'.

    A group without parameters is left out, and so is what does not learn at all.
    """
    of_encoders = _of_encoders(model)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    encoder_rate = training.encoder_learning_rate
    groups: list[dict[str, Any]] = [
        {
            "params": [parameter for parameter in learning if id(parameter) not in of_encoders],
            "lr": training.learning_rate,
            "weight_decay": training.weight_decay,
        },
        {
            "params": [parameter for parameter in learning if id(parameter) in of_encoders],
            "lr": training.learning_rate if encoder_rate is None else encoder_rate,
            "weight_decay": training.encoder_weight_decay,
        },
    ]
    return [group for group in groups if group["params"]]


def clipped_groups(model: nn.Module, training: Training) -> list[tuple[list[nn.Parameter], float]]:
    """Parameters whose gradients have a largest norm together, and that norm.

    All of them, unless `encoder_clip_norm` parts the encoders' from the model's own.
    """
    norm, encoder_norm = training.clip_norm, training.encoder_clip_norm
    if encoder_norm is None:
        return [] if norm is None else [(list(model.parameters()), norm)]
    of_encoders = _of_encoders(model)
    inside = [p for p in model.parameters() if id(p) in of_encoders]
    outside = [p for p in model.parameters() if id(p) not in of_encoders]
    found = [] if norm is None else [(outside, norm)]
    return [*found, (inside, encoder_norm)]


def _of_encoders(model: nn.Module) -> set[int]:
    """Identities of the parameters of encoders that learn with a model."""
    return {
        id(parameter)
        for module in model.modules()
        if isinstance(module, ItemEncoder)
        for parameter in module.parameters()
    }


def groups_of_encoders(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[int]:
    """Which groups of an optimiser hold the parameters of encoders."""
    of_encoders = _of_encoders(model)
    return [
        at
        for at, group in enumerate(optimizer.param_groups)
        if any(id(parameter) in of_encoders for parameter in group["params"])
    ]


def make_optimizer(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """The optimiser of a recipe, in its fused form: one kernel instead of one per tensor."""
    kind = {
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "sgd": torch.optim.SGD,
        "adagrad": torch.optim.Adagrad,
    }[training.optimizer]
    groups = parameter_groups(model, training)
    # Fused Adagrad exists for the CPU alone.
    on_cpu = all(p.device.type == "cpu" for group in groups for p in group["params"])
    fused = training.optimizer != "adagrad" or on_cpu
    optimizer: torch.optim.Optimizer = kind(groups, lr=training.learning_rate, fused=fused)
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


def encoder_rate_factor(how: EncoderTraining, step: int, n_steps: int, epochs: int) -> float:
    """The further factor on the rate of encoders in a step of training, counted from 0.

    Args:
        n_steps: of an epoch; `epochs` of them are planned.
    """
    resting = how.warmup_epochs * n_steps
    rising = how.warmup_share * max(0, epochs * n_steps - resting)
    return min(1.0, (max(0, step - resting) + 1) / (rising + 1))
