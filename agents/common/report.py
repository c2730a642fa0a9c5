"""The table and the plots at the end of a run."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from skipnet_rl import plots
from skipnet_rl.evaluate import load_records
from skipnet_rl.runs import Run
from skipnet_rl.statistics import half_width, wilson_interval
from skipnet_rl.terminal import Forgiving
from skipnet_rl.text import for_markdown, legible


def title_of(result: Mapping[str, Any]) -> str:
    """What was evaluated, and on how many images."""
    n, whole = result["n_images"], result.get("split_images", result["n_images"])
    count = f"{n:,}" if n == whole else f"the first {n:,} of {whole:,}"
    return f"{result['env']} on {result['dataset']}, {count} {result['split']} images"


def print_table(result: Mapping[str, Any]) -> None:
    """One row per policy: accuracy with its interval, computation, return, routes."""
    title = Text(legible(title_of(result)), style="table.title")
    table = Table(title=title, collapse_padding=True)  # to fit into 80 columns
    table.add_column("policy", overflow="fold")  # a name is for copying: no part of it may be cut off
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


def write_plots(run: Run, result: Mapping[str, Any], stages: Sequence[int]) -> None:
    """Blocks per image, execution rate per block, skipped layers, and the training curves.

    Those of the last policy, which the run is about, beside the supervised one that it began from and
    random skipping.
    """
    *others, last = result["policies"]
    shown = [row for row in others if row["name"] in ("random", "SP")] + [last]
    figures = {
        "executed_blocks": plots.executed_blocks(shown),
        "execution_rate": plots.execution_rate(shown, stages),
    }
    metrics = run.metrics()
    if any("val/accuracy" in line for line in metrics):  # a bound or a static policy is not trained
        figures["training"] = plots.training_curves(metrics)
    if (run.folder / "routes.npz").is_file():
        records = load_records(run.folder / "routes.npz")
        figures["skipped_layers"] = plots.skipped_layers({row["name"]: records[row["name"]] for row in shown})
    for name, figure in figures.items():
        plots.save_figure(figure, run.folder / "plots" / f"{name}.png")


def _print(table: Table) -> None:
    Console(file=Forgiving(sys.stdout)).print(table)  # type: ignore[arg-type]


COLUMNS = (
    "policy", "seeds", "accuracy", "± images", "FLOPs", "± per image", "blocks", "return", "routes",
    "over random", "beats it",
)  # fmt: skip
NOT_IN_TERMINAL = ("seeds", "± images", "± per image", "blocks", "routes")


def cells(row: Mapping[str, Any], brief: bool = False) -> list[str]:
    """A summary as the table's text; in brief, only accuracies have intervals."""

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


def markdown(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The table as Markdown."""
    lines = [f"{for_markdown(title)}\n", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for row in rows:
        escaped = {**row, "name": for_markdown(row["name"])}
        lines.append(f"| {' | '.join(cells(escaped))} |")
    if any(row["bound"] for row in rows):
        lines.append("\n\\* a bound that looks at the labels, not a policy")
    return "\n".join(lines) + "\n"


def print_comparison(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """The table in the terminal, without the columns that a narrow one has no room for."""
    title_text = Text(legible(title), style="table.title")
    table = Table(title=title_text, box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    shown = [number for number, column in enumerate(COLUMNS) if column not in NOT_IN_TERMINAL]
    for number in shown:
        table.add_column(COLUMNS[number], justify="right" if number else "left", no_wrap=True)
    for row in rows:
        text = cells(row, brief=True)
        table.add_row(*(Text(legible(text[number])) for number in shown))
    _print(table)
