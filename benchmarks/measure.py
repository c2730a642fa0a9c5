"""What the benchmarks share: timing in turns, medians, tables, and the files of results.

A figure is meaningful only relative to others of the same run. The candidates take turns, so that other work
on the machine affects all of them. Medians of the turns are reported with their quartiles.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from agents.common import tables
from skipnet_rl.device import pick_device, resolve_precision

STEPS = {"cpu": 1, "cuda": 10}  # training steps per turn; within one, a GPU may lag behind the CPU
DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "benchmarks.md"


@dataclass(frozen=True)
class Options:
    """Options of a benchmark."""

    device: str = "auto"
    """cpu, cuda, or auto"""
    out: Path = Path("runs/benchmarks")
    """folder of the JSON file"""
    debug: bool = False
    """traceback of an error"""

    def start(self) -> torch.device:
        """Return the device."""
        return pick_device(self.device)


@dataclass(frozen=True)
class Threaded(Options):
    """Options of a benchmark that computes in this process."""

    threads: int = 0
    """CPU threads of PyTorch (0: its default)"""

    def start(self) -> torch.device:
        """Set the number of threads; return the device."""
        if self.threads:
            torch.set_num_threads(self.threads)
        return super().start()


@dataclass(frozen=True)
class Timed(Threaded):
    """Options of a benchmark whose candidates take turns."""

    repeats: int = 7
    """turns of each candidate"""


@dataclass(frozen=True)
class Paged(Options):
    """Options of a benchmark whose result is a part of the page of benchmarks."""

    write: bool = False
    """renew docs/benchmarks.md and write the JSON file beside it"""

    def folder(self) -> Path:
        """Return the folder of the JSON file."""
        return DOCS / "benchmarks" if self.write else self.out

    def check_page(self, name: str) -> None:
        """Refuse `--write` before anything is measured if the page has no part of this name.

        Raises:
            ValueError: the page lacks the part.
        """
        if self.write:
            tables.around(PAGE, name)


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median and quartiles."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """Summarise one or more measurements."""
        lower, median, upper = (
            statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else [seconds[0]] * 3
        )
        return cls(median, lower, upper)


def take_turns(
    candidates: Mapping[str, Callable[[], Any]],
    repeats: int,
    device: torch.device | str = "cpu",
    calls: int = 1,
) -> dict[str, Timing]:
    """Time each candidate `repeats` times in turns, after an untimed first turn.

    In its turn a candidate is called `calls` times, without waiting for the device in between; the seconds
    are those of one call.
    """
    cuda = torch.device(device).type == "cuda"
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in tqdm(range(repeats + 1), desc="turns", leave=False, disable=None):
        for name, run in candidates.items():
            if cuda:
                torch.cuda.synchronize(device)
            begun = time.perf_counter()
            for _ in range(calls):
                run()
            if cuda:
                torch.cuda.synchronize(device)
            if turn:
                seconds[name].append((time.perf_counter() - begun) / calls)
    return {name: Timing.of(found) for name, found in seconds.items()}


def milliseconds(timing: Mapping[str, float]) -> str:
    """Return the median and the quartiles in milliseconds, as text."""
    low, middle, high = (1e3 * timing[key] for key in ("lower", "median", "upper"))
    digits = 0 if middle >= 100 else 1 if middle >= 10 else 2
    return f"{middle:,.{digits}f} ({low:,.{digits}f} … {high:,.{digits}f})"


def plain(timings: Mapping[str, Timing]) -> dict[str, dict[str, float]]:
    """Return the timings as plain dictionaries for JSON."""
    return {name: asdict(timing) for name, timing in timings.items()}


def speeds(
    columns: Sequence[str],
    labels: Mapping[str, str],
    timings: Mapping[str, Mapping[str, float]],
    units: int,
    reference: str,
) -> str:
    """Return a table of candidates: milliseconds, units per second, speed relative to the reference."""
    rows = []
    for name, label in labels.items():
        if timing := timings.get(name):
            ratio = timings[reference]["median"] / timing["median"]
            rows.append([label, milliseconds(timing), f"{units / timing['median']:,.0f}", f"{ratio:.2f}"])
    return tables.markdown(columns, rows, numbers=True)


def compare(
    name: str,
    options: Any,
    candidates: Callable[[Any, torch.device], Mapping[str, Callable[[], Any]]],
    table: Callable[[Mapping[str, Any]], str],
    calls: Mapping[str, int] | None = None,
    **about: Any,
) -> dict[str, Any]:
    """Time candidates on a device, print and write the result, and return it.

    Args:
        name: name of the benchmark; the kind of device is appended.
        options: options of the benchmark, including `precision`.
        candidates: makes the candidates from the options and the device.
        table: makes the table of the result.
        calls: calls of a candidate in its turn, by the kind of device, see `take_turns` (default: one).
        **about: further fields of the result.
    """
    device = options.start()
    options.check_page(f"{name}-{device.type}")
    each = calls[device.type] if calls else 1
    timings = take_turns(candidates(options, device), options.repeats, device, each)
    precision = resolve_precision(options.precision, device)
    found = {**about, "device": device.type, "precision": precision, "repeats": options.repeats}
    found["timings"] = plain(timings)
    publish(f"{name}-{device.type}", found, table(found), options)
    return found


def publish(name: str, found: Mapping[str, Any], text: str, options: Options) -> None:
    """Print a result and write its JSON file; `--write` writes it to docs/benchmarks and renews the page."""
    folder = options.out
    if isinstance(options, Paged):
        folder = options.folder()
        if options.write:
            tables.renew(PAGE, name, text)
    tables.publish(f"benchmarks.{name.split('-')[0]}", folder / f"{name}.json", found, text)
