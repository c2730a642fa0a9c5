"""Chains for the agents: the networks are not trained, so each answers every image once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from skipnet_rl.belief import BeliefGate
from skipnet_rl.chain import Chain, ChainMDP, check_mix
from skipnet_rl.chain_problem import ChainProblem
from skipnet_rl.checkpoint import load_weights, read_tensors
from skipnet_rl.data import Images
from skipnet_rl.policies import Policy
from skipnet_rl.policy_networks import ObservationPolicy
from skipnet_rl.progress import image_progress
from skipnet_rl.recording import Records, record
from skipnet_rl.stored import read_header


def recorded(chain: Chain, images: Images, precision: str) -> Records:
    """A chain's answers to a split, computed with a bar."""
    with image_progress(f"chain on {images.split} images") as show:
        return record(chain, images, precision=precision, progress=show)


def look_at_chain(chain: Chain, images: Images) -> list[str]:
    """A line for each network of a chain: its accuracy on recorded images, and its cost."""
    mdp = ChainMDP(chain)
    records, labels = images.batch(torch.arange(len(images), device=images.device))
    lines = []
    for number, name in enumerate(chain.names):
        answer = mdp.member(number)(records)
        right = (answer.log_probs.argmax(dim=1) == labels).double().mean().item()
        share = answer.macs.mean().item() / mdp.whole_macs
        lines.append(
            f"network {number + 1}: {name}, {100 * right:.2f} % of {len(images)} {images.split} images at "
            f"{100 * share:.1f} % of the FLOPs"
        )
    return lines


def chain_header(problem: ChainProblem, policy: str) -> dict[str, Any]:
    """The header of a policy over a chain; `policy` is the kind of the policy."""
    return {
        "kind": "chain",
        "policy": policy,
        "networks": list(problem.networks),
        "mix": check_mix(problem.mix, len(problem.networks) - 1).tolist(),
        "temperature": problem.temperature,
        "weights": problem.weights,
    }


def restore_chain(file: Path) -> tuple[ChainMDP, Policy]:
    """Decision process and policy of a file that an agent left of a chain, in evaluation mode on the CPU.

    Raises:
        WeightsError: the file, or one of the chain's networks, is missing or does not fit.
        KeyError: a header that does not say which chain it is for.
    """
    about = read_header(file)
    chain = ("networks", "mix", "temperature", "weights", "dataset", "alpha", "cost")
    problem = ChainProblem(**{name: about[name] for name in chain}, device="cpu").resolve()
    mdp = problem.mdp(problem.network(about["num_classes"]))
    if about["policy"] != "belief":
        return mdp, ObservationPolicy.of_sb3(read_tensors(file), mdp.num_decisions).eval()
    gate = BeliefGate(mdp)
    load_weights(file, gate, prefix="gate.")
    return mdp, gate.eval()
