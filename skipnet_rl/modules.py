"""Helpers for PyTorch's modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar, cast

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def module_list(modules: Iterable[ModuleT]) -> Sequence[ModuleT]:
    """`nn.ModuleList` whose items keep their class for the type checker."""
    return cast("Sequence[ModuleT]", nn.ModuleList(modules))


@contextmanager
def running_statistics(module: nn.Module) -> Iterator[None]:
    """Let the batch norms of a module use their running statistics."""
    norms = [each for each in module.modules() if isinstance(each, _BatchNorm) and each.training]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()


@contextmanager
def evaluation_mode(module: object) -> Iterator[None]:
    """Put a module into evaluation mode, and restore each submodule at the end; leave anything else alone."""
    modules = list(module.modules()) if isinstance(module, nn.Module) else []
    training = [each.training for each in modules]
    for each in modules:
        each.training = False
    try:
        yield
    finally:
        for each, was_training in zip(modules, training, strict=True):
            each.training = was_training
