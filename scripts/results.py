"""Table, pictures and page of the results, made from the files that `scripts.reproduce` has written.

    python -m scripts.results --out docs/results-cifar10 --page docs/results.md

`results.json` has one row per network and policy, averaged over seeds; policies that share a backbone share
its row. Commands and hours are those of the first seed. A new network leaves the other rows unchanged, with
the machine that each was measured on. Data sets have folders side by side, with names that end in
`-<data set>`; `results.png`, the picture of the chains of all data sets, lies beside these folders.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents import cascade
from agents.common.cli import main_with_named_errors
from agents.common.tables import markdown, renew
from scripts import paired, picture, results_page, results_picture
from scripts.lineage import NOT_SHIPPED
from skipnet_rl import plots
from skipnet_rl.catalogue import index
from skipnet_rl.files import write_text
from skipnet_rl.statistics import half_width, wilson_interval
from skipnet_rl.terminal import say

PICTURE = "results.png"
TEST_IMAGES = 10_000  # of CIFAR-10; older rows do not store the number


@dataclass(frozen=True)
class Options:
    """Make the table, the pictures and the page anew."""

    out: Path = Path("docs/results-cifar10")
    """folder of results.json, and of chains.json and paired.json where these exist"""
    page: Path | None = None
    """page whose generated parts are renewed (default: none)"""
    debug: bool = False
    """traceback of an error"""


def read(out: Path) -> list[dict[str, Any]]:
    """Return the rows of results.json, none if the file does not exist."""
    path = out / "results.json"
    rows = _content(path)["rows"] if path.is_file() else []
    return [with_interval(row, row.get("n_images", TEST_IMAGES)) for row in rows]


def with_interval(row: Mapping[str, Any], n: int) -> dict[str, Any]:
    """Return a row with the Wilson interval of its accuracy over n images; older files store another one."""
    return {**row, "n_images": n, "accuracy_ci95": list(wilson_interval(n * row["accuracy"], n))}


def networks(out: Path) -> list[dict[str, Any]]:
    """Return the shipped single networks, then those of not_shipped.json, see `beside`."""
    single = [entry for entry in index() if entry["kind"] != "chain"]
    return single + [entry for file in beside(out, NOT_SHIPPED) for entry in _content(file)]


def beside(out: Path, name: str) -> list[Path]:
    """Return the files of that name in `out` and in the folders beside it, in the order of the folders.

    These are the folders whose names differ only after the last hyphen.
    """
    kind = out.name.rpartition("-")[0] or out.name
    files = {out / name, *out.parent.glob(f"{kind}-*/{name}")}
    return sorted(file for file in files if file.is_file())


def _content(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def distilled(share: float | None) -> str:
    """Return the suffix that marks a network trained with teachers."""
    return ", distilled" if share else ""


def cells(row: Mapping[str, Any]) -> dict[str, str]:
    """Return the text of a row, keyed by the table's columns."""
    over_seeds = row["accuracy_seeds_ci95"]
    spread = "" if over_seeds is None else f" ± {100 * over_seeds:.2f}"
    hours = row["wall_time_s"] / 3600
    learned = row["alpha"] is not None
    return {
        "network": f"ResNet-{row['depth']}",
        "gate": row["gate"] or "",
        "policy": ("plain" if row["name"] == "all blocks" else row["name"]) + distilled(row["distillation"]),
        "α": f"{row['alpha']:g}" if learned else "",
        "seeds": str(row["n"]),
        "accuracy": f"{100 * row['accuracy']:.2f}{spread}",
        "± images": f"{100 * half_width(row['accuracy_ci95']):.2f}",
        "blocks": f"{100 * row['compute_blocks']:.1f}",
        "FLOPs": f"{100 * row['compute_flops']:.1f}",
        "± per image": f"{100 * row['compute_flops_std']:.1f}",
        "MFLOPs per image": f"{row['mega_flops']:.0f}",
        "routes": f"{row['unique_routes']:,.0f}",
        "random at its rate": f"{100 * row['random_accuracy']:.2f}" if learned else "",
        "hours from nothing": f"{hours:.1f}" if hours >= 1 else f"{hours:.2f}",
        "machine": row["machine"],
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the results as a Markdown table; needs at least one row."""
    text = [cells(row) for row in rows]
    return markdown(list(text[0]), [list(row.values()) for row in text])


def read_chains(out: Path, dataset: str) -> list[dict[str, Any]]:
    """Return the rows of chains.json, none if it does not exist.

    Raises:
        ValueError: they are for another data set.
    """
    path = out / cascade.FILE
    if not path.is_file():
        return []
    found = _content(path)
    if found["dataset"] != dataset:
        raise ValueError(f"{path} is for {found['dataset']}, the rows beside it for {dataset}; change --out")
    return found["rows"]


def dataset_of(rows: Sequence[Mapping[str, Any]], out: Path) -> str:
    """Return the data set of the rows in `out`, of which there is at least one.

    Raises:
        ValueError: the rows are for several data sets.
    """
    dataset = rows[0].get("dataset", "cifar10")  # older files do not store it
    if others := {row.get("dataset", "cifar10") for row in rows} - {dataset}:
        raise ValueError(
            f"{out} has rows for {dataset} and {', '.join(sorted(others))}; expected one data set"
        )
    return dataset


def draw(out: Path) -> None:
    """Write the table of single networks and their picture.

    Raises:
        FileNotFoundError: there are no rows.
        ValueError: the rows are for several data sets.
    """
    rows = read(out)
    if not rows:
        raise FileNotFoundError(f"no rows in {out}: it has no results.json; make one with scripts.reproduce")
    dataset = dataset_of(rows, out)
    write_text(out / "results.md", table(rows))
    plots.save_figure(picture.picture(rows, networks(out), dataset), out / "all_rows.png")
    say(f"wrote {out}/results.md and all_rows.png")


def with_chains(out: Path) -> dict[str, Path]:
    """Return every chains.json by its data set, see `beside`."""
    return {_content(file)["dataset"]: file for file in beside(out, cascade.FILE)}


def parts_with_chains(out: Path) -> dict[str, Path]:
    """Return the files of `with_chains`, and those in subfolders of `out` as data set and subfolder."""
    deeper = sorted(out.glob(f"*/{cascade.FILE}"))
    return with_chains(out) | {f"{_content(file)['dataset']}-{file.parent.name}": file for file in deeper}


def draw_chains(out: Path) -> None:
    """Write results.png beside `out`, with one panel per data set that has chains.

    Raises:
        ValueError: the rows and the chains of a folder are for different data sets.
    """
    panels = []
    for dataset, file in with_chains(out).items():
        folder, rows = file.parent, read(file.parent)
        chains = read_chains(folder, dataset_of(rows, folder) if rows else dataset)
        panels.append(results_picture.Panel(dataset, rows, networks(folder), chains))
    if panels:
        plots.save_figure(results_picture.picture(panels), out.parent / PICTURE)
        say(f"wrote {out.parent / PICTURE}")


def main(options: Options) -> None:
    """Make the table and the pictures, and renew the page if one is given."""
    draw(options.out)
    draw_chains(options.out)
    if options.page:
        chains = {name: _content(file) for name, file in parts_with_chains(options.out).items()}
        pairs = {found["dataset"]: found for found in map(_content, beside(options.out, paired.FILE))}
        for name, text in results_page.parts(networks(options.out), pairs, chains).items():
            renew(options.page, name, text)
        say(f"wrote {options.page}")


if __name__ == "__main__":
    main_with_named_errors(Options, main)
