"""The results on CIFAR-10, row by row, from nothing to the table.

    python scripts/reproduce.py --data-dir data --list           # the steps, and how long they take here
    python scripts/reproduce.py --data-dir data --rows resnet38
    python scripts/reproduce.py --data-dir data --minutes 9      # stops in time; the same command goes on

A row is a chain of this project's commands: the backbone, a warm restart, a fine-tuning with blocks left out
at random, then SP and HRL at several alphas. Each has a folder under `--runs`: what is finished is not run
again, what was interrupted is resumed. At the end `agents.compare` makes the table and the pictures in
`--out` from these folders, and `published.png` has the figures of the literature beside them.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from agents import hybrid_reinforce, pretrain
from skipnet_rl import plots
from skipnet_rl.data import Images, load_images
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.precision import pick_device, resolve_precision
from skipnet_rl.resnet import ResNet

ALPHAS = (1.0, 2.0)
HRL = (
    "--sp-iterations", "100", "--iterations", "1000", "--tune-iterations", "4000", "--lr", "5e-4",
    "--eval-every", "250",
)  # fmt: skip
# accuracy, share of computation; of SkipNet's the share of blocks, of BlockDrop's that of FLOPs
PUBLISHED = {
    "SkipNet-38": (0.9275, 0.703),  # Wang et al. 2018, the authors' README
    "SkipNet-74": (0.9277, 0.523),
    "SkipNet-110": (0.9330, 0.495),
    "BlockDrop-110": (0.936, 0.36),  # Wu et al. 2018, the authors' README
}
DEPTHS = {"resnet38": 38, "resnet74": 74, "resnet110": 110, "resnet152": 152}


@dataclass(frozen=True)
class Options:
    """Train and compare the rows."""

    rows: tuple[str, ...] = ("resnet110", "resnet38", "resnet74", "resnet152")
    """which, in this order"""
    data_dir: Path = Path("data")
    """folder of CIFAR-10"""
    runs: Path = Path("runs/results")
    """folder of the run folders"""
    out: Path = Path("docs/results-cifar10")
    """folder of the table and the pictures, one for each row"""
    minutes: float | None = None
    """stop after so many (default: never)"""
    device: str = "auto"
    """cpu, cuda, or auto"""
    seed: int = 0
    """of every run"""
    list: bool = False
    """only say what would be run"""


@dataclass(frozen=True)
class Step:
    """One command of a row."""

    agent: str
    flags: tuple[str, ...]
    folder: Path
    epochs: int = 0

    @property
    def done(self) -> bool:
        """Whether it came to its end."""
        return (self.folder / "result.json").is_file()

    def command(self, options: Options) -> list[str]:
        """What is run; goes on where it was interrupted."""
        place = ["--data-dir", str(options.data_dir), "--device", options.device]
        resume = ["--resume"] if (self.folder / "args.json").is_file() else []
        return [
            sys.executable, "-m", f"agents.{self.agent}", "--dataset", "cifar10", "--seed", str(options.seed),
            *self.flags, *place, "--run-dir", str(self.folder), *resume,
        ]  # fmt: skip


def chain(row: str, options: Options) -> list[Step]:
    """The steps of a row in order."""
    depth, folder = DEPTHS[row], options.runs / f"{row}-{options.seed}"
    backbone, restart, skips = (folder / name for name in ("backbone", "restart", "skips"))

    def pretraining(place: Path, epochs: int, *flags: str) -> Step:
        return Step("pretrain", ("--depth", str(depth), "--epochs", str(epochs), *flags), place, epochs)

    def start(place: Path) -> tuple[str, ...]:
        return ("--weights", str(place / "weights.safetensors"))

    def gated(alpha: float) -> Step:
        flags = ("--env", f"SkipResNet{depth}-v0", *start(skips), "--alpha", str(alpha), *HRL)
        return Step("hybrid_reinforce", flags, folder / f"hrl-{alpha}")

    again = ("--lr", "0.05", "--warmup", "0.02")
    return [
        pretraining(backbone, 40),
        pretraining(restart, 15, *start(backbone), *again),
        pretraining(skips, 16, *start(restart), *again, "--survival", "0.6"),
        *(gated(alpha) for alpha in ALPHAS),
    ]


def estimate(row: str, options: Options, data: Images) -> dict[Path, float]:
    """Seconds that each step of a row takes on this machine, from a few training steps timed now."""
    device = pick_device(options.device)
    precision, data = resolve_precision("auto", device), data.to(device)
    net = ResNet(DEPTHS[row]).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    mdp, plain = RoutingMDP(net), pretrain.Args()
    backbone = timed(lambda: pretrain.train_step(mdp, data, 0, plain, precision).mean().backward())
    args = hybrid_reinforce.Args()
    learner = hybrid_reinforce.Learner(args, net, device)
    plan = args.plan()
    sampled, tuned = (
        timed(lambda stage=stage: hybrid_reinforce.train_step(learner, data, plan.index(stage), stage, args))
        for stage in ("hrl", "tune")
    )
    per_epoch = len(data) // plain.batch_size
    sp, hrl, tune = (int(HRL[HRL.index(f"--{name}iterations") + 1]) for name in ("sp-", "", "tune-"))
    gated = hrl * sampled + (sp + tune) * tuned
    return {step.folder: step.epochs * per_epoch * backbone or gated for step in chain(row, options)}


def timed(step: Callable[[], object]) -> float:
    """Seconds of one call, after one that does not count."""
    step()
    begun = time.perf_counter()
    for _ in range(3):
        step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - begun) / 3


def run(step: Step, options: Options, deadline: float | None) -> bool:
    """Run a step; False where the time is up before its end."""
    command = step.command(options)
    print("$ " + " ".join(["python", *command[1:]]), flush=True)
    with subprocess.Popen(command) as process:
        try:
            code = process.wait(None if deadline is None else max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            process.wait()
            return False
    if code:
        sys.exit(code)
    return True


def published(out: Path) -> None:
    """The frontier of a comparison with the literature's figures in it."""
    rows = json.loads((out / "comparison.json").read_text())["policies"]
    learned = [row for row in rows if not row["name"].startswith("SP")]
    figure = plots.frontier(learned, 0.89)
    axes = figure.axes[0]
    for name, (accuracy, compute) in PUBLISHED.items():
        axes.plot(100 * compute, 100 * accuracy, "D", mfc="none", color="0.3")
        axes.annotate(name, (100 * compute, 100 * accuracy), (5, 4), textcoords="offset points", fontsize=8)
    axes.set_ylim(89, 94.2)
    plots.save_figure(figure, out / "published.png")


def main(options: Options) -> None:
    """Run what is left, then compare."""
    data = load_images("cifar10", "train", options.data_dir)
    deadline = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    for row in options.rows:
        seconds = estimate(row, options, data)
        steps = chain(row, options)
        for step in steps:
            state = "done" if step.done else f"about {seconds[step.folder] / 60:.0f} minutes here"
            print(f"{row}: {step.folder.name}: {state}", flush=True)
        if options.list:
            continue
        for step in steps:
            if not step.done and not run(step, options, deadline):
                print("the time is up; the same command goes on from here")
                return
        out = options.out / row
        folders = [str(step.folder) for step in steps if step.agent == "hybrid_reinforce"]
        subprocess.run([sys.executable, "-m", "agents.compare", *folders, "--out", str(out)], check=True)
        published(out)


if __name__ == "__main__":
    main(tyro.cli(Options))
