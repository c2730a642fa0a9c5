"""Advantage actor-critic (Mnih et al. 2016, arXiv 1602.01783), from stable-baselines3.

    python -m agents.a2c --env SkipResNet20-v0 --dataset cifar10 --data-dir data

Like `agents.ppo`, with one update per rollout. SB3's own default of 5 steps would cut the episodes, and
most rollouts would not see the loss at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from stable_baselines3 import A2C
from stable_baselines3.common.vec_env import VecEnv

from agents.common.cli import main_with_named_errors
from agents.common.flags import Method
from agents.common.sb3 import SB3Args, episode_length, preset_arguments, start_near_execute, train_sb3

PRESETS: dict[str, dict[str, Any]] = {
    # one update per rollout, so smaller rollouts than PPO's; γ = λ = 1
    "default": {"episodes": 20_000, "num_envs": 32, "lr": 2e-3, "entropy": 0.0},
    "SkipResNet20-v0": {"episodes": 60_000, "num_envs": 64},
}


@dataclass(frozen=True)
class Args(SB3Args):
    """Train A2C on a frozen backbone."""

    entropy: Method[float | None] = None
    """weight of the entropy bonus"""


def make_model(env: VecEnv, args: Args, numbers: dict[str, Any]) -> A2C:
    """Build A2C with the preset's numbers."""
    model = A2C(
        "MlpPolicy",
        env,
        n_steps=episode_length(env),
        learning_rate=numbers["lr"],
        ent_coef=numbers["entropy"],
        gamma=1.0,
        gae_lambda=1.0,
        use_rms_prop=False,  # Adam, as everywhere else here
        seed=args.seed,
        policy_kwargs={"net_arch": [args.width, args.width]},
        device="cpu",  # a network this small is faster there
    )
    start_near_execute(model)
    return model


def train(args: Args) -> dict[str, Any]:
    """Train, evaluate, write the run folder; returns result.json's content."""
    return train_sb3(args, "a2c", "A2C", PRESETS, make_model)


arguments = partial(preset_arguments, Args, PRESETS)  # the flags' defaults on a command line


if __name__ == "__main__":
    main_with_named_errors(Args, train, defaults=arguments)
