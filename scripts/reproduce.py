"""The results on CIFAR-10, row by row, to the table.

    python -m scripts.reproduce --data-dir data --list           # the steps, and how long they take here
    python -m scripts.reproduce --data-dir data --rows resnet38
    python -m scripts.reproduce --data-dir data --minutes 9      # stops in time; the same command goes on
    python -m scripts.reproduce --data-dir data --rows resnet110 --jobs 4    # on a GPU: steps side by side

Each command of a row, see `scripts.rows`, has a folder under `--runs`: what is finished is not run again,
what was interrupted is resumed from its last checkpoint, an epoch of a backbone or 265 steps of gates ago at
most. At the end `scripts.results` makes the table and the pictures in `--out` from these folders.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from agents import hybrid_reinforce, pretrain
from agents.common.cli import main_with_named_errors
from agents.common.distillation import Teacher
from agents.common.flag_rules import check_numbers
from scripts import results
from scripts.rows import ROWS, Options, Step, chain
from skipnet_rl import catalogue
from skipnet_rl.data import Images, load_images
from skipnet_rl.device import pick_device, resolve_precision
from skipnet_rl.errors import unknown_name
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.resnet import ResNet
from skipnet_rl.terminal import say

POLL = 0.2  # seconds between looks at what is running
GRACE = 10  # seconds to end in


def estimate(name: str, options: Options, data: Images) -> dict[Path, float]:
    """Seconds that each whole step of a row takes on this machine, from a few training steps timed now.

    Of HRL's steps it is an upper bound: an untrained gate executes nine tenths of the blocks. Validations and
    the test at the end are not counted, nor what `--jobs` changes.
    """
    row, device = ROWS[name], pick_device(options.device)
    size, data = row.schedule.batch_size, data.to(device)
    args = hybrid_reinforce.Args(
        gate=row.gate, warmup_iterations=1, routes=row.schedule.routes, batch_size=size
    )
    net = ResNet(row.depth).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    any_order = torch.arange(len(net.blocks) - 1, device="cpu")  # of the blocks, for the preparation
    learner = hybrid_reinforce.Learner(args, net, device, costs=any_order)
    plain = pretrain.Args(batch_size=size)
    precision, plan = resolve_precision("auto", device), args.plan()
    seconds = {
        stage: timed(
            lambda stage=stage: hybrid_reinforce.train_step(learner, data, plan.index(stage), stage, args)
        )
        for stage in dict.fromkeys(plan)
    }
    one = timed(lambda: pretrain.train_step(RoutingMDP(net), data, 0, plain, precision).mean().backward())
    seconds["epochs"] = one * (len(data) // size)
    known = (catalogue.find(name) for name in row.schedule.teachers)
    depths = [entry["depth"] if entry else row.depth for entry in known] or [row.depth]
    teacher = Teacher([ResNet(depth).to(device) for depth in depths], precision)
    images, _ = next(data.batches(size))
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


def run(steps: Sequence[Step], options: Options, deadline: float | None) -> bool:
    """Run what is not done of a row, at most `--jobs` at a time; False where the time is up before the end.

    Of steps side by side each has its output in a file beside its folder.
    """
    running: dict[Step, subprocess.Popen[bytes]] = {}
    waiting = [step for step in steps if not step.done]
    try:
        while waiting or running:
            if deadline is not None and time.monotonic() > deadline:
                return False
            for step in [step for step in waiting if not step.needs([*waiting, *running])]:
                if len(running) < options.jobs:
                    waiting.remove(step)
                    running[step] = begin(step, options)
            time.sleep(POLL)
            for step in [step for step, process in running.items() if process.poll() is not None]:
                code = running.pop(step).returncode
                if code or not step.done:
                    where = f"; see {log_of(step)}" if options.jobs > 1 else ""
                    say(f"{step.folder} ended with exit code {code}, not done{where}")
                    sys.exit(code if code > 0 else 1)
        return True
    finally:
        stop(list(running.values()))


def begin(step: Step, options: Options) -> subprocess.Popen[bytes]:
    """Start a step."""
    command = step.command(options)
    say("$ " + " ".join(["python", *command[1:]]))
    if options.jobs == 1:
        return subprocess.Popen(command)
    step.folder.parent.mkdir(parents=True, exist_ok=True)
    with log_of(step).open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def log_of(step: Step) -> Path:
    """Where the output of a step goes that is not alone."""
    return step.folder.with_name(f"{step.folder.name}.log")


def stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End them, at any moment: checkpoints are whole or not at all."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def announce(name: str, steps: Sequence[Step], options: Options, data: Images) -> None:
    """Print each step with its time here.

    Raises:
        ValueError: `--minutes` end before the first checkpoint of a step, so that nothing would ever be kept.
    """
    seconds = {} if all(step.done for step in steps) else estimate(name, options, data)
    torch.cuda.empty_cache()  # the steps need that memory
    for step in steps:
        minutes = 0 if step.done else seconds[step.folder] / 60
        state = "done" if step.done else f"about {minutes:.0f} minutes here"
        say(f"{name}: {step.folder.name}: {state}")
        between = minutes * step.between / sum(step.plan.values())
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
        if not run(steps, options, deadline):
            say("the time is up; the same command goes on from here")
            return
        results.add(name, [step.folder for step in steps], options.out, options.data_dir)


if __name__ == "__main__":
    # an exception, so that what it started ends, too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    main_with_named_errors(Options, main)
