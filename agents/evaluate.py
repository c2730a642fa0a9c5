"""Evaluate trained policies on every image of a split, at one compute budget or at many.

    python -m agents.evaluate runs/…                                   # the test set, once
    python -m agents.evaluate runs/… runs/…/sp.safetensors             # folders and checkpoints alike
    python -m agents.evaluate runs/… --images 1000                     # the first 1,000 of these images
    python -m agents.evaluate runs/… --biases -1 -0.5 0 0.5            # accuracy against FLOPs
    python -m agents.evaluate resnet110-rendered-digits-hrl            # a shipped one
    python -m agents.evaluate runs/… --controls                        # what choosing per image is worth
    python -m agents.evaluate model.zip --trust-sb3 ppo --env SkipResNet20-v0 --weights …

A bias on the policy's log-odds makes every decision more or less likely to execute, which traces accuracy
against FLOPs without retraining. Since such results serve to choose a policy, `--biases` and `--controls` use
the validation split unless `--split` says otherwise.

The row "all blocks" is here the policy's own network with every block executed; in a run's table it is the
network that the run started from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from matplotlib.figure import Figure
from torch import Tensor

from agents.common.cli import main_with_named_errors
from agents.common.controls import EXCHANGED, MOST_FREQUENT, at_the_ends, exchanged, gain_lines, gains
from agents.common.flag_rules import check_choices, check_numbers
from agents.common.subjects import Subject, restore
from agents.common.tables import print_table
from skipnet_rl import plots
from skipnet_rl.checkpoint import write_json
from skipnet_rl.device import cpu_by_default, pick_device, resolve_precision
from skipnet_rl.evaluate import Evaluation, evaluate, most_frequent, save_evaluations
from skipnet_rl.policies import AlwaysExecute, Biased, FixedRoute, Policy
from skipnet_rl.progress import image_progress, progress_bar
from skipnet_rl.randomness import Stream, step_generator
from skipnet_rl.runs import provenance
from skipnet_rl.statistics import magnitudes
from skipnet_rl.terminal import say


@dataclass(frozen=True)
class Args:
    """Evaluate runs, checkpoints and models."""

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """run folders, weights files, names of shipped networks, or .zip files of stable-baselines3"""
    stage: str | None = None
    """stage of a run of hybrid REINFORCE: sp or hrl (default: the last)"""
    biases: tuple[float, ...] = ()
    """numbers added to the log-odds of "execute", one row each (default: none)"""
    controls: bool = False
    """two more rows, which do not look at the image: the policy's routes reassigned to images at random, and
    its most frequent route for all images"""
    mode: Literal["greedy", "sample"] = "greedy"
    """action of the policy: greedy (threshold), or sample"""
    split: str | None = None
    """split of the data set: train, val, test, or selection, the half of val on which policies over frozen
    networks or chains do not learn (default: test; with --biases or --controls, selection for such a policy,
    else val)"""
    images: int | None = None
    """number of images, the first ones (default: all)"""
    dataset: str = "auto"
    """data set, for files outside a run folder; auto: the one that the file names"""
    data_dir: Path | None = None
    """folder of the data set's official files (else the run's own, else $SKIPNET_DATA, else ./data)"""
    mean: tuple[float, float, float] | None = None
    """mean of the images' pixels in 0 … 1, per channel, for normalising (default: as in training)"""
    std: tuple[float, float, float] | None = None
    """standard deviation of these pixels (default: as in training)"""
    alpha: float | None = None
    """weight of the compute saving, for files outside a run folder (default: as in training; 1 for a .zip)"""
    trust_sb3: str | None = None
    """algorithm of trusted .zip files, which can execute code: ppo, recurrent_ppo, a2c or dqn"""
    env: str | None = None
    """environment id that a .zip was trained on (default: that of the network of --weights)"""
    weights: str = "auto"
    """backbone that a .zip was trained on"""
    out: Path | None = None
    """folder for the results (default: the run's, or none)"""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """floating-point format; auto: that of a run's own table, fp32 for everything else"""
    device: str = "auto"
    """cpu, cuda, or auto"""
    seed: int = 0
    """random seed of sampled and of reassigned routes"""
    debug: bool = False
    """traceback of an error"""

    @property
    def budgets(self) -> list[float]:
        """The different biases, in the order of their rows."""
        return sorted(set(self.biases))


def of_one_data_set(names: Sequence[str], data_dir: Path | None) -> tuple[dict[str, Subject], str]:
    """Restore shipped networks or run folders of one data set, with test images; returns its name, too.

    Raises:
        ValueError: networks of different data sets.
        FileNotFoundError, WeightsError: there is no such network.
    """
    asked = Args(tuple(map(Path, names)), split="test", data_dir=data_dir)
    subjects = {name: restore(path, asked) for name, path in zip(names, asked.paths, strict=True)}
    datasets = {name: subject.about["dataset"] for name, subject in subjects.items()}
    if len(set(datasets.values())) > 1:
        raise ValueError(f"networks of different data sets: {datasets}")
    return subjects, datasets[names[0]]


def evaluate_subject(subject: Subject, args: Args) -> dict[str, Any]:
    """Evaluate one subject beside the whole network; write the files, then print the table.

    The subject is played once, with its controls if asked for, or at every bias.
    """
    device = pick_device(args.device)
    precision = resolve_precision(subject.precision if args.precision == "auto" else args.precision, device)
    subject = subject.on(device, args.images)
    images = subject.images
    rows = play(subject, args, precision)
    summaries = [done.summary(name) for name, done in rows.items()]
    for summary, bias in zip(summaries[1:] if args.budgets else [], args.budgets, strict=True):
        summary["bias"] = bias
    found = {
        "schema": 1,
        **subject.about,
        "split": images.split,
        "n_images": len(images),
        "mode": args.mode,
        "seed": args.seed,
        "precision": precision,
        "policies": summaries,
        "notes": at_the_ends(rows),
        **provenance(),
    }
    if args.controls:
        found["gain_over"] = gains(subject.name, rows)
    lines = [*gain_lines(subject.name, found.get("gain_over", {})), *found["notes"]]
    if subject.out is not None:
        lines.append(write(subject, args, found, rows))
    print_table(found)
    for line in lines:
        say(line)
    return found


def play(subject: Subject, args: Args, precision: str) -> dict[str, Evaluation]:
    """Play the whole network and the policy, at every bias, or once with its controls."""
    mdp, policy, images = subject.mdp, subject.policy, subject.images

    rows: dict[str, Evaluation] = {}

    def add(name: str, policy: Policy, mode: str, routes: Tensor | None = None) -> None:
        draws = step_generator(args.seed, 0, images.device, Stream.EVALUATION)
        given: dict[str, Any] = {"mode": mode, "generator": draws, "routes": routes, "precision": precision}
        with image_progress(name) as show:
            rows[name] = evaluate(mdp, policy, images, **given, progress=show)

    add("all blocks", AlwaysExecute(), "greedy")
    if isinstance(policy, AlwaysExecute):
        return rows
    if args.biases:
        for bias in progress_bar(args.budgets, desc="bias", unit="policy"):
            add(f"bias {bias:+.12g}", Biased(policy, bias), args.mode)
        return rows
    add(subject.name, policy, args.mode)
    if args.controls:
        own = rows[subject.name].routes
        add(EXCHANGED, policy, "greedy", exchanged(own, args.seed))
        add(MOST_FREQUENT, AlwaysExecute(), "greedy", most_frequent(own).expand_as(own))  # needs no gates
    return rows


def write(subject: Subject, args: Args, found: dict[str, Any], rows: Mapping[str, Evaluation]) -> str:
    """Write the numbers, the routes and the pictures into the subject's folder; returns a line about it."""
    assert subject.out is not None
    kind = "budget" if args.biases else "controls" if args.controls else "evaluation"
    stage = [args.stage] if args.stage else []  # beside the results of the last stage
    some = [f"first-{found['n_images']}"] if args.images == found["n_images"] else []
    which = "-".join([*stage, found["split"], *some, args.mode])
    place = subject.out / f"{kind}-{which}"
    write_json(place.with_name(f"{place.name}.json"), found)
    save_evaluations(place.with_name(f"{place.name}.npz"), rows)
    figures = pictures(subject, found, rows)
    for title, figure in figures.items():
        plots.save_figure(figure, subject.out / "plots" / f"{title}-{which}.png")
    return f"wrote {place}.json and {len(figures)} pictures beside it"


def pictures(subject: Subject, found: Mapping[str, Any], rows: Mapping[str, Evaluation]) -> dict[str, Figure]:
    """Draw the curve over several biases, or else which images and blocks are skipped."""
    if any("bias" in row for row in found["policies"]):
        return {"budget": plots.budget_curve(found["policies"])}
    images, record = subject.images, rows[subject.name].record()
    figures = {
        "easy_and_hard": plots.easy_and_hard(images, record, subject.mdp.net.stages[1:]),
        "skip_rate_by_class": plots.skip_rate_by_class(record, images.labels.cpu().numpy(), images.classes),
    }
    if factors := getattr(images, "factors", None):
        known = magnitudes({name: values.cpu().numpy() for name, values in factors.items()})
        figures["difficulty"] = plots.difficulty(known, (~record.routes).sum(axis=1))
    return figures


@cpu_by_default()
def main(args: Args) -> list[dict[str, Any]]:
    """Evaluate every path; returns what was written.

    Raises:
        ValueError: nothing to evaluate, an unknown mode, several paths for one `--out`, both `--biases` and
            `--controls`, or one of them for a plain network or a fixed route.
    """
    check_choices(args)
    check_numbers(args)
    if not args.paths:
        raise ValueError("nothing to evaluate; name a run folder, a weights file or a shipped network")
    if args.out and len(args.paths) > 1:
        raise ValueError(
            f"--out {args.out} takes the results of one path; evaluate the others in separate commands"
        )
    if args.controls and args.biases:
        raise ValueError("--controls and --biases exclude each other; give one of them")
    subjects = [restore(path, args) for path in args.paths]
    one_route = (AlwaysExecute, FixedRoute)
    if (args.controls or args.biases) and any(isinstance(each.policy, one_route) for each in subjects):
        raise ValueError("--controls and --biases need a policy that chooses blocks")
    return [evaluate_subject(subject, args) for subject in subjects]


if __name__ == "__main__":
    main_with_named_errors(Args, main)
