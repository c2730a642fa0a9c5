"""The single environment: equal by value to the network, accepted by the checkers, clear about mistakes."""

import dataclasses
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3.common.env_checker
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env, data_equivalence
from torch.nn import functional as F
from toys import Replay

import envs
from envs import factory
from envs.ids import is_chain
from envs.skipnet import SkipNetEnv
from skipnet_rl import resnet
from skipnet_rl.checkpoint import save_weights
from skipnet_rl.flops import network_macs
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.resnet import ResNet
from skipnet_rl.rollout import rollout

IDS = [spec.id for spec in gym.registry.values() if str(spec.entry_point).startswith("envs.")]
CHAINS = ("", "14x38", "20x38", "14x110", "20x110", "14x38x110", "38gx38", "38gx110", "38gx38x110")
SLOW = ("110-v0", "152-v0", "38gx38-v0")
QUICK = {"dataset": "rendered-digits", "split": "test", "weights": None, "device": "cpu"}
EVERY_ID = [pytest.param(id, marks=pytest.mark.slow if id.endswith(SLOW) else ()) for id in IDS]
HARMLESS = (
    "minimum value is -infinity",  # features have no bounds
    "maximum value is infinity",
    "we recommend using a symmetric and normalized space",
    "was trained on images normalised with",  # a network that is named by its chain's id
)


@pytest.fixture
def mdp(tiny_net):
    return RoutingMDP(tiny_net, alpha=0.4)


@pytest.fixture
def env(mdp, tiny_images):
    return SkipNetEnv(mdp, tiny_images)


def play(env, actions, **reset):
    """One episode: observations from reset to the end, rewards, the last info."""
    observation, info = env.reset(**reset)
    observations, rewards = [observation], []
    for step, action in enumerate(actions, start=1):
        observation, reward, terminated, truncated, info = env.step(action)
        assert terminated is (step == len(actions)) and truncated is False
        assert terminated or info == {}
        observations.append(observation)
        rewards.append(reward)
    return observations, rewards, info


def random_routes(count, length, seed=0):
    return np.random.default_rng(seed).integers(0, 2, (count, length))


# equal by value


def test_executing_everything_is_the_plain_network(env, mdp, tiny_net, tiny_images):
    with torch.no_grad():
        logits = tiny_net(tiny_images.batch(torch.arange(12))[0])
    for index in range(12):
        _, rewards, info = play(env, [1] * 8, options={"index": index})
        loss = F.cross_entropy(logits[index : index + 1], tiny_images.labels[index : index + 1]).item()
        assert info["prediction"] == logits[index].argmax().item()
        assert info["loss"] == pytest.approx(loss, rel=1e-5)
        assert rewards == [0.0] * 7 + [-info["loss"]]


@pytest.mark.parametrize("cost", ["blocks", "flops"])
@pytest.mark.parametrize("alpha", [0, 0.1, 3.0])
def test_return_is_minus_the_papers_loss(tiny_net, tiny_images, alpha, cost):
    mdp = RoutingMDP(tiny_net, alpha, cost)
    costs = mdp.cost.double().numpy()
    env = SkipNetEnv(mdp, tiny_images)
    for index, route in enumerate(random_routes(3, 8)):
        images, labels = tiny_images.batch(torch.tensor([index]))
        with torch.no_grad():
            episode = rollout(mdp, Replay(torch.from_numpy(route)[None]), images, labels)
        _, rewards, info = play(env, route, options={"index": index})
        saving = alpha / 8 * ((1 - route) * costs).sum()
        assert sum(rewards) == pytest.approx(-(episode.loss.item() - saving), rel=1e-5, abs=1e-6)
        assert info["prediction"] == episode.predictions.item()
        assert info["loss"] == pytest.approx(episode.loss.item(), rel=1e-6)


def test_observation_is_the_pooled_feature_and_the_block(env, mdp, tiny_images):
    route = random_routes(1, 8)[0]
    observations, _, _ = play(env, route, options={"index": 4})
    state = mdp.initial(*tiny_images.batch(torch.tensor([4])))
    for t, observation in enumerate(observations):
        pooled = state.x.detach().mean(dim=(2, 3))[0].numpy()
        expected = np.zeros(64 + 8, np.float32)
        expected[: len(pooled)] = pooled
        if t < 8:
            expected[64 + t] = 1
            state = mdp.transition(state, torch.tensor([bool(route[t])]))
        np.testing.assert_allclose(observation, expected, rtol=1e-5, atol=1e-6)
        assert observation.dtype == np.float32 and env.observation_space.contains(observation)


def test_feature_mode_omits_the_one_hot(env, mdp, tiny_images):
    bare = SkipNetEnv(mdp, tiny_images, obs_mode="feature")
    route = random_routes(1, 8)[0]
    whole, rewards, _ = play(env, route, options={"index": 2})
    part, same_rewards, _ = play(bare, route, options={"index": 2})
    assert bare.observation_space.shape == (64,) and rewards == same_rewards
    for long, short in zip(whole, part, strict=True):
        np.testing.assert_array_equal(long[:64], short)


def test_terminal_info(env, tiny_images):
    route = [1, 0, 0, 1, 1, 0, 1, 0]
    _, _, info = play(env, route, options={"index": 11})
    assert list(info) == [
        "index",
        "label",
        "prediction",
        "correct",
        "is_success",
        "loss",
        "executed_blocks",
        "compute_blocks",
        "compute_flops",
        "route",
    ]
    types = {key: type(value) for key, value in info.items()}
    assert types == {
        "index": int,
        "label": int,
        "prediction": int,
        "correct": bool,
        "is_success": bool,
        "loss": float,
        "executed_blocks": int,
        "compute_blocks": float,
        "compute_flops": float,
        "route": np.ndarray,
    }
    assert (info["index"], info["label"]) == (11, 1)
    assert info["correct"] is info["is_success"] is (info["prediction"] == 1)
    assert info["executed_blocks"] == 4  # of the 8 decisions; the first block, which always runs, is not one
    assert info["compute_blocks"] == pytest.approx((4 + 1) / (8 + 1))
    assert info["route"].dtype == np.int8 and info["route"].tolist() == route


def test_compute_flops_between_nothing_and_everything(env):
    shares = [play(env, [action] * 8, options={"index": 0})[2]["compute_flops"] for action in (0, 1)]
    assert shares[1] == 1.0
    # ResNet-20 at 32x32, in thousands of MACs: stem 442, a 16-channel block 4719, the shortcuts
    # 2 x 131, the classifier 0.64, all 40813 with projections
    assert shares[0] == pytest.approx((442.4 + 4718.6 + 262.1 + 0.64) / 40813.2, rel=1e-3)


def test_network_in_training_mode_is_put_into_evaluation(tiny_net, mdp, tiny_images):
    before = {name: value.clone() for name, value in tiny_net.state_dict().items()}
    reference = play(SkipNetEnv(mdp, tiny_images), [1] * 8, options={"index": 0})
    tiny_net.train()
    again = play(SkipNetEnv(mdp, tiny_images), [1] * 8, options={"index": 0})
    assert not tiny_net.training and data_equivalence(reference, again, exact=True)
    assert all(torch.equal(before[name], value) for name, value in tiny_net.state_dict().items())
    env = SkipNetEnv(mdp, tiny_images)
    env.reset(options={"index": 0})
    for expected in reference[0][1:]:
        tiny_net.train()  # as something that trains the network between two blocks does
        np.testing.assert_array_equal(env.step(1)[0], expected)
    assert all(torch.equal(before[name], value) for name, value in tiny_net.state_dict().items())


# randomness


def test_same_seed_same_images(env, mdp, tiny_images):
    other = SkipNetEnv(mdp, tiny_images)
    env.reset(seed=5), other.reset(seed=5)
    drawn = [(env.reset()[1], other.reset()[1]) for _ in range(20)]
    assert all(one == two for one, two in drawn)
    assert len({one["index"] for one, _ in drawn}) > 5


def test_augmented_episodes_differ_and_repeat(mdp, tiny_images):
    env = SkipNetEnv(mdp, tiny_images, augment=True)
    first, _ = env.reset(seed=1, options={"index": 3})
    second, _ = env.reset(options={"index": 3})
    again, _ = env.reset(seed=1, options={"index": 3})
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(first, again)


def test_global_random_state_is_left_alone(mdp, tiny_images):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    play(SkipNetEnv(mdp, tiny_images, augment=True), [1, 0] * 4, seed=0)
    assert torch.equal(torch_state, torch.get_rng_state())
    np.testing.assert_array_equal(numpy_state, np.random.get_state()[1])


def test_returned_arrays_belong_to_the_caller(mdp, tiny_images):
    """Overwriting returned arrays does not change later results."""
    route = random_routes(1, 8)[0]
    clean, spoilt = SkipNetEnv(mdp, tiny_images), SkipNetEnv(mdp, tiny_images)
    kept, _ = clean.reset(options={"index": 1})
    dirty, _ = spoilt.reset(options={"index": 1})
    copy = kept.copy()
    for action in route:
        dirty[:] = np.nan
        dirty, reward, _, _, info = spoilt.step(action)
        observation, expected, _, _, _ = clean.step(action)
        np.testing.assert_array_equal(observation, dirty)
        assert reward == expected
    np.testing.assert_array_equal(kept, copy)
    info["route"][:] = 7
    assert play(spoilt, route)[2]["route"].tolist() == route.tolist()


# actions, options, order


@pytest.mark.parametrize(
    "action", [1, True, np.int64(1), np.uint8(1), np.bool_(True), np.array(1), np.array([1]), torch.tensor(1)]
)
def test_ways_to_say_execute(env, action):
    env.reset(options={"index": 0})
    env.step(1)
    expected = env.reset(options={"index": 0}), env.step(1)
    assert data_equivalence(expected, (env.reset(options={"index": 0}), env.step(action)), exact=True)


@pytest.mark.parametrize(
    "action",
    [
        2,
        -1,
        0.0,
        1.0,
        float("nan"),
        None,
        "1",
        [0, 1],
        np.array([1, 1]),
        np.array([]),
        {},
        torch.tensor(0.7, requires_grad=True),
        torch.tensor(1, dtype=torch.bfloat16),
    ],
    ids=repr,
)
def test_bad_action(env, action):
    env.reset()
    with pytest.raises(ValueError, match=r"action.*expected 0 \(skip\) or 1 \(execute\)"):
        env.step(action)
    env.step(1)  # and the episode goes on


@pytest.mark.parametrize("index", [-1, 12, 1.0, "3", True, [1, 2], np.nan], ids=repr)
def test_bad_index(env, index):
    with pytest.raises(ValueError, match=r"options\[.index.\] is .*(expected an integer|images 0 … 11)"):
        env.reset(options={"index": index})


def test_unknown_option(env):
    with pytest.raises(ValueError, match=r"'indx'.*did you mean 'index'.*Known: index"):
        env.reset(options={"indx": 1})
    for other in (5, "index", ["index"]):
        with pytest.raises(ValueError, match=r"options is .*; expected a dict such as"):
            env.reset(options=other)


def test_order_of_calls(env):
    with pytest.raises(ResetNeeded, match=r"reset\(\)"):
        env.step(1)
    play(env, [1] * 8)
    with pytest.raises(ResetNeeded, match=r"after the end.*reset\(\)"):
        env.step(1)
    env.reset()
    env.step(1)
    env.close()
    env.close()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"obs_mode": "features"}, "did you mean 'feature'.*feature.block"),
        ({"render_mode": "rgb"}, "did you mean 'rgb_array'.*ansi"),
    ],
)
def test_unknown_mode(mdp, tiny_images, argument, message):
    with pytest.raises(ValueError, match=message):
        SkipNetEnv(mdp, tiny_images, **argument)


# pictures


def test_line(mdp, tiny_images):
    env = SkipNetEnv(mdp, tiny_images, render_mode="ansi")
    env.reset(options={"index": 11})
    for action in (1, 0, 0):
        env.step(action)
    line = env.render()
    assert "SkipResNet20" in line and "image 11" in line and "class 1" in line
    assert "■□□·····" in line and "+0.10" in line and "\n" not in line  # reward: 0.4 / 8 for a skip
    for _ in range(5):
        info = env.step(0)[4]
    assert "■□□□□□□□" in env.render() and f"class {info['prediction']}" in env.render()


def test_unknown_class_is_rendered_as_its_number(mdp, tiny_images):
    with torch.no_grad():
        mdp.net.fc.bias[9] += 1e6
    labels, classes = tiny_images.labels % 3, tiny_images.classes[:3]
    fewer = dataclasses.replace(tiny_images, labels=labels, classes=classes)
    env = SkipNetEnv(mdp, fewer, render_mode="ansi")
    play(env, [0] * 8)
    assert "predicts 9" in env.render()


def test_picture(mdp, tiny_images):
    env = SkipNetEnv(mdp, tiny_images, render_mode="rgb_array")
    env.reset(options={"index": 1})
    pictures = [env.render()]
    for action in (1, 0, 1, 1, 1, 1, 1, 1):
        env.step(action)
        pictures.append(env.render())
    shapes = {(picture.shape, picture.dtype) for picture in pictures}
    assert len(shapes) == 1 and pictures[0].ndim == 3 and pictures[0].shape[2] == 3
    assert pictures[0].dtype == np.uint8
    assert all((one != two).any() for one, two in zip(pictures, pictures[1:], strict=False))


def test_render_without_a_mode(env):
    env.reset()
    with pytest.warns(UserWarning, match="render_mode"):
        assert env.render() is None


# the registry


def unexpected(caught):
    return [text for text in (str(w.message) for w in caught) if not any(known in text for known in HARMLESS)]


@pytest.mark.parametrize("id", EVERY_ID)
def test_checkers_accept(id):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", ResourceWarning)  # of whatever is collected meanwhile
        env = gym.make(id, **QUICK)
        check_env(env.unwrapped)
        stable_baselines3.common.env_checker.check_env(env.unwrapped)
        env.close()
    assert unexpected(caught) == []


@pytest.mark.parametrize("id", EVERY_ID)
def test_two_seeded_rollouts(id):
    one, two = (gym.make(id, **QUICK) for _ in range(2))
    if id.startswith("SkipChain"):
        width, decisions = 6, max(id.count("x"), 1)
    elif id == "SkipNet-v0":
        width, decisions = 512, 7  # of a ResNet-18
    else:
        depth = int(id.removeprefix("SkipResNet").removesuffix("-v0"))
        width, blocks = {34: (512, 16), 50: (2048, 16), 101: (2048, 33)}.get(depth, (64, (depth - 2) // 2))
        decisions = blocks - 1
    assert one.observation_space.shape == (width + decisions,)
    route = random_routes(1, decisions)[0]
    assert data_equivalence(play(one, route, seed=3), play(two, route, seed=3), exact=True)


@pytest.mark.parametrize("id", IDS)
def test_spec(id):
    spec = gym.spec(id)
    assert EnvSpec.from_json(spec.to_json()) == spec
    assert json.loads(spec.to_json())["entry_point"].startswith("envs.")
    assert spec.vector_entry_point is not None and spec.max_episode_steps is None


def test_ids():
    depths = (14, 20, 32, 38, 44, 56, 74, 110, 152, 34, 50, 101)
    chains = {f"SkipChain{name}-v0" for name in CHAINS}
    assert {f"SkipResNet{depth}-v0" for depth in depths} | chains | {"SkipNet-v0"} == set(IDS)
    assert depths == (*resnet.CIFAR_DEPTHS, *resnet.IMAGENET_DEPTHS)


def test_spec_round_trips_as_json():
    env = gym.make("SkipResNet20-v0", **QUICK, alpha=0.7, cost="flops", render_mode="ansi")
    spec = EnvSpec.from_json(env.spec.to_json())
    again = gym.make(spec)
    route = random_routes(1, 8)[0]
    assert data_equivalence(play(env, route, seed=1), play(again, route, seed=1), exact=True)


def test_module_prefix_and_defaults():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="no shipped weights")
        env = gym.make("envs:SkipResNet20-v0", dataset="rendered-digits", split="test")
    play(env, [1] * 8)
    play(
        gym.make_vec("envs:SkipResNet20-v0", num_envs=1, vectorization_mode="sync", **QUICK).envs[0], [1] * 8
    )


def test_environments_share_one_network():
    one, two = (gym.make("SkipResNet20-v0", **QUICK, alpha=alpha).unwrapped for alpha in (0.1, 0.2))
    assert one.lockstep.mdp.net is two.lockstep.mdp.net
    assert one.lockstep.images.images is two.lockstep.images.images
    assert (one.lockstep.mdp.alpha, two.lockstep.mdp.alpha) == (0.1, 0.2)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"dataset": "rendered-digit"}, "did you mean 'rendered-digits'"),
        ({"split": "tset"}, "did you mean 'test'"),
        ({"shortcut": "padd"}, "did you mean 'pad'"),
        ({"cost": "flop"}, "did you mean 'flops'"),
        ({"device": "cpuu"}, "did you mean 'cpu'"),
        ({"obs_mode": "block"}, "unknown obs_mode"),
        ({"aplha": 2.0}, "unknown argument 'aplha'; did you mean 'alpha'.*Known: depth, .*, render_mode"),
        ({"mdp": None}, "unknown argument 'mdp'"),
        ({"alpha": -1}, "alpha is -1"),
        ({"alpha": float("nan")}, "alpha is nan"),
    ],
    ids=str,
)
def test_named_errors_of_the_factory(argument, message):
    with pytest.raises(ValueError, match=message):
        gym.make("SkipResNet20-v0", **{**QUICK, **argument})


def test_unknown_arguments_of_a_vector_environment_and_of_a_chain():
    with pytest.raises(ValueError, match="'autoreset'; did you mean 'autoreset_mode'.*num_envs"):
        gym.make_vec("SkipResNet20-v0", num_envs=2, autoreset="NextStep")
    with pytest.raises(ValueError, match="'network'; did you mean 'networks'.*Known: dataset"):
        gym.make("SkipChain-v0", network=[14, 20])


def test_unknown_id_suggests_the_nearest():
    with pytest.raises(gym.error.NameNotFound, match="Did you mean: `SkipResNet110`"):
        gym.make("SkipResNett110-v0")
    with pytest.raises(gym.error.Error, match="no environment 'SkipResNet110'; .* 'SkipResNet110-v0'"):
        is_chain("SkipResNet110")


def test_missing_data_and_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        gym.make("SkipResNet20-v0", **{**QUICK, "dataset": "cifar10", "data_dir": str(tmp_path)})
    with pytest.raises(ValueError, match="missing.safetensors"):
        gym.make("SkipResNet20-v0", **{**QUICK, "weights": str(tmp_path / "missing.safetensors")})


def test_import_is_light():
    code = "import sys, envs; assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(envs.__file__).parents[1])


def test_images_that_do_not_fit_the_network(tiny_net, mdp, tiny_images):
    with pytest.raises(ValueError, match="noise train has no images"):
        SkipNetEnv(mdp, tiny_images.subset(torch.arange(0)))
    more = dataclasses.replace(tiny_images, classes=(*tiny_images.classes, "one more"))
    with pytest.raises(ValueError, match="11 classes and the network 10"):
        SkipNetEnv(mdp, more)


def bias(weights) -> float:
    env = gym.make("SkipResNet20-v0", **{**QUICK, "weights": str(weights)})
    return env.unwrapped.lockstep.mdp.net.fc.bias[0].item()


def test_environments_of_one_network_count_its_macs_once(monkeypatch):
    """Counting takes half a second for a ResNet-110; payments are each environment's own."""
    counted = []
    monkeypatch.setattr("skipnet_rl.mdp.network_macs", lambda net: counted.append(net) or network_macs(net))
    factory.clear_cache()
    shared = {"dataset": "rendered-digits", "split": "test", "weights": None, "device": "cpu"}
    payments = ({}, {"alpha": 2.0, "cost": "flops"}, {"cost": [1, 2, 3, 4, 5]})
    made = [gym.make("SkipResNet14-v0", **shared, **each).unwrapped.lockstep.mdp for each in payments]
    assert len(counted) == 1 and made[0].net is made[1].net is made[2].net
    assert made[0].payment == pytest.approx([1 / 5] * 5)
    # a block that begins a stage has three quarters of the MACs of the others, see test_flops; mean 18 / 5
    assert made[1].payment == pytest.approx([2 / 5 * each / 3.6 for each in (4, 3, 4, 3, 4)])
    assert made[2].payment == pytest.approx([each / 5 for each in (1, 2, 3, 4, 5)])


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_cached_networks_are_keyed_by_file_content(tmp_path, monkeypatch, ending):
    """The cache of networks tells files apart by content, not by name, size or time."""

    def write(folder, number):
        net = ResNet(20)
        torch.nn.init.constant_(net.fc.bias, number)
        folder.mkdir(exist_ok=True)
        path = folder / f"w{ending}"
        save_weights(path, net, {}) if ending == ".safetensors" else torch.save(net.state_dict(), path)
        os.utime(path, (1_000_000_000, 1_000_000_000))
        return path

    for number in (1, 2):
        path = write(tmp_path / str(number), number)
        monkeypatch.chdir(path.parent)
        assert bias(path.name) == number
    size = path.stat().st_size
    write(path.parent, 4)
    assert path.stat().st_size == size and bias(path) == 4
    os.replace(tmp_path / "1" / path.name, path)
    assert bias(path) == 1
    before = factory._process.cache_info().hits
    assert bias(path) == 1
    assert factory._process.cache_info().hits == before + 1
    monkeypatch.setenv("HOME", str(path.parent))
    for number in (5, 6):
        write(path.parent, number)
        assert bias(f"~/{path.name}") == number


def test_gymnasiums_own_render_modes():
    env = gym.make("SkipResNet20-v0", **QUICK, render_mode="rgb_array_list")
    env.reset(seed=0)
    env.step(1)
    assert len(env.render()) == 2
