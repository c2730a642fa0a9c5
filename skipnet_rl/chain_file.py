"""Chains as files: a JSON object that names networks, and says how to mix their answers and when to ask.

It is a header like that of a weights file: `kind` ("chain"), `dataset`, `networks` (names of shipped
networks, or paths), `mix` (the weight of the answer so far, one for each decision), `thresholds` (as many)
and `by` (what they are compared with, see `belief.Threshold`).

What an agent learns on a chain is a safetensors file of the same kind. Instead of thresholds its header has
`policy` (the kind of the policy) and `temperature` (what logits are divided by; one number, or one for each
network), and its tensors are those of the policy, and of the networks if they were trained with it. Untrained
networks are depths among its `networks`, and `shortcut` is theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from skipnet_rl.belief import BeliefGate, Threshold
from skipnet_rl.chain import Chain, ChainMDP
from skipnet_rl.checkpoint import fill, write_json
from skipnet_rl.errors import WeightsError
from skipnet_rl.member import Member
from skipnet_rl.policies import Policy
from skipnet_rl.policy_networks import ObservationPolicy
from skipnet_rl.stored import CHAIN, Stored, check_header

NEEDED = ("networks", "mix")
BEYOND = 1e9  # in place of infinity, which JSON lacks; no answer is that sure


def save_chain(path: Path, row: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write a chain with the thresholds and weights that were tuned for a budget.

    Args:
        path: a name that ends in `.json`.
        row: `networks` (names or paths, in the order in which they are asked), `mix` and `thresholds`, and
            optionally `by` and `budget`.
        about: further entries of the header: `dataset`, `depth`, `command`, …

    Raises:
        ValueError: a path with another ending.
    """
    if path.suffix != CHAIN:
        raise ValueError(f"the file of a chain is {path}; expected a name that ends in {CHAIN}")
    own = {key: row[key] for key in ("networks", "mix", "thresholds", "by", "budget") if key in row}
    own["thresholds"] = [min(max(each, -BEYOND), BEYOND) for each in row["thresholds"]]
    write_json(path, {"kind": "chain", **about, **own})


def open_chain(
    stored: Stored, open_network: Callable[[str | int], Any]
) -> tuple[Chain, Policy, dict[str, Any]]:
    """Return the chain of a header, its policy, and the header completed from its networks.

    Args:
        stored: the content of the file.
        open_network: opens one of the networks by its name, or an untrained one by its depth; see
            `weights.open_weights`.

    Raises:
        WeightsError: an incomplete or inconsistent header, or a network that cannot be opened.
    """
    header, source = stored.header, stored.source
    check_header(header, (*NEEDED, "policy" if stored.tensors else "thresholds"), source)
    opened = [open_network(name) for name in header["networks"]]
    try:
        temperatures = header.get("temperature", 1.0)
        if not isinstance(temperatures, list):
            temperatures = [temperatures] * len(opened)
        members = [
            Member(each.network, each.policy, temperature=temperature)
            for each, temperature in zip(opened, temperatures, strict=True)
        ]
        chain = Chain(members, header["mix"])
        policy = _learned(stored, chain) if stored.tensors else _thresholds(stored, len(opened) - 1)
    except (ValueError, TypeError, AttributeError) as error:
        raise WeightsError(f"{source} is damaged: {error}") from error
    known = {key: opened[0].header[key] for key in ("mean", "std") if key in opened[0].header}
    known |= {"depth": chain.depth, "num_classes": chain.num_classes}
    return chain.eval(), policy.eval(), {**known, **header}


def _thresholds(stored: Stored, decisions: int) -> Threshold:
    """The policy of a tuned chain."""
    header = stored.header
    policy = Threshold(header["thresholds"], header.get("by", "margin"))
    if len(policy.thresholds) != decisions:
        raise ValueError(f"its header has {len(policy.thresholds)} thresholds for {decisions} decisions")
    return policy


def _learned(stored: Stored, chain: Chain) -> BeliefGate | ObservationPolicy:
    """The policy that an agent learned; networks that were trained with it get their weights."""
    mdp = ChainMDP(chain)
    if stored.header["policy"] != "belief":
        return ObservationPolicy.of_sb3(stored.tensors, mdp.num_decisions)
    gate = BeliefGate(mdp)
    parts: dict[str, nn.Module] = {"net": chain, "gate": gate}
    if not any(name.startswith("net.") for name in stored.tensors):  # the networks were not trained
        del parts["net"]
    fill(nn.ModuleDict(parts), stored.tensors, stored.source)
    return gate
