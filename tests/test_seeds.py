"""Seeds of the vector environment: a list gives each sub-environment what a single one draws."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from envs.skipnet import SkipNetEnv
from envs.vector import SkipNetVectorEnv
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.resnet import ResNet

COUNT = 3


@pytest.fixture(params=[False, True], ids=["as they are", "augmented"])
def pair(tiny_images, request):
    """The native vector environment and Gymnasium's own, over ResNet-8 (N = 2)."""
    mdp = RoutingMDP(ResNet(8))
    native = SkipNetVectorEnv(mdp, tiny_images, COUNT, augment=request.param)
    singles = [lambda: SkipNetEnv(mdp, tiny_images, augment=request.param)] * COUNT
    return native, SyncVectorEnv(singles, autoreset_mode=AutoresetMode.SAME_STEP)


def drawn(env, *seeds):
    """Images and observations from each reset on, over two episodes of each."""
    played = []
    for seed in seeds:
        played.append(env.reset(seed=seed))
        for _ in range(4):
            observations, _, _, _, infos = env.step(np.ones(COUNT, int))
            played += [(observations, infos)] if "index" in infos else []
    return [observations for observations, _ in played], [infos["index"].tolist() for _, infos in played]


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ([[7, 8, 9]], [7]),  # what Gymnasium makes of an integer
        ([[5, 5, 123]], [[5, 5, 123]]),
        ([(4, 0, 10**12)], [[4, 0, 10**12]]),
        ([np.array([3, 1, 2])], [[3, 1, 2]]),
        ([[np.int64(3), np.uint8(1), 2]], [[3, 1, 2]]),
        ([range(11, 14)], [[11, 12, 13]]),
        ([[1, 2, 3], None, None], [[1, 2, 3], None, None]),
        ([[1, 2, 3], [None, 2, None]], [[1, 2, 3], [None, 2, None]]),
        ([[1, 2, 3], (None, None, None), (9, None, 9)], [[1, 2, 3], (None, None, None), (9, None, 9)]),
    ],
    ids=str,
)
def test_lists_are_those_of_gymnasium(pair, mine, theirs):
    native, sync = pair
    (came, indices), (expected, expected_indices) = drawn(native, *mine), drawn(sync, *theirs)
    assert indices == expected_indices and len(indices) == 3 * len(mine)
    for one, two in zip(came, expected, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


def test_an_integer_seeds_one_generator_for_all(pair):
    native, _ = pair
    whole = drawn(native, 5)[1]
    assert drawn(native, [1, 2, 3], 5)[1][3:] == whole  # a list before it leaves nothing behind
    assert drawn(native, np.int64(5))[1] == whole
    assert drawn(native, 5, None)[1][:3] == whole


def test_none_without_a_seed_before_comes_from_the_shared_generator(pair):
    native, _ = pair
    runs = [drawn(native, 5, [None, 4, None])[1] for _ in range(2)]
    assert runs[0] == runs[1]
    assert [row[1] for row in runs[0][3:]] == [row[1] for row in drawn(native, [0, 4, 0])[1]]


@pytest.mark.parametrize(
    "seed",
    [
        [],
        [1],
        [1, 2],
        [1, 2, 3, 4],
        [1, 2, -3],
        [1.0, 2, 3],
        ["1", 2, 3],
        [[1], 2, 3],
        np.zeros((3, 1), int),
        np.array([1.0, 2.0, 3.0]),
        (np.nan, 1, 2),
    ],
    ids=repr,
)
def test_bad_lists(pair, seed):
    native, _ = pair
    before = drawn(native, [1, 2, 3])[1]
    native.reset(seed=[1, 2, 3])
    with pytest.raises(ValueError, match=r"seed has .*expected 3 integers >= 0 or None, one per sub-env"):
        native.reset(seed=seed)
    native.step(np.ones(COUNT, int))  # and the episodes go on
    assert native.step(np.ones(COUNT, int))[4]["index"].tolist() == before[1]


@pytest.mark.parametrize("seed", [-1, 1.0, "1", b"1"], ids=repr)
def test_bad_seeds_of_one_generator(pair, seed):
    native, _ = pair
    with pytest.raises(gym.error.Error, match="Seed must be"):
        native.reset(seed=seed)


@pytest.mark.parametrize("seed", [np.int64(3), np.uint8(3), 3], ids=repr)
def test_numpys_integers_seed_the_single_environment(tiny_images, seed):
    env = SkipNetEnv(RoutingMDP(ResNet(8)), tiny_images)
    assert env.reset(seed=seed)[1] == env.reset(seed=3)[1]
