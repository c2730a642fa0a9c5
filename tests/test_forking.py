"""Processes forked after PyTorch has computed with several threads: they compute, and do not hang."""

import importlib
import os
import signal

import gymnasium as gym
import pytest
import torch
from forked import forked

from envs.skipnet import SkipNetEnv
from envs.vector import SkipNetVectorEnv
from skipnet_rl import forking
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.policies import AlwaysExecute
from skipnet_rl.rollout import rollout

if not hasattr(os, "fork"):
    pytest.skip("needs fork", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
QUICK = {"dataset": "rendered-digits", "split": "test", "weights": None, "device": "cpu"}
HANGS = 60  # seconds after which a child is taken to hang


def compute() -> None:
    """Enough of everything for PyTorch to divide among threads."""
    with torch.no_grad():
        torch.nn.Conv2d(16, 32, 3)(torch.ones(8, 16, 64, 64))
        torch.nn.Linear(512, 512)(torch.ones(256, 512))
        torch.ones(300, 300) @ torch.ones(300, 300)
        torch.ones(1_000_000).relu().sum()


@pytest.fixture(autouse=True)
def pool_of_two():
    """The parent has the threads that its children will lack."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    compute()
    yield
    assert torch.get_num_threads() == 2  # the parent keeps its own
    torch.set_num_threads(before)


def play(env, actions) -> None:
    env.reset(seed=0)
    for action in actions:
        env.step(action)


def learn(mdp, images) -> None:
    mdp.net.train()
    rollout(mdp, AlwaysExecute(), *images.batch(torch.arange(12))).loss.mean().backward()


@pytest.fixture
def tasks(tiny_net, tiny_images):
    """Computations of a child, with inherited objects and with new ones."""
    mdp = RoutingMDP(tiny_net)
    single, vector = SkipNetEnv(mdp, tiny_images), SkipNetVectorEnv(mdp, tiny_images, 12)
    play(single, [1]), play(vector, [[1] * 12])
    return (
        compute,
        lambda: play(single, [1, 0, 1]),
        lambda: play(vector, [[0, 1] * 6, [1] * 12]),
        lambda: play(gym.make("SkipResNet20-v0", **QUICK), [1, 0]),
        lambda: learn(mdp, tiny_images),
        lambda: _must_be(forked(_in_time, compute), 0),
    )


def _must_be(value, expected) -> None:
    assert value == expected


def _in_time(*tasks) -> None:
    signal.alarm(HANGS)
    for task in tasks:
        task()
    assert torch.get_num_threads() == 1 and forking.forked_by_multiprocessing()


def test_a_forked_process(tasks):
    assert not forking.forked_by_multiprocessing()
    assert forked(_in_time, *tasks) == 0


def test_a_bare_fork(tasks):
    pid = os.fork()
    if pid == 0:
        signal.alarm(HANGS)
        for task in tasks:
            task()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_pool_of_processes():
    with torch.multiprocessing.get_context("fork").Pool(
        1, initializer=signal.alarm, initargs=(HANGS,)
    ) as pool:
        assert pool.apply_async(compute).get(HANGS) is None


def test_asynchronous_vector_environment():
    env = gym.make_vec("SkipResNet20-v0", num_envs=2, vectorization_mode="async", **QUICK)
    try:
        env.reset_async(seed=0)
        observations, _ = env.reset_wait(timeout=HANGS)
        env.step_async(env.action_space.sample())
        assert env.step_wait(timeout=HANGS)[0].shape == observations.shape == (2, 64 + 8)
    finally:
        env.close(terminate=True)


class Batches(torch.utils.data.Dataset):
    def __init__(self, env) -> None:
        self.env = env

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index):
        return self.env.reset(options={"index": index})[0]


def test_workers_of_a_data_loader(tiny_net, tiny_images):
    env = SkipNetEnv(RoutingMDP(tiny_net), tiny_images)
    loader = torch.utils.data.DataLoader(
        Batches(env), num_workers=1, timeout=HANGS, multiprocessing_context="fork"
    )
    assert [batch.shape for batch in loader] == [(1, 72), (1, 72)]


def test_a_child_whose_parent_did_not_import_skipnet_rl():
    """The package is first imported in the child: by then the fork is past, and the import itself helps."""

    def imported_again() -> None:
        torch.set_num_threads(2)
        signal.alarm(HANGS)
        importlib.reload(forking)
        compute()
        assert torch.get_num_threads() == 1

    assert forked(imported_again) == 0
