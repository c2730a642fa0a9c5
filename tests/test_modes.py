"""Gradient modes and copies: an environment is the same in each, and a copy shares what never changes."""

import contextlib
import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers import TimeLimit

from envs import factory
from envs.skipnet import SkipNetEnv
from envs.vector import SkipNetVectorEnv
from skipnet_rl.data import ImageSet
from skipnet_rl.folding import for_inference
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.policies import AlwaysExecute
from skipnet_rl.problem import load_network
from skipnet_rl.resnet import ResNet
from skipnet_rl.rollout import rollout

N = 8  # decisions of the tiny network
PLAIN, NO_GRAD, INFERENCE = contextlib.nullcontext, torch.no_grad, torch.inference_mode
MODES = {
    "no_grad": [NO_GRAD],
    "inference_mode": [INFERENCE],
    "inference_mode at reset": [INFERENCE, *[PLAIN] * N],
    "inference_mode at steps": [PLAIN, *[INFERENCE] * N],
    "in turn": [INFERENCE, PLAIN, NO_GRAD],
    "enable_grad": [torch.enable_grad],
}
ENVIRONMENTS = {
    "single": lambda mdp, images: SkipNetEnv(mdp, images, augment=True, render_mode="ansi"),
    "numpy": lambda mdp, images: SkipNetVectorEnv(mdp, images, 3, render_mode="ansi"),
    "torch": lambda mdp, images: SkipNetVectorEnv(mdp, images, 3, array="torch", render_mode="ansi"),
    "NextStep": lambda mdp, images: SkipNetVectorEnv(
        mdp, images, 3, array="torch", autoreset_mode="NextStep", render_mode="ansi"
    ),
}


def act(env, step):
    row = np.random.default_rng(step).integers(0, 2, getattr(env, "num_envs", 1))
    return row if hasattr(env, "num_envs") else int(row[0])


def play(env, modes=(PLAIN,), steps=N, seed=0):
    """Results of a reset and some steps, each in the next of the modes."""
    results = []
    for step in range(steps + 1):
        with modes[step % len(modes)]():
            results.append(env.step(act(env, step)) if step else env.reset(seed=seed))
            results.append(env.render())
    return results


def _of_objects(value):
    return isinstance(value, np.ndarray) and value.dtype.kind == "O"


def flat(results):
    """All arrays and numbers, in order."""
    if isinstance(results, dict):
        return [leaf for value in results.values() for leaf in flat(value)]
    if isinstance(results, (list, tuple)) or _of_objects(results):
        return [leaf for value in results for leaf in flat(value)]
    return [results]


def assert_equal(one, two):
    for mine, other in zip(flat(one), flat(two), strict=True):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(other))


@pytest.mark.parametrize("kind", ENVIRONMENTS)
@pytest.mark.parametrize("modes", MODES)
def test_an_environment_is_the_same_in_each_mode(tiny_net, tiny_images, kind, modes):
    mdp = RoutingMDP(tiny_net)  # whose weights ask for gradients
    env = ENVIRONMENTS[kind](mdp, tiny_images)
    came = play(env, MODES[modes])
    assert_equal(came, play(ENVIRONMENTS[kind](mdp, tiny_images)))
    tensors = [leaf for leaf in flat(came) if isinstance(leaf, torch.Tensor)]
    assert bool(tensors) == (kind in ("torch", "NextStep"))
    state = env.lockstep.state
    for tensor in (*tensors, state.x, state.y, env.lockstep.returns, env.lockstep.routes):
        assert not tensor.is_inference() and not tensor.requires_grad and tensor.grad_fn is None
    assert all(weight.grad is None for weight in tiny_net.parameters())


def test_what_is_made_in_inference_mode_can_be_trained_outside(tiny_images):
    with torch.inference_mode():
        net = load_network(None, 8, 10, "cifar10")
        mdp = RoutingMDP(net, cost="flops")
        images, labels = tiny_images.batch(torch.arange(4))
        route = torch.ones(4, 2, dtype=torch.bool)
        assert mdp.macs.total > 0
        inside = rollout(mdp, AlwaysExecute(), images, labels).loss
    episode = rollout(mdp, AlwaysExecute(), images, labels, routes=route)
    (episode.loss.mean() + mdp.macs.of_routes(torch.rand(4, 2, requires_grad=True)).mean()).backward()
    torch.testing.assert_close(episode.loss.detach(), inside.clone())
    assert net.stem[0].weight.grad.abs().sum() > 0


def test_a_network_and_images_made_in_inference_mode(tiny_images):
    with torch.inference_mode():
        net = for_inference(ResNet(8))
        pixels = tiny_images.images.clone()
        images = ImageSet(
            "x",
            "train",
            pixels,
            tiny_images.labels.clone(),
            tiny_images.classes,
            (0.5,) * 3,
            (0.25,) * 3,
            True,
        )
    for array in ("numpy", "torch"):
        play(SkipNetVectorEnv(RoutingMDP(net), images, 3, array=array), steps=2)


def test_what_the_factory_keeps_serves_every_mode():
    factory.clear_cache()
    quick = {"dataset": "rendered-digits", "split": "val", "weights": None, "device": "cpu"}
    with torch.inference_mode():
        inside = gym.make("SkipResNet14-v0", **quick)
        inside.reset(seed=0)
    inside.step(1)
    lockstep = gym.make("SkipResNet14-v0", **quick).unwrapped.lockstep
    assert lockstep.mdp.net is inside.unwrapped.lockstep.mdp.net
    kept = (*lockstep.mdp.net.parameters(), lockstep.images.images, lockstep.images.labels, lockstep.mdp.cost)
    assert not any(tensor.is_inference() for tensor in kept)


# copies


COPIES = {
    "single": lambda mdp, images: SkipNetEnv(mdp, images),
    "augmented": lambda mdp, images: SkipNetEnv(mdp, images, augment=True),
    "wrapped": lambda mdp, images: TimeLimit(SkipNetEnv(mdp, images), 100),
    "vector": lambda mdp, images: SkipNetVectorEnv(mdp, images, 3),
    "tensors": lambda mdp, images: SkipNetVectorEnv(mdp, images, 3, array="torch"),
    "Gymnasium's vector": lambda mdp, images: SyncVectorEnv([lambda: SkipNetEnv(mdp, images)] * 2),
}


def locksteps(env):
    return [each.unwrapped.lockstep for each in getattr(env.unwrapped, "envs", [env])]


@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_shares_images_and_frozen_network_and_nothing_else(tiny_net, tiny_images, kind):
    env = COPIES[kind](RoutingMDP(for_inference(tiny_net)), tiny_images)
    env.reset(seed=3)
    env.step(act(env, 0))
    other = copy.deepcopy(env)
    for mine, copied in zip(locksteps(env), locksteps(other), strict=True):
        assert copied.images is mine.images and copied.mdp.net is mine.mdp.net
        assert copied.mdp is not mine.mdp and copied.state.x.data_ptr() != mine.state.x.data_ptr()
    third = copy.deepcopy(other)

    def rest(env, actions):
        return [env.step(act(env, action)) for action in actions] + [env.reset(), env.step(act(env, 1))]

    before = rest(other, range(1, N))  # the same future as the original's, whatever comes between
    rest(env, range(5, 4 + N))
    assert_equal(before, rest(third, range(1, N)))


def test_a_copy_has_its_own_network_where_it_may_be_trained(tiny_net, tiny_images):
    env = SkipNetEnv(RoutingMDP(tiny_net), tiny_images)
    env.reset(seed=0)
    other = copy.deepcopy(env)
    assert other.lockstep.images is env.lockstep.images
    assert other.lockstep.mdp.net is not tiny_net
    assert_equal(env.step(1), other.step(1))
    with torch.no_grad():
        tiny_net.fc.bias[0] += 5
    assert other.lockstep.mdp.net.fc.bias[0] != tiny_net.fc.bias[0]


def test_a_copy_before_the_first_episode(tiny_net, tiny_images):
    env = SkipNetEnv(RoutingMDP(tiny_net), tiny_images)
    assert_equal(play(copy.deepcopy(env)), play(env))
