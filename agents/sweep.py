"""Many runs of one agent, side by side: a grid of values, or a search for good ones.

    python -m agents.sweep --agent hybrid_reinforce --grid alpha=0.2,0.4,0.8 seed=0,1,2
    python -m agents.sweep --agent reinforce --grid seed=0,1,2 -- --env SkipResNet20-v0 --iterations 300
    python -m agents.sweep --agent hybrid_reinforce --range lr=1e-4:1e-2:log gate_lr=1e-3:0.1:log --search 20

Flags after `--` are given to every run. Each run has an ordinary run folder in `--out`, named after its
values; its output goes to a file beside it, or to the terminal with `--workers 1`. After an interruption the
same command continues: finished runs are skipped, the others resume from their checkpoints. A failed run is
tried once more. At the end `agents.compare` makes a table of all runs of a grid, or of the best of a search.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from agents import compare
from agents.common import jobs
from agents.common.cli import main_with_named_errors
from agents.common.cluster import pool_of
from agents.common.entries import SHARED
from agents.common.finished import FinishedRun
from agents.common.flag_rules import check_choices, check_numbers
from agents.common.jobs import Job, Pool
from agents.common.plan import Plan, grid_of
from agents.common.ranges import ranges_of
from agents.common.search import Budget, Objective, Search
from skipnet_rl.files import as_name

Agent = Literal[
    "hybrid_reinforce",
    "finetune",
    "reinforce",
    "ppo",
    "a2c",
    "dqn",
    "gumbel",
    "blockdrop",
    "act",
    "static",
    "oracle",
    "pretrain",
]


@dataclass(frozen=True)
class Args:
    """Run an agent many times."""

    flags: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """flags of every run, after --"""
    agent: Agent = "hybrid_reinforce"
    """module to run"""
    grid: tuple[str, ...] = ()
    """flags that vary and their values, NAME=VALUE,VALUE: one run for each combination"""
    range: tuple[str, ...] = ()
    """flags to search and their ranges, NAME=LOW:HIGH, NAME=LOW:HIGH:log, or NAME=VALUE,VALUE"""
    search: str | None = None
    """budget of a search: a number of runs, those of earlier calls included, or minutes such as 90m, after
    which no run is started"""
    objective: Objective = "auto"
    """objective of a search, on validation images: return, accuracy, or the trade-off of accuracy and FLOPs;
    auto: return, or the trade-off if alpha or cost varies"""
    out: Path | None = None
    """folder of the run folders and of the comparison (default: runs/sweep-<agent>)"""
    workers: int | None = None
    """runs at a time on this machine (default: as many as its cores or GPUs allow); more runs than GPUs share
    them; 1 needs no Ray"""
    threads: int = 1
    """CPU threads per run"""
    gpus: float | None = None
    """GPUs per run, a fraction to share one (default: 1 if there are any, 0 with --device cpu)"""
    address: str | None = None
    """address of a running Ray cluster, such as auto or ray://host:10001 (default: this machine alone)"""
    list: bool = False
    """commands of a grid, printed without running them"""
    debug: bool = False
    """traceback of an error"""

    def check(self) -> None:
        """Raise a ValueError for flags that make no sense, or not together."""
        check_choices(self)
        check_numbers(self)
        if bool(self.grid) == bool(self.range):
            raise ValueError("expected either --grid NAME=VALUE,VALUE or --range NAME=LOW:HIGH with --search")
        if bool(self.range) != bool(self.search):
            raise ValueError("--range and --search go together: what to search, and for how long")
        if self.list and self.range:
            raise ValueError("--list is for --grid; a search chooses its runs as it goes")
        if self.workers is not None and self.address is not None:
            raise ValueError(
                "--workers is for this machine; on a cluster, its machines set the number of runs"
            )
        if self.workers == 1 and self.gpus is not None:
            raise ValueError(
                "--gpus deals out GPUs to runs side by side; with --workers 1, give --device after --"
            )


def pool_for(args: Args, plan: Plan) -> Pool:
    """Return the pool that the flags ask for, without GPUs if every run is on the CPU."""
    gpus = 0 if args.gpus is None and plan.on_cpu else args.gpus
    return pool_of(args.workers, args.threads, gpus, args.address)


def compare_all(runs: Sequence[Job], out: Path) -> None:
    """Write a table of the runs, or one for each environment and data set."""
    groups: dict[tuple[str, ...], list[Path]] = defaultdict(list)
    for job in runs:
        result = FinishedRun.read(job.folder).result
        groups[tuple(str(result.get(key)) for key in SHARED)].append(job.folder)
    for key, folders in groups.items():
        place = out / "comparison"
        if len(groups) > 1:
            place /= as_name("-".join(key))
        compare.main(compare.Args(tuple(folders), out=place))


def main(args: Args) -> None:
    """Run what is missing, then compare."""
    args.check()
    out = args.out or Path("runs") / f"sweep-{args.agent}"
    plan = Plan(args.agent, args.flags, out, args.address is not None)
    if args.search is not None:
        budget = Budget.of(args.search)
        search = Search(plan, ranges_of(args.range, plan), args.objective)
        failed = search.run(pool_for(args, plan), budget)
        search.report()
        runs = search.best()
    else:
        grid = grid_of(args.grid)
        plan.check_names(grid[0])
        runs = [plan.job(values) for values in grid]
        plan.check(runs)
        if args.list:
            jobs.list_commands(runs)
            return
        failed = jobs.run(runs, pool_for(args, plan))
        runs = [job for job in runs if job not in failed]
    if runs:
        compare_all(runs, out)
    jobs.exit_if_failed(failed)


if __name__ == "__main__":
    jobs.end_runs_on_sigterm()
    main_with_named_errors(Args, main)
