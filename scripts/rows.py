"""The rows of the results: networks, data sets, lengths of training, commands.

A row is a sequence of commands. It trains the backbone, from scratch or grown out of a shipped network, for
some networks with a warm restart. Then come SP and, from its weights, HRL at one or several alphas. Some of
these networks are tuned for longer with the plain network as the teacher; the control is the same tuning on
one route for all images. Rows of chains only train the backbones, which `agents.cascade` then chains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.common.jobs import Job
from agents.common.presets import PRESETS
from scripts.schedules import CORES, GPU, GROWN, IMAGENET, LARGE, LONG, LONG_ON_CORES, Schedule, only_plain
from skipnet_rl.device import pick_device


@dataclass(frozen=True)
class Row:
    """A network and its training.

    Attributes:
        depth: depth of the network, or of a chain's last network.
        gate: kind of gate.
        schedule: lengths and hyperparameters.
        grown_from: shipped network that the backbone grows out of, if any.
        dataset: name of the data set.
        on_cores: schedule without a GPU, if it differs.
        chain: rows whose backbones are chained; empty unless this is a row of chains.
        not_run: why docs/results.md has no figures of this row; empty where it has.
    """

    depth: int
    gate: str = "rnn"
    schedule: Schedule = GPU
    grown_from: str = ""
    dataset: str = "cifar10"
    on_cores: Schedule | None = None
    chain: tuple[str, ...] = ()
    not_run: str = ""

    def schedule_on(self, device: str) -> Schedule:
        """Return the schedule for a device: a name, or `"auto"`."""
        cpu = self.on_cores is not None and pick_device(device).type == "cpu"
        return self.on_cores if self.on_cores and cpu else self.schedule

    @property
    def folder(self) -> str:
        """Name of the folder of its runs, without the seed; rows with the same backbone share it."""
        long = "-long" if self.on_cores and self.dataset == "cifar10" else ""
        dataset = "" if self.dataset == "cifar10" else f"-{self.dataset}"
        return f"resnet{self.depth}{long}{dataset}"


def long_rows(dataset: str, end: str, not_run: str) -> dict[str, Row]:
    """Return the rows of long training for a data set; their names end in `end`."""
    shared: dict[str, Any] = {"dataset": dataset, "not_run": not_run}
    gated: dict[str, Any] = {**shared, "schedule": LONG, "on_cores": LONG_ON_CORES}
    plain: dict[str, Any] = {**shared, "schedule": only_plain(LONG), "on_cores": only_plain(LONG_ON_CORES)}
    members = tuple(f"resnet{depth}-{end}" for depth in (14, 38, 110))
    return {
        f"resnet14-{end}": Row(14, **plain),
        **{f"resnet{depth}-{end}": Row(depth, **gated) for depth in (20, 38, 110)},
        f"resnet110-ff2-{end}": Row(110, "ff2", **gated),
        f"chains-{end}": Row(110, **plain, chain=members),
    }


# Why a row has no figures in docs/results.md.
NO_GPU = "needs a GPU; not run"
GPU_FOR_HOURS = "needs a GPU for hours; not run"
NO_DATA = "needs the files of the data set; not run"

ROWS = {
    "resnet110": Row(110),
    "resnet38": Row(38, schedule=CORES),
    "resnet74": Row(74, schedule=GROWN, grown_from="resnet38-cifar10-distilled"),
    "resnet152": Row(152, schedule=LARGE, grown_from="resnet110-cifar10-distilled"),
    "resnet38-ff1": Row(38, "ff1", CORES),
    "resnet38-ff2": Row(38, "ff2", CORES),
    "resnet74-ff1": Row(74, "ff1", GROWN, "resnet38-cifar10-distilled", not_run=NO_GPU),
    "resnet110-ff2": Row(110, "ff2", not_run=NO_GPU),
    "resnet152-ff2": Row(152, "ff2", LARGE, "resnet110-cifar10-distilled", not_run=NO_GPU),
    **long_rows("cifar10", "long", GPU_FOR_HOURS),
    **long_rows("cifar100", "cifar100", GPU_FOR_HOURS),
    **long_rows("svhn", "svhn", NO_DATA),
    **{
        f"resnet{depth}-imagenet": Row(depth, schedule=IMAGENET, dataset="imagenet", not_run=NO_DATA)
        for depth in (34, 50, 101)
    },
}
SHIPPED = {38: "resnet38-cifar10", 74: "resnet74-cifar10-distilled", 110: "resnet110-cifar10"}  # backbones
STEPS = ("sp_iterations", "iterations", "tune_iterations")


@dataclass(frozen=True)
class Options:
    """Train and compare the rows."""

    rows: tuple[str, ...] = ()
    """names of the rows, in order (default: all of CIFAR-10 except those that end in -long)"""
    length: float = 1.0
    """factor on the length of every training except preparations; 1 suits two CPU cores for a ResNet-38 and a
    GPU for deeper networks"""
    jobs: int = 1
    """commands at a time, through Ray if more than one; the small kernels of one command hardly fill a GPU"""
    shipped_backbone: bool = False
    """shipped backbones as the start where they exist, instead of training them"""
    data_dir: Path | None = None
    """folder of the data set's official files (else $SKIPNET_DATA, else ./data)"""
    download: bool = False
    """download of missing files through torchvision"""
    runs: Path = Path("runs/results")
    """folder of the run folders"""
    out: Path | None = None
    """folder of the table and the pictures of one data set (default: table-<data set> in --runs; those of
    docs/results.md are in docs/results-cifar10)"""
    device: str = "auto"
    """cpu, cuda, or auto"""
    seed: int = 0
    """random seed of every run"""
    list: bool = False
    """commands, printed without running them"""
    debug: bool = False
    """traceback of an error"""

    @property
    def chosen(self) -> tuple[str, ...]:
        """The rows to run."""
        usual = (name for name, row in ROWS.items() if row.dataset == "cifar10" and row.on_cores is None)
        return self.rows or tuple(usual)

    def table(self, row: Row) -> Path:
        """Return the folder of the table to which a row belongs."""
        return self.out or self.runs / f"table-{row.dataset}"


def jobs_of(name: str, options: Options) -> list[Job]:
    """Return the jobs of a row in order; networks of the same depth share their backbone."""
    row = ROWS[name]
    if row.chain:
        return [pretraining(ROWS[member], options)[0][-1] for member in row.chain]
    schedule = row.schedule_on(options.device)
    folder = folder_of(row, options)
    taught, env = teaching(schedule.teachers), f"SkipResNet{row.depth}-v0"

    def gated(title: str, preset: str, alpha: float, *start: str) -> Job:
        usual = PRESETS[preset]
        values = {name: value for name, value in schedule.changes.items() if usual.get(name)}
        values |= {
            name: max(1, round(options.length * values.get(name, usual[name])))
            for name in STEPS
            if usual.get(name)
        }
        changed = (
            text
            for name, value in values.items()
            if value != usual[name]
            for text in (f"--{name.replace('_', '-')}", f"{value:g}")
        )
        gate = () if row.gate == "rnn" else ("--gate", row.gate)
        flags = ("--preset", preset, "--env", env, *gate, "--alpha", str(alpha), *start, *taught, *changed)
        return job("hybrid_reinforce", row, options, place(title), *flags)

    def place(title: str) -> Path:
        return folder / (title if row.gate == "rnn" else f"{row.gate}-{title}")

    usual = options.shipped_backbone and row.dataset == "cifar10"
    shipped = SHIPPED.get(row.depth) if usual else None
    jobs, backbone = ([], shipped) if shipped else pretraining(row, options)
    if not schedule.runs:
        return jobs
    jobs.append(gated("sp", f"{schedule.preset}-sp", schedule.runs[0][0], "--weights", backbone))
    supervised = str(jobs[-1].folder / "sp.safetensors")
    for alpha, gain in schedule.runs:
        title, preset = f"hrl-{alpha}", schedule.preset
        gates: tuple[str, ...] = ("--gate-weights", supervised)
        if gain != 1:
            title, preset, gates = f"{title}-gain{gain:g}", f"{preset}-gain{gain:g}", ()
        jobs.append(gated(title, preset, alpha, "--weights", supervised, *gates))
        routed = str(jobs[-1].folder / "hrl.safetensors")
        length = max(1, round(options.length * schedule.distilled))
        flags = ("--env", env, "--alpha", str(alpha), "--weights", routed, *teaching([backbone]))
        flags += ("--iterations", str(length), "--batch-size", str(schedule.batch_size))
        flags += ("--eval-every", str(schedule.eval_every))
        if (alpha, gain) in schedule.taught:
            jobs.append(job("finetune", row, options, place(f"{title}-distilled"), *flags))
        if (alpha, gain) in schedule.fixed:
            jobs.append(job("finetune", row, options, place(f"{title}-fixed"), *flags, "--fixed-route"))
    return jobs


def folder_of(row: Row, options: Options) -> Path:
    """Return the folder that holds the run folders of a row for the seed."""
    return options.runs / f"{row.folder}-{options.seed}"


def pretraining(row: Row, options: Options) -> tuple[list[Job], str]:
    """Return the jobs of the backbone and its restarts, and the final weights (no jobs: torchvision's)."""
    schedule, folder = row.schedule_on(options.device), folder_of(row, options)
    jobs: list[Job] = []
    weights = "torchvision"
    start: tuple[str, ...] = ("--lr", f"{schedule.lr:g}")
    if origin := row.grown_from:
        start = ("--weights", origin, *start, "--warmup", "0.02")
    taught = teaching(schedule.teachers)
    if schedule.survival < 1:
        taught += ("--survival", f"{schedule.survival:g}")
    for name, epochs in schedule.backbone.items():
        length = ("--epochs", f"{epochs * options.length:g}", "--batch-size", str(schedule.batch_size))
        place = folder / name
        jobs.append(job("pretrain", row, options, place, "--depth", str(row.depth), *length, *start, *taught))
        weights = str(place / "weights.safetensors")
        start = ("--weights", weights, "--lr", f"{schedule.lr / 2:g}", "--warmup", "0.02")
    return jobs, weights


def teaching(teachers: Sequence[str]) -> tuple[str, ...]:
    """Return the flag that names the teachers, if any."""
    return ("--teacher", *teachers) if teachers else ()


def weights_of(name: str, options: Options) -> list[str]:
    """Return the weights files of the backbones in a row of chains, in order."""
    return [pretraining(ROWS[member], options)[1] for member in ROWS[name].chain]


def job(agent: str, row: Row, options: Options, folder: Path, *flags: str) -> Job:
    """Return a job of an agent: its own flags and those that all commands share."""
    place = ("--data-dir", str(options.data_dir)) if options.data_dir else ()
    shared = ("--dataset", row.dataset, "--seed", str(options.seed))
    return Job(folder, (f"agents.{agent}", *shared, *flags, *place, "--device", options.device, "--resume"))
