"""SB3VecEnv against the vector environment that it wraps and against stable-baselines3's own conventions."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor
from stable_baselines3.ppo import PPO

from envs.sb3 import SB3VecEnv
from envs.vector import SkipNetVectorEnv
from skipnet_rl.mdp import RoutingMDP


@pytest.fixture
def make(tiny_net, tiny_images):
    """Vector environments over the tiny network, N = 8."""

    def build(num_envs=4, **kwargs):
        return SkipNetVectorEnv(RoutingMDP(tiny_net, alpha=0.5), tiny_images, num_envs, **kwargs)

    return build


def actions_of(num_envs, steps, seed=0):
    return np.random.default_rng(seed).integers(0, 2, (steps, num_envs))


@pytest.mark.parametrize("array", ["numpy", "torch"])
def test_results_equal_the_vector_env(make, array):
    plain, bridge = make(), SB3VecEnv(make(array=array))
    expected, _ = plain.reset(seed=3)
    bridge.seed(3)
    np.testing.assert_array_equal(bridge.reset(), expected)
    for step, actions in enumerate(actions_of(4, 16)):  # two episodes
        observations, rewards, terminations, _, infos = plain.step(actions)
        got, got_rewards, dones, got_infos = bridge.step(actions)
        assert type(got) is np.ndarray and got.dtype == np.float32
        assert got_rewards.dtype == np.float32 and dones.dtype == np.bool_
        np.testing.assert_array_equal(got, observations)
        np.testing.assert_allclose(got_rewards, rewards, rtol=1e-6)
        np.testing.assert_array_equal(dones, terminations)
        assert [info["TimeLimit.truncated"] for info in got_infos] == [False] * 4
        if step % 8 == 7:
            assert dones.all()
            for row, info in enumerate(got_infos):
                np.testing.assert_array_equal(info["terminal_observation"], infos["final_obs"][row])
                assert not np.array_equal(info["terminal_observation"], got[row])
                for key in ("correct", "is_success", "loss", "executed_blocks", "compute_flops", "index"):
                    assert info[key] == infos["final_info"][key][row]
                np.testing.assert_array_equal(info["route"], infos["final_info"]["route"][row])
                assert bridge.reset_infos[row]["index"] == infos["index"][row]
        else:
            assert all("terminal_observation" not in info for info in got_infos)


def test_returned_arrays_belong_to_the_caller(make):
    changed, kept = SB3VecEnv(make()), SB3VecEnv(make())
    for bridge in (changed, kept):
        bridge.seed(0)
    first = changed.reset()
    kept.reset()
    first[:] = 99
    for actions in actions_of(4, 16):
        mine, yours = changed.step(actions), kept.step(actions)
        np.testing.assert_array_equal(mine[0], yours[0])
        np.testing.assert_array_equal(mine[1], yours[1])
        for info, other in zip(mine[3], yours[3], strict=True):
            if "terminal_observation" in info:
                np.testing.assert_array_equal(info["terminal_observation"], other["terminal_observation"])
                info["terminal_observation"][:] = 99
        for array in mine[:3]:  # SB3 adds the value of a truncated state to its rewards
            array[:] = 1
        for info in mine[3]:
            info.clear()


def test_seeds_and_options_apply_once(make):
    bridge = SB3VecEnv(make(8))
    indices = []
    for seed in (3, 3, 4):
        bridge.seed(seed)
        bridge.reset()
        indices.append([info["index"] for info in bridge.reset_infos])
    assert indices[0] == indices[1] != indices[2]
    for index in ([0, 1, 2, 3, 4, 5, 6, 7], np.arange(8), torch.arange(8)):
        bridge.set_options({"index": index})
        bridge.reset()
        assert [info["index"] for info in bridge.reset_infos] == list(range(8))
    bridge.reset()
    assert [info["index"] for info in bridge.reset_infos] != list(range(8))
    bridge.set_options([{"index": k} for k in range(8)])
    with pytest.raises(ValueError, match="options differ between environments"):
        bridge.reset()


def test_monitored_episodes_have_their_returns(make):
    bridge = VecMonitor(SB3VecEnv(make()), info_keywords=("correct", "executed_blocks"))
    bridge.seed(1)
    bridge.reset()
    total = np.zeros(4)
    for actions in actions_of(4, 8):
        _, rewards, _, infos = bridge.step(actions)
        total += rewards
    for row, info in enumerate(infos):
        assert info["episode"]["r"] == pytest.approx(total[row], rel=1e-5)
        assert info["episode"]["l"] == 8
        assert info["episode"]["r"] == pytest.approx(
            0.5 / 8 * (8 - info["executed_blocks"]) - info["loss"], abs=1e-5
        )
        assert info["episode"]["correct"] == info["correct"]


def test_sb3_evaluates_on_it(make, tmp_path):
    bridge = VecMonitor(SB3VecEnv(make(4)))
    model = PPO("MlpPolicy", bridge, n_steps=8, batch_size=32, gamma=1.0, seed=0, device="cpu")
    bridge.seed(5)
    rewards, lengths = evaluate_policy(model, bridge, n_eval_episodes=8, return_episode_rewards=True)
    assert lengths == [8] * 8
    plain = make(4)
    observations, _ = plain.reset(seed=5)
    expected, total = [], np.zeros(4)
    for step in range(16):
        actions, _ = model.predict(observations, deterministic=True)
        observations, paid, *_ = plain.step(actions)
        total += paid
        if step % 8 == 7:
            expected += total.tolist()
            total[:] = 0
    assert rewards == pytest.approx(expected, rel=1e-4)
    watch = EvalCallback(bridge, n_eval_episodes=4, eval_freq=8, log_path=str(tmp_path), verbose=0)
    model.learn(64, callback=watch)
    assert watch.evaluations_results and len(watch.evaluations_successes[0]) == 4  # is_success is seen


def test_attributes_methods_and_pictures(make):
    bridge = SB3VecEnv(make(3, render_mode="rgb_array"))
    bridge.reset()
    assert bridge.get_attr("array") == ["numpy"] * 3
    assert bridge.get_attr("array", indices=[1]) == ["numpy"]
    bridge.set_attr("marker", 7)
    assert bridge.get_attr("marker", indices=0) == [7]
    with pytest.raises(NotImplementedError, match="leave out `indices`"):
        bridge.set_attr("marker", 8, indices=[0])
    with pytest.raises(AttributeError):
        bridge.get_attr("nothing")
    assert len(bridge.env_method("render")[0]) == 3
    assert bridge.env_is_wrapped(gym.Wrapper) == [False] * 3
    assert [picture.shape for picture in bridge.get_images()] == [(240, 720, 3)] * 3
    assert bridge.render().ndim == 3  # SB3 tiles them
    bridge.close()


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_other_autoreset_modes_are_refused(make, mode):
    with pytest.raises(ValueError, match=f"autoreset_mode is {mode}.*SAME_STEP"):
        SB3VecEnv(make(autoreset_mode=mode))


def test_a_single_environment_is_refused():
    with pytest.raises(TypeError, match="not a Gymnasium VectorEnv; make one with gymnasium.make_vec"):
        SB3VecEnv(gym.make("CartPole-v1"))


def test_any_same_step_vector_env_equals_sb3s_own():
    """CartPole: sub-environments end at different times, and a time limit truncates some of them."""

    def part():
        return gym.wrappers.TimeLimit(gym.make("CartPole-v1").unwrapped, 15)

    bridge = SB3VecEnv(SyncVectorEnv([part] * 3, autoreset_mode=AutoresetMode.SAME_STEP))
    own = DummyVecEnv([part] * 3)
    for env in (bridge, own):
        env.seed(0)
    np.testing.assert_array_equal(bridge.reset(), own.reset())
    ended, cut = 0, 0
    for actions in actions_of(3, 120, seed=1):
        got, expected = bridge.step(actions), own.step(actions)
        for array, other in zip(got[:3], expected[:3], strict=True):
            np.testing.assert_array_equal(array, other)
        for done, info, other in zip(got[2], got[3], expected[3], strict=True):
            assert info["TimeLimit.truncated"] == other["TimeLimit.truncated"]
            assert ("terminal_observation" in info) == done
            if done:
                np.testing.assert_array_equal(info["terminal_observation"], other["terminal_observation"])
                ended, cut = ended + 1, cut + info["TimeLimit.truncated"]
    assert 0 < cut < ended
    assert bridge.get_attr("render_mode") == [None] * 3
    assert bridge.env_method("get_wrapper_attr", "render_mode") == [None] * 3
    bridge.set_attr("gravity", (1.0, 2.0))
    assert bridge.get_attr("gravity") == [(1.0, 2.0)] * 3  # the value is each one's, not spread over them


def test_tensors_become_arrays(make):
    bridge = SB3VecEnv(make(array="torch"))
    assert isinstance(bridge.reset(), np.ndarray)
    assert not isinstance(bridge.step(np.ones(4, int))[1], torch.Tensor)
