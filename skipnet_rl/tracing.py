"""A module's forward pass as a graph, and parts of that graph as functions.

`torch.fx` records which layers a model calls, in which order and with what, so that its forward pass can be
cut between two blocks without code written for that model. Layers are not looked into: a part calls the
model's own modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn

ENDS = ("placeholder", "output")


class Whole(nn.Module):
    """Calls a module with one argument, so that its other arguments have their defaults."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Any) -> Any:
        """The module's output."""
        return self.model(x)


class _Tracer(fx.Tracer):
    def __init__(self, opened: set[nn.Module]) -> None:
        super().__init__()
        self.opened = opened

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a call of the module is one node of the graph."""
        return m not in self.opened


def trace(model: nn.Module, opened: Iterable[nn.Module]) -> fx.Graph:
    """Trace the graph of `Whole(model)`, in which layers are called `model.…`.

    Args:
        model: what to trace.
        opened: the modules to look into, `model` among them; all others are layers.

    Raises:
        ValueError: its forward pass depends on the values that it computes, and has no single graph.
    """
    try:
        graph = _Tracer(set(opened)).trace(Whole(model))
    except Exception as error:  # the model's code may raise anything when given proxies for tensors
        raise ValueError(
            f"the forward pass of {type(model).__name__} cannot be traced by torch.fx: {error}; expected one "
            "that does not depend on the values it computes"
        ) from error
    without_dead_ends(graph)
    return graph


def without_dead_ends(graph: fx.Graph) -> None:
    """Drop the nodes whose value is never read; the model's assertions stay."""
    graph.eliminate_dead_code(lambda node: node.op in ENDS or node.target is torch._assert)


class Recorder(fx.Interpreter):
    """An interpreter that records the shape of each tensor in a graph, by node."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__(Whole(model), graph=graph)
        self.shapes: dict[str, torch.Size] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n.name] = value.shape
        return value


class Part:
    """Nodes of a graph as a function of the values that enter them.

    It is called with an object that has the traced module as its `model`, and uses that object's layers, so
    that a copy of a network computes with its own layers.
    """

    def __init__(self, nodes: Sequence[fx.Node], inputs: Sequence[fx.Node], output: fx.Node) -> None:
        graph, place = fx.Graph(), {}
        for number, node in enumerate(inputs):
            place[node] = graph.placeholder(f"x{number}")

        def moved(node: fx.Node) -> fx.Node:
            if node not in place:  # a parameter, which any part may read
                place[node] = graph.node_copy(node, moved)
            return place[node]

        for node in nodes:
            place[node] = graph.node_copy(node, moved)
        graph.output(moved(output))
        without_dead_ends(graph)
        reads = (node for node in graph.nodes if node.op in ("call_module", "get_attr"))
        self.layers = list(dict.fromkeys(str(node.target) for node in reads))  # in the order of their use
        code = graph.python_code("self")
        self._compile(code.src, code.globals)

    def _compile(self, source: str, names: Mapping[str, Any]) -> None:
        self.source, self.names = source, dict(names)
        namespace = dict(names)
        exec(compile(source, "<part of a network>", "exec"), namespace)
        self.function: Callable[..., Any] = namespace["forward"]

    def __getstate__(self) -> dict[str, Any]:
        """The source, to be compiled again; Python modules by name, since they cannot be pickled."""
        modules = {name: each.__name__ for name, each in self.names.items() if isinstance(each, ModuleType)}
        others = {name: each for name, each in self.names.items() if name not in modules}
        return {"layers": self.layers, "source": self.source, "modules": modules, "names": others}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Compile the source."""
        self.layers = state["layers"]
        modules = {name: import_module(each) for name, each in state["modules"].items()}
        self._compile(state["source"], {**state["names"], **modules})

    def __call__(self, owner: Any, *inputs: Tensor) -> Tensor:
        """Run the part with the layers of `owner.model`."""
        return self.function(owner, *inputs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Part:
        """Itself: it holds no layers."""
        return self


def crossing(nodes: Sequence[fx.Node], number: int) -> set[fx.Node]:
    """The values that are computed before node `number` and read at or after it; parameters do not count."""
    place = {node: index for index, node in enumerate(nodes)}
    return {
        node
        for node in nodes[:number]
        if node.op != "get_attr" and any(place[user] >= number for user in node.users)
    }
