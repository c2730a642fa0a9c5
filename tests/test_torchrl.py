"""TorchRL's wrapper over the vector environment; its own autoreset asks for ours to be switched off."""

import gymnasium as gym
import pytest
import torch

import envs  # noqa: F401

QUICK = {"dataset": "rendered-digits", "split": "test", "weights": None, "device": "cpu"}


@pytest.mark.slow
@pytest.mark.parametrize("array", ["numpy", "torch"])
def test_specs_and_episodes(array):
    pytest.importorskip("torchrl", reason="TorchRL is not installed")
    from torchrl.envs import GymWrapper
    from torchrl.envs.utils import check_env_specs

    made = gym.make_vec("SkipResNet14-v0", num_envs=3, autoreset_mode="Disabled", array=array, **QUICK)
    env = GymWrapper(made)
    check_env_specs(env)
    played = env.rollout(12, break_when_any_done=False)  # N = 5: two episodes and two steps
    ended = played["next", "done"].squeeze(-1)
    assert ended.nonzero()[:, 1].tolist() == [4, 9] * 3
    rewards = played["next", "reward"].squeeze(-1)
    assert rewards.shape == (3, 12) and torch.all(rewards[:, [4, 9]] < 0)


@pytest.mark.slow
def test_single_environment():
    pytest.importorskip("torchrl", reason="TorchRL is not installed")
    from torchrl.envs import GymWrapper
    from torchrl.envs.utils import check_env_specs

    env = GymWrapper(gym.make("SkipResNet14-v0", **QUICK))
    check_env_specs(env)
    assert env.rollout(9)["next", "done"].sum() == 1
