"""The end of a run: headers of weights files, result.json, plots and table."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from agents.common.chains import chain_header
from agents.common.flags import CommonArgs
from agents.common.tables import print_table
from skipnet_rl.chain_problem import ChainProblem
from skipnet_rl.evaluate import Evaluation, save_evaluations
from skipnet_rl.plots import write_plots
from skipnet_rl.runs import Run, without_places, words_of
from skipnet_rl.terminal import say

if TYPE_CHECKING:
    from agents.common.setting import Setting


def weights_header(setting: Setting, kind: str, agent: str, **more: Any) -> dict[str, Any]:
    """Return the header of a weights file, see `skipnet_rl.weights`.

    Args:
        setting: what the run learned on.
        kind: one of `skipnet_rl.weights.KINDS`.
        agent: the module's name.
        **more: further values that are needed to rebuild the policy.
    """
    args = setting.args
    if isinstance(setting.problem, ChainProblem):
        about = chain_header(setting.problem, kind)
    else:
        about = {"kind": kind, **setting.net.about()}
    if kind != "plain":  # gates and policies are learned for a reward, some on half of the validation images
        about |= {"alpha": args.alpha, "cost": args.cost, "learned_on": setting.learned_on}
    return {
        **about,
        "dataset": setting.dataset,
        "num_classes": setting.net.num_classes,
        "mean": setting.train.mean,
        "std": setting.train.std,
        **more,
        "command": without_places(command(args, agent), run_dir=False),
        "after": networks_before((*setting.problem.sources, *args.networks)),
    }


def finish(
    setting: Setting,
    run: Run,
    agent: str,
    rows: Mapping[str, Evaluation],
    wall_time: float,
    weights: Mapping[str, str | None] | None = None,
    mixes: Mapping[str, Sequence[float]] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Write the routes, result.json and the plots, then print the table; returns result.json's content.

    The numbers are written before anything is drawn or printed, since drawing and printing can fail.

    Args:
        setting: what the run learned on.
        run: its folder.
        agent: the module's name.
        rows: evaluations on the test set by name; the last is the policy that the run is about.
        wall_time: seconds of training.
        weights: for each row that was played on other weights than the run started from, the file in the
            run's folder, or the name of a shipped network.
        mixes: for each row that was played on a chain at other weights of the answer so far than the
            environment's, these weights, N.
        **more: further fields; the lines of `notes` are printed last.
    """
    args = setting.args
    files: dict[str, str | None] = {
        **dict.fromkeys(("all blocks", "random"), setting.plain_name),
        **(weights or {}),
    }
    own_mix = {name: {"mix": list(mix)} for name, mix in (mixes or {}).items()}
    result = {
        "env": args.env,
        "agent": agent,
        "dataset": setting.dataset,
        "split": "test",
        "n_images": len(setting.test),
        "split_images": setting.split_images,
        "alpha": args.alpha,
        "cost": args.cost,
        "seed": args.seed,
        "precision": setting.precision,
        "wall_time_s": wall_time,
        "command": shlex.join(command(args, agent)),
        "learned_on": setting.learned_on,
        "policies": [
            {**done.summary(name), "weights": files.get(name), **own_mix.get(name, {})}
            for name, done in rows.items()
        ],
        "notes": [],
        **more,
    }
    save_evaluations(run.folder / "routes.npz", rows)
    run.finish(result)  # the plots can be drawn again from it
    write_plots(run, result, setting.net.stages[1:])
    print_table(result)
    say(f"wrote {run.folder}")
    for note in result["notes"]:
        say(f"note: {note}")
    return result


def command(args: CommonArgs, agent: str) -> list[str]:
    """Return the command line that started a run, as a user would type it."""
    return ["python", "-m", f"agents.{agent}", *words_of(args)]


def networks_before(names: Iterable[Any]) -> list[str]:
    """Return the networks that a run started from or was taught by, each once."""
    return list(dict.fromkeys(str(name) for name in names if name not in (None, "none", "auto")))
