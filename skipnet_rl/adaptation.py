"""Turn a model of torchvision, timm or your own into a network whose blocks can be skipped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from skipnet_rl.adapted import AdaptedBlock, AdaptedNetwork
from skipnet_rl.adapters import LAYOUTS, Family, family_of
from skipnet_rl.errors import check_count, in_short
from skipnet_rl.modules import evaluation_mode
from skipnet_rl.network import Network
from skipnet_rl.probing import recorded
from skipnet_rl.tracing import Part, crossing, trace

IMAGE_SIZE = 224  # for models that do not state one
LISTED = 8  # kinds of modules in an error


class Cut(NamedTuple):
    """A block where the graph can be cut: its place in the graph, and how it is skipped."""

    number: int
    node: fx.Node
    block: nn.Module
    family: Family
    shortcut: nn.Module | None


def adapt(model: nn.Module, image_size: int | None = None) -> AdaptedNetwork:
    """Turn a classifier into a network for `RoutingMDP`, whose blocks are the classifier's residual blocks.

    The first block that is found always runs. Every later one is a decision if skipping it leaves the shape
    as it is, or if it has a shortcut with parameters, such as a ResNet's downsampling. Everything else always
    runs. The model is not copied: it is `network.model`, and training the network trains it. Its own
    stochastic depth is switched off, since the route decides what runs. Dropout layers stay as they are, and
    so does each layer's mode, such as that of frozen batch norms; calls of `functional.dropout` outside
    layers are off.

    Args:
        model: images [B, 3, H, W] → logits [B, K], built from blocks that `adapters` knows (`register` adds
            more); its forward pass must not depend on the values that it computes.
        image_size: side of the images (default: what the model states, else 224).

    Returns:
        The network; with every block executed its logits are the model's, to the bit.

    Raises:
        TypeError: the model is not a module.
        ValueError: the model has fewer than two known blocks in a row (the message lists what it is made
            of); its forward pass cannot be traced; it does not take images of that size; its blocks have
            another layout than their class is registered with; it is already compiled or adapted.
    """
    check_model(model)
    size = image_size_of(model) if image_size is None else image_size
    check_count("image_size", size, "a number of pixels, such as 224")
    known = [module for module in model.modules() if family_of(module)]
    opened = {module for module in model.modules() if any(each in known for each in inside(module))}
    if not known:
        raise ValueError(
            f"no known residual block in {type(model).__name__}, which is made of {contents(model)}; if one "
            "of them is a residual block, register its class: skipnet_rl.adapters.register(BlockClass)"
        )
    with evaluation_mode(model):
        graph = trace(model, opened)
        shapes, pairs, classes = recorded(model, graph, size)
    cuts = find_cuts(model, graph, shapes)
    if len(cuts) < 2:
        raise ValueError(
            f"fewer than two blocks in a row that can be skipped among the {len(known)} known ones of "
            f"{type(model).__name__}, which is made of {contents(model)}; a block can be skipped if its "
            "adapter returns a shortcut, it is called with one feature, and no other value of the model "
            "bypasses it"
        )
    leading = leading_tokens(model)
    with evaluation_mode(model):
        blocks = [adapted_block(cut, shapes, leading) for cut in cuts]
    without_stochastic_depth(model)
    pairs = whole_pairs(model, pairs, cuts)
    return AdaptedNetwork(model, blocks, parts_of(graph, cuts), size, classes, pairs)


def check_model(model: object) -> None:
    """Raise a TypeError for anything but a module, a ValueError for one already adapted or compiled."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model is {in_short(model)}; expected a torch.nn.Module, such as torchvision.models.resnet18()"
        )
    if any(isinstance(each, Network) for each in model.modules()):
        raise ValueError(f"{type(model).__name__} is adapted already: give it to RoutingMDP as it is")
    if any(type(each).__name__ == "OptimizedModule" for each in model.modules()):
        raise ValueError(f"{type(model).__name__} is compiled; give the model before torch.compile")


def inside(module: nn.Module) -> list[nn.Module]:
    """The modules in a module, without itself."""
    return list(module.modules())[1:]


def contents(model: nn.Module) -> str:
    """Describe what a model is made of: the modules in it that contain others."""
    kinds = Counter(
        f"{type(each).__module__}.{type(each).__name__}"
        for each in inside(model)
        if any(True for _ in each.children()) and type(each) not in (nn.Sequential, nn.ModuleList)
    )
    if not kinds:
        kinds = Counter(type(each).__name__ for each in inside(model))
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(LISTED)) or "no modules"


def image_size_of(model: Any) -> int:
    """Side of the images that a model states it is built for, else 224."""
    embedding = getattr(model, "patch_embed", None)
    stated = getattr(embedding, "img_size", None) or getattr(model, "image_size", None)
    if stated is None:
        stated = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", IMAGE_SIZE)
    return int(stated[-1] if isinstance(stated, (tuple, list)) else stated)


def leading_tokens(model: Any) -> tuple[int, bool]:
    """Number of tokens that belong to no place in the image, and whether the first is a class token.

    The others are distillation tokens and registers.
    """
    named = any(getattr(model, name, None) is not None for name in ("class_token", "cls_token"))
    class_token = getattr(model, "has_class_token", named)
    return getattr(model, "num_prefix_tokens", int(class_token)), class_token


def find_cuts(model: nn.Module, graph: fx.Graph, shapes: dict[str, torch.Size]) -> list[Cut]:
    """The first block of the graph, and every later one that can be skipped."""
    nodes: list[Any] = list(graph.nodes)
    found: list[Cut] = []
    for number, node in enumerate(nodes):
        module = called(model, node)
        family = None if module is None else family_of(module)
        if module is None or family is None:
            continue
        alone = len(node.args) == 1 and not any(value is not None for value in node.kwargs.values())
        if not alone or crossing(nodes, number) != {node.args[0]} or crossing(nodes, number + 1) != {node}:
            continue
        if not {node.name, node.args[0].name} <= shapes.keys():  # it takes or gives several features
            continue
        shortcut = family.adapter(module)
        if isinstance(shortcut, nn.Identity) and shapes[node.name] != shapes[node.args[0].name]:
            shortcut = None
        if shortcut is not None or not found:
            found.append(Cut(number, node, module, family, shortcut))
    return found


def called(model: nn.Module, node: fx.Node) -> nn.Module | None:
    """The layer of a traced model that a node calls; None for any other node."""
    own = node.op == "call_module" and str(node.target).startswith("model.")
    return model.get_submodule(str(node.target).removeprefix("model.")) if own else None


def adapted_block(cut: Cut, shapes: dict[str, torch.Size], leading: tuple[int, bool]) -> AdaptedBlock:
    """Make a block, with its shortcut split off if that has parameters.

    Raises:
        ValueError: the block does not call the shortcut once, with its input; its features have another
            number of dimensions than the layout.
    """
    layout = LAYOUTS[cut.family.layout](*leading)
    entering: Any = cut.node.args[0]
    sizes = shapes[entering.name], shapes[cut.node.name]
    for shape in sizes:
        if len(shape) != layout.dimensions:
            raise ValueError(
                f"{type(cut.block).__name__} has a feature of shape {tuple(shape)}, and its class is "
                f"registered for {layout.name}; register it with the layout that fits: {', '.join(LAYOUTS)}"
            )
    if cut.shortcut is None or isinstance(cut.shortcut, nn.Identity):
        return AdaptedBlock(cut.block, None, None, layout, sizes)
    graph = trace(cut.block, {cut.block})
    entry, *inner, last = graph.nodes
    passed = [node for node in inner if called(cut.block, node) is cut.shortcut]
    if [node.args for node in passed] != [(entry,)]:
        raise ValueError(
            f"the shortcut of {type(cut.block).__name__} is called {len(passed)} times; expected once, with "
            "the block's input: register an adapter that returns another shortcut, or None"
        )
    rest = [node for node in inner if node is not passed[0]]
    return AdaptedBlock(cut.block, cut.shortcut, Part(rest, (entry, *passed), last.args[0]), layout, sizes)


def parts_of(graph: fx.Graph, cuts: Sequence[Cut]) -> list[Part | None]:
    """The parts before the first block, between each two, and after the last; None for an empty one."""
    nodes: list[Any] = list(graph.nodes)
    output = nodes[-1]
    begins = [(0, nodes[0]), *((cut.number, cut.node) for cut in cuts)]
    ends = [*((cut.number, cut.node.args[0]) for cut in cuts), (len(nodes) - 1, output.args[0])]
    return [
        None if entry is leaving else Part(nodes[begin + 1 : end], [entry], leaving)
        for (begin, entry), (end, leaving) in zip(begins, ends, strict=True)
    ]


def whole_pairs(
    model: nn.Module, pairs: Sequence[tuple[str, str]], cuts: Sequence[Cut]
) -> list[tuple[str, str]]:
    """Keep the pairs of convolution and batch norm of which each shortcut has both or neither.

    A skipped image takes only the shortcut, so a batch norm behind it cannot be folded into it.
    """
    shortcuts = [set(cut.shortcut.modules()) for cut in cuts if cut.shortcut is not None]

    def belongs(name: str, modules: set[nn.Module]) -> bool:
        """Whether the layer of that name is one of the modules."""
        return model.get_submodule(name.removeprefix("model.")) in modules

    return [
        (conv, norm)
        for conv, norm in pairs
        if all(belongs(conv, modules) == belongs(norm, modules) for modules in shortcuts)
    ]


def without_stochastic_depth(model: nn.Module) -> None:
    """Switch off the stochastic depth of torchvision and timm in a model."""
    module: Any
    for module in model.modules():
        if type(module).__name__ == "StochasticDepth":
            module.p = 0.0
        elif type(module).__name__ == "DropPath":
            module.drop_prob = 0.0
