"""What the scripts that make tables share: their Markdown, and the file of numbers beside it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from skipnet_rl.checkpoint import write_json
from skipnet_rl.runs import provenance, without_places
from skipnet_rl.terminal import say
from skipnet_rl.text import for_markdown


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, a line for each row."""
    lines = [columns, ["---"] * len(columns), *([for_markdown(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def points(value: float, half: float, sign: str = "") -> str:
    """A share and the half width of its interval in percent, or a difference (`sign` is "+") in points."""
    return f"{100 * value:{sign}.2f} ± {100 * half:.2f}"


def publish(module: str, path: Path, found: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Write a table's numbers with the command behind them, then print it; returns what was written.

    Args:
        module: what was run, such as `"scripts.paired"`.
        path: of the JSON file; its folder is made.
        found: the numbers.
        text: the table.
    """
    command = without_places(["python", "-m", module, *sys.argv[1:]])
    written = {"schema": 1, **found, "command": command, **provenance()}
    write_json(path, written)
    say(text)
    for note in written.get("notes", ()):
        say(note)
    say(f"wrote {path}")
    return written
