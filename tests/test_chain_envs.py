"""Environments over a chain: equal by value to its rollouts and to each other; what they show."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from test_chain import lively_chain
from test_vector_env import first, first_types, layout, random_actions
from toys import Replay

from envs.ids import depth_of
from envs.sb3 import SB3VecEnv
from envs.skipnet import SkipNetEnv
from envs.vector import SkipNetVectorEnv
from skipnet_rl.chain import ChainMDP
from skipnet_rl.checkpoint import save_weights
from skipnet_rl.recording import record, replayed
from skipnet_rl.resnet import Architecture, ResNet
from skipnet_rl.rollout import rollout

N = 2


@pytest.fixture(scope="module")
def mdp():
    return ChainMDP(lively_chain().float(), alpha=0.4)


def test_single_env_is_the_rollout(mdp, tiny_images):
    env = SkipNetEnv(mdp, tiny_images)
    check_env(env, skip_render_check=True)
    for index, route in enumerate(torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]])):
        images, labels = tiny_images.batch(torch.tensor([index]))
        with torch.no_grad():
            episode = rollout(mdp, Replay(route[None]), images, labels)
        observation, _ = env.reset(options={"index": index})
        assert observation.shape == (8,)
        rewards = [env.step(int(action)) for action in route]
        info = rewards[-1][-1]
        assert [step[1] for step in rewards] == pytest.approx(episode.rewards[0].tolist(), rel=1e-5)
        assert info["prediction"] == episode.predictions.item() and info["route"].tolist() == route.tolist()
        assert info["loss"] == pytest.approx(episode.loss.item(), rel=1e-5)
        assert info["compute_flops"] == mdp.compute_flops(episode.state, route[None]).item()
        assert info["compute_blocks"] == (route.sum().item() + 1) / 3


def test_vector_of_one_is_the_single_env_bit_for_bit(mdp, tiny_images):
    single, vector = SkipNetEnv(mdp, tiny_images), SkipNetVectorEnv(mdp, tiny_images, 1)
    observation, _ = single.reset(seed=7)
    observations, _ = vector.reset(seed=7)
    for action in random_actions(5 * N, 1):
        np.testing.assert_array_equal(observations[0], observation)
        observation, reward, terminated, truncated, info = single.step(action)
        observations, rewards, terminations, truncations, infos = vector.step(action)
        assert (rewards[0], terminations[0], truncations[0]) == (reward, terminated, truncated)
        if terminated:
            last, final = observation, info
            observation, info = single.reset()
            info = info | {"final_obs": last, "final_info": final}
        assert data_equivalence(first(infos), first_types(info), exact=True)


@pytest.mark.parametrize("mode", list(AutoresetMode), ids=str)
def test_vector_is_gymnasiums_sync_vector_of_singles(mdp, tiny_images, mode):
    native = SkipNetVectorEnv(mdp, tiny_images, 4, autoreset_mode=mode)
    sync = SyncVectorEnv([lambda: SkipNetEnv(mdp, tiny_images)] * 4, autoreset_mode=mode)
    expected = sync.reset(seed=3)
    came = native.reset(options={"index": expected[1]["index"]})
    for actions in ([0, 1, 0, 1], [0, 0, 1, 1]):
        np.testing.assert_allclose(came[0], expected[0], rtol=1e-4, atol=1e-5)
        came, expected = native.step(np.array(actions)), sync.step(np.array(actions))
        assert layout(came[4]) == layout(expected[4])
        for mine, theirs in zip(came[1:4], expected[1:4], strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


def test_records_play_the_same_episodes(mdp, tiny_images):
    records, again = record(mdp.net, tiny_images), ChainMDP(replayed(mdp.net), 0.4)
    live, replay = SkipNetVectorEnv(mdp, tiny_images, 4), SB3VecEnv(SkipNetVectorEnv(again, records, 4))
    replay.seed(5)
    observations, _ = live.reset(seed=5)
    np.testing.assert_allclose(replay.reset(), observations, rtol=1e-4, atol=1e-4)
    for actions in random_actions(3 * N, 4):
        observations, rewards, ended, _, _ = live.step(actions)
        found = replay.step(actions)
        np.testing.assert_allclose(found[0], observations, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found[1], rewards, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(found[2], ended)


def test_line_says_which_networks_ran_and_what_they_believed(mdp, tiny_images):
    env = SkipNetEnv(mdp, tiny_images, render_mode="ansi")
    env.reset(options={"index": 3})
    beliefs = [env.lockstep.state.answer]
    assert "ResNet-8 → ResNet-14 with gates → ResNet-8 | image 3, label class 3" in env.render()
    env.step(0)
    env.step(1)
    beliefs.append(env.lockstep.state.answer)
    words = [f"■ class {int(each.argmax())} {100 * each.exp().max():.0f} %" for each in beliefs]
    assert f" {words[0]} □ {words[1]} | 1 of 2 executed" in env.render()


def test_picture(mdp, tiny_images):
    env = SkipNetEnv(mdp, tiny_images, render_mode="rgb_array")
    env.reset(options={"index": 1})
    pictures = [env.render()]
    for action in (0, 1):
        env.step(action)
        pictures.append(env.render())
    assert {(picture.shape, str(picture.dtype)) for picture in pictures} == {(pictures[0].shape, "uint8")}
    assert all((one != two).any() for one, two in zip(pictures, pictures[1:], strict=False))


# by name

QUICK = {"dataset": "rendered-digits", "split": "test", "device": "cpu"}
DIGITS = [20, "resnet20-rendered-digits"]


def test_a_chain_has_no_one_depth():
    with pytest.raises(ValueError, match="SkipChain14x110-v0 is a chain of networks"):
        depth_of("SkipChain14x110-v0")


def test_networks_of_ones_own(tmp_path):
    path = tmp_path / "mine.safetensors"
    save_weights(path, ResNet(14), {"kind": "plain", "depth": 14, "shortcut": "projection"})
    env = gym.make(
        "SkipChain-v0",
        networks=["resnet20-rendered-digits", str(path)],
        mix=[0.1],
        temperature=[1, 2],
        **QUICK,
    )
    chain = env.unwrapped.lockstep.mdp.net
    assert [member.depth for member in chain.members] == [20, 14] and chain.mix.tolist() == [0.1]
    assert [member.temperature for member in chain.members] == [1, 2]
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    for one in (env, again):
        one.reset(seed=3)
    assert data_equivalence(env.step(1), again.step(1), exact=True)


@pytest.mark.parametrize("depth", [14, Architecture(32, (16, 32, 64), (1, 2, 1))], ids=["of an id", "other"])
@pytest.mark.parametrize("shortcut", ["projection", "pad"])
@pytest.mark.parametrize("last", [True, False])
def test_networks_of_other_projects(depth, shortcut, last, tmp_path):
    """Their files have no header: depth, size of the images and shortcuts are those of the tensors."""
    net = ResNet(depth, 10, shortcut)
    torch.save({"state_dict": net.state_dict()}, tmp_path / "theirs.th")
    networks = [str(tmp_path / "theirs.th"), "resnet20-rendered-digits"]
    env = gym.make("SkipChain-v0", networks=networks[::-1] if last else networks, **QUICK)
    theirs = env.unwrapped.lockstep.mdp.net.members[int(last)].net
    assert (theirs.architecture, theirs.shortcut) == (net.architecture, shortcut)
    env.reset(seed=0)
    assert env.step(1)[2]


def test_a_depth_is_the_shipped_network_of_the_data_set():
    one = gym.make("SkipChain-v0", networks=DIGITS, **QUICK).unwrapped.lockstep.mdp
    other = gym.make(
        "SkipChain-v0", networks=[20, "resnet20-rendered-digits"], **QUICK
    ).unwrapped.lockstep.mdp
    for mdp in (one, other):
        first, second = (member.net.fc.weight for member in mdp.net.members)
        assert torch.equal(first, second) and mdp.alpha == 0.05 and mdp.cost.tolist() == [1.0]


def test_environments_share_the_networks_of_a_chain():
    make = {"networks": DIGITS, **QUICK}
    one, two = (gym.make("SkipChain-v0", **make, alpha=alpha).unwrapped.lockstep.mdp for alpha in (0.1, 0.2))
    other = gym.make("SkipChain-v0", **make, mix=0.0).unwrapped.lockstep.mdp
    assert one.net is two.net and one.net is not other.net and other.net.mix.tolist() == [0.0]
    assert (one.alpha, two.alpha) == (0.1, 0.2)


def test_a_network_of_another_data_set_is_warned_of():
    with pytest.warns(UserWarning, match="resnet14-cifar10-distilled was trained on images normalised with"):
        gym.make("SkipChain-v0", networks=["resnet14-cifar10-distilled", 20], **QUICK)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"networks": "resnet20-rendered-digits"}, "networks is .*expected a list of two or more"),
        ({"networks": [True, 20]}, "expected a list of two or more"),
        ({"networks": [20]}, "a chain of 1"),
        ({"networks": [20, "resnet20-rendered-digit"]}, "did you mean the shipped resnet20-rendered-digits"),
        ({"networks": DIGITS, "mix": 2}, "mix is 2"),
        ({"networks": DIGITS, "mix": [0.5, 0.5]}, "expected 1 weight"),
        ({"networks": DIGITS, "mix": None}, "mix is None; expected a number"),
        ({"networks": DIGITS, "mix": ["half"]}, "mix is .'half'.; expected a number"),
        ({"networks": DIGITS, "temperature": "2"}, "temperature is '2'; expected a number"),
        ({"networks": DIGITS, "temperature": [2.0, "x"]}, "temperature is .*; expected a number"),
        ({"networks": DIGITS, "temperature": -1}, "temperature is -1"),
        ({"networks": DIGITS, "temperature": [1, 2, 3]}, "one number, or 2 of them"),
        ({"networks": DIGITS, "cost": "flop"}, "did you mean 'flops'"),
        ({"networks": DIGITS, "alpha": -1}, "alpha is -1"),
        ({"networks": DIGITS, "weights": "x.pt"}, "named in networks"),
    ],
    ids=str,
)
def test_chains_that_cannot_be_made(argument, message):
    with pytest.raises(ValueError, match=message):
        gym.make("SkipChain-v0", **{**QUICK, **argument})
