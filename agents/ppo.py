"""Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347), from stable-baselines3.

    python -m agents.ppo --env SkipResNet20-v0 --dataset cifar10 --data-dir data
    python -m agents.ppo --env SkipResNet20-v0 --recurrent        # RecurrentPPO of sb3-contrib

A small network on the pooled feature and the block's one-hot; the backbone is frozen. A rollout is one
whole episode of each environment, so that none is cut and no value estimate stands in for the final loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from agents.common.cli import main_with_named_errors
from agents.common.flags import Method, Schedule
from agents.common.sb3 import SB3Args, episode_length, preset_arguments, start_near_execute, train_sb3

PRESETS: dict[str, dict[str, Any]] = {
    # the whole rollout in four minibatches; γ = λ = 1, since all that counts comes at the end
    "default": {
        "episodes": 20_000,
        "num_envs": 128,
        "lr": 1e-3,
        "epochs": 4,
        "minibatches": 4,
        "entropy": 0.0,
    },
    "SkipResNet20-v0": {"episodes": 60_000, "num_envs": 256},
}


@dataclass(frozen=True)
class Args(SB3Args):
    """Train PPO on a frozen backbone."""

    recurrent: Method[bool] = False
    """RecurrentPPO, with an LSTM in place of the first hidden layer"""
    epochs: Schedule[int | None] = None
    """passes over each rollout"""
    minibatches: Schedule[int | None] = None
    """minibatches in each pass"""
    entropy: Method[float | None] = None
    """weight of the entropy bonus"""


def make_model(env: VecEnv, args: Args, numbers: dict[str, Any]) -> BaseAlgorithm:
    """Build PPO or RecurrentPPO with the preset's numbers."""
    decisions = episode_length(env)
    most = decisions * env.num_envs // 2
    why = "because the advantages of a minibatch are normalised, which takes two steps"
    if most == 0:  # one episode of one decision
        raise ValueError(f"--num-envs is {env.num_envs}; expected 2 or more, {why}")
    if numbers["minibatches"] > most:
        raise ValueError(f"--minibatches is {numbers['minibatches']}; expected at most {most}, {why}")
    common: dict[str, Any] = {
        "n_steps": decisions,
        "batch_size": decisions * env.num_envs // numbers["minibatches"],
        "n_epochs": numbers["epochs"],
        "learning_rate": numbers["lr"],
        "ent_coef": numbers["entropy"],
        "gamma": 1.0,
        "gae_lambda": 1.0,
        "seed": args.seed,
        "device": "cpu",  # a network this small is faster there
    }
    if args.recurrent:
        shape = {"net_arch": [args.width], "lstm_hidden_size": args.width}
        model: BaseAlgorithm = RecurrentPPO("MlpLstmPolicy", env, policy_kwargs=shape, **common)
    else:
        model = PPO("MlpPolicy", env, policy_kwargs={"net_arch": [args.width, args.width]}, **common)
    start_near_execute(model)
    return model


def train(args: Args) -> dict[str, Any]:
    """Train, evaluate, write the run folder; returns result.json's content."""
    name = "RecurrentPPO" if args.recurrent else "PPO"
    return train_sb3(args, "ppo", name, PRESETS, make_model)


arguments = partial(preset_arguments, Args, PRESETS)  # the flags' defaults on a command line


if __name__ == "__main__":
    main_with_named_errors(Args, train, defaults=arguments)
