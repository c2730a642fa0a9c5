"""The results on CIFAR-10, row by row, from nothing to the table.

    python -m scripts.reproduce --data-dir data --list           # the steps, and how long they take here
    python -m scripts.reproduce --data-dir data --rows resnet38
    python -m scripts.reproduce --data-dir data --minutes 9      # stops in time; the same command goes on

A row is a chain of this project's commands: the backbone, a warm restart of it, SP, from there HRL at
several alphas, and after some of them a longer tuning with the plain network as the teacher. Each has a
folder under `--runs`: what is finished is not run again, what was interrupted is resumed from its last
checkpoint, an epoch of a backbone or 250 steps of gates ago at most. At the end `scripts.results` makes the
table and the pictures in `--out` from these folders.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from agents import hybrid_reinforce, pretrain
from agents.checks import check_numbers
from agents.cli import main_with_named_errors
from scripts import results
from skipnet_rl.data import Images, load_images
from skipnet_rl.errors import unknown_name
from skipnet_rl.inference import for_inference
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.precision import pick_device, resolve_precision
from skipnet_rl.resnet import ResNet
from skipnet_rl.runs import as_stored, check_same
from skipnet_rl.weights import find_shipped


@dataclass(frozen=True)
class Row:
    """A network and its kind of gate."""

    depth: int
    gate: str = "rnn"


AGENTS = {"pretrain": pretrain.Args, "hybrid_reinforce": hybrid_reinforce.Args}
ROWS = {
    "resnet110": Row(110), "resnet38": Row(38), "resnet74": Row(74), "resnet152": Row(152),
    "resnet38-ff1": Row(38, "ff1"), "resnet74-ff1": Row(74, "ff1"),
    "resnet110-ff2": Row(110, "ff2"), "resnet152-ff2": Row(152, "ff2"),
}  # fmt: skip
# alpha, and gain of the gates' initial weights: at 1 the gates are those of SP, else new ones
HRL_RUNS = ((0.5, 1.0), (1.0, 1.0), (1.0, 6.0))
BACKBONE = {"backbone": 40, "restart": 15}  # epochs
SP = {"warmup": 600, "sp": 300}  # steps
HRL = {"hrl": 1500, "tune": 2500}  # steps of each run
# steps of longer tuning, the plain network the teacher: after the run at half of the FLOPs, and after that
# of the two at a third whose routes vary
DISTILLED = {(0.5, 1.0): {"tune": 12_000}, (1.0, 6.0): {"tune": 12_000}}
DISTILLATION = "0.9"  # the teacher's share
FLAGS = {"warmup": "--warmup-iterations", "sp": "--sp-iterations", "hrl": "--iterations",
         "tune": "--tune-iterations"}  # fmt: skip
EVAL_EVERY = 250  # steps, and of a checkpoint
BATCH_SIZE = 128
GATED = (
    "--batch-size", str(BATCH_SIZE), "--routes", "2", "--optimizer", "sgd", "--lr", "0.05",
    "--gate-lr", "5e-3", "--schedule", "cosine", "--entropy", "0.02", "--bn-images", "4000",
    "--eval-every", str(EVAL_EVERY), "--eval-images", "1000",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Train and compare the rows."""

    rows: tuple[str, ...] = tuple(ROWS)
    """which, in this order"""
    length: float = 1.0
    """factor of every step's length; 1 is what two CPU cores do with a ResNet-38 in a few hours"""
    shipped_backbone: bool = False
    """start from the shipped backbones, where there are, instead of training them"""
    data_dir: Path | None = None
    """folder of CIFAR-10's official files (else $SKIPNET_DATA, else ./data)"""
    download: bool = False
    """fetch missing files through torchvision"""
    runs: Path = Path("runs/results")
    """folder of the run folders"""
    out: Path = Path("runs/results/table")
    """folder of the table and the pictures (those of the README: docs/results-cifar10)"""
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
    """

    agent: str
    flags: tuple[str, ...]
    folder: Path
    plan: dict[str, float]

    @property
    def done(self) -> bool:
        """Whether it came to its end."""
        return (self.folder / "result.json").is_file()

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
                check_same(json.loads(stored.read_text()), as_stored(now))
            except ValueError as error:
                raise ValueError(f"{self.folder} has other flags: {error}; or take another --runs") from error


def chain(name: str, options: Options) -> list[Step]:
    """The steps of a row in order; networks of one depth share their backbone."""
    row = ROWS[name]
    folder = options.runs / f"resnet{row.depth}-{options.seed}"

    def gated(title: str, alpha: float, stage: str, length: dict[str, int], *start: str) -> Step:
        plan = {part: max(1, round(steps * options.length)) for part, steps in length.items()}
        flags = (
            "--env", f"SkipResNet{row.depth}-v0", "--gate", row.gate, "--alpha", str(alpha), *start,
            "--stage", stage, *(text for part in plan for text in (FLAGS[part], str(plan[part]))), *GATED,
        )  # fmt: skip
        place = folder / (title if row.gate == "rnn" else f"{row.gate}-{title}")
        return Step("hybrid_reinforce", flags, place, plan)

    steps, backbone = [], f"resnet{row.depth}-cifar10"
    if not (options.shipped_backbone and find_shipped(row.depth, "cifar10", "projection")):
        steps, backbone = pretraining(row, folder, options)
    steps.append(gated("sp", HRL_RUNS[0][0], "sp", SP, "--weights", backbone))
    supervised = str(steps[-1].folder / "sp.safetensors")
    for alpha, gain in HRL_RUNS:
        title, gates = f"hrl-{alpha}", ("--gate-weights", supervised)
        if gain != 1:
            title, gates = f"{title}-gain{gain:g}", ("--gate-gain", f"{gain:g}")
        hybrid = gated(title, alpha, "hrl", HRL, "--weights", supervised, *gates)
        steps.append(hybrid)
        if longer := DISTILLED.get((alpha, gain)):
            routed = str(hybrid.folder / "hrl.safetensors")
            start = ("--weights", routed, "--gate-weights", routed, "--teacher", backbone)
            flags = (*start, "--distillation", DISTILLATION)
            steps.append(gated(f"{title}-distilled", alpha, "tune", longer, *flags))
    return steps


def pretraining(row: Row, folder: Path, options: Options) -> tuple[list[Step], str]:
    """The backbone and its warm restart, and the file of weights that they end with."""
    steps, start = [], ()
    for name, epochs in BACKBONE.items():
        epochs = epochs * options.length
        flags = ("--depth", str(row.depth), "--epochs", f"{epochs:g}", *start)
        steps.append(Step("pretrain", flags, folder / name, {"epochs": epochs}))
        weights = str(folder / name / "weights.safetensors")
        start = ("--weights", weights, "--lr", "0.05", "--warmup", "0.02")
    return steps, weights


def estimate(name: str, options: Options, data: Images) -> dict[Path, float]:
    """Seconds that each whole step of a row takes on this machine, from a few training steps timed now.

    Of HRL's steps it is an upper bound: an untrained gate executes nine tenths of the blocks. Validations and
    the test at the end are not counted.
    """
    row, device = ROWS[name], pick_device(options.device)
    data = data.to(device)
    args = hybrid_reinforce.Args(gate=row.gate, warmup_iterations=1, routes=2, batch_size=BATCH_SIZE)
    net = ResNet(row.depth).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    learner, plain = hybrid_reinforce.Learner(args, net, device), pretrain.Args()
    precision, plan = resolve_precision("auto", device), args.plan()
    seconds = {
        stage: timed(
            lambda stage=stage: hybrid_reinforce.train_step(learner, data, plan.index(stage), stage, args)
        )
        for stage in (*SP, *HRL)
    }
    one = timed(lambda: pretrain.train_step(RoutingMDP(net), data, 0, plain, precision).mean().backward())
    seconds["epochs"] = one * (len(data) // plain.batch_size)
    teacher, (images, _) = for_inference(net, precision), next(data.batches(args.batch_size))
    with torch.no_grad():
        taught = timed(lambda: teacher(images))
    return {
        step.folder: sum(
            count * (seconds[part] + taught * ("--teacher" in step.flags))
            for part, count in step.plan.items()
        )
        for step in chain(name, options)
    }


def timed(step: Callable[[], object]) -> float:
    """Seconds of one call, after one that does not count."""
    step()
    _synchronize()
    begun = time.perf_counter()
    for _ in range(3):
        step()
    _synchronize()
    return (time.perf_counter() - begun) / 3


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def run(step: Step, options: Options, deadline: float | None) -> bool:
    """Run a step; False where the time is up before its end."""
    command = step.command(options)
    print("$ " + " ".join(["python", *command[1:]]), flush=True)
    with subprocess.Popen(command) as process:
        try:
            code = process.wait(None if deadline is None else max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.terminate()  # at any moment: checkpoints are whole or not at all
            process.wait()
            return False
    if code:
        sys.exit(code)
    return True


def announce(name: str, steps: Sequence[Step], options: Options, data: Images) -> None:
    """Print each step with its time here.

    Raises:
        ValueError: `--minutes` end before the first checkpoint of a step, so that nothing would ever be kept.
    """
    seconds = {} if all(step.done for step in steps) else estimate(name, options, data)
    for step in steps:
        minutes = 0 if step.done else seconds[step.folder] / 60
        state = "done" if step.done else f"about {minutes:.0f} minutes here"
        print(f"{name}: {step.folder.name}: {state}", flush=True)
        unit = 1 if "epochs" in step.plan else EVAL_EVERY
        between = minutes * unit / sum(step.plan.values())
        if options.minutes is not None and between > options.minutes:
            raise ValueError(
                f"--minutes {options.minutes:g} is less than the {between:.0f} between two checkpoints of "
                f"{step.folder.name}, so nothing would be kept; give it more"
            )


def main(options: Options) -> None:
    """Run what is left, then the table."""
    check_numbers(options)
    for name in options.rows:
        if name not in ROWS:
            raise unknown_name("row", name, ROWS)
    deadline = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    data = load_images("cifar10", "train", options.data_dir, options.download)
    for name in options.rows:
        steps = chain(name, options)
        for step in steps:
            step.check(options)
        announce(name, steps, options, data)
        if options.list:
            continue
        for step in steps:
            if not step.done and not run(step, options, deadline):
                print("the time is up; the same command goes on from here")
                return
        results.add(name, [step.folder for step in steps], options.out, options.data_dir)


if __name__ == "__main__":
    main_with_named_errors(Options, main)
