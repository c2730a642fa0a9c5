"""Speed of the environment SkipResNet110-v0 relative to its network.

    python -m benchmarks.throughput
    python -m benchmarks.throughput --device cuda --num-envs 4096

a  plain     the network's forward pass on the same batch, same precision, batch norms folded: the limit
b  all       one episode of the vector environment, every block executed
c  half      the same, each block executed with probability 1/2
d  singles   gymnasium's SyncVectorEnv of single environments, every block executed
e  masked    the actions of c as in published code: every block computed for every image, then masked;
             in float32 with batch norms, and once more in the precision of a with batch norms folded
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

import envs  # noqa: F401  (registers the ids)
from agents.common.cli import main_with_named_errors
from benchmarks import measure
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.problem import load_network

DATASET = "rendered-digits"
LABELS = {
    "plain": "a: plain network",
    "all": "b: environment, all executed",
    "half": "c: environment, half executed",
    "half, NumPy": "c with NumPy arrays",
    "singles": "d: SyncVectorEnv of single environments, all executed",
    "masked": "e: every block computed and masked, float32",
    "masked, folded": "e in a's precision, folded",
}
AIMS = (
    ("b ≥ 0.9 a", "plain", "all"),
    ("c ≥ 1.75 b", "all", "half"),
    ("b ≥ 10 d", "singles", "all"),
    ("c ≥ 3 e", "masked", "half"),
)


@dataclass(frozen=True)
class Options(measure.Timed, measure.Paged):
    """Time episodes of a batch."""

    depth: int = 110
    """depth of the network"""
    num_envs: int = 128
    """number of sub-environments"""
    precision: str = "auto"
    """precision of the environment: bf16, fp32, or auto"""


def make(options: Options, device: torch.device | str, **kwargs: Any) -> Any:
    """Return a vector environment at the start of its first episode."""
    shared: dict[str, Any] = {"dataset": DATASET, "split": "test", "precision": options.precision, **kwargs}
    env = gym.make_vec(f"SkipResNet{options.depth}-v0", options.num_envs, device=str(device), **shared)
    env.reset(seed=0)
    return env.unwrapped


def episode(env: gym.vector.VectorEnv, actions: Any) -> None:
    """Take N steps; the last one starts the next episode."""
    for action in actions:
        env.step(action)


def published(depth: int, num_classes: int, device: torch.device | str) -> RoutingMDP:
    """Return the dynamics of `masked` as in published code: float32, with batch norms, channels first."""
    mdp = RoutingMDP(load_network("auto", depth, num_classes, DATASET).to(device))
    mdp.net.to(memory_format=torch.contiguous_format)
    return mdp


@torch.no_grad()
def masked(mdp: RoutingMDP, images: Tensor, labels: Tensor, actions: Tensor) -> Tensor:
    """Play an episode with every block computed for every image, then masked; return the logits [B, K]."""
    state = mdp.initial(images, labels)
    for action in actions:
        state = mdp.transition(state, action)
    return mdp.logits(state)


def candidates(options: Options, device: torch.device) -> dict[str, Callable[[], Any]]:
    """Return the candidates: calls that play one episode in every sub-environment."""
    on_device, on_host = make(options, device, array="torch"), make(options, device)
    lockstep = on_device.lockstep
    mdp, data = lockstep.mdp, lockstep.images
    net, count, steps = mdp.net, options.num_envs, mdp.num_decisions
    images, labels = data.batch(torch.arange(count, device=device) % len(data))
    draws = torch.rand(steps, count, generator=torch.Generator("cpu").manual_seed(0), device="cpu") < 0.5
    half, every = draws.to(device), torch.ones(steps, count, dtype=torch.bool, device=device)
    actions = draws.numpy().astype("int64")
    plain = published(options.depth, net.num_classes, device)

    @torch.no_grad()
    def forward() -> None:
        net(images)

    found: dict[str, Callable[[], Any]] = {
        "plain": forward,
        "all": lambda: episode(on_device, every),
        "half": lambda: episode(on_device, half),
        "half, NumPy": lambda: episode(on_host, actions),
        "masked": lambda: masked(plain, images, labels, half.float()),
        "masked, folded": lambda: masked(mdp, images, labels, half.float()),
    }
    if device.type == "cpu":  # on a GPU it would only time the launches of kernels
        singles = make(options, "cpu", vectorization_mode="sync")
        ones = np.ones_like(actions)
        found["singles"] = lambda: episode(singles, ones)
    return found


def table(found: Mapping[str, Any]) -> str:
    """Return the result as a Markdown table."""
    timings, steps = found["timings"], found["num_envs"] * found["decisions"]
    head = ("SkipResNet{depth}-v0, {num_envs} sub-environments, {precision}, {device}").format(**found)
    columns = (head, "ms per episode (quartiles)", "steps per second", "speed of a")
    text = measure.speeds(columns, LABELS, timings, steps, "plain")
    reached = [
        f"{name}: {timings[slow]['median'] / timings[fast]['median']:.2f}"
        for name, slow, fast in AIMS
        if slow in timings
    ]
    return f"{text}\nAims and results: {'; '.join(reached)}.\n"


def main(options: Options) -> dict[str, Any]:
    """Measure, print and write the result."""
    decisions = (options.depth - 2) // 2 - 1
    about: dict[str, Any] = {"depth": options.depth, "num_envs": options.num_envs, "decisions": decisions}
    return measure.compare("throughput", options, candidates, table, **about)


if __name__ == "__main__":
    main_with_named_errors(Options, main)
