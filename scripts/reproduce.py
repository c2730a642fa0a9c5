"""The results on CIFAR-10: every run of each row, then the table and the pictures.

    python -m scripts.reproduce --data-dir data --list           # the commands
    python -m scripts.reproduce --data-dir data --rows resnet38
    python -m scripts.reproduce --data-dir data --rows resnet110 --jobs 4    # on a GPU: side by side

`scripts.rows` has the commands of each row. Interrupt it at any moment: the same command goes on. At the end
of a row `scripts.results` makes the table and the pictures in `--out` from the run folders.
"""

from __future__ import annotations

from agents.common import jobs
from agents.common.cli import main_with_named_errors
from agents.common.cluster import pool_of
from agents.common.flag_rules import check_numbers
from scripts import collect
from scripts.rows import ROWS, Options, chain
from skipnet_rl.data import load_images
from skipnet_rl.errors import unknown_name
from skipnet_rl.terminal import say


def main(options: Options) -> None:
    """Run what is left of each row, then make the table."""
    check_numbers(options)
    for name in options.rows:
        if name not in ROWS:
            raise unknown_name("row", name, ROWS)
    if not options.list:
        load_images("cifar10", "train", options.data_dir, options.download)  # an error before anything runs
    for name in options.rows:
        row = chain(name, options)
        if options.list:
            say("\n".join(f"{job.folder}: {'done' if job.done() else ' '.join(job.line)}" for job in row))
            continue
        jobs.exit_if_failed(jobs.run(row, pool_of(options.jobs, threads=None)))
        collect.add(name, [job.folder for job in row], options.out, options.data_dir)


if __name__ == "__main__":
    jobs.end_runs_on_sigterm()
    main_with_named_errors(Options, main)
