"""Latency of a network with gates on one image, in PyTorch and in onnxruntime.

    python -m benchmarks.latency

ResNet-110 with the shipped recurrent gate, batch 1, CPU. A bias on the gate's log-odds is chosen so that the
timed image executes the stated share of its 53 blocks. It is compared, in the same runtime, with the plain
network and with shallower plain ResNets.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from agents.common.cli import main_with_named_errors
from agents.common.tables import markdown
from benchmarks import measure
from skipnet_rl.data import load_images
from skipnet_rl.folding import for_inference
from skipnet_rl.gates import RecurrentGate
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.onnx import export_onnx, export_plain, onnx_session
from skipnet_rl.resnet import ResNet
from skipnet_rl.rollout import rollout
from skipnet_rl.terminal import say
from skipnet_rl.weights import open_weights

CHECKPOINT = "resnet110-rendered-digits-hrl"
RATES = (1.0, 0.75, 0.5, 0.25)
SHALLOWER = (20, 32, 44, 56, 74)
RUNTIMES = ("PyTorch", "onnxruntime")
AIMS = ((1.0, 1.15), (0.5, 0.65))


@dataclass(frozen=True)
class Options(measure.Timed, measure.Paged):
    """Time single images on the CPU."""

    device: str = "cpu"
    """cpu"""
    threads: int = 1
    """CPU threads of each runtime"""
    repeats: int = 60
    """turns of each candidate"""


def executed(mdp: RoutingMDP, gate: RecurrentGate, image: Tensor) -> int:
    """Return the number of blocks that the gate executes for an image."""
    with torch.no_grad():
        return int(rollout(mdp, gate, image, torch.zeros(1, dtype=torch.int64, device="cpu")).actions.sum())


def at_rate(mdp: RoutingMDP, gate: RecurrentGate, image: Tensor, rate: float) -> RecurrentGate:
    """Return the gate with the bias that brings it closest to executing this share of the blocks."""
    wanted, found = round(rate * mdp.num_decisions), {}
    low, high = -60.0, 60.0
    for _ in range(16):
        biased, middle = copy.deepcopy(gate), (low + high) / 2
        torch.nn.init.constant_(biased.head.bias, gate.head.bias.item() + middle)
        count = executed(mdp, biased, image)
        found[abs(count - wanted)] = biased
        low, high = (middle, high) if count < wanted else (low, middle)
    return found[min(found)]


def candidates(folder: Path, threads: int) -> tuple[dict[str, Callable[[], Any]], dict[str, int]]:
    """Return the candidates, and the number of blocks that each gated one executes."""
    opened = open_weights(CHECKPOINT)
    mdp, gate = opened.mdp(), cast("RecurrentGate", opened.policy)
    image, label = load_images("rendered-digits", "test").first(1).batch(torch.arange(1, device="cpu"))
    gates = {rate: at_rate(mdp, gate, image, rate) for rate in RATES}
    counts = {f"{rate:.0%}": executed(mdp, biased, image) for rate, biased in gates.items()}
    folded, feed = RoutingMDP(for_inference(mdp.net)), {"images": image.contiguous().numpy()}
    shallower = {f"ResNet-{depth}": ResNet(depth).eval() for depth in SHALLOWER}
    runs: dict[str, Callable[[], Any]] = {}
    for name, net in {"plain": mdp.net, **shallower}.items():
        eager = for_inference(net)
        runs[f"PyTorch: {name}"] = partial(eager, image)
        export_plain(RoutingMDP(net), folder / "plain.onnx")
        session = onnx_session(folder / "plain.onnx", threads)
        runs[f"onnxruntime: {name}"] = partial(session.run, None, feed)
    for rate, biased in gates.items():
        say(f"exporting {rate:.0%}")
        runs[f"PyTorch: {rate:.0%}"] = partial(rollout, folded, biased, image, label)
        export_onnx(mdp, biased, folder / "gated.onnx")
        session = onnx_session(folder / "gated.onnx", threads)
        runs[f"onnxruntime: {rate:.0%}"] = partial(session.run, None, feed)
    return runs, counts


def table(found: Mapping[str, Any]) -> str:
    """Return the result as a Markdown table."""
    timings, counts = found["timings"], found["executed"]
    names = ["plain", *counts, *(f"ResNet-{depth}" for depth in SHALLOWER)]
    rows = []
    for name in names:
        label = f"gated, {counts[name]} of 53 executed" if name in counts else f"plain {name}"
        cells = ["plain ResNet-110" if name == "plain" else label]
        for runtime in RUNTIMES:
            timing, reference = timings[f"{runtime}: {name}"], timings[f"{runtime}: plain"]["median"]
            cells += [measure.milliseconds(timing), f"{timing['median'] / reference:.2f}"]
        rows.append(cells)
    head = [f"one image, {found['threads']} CPU thread{'s' * (found['threads'] > 1)}"]
    for runtime in RUNTIMES:
        head += [f"{runtime}, ms (quartiles)", "of plain"]
    reference = timings["onnxruntime: plain"]["median"]
    reached = [
        f"≤ {aim} at {rate:.0%} executed: {timings[f'onnxruntime: {rate:.0%}']['median'] / reference:.2f}"
        for rate, aim in AIMS
    ]
    text = f"Aims and results in onnxruntime, relative to plain: {'; '.join(reached)}."
    return f"{markdown(head, rows, numbers=True)}\n{text}\n"


def main(options: Options) -> dict[str, Any]:
    """Measure, print and write the result."""
    if options.start().type != "cpu":
        raise SystemExit("error: single images are timed on the CPU; leave --device out")
    options.check_page("latency")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        runs, counts = candidates(Path(folder), options.threads)
        timings = measure.take_turns(runs, options.repeats)
    found = {
        "checkpoint": CHECKPOINT,
        "threads": options.threads,
        "repeats": options.repeats,
        "executed": counts,
        "timings": measure.plain(timings),
    }
    measure.publish("latency", found, table(found), options)
    return found


if __name__ == "__main__":
    main_with_named_errors(Options, main)
