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


def batch_norms(module: nn.Module) -> nn.ModuleList:
    """The batch norms of a module, of any number of dimensions."""
    return nn.ModuleList(each for each in module.modules() if isinstance(each, _BatchNorm))


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
