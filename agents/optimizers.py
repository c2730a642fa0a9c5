"""The optimizers of a backbone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def adam(net: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Adam, without weight decay."""
    return torch.optim.Adam(net.parameters(), lr)


def sgd(
    net: nn.Module, lr: float, momentum: float = 0.9, weight_decay: float = 5e-4
) -> torch.optim.Optimizer:
    """Nesterov's SGD, whose weight decay spares biases and batch norm."""
    matrices = [p for p in net.parameters() if p.ndim > 1]
    vectors = [p for p in net.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors}]
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0)


OPTIMIZERS: dict[str, Callable[[nn.Module, float], torch.optim.Optimizer]] = {"adam": adam, "sgd": sgd}
