"""Probe a model with one image on the `meta` device: shapes, and which batch norms can be folded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from skipnet_rl.adapters import family_of
from skipnet_rl.errors import first_line
from skipnet_rl.flops import on_meta
from skipnet_rl.tracing import Recorder


def recorded(
    model: nn.Module, graph: fx.Graph, size: int
) -> tuple[dict[str, torch.Size], list[tuple[str, str]], int]:
    """Return the shape of every value in the graph for one image, pairs of convolution and batch norm, and K.

    Raises:
        ValueError: the model does not take such an image, or does not answer with logits [B, K].
    """
    shapeless = on_meta(model)
    image = torch.empty(1, 3, size, size, device="meta")
    try:
        with torch.no_grad():
            logits = shapeless(image)  # not the graph: its errors would name nodes
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(
            f"{type(model).__name__} does not take images of {size} pixels: {first_line(error)}; "
            "give the size that it is built for as image_size"
        ) from error
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"{type(model).__name__} returns {came}; expected logits of shape (1, K)")
    norms = Norms(shapeless)
    recorder = Recorder(shapeless, graph)
    with torch.no_grad(), norms:
        recorder.run(image)
    return recorder.shapes, norms.pairs(), logits.shape[1]


class Norms(TorchFunctionMode):
    """A context that watches a model's forward pass for batch norms that can be folded into a convolution.

    Args:
        model: what to watch.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.written: dict[int, tuple[str, Tensor]] = {}  # tensors are kept so that no other gets their id
        self.readers: dict[int, list[str]] = {}  # layers
        self.reads: Counter[int] = Counter()  # by any function, a layer's own included
        self.calls: Counter[str] = Counter()
        for name, module in model.named_modules():
            if not any(True for _ in module.children()):
                module.register_forward_hook(lambda *call, name=name: self._watch(name, *call))

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Count each output of a convolution that a function reads."""
        result = func(*args, **(kwargs or {}))
        if any(isinstance(each, Tensor) for each in tree_leaves(result)):
            self.reads.update({id(each) for each in tree_leaves((args, kwargs))} & self.written.keys())
        return result

    def _watch(self, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.calls[name] += 1
        for value in inputs:
            if id(value) in self.written:
                self.readers.setdefault(id(value), []).append(name)
        if type(module) is nn.Conv2d:
            self.written[id(output)] = name, output

    def pairs(self) -> list[tuple[str, str]]:
        """Names, within `Whole`, of each convolution and of the batch norm that alone reads its output.

        Both are called once and belong to the same block: beyond the end of a block, a shortcut reads the
        convolution's output, too. No function between the layers reads it, either.
        """
        found = []
        for number, (conv, _) in self.written.items():
            readers = self.readers.get(number, [])
            if len(readers) != 1 or {self.calls[conv], self.calls[readers[0]], self.reads[number]} != {1}:
                continue
            is_norm = type(self.model.get_submodule(readers[0])) is nn.BatchNorm2d
            if is_norm and self._block_of(conv) == self._block_of(readers[0]):
                found.append((f"model.{conv}", f"model.{readers[0]}"))
        return found

    def _block_of(self, name: str) -> str:
        """Name of the innermost block that a layer is in, "" for none."""
        while name and not family_of(self.model.get_submodule(name)):
            name = name.rpartition(".")[0]
        return name
