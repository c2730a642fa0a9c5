"""Speed of a training step of hybrid REINFORCE, relative to the same step as published code takes it.

    python -m benchmarks.training
    python -m benchmarks.training --device cuda

SkipResNet110-v0 with the recurrent gate, 128 episodes per step, p(execute) held at 1/2 and at 1. As
published: float32, one route per image, every block computed for every image and masked, gradients through
all blocks. Here: a block computes only the images that execute it, in bf16 where the hardware has it, with
the default settings (four routes per image, leave-one-out baseline), and once more in float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from agents.common.cli import main_with_named_errors
from agents.hybrid_reinforce import Args, Learner, hrl_loss, train_step
from benchmarks import measure
from skipnet_rl.data import Images, load_images
from skipnet_rl.data.imageset import step_batch
from skipnet_rl.device import resolve_precision
from skipnet_rl.mdp import RoutingMDP, State
from skipnet_rl.problem import load_network
from skipnet_rl.randomness import Stream, step_generator
from skipnet_rl.rollout import rollout

DATASET = "rendered-digits"
RATES = {"half": 0.5, "all": 1.0}
LABELS = {
    "published": "as published, half executed",
    "half": "here, half executed",
    "all": "here, all executed",
}


@dataclass(frozen=True)
class Options(measure.Timed, measure.Paged):
    """Time training steps."""

    depth: int = 110
    """depth of the network"""
    batch_size: int = 128
    """episodes per step"""
    precision: str = "auto"
    """precision of this project's steps: bf16, fp32, or auto"""


class Masked(RoutingMDP):
    """Dynamics that compute each block for every image and mask it by the action."""

    def transition(self, state: State, action: torch.Tensor, inplace: bool = False) -> State:
        """Compute both paths for every image and mix them."""
        return super().transition(state, action.float())


def learner(depth: int, args: Args, rate: float, device: torch.device) -> Learner:
    """Return a learner whose gate executes with probability `rate` at every decision."""
    net = load_network("auto", depth, 10, DATASET).to(device)
    made = Learner(args, RoutingMDP(net, args.alpha, args.cost), resolve_precision(args.precision, device))
    nn.init.zeros_(made.gate.head.weight)
    nn.init.constant_(made.gate.head.bias, torch.logit(torch.tensor(rate, device="cpu"), eps=1e-7).item())
    return made


def candidates(options: Options, device: torch.device) -> dict[str, Callable[[], Any]]:
    """Return the candidates: calls that take one training step."""
    data = load_images(DATASET, "train").to(device)
    ours = Args(batch_size=options.batch_size, lr=0.0, gate_lr=0.0, precision=options.precision)  # type: ignore[arg-type]
    found: dict[str, Callable[[], Any]] = {}
    for name, rate in RATES.items():
        for precision in sorted({resolve_precision(options.precision, device), "fp32"}):
            args = dataclasses.replace(ours, precision=precision)  # type: ignore[arg-type]
            made = learner(options.depth, args, rate, device)
            found[f"{name}, {precision}"] = partial(train_step, made, data, 0, "hrl", args)
    args = dataclasses.replace(ours, precision="fp32", routes=1, baseline="none")
    made = learner(options.depth, args, 0.5, device)
    masked = Masked(made.mdp.net.to(memory_format=torch.contiguous_format), args.alpha)
    found["published, fp32"] = lambda: published_step(made, masked, data, args)
    return found


def published_step(made: Learner, mdp: RoutingMDP, data: Images, args: Args) -> None:
    """Take one training step as published: every block is computed."""
    images, labels = step_batch(data, 0, args.batch_size, args.seed)
    mdp.net.train()
    draws = step_generator(args.seed, 0, data.device, Stream.ROUTES)
    episode = rollout(mdp, made.gate, images.contiguous(), labels, "sample", draws)
    made.descend(hrl_loss(episode, args), {"net": args.lr, "gate": args.gate_lr})


def table(found: Mapping[str, Any]) -> str:
    """Return the result as a Markdown table."""
    timings, published = found["timings"], "published, fp32"
    labels = {name: name.replace(name.split(",")[0], LABELS[name.split(",")[0]]) for name in timings}
    head = "ResNet-{depth}, {batch_size} episodes, {device}".format(**found)
    columns = (head, "ms per step (quartiles)", "episodes per second", "speed-up")
    text = measure.speeds(columns, labels, timings, found["batch_size"], published)
    reference, best = timings[published]["median"], found["precision"]
    half, every = (reference / timings[f"{name}, {best}"]["median"] for name in RATES)
    aims = f"≥ 2.5 at half executed: {half:.2f}; ≥ 1 at all executed: {every:.2f}"
    return f"{text}\nAims and results: {aims}.\n"


def main(options: Options) -> dict[str, Any]:
    """Measure, print and write the result."""
    about = {"depth": options.depth, "batch_size": options.batch_size}
    return measure.compare("training", options, candidates, table, measure.STEPS, **about)


if __name__ == "__main__":
    main_with_named_errors(Options, main)
