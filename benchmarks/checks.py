"""Outcomes of the tests that need a GPU; without one, of the CPU tests in the same files.

python -m benchmarks.checks
python -m benchmarks.checks --device cpu --select seed
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agents.common.cli import main_with_named_errors
from agents.common.tables import markdown
from benchmarks import measure
from skipnet_rl.checkpoint import write_json
from skipnet_rl.device import pick_device

ROOT = Path(__file__).parent.parent
MARK = "mark.gpu"  # occurs in every file with such tests


@dataclass(frozen=True)
class Options(measure.Options):
    """Run the tests of a device."""

    select: str = ""
    """pytest's -k expression: which tests to run (default: all)"""


class Outcomes:
    """A pytest plugin that writes the outcomes so far to a file after every test."""

    def __init__(self, file: Path, device: str) -> None:
        self.file = file
        self.found: dict[str, Any] = {"device": device, "tests": {}}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the outcome of a test, or of its set-up or tear-down if that did not pass."""
        if report.when == "call" or report.outcome != "passed":
            outcome: dict[str, Any] = {"outcome": report.outcome, "seconds": report.duration}
            if report.failed:
                outcome["error"] = str(report.longrepr).strip().splitlines()[-1]
            self.found["tests"][report.nodeid] = outcome
            write_json(self.file, self.found)


def table(found: Mapping[str, Any]) -> str:
    """Return the result in Markdown: counts of outcomes, and a row for each test that did not pass."""
    rows = [
        [name, each["outcome"], each.get("error", "")]
        for name, each in found["tests"].items()
        if each["outcome"] != "passed"
    ]
    text = f"{found['device']}: {summary(found)}\n"
    return f"{text}\n{markdown(['test', 'outcome', 'error'], rows)}" if rows else text


def summary(found: Mapping[str, Any]) -> str:
    """Return the number of tests with each outcome, as text."""
    counts = Counter(each["outcome"] for each in found["tests"].values())
    return ", ".join(f"{counts[name]} {name}" for name in sorted(counts)) or "no test ran"


def main(options: Options) -> dict[str, Any]:
    """Run the tests, print and write the result.

    Raises:
        RuntimeError: pytest could not run them.
    """
    device = pick_device(options.device).type
    files = [path for path in (ROOT / "tests").glob("test_*.py") if MARK in path.read_text(encoding="utf-8")]
    outcomes = Outcomes(options.out / f"checks-{device}.json", device)
    chosen = "gpu" if device == "cuda" else "not gpu"
    words = ["-m", chosen, "-k", options.select, "--tb=short", "-p", "no:cacheprovider"]
    bare = ["-o", "addopts=--strict-markers", f"--rootdir={ROOT}", "-c", str(ROOT / "pyproject.toml")]
    code = pytest.main([*bare, *words, *map(str, sorted(files))], plugins=[outcomes])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"pytest ended with {pytest.ExitCode(code).name}; its output says why")
    measure.publish(f"checks-{device}", outcomes.found, table(outcomes.found), options)
    return outcomes.found


if __name__ == "__main__":
    main_with_named_errors(Options, main)
