"""The table and the plots at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from skipnet_rl import plots
from skipnet_rl.runs import Run


def print_table(result: Mapping[str, Any]) -> None:
    """One row per policy: accuracy with its interval, computation, return, routes."""
    n = result["n_images"]
    table = Table(title=f"{result['env']} on {result['dataset']}, {n:,} {result['split']} images")
    table.add_column("policy")
    for column in ("accuracy", "± 95 %", "blocks", "FLOPs", "return", "routes"):
        table.add_column(column, justify="right")
    for row in result["policies"]:
        table.add_row(
            row["name"],
            f"{row['accuracy']:.2%}",
            f"{row['accuracy_ci95']:.2%}",
            f"{row['compute_blocks']:.1%}",
            f"{row['compute_flops']:.1%}",
            f"{row['return']:+.3f}",
            f"{row['unique_routes']:,}",
        )
    Console().print(table)


def write_plots(run: Run, result: Mapping[str, Any], stages: Sequence[int]) -> None:
    """Blocks executed per image, execution rate per block, and the training curves."""
    shown = [row for row in result["policies"] if row["name"] in ("random", "SP", "HRL")]
    figures = {
        "executed_blocks": plots.executed_blocks(shown),
        "execution_rate": plots.execution_rate(shown, stages),
        "training": plots.training_curves(run.metrics()),
    }
    for name, figure in figures.items():
        plots.save_figure(figure, run.folder / "plots" / f"{name}.png")
