"""The vector environment: equal by value to single ones, to `rollout()`, and to Gymnasium's own layout."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from packaging.version import Version
from toys import Replay

from envs.skipnet import SkipNetEnv
from envs.vector import SkipNetVectorEnv
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.rollout import rewards_to_go, rollout

N = 8  # decisions of the tiny network
MODES = list(AutoresetMode)
QUICK = {"dataset": "rendered-digits", "split": "test", "weights": None, "device": "cpu"}


@pytest.fixture
def mdp(tiny_net):
    return RoutingMDP(tiny_net, alpha=0.4)


@pytest.fixture
def env(mdp, tiny_images):
    return SkipNetVectorEnv(mdp, tiny_images, 4)


def random_actions(steps, count, seed=0):
    return np.random.default_rng(seed).integers(0, 2, (steps, count))


def first(value):
    """Results of a vector of one in the form of a single environment."""
    if not isinstance(value, dict):
        return value[0]
    assert all(value[f"_{key}"].tolist() == [True] for key in value if not key.startswith("_"))
    return {key: first(item) for key, item in value.items() if not key.startswith("_")}


def layout(value):
    """Keys, types and shapes, without the values."""
    if isinstance(value, dict):
        return {key: layout(item) for key, item in sorted(value.items())}
    if value.dtype == object:
        return [layout(item) for item in value]
    return value.dtype, value.shape


# equal by value


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("obs_mode", ["feature+block", "feature"])
def test_vector_of_one_is_the_single_env_bit_for_bit(mdp, tiny_images, augment, obs_mode):
    single = SkipNetEnv(mdp, tiny_images, augment=augment, obs_mode=obs_mode)
    vector = SkipNetVectorEnv(mdp, tiny_images, 1, augment=augment, obs_mode=obs_mode)
    observation, info = single.reset(seed=7)
    observations, infos = vector.reset(seed=7)
    indices = set()
    for action in random_actions(5 * N, 1):
        assert observations.shape == (1, *observation.shape) and observations.dtype == observation.dtype
        np.testing.assert_array_equal(observations[0], observation)
        observation, reward, terminated, truncated, info = single.step(action)
        observations, rewards, terminations, truncations, infos = vector.step(action)
        assert (rewards[0], terminations[0], truncations[0]) == (reward, terminated, truncated)
        if terminated:
            final_observation, final_info = observation, info
            observation, info = single.reset()
            info = info | {"final_obs": final_observation, "final_info": final_info}
            indices.add(final_info["index"])
        assert data_equivalence(first(infos), first_types(info), exact=True)
    assert len(indices) > 2, "the episodes must be of different images to say anything about their draw"


def first_types(info):
    """Python numbers as the NumPy scalars that an array hands out."""
    return {
        key: first_types(item)
        if isinstance(item, dict)
        else item
        if isinstance(item, np.ndarray)
        else np.array([item])[0]
        for key, item in info.items()
    }


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_vector_is_gymnasiums_sync_vector_of_singles(mdp, tiny_images, mode):
    count = 5
    native = SkipNetVectorEnv(mdp, tiny_images, count, autoreset_mode=mode)
    sync = SyncVectorEnv([lambda: SkipNetEnv(mdp, tiny_images)] * count, autoreset_mode=mode)
    assert native.observation_space == sync.observation_space and native.action_space == sync.action_space
    assert native.metadata == sync.metadata
    expected = sync.reset(seed=3)
    came = native.reset(options={"index": expected[1]["index"]})
    assert data_equivalence(came[1], expected[1], exact=True)
    for actions in random_actions(N, count):
        np.testing.assert_allclose(came[0], expected[0], rtol=1e-4, atol=1e-5)
        came, expected = native.step(actions), sync.step(actions)
        assert layout(came[4]) == layout(expected[4])
        for mine, theirs in zip(came[1:4], expected[1:4], strict=True):
            assert mine.dtype == theirs.dtype
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)
    if mode is AutoresetMode.SAME_STEP:
        for mine, theirs in zip(came[4]["final_obs"], expected[4]["final_obs"], strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)
        assert_close(came[4]["final_info"], expected[4]["final_info"])
        for mine in (came, expected):  # the next images are drawn differently, but reported truly
            restarted = native.reset(options={"index": mine[4]["index"]})
            np.testing.assert_allclose(mine[0], restarted[0], rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(mine[4]["label"], restarted[1]["label"])
    else:
        np.testing.assert_allclose(came[0], expected[0], rtol=1e-4, atol=1e-5)
        assert_close(came[4], expected[4])
    if mode is AutoresetMode.NEXT_STEP:
        came, expected = native.step(actions), sync.step(actions)
        assert layout(came[4]) == layout(expected[4])
        for mine, theirs in zip(came[1:4], expected[1:4], strict=True):
            np.testing.assert_array_equal(mine, theirs)


def assert_close(mine, theirs):
    assert mine.keys() == theirs.keys()
    for key in mine:
        np.testing.assert_allclose(mine[key], theirs[key], rtol=1e-4, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("cost", ["blocks", "flops"])
def test_rewards_are_those_of_rollout(tiny_net, tiny_images, cost):
    mdp = RoutingMDP(tiny_net, 0.4, cost)
    index = np.array([3, 1, 4, 1, 5, 9])
    actions = random_actions(N, len(index))
    env = SkipNetVectorEnv(mdp, tiny_images, len(index), array="torch")
    env.reset(options={"index": index})
    paid = torch.stack([env.step(row)[1] for row in actions], dim=1)
    images, labels = tiny_images.batch(torch.from_numpy(index))
    with torch.no_grad():
        episode = rollout(mdp, Replay(torch.from_numpy(actions.T)), images, labels)
    torch.testing.assert_close(paid, episode.rewards)
    # the agent's return from decision i on: what the environment still pays, summed by hand
    still = torch.stack([paid[:, i:].sum(dim=1) for i in range(N)], dim=1)
    torch.testing.assert_close(rewards_to_go(episode.rewards), still)
    assert (paid[:, :-1] > 0).any() and (paid[:, -1] < 0).any()


def test_images_do_not_affect_each_other(mdp, tiny_images):
    rewards = []
    for neighbour in (1, 2):
        env = SkipNetVectorEnv(mdp, tiny_images, 2)
        env.reset(options={"index": [0, neighbour]})
        rewards.append([env.step(actions)[1] for actions in random_actions(N, 2)])
    np.testing.assert_allclose(np.array(rewards[0])[:, 0], np.array(rewards[1])[:, 0], rtol=1e-5)
    assert not np.allclose(np.array(rewards[0])[-1, 1], np.array(rewards[1])[-1, 1])


@pytest.mark.parametrize("num_envs", [1, 3, 5])
def test_results_do_not_depend_on_the_number_of_sub_environments(mdp, tiny_images, num_envs):
    """All twelve images at once, or some at a time: the same predictions, losses and returns."""
    actions = np.stack(random_actions(N, 12))

    def play(index):
        env = SkipNetVectorEnv(mdp, tiny_images, len(index), autoreset_mode="Disabled")
        env.reset(options={"index": index})
        rewards = [env.step(action[index]) for action in actions]
        info = rewards[-1][-1]
        return info["prediction"], np.stack([info["loss"], sum(step[1] for step in rewards)])

    whole, numbers = play(list(range(12)))
    for first in range(0, 12, num_envs):
        part = list(range(12))[first : first + num_envs]
        prediction, found = play(part)
        assert prediction.tolist() == whole[part].tolist()
        np.testing.assert_allclose(found, numbers[:, part], rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(
    Version(gym.__version__) < Version("1.4"),
    reason="older Gymnasium drops the first reward after a same-step autoreset",
)
def test_statistics_wrapper_sees_the_returns(mdp, tiny_images):
    env = RecordEpisodeStatistics(SkipNetVectorEnv(mdp, tiny_images, 3))
    env.reset(seed=0)
    for episode in range(2):
        total = np.zeros(3)
        for actions in random_actions(N, 3, seed=episode):
            _, rewards, _, _, infos = env.step(actions)
            total += rewards
        np.testing.assert_allclose(infos["episode"]["r"], total, rtol=1e-6)
        assert infos["episode"]["l"].tolist() == [N] * 3


# autoreset, row by row


def block(observations):
    """The decision that each observation's one-hot names; None at the end of an episode."""
    return [int(row[64:].argmax()) if row[64:].any() else None for row in observations]


ROWS = {  # (block observed, reward, terminated) of the steps around an episode's end, all blocks skipped
    AutoresetMode.SAME_STEP: [(7, "saving", False), (0, "saving - loss", True), (1, "saving", False)],
    AutoresetMode.NEXT_STEP: [
        (7, "saving", False),
        (None, "saving - loss", True),
        (0, "nothing", False),
        (1, "saving", False),
    ],
    AutoresetMode.DISABLED: [(7, "saving", False), (None, "saving - loss", True)],
}


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_rows_around_the_end(mdp, tiny_images, mode, as_text):
    before = dict(SkipNetEnv.metadata)
    env = SkipNetVectorEnv(mdp, tiny_images, 2, autoreset_mode=mode.value if as_text else mode)
    assert env.metadata["autoreset_mode"] is mode and SkipNetEnv.metadata == before
    index = np.array([3, 7])
    observations, infos = env.reset(seed=1, options={"index": index})
    assert block(observations) == [0, 0] and infos["index"].tolist() == [3, 7]
    skip = np.zeros(2, np.int64)
    for t in range(1, N - 1):
        observations, rewards, terminations, truncations, infos = env.step(skip)
        assert block(observations) == [t, t] and not terminations.any() and infos == {}
    for observed, paid, ended in ROWS[mode]:
        observations, rewards, terminations, truncations, infos = env.step(skip)
        outcome = infos.get("final_info", infos)
        expected = {"nothing": 0.0, "saving": 0.4 / N}.get(paid)
        if expected is None:
            expected = 0.4 / N - outcome["loss"]
            assert outcome["index"].tolist() == [3, 7] and outcome["_index"].all()
        assert block(observations) == [observed] * 2
        np.testing.assert_allclose(rewards, expected, rtol=1e-6)
        assert terminations.tolist() == [ended] * 2 and truncations.tolist() == [False] * 2
        assert ("final_obs" in infos) == (mode is AutoresetMode.SAME_STEP and ended)
        if "final_obs" in infos:
            assert block(infos["final_obs"]) == [None] * 2 and infos["_final_obs"].all()
        if paid == "nothing":
            assert set(infos) == {"index", "_index", "label", "_label"}
    if mode is AutoresetMode.DISABLED:
        with pytest.raises(ResetNeeded, match=r"reset\(\)"):
            env.step(skip)
        assert block(env.reset()[0]) == [0, 0]
        env.step(skip)


# randomness


def test_same_seed_same_images(mdp, tiny_images):
    drawn = []
    for _ in range(2):
        env = SkipNetVectorEnv(mdp, tiny_images, 6)
        env.reset(seed=11)
        drawn.append([env.reset()[1]["index"].tolist() for _ in range(4)])
    assert drawn[0] == drawn[1]
    assert len({tuple(row) for row in drawn[0]}) == 4 and len(set(drawn[0][0])) > 1


# memory


def spoil(value):
    """Overwrite whatever a call returned."""
    if isinstance(value, dict):
        for item in value.values():
            spoil(item)
    elif isinstance(value, (tuple, list)) or (isinstance(value, np.ndarray) and value.dtype == object):
        for item in value:
            spoil(item)
    elif isinstance(value, (np.ndarray, torch.Tensor)):
        value[...] = 1


def as_numpy(value):
    """Tensors as arrays, and arrays of observations as tuples, so that Gymnasium can compare them."""
    if isinstance(value, dict):
        return {key: as_numpy(item) for key, item in value.items()}
    if isinstance(value, tuple) or (isinstance(value, np.ndarray) and value.dtype == object):
        return tuple(as_numpy(item) for item in value)
    return value.cpu().numpy() if isinstance(value, torch.Tensor) else value


def same(one, two):
    return data_equivalence(as_numpy(one), as_numpy(two), exact=True)


@pytest.mark.parametrize("array", ["numpy", "torch"])
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_returned_arrays_belong_to_the_caller(mdp, tiny_images, array, mode):
    """Overwriting returned arrays does not change later results."""

    def results(spoiling):
        def keep(value):
            kept = copy.deepcopy(value)
            if spoiling:
                spoil(value)
            return kept

        env = SkipNetVectorEnv(mdp, tiny_images, 3, autoreset_mode=mode, array=array, render_mode="ansi")
        options = {"index": np.array([0, 1, 2])}
        kept = [keep(env.reset(seed=0, options=options)), keep(options)]
        for row in random_actions(N if mode is AutoresetMode.DISABLED else 2 * N + 1, 3):
            actions = torch.from_numpy(row == 1) if array == "torch" else row == 1
            kept += [keep(env.step(actions)), keep(actions), *env.render()]
        return kept

    for clean, spoilt in zip(results(False), results(True), strict=True):
        assert same(clean, spoilt)


# tensors instead of arrays


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_torch_mode_is_numpy_mode_in_tensors(mdp, tiny_images, mode):
    numpy_env, torch_env = (
        SkipNetVectorEnv(mdp, tiny_images, 3, autoreset_mode=mode, array=array)
        for array in ("numpy", "torch")
    )
    assert same(numpy_env.reset(seed=2), torch_env.reset(seed=2))
    for row in random_actions(N if mode is AutoresetMode.DISABLED else 2 * N + 1, 3):
        arrays, tensors = numpy_env.step(row), torch_env.step(torch.from_numpy(row))
        assert all(isinstance(item, torch.Tensor) for item in tensors[:4])
        assert [item.dtype for item in tensors[:4]] == [torch.float32, torch.float32, torch.bool, torch.bool]
        assert not any(item.requires_grad or item.is_inference() for item in tensors[:4])
        assert same(arrays[0], tensors[0])
        np.testing.assert_array_equal(arrays[1], tensors[1].double().numpy())
        assert same(arrays[2:4], tensors[2:4])
        assert same(arrays[4], tensors[4])
    assert "torch" not in torch_env.metadata  # Gymnasium 1.4's checker would look for a wrapper it lacks


def test_last_observations_are_kept_as_tensors_wherever_they_are(mdp, tiny_images, monkeypatch):
    """NumPy cannot read tensors of a GPU, nor of "meta", which stands for one here."""
    env = SkipNetVectorEnv(mdp, tiny_images, 2, array="torch")
    env.reset(seed=0)
    monkeypatch.setattr(env, "_observations", lambda: torch.zeros(2, 3, device="meta"))
    for _ in range(N):
        infos = env.step(torch.zeros(2, dtype=torch.bool))[4]
    assert [row.device.type for row in infos["final_obs"]] == ["meta"] * 2


# mistakes


def ways_to_say_execute_the_first():
    return [
        [1, 0, 0, 0],
        np.array([1, 0, 0, 0], np.uint8),
        np.array([True, False, False, False]),
        torch.tensor([1, 0, 0, 0]),
        torch.tensor([True, False, False, False]),
    ]


@pytest.mark.parametrize("array", ["numpy", "torch"])
@pytest.mark.parametrize("actions", ways_to_say_execute_the_first(), ids=repr)
def test_ways_to_say_execute(mdp, tiny_images, actions, array):
    env = SkipNetVectorEnv(mdp, tiny_images, 4, array=array)
    expected = env.reset(seed=0), env.step(np.array([1, 0, 0, 0]))
    assert same(expected, (env.reset(seed=0), env.step(actions)))


@pytest.mark.parametrize(
    "actions",
    [
        1,
        [1, 1, 1],
        [[1, 1, 1, 1]],
        [1.0, 0.0, 1.0, 0.0],
        [2, 0, 0, 0],
        [0, -1, 0, 0],
        [float("nan")] * 4,
        [None] * 4,
        ["1"] * 4,
        np.zeros((4, 1), int),
        torch.zeros(4),
        torch.zeros(3, dtype=torch.bool),
        torch.tensor([0, 0, 0, 3]),
    ],
    ids=repr,
)
def test_bad_actions(mdp, tiny_images, actions):
    array = "torch" if isinstance(actions, torch.Tensor) else "numpy"
    env = SkipNetVectorEnv(mdp, tiny_images, 4, array=array)
    env.reset()
    with pytest.raises(ValueError, match=r"actions .*expected .*0 \(skip\) or 1 \(execute\)"):
        env.step(actions)
    env.step(np.zeros(4, int))  # and the episodes go on


@pytest.mark.parametrize(
    "index", [[0, 1, 2], [0, 1, 2, 12], [0, 1, 2, -1], [0.0, 1.0, 2.0, 3.0], [True] * 4, "0123"], ids=repr
)
def test_bad_index(env, index):
    with pytest.raises(ValueError, match=r"options\[.index.\] is .*(4 integers|images 0 … 11)"):
        env.reset(options={"index": index})


def test_partial_reset_would_break_the_lockstep(env):
    env.reset(seed=0)
    for mask in ([True, False, True, True], [False] * 4, [True] * 3):
        options = {"reset_mask": np.array(mask)}
        with pytest.raises(ValueError, match="reset_mask.*lockstep"):
            env.reset(options=options)
    options = {"reset_mask": np.ones(4, bool)}
    assert env.reset(options=options)[0].shape[0] == 4 and "reset_mask" in options


def test_unknown_option(env):
    with pytest.raises(ValueError, match="'indices'.*did you mean 'index'.*reset_mask"):
        env.reset(options={"indices": [1] * 4})


def test_order_of_calls(env):
    with pytest.raises(ResetNeeded, match=r"reset\(\)"):
        env.step([1] * 4)
    env.close()
    env.close()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"obs_mode": "features"}, "did you mean 'feature'"),
        ({"render_mode": "rgb"}, "did you mean 'rgb_array'"),
        ({"array": "pytorch"}, "did you mean 'torch'"),
        ({"autoreset_mode": "Samestep"}, "did you mean 'SameStep'"),
        ({"num_envs": 0}, "num_envs is 0; expected an integer >= 1"),
        ({"num_envs": 2.0}, "num_envs is 2.0"),
        ({"num_envs": True}, "num_envs is True"),
    ],
    ids=str,
)
def test_bad_argument(mdp, tiny_images, argument, message):
    with pytest.raises(ValueError, match=message):
        SkipNetVectorEnv(mdp, tiny_images, **{"num_envs": 2, **argument})


# the registry, pictures


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_make_vec(mode):
    env = gym.make_vec("SkipResNet20-v0", num_envs=3, **QUICK, autoreset_mode=mode.value)
    assert isinstance(env, SkipNetVectorEnv) and env.num_envs == 3
    assert env.metadata["autoreset_mode"] is mode
    observations, _ = env.reset(seed=0)
    assert env.observation_space.contains(observations)
    assert env.observation_space.contains(env.step(env.action_space.sample())[0])
    assert type(env.spec).from_json(env.spec.to_json()).kwargs["autoreset_mode"] == mode.value


def test_render(mdp, tiny_images):
    for mode in ("ansi", "rgb_array"):
        vector = SkipNetVectorEnv(mdp, tiny_images, 2, render_mode=mode)
        vector.reset(options={"index": [4, 6]})
        vector.step([1, 0])
        frames = vector.render()
        assert isinstance(frames, tuple) and len(frames) == 2
        for frame, index, action in zip(frames, (4, 6), (1, 0), strict=True):
            single = SkipNetEnv(mdp, tiny_images, render_mode=mode)
            single.reset(options={"index": index})
            single.step(action)
            np.testing.assert_array_equal(frame, single.render())


def test_render_without_a_mode(env):
    env.reset()
    with pytest.warns(UserWarning, match="render_mode"):
        assert env.render() is None


def test_next_step_ignores_the_action(mdp, tiny_images):
    env = SkipNetVectorEnv(mdp, tiny_images, 2, autoreset_mode=AutoresetMode.NEXT_STEP)
    env.reset(seed=0)
    for _ in range(N):
        env.step([1, 1])
    assert env.step(None)[1].tolist() == [0.0, 0.0]


def test_ragged_actions(env):
    env.reset()
    with pytest.raises(ValueError, match="actions are object"):
        env.step([[1], [1, 0]])


def test_precision_of_the_convolutions():
    """Episodes in bf16 end close to those in float32; networks are cached by precision."""
    kwargs = {**QUICK, "weights": "auto", "num_envs": 16}
    whole, half = (gym.make_vec("SkipResNet20-v0", precision=p, **kwargs) for p in ("fp32", "bf16"))
    assert next(half.unwrapped.lockstep.mdp.net.parameters()).dtype == torch.bfloat16
    losses = []
    for env in (whole, half):
        observations, _ = env.reset(options={"index": range(16)})
        assert observations.dtype == np.float32
        for actions in random_actions(N, 16):
            *_, infos = env.step(actions)
        losses.append(infos["final_info"]["loss"])
    assert not np.array_equal(*losses)
    np.testing.assert_allclose(*losses, rtol=0.1, atol=0.1)
    with pytest.raises(ValueError, match="precision 'bf17'"):
        gym.make_vec("SkipResNet20-v0", precision="bf17", **kwargs)
