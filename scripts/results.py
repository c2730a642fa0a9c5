"""The table, the pictures and the page of the results, from the run folders of `scripts.reproduce`.

    python -m scripts.results --out docs/results-cifar10 --page docs/results.md    # from the files there

`results.json` has a row for each network and policy, seeds averaged; a backbone that several policies start
from has one row. Commands and hours are those of the first seed. Adding a network leaves the rows of others
as they are, with the machine that they came from.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from agents import cascade, thresholds
from agents.common.cli import main_with_named_errors
from agents.common.distillation import SHARE
from agents.common.entries import Entry, flags, random_at_rate
from agents.common.finished import FinishedRun
from agents.common.tables import markdown, renew
from scripts import paired, results_page
from scripts.picture import mega_flops, picture
from scripts.ship import check_whole, lineage, lineage_before, run_of
from skipnet_rl import plots
from skipnet_rl.catalogue import index
from skipnet_rl.checkpoint import write_json
from skipnet_rl.data import load_images
from skipnet_rl.files import write_text
from skipnet_rl.resnet import ResNet
from skipnet_rl.statistics import half_width, wilson_interval
from skipnet_rl.stored import read_header
from skipnet_rl.terminal import say

TEST_IMAGES = 10_000  # images of CIFAR-10 behind every row, also behind older ones that do not say so
STARTS = {"weights", "gate_weights", "teacher"}  # flags that name files of the same seed
COLUMNS = (
    "network", "gate", "policy", "α", "seeds", "accuracy", "± images", "blocks", "FLOPs", "± per image",
    "MFLOPs per image", "routes", "random at its rate", "hours from nothing", "machine",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Make the table, the picture and the page again."""

    out: Path = Path("docs/results-cifar10")
    """folder of results.json, and of cascade.json and paired.json if their scripts were run"""
    page: Path | None = None
    """page whose generated parts are to be renewed (default: none)"""
    debug: bool = False
    """show the traceback of an error"""


def add(name: str, folders: Sequence[Path], out: Path, data_dir: Path | None = None) -> None:
    """Put a row of runs into results.json, then make the table and the pictures.

    Args:
        name: name of the row, such as `"resnet38"`.
        folders: its run folders of one seed; those of other seeds are found beside them.
        out: folder of results.json.
        data_dir: folder of the data set, for the picture of its images.
    """
    seeds = [_seeds(folder) for folder in folders]
    sp, *hrl = [runs for runs in seeds if runs[0].agent in ("hybrid_reinforce", "finetune")]
    hrl.sort(key=lambda runs: (runs[0].result["alpha"], _title(runs[0])))
    hybrid = [_entry(runs, "HRL") for runs in hrl]
    entries = [_entry(_by_backbone(sp), "all blocks"), _entry(sp, "SP"), *hybrid]
    stored = [row for row in read(out) if row["row"] != name]
    if any((row["name"], row["depth"]) == ("all blocks", sp[0].depth) for row in stored):
        del entries[0]  # another gate's row of this network has it
    write_json(out / "results.json", {"schema": 1, "rows": stored + [_summary(name, e) for e in entries]})
    for title, figure in _pictures(hybrid, data_dir).items():
        plots.save_figure(figure, out / f"{name}-{title}.png")
    draw(out)


def _pictures(entries: Sequence[Entry], data_dir: Path | None) -> dict[str, Figure]:
    """What is skipped at each alpha, and on which images by the gates with the most routes."""
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
    """Name of an HRL run among those of its row."""
    return f"α = {run.result['alpha']:g}{_gain(run)}{_distilled(_distillation(run))}"


def _gain(run: FinishedRun) -> str:
    """Gain of the gates' initial weights, in the run that these gates began in."""
    if origin := run_of(run.args.get("weights" if run.agent == "finetune" else "gate_weights")):
        return _gain(origin)
    gain = run.args.get("gate_gain", 1)
    return "" if gain == 1 else f", gain {gain:g}"


def _distillation(run: FinishedRun) -> float:
    """The teachers' share of the loss; only hybrid REINFORCE has a teacher that is not named."""
    alone = run.agent != "hybrid_reinforce" and not run.args.get("teacher")
    return 0.0 if alone else run.args.get("distillation", 0.0)


def _share_of_teacher(command: str) -> float:
    """The value of `--distillation` in a command."""
    words = shlex.split(command.replace("=", " "))
    if "--distillation" in words:
        return float(words[words.index("--distillation") + 1])
    return SHARE if "--teacher" in words else 0.0


def _distilled(share: float | None) -> str:
    return ", distilled" if share else ""


def _seeds(folder: Path) -> list[FinishedRun]:
    """A run and those that differ in the seed, and so in what they start from, alone.

    Raises:
        ValueError: one has other flags, or was tested on part of the images.
    """
    row, _, _ = folder.parent.name.rpartition("-")
    found = folder.parent.parent.glob(f"{row}-*/{folder.name}/result.json")
    runs = sorted((FinishedRun.read(path.parent) for path in found), key=lambda run: run.result["seed"])
    for run in runs:
        check_whole(run)
        if differing := _differing(runs[0], run):
            raise ValueError(f"{runs[0].folder} and {run.folder} differ in more than the seed: {differing}")
    return runs


def _differing(one: FinishedRun, other: FinishedRun) -> str:
    """Names of the flags in which two runs of one row differ, apart from what they start from."""
    left, right = flags(one), flags(other)
    names = sorted((left.keys() & right.keys()) - STARTS)  # older runs lack newer flags
    return ", ".join(name for name in names if left[name] != right[name])


def _by_backbone(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """The first run of each backbone; all seeds start from the same one if it is shipped."""
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
    made_by = origin.commands[-1] if origin.commands else ""  # nothing did an untrained network
    share = _share_of_teacher(made_by) if plain else _distillation(first)
    found = entry.summary()
    return {
        **found, "row": name, "depth": first.depth,
        "gate": None if plain else read_header(first.weights())["kind"] + _gain(first),
        "alpha": found["alpha"] if entry.name == "HRL" else None, "distillation": share,
        "mega_flops": mega_flops(first.depth) * found["compute_flops"], "command": origin.commands,
        "wall_time_s": origin.seconds, "machine": origin.machine,
    }  # fmt: skip


def read(out: Path) -> list[dict[str, Any]]:
    """The rows of results.json; none where there is no such file."""
    path = out / "results.json"
    rows = _content(path)["rows"] if path.is_file() else []
    return [with_interval(row, row.get("n_images", TEST_IMAGES)) for row in rows]


def with_interval(row: Mapping[str, Any], n: int) -> dict[str, Any]:
    """A row with Wilson's interval of its accuracy over n images; older files have another kind."""
    return {**row, "n_images": n, "accuracy_ci95": list(wilson_interval(n * row["accuracy"], n))}


def networks(out: Path) -> list[dict[str, Any]]:
    """The index of the shipped networks, then not_shipped.json with the others, if it is there."""
    path = out / "not_shipped.json"
    single = [entry for entry in index() if entry["kind"] != "chain"]
    return single + (_content(path) if path.is_file() else [])


def _content(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_cascades(out: Path) -> list[dict[str, Any]]:
    """The cascades of cascade.json, if it is there; a ValueError where they are for another data set."""
    path = out / cascade.FILE
    if not path.is_file():
        return []
    found = _content(path)
    if found["dataset"] != "cifar10":
        raise ValueError(f"{path} is for {found['dataset']}, the rows beside it for cifar10; change --out")
    return [
        {**each, "rows": [with_interval(row, found["n_images"]) for row in each["rows"]]}
        for each in found["cascades"]
    ]


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row as the table's text."""
    over_seeds = row["accuracy_seeds_ci95"]
    spread = "" if over_seeds is None else f" ± {100 * over_seeds:.2f}"
    hours = row["wall_time_s"] / 3600
    policy = ("plain" if row["name"] == "all blocks" else row["name"]) + _distilled(row["distillation"])
    return [
        f"ResNet-{row['depth']}", row["gate"] or "", policy,
        "" if row["alpha"] is None else f"{row['alpha']:g}", str(row["n"]),
        f"{100 * row['accuracy']:.2f}{spread}", f"{100 * half_width(row['accuracy_ci95']):.2f}",
        f"{100 * row['compute_blocks']:.1f}", f"{100 * row['compute_flops']:.1f}",
        f"{100 * row['compute_flops_std']:.1f}", f"{row['mega_flops']:.0f}", f"{row['unique_routes']:,.0f}",
        "" if row["alpha"] is None else f"{100 * row['random_accuracy']:.2f}",
        f"{hours:.1f}" if hours >= 1 else f"{hours:.2f}", row["machine"],
    ]  # fmt: skip


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The results as Markdown."""
    return markdown(COLUMNS, [cells(row) for row in rows])


def draw(out: Path) -> None:
    """Make the table and the picture from results.json, and from cascade.json if it is there."""
    rows = read(out)
    if not rows:
        raise FileNotFoundError(f"no rows in {out}: it has no results.json; scripts.reproduce makes one")
    write_text(out / "results.md", table(rows))
    plots.save_figure(picture(rows, networks(out), read_cascades(out)), out / "results.png")
    say(f"wrote {out}/results.md and results.png")


def main(options: Options) -> None:
    """Make the table and the picture, and the page if asked for."""
    draw(options.out)
    if options.page:
        found = (_content(options.out / name) for name in (paired.FILE, cascade.FILE, thresholds.FILE))
        for name, text in results_page.parts(networks(options.out), *found).items():
            renew(options.page, name, text)
        say(f"wrote {options.page}")


if __name__ == "__main__":
    main_with_named_errors(Options, main)
