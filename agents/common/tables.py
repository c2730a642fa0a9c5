"""Tables in Markdown and in the terminal, and the JSON files of the numbers behind them."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from skipnet_rl.checkpoint import write_json
from skipnet_rl.files import write_text
from skipnet_rl.runs import provenance, without_places
from skipnet_rl.statistics import half_width, wilson_interval
from skipnet_rl.terminal import Forgiving, say
from skipnet_rl.text import for_markdown, legible


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = False) -> str:
    """Format a Markdown table; cells are shown literally, whatever characters they have.

    Args:
        columns: headings.
        rows: one cell for each column.
        numbers: align all columns but the first to the right.
    """
    rule = ["---", *["---:" if numbers else "---"] * (len(columns) - 1)]
    lines = [columns, rule, *([for_markdown(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def points(value: float, half: float, sign: str = "") -> str:
    """Format a share and the half width of its interval in percent; with `sign="+"`, a difference in points.

    A `half` of nan, as for the mean of one value, is left out.
    """
    return f"{100 * value:{sign}.2f}" + ("" if math.isnan(half) else f" ± {100 * half:.2f}")


def publish(module: str, path: Path, found: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Write the numbers of a table with their command and machine, then print the table.

    Args:
        module: the module that was run, such as `"scripts.paired"`.
        path: the JSON file; its folder is made.
        found: the numbers; their `"notes"`, if any, are printed below the table.
        text: the table.

    Returns:
        What was written.
    """
    command = without_places(["python", "-m", module, *sys.argv[1:]])
    written = {"schema": 1, **found, "command": command, **provenance()}
    write_json(path, written)
    say(text)
    for note in written.get("notes", ()):
        say(note)
    say(f"wrote {path}")
    return written


def renew(page: Path, name: str, text: str) -> None:
    """Replace the part of a page between the comments `name` and `end of name`; raises as `around` does."""
    before, after = around(page, name)
    write_text(page, before + text + after)


def around(page: Path, name: str) -> tuple[str, str]:
    """Return what comes before and after a part of a page, with the comments `name` and `end of name`.

    Raises:
        ValueError: the page lacks one of the comments.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, opened, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not (opened and closed):
        raise ValueError(f"{page} has no part between {begin.strip()} and {end}; add these two lines to it")
    return before + begin, end + after


def title_of(result: Mapping[str, Any]) -> str:
    """Name the subject of an evaluation, and its number of images."""
    n, whole = result["n_images"], result.get("split_images", result["n_images"])
    count = f"{n:,}" if n == whole else f"the first {n:,} of {whole:,}"
    return f"{result['env']} on {result['dataset']}, {count} {result['split']} images"


def print_table(result: Mapping[str, Any]) -> None:
    """Print one row per policy: accuracy with its interval, computation, return, routes."""
    title = Text(legible(title_of(result)), style="table.title")
    table = Table(title=title, collapse_padding=True)  # fits into 80 columns
    table.add_column("policy", overflow="fold")  # names are copied: no part may be cut off
    for column in ("accuracy", "95 % interval", "blocks", "FLOPs", "return", "routes"):
        table.add_column(column, justify="right")
    n = result["n_images"]
    for row in result["policies"]:
        low, high = wilson_interval(n * row["accuracy"], n)
        table.add_row(
            Text(legible(row["name"])),  # a string would be read as markup
            f"{row['accuracy']:.2%}",
            f"{100 * low:.1f} – {100 * high:.1f}",
            f"{row['compute_blocks']:.1%}",
            f"{row['compute_flops']:.1%}",
            f"{row['return']:+.3f}",
            f"{row['unique_routes']:,}",
        )
    _print(table)


COLUMNS = {  # of a comparison, and whether a narrow terminal shows it
    "policy": True,
    "seeds": False,
    "accuracy": True,
    "± images": False,
    "FLOPs": True,
    "± per image": False,
    "blocks": False,
    "return": True,
    "routes": False,
    "over random": True,
    "beats it": True,
}


def comparison(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Format summaries, see `entries.Entry.summary`, as a Markdown table under its title."""
    text = f"{for_markdown(title)}\n\n{markdown(list(COLUMNS), map(_cells, rows))}"
    if any(row["bound"] for row in rows):
        text += "\n\\* a bound that looks at the labels, not a policy\n"
    return text


def print_comparison(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a comparison, without the columns for which 80 characters have no room."""
    title_text = Text(legible(title), style="table.title")
    table = Table(title=title_text, box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for number, column in enumerate(name for name, shown in COLUMNS.items() if shown):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        cells = zip(_cells(row, brief=True), COLUMNS.values(), strict=True)
        table.add_row(*(Text(legible(cell)) for cell, shown in cells if shown))
    _print(table)


def _cells(row: Mapping[str, Any], brief: bool = False) -> list[str]:
    """Format a summary as the text of `COLUMNS`; in brief, only accuracies have intervals."""

    def with_interval(key: str, scale: float, digits: int, sign: str = "") -> str:
        half = row[f"{key}_seeds_ci95"]
        bare = math.isnan(half) or (brief and key in ("compute_flops", "return"))
        spread = "" if bare else f" ± {scale * half:.{digits}f}"
        return f"{scale * row[key]:{sign}.{digits}f}{spread}"

    learned = "random_gain" in row
    wins = row.get("beats_random")
    verdict = "skips nothing" if wins is None else f"{wins} of {row['n']}"
    return [
        row["name"] + (" *" if row["bound"] else ""),
        str(row["n"]),
        with_interval("accuracy", 100, 2),
        f"{100 * half_width(row['accuracy_ci95']):.2f}",
        with_interval("compute_flops", 100, 1),
        f"{100 * row['compute_flops_std']:.1f}",
        f"{100 * row['compute_blocks']:.1f}",
        with_interval("return", 1, 3),
        f"{row['unique_routes']:,.0f}",
        with_interval("random_gain", 100, 1, "+") if learned else "",
        verdict if learned else "",
    ]


def _print(table: Table) -> None:
    Console(file=Forgiving(sys.stdout)).print(table)  # type: ignore[arg-type]
