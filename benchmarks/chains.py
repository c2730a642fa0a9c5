"""Latency of chains and of plain networks: milliseconds per image in onnxruntime.

    python -m benchmarks.chains --data-dir data

Each test image goes through every candidate before the next image does, so that other work on the machine
affects all of them; read the times as ratios to the plain ResNet-110. On a busy machine longer models are
interrupted more often, and only CPU times are comparable. A chain is one model, with an `If` for each network
but the first and thresholds that were chosen on validation images.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agents.common.cli import main_with_named_errors
from agents.common.tables import markdown
from benchmarks import measure
from skipnet_rl import catalogue
from skipnet_rl.data import Images, load_images
from skipnet_rl.onnx import export_onnx, export_plain, onnx_session
from skipnet_rl.policies import AlwaysExecute
from skipnet_rl.progress import progress_bar
from skipnet_rl.weights import open_weights

REFERENCE = "resnet110-cifar10"
NETWORKS = (
    REFERENCE,
    "resnet38-cifar10-distilled",
    "resnet14-cifar10-distilled",
    "chain14x38x110-cifar10",
    "chain38gx38x110-cifar10",
    "chain38gx38-cifar10",
)
THREADS = (1, 2)
WARM_UP = 20  # images that go through every model an extra time, at the start
AIM = 0.40  # of the CPU time of the reference, at no lower accuracy


@dataclass(frozen=True)
class Options(measure.Paged):
    """Time chains on single images."""

    device: str = "cpu"
    """cpu"""
    data_dir: Path | None = None
    """folder of CIFAR-10 (default: $SKIPNET_DATA, else ./data)"""
    images: int = 1000
    """number of test images"""
    repeats: int = 2
    """turns of each image in each model; the fastest counts, since other work only adds time"""


def export(name: str, path: Path) -> None:
    """Write a shipped network or chain as an ONNX model for one image."""
    opened = open_weights(name)
    if isinstance(opened.policy, AlwaysExecute):
        export_plain(opened.mdp(), path)
    else:
        export_onnx(opened.mdp(), opened.policy, path)


def turns(
    models: Mapping[str, Path], threads: int, images: Images, repeats: int
) -> dict[str, dict[str, float]]:
    """Return seconds per image of each model (mean, median, 95th percentile, mean CPU time) and its accuracy.

    Args:
        models: paths by name.
        threads: CPU threads of onnxruntime.
        images: test images; each goes through every model before the next one does.
        repeats: turns of each image; the fastest counts.
    """
    sessions = {name: onnx_session(path, threads) for name, path in models.items()}
    pixels, labels = images.batch(images.labels.new_tensor(range(len(images))))
    feeds, order = pixels.contiguous().numpy(), range(len(images))
    seconds = {name: np.full(len(images), np.inf) for name in models}
    cpu = {name: np.full(len(images), np.inf) for name in models}
    right = {name: np.zeros(len(images), dtype=bool) for name in models}
    for number in progress_bar(
        [*order[:WARM_UP], *[*order] * repeats], desc=f"{threads} threads", unit="image"
    ):
        for name, session in sessions.items():
            begun, spent = time.perf_counter(), time.process_time()
            logits, *_ = session.run(None, {"images": feeds[number : number + 1]})
            taken, spent = time.perf_counter() - begun, time.process_time() - spent
            seconds[name][number] = min(taken, seconds[name][number])
            cpu[name][number] = min(spent, cpu[name][number])
            right[name][number] = logits.argmax() == labels[number]
    return {
        name: {
            "mean": float(found.mean()),
            "median": float(np.median(found)),
            "p95": float(np.percentile(found, 95)),
            "cpu": float(cpu[name].mean()),
            "right": float(right[name].mean()),
        }
        for name, found in seconds.items()
    }


def table(found: Mapping[str, Any]) -> str:
    """Return the result in Markdown: one table per number of threads."""
    columns = ["accuracy", "mean, ms", "median", "95th percentile", "of ResNet-110", "in CPU time"]
    tables = []
    for threads, timings in found["threads"].items():
        rows = []
        for name, accuracy in found["accuracy"].items():
            mean, middle, high = (1e3 * timings[name][key] for key in ("mean", "median", "p95"))
            shares = [timings[name][key] / timings[REFERENCE][key] for key in ("mean", "cpu")]
            cells = [f"{each:.2f}" for each in (mean, middle, high, *shares)]
            rows.append([name, f"{100 * accuracy:.2f} %", *cells])
        head = f"one image, {threads} CPU thread{'s' * (threads != '1')}"
        tables.append(markdown([head, *columns], rows, numbers=True))
    return "\n".join([*tables, f"{_reached(found)}\n"])


def _reached(found: Mapping[str, Any]) -> str:
    """State the aim and the fastest chain that is at least as accurate as the reference."""
    accuracy, (timings, *_) = found["accuracy"], found["threads"].values()
    able = [name for name in accuracy if name.startswith("chain") and accuracy[name] >= accuracy[REFERENCE]]
    name = min(able, key=lambda name: timings[name]["cpu"])
    share = timings[name]["cpu"] / timings[REFERENCE]["cpu"]
    return (
        f"Aim: at most {AIM:.2f} of ResNet-110's CPU time at no lower accuracy, one thread. "
        f"Reached: {share:.2f} ({name}). Load average at the end: {found['load']:.1f}."
    )


def main(options: Options) -> dict[str, Any]:
    """Measure, print and write the result."""
    if options.start().type != "cpu":
        raise SystemExit("error: single images are timed on the CPU; leave --device out")
    options.check_page("chains")
    images = load_images("cifar10", "test", options.data_dir).first(options.images)
    entries = {entry["name"]: entry for entry in catalogue.index()}
    with tempfile.TemporaryDirectory() as folder:
        models = {name: Path(folder) / f"{name}.onnx" for name in NETWORKS}
        for name, path in progress_bar(models.items(), desc="export", unit="model"):
            export(name, path)
        timings = {str(threads): turns(models, threads, images, options.repeats) for threads in THREADS}
    found = {
        "images": len(images),
        "repeats": options.repeats,
        "accuracy": {name: entries[name]["test_accuracy"] for name in NETWORKS},
        "threads": timings,
        "load": os.getloadavg()[0],
    }
    measure.publish("chains", found, table(found), options)
    return found


if __name__ == "__main__":
    main_with_named_errors(Options, main)
