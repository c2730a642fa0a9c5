"""The loop around a training step: progress bar, metrics, checkpoints, resuming. No algorithm in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from agents.common.learner import ModelLearner
from agents.common.watch import Watch, check_finite
from skipnet_rl.distributed import follow, from_leader, leads, rank
from skipnet_rl.flops import compute_blocks
from skipnet_rl.progress import progress_bar
from skipnet_rl.randomness import seed_dropout
from skipnet_rl.rollout import Trajectory
from skipnet_rl.runs import Run

VAL_METRICS = ("accuracy", "loss", "return", "compute_blocks", "compute_flops", "unique_routes")
SHOWN = 0.1  # seconds between updates of the bar's numbers


def learn(
    run: Run | None,
    plan: Sequence[str],
    learner: ModelLearner,
    train_step: Callable[[int, str], Trajectory],
    validate: Callable[[int, str, bool], dict[str, Any]],
    end_stage: Callable[[str], None] = lambda stage: None,
    begin: Callable[[], None] = lambda: None,
    *,
    seed: int,
    eval_every: int,
    resume: bool = False,
) -> float:
    """Train to the end of the plan; returns the seconds spent, those before an interruption included.

    Args:
        run: where metrics and checkpoints go; None where another process leads.
        plan: the stage of each step.
        learner: the networks in training, which checkpoints hold.
        train_step: takes step number k, of a stage; returns its episodes.
        validate: returns a summary on validation images, see `Evaluation.summary`, given how many steps are
            done, the stage, and whether it has ended.
        end_stage: called after the last step of each stage, before it is validated.
        begin: called before the first step, unless training continues from a checkpoint.
        seed: random seed of the run, here of dropout in models that have it.
        eval_every: steps between validations and checkpoints; each stage ends with one, too.
        resume: continue from the run's checkpoint.

    Raises:
        DivergenceError: a NaN or an infinity; the checkpoint before it is kept.
    """
    state = from_leader(lambda: run.load() if run and resume else None) or {"step": 0, "elapsed": 0.0}
    first, begun, watch = state["step"], time.perf_counter() - state["elapsed"], Watch()

    def keep(done: int, stage: str, ended: bool, seconds: float) -> None:
        """Validate, log and save."""
        assert run is not None  # the leader has one
        if ended:
            check_finite(learner.state_dict(), done, stage)  # before it writes weights
            end_stage(stage)
        found = val_metrics(validate(done, stage, ended))
        run.log(done, stage, **display.metrics, **found)
        display.validated(found["val/accuracy"])
        learned = learner.state_dict()
        check_finite(learned, done, stage)
        run.save({"learner": learned, "step": done, "elapsed": seconds})

    if first:
        learner.load_state_dict(state["learner"])
    else:
        from_leader(begin)
    with progress_bar(total=len(plan), initial=first, unit="step") as bar:
        display = Display(bar)
        for step in range(first, len(plan)):
            stage, done = plan[step], step + 1
            seed_dropout(seed, step, rank())
            episode = train_step(step, stage)
            if leads():  # a NaN elsewhere comes here with the next gradient
                watch.step(done, stage, episode)
            ends_stage = done == len(plan) or plan[done] != stage
            validates = ends_stage or done % eval_every == 0
            display.step(stage, episode, at_once=validates)
            if validates:
                watch.settle()
                from_leader(partial(keep, done, stage, ends_stage, time.perf_counter() - begun))
                follow(learner.state_dict())
    return time.perf_counter() - begun


class Display:
    """The training metrics on a progress bar.

    They are computed a few times a second, not at each step, because reading them waits for the GPU.

    Attributes:
        metrics: the latest ones, see `step_metrics`.
    """

    def __init__(self, bar: Any) -> None:
        self.bar = bar
        self.begun, self.computed, self.episodes = time.perf_counter(), 0.0, 0
        self.metrics: dict[str, float] = {}
        self.val: float | None = None

    def step(self, stage: str, episode: Trajectory, at_once: bool) -> None:
        """Count a training step; with `at_once` its metrics are computed in any case."""
        self.episodes += len(episode.labels)
        now = time.perf_counter()
        if at_once or now - self.computed > SHOWN:
            self.metrics, self.computed = step_metrics(episode, self.episodes / (now - self.begun)), now
            self.bar.set_postfix_str(progress(self.metrics, self.val), refresh=False)
        self.bar.set_description(stage.upper(), refresh=False)
        self.bar.update()

    def validated(self, accuracy: float) -> None:
        """Show the accuracy of a validation."""
        self.val = accuracy
        self.bar.set_postfix_str(progress(self.metrics, self.val), refresh=False)


def val_metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return a summary on validation images under the names that every agent logs."""
    return {f"val/{key}": summary[key] for key in VAL_METRICS}


def step_metrics(episode: Trajectory, speed: float) -> dict[str, float]:
    """Compute the metrics of a training step that every agent shows and logs."""
    executed = episode.actions.detach()
    means = {
        "train/loss": episode.loss.detach().mean(),
        "train/accuracy": episode.correct.float().mean(),
        "train/return": episode.returns.mean(),
        "train/compute_blocks": compute_blocks(executed).mean().float(),
        # rate of the block whose batch norm sees the fewest images
        "train/least_executed": executed.mean(dim=0).min(),
    }
    values = torch.stack(list(means.values())).tolist()  # the device is waited for once
    return {**dict(zip(means, values, strict=True)), "train/images_per_s": speed}


def progress(metrics: dict[str, float], val: float | None = None) -> str:
    """Format the progress bar's line; `val` is the accuracy of the last validation."""
    return (
        f"loss {metrics['train/loss']:.3f}, acc {metrics['train/accuracy']:.1%}, "
        + ("" if val is None else f"val {val:.1%}, ")
        + f"blocks {metrics['train/compute_blocks']:.1%}, {metrics['train/images_per_s']:.0f} img/s"
    )
