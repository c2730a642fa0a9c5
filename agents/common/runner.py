"""A run from its flags to its table, the same for every agent that trains step by step.

It loads the setting, looks at the network, prepares it if necessary, trains, fills the table, and writes the
result.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from agents.common.compiled import compile_where_asked
from agents.common.estimate import print_estimate
from agents.common.flags import TrainingArgs
from agents.common.keeper import Keeper
from agents.common.learner import ModelLearner
from agents.common.loop import learn
from agents.common.outcome import finish
from agents.common.preparation import look
from agents.common.processes import check_run_dir, start_run
from agents.common.setting import Setting
from agents.common.verdict import verdict
from skipnet_rl.checkpoint import load_weights
from skipnet_rl.data import Images
from skipnet_rl.device import cpu_by_default
from skipnet_rl.rollout import Trajectory

LearnerT = TypeVar("LearnerT", bound=ModelLearner)


@cpu_by_default()
def run_agent(
    args: TrainingArgs,
    agent: str,
    make_learner: Callable[[Setting[Any]], LearnerT],
    make_keeper: Callable[[Setting[Any], LearnerT, Path], Keeper],
    train_step: Callable[[LearnerT, Images, int, str, Any], Trajectory],
) -> dict[str, Any]:
    """Train, then evaluate on the test set once and write the run folder; returns result.json's content.

    Args:
        args: the flags.
        agent: the module's name.
        make_learner: takes the setting.
        make_keeper: takes the setting, the learner and the run's folder.
        train_step: takes the learner, the images, the number of the step, its stage and the flags; trains,
            and returns the step's episodes.
    """
    setting, tolerance = look(Setting.of(args))
    args = setting.args
    check_run_dir(setting)
    learner = make_learner(setting)
    compile_where_asked(setting, learner.mdp.net)
    run = start_run(setting, agent.replace("_", "-"))
    keeper = make_keeper(setting, learner, run.folder if run else Path())
    if run and args.trains_networks:
        print_estimate(setting, tolerance)
    wall_time = learn(
        run,
        args.plan(),
        learner,
        train_step=lambda step, stage: train_step(learner, setting.train, step, stage, args),
        validate=keeper.validate,
        end_stage=keeper.end_stage,
        begin=keeper.begin,
        seed=args.seed,
        eval_every=args.eval_every,
        resume=args.resume,
    )
    if run is None:  # the leader does the rest
        return {}
    files, rows = keeper.files(), {}
    for name, file in files.items():
        load_weights(run.folder / file, learner.model)  # report what the file does, rounding included
        rows[name] = setting.evaluate(learner.mdp, learner.policy, name=name)
    last = list(rows)[-1]
    rate = rows[last].rate
    references = setting.references(rate, None if args.frozen else learner.mdp, last)
    files[f"random, {last} weights"] = files[last]
    kept, about = keeper.kept(), keeper.about(rate)
    if kept:
        about["notes"] = verdict(setting, kept, rows[last].policy_flops, tolerance) + about["notes"]
    return finish(setting, run, agent, {**references, **rows}, wall_time, files, **about)
