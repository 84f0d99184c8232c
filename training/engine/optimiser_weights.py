"""Which weights are trained, at which rate, and their moving average."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ...encoders import Encoder
from ...encoders.layers import Tap, closest
from ...errors import InputError
from ..recipes.settings import OptimiserSettings, Settings
from .step import Objective

Tensors = tuple[Tensor, ...] | list[Tensor]

__all__ = ["Average", "frozen_parts", "make_optimiser", "trainable", "training_mode"]


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that gradients reach."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def frozen_parts(encoder: Encoder, settings: Settings) -> list[nn.Module]:
    """The modules of the backbone that `freeze` names.

    Raises:
        InputError: a name that is no part of the backbone; the message holds the nearest ones.
    """
    backbone = encoder.backbone.source if isinstance(encoder.backbone, Tap) else encoder.backbone
    assert isinstance(backbone, nn.Module)
    parts = {name or "backbone": part for name, part in backbone.named_modules()}
    for name in settings.freeze:
        if name not in parts:
            raise InputError(f"run.freeze: the backbone has no part {name!r}; nearest: {closest(name, list(parts))}")
    return [parts[name] for name in settings.freeze]


@contextmanager
def training_mode(encoder: Encoder, objective: Objective, settings: Settings) -> Iterator[None]:
    """Encoder and objective in training mode, frozen parts frozen.

    Afterwards both are in evaluation mode, and what needed a gradient before needs one again.
    """
    parts = frozen_parts(encoder, settings)
    needed = [(parameter, parameter.requires_grad) for parameter in encoder.parameters()]
    for part in parts:
        part.requires_grad_(False)
    try:
        set_training(encoder, objective, settings)
        yield
    finally:
        for parameter, flag in needed:
            parameter.requires_grad_(flag)
        encoder.eval()
        objective.eval()


def set_training(encoder: Encoder, objective: Objective, settings: Settings) -> None:
    """Training mode, except for what is frozen."""
    encoder.train()
    objective.train()
    for part in frozen_parts(encoder, settings):
        part.eval()
    if settings.freeze_batch_norm:
        for part in encoder.backbone.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.eval()


def make_optimiser(encoder: Encoder, objective: Objective, settings: OptimiserSettings) -> torch.optim.Optimizer:
    """The optimiser over backbone, pooling and head, and the objective's own weights, each with its learning rate.

    Raises:
        InputError: nothing is left to train.
    """
    backbone = trainable(encoder.backbone)
    inside = {id(parameter) for parameter in encoder.backbone.parameters()}
    rest = [parameter for parameter in trainable(encoder) if id(parameter) not in inside]
    inside |= {id(parameter) for parameter in encoder.parameters()}
    own = [parameter for parameter in trainable(objective) if id(parameter) not in inside]
    parts = ((backbone, settings.backbone_factor), (rest, 1.0), (own, settings.term_factor))
    groups = [{"params": part, "lr": settings.learning_rate * factor} for part, factor in parts if part]
    if not groups:
        raise InputError("nothing is left to train: every part of the encoder is frozen and the terms have no weights")
    if settings.kind == "sgd":
        return torch.optim.SGD(
            groups,
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.momentum > 0,
        )
    kind = torch.optim.AdamW if settings.kind == "adamw" else torch.optim.Adam
    return kind(groups, lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay)


class Average:
    """A moving average of the encoder's weights and statistics and of what the objective learns.

    Source: Polyak averaging as torch.optim.swa_utils has it, with a decay that grows to its full value.
    """

    def __init__(self, encoder: Encoder, objective: Objective, decay: float) -> None:
        self._live = nn.ModuleList([encoder, nn.ParameterList(trainable(objective))])

        @torch.no_grad()
        def update(averages: Tensors, values: Tensors, count: Tensor | int) -> None:
            weight = 1 - min(decay, (1 + int(count)) / (10 + int(count)))
            if averages[0].is_floating_point():
                torch._foreach_lerp_(averages, values, weight)
            else:  # counters of batch norms
                torch._foreach_copy_(averages, values)

        self.model = AveragedModel(self._live, multi_avg_fn=update, use_buffers=True)

    def update(self) -> None:
        """Take the weights as they are now into the average."""
        self.model.update_parameters(self._live)

    @torch.no_grad()
    def exchange(self) -> None:
        """Put the average where the live weights are, and the live weights here; twice is as before."""
        for live, average in zip(_tensors(self._live), _tensors(self.model.module), strict=True):
            kept = live.clone()
            live.copy_(average)
            average.copy_(kept)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
