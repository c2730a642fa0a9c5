"""Compare every policy of this project on one data set, with three seeds each.

    python -m benchmarks.policies --data-dir data
    python -m benchmarks.policies --dataset rendered-digits --weights auto --runs runs/digits

All policies start from the same network. `SWEEP` lists the agents and their flags. Finished runs in `--runs`
are not repeated, so an interrupted sweep continues. `agents.compare` makes the table and the pictures from
the run folders.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agents import compare
from agents.common import jobs
from agents.common.cli import main_with_named_errors
from agents.common.cluster import pool_of
from skipnet_rl.errors import unknown_name

SWEEP: tuple[tuple[str, tuple[str, ...], bool], ...] = (  # agent, flags, whether the seed changes anything
    ("static", (), False),
    ("oracle", (), False),
    ("ppo", (), True),
    ("ppo", ("--recurrent",), True),
    ("a2c", (), True),
    ("dqn", (), True),
    ("reinforce", (), True),
    ("gumbel", (), True),
    ("blockdrop", (), True),
    ("act", (), True),
    ("hybrid_reinforce", ("--preset", "longer"), True),
)


@dataclass(frozen=True)
class Options:
    """Train and compare every policy."""

    env: str = "SkipResNet20-v0"
    """environment id"""
    dataset: str = "cifar10"
    """data set"""
    data_dir: Path | None = None
    """folder of the data set's official files"""
    weights: str = "resnet20-cifar10-skips"
    """network from which all policies start"""
    alpha: float = 1.0
    """weight of the compute saving"""
    seeds: int = 3
    """runs of each agent that depends on the seed"""
    jobs: int = 2
    """runs at a time, with one CPU thread each; through Ray if more than one"""
    runs: Path = Path("runs/policies")
    """folder of the run folders"""
    out: Path | None = None
    """folder of the table and the pictures (default: runs/comparison-<dataset>)"""
    only: tuple[str, ...] = ()
    """agents to run (default: all)"""
    debug: bool = False
    """traceback of an error"""


def commands(options: Options) -> list[jobs.Job]:
    """Return the jobs of the sweep, seed by seed, so that one run of each policy comes first.

    Raises:
        ValueError: an unknown agent.
    """
    agents = dict.fromkeys(agent for agent, _, _ in SWEEP)
    for name in options.only:
        if name not in agents:
            raise unknown_name("agent", name, agents)
    common = ["--env", options.env, "--dataset", options.dataset, "--weights", options.weights]
    common += ["--alpha", str(options.alpha)]
    if options.data_dir:
        common += ["--data-dir", str(options.data_dir)]
    found = []
    for seed in range(options.seeds):
        for agent, flags, seeded in SWEEP:
            if (seeded or seed == 0) and (not options.only or agent in options.only):
                folder = options.runs / "-".join([agent, *(f.strip("-") for f in flags[:1]), str(seed)])
                command = (f"agents.{agent}", *common, *flags, "--seed", str(seed))
                found.append(jobs.Job(folder, command))
    return found


def main(options: Options) -> None:
    """Run what is missing, then compare the policies."""
    sweep = commands(options)
    jobs.exit_if_failed(jobs.run(sweep, pool_of(options.jobs)))
    out = options.out or Path("runs") / f"comparison-{options.dataset}"
    compare.main(compare.Args(tuple(job.folder for job in sweep), out=out))


if __name__ == "__main__":
    jobs.end_runs_on_sigterm()
    main_with_named_errors(Options, main)
