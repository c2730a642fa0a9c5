"""Specs travel as JSON, whatever the arguments were, and make the same environment again."""

import enum
import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode

import envs  # noqa: F401
from envs.specs import plain

QUICK = {"dataset": "rendered-digits", "split": "test", "weights": None, "device": "cpu"}
ID = "SkipResNet14-v0"  # N = 5
FOLDER = Path(__file__).parent  # one that exists
COSTS = [1.0, 2.0, 0.5, 1.0, 0.25]


class Text(str, enum.Enum):
    TEST = "test"
    FEATURE = "feature"


class Many(enum.Enum):
    COST = tuple(COSTS)
    FLOPS = "flops"


ARGUMENTS = {
    "path": {"data_dir": FOLDER},
    "weights": {"weights": "weights.safetensors"},  # see below
    "alpha": {"alpha": np.float32(0.3)},
    "alpha as an array": {"alpha": np.array(0.25)},
    "alpha as a tensor": {"alpha": torch.tensor(0.25)},
    "device": {"device": torch.device("cpu")},
    "device with a number": {"device": torch.device("cpu", 0)},
    "tuple": {"cost": tuple(COSTS)},
    "array": {"cost": np.array(COSTS, np.float32)},
    "tensor": {"cost": torch.tensor(COSTS)},
    "enum of a tuple": {"cost": Many.COST},
    "enums": {"split": Text.TEST, "obs_mode": Text.FEATURE, "cost": Many.FLOPS},
    "NumPy's text": {"shortcut": np.str_("pad"), "cost": np.str_("flops")},
    "NumPy's bool": {"augment": np.bool_(True), "download": np.bool_(False)},
}
VECTOR_ARGUMENTS = {
    "autoreset mode": {"autoreset_mode": AutoresetMode.NEXT_STEP},
    "number": {"num_envs": np.int64(3)},
    "array": {"array": np.str_("torch"), "autoreset_mode": AutoresetMode.DISABLED},
}


def play(env, vector):
    """An episode's observations and rewards."""
    observations, infos = env.reset(seed=1)
    steps = [env.step(np.array([1, 0, 1])[: env.num_envs] if vector else t % 2) for t in range(5)]
    return [
        np.asarray(observations),
        infos["index"],
        *[np.asarray(each) for step in steps for each in step[:3]],
    ]


def check(env, vector, made):
    written = env.spec.to_json()
    json.loads(written)
    again = made(EnvSpec.from_json(written))
    for mine, other in zip(play(env, vector), play(again, vector), strict=True):
        np.testing.assert_array_equal(mine, other)
    assert again.spec.to_json() == written
    env.close(), again.close()


def given(what, arguments, tmp_path):
    if what == "weights":
        from skipnet_rl.checkpoint import save_weights
        from skipnet_rl.resnet import ResNet

        save_weights(tmp_path / "weights.safetensors", ResNet(14), {})
        return {"weights": tmp_path / "weights.safetensors"}
    return arguments


@pytest.mark.parametrize("what", ARGUMENTS)
def test_make(what, tmp_path):
    arguments = given(what, ARGUMENTS[what], tmp_path)
    env = gym.make(ID, **{**QUICK, **arguments})
    assert (
        json.loads(json.dumps(env.spec.kwargs)) == env.unwrapped.spec.kwargs
    )  # plain, not only when written
    check(env, False, gym.make)


@pytest.mark.parametrize("what", [*ARGUMENTS, *VECTOR_ARGUMENTS])
def test_make_vec(what, tmp_path):
    arguments = given(what, {**ARGUMENTS, **VECTOR_ARGUMENTS}[what], tmp_path)
    check(gym.make_vec(ID, **{"num_envs": 2, **QUICK, **arguments}), True, gym.make_vec)


@pytest.mark.parametrize("what", ["path", "device", "tuple", "enums"])
def test_gymnasiums_own_vector_environment(what):
    more = {"vectorization_mode": "sync", "vector_kwargs": {"autoreset_mode": AutoresetMode.DISABLED}}
    check(gym.make_vec(ID, num_envs=2, **more, **{**QUICK, **ARGUMENTS[what]}), True, gym.make_vec)


def test_wrappers_keep_the_spec():
    env = gym.wrappers.RecordEpisodeStatistics(gym.make(ID, data_dir=FOLDER, **QUICK))
    assert "RecordEpisodeStatistics" in env.spec.to_json() and env.spec.kwargs["data_dir"] == str(FOLDER)


def test_a_given_spec_is_not_changed():
    env = gym.make(ID, **QUICK).unwrapped
    spec = EnvSpec(ID, kwargs={"data_dir": FOLDER})
    env.spec = spec
    assert env.spec.kwargs == {"data_dir": str(FOLDER)} and spec.kwargs == {"data_dir": FOLDER}
    env.spec = None
    assert env.spec is None


@pytest.mark.parametrize("value", [None, True, 3, 2.5, "text", [1, [2]], {"a": {"b": None}}], ids=repr)
def test_json_types_are_kept(value):
    assert plain(value) == value and type(plain(value)) is type(value)


@pytest.mark.parametrize(
    "argument",
    [{"split": ["test"]}, {"shortcut": 3}, {"weights": {}}, {"weights": 3}],
    ids=str,
)
def test_arguments_of_another_kind_are_refused_by_name(argument):
    with pytest.raises(ValueError, match=f"{next(iter(argument))} is .*expected"):
        gym.make(ID, **{**QUICK, **argument})
