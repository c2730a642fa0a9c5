"""The rows of the results on CIFAR-10: what is trained, how long, by which commands.

A row is a chain of this project's commands: the backbone, from nothing or grown out of a shipped network, for
some a warm restart of it, SP, from there HRL at one or several alphas, and after some of them a longer tuning
with the plain network as the teacher.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro

from agents import hybrid_reinforce, pretrain
from skipnet_rl.runs import as_stored, check_same


@dataclass(frozen=True)
class Schedule:
    """How long a row's steps are, and with what they are taken.

    Attributes:
        backbone: epochs of the backbone, then of warm restarts of it, by the name of their folder.
        sp, hrl, distilled: training steps of each stage; `distilled` is the longer tuning.
        batch_size: images of a backbone's step, and episodes of a gated one.
        routes: of each image in HRL.
        lr: peak of SGD's learning rate in the backbone; half of it in warm restarts.
        gated_lr: that of the backbone with gates.
        taught_lr: that of the longer tuning.
        gate_lr: Adam's, of the gates.
        entropy: weight of the gates' entropy in HRL; less in a deeper network, where a skip pays less.
        eval_every: steps between validations, and between checkpoints.
        taught_eval_every: those in the longer tuning.
        runs: alpha, and gain of the gates' initial weights, of each HRL run; at 1 the gates are those of SP,
            else new ones.
        taught: those of the runs that are tuned on afterwards, with the plain network as the teacher.
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


# of a ResNet-38: 2 CPU cores finish it in a night; taught after the run at half of the FLOPs, and after that
# of the two at a third whose routes vary
CORES = Schedule(
    backbone={"backbone": 40, "restart": 15},
    sp={"warmup": 600, "sp": 300}, hrl={"hrl": 1500, "tune": 2500}, distilled={"tune": 12_000},
    batch_size=128, routes=2, lr=0.1, gated_lr=0.05, taught_lr=0.05, gate_lr=5e-3, entropy=0.02,
    eval_every=250, taught_eval_every=250,
    runs=((0.5, 1.0), (1.0, 1.0), (1.0, 6.0)), taught=((0.5, 1.0), (1.0, 6.0)),
)  # fmt: skip
# of deeper ones: batches that fill a GPU, SGD's rates as much larger (Goyal et al. 2017, arXiv 1706.02677)
# but for the longer tuning: at 0.2 the networks forgot more than the teacher gave back in as few epochs
GPU = Schedule(
    backbone={"backbone": 70},
    sp={"warmup": 200, "sp": 100}, hrl={"hrl": 500, "tune": 300}, distilled={"tune": 530},
    batch_size=512, routes=4, lr=0.4, gated_lr=0.2, taught_lr=0.05, gate_lr=1e-2, entropy=0.002,
    eval_every=150, taught_eval_every=265,
    runs=((0.1, 1.0), (0.2, 1.0), (0.4, 1.0), (0.8, 1.0)), taught=((0.4, 1.0), (0.8, 1.0)),
)  # fmt: skip


# of a ResNet-74: it grows out of the shipped ResNet-38, and two networks teach it from the first step on
GROWN = Schedule(
    backbone={"grown": 14},
    sp={"warmup": 200, "sp": 100}, hrl={"hrl": 500, "tune": 850}, distilled={},
    batch_size=512, routes=4, lr=0.05, gated_lr=0.05, taught_lr=0.05, gate_lr=1e-2, entropy=0.002,
    eval_every=150, taught_eval_every=150, runs=((0.5, 1.0), (1.0, 1.0)), taught=(),
    teachers=("resnet110-cifar10", "resnet38-cifar10-distilled"),
)  # fmt: skip
# of a ResNet-152: it starts from what two teachers have taught already, and its steps cost twice as much
LARGE = replace(GROWN, backbone={"grown": 8}, hrl={"hrl": 250, "tune": 450}, runs=((0.5, 1.0),))


@dataclass(frozen=True)
class Row:
    """A network, its kind of gate, how they are trained, and the shipped network that it grows out of."""

    depth: int
    gate: str = "rnn"
    schedule: Schedule = GPU
    grown_from: str = ""


AGENTS = {"pretrain": pretrain.Args, "hybrid_reinforce": hybrid_reinforce.Args}
ROWS = {
    "resnet110": Row(110), "resnet38": Row(38, schedule=CORES),
    "resnet74": Row(74, schedule=GROWN, grown_from="resnet38-cifar10-distilled"),
    "resnet152": Row(152, schedule=LARGE, grown_from="resnet110-cifar10-distilled"),
    "resnet38-ff1": Row(38, "ff1", CORES), "resnet38-ff2": Row(38, "ff2", CORES),
    "resnet74-ff1": Row(74, "ff1", GROWN, "resnet38-cifar10-distilled"),
    "resnet110-ff2": Row(110, "ff2"),
    "resnet152-ff2": Row(152, "ff2", LARGE, "resnet110-cifar10-distilled"),
}  # fmt: skip
SHIPPED = {  # the backbones that these rows began with
    38: "resnet38-cifar10", 74: "resnet74-cifar10-distilled", 110: "resnet110-cifar10",
    152: "resnet152-cifar10-distilled",
}  # fmt: skip
DISTILLATION = "0.9"  # the teacher's share
FLAGS = {"warmup": "--warmup-iterations", "sp": "--sp-iterations", "hrl": "--iterations",
         "tune": "--tune-iterations"}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Train and compare the rows."""

    rows: tuple[str, ...] = tuple(ROWS)
    """which, in this order"""
    length: float = 1.0
    """factor of every step's length; at 1 two CPU cores do a ResNet-38, and a GPU the deeper ones"""
    jobs: int = 1
    """steps side by side, where none needs the other; alone, the small kernels of one hardly fill a GPU"""
    shipped_backbone: bool = False
    """start from the shipped backbones, where there are, instead of training them"""
    data_dir: Path | None = None
    """folder of CIFAR-10's official files (else $SKIPNET_DATA, else ./data)"""
    download: bool = False
    """fetch missing files through torchvision"""
    runs: Path = Path("runs/results")
    """folder of the run folders"""
    out: Path = Path("runs/results/table")
    """folder of the table and the pictures (those of docs/results.md: docs/results-cifar10)"""
    minutes: float | None = None
    """stop after so many (default: never)"""
    device: str = "auto"
    """cpu, cuda, or auto"""
    seed: int = 0
    """of every run"""
    list: bool = False
    """only say what would be run"""
    debug: bool = False
    """show the traceback of an error"""


@dataclass(frozen=True)
class Step:
    """One command of a row.

    Attributes:
        agent: the module's name.
        flags: those that make the step.
        folder: of the run.
        plan: epochs of a backbone, or steps of each stage.
        between: how many of these lie between two checkpoints.
    """

    agent: str
    flags: tuple[str, ...]
    folder: Path
    plan: dict[str, float] = field(hash=False)
    between: int = 1

    @property
    def done(self) -> bool:
        """Whether it came to its end."""
        return (self.folder / "result.json").is_file()

    def needs(self, others: Iterable[Step]) -> bool:
        """Whether it starts from the weights of one of them."""
        return any(flag.startswith(f"{other.folder}/") for other in others for flag in self.flags)

    def command(self, options: Options) -> list[str]:
        """What is run; goes on where it was interrupted."""
        place = ["--data-dir", str(options.data_dir)] if options.data_dir else []
        resume = ["--resume"] if (self.folder / "args.json").is_file() else []
        return [
            sys.executable, "-m", f"agents.{self.agent}", "--dataset", "cifar10", "--seed", str(options.seed),
            *self.flags, *place, "--device", options.device, "--run-dir", str(self.folder), *resume,
        ]  # fmt: skip

    def check(self, options: Options) -> None:
        """Raise a ValueError where the folder holds a run with other flags, of another `--length` say."""
        stored = self.folder / "args.json"
        if stored.is_file():
            now = tyro.cli(AGENTS[self.agent], args=self.command(options)[3:])
            try:
                before = json.loads(stored.read_text(encoding="utf-8"))
                before.pop("warmup_iterations", None)  # 0 where the network needed no preparation
                check_same(before, as_stored(now))
            except ValueError as error:
                raise ValueError(f"{self.folder} has other flags: {error}; or take another --runs") from error


def chain(name: str, options: Options) -> list[Step]:
    """The steps of a row in order; networks of one depth share their backbone."""
    row = ROWS[name]
    schedule = row.schedule
    folder = options.runs / f"resnet{row.depth}-{options.seed}"
    taught = teaching(schedule.teachers)

    def gated(
        title: str, alpha: float, stage: str, length: dict[str, int], *start: str,
        lr: float = schedule.gated_lr, eval_every: int = schedule.eval_every,
    ) -> Step:  # fmt: skip
        teachers = () if stage == "tune" else taught
        length = {part: max(1, round(steps * options.length)) for part, steps in length.items()}
        flags = (
            "--preset", "quick", "--env", f"SkipResNet{row.depth}-v0",
            "--gate", row.gate, "--alpha", str(alpha), *start,
            "--stage", stage, *(text for part in length for text in (FLAGS[part], str(length[part]))),
            "--batch-size", str(schedule.batch_size), "--routes", str(schedule.routes),
            "--optimizer", "sgd", "--lr", f"{lr:g}", "--gate-lr", f"{schedule.gate_lr:g}",
            "--schedule", "cosine", "--entropy", f"{schedule.entropy:g}", "--bn-images", "4000",
            "--eval-every", str(eval_every), "--eval-images", "1000", *teachers,
        )  # fmt: skip
        place = folder / (title if row.gate == "rnn" else f"{row.gate}-{title}")
        return Step("hybrid_reinforce", flags, place, length, eval_every)

    shipped = SHIPPED.get(row.depth) if options.shipped_backbone else None
    steps, backbone = ([], shipped) if shipped else pretraining(row, folder, options)
    steps.append(gated("sp", schedule.runs[0][0], "sp", schedule.sp, "--weights", backbone))
    supervised = str(steps[-1].folder / "sp.safetensors")
    for alpha, gain in schedule.runs:
        title, gates = f"hrl-{alpha}", ("--gate-weights", supervised)
        if gain != 1:
            title, gates = f"{title}-gain{gain:g}", ("--gate-gain", f"{gain:g}")
        hybrid = gated(title, alpha, "hrl", schedule.hrl, "--weights", supervised, *gates)
        steps.append(hybrid)
        if (alpha, gain) in schedule.taught:
            routed = str(hybrid.folder / "hrl.safetensors")
            start = ("--weights", routed, "--gate-weights", routed, *teaching([backbone]))
            steps.append(gated(
                f"{title}-distilled", alpha, "tune", schedule.distilled, *start,
                lr=schedule.taught_lr, eval_every=schedule.taught_eval_every,
            ))  # fmt: skip
    return steps


def pretraining(row: Row, folder: Path, options: Options) -> tuple[list[Step], str]:
    """The backbone and its warm restarts, and the file of weights that they end with."""
    schedule = row.schedule
    steps, start = [], ("--lr", f"{schedule.lr:g}")
    if origin := row.grown_from:
        start = ("--weights", origin, *start, "--warmup", "0.02")
    taught = teaching(schedule.teachers)
    for name, epochs in schedule.backbone.items():
        epochs = epochs * options.length
        flags = (
            "--depth", str(row.depth), "--epochs", f"{epochs:g}", "--batch-size", str(schedule.batch_size),
        )  # fmt: skip
        steps.append(Step("pretrain", (*flags, *start, *taught), folder / name, {"epochs": epochs}))
        weights = str(folder / name / "weights.safetensors")
        start = ("--weights", weights, "--lr", f"{schedule.lr / 2:g}", "--warmup", "0.02")
    return steps, weights


def teaching(teachers: Sequence[str]) -> tuple[str, ...]:
    """The flags of distillation."""
    return ("--teacher", *teachers, "--distillation", DISTILLATION) if teachers else ()
