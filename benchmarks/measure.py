"""What the timed benchmarks share: taking turns, medians, tables, and where results go.

These compare: every figure is meant as a ratio to another of the same run. The candidates take turns, so that
whatever else the machine does meets them alike, and the median of the repeats is reported with its quartiles.
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

from skipnet_rl.checkpoint import write_json
from skipnet_rl.device import pick_device
from skipnet_rl.files import write_text
from skipnet_rl.runs import machine, versions
from skipnet_rl.terminal import say

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "benchmarks.md"


@dataclass(frozen=True)
class Options:
    """What every timed benchmark takes."""

    device: str = "auto"
    """cpu, cuda, or auto"""
    threads: int = 0
    """of PyTorch on the CPU; 0: as many as it likes"""
    repeats: int = 7
    """turns of each candidate"""
    out: Path = Path("runs/benchmarks")
    """folder for the JSON"""
    write: bool = False
    """renew docs/benchmarks.md and the JSON beside it"""

    def start(self) -> torch.device:
        """Set the number of threads; the device."""
        if self.threads:
            torch.set_num_threads(self.threads)
        return pick_device(self.device)


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median and quartiles."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """From single measurements, at least one."""
        lower, median, upper = (
            statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else [seconds[0]] * 3
        )
        return cls(median, lower, upper)


def take_turns(
    candidates: Mapping[str, Callable[[], Any]], repeats: int, device: torch.device | str = "cpu"
) -> dict[str, Timing]:
    """Time each candidate `repeats` times in turns, after one turn that does not count."""
    cuda = torch.device(device).type == "cuda"
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in tqdm(range(repeats + 1), desc="turns", leave=False, disable=None):
        for name, run in candidates.items():
            if cuda:
                torch.cuda.synchronize()
            begun = time.perf_counter()
            run()
            if cuda:
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - begun)
    return {name: Timing.of(found) for name, found in seconds.items()}


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, numbers to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def milliseconds(timing: Mapping[str, float]) -> str:
    """Median and quartiles."""
    low, middle, high = (1e3 * timing[key] for key in ("lower", "median", "upper"))
    digits = 0 if middle >= 100 else 1 if middle >= 10 else 2
    return f"{middle:,.{digits}f} ({low:,.{digits}f} … {high:,.{digits}f})"


def plain(timings: Mapping[str, Timing]) -> dict[str, dict[str, float]]:
    """As JSON has it."""
    return {name: asdict(timing) for name, timing in timings.items()}


def publish(name: str, found: dict[str, Any], text: str, options: Options) -> None:
    """Write a result's JSON, renew the page where asked, and print it."""
    found = {"benchmark": name, **found, "machine": machine(), "versions": versions()}
    write_json(options.out / f"{name}.json", found)
    if options.write:
        write_json(DOCS / "benchmarks" / f"{name}.json", found)
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(begin)
        _, _, after = rest.partition(end)
        write_text(PAGE, before + begin + text + end + after)
    say(f"\n{text}\n{found['machine']}")
