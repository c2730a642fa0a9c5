"""The table and the pictures of the results, from the run folders of `scripts.reproduce`.

    python -m scripts.results --out docs/results-cifar10        # draw them again from the files there

`results.json` has a row for each network and policy, seeds averaged; a backbone that several of them start
from counts once. Commands and hours are those of the first seed. Rows come and go by network, so that those
of another machine stay as they are.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from agents.cli import main_with_named_errors
from agents.entries import Entry, flags, over_images, random_at_rate
from agents.finished import FinishedRun
from scripts import cascade
from scripts.ship import check_whole, lineage, lineage_before, run_of
from scripts.tables import markdown
from skipnet_rl import plots
from skipnet_rl.checkpoint import write_json
from skipnet_rl.data import load_images
from skipnet_rl.flops import network_macs
from skipnet_rl.plots.canvas import legend_beside, palette, plain_axes
from skipnet_rl.resnet import ResNet
from skipnet_rl.weights import index

PUBLISHED = {  # accuracy, depth, share of that network's computation
    "SkipNet-38": (0.9275, 38, 0.703),  # Wang et al. 2018, the authors' README; shares of blocks
    "SkipNet-74": (0.9277, 74, 0.523),
    "SkipNet-110": (0.9330, 110, 0.495),
    "BlockDrop-110": (0.936, 110, 0.36),  # Wu et al. 2018, the authors' README; share of FLOPs
    "ResNet-110": (0.936, 110, 1.0),  # He et al. 2016, table 6: the best of five runs, 93.57
}
PLAIN = {"backbone": "plain networks, ours", "backbone-distilled": "plain, distilled, ours"}  # by stage
TUNED_ON = {  # by the end of a shipped network's name
    "-taught": "HRL, tuned on with a plain ResNet-38, ours", "-fixed": "one route, tuned on alike, ours",
}  # fmt: skip
STYLES = {"ResNet": "o-", "plain": "s:", "cascade": "^--", "HRL": "*", "one route": "x"}  # by a label's start
STARTS = {"weights", "gate_weights", "teacher"}  # flags that name a file of the same seed
COLUMNS = (
    "network", "gate", "policy", "α", "seeds", "accuracy", "± images", "blocks", "FLOPs", "± per image",
    "MFLOPs per image", "routes", "random at its rate", "hours from nothing", "machine",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Draw the table and the picture again."""

    out: Path = Path("docs/results-cifar10")
    """folder of results.json, and of cascade.json if `scripts.cascade` was run"""


@cache
def mega_flops(depth: int) -> float:
    """Millions of FLOPs (2 × MACs) of the plain CIFAR network, for one image."""
    return 2e-6 * network_macs(ResNet(depth)).total


def add(name: str, folders: Sequence[Path], out: Path, data_dir: Path | None = None) -> None:
    """Put a row of runs into results.json, then table and pictures.

    Args:
        name: of the row, such as `"resnet38"`.
        folders: its run folders of one seed; those of other seeds are found beside it.
        out: where to.
        data_dir: folder of the data set, for the picture of its images.
    """
    seeds = [_seeds(folder) for folder in folders]
    sp, *hrl = [runs for runs in seeds if runs[0].agent == "hybrid_reinforce"]
    hrl.sort(key=lambda runs: (runs[0].result["alpha"], _title(runs[0])))
    hybrid = [_entry(runs, "HRL") for runs in hrl]
    entries = [_entry(_by_backbone(sp), "all blocks"), _entry(sp, "SP"), *hybrid]
    stored = [row for row in read(out) if row["row"] != name]
    if any((row["name"], row["depth"]) == ("all blocks", sp[0].depth) for row in stored):
        del entries[0]  # another gate's row of this network has it
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "results.json", {"schema": 1, "rows": stored + [_summary(name, e) for e in entries]})
    for title, figure in _pictures(hybrid, data_dir).items():
        plots.save_figure(figure, out / f"{name}-{title}.png")
    draw(out)


def _pictures(entries: Sequence[Entry], data_dir: Path | None) -> dict[str, Figure]:
    """What is skipped at each alpha, and on which images by the gates that tell most of them apart."""
    records = {_title(entry.runs[0]): entry.runs[0].records()["HRL"] for entry in entries}
    varied, record = max(
        zip(entries, records.values(), strict=True), key=lambda pair: pair[0].rows[0]["unique_routes"]
    )
    first = varied.runs[0]
    images = load_images(first.result["dataset"], "test", data_dir)
    return {
        "skipped_layers": plots.skipped_layers(records),
        "easy_and_hard": plots.easy_and_hard(images, record, ResNet(first.depth).stages[1:]),
    }


def _title(run: FinishedRun) -> str:
    """Of an HRL run among those of its row."""
    return f"α = {run.result['alpha']:g}{_gain(run)}{_distilled(_distillation(run))}"


def _gain(run: FinishedRun) -> str:
    """Of the gates' first weights, in the run that these gates began in."""
    if origin := run_of(run.args.get("gate_weights")):
        return _gain(origin)
    gain = run.args.get("gate_gain", 1)
    return "" if gain == 1 else f", gain {gain:g}"


def _distillation(run: FinishedRun) -> float:
    return run.args.get("distillation", 0.0)


def _distilled(share: float) -> str:
    return ", distilled" if share else ""


def _seeds(folder: Path) -> list[FinishedRun]:
    """The runs that differ in the seed, in what they start from, which is a seed's own, and in nothing else.

    Raises:
        ValueError: one has other flags, or was tested on some images alone.
    """
    row, _, _ = folder.parent.name.rpartition("-")
    found = folder.parent.parent.glob(f"{row}-*/{folder.name}/result.json")
    runs = sorted((FinishedRun.read(path.parent) for path in found), key=lambda run: run.result["seed"])
    for run in runs:
        check_whole(run)
        if differing := _differing(runs[0], run):
            raise ValueError(f"{runs[0].folder} and {run.folder} are no seeds of one another: {differing}")
    return runs


def _differing(one: FinishedRun, other: FinishedRun) -> str:
    """Names of the flags in which two runs differ that share their row."""
    left, right = flags(one), flags(other)
    names = sorted((left.keys() & right.keys()) - STARTS)  # a newer run may have a flag that others had not
    return ", ".join(name for name in names if left[name] != right[name])


def _by_backbone(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """The first run of each backbone; a shipped one is the start of every seed."""
    first: dict[str, FinishedRun] = {}
    for run in runs:
        first.setdefault(run.args["weights"], run)
    return list(first.values())


def _entry(runs: Sequence[FinishedRun], name: str) -> Entry:
    rows = tuple(next(row for row in run.result["policies"] if row["name"] == name) for run in runs)
    return Entry(name, tuple(runs), rows, random_at_rate(name, runs))


def _summary(name: str, entry: Entry) -> dict[str, Any]:
    first = entry.runs[0]
    plain = entry.name == "all blocks"
    origin = lineage_before(first) if plain else lineage(first)
    found = entry.summary()
    return {
        **found, "row": name, "depth": first.depth,
        "gate": None if plain else first.args["gate"] + _gain(first),
        "alpha": found["alpha"] if entry.name == "HRL" else None, "distillation": _distillation(first),
        "mega_flops": mega_flops(first.depth) * found["compute_flops"], "command": origin.commands,
        "wall_time_s": origin.seconds, "machine": origin.machine,
    }  # fmt: skip


def read(out: Path) -> list[dict[str, Any]]:
    """The rows so far."""
    path = out / "results.json"
    return json.loads(path.read_text())["rows"] if path.is_file() else []


def read_cascade(out: Path) -> dict[str, Any] | None:
    """What `scripts.cascade` found, if it was run; of another data set than the rows it is a ValueError."""
    path = out / cascade.FILE
    if not path.is_file():
        return None
    found = json.loads(path.read_text())
    if found["dataset"] != "cifar10":
        raise ValueError(
            f"{path} is of {found['dataset']}, the rows beside it of cifar10; take another --out"
        )
    return found


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row as the table's text."""
    over_seeds = row["accuracy_seeds_ci95"]
    spread = "" if over_seeds is None else f" ± {100 * over_seeds:.2f}"
    hours = row["wall_time_s"] / 3600
    policy = "plain" if row["name"] == "all blocks" else row["name"] + _distilled(row["distillation"])
    return [
        f"ResNet-{row['depth']}", row["gate"] or "", policy,
        "" if row["alpha"] is None else f"{row['alpha']:g}", str(row["n"]),
        f"{100 * row['accuracy']:.2f}{spread}", f"{100 * row['accuracy_ci95']:.2f}",
        f"{100 * row['compute_blocks']:.1f}", f"{100 * row['compute_flops']:.1f}",
        f"{100 * row['compute_flops_std']:.1f}", f"{row['mega_flops']:.0f}", f"{row['unique_routes']:,.0f}",
        "" if row["alpha"] is None else f"{100 * row['random_accuracy']:.2f}",
        f"{hours:.1f}" if hours >= 1 else f"{hours:.2f}", row["machine"],
    ]  # fmt: skip


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The results as Markdown."""
    return markdown(COLUMNS, [cells(row) for row in rows])


def picture(rows: Sequence[Mapping[str, Any]], pair: Mapping[str, Any] | None = None) -> Figure:
    """Accuracy against FLOPs per image, so that networks of all depths share an axis.

    Args:
        rows: of results.json.
        pair: a cascade of two networks, see `read_cascade`.
    """
    figure, axes = plain_axes(8.5, 4.4)
    series = _shipped()
    for row in rows:
        if row["name"] == "HRL":
            half = max(row["accuracy_ci95"], row["accuracy_seeds_ci95"] or 0)
            point = (row["mega_flops"], 100 * row["accuracy"], 100 * half)
            label = f"ResNet-{row['depth']}, HRL ({row['gate']}{_distilled(row['distillation'])}), ours"
            series[label].append(point)
    if pair:
        label = "cascade of ResNet-{} and -{}, ours".format(*pair["depths"])
        series[label] = [
            (row["mega_flops"], 100 * row["accuracy"], 100 * row["accuracy_ci95"]) for row in pair["rows"]
        ]
    colours = palette(series)
    for label, points in series.items():
        flops, accuracy, half = zip(*sorted(points), strict=True)
        style = next(style for prefix, style in STYLES.items() if label.startswith(prefix))
        axes.errorbar(flops, accuracy, half, fmt=style, color=colours[label], capsize=2, lw=1, label=label)
    for name, (accuracy, depth, share) in PUBLISHED.items():
        point = (share * mega_flops(depth), 100 * accuracy)
        axes.plot(*point, "D", mfc="none", color="0.3", label="published" if name == "SkipNet-38" else None)
        above = name == "SkipNet-38"  # else its name would be on another point
        place = {"xytext": (0, 7), "ha": "center"} if above else {"xytext": (6, 4)}
        axes.annotate(name, point, textcoords="offset points", fontsize=8, **place)
    axes.set_xscale("log")
    ticks = [30, 50, 80, 130, 200, 300, 500]
    axes.set_xticks(ticks, map(str, ticks))
    axes.minorticks_off()
    axes.set(xlabel="MFLOPs per image (2 × MACs, gates included)", ylabel="CIFAR-10 test accuracy (%)")
    legend_beside(figure, axes)
    return figure


def _shipped() -> dict[str, list[tuple[float, float, float]]]:
    """MFLOPs, accuracy and its interval of shipped networks that are plain, or tuned on after the rows."""
    series = defaultdict(list)
    for entry in index():
        tuned_on = (label for end, label in TUNED_ON.items() if entry["name"].endswith(end))
        label = PLAIN.get(entry["stage"]) or next(tuned_on, None)
        if label and entry["dataset"] == "cifar10":
            accuracy = entry["test_accuracy"]
            half = over_images(accuracy, entry["test_images"])
            flops = mega_flops(entry["depth"]) * entry.get("compute_flops", 1)
            series[label].append((flops, 100 * accuracy, 100 * half))
    return series


def draw(out: Path) -> None:
    """Table and picture from results.json, and from cascade.json where it is there."""
    rows = read(out)
    if not rows:
        raise FileNotFoundError(f"no rows in {out}: it has no results.json; scripts.reproduce makes one")
    (out / "results.md").write_text(table(rows))
    plots.save_figure(picture(rows, read_cascade(out)), out / "results.png")
    print(f"wrote {out}/results.md and results.png")


if __name__ == "__main__":
    main_with_named_errors(Options, lambda options: draw(options.out))
