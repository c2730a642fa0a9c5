"""Deep Q-learning (Mnih et al. 2015, Nature 518), from stable-baselines3.

    python -m agents.dqn --env SkipResNet20-v0 --dataset cifar10 --data-dir data

The values of skip and execute, learned from a replay memory; the backbone is frozen. The final loss
reaches the first decision through N bootstrapped values, which makes deep networks hard for DQN.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from stable_baselines3 import DQN
from stable_baselines3.common.vec_env import VecEnv

from agents.common.cli import main_with_named_errors
from agents.common.flags import Method, Schedule
from agents.common.sb3 import SB3Args, episode_length, preset_arguments, train_sb3

LARGEST_BUFFER = 10**15  # NumPy cannot count the bytes of more

PRESETS: dict[str, dict[str, Any]] = {
    # two updates per step of the batch of environments; ε falls from 1 to 0.05 over a third of the steps
    "default": {"episodes": 20_000, "num_envs": 32, "lr": 5e-4, "buffer": 200_000, "updates": 2},
    "SkipResNet20-v0": {"episodes": 60_000, "num_envs": 64},
}


@dataclass(frozen=True)
class Args(SB3Args):
    """Train DQN on a frozen backbone."""

    buffer: Method[int | None] = None
    """transitions in the replay memory"""
    updates: Schedule[int | None] = None
    """gradient steps per step of all environments"""


def make_model(env: VecEnv, args: Args, numbers: dict[str, Any]) -> DQN:
    """Build DQN with the preset's numbers."""
    decisions = episode_length(env)
    if numbers["buffer"] > LARGEST_BUFFER:
        raise ValueError(f"--buffer is {numbers['buffer']}, more than memory holds")
    try:
        return DQN(
            "MlpPolicy",
            env,
            learning_rate=numbers["lr"],
            buffer_size=numbers["buffer"],
            learning_starts=min(4 * env.num_envs, numbers["episodes"] // 4) * decisions,  # in episodes
            batch_size=256,
            train_freq=1,
            gradient_steps=numbers["updates"],
            target_update_interval=20 * decisions,  # counted in steps of all environments together
            exploration_fraction=0.33,
            gamma=1.0,
            seed=args.seed,
            policy_kwargs={"net_arch": [args.width, args.width]},
            device="cpu",  # a network this small is faster there
        )
    except MemoryError as error:
        raise ValueError(f"--buffer is {numbers['buffer']}, more than memory holds: {error}") from error


def train(args: Args) -> dict[str, Any]:
    """Train, evaluate, write the run folder; returns result.json's content."""
    return train_sb3(args, "dqn", "DQN", PRESETS, make_model)


arguments = partial(preset_arguments, Args, PRESETS)  # the flags' defaults on a command line


if __name__ == "__main__":
    main_with_named_errors(Args, train, defaults=arguments)
