"""The environment's speed against the network's own, SkipResNet110-v0.

    python -m benchmarks.throughput
    python -m benchmarks.throughput --device cuda --num-envs 4096

a  plain     the network's forward pass on the same batch, in the same precision and folding: the limit
b  all       one episode of the vector environment, every block executed
c  half      the same, each block executed with probability 1/2
d  singles   gymnasium's SyncVectorEnv of single environments, every block executed
e  masked    what published code does with c's actions: every block computed for every image, then masked;
             in float32 with its batch norms, and once more in a's precision and folding
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import Tensor

from benchmarks import measure
from envs.vector import SkipNetVectorEnv
from skipnet_rl.device import resolve_precision
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
    ("b ≥ 0.9 a", "plain", "all", 0.9), ("c ≥ 1.75 b", "all", "half", 1.75),
    ("b ≥ 10 d", "singles", "all", 10.0), ("c ≥ 3 e", "masked", "half", 3.0),
)  # fmt: skip


@dataclass(frozen=True)
class Options(measure.Options):
    """Time episodes of a batch."""

    depth: int = 110
    """of the network"""
    num_envs: int = 128
    """sub-environments"""
    precision: str = "auto"
    """of the environment: bf16, fp32, or auto"""


def make(options: Options, device: torch.device, **kwargs: Any) -> SkipNetVectorEnv:
    """The native vector environment."""
    env = gym.make_vec(
        f"SkipResNet{options.depth}-v0", options.num_envs, dataset=DATASET, split="test", device=str(device),
        precision=options.precision, **kwargs,
    )  # fmt: skip
    env.reset(seed=0)
    return env.unwrapped  # type: ignore[return-value]


def episode(env: gym.vector.VectorEnv, actions: Any) -> None:
    """N steps; the last one starts the next episode."""
    for action in actions:
        env.step(action)


@torch.no_grad()
def masked(mdp: RoutingMDP, images: Tensor, labels: Tensor, actions: Tensor) -> None:
    """Every block for every image."""
    state = mdp.initial(images, labels)
    for action in actions:
        state = mdp.transition(state, action)
    mdp.logits(state)


def candidates(options: Options, device: torch.device) -> dict[str, Callable[[], Any]]:
    """What takes turns."""
    on_device, on_host = make(options, device, array="torch"), make(options, device)
    mdp, data = on_device.lockstep.mdp, on_device.lockstep.images
    net, count, steps = mdp.net, options.num_envs, mdp.num_decisions
    images, labels = data.batch(torch.arange(count, device=device) % len(data))
    draws = torch.rand(steps, count, generator=torch.Generator("cpu").manual_seed(0), device="cpu") < 0.5
    half, every = draws.to(device), torch.ones(steps, count, dtype=torch.bool, device=device)
    actions = draws.numpy().astype("int64")
    published = RoutingMDP(load_network("auto", options.depth, net.num_classes, DATASET).to(device))
    published.net.to(memory_format=torch.contiguous_format)

    @torch.no_grad()
    def forward() -> None:
        net(images)

    found: dict[str, Callable[[], Any]] = {
        "plain": forward,
        "all": lambda: episode(on_device, every),
        "half": lambda: episode(on_device, half),
        "half, NumPy": lambda: episode(on_host, actions),
        "masked": lambda: masked(published, images, labels, half.float()),
        "masked, folded": lambda: masked(mdp, images, labels, half.float()),
    }
    if device.type == "cpu":  # on a GPU a step of one image costs a launch per layer, whatever the GPU
        singles = gym.make_vec(
            f"SkipResNet{options.depth}-v0", count, vectorization_mode="sync", dataset=DATASET, split="test",
            precision=options.precision, device="cpu",
        )  # fmt: skip
        singles.reset(seed=0)
        ones = np.ones_like(actions)
        found["singles"] = lambda: episode(singles, ones)
    return found


def table(found: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    timings, steps = found["timings"], found["num_envs"] * found["decisions"]
    reference = timings["plain"]["median"]
    rows = [
        [label, measure.milliseconds(timings[name]), f"{steps / timings[name]['median']:,.0f}",
         f"{reference / timings[name]['median']:.2f}"]
        for name, label in LABELS.items() if name in timings
    ]  # fmt: skip
    head = ("SkipResNet{depth}-v0, {num_envs} sub-environments, {precision}, {device}").format(**found)
    text = measure.markdown([head, "ms per episode (quartiles)", "steps per second", "speed of a"], rows)
    reached = [
        f"{name}: {timings[slow]['median'] / timings[fast]['median']:.2f}"
        for name, slow, fast, _ in AIMS if slow in timings
    ]  # fmt: skip
    return f"{text}\nAim and reached: {'; '.join(reached)}.\n"


def main(options: Options) -> dict[str, Any]:
    """Measure and publish."""
    device = options.start()
    timings = measure.take_turns(candidates(options, device), options.repeats, device)
    found = {
        "depth": options.depth, "num_envs": options.num_envs, "device": device.type,
        "precision": resolve_precision(options.precision, device), "repeats": options.repeats,
        "decisions": (options.depth - 2) // 2 - 1, "timings": measure.plain(timings),
    }  # fmt: skip
    measure.publish(f"throughput-{device.type}", found, table(found), options)
    return found


if __name__ == "__main__":
    main(tyro.cli(Options))
