"""The results: every run of each row, then the table and the pictures of its data set.

    python -m scripts.reproduce --data-dir data --list           # the commands
    python -m scripts.reproduce --data-dir data --rows resnet38
    python -m scripts.reproduce --data-dir data --rows resnet20-cifar100 chains-cifar100
    python -m scripts.reproduce --data-dir data --rows resnet110 --jobs 4    # on a GPU: side by side

`scripts.rows` has the commands of each row. Interrupt it at any moment: the same command goes on. At the end
of a row `scripts.results` makes the table and the pictures in `--out` from the run folders, or
`agents.cascade` tunes chains of the row's networks.
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
from scripts.rows import ROWS, Options, chain, weights_of
from skipnet_rl.data import load_images
from skipnet_rl.errors import unknown_name
from skipnet_rl.terminal import say


def main(options: Options) -> None:
    """Run what is left of each row, then make the table."""
    check_numbers(options)
    for name in options.chosen:
        if name not in ROWS:
            raise unknown_name("row", name, ROWS)
    datasets = {ROWS[name].dataset for name in options.chosen}
    if options.out and len(datasets) > 1:
        raise ValueError(f"--out is for one data set, and the rows have {', '.join(sorted(datasets))}")
    if not options.list:
        for dataset in datasets:  # an error before anything runs
            load_images(dataset, "train", options.data_dir, options.download)
    for name in options.chosen:
        row = chain(name, options)
        if options.list:
            say("\n".join(f"{job.folder}: {'done' if job.done() else ' '.join(job.line)}" for job in row))
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
    """What `agents.cascade` is to do with the backbones of a row: two of them in a row, and all."""
    small, middle, large = weights_of(name, options)
    chains = (f"{small},{middle}", f"{middle},{large}", f"{small},{middle},{large}")
    return cascade.Options(chains, data_dir=options.data_dir, dataset=ROWS[name].dataset, out=out)


def line_of(options: cascade.Options) -> str:
    """The command line of `agents.cascade` that has these options."""
    data = ["--data-dir", str(options.data_dir)] if options.data_dir else []
    rest = ["--dataset", options.dataset, *data, "--out", str(options.out)]
    return shlex.join(["python", "-m", "agents.cascade", "--chains", *options.chains, *rest])


if __name__ == "__main__":
    jobs.end_runs_on_sigterm()
    main_with_named_errors(Options, main)
