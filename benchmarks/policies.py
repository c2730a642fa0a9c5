"""Every policy of this project on one data set, three seeds each, in one table.

    python -m benchmarks.policies --data-dir data
    python -m benchmarks.policies --dataset rendered-digits --weights auto --runs runs/digits

All start from the same network. Each line of `SWEEP` is a command, printed before it is run; what is
finished in `--runs` is not run again, so an interrupted sweep goes on. The table and the pictures come from
`agents.compare`, which reads the run folders and nothing else.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tyro

from skipnet_rl.terminal import say

HRL = (
    "--iterations 500 --tune-iterations 150 --sp-iterations 20 --batch-size 128 --lr 3e-4 --gate-lr 0.01 "
    "--bn-images 4000 --preset quick"
)
# agent, flags, whether a seed changes anything
SWEEP: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("static", (), False),
    ("oracle", (), False),
    ("ppo", (), True),
    ("ppo", ("--recurrent",), True),
    ("a2c", (), True),
    ("dqn", (), True),
    ("reinforce", (), True),
    ("gumbel", (), True),
    ("blockdrop", (), True),
    ("hybrid_reinforce", tuple(HRL.split()), True),
)


@dataclass(frozen=True)
class Options:
    """Train and compare every policy."""

    env: str = "SkipResNet20-v0"
    """id"""
    dataset: str = "cifar10"
    """data set"""
    data_dir: Path | None = None
    """folder of its official files"""
    weights: str = "resnet20-cifar10-skips"
    """the network that all start from"""
    alpha: float = 1.0
    """weight of the compute saving, the same for all"""
    seeds: int = 3
    """runs of each learner"""
    jobs: int = 2
    """runs at a time, one CPU thread each"""
    runs: Path = Path("runs/policies")
    """folder of the run folders"""
    out: Path = Path("docs/policies-cifar10")
    """folder of the table and the pictures"""
    only: tuple[str, ...] = ()
    """agents; default: all"""


def commands(options: Options) -> dict[Path, list[str]]:
    """Run folder → command line, seeds in the outer loop so that one of each comes first."""
    common = ["--env", options.env, "--dataset", options.dataset, "--weights", options.weights]
    common += ["--alpha", str(options.alpha)]
    if options.data_dir:
        common += ["--data-dir", str(options.data_dir)]
    found = {}
    for seed in range(options.seeds):
        for agent, flags, seeded in SWEEP:
            if (seeded or seed == 0) and (not options.only or agent in options.only):
                folder = options.runs / "-".join([agent, *(f.strip("-") for f in flags[:1]), str(seed)])
                found[folder] = [
                    "-m", f"agents.{agent}", *common, *flags, "--seed", str(seed), "--run-dir", str(folder)
                ]  # fmt: skip
    return found


def run(folder: Path, command: list[str]) -> None:
    """One command, with its output beside its folder; a run that was interrupted starts anew."""
    if (folder / "result.json").is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".log").open("w", encoding="utf-8") as log:
        done = subprocess.run(
            [sys.executable, *command],
            stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
        )  # fmt: skip
    verdict = "finished" if done.returncode == 0 else f"FAILED, see {folder}.log"
    say(f"{verdict} {folder}")


def main(options: Options) -> None:
    """Run what is missing, then compare."""
    todo = commands(options)
    for command in todo.values():
        say(" ".join(["python", *command]))
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(run, todo.keys(), todo.values()))
    finished = [str(folder) for folder in todo if (folder / "result.json").is_file()]
    subprocess.run([sys.executable, "-m", "agents.compare", *finished, "--out", str(options.out)], check=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
