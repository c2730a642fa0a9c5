"""Shared by the agents of stable-baselines3: environment, progress, and the run from flags to table.

The backbone is frozen; the agent sees nothing but the environment's observations and rewards.
Discount 1, as in SkipNet: with SB3's 0.99 the loss at the end of 53 decisions would count for 0.59 at
the first of them.

`--resume` restores the weights, the optimizer and the count of episodes of the last evaluation. DQN's
replay memory and the library's random numbers start anew: unlike with the other agents, a resumed run does
not equal an uninterrupted one to the bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv, VecMonitor
from torch import nn

from agents.common.flags import FrozenArgs, Method, Run, Schedule
from agents.common.loop import progress, val_metrics
from agents.common.outcome import finish, weights_header
from agents.common.sb3_policies import WEIGHTS, ModelPolicy
from agents.common.setting import Setting
from agents.common.situation import defaults_of
from agents.common.verdict import verdict
from agents.common.watch import check_finite, diverged
from envs.sb3 import SB3VecEnv
from envs.vector import SkipNetVectorEnv
from skipnet_rl import runs
from skipnet_rl.checkpoint import load_weights, save_weights
from skipnet_rl.device import cpu_by_default
from skipnet_rl.files import whole_file
from skipnet_rl.flops import compute_blocks
from skipnet_rl.gates import INITIAL_RATE
from skipnet_rl.progress import progress_bar

ArgsT = TypeVar("ArgsT", bound="SB3Args")
Presets = Mapping[str, Mapping[str, Any]]  # of an agent: numbers by flag, by id or "default"


@dataclass(frozen=True)
class SB3Args(FrozenArgs):
    """Flags of every stable-baselines3 agent; None is the value of the environment's preset."""

    advice: ClassVar[tuple[str, str]] = (
        "Raise --alpha, or train longer (--episodes)",
        "Lower --alpha, or train longer (--episodes)",
    )
    width: Method[int] = 64
    """width of the two hidden layers"""
    episodes: Schedule[int | None] = None
    """images to train on, one episode each"""
    num_envs: Schedule[int | None] = None
    """images at once"""
    lr: Schedule[float | None] = None
    """Adam's learning rate"""
    eval_every: Run[int] = 5_000
    """episodes between evaluations on validation images"""
    eval_images: Run[int] = 1_000
    """validation images in each evaluation during training"""
    resume: Run[bool] = False
    """continuation from the checkpoint in --run-dir, if there is one; the memory of DQN starts empty"""


def preset_of(env: str, presets: Presets) -> dict[str, Any]:
    """Return the numbers of an environment's preset: the default ones, and in which it differs."""
    return {**presets["default"], **presets.get(env, {})}


def preset(args: SB3Args, presets: Presets) -> dict[str, Any]:
    """Return the numbers of the preset of `--env`, unless a flag gives another."""
    chosen = preset_of(args.env, presets)
    return chosen | {key: given for key in chosen if (given := getattr(args, key)) is not None}


def preset_arguments(args_type: type[ArgsT], presets: Presets, words: Sequence[str] | None = None) -> ArgsT:
    """Return the flags' defaults on a command line: the numbers of the preset of its `--env`."""
    return defaults_of(args_type, words, lambda situation: preset_of(situation.env, presets))


def start_near_execute(model: BaseAlgorithm) -> None:
    """Let an actor begin where SkipNet's gates begin: the backbone breaks down under random routes."""
    policy = model.policy
    assert isinstance(policy, ActorCriticPolicy) and isinstance(policy.action_net, nn.Linear)
    with torch.no_grad():
        policy.action_net.bias.copy_(torch.tensor([1 - INITIAL_RATE, INITIAL_RATE], device="cpu").logit() / 2)


class Progress(BaseCallback):
    """Bar, metrics, validation and checkpoints, under the names that every agent uses."""

    bar: Any

    def __init__(
        self,
        run: runs.Run,
        validate: Callable[[], dict[str, Any]],
        episodes: int,
        every: int,
        done: int = 0,
        elapsed: float = 0.0,
    ) -> None:
        super().__init__()
        self.run, self.validate, self.episodes, self.every = run, validate, episodes, every
        self.first = self.done = done
        self.next_evaluation = (done // every + 1) * every
        self.before, self.begun = elapsed, time.perf_counter()
        self.due: dict[str, float] | None = None  # metrics of the next checkpoint

    @property
    def elapsed(self) -> float:
        """Seconds of training, those before an interruption included."""
        return self.before + time.perf_counter() - self.begun

    def train(self, model: BaseAlgorithm, steps: int) -> None:
        """Train a model for `steps` steps of the environment.

        Raises:
            DivergenceError: a NaN or an infinity; the checkpoint before it is kept.
        """
        with progress_bar(total=self.episodes, initial=self.done, unit="episode") as self.bar:
            try:
                model.learn(steps, callback=self, reset_num_timesteps=not self.done)
            except (ValueError, RuntimeError) as error:
                # PyTorch refuses log-odds that are NaN, and a step of Adam that is too long for float32
                check_finite(model.get_parameters(), self.done, "train")
                if "overflow" in str(error):
                    raise diverged("the optimizer's step overflows", self.done, "train") from error
                raise

    def _on_step(self) -> bool:
        ended = [info for info in self.locals["infos"] if "episode" in info]
        if not ended:
            return True
        self.done += len(ended)
        self.bar.update(len(ended))
        metrics = self._metrics(ended)
        self.bar.set_postfix_str(progress(metrics), refresh=False)
        if self.done >= min(self.next_evaluation, self.episodes):
            self.next_evaluation += self.every
            self.due = metrics
        return True

    def _on_rollout_start(self) -> None:
        self._checkpoint()

    def _on_training_end(self) -> None:
        self._checkpoint()

    def _checkpoint(self) -> None:
        """Write a checkpoint that is due, after the update on the episodes that it counts as done."""
        if self.due is None:
            return
        self.run.log(self.done, "train", **self.due, **val_metrics(self.validate()))
        self.due = None
        parameters = self.model.get_parameters()
        check_finite(parameters, self.done, "train")
        self.run.save(
            {
                "parameters": parameters,
                "timesteps": self.num_timesteps,
                "done": self.done,
                "elapsed": self.elapsed,
            }
        )

    def _metrics(self, infos: list[dict[str, Any]]) -> dict[str, float]:
        routes = np.stack([info["route"] for info in infos])
        return {
            "train/loss": float(np.mean([info["loss"] for info in infos])),
            "train/accuracy": float(np.mean([info["correct"] for info in infos])),
            "train/return": float(np.mean([info["episode"]["r"] for info in infos])),
            "train/compute_blocks": compute_blocks(torch.from_numpy(routes)).mean().item(),
            "train/least_executed": float(routes.mean(axis=0).min()),
            "train/images_per_s": (self.done - self.first) / (time.perf_counter() - self.begun),
        }


def training_env(setting: Setting, num_envs: int) -> VecEnv:
    """Make the native vector environment over the frozen backbone, with augmented training images."""
    mdp = setting.mdp().for_inference(setting.precision)
    return VecMonitor(SB3VecEnv(SkipNetVectorEnv(mdp, setting.train, num_envs, augment=True)))


def episode_length(env: VecEnv) -> int:
    """Return N of an environment that `training_env` made."""
    return env.get_attr("lockstep")[0].mdp.num_decisions


@cpu_by_default()
def train_sb3(
    args: ArgsT,
    agent: str,
    name: str,
    presets: Presets,
    make_model: Callable[[VecEnv, ArgsT, dict[str, Any]], BaseAlgorithm],
) -> dict[str, Any]:
    """Train a model on the frozen backbone, evaluate on the test set once; returns result.json's content.

    Args:
        args: the flags.
        agent: the module's name.
        name: name of the policy in the table.
        presets: numbers by id, see `preset`.
        make_model: takes the environment, the flags and the numbers.
    """
    setting = Setting.of(args)
    tolerance = setting.introduce()
    numbers = preset(args, presets)
    mdp = setting.mdp()
    env = training_env(setting, numbers["num_envs"])
    model = make_model(env, args, numbers)
    run = setting.start_run(agent.replace("_", "-"), args.resume)
    state = (run.load() if args.resume else None) or {"timesteps": 0, "done": 0, "elapsed": 0.0}
    if state["done"]:
        model.set_parameters(state["parameters"])
        model.num_timesteps = state["timesteps"]
        model.set_random_seed(args.seed + state["done"])  # not the first images again
    policy = ModelPolicy(model.policy, mdp.num_decisions)
    episodes = numbers["episodes"]
    callback = Progress(
        run, lambda: setting.validate(mdp, policy), episodes, args.eval_every, state["done"], state["elapsed"]
    )
    left = episodes * mdp.num_decisions - state["timesteps"]
    if left > 0:
        with closing(configure(str(run.folder / "sb3"), ["csv", "tensorboard"])) as logger:
            model.set_logger(logger)
            callback.train(model, left)
    wall_time = callback.elapsed
    with whole_file(run.folder / "model.zip") as beside, beside.open("wb") as file:
        model.save(file)
    save_weights(
        run.folder / WEIGHTS,
        model.policy,
        weights_header(setting, "sb3", agent, network=setting.args.weights),
    )
    load_weights(run.folder / WEIGHTS, model.policy)  # report what the file does, rounding included
    learned = setting.evaluate(mdp, policy, name=name)
    rows = {**setting.references(learned.rate), name: learned}
    notes = verdict(setting, setting.validate(mdp, policy), learned.policy_flops, tolerance)
    return finish(setting, run, agent, rows, wall_time, preset=numbers, notes=notes)
