"""Every test and measurement that needs a GPU, in one command.

    python -m benchmarks.gpu --minutes 4 --out runs/gpu

Each part is one of the other benchmarks, in a separate process. A part that exceeds its share of the
remaining time is ended, and its results so far are kept; after an error the next part begins. The time counts
from the end of this module's imports. `gpu.json` always holds the results so far; `gpu.md` has the tables,
and the folder of each part its output. Without a GPU the same parts run at a small size on the CPU. The only
data set that is needed is the embedded rendered-digits.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from agents.common import tables
from agents.common.cli import main_with_named_errors
from benchmarks import gpu_table, measure
from benchmarks.gpu_table import Sizes
from skipnet_rl.checkpoint import write_json
from skipnet_rl.device import pick_device
from skipnet_rl.files import write_text
from skipnet_rl.runs import provenance
from skipnet_rl.terminal import say

PAGE, FILE = measure.DOCS / "gpu.md", measure.DOCS / "benchmarks" / "gpu-cuda.json"
ABOUT = ("schema", "command", "versions", "commit", "machine")  # fields that are the same for all parts
SIZES = {
    "cuda": Sizes(
        depth=110,
        envs=(128, 1_024, 4_096),
        batch=512,
        depths=(20, 38, 110, 152),
        batches=(128, 512, 2_048),
        large=101,
        large_batch=128,
        repeats=5,
    ),
    "cpu": Sizes(
        depth=14,
        envs=(8, 16, 32),
        batch=16,
        depths=(14, 20),
        batches=(16,),
        large=34,
        large_batch=1,
        repeats=2,
    ),
}


@dataclass(frozen=True)
class Options:
    """Measure everything that needs a GPU."""

    minutes: float = 4.0
    """time for all parts together, from the end of this command's imports"""
    device: str = "auto"
    """cpu, cuda, or auto"""
    only: tuple[str, ...] = ()
    """parts to run (default: all); cannot be combined with --write"""
    out: Path = Path("runs/gpu")
    """folder of the results"""
    write: bool = False
    """renew docs/gpu.md and write the JSON file to docs/benchmarks; needs a GPU"""
    debug: bool = False
    """traceback of an error"""


@dataclass(frozen=True)
class Part:
    """A benchmark with its flags, and its share of the time relative to other parts."""

    name: str
    share: float
    module: str
    flags: Mapping[str, Any] = field(default_factory=dict)

    def command(self, device: str) -> str:
        """Return the command line that runs this part alone."""
        words = [f"python -m {self.module} --device {device}"]
        for name, value in self.flags.items():
            values = value if isinstance(value, (tuple, list)) else (value,)
            words.append(f"--{name.replace('_', '-')} {' '.join(map(str, values))}")
        return " ".join(words)

    def main(self, device: str, folder: Path) -> None:
        """Run the part in this process, as a new process group, with its output in a file."""
        os.setsid()
        with (folder / "log.txt").open("wb") as log:
            for stream in (1, 2):
                os.dup2(log.fileno(), stream)
        try:
            module = importlib.import_module(self.module)
            module.main(module.Options(device=device, out=folder, **self.flags))
        except BaseException as error:
            traceback.print_exc()
            write_text(folder / "error.txt", f"{type(error).__name__}: {error}".splitlines()[0])
            sys.exit(1)
        finally:
            sys.stdout.flush()


def parts(sizes: Sizes) -> tuple[Part, ...]:
    """Return the parts, long ones last, so that they get the time that others leave."""
    one = {"depth": sizes.depth, "repeats": sizes.repeats}
    batch = {**one, "batch_size": sizes.batch}
    hybrid: dict[str, Any] = {**batch, "step": "hybrid"}
    ways = {} if sizes.ways is None else {"ways": sizes.ways}
    large = {"depth": sizes.large, "batch_size": sizes.large_batch, "ways": sizes.ways_large}
    scaling: dict[str, Any] = {
        **one,
        "depths": sizes.depths,
        "batch": sizes.envs[1],
        "batches": sizes.envs,
    }
    return (
        Part("tests", 6, "benchmarks.checks", {"select": sizes.select} if sizes.select else {}),
        *(Part(f"environment-{n}", 2, "benchmarks.throughput", {**one, "num_envs": n}) for n in sizes.envs),
        Part("training", 4, "benchmarks.training", batch),
        Part("operators", 1, "benchmarks.operators", batch),
        Part("operators-hybrid", 2, "benchmarks.operators", hybrid),
        Part("memory", 3, "benchmarks.memory", {"depths": sizes.depths, "batches": sizes.batches}),
        Part("scaling", 2, "benchmarks.scaling", scaling),
        Part("imagenet", 2, "benchmarks.compiling", {**large, "repeats": sizes.repeats}),
        Part("compiling-hybrid", 5, "benchmarks.compiling", {**hybrid, **ways}),
        Part("compiling", 6, "benchmarks.compiling", {**batch, **ways}),
    )


def run(part: Part, device: str, folder: Path, limit: float) -> dict[str, Any]:
    """Run a part for at most `limit` seconds; return its results and its error, if any."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in (*folder.glob("*.json"), *folder.glob("error.txt")):  # of an earlier run
        left.unlink()
    begun = time.perf_counter()
    process = _context().Process(target=part.main, args=(device, folder))
    process.start()
    try:
        process.join(limit)
        in_time = process.exitcode is not None
    finally:
        _end(process)
    error = None if in_time and process.exitcode == 0 else f"cut off after {limit:.0f} s"
    if in_time and process.exitcode:
        said = folder / "error.txt"
        error = said.read_text(encoding="utf-8") if said.exists() else f"ended with {process.exitcode}"
    return {
        "command": part.command(device),
        "limit": limit,
        "seconds": time.perf_counter() - begun,
        "error": error,
        "found": _found(folder),
    }


def _context() -> Any:
    """Start processes from a server that has imported the benchmarks and not initialised CUDA."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.checks", "benchmarks.compiling", "benchmarks.scaling"])
    return context


def _end(process: Any) -> None:
    """End a process, if it still runs, and all its children, which may outlive it."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # all have ended, or it has not made its process group yet
        process.kill()
    process.join()


def _found(folder: Path) -> dict[str, Any] | None:
    """Return what a part has written, without the fields in `ABOUT`; None if nothing."""
    for file in sorted(folder.glob("*.json")):
        found = json.loads(file.read_text(encoding="utf-8"))
        return {key: value for key, value in found.items() if key not in ABOUT}
    return None


def main(options: Options, sizes: Sizes | None = None) -> dict[str, Any]:
    """Run the parts, print and write the result.

    Args:
        options: time, device and folder.
        sizes: sizes of the networks and batches (default: those of `SIZES` for the device).

    Raises:
        ValueError: an unknown part, no time, or `write` together with `only` or without a GPU.
    """
    if not options.minutes > 0:
        raise ValueError(f"--minutes is {options.minutes}; expected a positive number")
    if options.write and options.only:
        raise ValueError("--write renews the page from all parts; leave out --only, or leave out --write")
    device = pick_device(options.device)
    if options.write and device.type != "cuda":
        raise ValueError("--write renews docs/gpu.md, and no GPU is used here; leave it out")
    sizes = sizes or SIZES[device.type]
    todo = _chosen(parts(sizes), options.only)
    found: dict[str, Any] = {
        "device": device.type,
        "card": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "torch": torch.__version__,
        "minutes": options.minutes,
        "sizes": asdict(sizes),
        "parts": {},
    }
    end = time.perf_counter() + 60 * options.minutes
    for number, part in enumerate(todo):
        left = max(1.0, end - time.perf_counter())
        limit = left * part.share / sum(each.share for each in todo[number:])
        say(f"{part.name}: {part.command(device.type)} (at most {limit:.0f} s)")
        done = found["parts"][part.name] = run(part, str(device), options.out / part.name, limit)
        write_json(options.out / "gpu.json", {"schema": 1, **found, **provenance()})
        say(f"{part.name}: {done['error'] or 'done'} ({done['seconds']:.0f} s)")
    text = table(found)
    write_text(options.out / "gpu.md", text)
    place = FILE if options.write else options.out / "gpu.json"
    tables.publish("benchmarks.gpu", place, found, text)
    if options.write:
        tables.renew(PAGE, FILE.stem, text)
    return found


def unmeasured() -> dict[str, Any]:
    """Return the results of a GPU before anything is measured, as docs/gpu.md shows them."""
    return {"device": "cuda", "card": None, "torch": None, "sizes": asdict(SIZES["cuda"]), "parts": {}}


def table(found: Mapping[str, Any]) -> str:
    """Return the result in Markdown."""
    every = parts(Sizes(**found["sizes"]))
    commands = {part.name: part.command(found["device"]) for part in every}
    return f"{gpu_table.main_table(found, commands)}\n{gpu_table.details(found, commands)}"


def _chosen(every: Sequence[Part], only: Sequence[str]) -> list[Part]:
    known = [part.name for part in every]
    if unknown := [name for name in only if name not in known]:
        raise ValueError(f"--only names {unknown[0]!r}; expected some of {', '.join(known)}")
    return [part for part in every if not only or part.name in only]


if __name__ == "__main__":
    main_with_named_errors(Options, main)
