"""Reproduce the results: train every run of the chosen rows, then make tables and pictures.

    python -m scripts.reproduce --data-dir data --list           # the commands
    python -m scripts.reproduce --data-dir data --rows resnet38
    python -m scripts.reproduce --data-dir data --rows resnet20-cifar100 chains-cifar100
    python -m scripts.reproduce --data-dir data --rows resnet110 --jobs 4    # several runs share a GPU

`scripts.rows` defines the rows and their commands. After an interruption the same command continues. When a
row is complete, `scripts.collect` adds it to the table and the pictures in `--out`; for a row of chains,
`agents.cascade` tunes chains of the trained networks.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from agents import cascade
from agents.common import jobs
from agents.common.cli import main_with_named_errors
from agents.common.cluster import pool_of
from agents.common.flag_rules import check_numbers
from scripts import collect, results
from scripts.rows import ROWS, Options, jobs_of, weights_of
from skipnet_rl.data import load_images
from skipnet_rl.errors import unknown_name
from skipnet_rl.terminal import say


def main(options: Options) -> None:
    """Run what is left of each row, then add it to the table."""
    check_numbers(options)
    for name in options.chosen:
        if name not in ROWS:
            raise unknown_name("row", name, ROWS)
    datasets = {ROWS[name].dataset for name in options.chosen}
    if options.out and len(datasets) > 1:
        raise ValueError(f"--out holds one data set, but the rows are for {', '.join(sorted(datasets))}")
    if not options.list:
        for dataset in datasets:  # missing data is an error before anything runs
            load_images(dataset, "train", options.data_dir, options.download)
    for name in options.chosen:
        row = jobs_of(name, options)
        if options.list:
            jobs.list_commands(row)
            if ROWS[name].chain:
                tuned = chains_of(name, options, options.table(ROWS[name]))
                say(f"{tuned.out}: {line_of(tuned)}")
            continue
        jobs.exit_if_failed(jobs.run(row, pool_of(options.jobs, threads=None)))
        place = options.table(ROWS[name])
        if ROWS[name].chain:
            cascade.main(chains_of(name, options, place))
            results.draw_chains(place)
        else:
            collect.add(name, [job.folder for job in row], place, options.data_dir)


def chains_of(name: str, options: Options, out: Path) -> cascade.Options:
    """Return the options of `agents.cascade` for a row's backbones: adjacent pairs, and all three."""
    small, middle, large = weights_of(name, options)
    chains = (f"{small},{middle}", f"{middle},{large}", f"{small},{middle},{large}")
    return cascade.Options(chains, data_dir=options.data_dir, dataset=ROWS[name].dataset, out=out)


def line_of(options: cascade.Options) -> str:
    """Return the command line of `agents.cascade` with these options."""
    data = ["--data-dir", str(options.data_dir)] if options.data_dir else []
    rest = ["--dataset", options.dataset, *data, "--out", str(options.out)]
    return shlex.join(["python", "-m", "agents.cascade", "--chains", *options.chains, *rest])


if __name__ == "__main__":
    jobs.end_runs_on_sigterm()
    main_with_named_errors(Options, main)
