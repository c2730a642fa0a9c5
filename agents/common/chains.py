"""Chains for the agents: records of frozen networks, gates on beliefs, headers of weights files."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from skipnet_rl.belief import BeliefGate
from skipnet_rl.chain import Chain, ChainMDP, check_mix
from skipnet_rl.chain_problem import ChainProblem
from skipnet_rl.data import Images
from skipnet_rl.data.imageset import training_index
from skipnet_rl.gates import make_gate
from skipnet_rl.modules import evaluation_mode
from skipnet_rl.process import DecisionProcess
from skipnet_rl.progress import image_progress
from skipnet_rl.randomness import Stream, step_generator
from skipnet_rl.recording import Records, answers, record, replayed
from skipnet_rl.resnet import SHORTCUT
from skipnet_rl.rollout import Trajectory, rollout


def recorded(chain: Chain, images: Images, precision: str) -> Records:
    """Record a chain's answers to a split, with a progress bar."""
    with image_progress(f"chain on {images.split} images") as show:
        return record(chain, images, precision=precision, progress=show)


def look_at_chain(chain: Chain, images: Images) -> list[str]:
    """Describe each network of a chain in a line: its accuracy on recorded images, and its cost."""
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


def held_out_episodes(learner: Any, step: int, args: Any) -> Trajectory | None:
    """Sample episodes of images that a chain's networks do not train on, with gradients to the gate alone.

    The networks are nearly always right about their training images, so a gate that learned there would learn
    too little about what another answer is worth.

    Args:
        learner: has `mdp`, the gate among its `policies`, and the images `held_out`.
        step: number of the training step.
        args: has `batch_size` (episodes), `routes` (episodes of an image, side by side) and `seed`.

    Returns:
        The episodes; None if there are no such images, as within one network.
    """
    data, chain = learner.held_out, learner.mdp.net
    if data is None:
        return None
    count, seed, device = args.batch_size // args.routes, args.seed, data.device
    index = training_index(step, count, len(data), seed, Stream.HELD_OUT_ORDER)
    images, labels = data.training_batch(
        index, step_generator(seed, step, device, Stream.HELD_OUT_AUGMENTATION)
    )
    with evaluation_mode(chain):  # so that the images leave no trace in its batch norms
        records = answers(chain, images).repeat_interleave(args.routes, 0)
    replay = copy.copy(learner.mdp)
    replay.net = replayed(chain)
    policy, mode = learner.policies["hrl"]
    draws = step_generator(seed, step, device, Stream.HELD_OUT_ROUTES)
    return rollout(replay, policy, records, labels.repeat_interleave(args.routes), mode, draws)


def new_gate(kind: str, mdp: DecisionProcess, gain: float = 1.0) -> tuple[str, nn.Module]:
    """Make a new gate, see `make_gate`, on a chain always a `BeliefGate`; returns its kind and the gate."""
    if isinstance(mdp, ChainMDP):
        return "belief", BeliefGate(mdp)
    return kind, make_gate(kind, mdp.net, gain)


def chain_header(problem: ChainProblem, policy: str) -> dict[str, Any]:
    """Return what a weights file says of a policy over a chain; `policy` is the kind of the policy."""
    return {
        "kind": "chain",
        "shortcut": problem.shortcut or SHORTCUT,
        "policy": policy,
        "networks": list(problem.networks),
        "mix": check_mix(problem.mix, len(problem.networks) - 1).tolist(),
        "temperature": problem.temperature,
    }
