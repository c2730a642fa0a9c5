"""Build the network whose tensors a weights file holds, see `weights`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from skipnet_rl.checkpoint import fill
from skipnet_rl.errors import WeightsError, one_line
from skipnet_rl.foreign import Backbone, architecture_of, check_padding, contents, describe, find_backbone
from skipnet_rl.models import ModelName, take_over
from skipnet_rl.network import Network
from skipnet_rl.resnet import SHORTCUT, Architecture, ResNet
from skipnet_rl.stored import Header, Stored, Weights, header_of, read_weights

REMEDY = "build the network that it holds, or give other weights"


class Expected(NamedTuple):
    """Requirements of a caller of `open_weights`; None leaves a value to the file. `seed` is its argument."""

    depth: int | None = None
    shortcut: str | None = None
    num_classes: int | None = None
    new_classifier: bool = False
    network: Weights | None = None
    model: ModelName | None = None
    seed: int | None = 0

    def over(self, header: Header) -> dict[str, Any]:
        """The header, with these requirements in place of its own values."""
        return {**header, **{name: value for name, value in self._asdict().items() if value is not None}}


def untrained(depth: int, num_classes: int, shortcut: str | None = None, seed: int = 0) -> ResNet:
    """A new network in evaluation mode, on the CPU, in channels-last memory; the same for the same seed."""
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        net = ResNet(depth, num_classes, shortcut or SHORTCUT)
        return net.to(memory_format=torch.channels_last).eval()


def network_of(stored: Stored, tensors: Mapping[str, Tensor], expected: Expected) -> Network:
    """Build the network of some tensors: a model of another library if one is named, else a ResNet."""
    stated = ModelName.of(stored.header)
    if not (expected.model or stated):
        return _resnet(stored, tensors, expected)
    own = None if stated else stored.header.get("depth")
    came, wanted = _words(stated, own), _words(expected.model, expected.depth)
    if expected.depth is not None or own or (stated and expected.model and came != wanted):
        raise WeightsError(f"{stored.source} does not fit: it holds {came}; expected {wanted}: {REMEDY}")
    classes = expected.num_classes or stored.header.get("num_classes")
    if classes is None:
        raise WeightsError(f"{stored.source} does not state its number of classes; give num_classes")
    named = expected.model or stated
    net = named.build(classes)  # type: ignore[union-attr]
    try:
        take_over(net, tensors, stored.source, expected.new_classifier)
    except WeightsError as error:
        came, wanted = contents(tensors, stored.source), _words(named, None)
        raise WeightsError(f"{error}. It holds {came}; expected {wanted}: {REMEDY}") from None
    return net.eval()


def _words(model: ModelName | None, depth: int | None) -> str:
    if model is None:
        return "no model of another library" if depth is None else f"a ResNet-{depth}"
    arguments = json.dumps(dict(model.arguments), sort_keys=True)
    return f"{model.model} with {arguments} for {model.image_size} pixels"


def _resnet(stored: Stored, tensors: Mapping[str, Tensor], expected: Expected) -> ResNet:
    """Build the ResNet of some tensors.

    A warning of one line says what is left out: a classifier for another number of classes, and tensors that
    are not part of a ResNet, unless this project wrote them.
    """
    header, source = stored.header, stored.source
    found = find_backbone(tensors, source)
    plan = (
        _architecture(found, header, source)
        if expected.depth is None
        else Architecture.of_depth(expected.depth)
    )
    has_weights = any(".shortcut." in name for name in found.tensors)
    shortcut = expected.shortcut or header.get("shortcut") or ("projection" if has_weights else "pad")
    classes = expected.num_classes or (
        len(found.tensors["fc.weight"]) if "fc.weight" in found.tensors else 10
    )
    net = ResNet(plan, classes, shortcut).to(memory_format=torch.channels_last)
    taken, notes = dict(found.tensors), []
    own = {name: value for name, value in net.state_dict().items() if name.startswith("fc.")}
    misfit = any(name not in taken or taken[name].shape != own[name].shape for name in own)
    if misfit and expected.new_classifier:
        has = f"has {len(taken['fc.weight'])} classes" if "fc.weight" in taken else "is missing"
        notes.append(f"its classifier {has}; the new one of {classes} classes is untrained")
        taken |= own
    if found.left_out and not found.own:
        notes.append(
            f"left out {len(found.left_out)} tensors beside the backbone, such as {found.left_out[0]}"
        )
    try:
        check_padding(tensors, net, source)
        fill(net, taken, source)
    except WeightsError as error:
        came, wanted = contents(found.tensors, source), describe(net.state_dict())
        wanted = "exactly the layers of one" if wanted == came else wanted
        raise WeightsError(f"{error}. It holds {came}; expected {wanted}: {REMEDY}") from None
    if notes:
        warnings.warn(one_line(f"{source}: {'; '.join(notes)}"), stacklevel=5)
    return net.eval()


def shape_of(weights: Weights) -> Architecture | ModelName:
    """The architecture of stored weights, or the name of a model of another library.

    Raises:
        WeightsError: there are no such weights, or they hold no ResNet.
    """
    header = {} if isinstance(weights, Mapping) else header_of(weights)
    if named := ModelName.of(header):
        return named
    if depth := header.get("depth"):
        return Architecture.of_depth(depth)
    stored = read_weights(weights)
    return _architecture(find_backbone(stored.tensors, stored.source), stored.header, stored.source)


def _architecture(found: Backbone, header: Header, source: str) -> Architecture:
    """The architecture by the tensors' shapes; the header's depth and the shapes of all blocks must agree."""
    plan = architecture_of(found.tensors)
    if plan is None:
        raise WeightsError(
            f"{source} holds no whole residual block by names known here: "
            f"{contents(found.tensors, source)}; name the model if it is one of torchvision or timm"
        )
    if (stated := header.get("depth", plan.depth)) != plan.depth:
        raise WeightsError(
            f"{source} is damaged: its header says ResNet-{stated}, and it holds {describe(found.tensors)}"
        )
    with torch.device("meta"):  # shapes first: those of a damaged file may ask for any amount of memory
        shapes = {name: value.shape for name, value in ResNet(plan, 1).state_dict().items()}
    for name, shape in shapes.items():
        came = found.tensors.get(name) if name.startswith("blocks.") else None
        if came is not None and came.shape != shape:
            raise WeightsError(
                f"{source} does not fit: layer {name} has shape {tuple(came.shape)}, expected {tuple(shape)}"
            )
    return plan
