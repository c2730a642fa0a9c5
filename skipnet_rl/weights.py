"""One way to every network: a weights file says what it is, and `open_weights` opens it.

A file is safetensors in half precision (`checkpoint.save_weights`), in one part or several
(`checkpoint.parts_of`), with a header: `kind` (one of `KINDS`), `depth`, `shortcut`, `dataset`,
`num_classes`, `mean` and `std` of the images' normalisation; for a policy the `alpha` and `cost` that it was
trained for; the `command` that made it, and the networks that this command started from, `after`. Files of
other projects and of earlier versions lack some of it: what their tensors show is read off them.

A tuned chain has no tensors, its file is the header alone, see `chain_file`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from skipnet_rl.chain import Chain, ChainMDP
from skipnet_rl.chain_file import open_chain
from skipnet_rl.checkpoint import fill
from skipnet_rl.device import cpu_by_default
from skipnet_rl.errors import WeightsError, one_line, unknown_name
from skipnet_rl.foreign import Backbone, architecture_of, check_padding, describe, find_backbone
from skipnet_rl.gates import GATES, FeedForwardGate, RecurrentGate, make_gate
from skipnet_rl.halting import HaltingGate
from skipnet_rl.mdp import ALPHA, RoutingMDP
from skipnet_rl.models import ModelName, take_over
from skipnet_rl.network import Network
from skipnet_rl.policies import AlwaysExecute, FixedRoute, Policy
from skipnet_rl.policy_networks import ObservationPolicy, PolicyNetwork
from skipnet_rl.resnet import Architecture, ResNet
from skipnet_rl.stored import POLICY, Header, Stored, Weights, read_weights

FIXED = "fixed"  # the kind of one route for all images
ACT = "act"  # the kind of halting scores
StoredPolicy = RecurrentGate | FeedForwardGate | HaltingGate | FixedRoute


class Opened(NamedTuple):
    """A network that was opened.

    Attributes:
        network: in evaluation mode, on the CPU, in channels-last memory; of the kind `"chain"` a `Chain`.
        policy: what chooses its blocks; `AlwaysExecute` for a plain network.
        header: what the file says of itself, see the module, and what its tensors show.
    """

    network: Any
    policy: Policy
    header: Header

    def mdp(self, alpha: float | None = None, cost: str | None = None) -> Any:
        """The decision process over the network (default: at the alpha and cost that it was trained for)."""
        alpha = self.header.get("alpha", ALPHA) if alpha is None else alpha
        if isinstance(self.network, Chain):
            return ChainMDP(self.network, alpha, cost or self.header.get("cost", "flops"))
        return RoutingMDP(self.network, alpha, cost or self.header.get("cost", "blocks"))


class Expected(NamedTuple):
    """Requirements of a caller of `open_weights`; None leaves a value to the file."""

    depth: int | None = None
    shortcut: str | None = None
    num_classes: int | None = None
    new_classifier: bool = False
    network: Weights | None = None
    model: ModelName | None = None


@cpu_by_default()
def open_weights(
    weights: Weights,
    *,
    depth: int | None = None,
    shortcut: str | None = None,
    num_classes: int | None = None,
    new_classifier: bool = False,
    network: Weights | None = None,
    model: ModelName | None = None,
    seed: int | None = 0,
) -> Opened:
    """Open a network, whatever made it.

    Args:
        weights: the name of a shipped network; a file of this project; a file of `torch.save` (`.th`, `.pt`,
            `.pth`) under the names that `foreign` knows; `"torchvision"` for torchvision's ImageNet weights;
            or a state_dict.
        depth, shortcut: those that are expected (default: the file's). `"torchvision"` needs the depth;
            shortcuts without weights are `"pad"` unless the header or this says `"pool"`.
        num_classes: K that is expected (default: the file's).
        new_classifier: replace a classifier of another number of classes by an untrained one, with a warning.
        network: what a policy stored without a network is to play on (default: what its header names).
        model: the model of torchvision or timm that is expected (default: the file's).
        seed: of an untrained classifier; None draws it from PyTorch's global stream, which then moves on.

    Raises:
        WeightsError: no such network, with the nearest shipped name; a file that is missing or damaged, or
            does not fit what is expected.
    """
    stored = read_weights(weights, depth)
    kind = stored.header["kind"]
    if kind not in KINDS:
        raise WeightsError(f"{stored.source} does not open: {unknown_name('kind', kind, KINDS)}")
    with torch.inference_mode(False), torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)  # the CPU's alone: fork_rng restores no other here
        expected = Expected(depth, shortcut, num_classes, new_classifier, network, model)
        return KINDS[kind](stored, expected)


def untrained(depth: int, num_classes: int, shortcut: str = "projection", seed: int = 0) -> ResNet:
    """A new network in evaluation mode, on the CPU, in channels-last memory; the same for the same seed."""
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        net = ResNet(depth, num_classes, shortcut)
        return net.to(memory_format=torch.channels_last).eval()


def _open_plain(stored: Stored, expected: Expected) -> Opened:
    return _opened(stored, _network(stored, stored.tensors, expected), AlwaysExecute())


def _open_gated(stored: Stored, expected: Expected) -> Opened:
    gate, rest = _apart(stored.tensors, "gate.")
    net = _network(stored, rest, expected)
    policy = new_policy(stored.header["kind"], net)
    fill(policy, gate, stored.source)
    return _opened(stored, net, policy)


def _open_blockdrop(stored: Stored, expected: Expected) -> Opened:
    own, rest = _apart(stored.tensors, POLICY)
    net = _network(stored, rest, expected)
    policy = PolicyNetwork(len(net.blocks) - 1, stored.header["policy_depth"], net.image_size)
    fill(policy, own, stored.source)
    return _opened(stored, net, policy)


def _open_sb3(stored: Stored, expected: Expected) -> Opened:
    network = stored.header.get("network") if expected.network is None else expected.network
    if network is None:
        raise WeightsError(f"{stored.source} holds a policy without a network; name the one to play on")
    if network == "none":  # an untrained one
        wanted = {**stored.header, **{k: v for k, v in expected._asdict().items() if v is not None}}
        named = expected.model or ModelName.of(stored.header)
        classes = wanted["num_classes"]
        net = named.build(classes) if named else untrained(wanted["depth"], classes, wanted["shortcut"])
    else:
        net = open_weights(network, **expected._replace(network=None)._asdict()).network
    return _opened(stored, net, ObservationPolicy.of_sb3(stored.tensors, len(net.blocks) - 1))


def _open_chain(stored: Stored, expected: Expected) -> Opened:
    if expected.depth is not None:
        raise WeightsError(f"{stored.source} is a chain of networks; expected one ResNet-{expected.depth}")
    classes = expected.num_classes or stored.header.get("num_classes")

    def member(network: str | int) -> Opened:
        """One of its networks, by name, or an untrained one by its depth."""
        if isinstance(network, int):
            if classes is None:
                raise WeightsError(f"{stored.source} is damaged: its header lacks num_classes")
            return Opened(untrained(network, classes), AlwaysExecute(), {})
        return open_weights(network, num_classes=classes)

    return Opened(*open_chain(stored, member))


KINDS: dict[str, Callable[[Stored, Expected], Opened]] = {
    "plain": _open_plain,
    **dict.fromkeys((*GATES, ACT, FIXED), _open_gated),
    "blockdrop": _open_blockdrop,
    "sb3": _open_sb3,
    "chain": _open_chain,
}


def new_policy(kind: str, net: Network, gain: float = 1.0) -> StoredPolicy:
    """A new gate, for `"act"` halting scores, or for `"fixed"` the route of every block.

    Raises:
        ValueError: see `make_gate` and `HaltingGate`.
    """
    if kind == ACT:
        return HaltingGate(net)
    if kind == FIXED:
        return FixedRoute(torch.ones(len(net.blocks) - 1, device="cpu"))
    return make_gate(kind, net, gain)


def _opened(stored: Stored, net: Network, policy: Any) -> Opened:
    known = {**net.about(), "num_classes": net.num_classes}
    policy = policy.eval() if isinstance(policy, nn.Module) else policy
    return Opened(net, policy, {**stored.header, **known})


def _apart(tensors: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors under a prefix, without it, and the others."""
    own = {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
    return own, {name: value for name, value in tensors.items() if not name.startswith(prefix)}


def _network(stored: Stored, tensors: Mapping[str, Tensor], expected: Expected) -> Network:
    """The network among some tensors: a model of another library where it is named, else a ResNet."""
    stated = ModelName.of(stored.header)
    if not (expected.model or stated):
        return _resnet(stored, tensors, expected)
    if expected.depth is not None or (stated and expected.model and stated != expected.model):
        wanted = f"a ResNet-{expected.depth}" if expected.model is None else _words(expected.model)
        raise WeightsError(f"{stored.source} does not fit: it holds {_words(stated)}; expected {wanted}")
    classes = expected.num_classes or stored.header.get("num_classes")
    if classes is None:
        raise WeightsError(f"{stored.source} does not name its number of classes; give it: num_classes")
    net = (expected.model or stated).build(classes)  # type: ignore[union-attr]
    take_over(net, tensors, stored.source, expected.new_classifier)
    return net.eval()


def _words(model: ModelName | None) -> str:
    if model is None:
        return "no model of another library"
    return f"{model.model} with {json.dumps(dict(model.arguments))} for {model.image_size} pixels"


def _resnet(stored: Stored, tensors: Mapping[str, Tensor], expected: Expected) -> ResNet:
    """The ResNet among some tensors.

    What is left out is said in a warning of one line: a classifier of another number of classes, and what is
    no part of a ResNet, unless this project wrote it.
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
        notes.append(f"its classifier {has}, so that of the network's {classes} classes is untrained")
        taken |= own
    if found.left_out and not found.own:
        notes.append(
            f"left out {len(found.left_out)} tensors beside the backbone, such as {found.left_out[0]}"
        )
    try:
        check_padding(tensors, net, source)
        fill(net, taken, source)
    except WeightsError as error:
        came, wanted = describe(found.tensors), describe(net.state_dict())
        wanted = "exactly the layers of one" if wanted == came else wanted
        remedy = "build the network that it holds, or give other weights"
        raise WeightsError(f"{error}. It holds {came}; expected {wanted}: {remedy}") from None
    if notes:
        warnings.warn(one_line(f"{source}: {'; '.join(notes)}"), stacklevel=5)
    return net.eval()


def _architecture(found: Backbone, header: Header, source: str) -> Architecture:
    """The header, completed from the tensors' shapes; a contradiction is an error."""
    plan = architecture_of(found.tensors)
    if plan is None:
        raise WeightsError(f"{source} holds no whole residual block")
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
