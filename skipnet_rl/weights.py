"""Open any stored network: a weights file says what it is, and `open_weights` reads it.

A file is safetensors in half precision (`checkpoint.save_weights`), in one part or several
(`checkpoint.parts_of`), with a header: `kind` (one of `KINDS`), `depth`, `shortcut`, `dataset`,
`num_classes`, `mean` and `std` of the images' normalisation; for a policy the `alpha` and `cost` that it was
trained for; the `command` that made it, and `after`, the networks that this command started from. Files of
other projects and of earlier versions lack some of these; they are inferred from the tensors where possible.

A tuned chain has no tensors: its file is only a header, see `chain_file`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from skipnet_rl.chain import Chain, ChainMDP
from skipnet_rl.chain_file import open_chain
from skipnet_rl.checkpoint import fill
from skipnet_rl.device import cpu_by_default
from skipnet_rl.errors import WeightsError, unknown_name
from skipnet_rl.gates import GATES, FeedForwardGate, RecurrentGate, make_gate
from skipnet_rl.halting import HaltingGate
from skipnet_rl.mdp import ALPHA, RoutingMDP
from skipnet_rl.models import ModelName
from skipnet_rl.network import Network
from skipnet_rl.policies import AlwaysExecute, FixedRoute, Policy
from skipnet_rl.policy_networks import ObservationPolicy, PolicyNetwork
from skipnet_rl.stored import POLICY, Header, Stored, Weights, check_header, read_weights
from skipnet_rl.stored_networks import Expected, network_of, untrained

FIXED = "fixed"  # kind: one route for all images
ACT = "act"  # kind: halting scores
StoredPolicy = RecurrentGate | FeedForwardGate | HaltingGate | FixedRoute


class Opened(NamedTuple):
    """A network that was opened.

    Attributes:
        network: in evaluation mode, on the CPU, in channels-last memory; a `Chain` for the kind `"chain"`.
        policy: what chooses its blocks; `AlwaysExecute` for a plain network.
        header: the file's header (see the module), with what its tensors show.
    """

    network: Any
    policy: Policy
    header: Header

    def mdp(self, alpha: float | None = None, cost: str | None = None) -> Any:
        """The decision process over the network (default: with the alpha and cost it was trained for)."""
        alpha = self.header.get("alpha", ALPHA) if alpha is None else alpha
        if isinstance(self.network, Chain):
            return ChainMDP(self.network, alpha, cost or self.header.get("cost", "flops"))
        return RoutingMDP(self.network, alpha, cost or self.header.get("cost", "blocks"))

    def on(self, device: torch.device) -> Opened:
        """Move network and policy to a device."""
        for part in (self.network, self.policy):
            if isinstance(part, nn.Module):
                part.to(device)
        return self


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
    """Open a network of any origin.

    Args:
        weights: the name of a shipped network; a file of this project; a file of `torch.save` (`.th`, `.pt`,
            `.pth`) with layer names that `foreign` knows; `"torchvision"` for torchvision's ImageNet weights;
            or a state_dict.
        depth, shortcut: expected depth and shortcut (default: the file's). `"torchvision"` needs the depth;
            shortcuts without weights are `"pad"` unless the header or this argument says `"pool"`.
        num_classes: expected K (default: the file's).
        new_classifier: replace a classifier for another number of classes by an untrained one, with a
            warning.
        network: network for a policy that was stored without one (default: the one its header names).
        model: expected model of torchvision or timm (default: the file's).
        seed: seed of an untrained classifier; None draws from PyTorch's global generator and advances it.

    Raises:
        WeightsError: no network of that name (the nearest shipped name is suggested); a file that is
            missing or damaged, or does not fit what is expected.
    """
    stored = read_weights(weights, depth)
    kind = stored.header["kind"]
    if kind not in KINDS:
        raise WeightsError(f"{stored.source} cannot be opened: {unknown_name('kind', kind, KINDS)}")
    with torch.inference_mode(False), torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)  # only the CPU's: fork_rng restores no other here
        expected = Expected(depth, shortcut, num_classes, new_classifier, network, model, seed)
        return KINDS[kind](stored, expected)


def _open_plain(stored: Stored, expected: Expected) -> Opened:
    return _opened(stored, network_of(stored, stored.tensors, expected), AlwaysExecute())


def _open_gated(stored: Stored, expected: Expected) -> Opened:
    gate, rest = _apart(stored.tensors, "gate.")
    net = network_of(stored, rest, expected)
    policy = new_policy(stored.header["kind"], net)
    fill(policy, gate, stored.source)
    return _opened(stored, net, policy)


def _open_blockdrop(stored: Stored, expected: Expected) -> Opened:
    own, rest = _apart(stored.tensors, POLICY)
    net = network_of(stored, rest, expected)
    check_header(stored.header, ("policy_depth",), stored.source)
    policy = PolicyNetwork(len(net.blocks) - 1, stored.header["policy_depth"], net.image_size)
    fill(policy, own, stored.source)
    return _opened(stored, net, policy)


def _open_sb3(stored: Stored, expected: Expected) -> Opened:
    network = stored.header.get("network") if expected.network is None else expected.network
    if network is None:
        raise WeightsError(f"{stored.source} holds a policy without a network; name one to play it on")
    if network == "none":  # an untrained one
        wanted = expected.over(stored.header)
        named = expected.model or ModelName.of(stored.header)
        needed = ("num_classes",) if named else ("num_classes", "depth", "shortcut")
        check_header(wanted, needed, stored.source)
        classes = wanted["num_classes"]
        net = named.build(classes) if named else untrained(wanted["depth"], classes, wanted["shortcut"])
    else:
        net = open_weights(network, **expected._replace(network=None)._asdict()).network
    return _opened(stored, net, ObservationPolicy.of_sb3(stored.tensors, len(net.blocks) - 1))


def _open_chain(stored: Stored, expected: Expected) -> Opened:
    if expected.depth is not None:
        raise WeightsError(f"{stored.source} is a chain of networks; expected one ResNet-{expected.depth}")
    wanted = expected.over(stored.header)

    def member(network: str | int) -> Opened:
        """Open a network of the chain by name, or build an untrained one by depth."""
        if isinstance(network, int):
            check_header(wanted, ("num_classes",), stored.source)
            net = untrained(network, wanted["num_classes"], wanted.get("shortcut"))
            return Opened(net, AlwaysExecute(), {})
        return open_weights(network, num_classes=wanted.get("num_classes"), seed=expected.seed)

    return Opened(*open_chain(stored, member))


KINDS: dict[str, Callable[[Stored, Expected], Opened]] = {
    "plain": _open_plain,
    **dict.fromkeys((*GATES, ACT, FIXED), _open_gated),
    "blockdrop": _open_blockdrop,
    "sb3": _open_sb3,
    "chain": _open_chain,
}


def new_policy(kind: str, net: Network, gain: float = 1.0) -> StoredPolicy:
    """Make a new gate; for `"act"` halting scores, for `"fixed"` the route that executes every block.

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
    """Split tensors into those under a prefix, without it, and the others."""
    own = {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
    return own, {name: value for name, value in tensors.items() if not name.startswith(prefix)}
