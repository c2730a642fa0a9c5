"""The rows of the results on CIFAR-10: networks, lengths of training, commands.

A row is a chain of commands: train the backbone, from nothing or grown out of a shipped network; for some
networks restart it; then SP; from there HRL at one or several alphas; after some of these a longer tuning
with the plain network as the teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scripts.jobs import Job


@dataclass(frozen=True)
class Schedule:
    """Lengths and hyperparameters of a row's commands.

    Attributes:
        backbone: epochs of the backbone, then of its warm restarts, by the names of their folders.
        sp, hrl, distilled: training steps of each stage; `distilled` is the longer tuning.
        batch_size: images per step of the backbone, episodes per step with gates.
        routes: routes per image in HRL.
        lr: peak learning rate of SGD for the backbone alone; half of it in warm restarts.
        gated_lr: the same with gates.
        taught_lr: the same in the longer tuning.
        gate_lr: Adam's learning rate for the gates.
        entropy: weight of the gates' entropy in HRL; smaller in a deeper network, where a skip pays less.
        eval_every: steps between validations, and between checkpoints.
        taught_eval_every: the same in the longer tuning.
        runs: alpha of each HRL run and gain of its gates' initial weights; with gain 1 the gates are those of
            SP, otherwise new ones.
        taught: the runs that are tuned further, with the plain network as the teacher.
        teachers: shipped networks that teach in every step before that, if any.
    """

    backbone: dict[str, float]
    sp: dict[str, int]
    hrl: dict[str, int]
    distilled: dict[str, int]
    batch_size: int
    routes: int
    lr: float
    gated_lr: float
    taught_lr: float
    gate_lr: float
    entropy: float
    eval_every: int
    taught_eval_every: int
    runs: tuple[tuple[float, float], ...]
    taught: tuple[tuple[float, float], ...]
    teachers: tuple[str, ...] = ()


# ResNet-38: 2 CPU cores finish it in a night. The run at half of the FLOPs is tuned further, and the one of
# the two at a third whose routes vary.
CORES = Schedule(
    backbone={"backbone": 40, "restart": 15},
    sp={"warmup": 600, "sp": 300},
    hrl={"hrl": 1500, "tune": 2500},
    distilled={"tune": 12_000},
    batch_size=128,
    routes=2,
    lr=0.1,
    gated_lr=0.05,
    taught_lr=0.05,
    gate_lr=5e-3,
    entropy=0.02,
    eval_every=250,
    taught_eval_every=250,
    runs=((0.5, 1.0), (1.0, 1.0), (1.0, 6.0)),
    taught=((0.5, 1.0), (1.0, 6.0)),
)
# Deeper networks: batches that fill a GPU, SGD's rates scaled alike (Goyal et al. 2017, arXiv 1706.02677) but
# for the longer tuning: at 0.2 the networks forgot more than the teacher gave back in as few epochs.
GPU = replace(
    CORES,
    backbone={"backbone": 70},
    lr=0.4,
    gated_lr=0.2,
    sp={"warmup": 200, "sp": 100},
    hrl={"hrl": 500, "tune": 300},
    eval_every=150,
    distilled={"tune": 530},
    taught_eval_every=265,
    runs=((0.1, 1.0), (0.2, 1.0), (0.4, 1.0), (0.8, 1.0)),
    taught=((0.4, 1.0), (0.8, 1.0)),
    batch_size=512,
    routes=4,
    gate_lr=1e-2,
    entropy=0.002,
)
# ResNet-74 grows out of the shipped ResNet-38, and two networks teach it from the first step on.
GROWN = replace(
    GPU,
    backbone={"grown": 14},
    hrl={"hrl": 500, "tune": 850},
    distilled={},
    lr=0.05,
    gated_lr=0.05,
    taught_eval_every=150,
    runs=((0.5, 1.0), (1.0, 1.0)),
    taught=(),
    teachers=("resnet110-cifar10", "resnet38-cifar10-distilled"),
)
# ResNet-152 starts from what two teachers have taught already, and its steps cost twice as much.
LARGE = replace(GROWN, backbone={"grown": 8}, hrl={"hrl": 250, "tune": 450}, runs=((0.5, 1.0),))


@dataclass(frozen=True)
class Row:
    """A network, its kind of gate, their training, and the shipped network that it grows out of."""

    depth: int
    gate: str = "rnn"
    schedule: Schedule = GPU
    grown_from: str = ""


ROWS = {
    "resnet110": Row(110),
    "resnet38": Row(38, schedule=CORES),
    "resnet74": Row(74, schedule=GROWN, grown_from="resnet38-cifar10-distilled"),
    "resnet152": Row(152, schedule=LARGE, grown_from="resnet110-cifar10-distilled"),
    "resnet38-ff1": Row(38, "ff1", CORES),
    "resnet38-ff2": Row(38, "ff2", CORES),
    "resnet74-ff1": Row(74, "ff1", GROWN, "resnet38-cifar10-distilled"),
    "resnet110-ff2": Row(110, "ff2"),
    "resnet152-ff2": Row(152, "ff2", LARGE, "resnet110-cifar10-distilled"),
}
SHIPPED = {38: "resnet38-cifar10", 74: "resnet74-cifar10-distilled", 110: "resnet110-cifar10"}  # backbones
DISTILLATION = "0.9"  # weight of the teachers in the loss
GATED = (  # flags of every command with gates
    *("--preset", "quick", "--optimizer", "sgd", "--schedule", "cosine"),
    *("--bn-images", "4000", "--eval-images", "1000"),
)
FLAGS = {  # of the lengths
    "warmup": "warmup-iterations",
    "sp": "sp-iterations",
    "hrl": "iterations",
    "tune": "tune-iterations",
}


@dataclass(frozen=True)
class Options:
    """Train and compare the rows."""

    rows: tuple[str, ...] = tuple(ROWS)
    """names of the rows, in this order"""
    length: float = 1.0
    """factor of every training's length; at 1 two CPU cores do a ResNet-38, and a GPU the deeper ones"""
    jobs: int = 1
    """commands at a time; the small kernels of a single one hardly fill a GPU"""
    shipped_backbone: bool = False
    """start from the shipped backbones, where there are any, instead of training them"""
    data_dir: Path | None = None
    """folder of CIFAR-10's official files (else $SKIPNET_DATA, else ./data)"""
    download: bool = False
    """fetch missing files through torchvision"""
    runs: Path = Path("runs/results")
    """folder of the run folders"""
    out: Path = Path("runs/results/table")
    """folder of the table and the pictures (those of docs/results.md: docs/results-cifar10)"""
    device: str = "auto"
    """cpu, cuda, or auto"""
    seed: int = 0
    """random seed of every run"""
    list: bool = False
    """print the commands without running them"""
    debug: bool = False
    """show the traceback of an error"""


def chain(name: str, options: Options) -> list[Job]:
    """The jobs of a row in order; networks of one depth share their backbone."""
    row = ROWS[name]
    schedule = row.schedule
    folder = options.runs / f"resnet{row.depth}-{options.seed}"
    taught = teaching(schedule.teachers)

    def gated(
        title: str, alpha: float, stage: str, length: dict[str, int], *start: str, **changes: float
    ) -> Job:
        lengths = {part: max(1, round(steps * options.length)) for part, steps in length.items()}
        values = {
            "env": f"SkipResNet{row.depth}-v0",
            "gate": row.gate,
            "alpha": alpha,
            "stage": stage,
            **{FLAGS[part]: steps for part, steps in lengths.items()},
            "batch-size": schedule.batch_size,
            "routes": schedule.routes,
            "lr": f"{changes.get('lr', schedule.gated_lr):g}",
            "gate-lr": f"{schedule.gate_lr:g}",
            "entropy": f"{schedule.entropy:g}",
            "eval-every": changes.get("eval_every", schedule.eval_every),
        }
        flags = (text for flag, value in values.items() for text in (f"--{flag}", str(value)))
        teachers = () if stage == "tune" else taught
        place = folder / (title if row.gate == "rnn" else f"{row.gate}-{title}")
        return job("hybrid_reinforce", options, place, *GATED, *flags, *start, *teachers)

    shipped = SHIPPED.get(row.depth) if options.shipped_backbone else None
    jobs, backbone = ([], shipped) if shipped else pretraining(row, folder, options)
    jobs.append(gated("sp", schedule.runs[0][0], "sp", schedule.sp, "--weights", backbone))
    supervised = str(jobs[-1].folder / "sp.safetensors")
    for alpha, gain in schedule.runs:
        title, gates = f"hrl-{alpha}", ("--gate-weights", supervised)
        if gain != 1:
            title, gates = f"{title}-gain{gain:g}", ("--gate-gain", f"{gain:g}")
        jobs.append(gated(title, alpha, "hrl", schedule.hrl, "--weights", supervised, *gates))
        if (alpha, gain) in schedule.taught:
            routed = str(jobs[-1].folder / "hrl.safetensors")
            start = ("--weights", routed, "--gate-weights", routed, *teaching([backbone]))
            changes = {"lr": schedule.taught_lr, "eval_every": schedule.taught_eval_every}
            jobs.append(gated(f"{title}-distilled", alpha, "tune", schedule.distilled, *start, **changes))
    return jobs


def pretraining(row: Row, folder: Path, options: Options) -> tuple[list[Job], str]:
    """The backbone and its warm restarts, and the file of weights that they end with."""
    schedule = row.schedule
    jobs, start = [], ("--lr", f"{schedule.lr:g}")
    if origin := row.grown_from:
        start = ("--weights", origin, *start, "--warmup", "0.02")
    taught = teaching(schedule.teachers)
    for name, epochs in schedule.backbone.items():
        length = ("--epochs", f"{epochs * options.length:g}", "--batch-size", str(schedule.batch_size))
        place = folder / name
        jobs.append(job("pretrain", options, place, "--depth", str(row.depth), *length, *start, *taught))
        weights = str(place / "weights.safetensors")
        start = ("--weights", weights, "--lr", f"{schedule.lr / 2:g}", "--warmup", "0.02")
    return jobs, weights


def teaching(teachers: Sequence[str]) -> tuple[str, ...]:
    """The flags of distillation."""
    return ("--teacher", *teachers, "--distillation", DISTILLATION) if teachers else ()


def job(agent: str, options: Options, folder: Path, *flags: str) -> Job:
    """A command of an agent with the flags that all have."""
    place = ("--data-dir", str(options.data_dir)) if options.data_dir else ()
    shared = ("--dataset", "cifar10", "--seed", str(options.seed))
    return Job(folder, (f"agents.{agent}", *shared, *flags, *place, "--device", options.device, "--resume"))
