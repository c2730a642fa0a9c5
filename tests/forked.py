"""Run a test in a forked process, which may be killed or limited, and read what a run leaves."""

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import numpy as np


def forked(target: Callable, *args: object) -> int | None:
    """Exit code of a call in a forked process; minus the signal if it was killed."""
    process = multiprocessing.get_context("fork").Process(target=target, args=args)
    process.start()
    process.join(300)
    return process.exitcode


def outcome(folder: Path) -> dict:
    """All that must not depend on interruptions."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["train/images_per_s"]
    with np.load(folder / "routes.npz") as stored:
        routes = {name: stored[name].tobytes() for name in stored.files}
    weights = {name: (folder / name).read_bytes() for name in ("sp.safetensors", "hrl.safetensors")}
    policies = json.loads((folder / "result.json").read_text())["policies"]
    return {"metrics": lines, "routes": routes, "policies": policies, **weights}
