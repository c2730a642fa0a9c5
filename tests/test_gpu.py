"""On a GPU as on the CPU: every test runs on both, on the GPU where there is one (`pytest -m gpu`)."""

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from test_chain import lively_chain
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from toys import Replay, slow

from agents import export, hybrid_reinforce, pretrain
from envs.sb3 import SB3VecEnv
from envs.skipnet import SkipNetEnv
from envs.vector import SkipNetVectorEnv
from skipnet_rl.chain import ChainMDP
from skipnet_rl.checkpoint import load_checkpoint
from skipnet_rl.compiling import compile_blocks
from skipnet_rl.data import load_images
from skipnet_rl.device import pick_device
from skipnet_rl.evaluate import evaluate
from skipnet_rl.folding import for_inference
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.policies import AlwaysExecute, RandomSkip
from skipnet_rl.randomness import Stream, step_generator
from skipnet_rl.rollout import rollout
from skipnet_rl.runs import Run
from skipnet_rl.weights import open_weights

B, N = 12, 8  # images of `tiny_images`, decisions of `tiny_net`
GPU = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device"),
    ],
)


@pytest.fixture(params=["cpu", GPU])
def device(request) -> torch.device:
    return pick_device(request.param)


# faster tests of `test_compiling` and `test_onnx` check the same on a CPU
ON_A_GPU_ABOVE_ALL = pytest.mark.parametrize("device", [slow("cpu"), GPU], indirect=True)


@pytest.fixture(params=["network", "chain"])
def mdp(request, tiny_net):
    """A decision process on the CPU."""
    return RoutingMDP(tiny_net, 0.4) if request.param == "network" else ChainMDP(lively_chain().float(), 0.4)


def on(device: torch.device, mdp: Any) -> Any:
    """A copy of a decision process on a device."""
    copied = copy.copy(mdp)
    copied.net = copy.deepcopy(mdp.net).to(device)
    return copied


def routes_of(mdp: Any, seed: int = 0) -> torch.Tensor:
    """Random routes of all images, on the CPU: [B, N] bool; no image, then all images execute at first."""
    routes = torch.rand(B, mdp.num_decisions, generator=torch.Generator().manual_seed(seed)) < 0.5
    if mdp.num_decisions > 2:
        routes[:, 0], routes[:, 1] = False, True
    return routes


# environments


@pytest.mark.parametrize("array", ["numpy", "torch"])
def test_the_vector_environment_has_the_cpus_routes_and_rewards(device, mdp, tiny_images, array):
    routes = routes_of(mdp)
    with torch.no_grad():
        expected = rollout(mdp, Replay(routes), *tiny_images.batch(torch.arange(B)))
    env = SkipNetVectorEnv(on(device, mdp), tiny_images, B, array=array)
    env.reset(options={"index": np.arange(B)})
    for t, column in enumerate(routes.T):
        actions = column.numpy() if array == "numpy" else column.to(device)
        _, rewards, ended, _, infos = env.step(actions)
        rewards = torch.as_tensor(rewards).float().cpu()
        torch.testing.assert_close(rewards, expected.rewards[:, t].float(), rtol=0, atol=1e-4)
        assert bool(ended.all()) == (t == mdp.num_decisions - 1)
    final = infos["final_info"]
    np.testing.assert_array_equal(final["route"], routes.numpy())
    np.testing.assert_array_equal(final["prediction"], expected.predictions.numpy())
    np.testing.assert_allclose(final["loss"], expected.loss.numpy(), rtol=0, atol=1e-4)
    flops = mdp.compute_flops(expected.state, routes)
    np.testing.assert_allclose(final["compute_flops"], flops.numpy(), rtol=1e-6)


def test_single_environments_and_stable_baselines_get_arrays(device, mdp, tiny_images):
    placed = on(device, mdp)
    single = SkipNetEnv(placed, tiny_images)
    single.reset(options={"index": 0})
    observation, reward, *_ = single.step(1)
    assert isinstance(observation, np.ndarray) and isinstance(reward, float)
    vector = SB3VecEnv(SkipNetVectorEnv(placed, tiny_images, 3))
    assert isinstance(vector.reset(), np.ndarray)
    observations, rewards, *_ = vector.step(np.array([1, 0, 1]))
    assert isinstance(observations, np.ndarray) and rewards.dtype == np.float32


READS = {"item", "tolist", "numpy", "cpu", "__array__", "__bool__", "__int__", "__float__", "__index__"}


class Reads(TorchFunctionMode):
    """Notes what Python reads of a device; finding out which images execute a block is counted apart."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.kind = device.type
        self.found: list[str] = []
        self.compactions = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in READS and args[0].device.type == self.kind:
            self.found.append(name)
        if name != "nonzero":
            return func(*args, **(kwargs or {}))
        self.compactions += 1
        with waits_refused(self.kind == "cuda", "default"):
            return func(*args, **(kwargs or {}))


class Copies(TorchDispatchMode):
    """Notes values and tensors that leave a device below Python, too."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.kind = device.type
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        here = [isinstance(each, torch.Tensor) and each.device.type == self.kind for each in args]
        if func is torch.ops.aten._local_scalar_dense.default and here[0]:
            self.found.append("a value")
        if any(here) and isinstance(result, torch.Tensor) and result.device.type != self.kind:
            self.found.append("a tensor")
        return result


@contextmanager
def waits_refused(cuda: bool, mode: str = "error") -> Iterator[None]:
    """On a GPU let every wait for it raise (or, with "default", none)."""
    if not cuda:
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@contextmanager
def stays(device: torch.device) -> Iterator[Reads]:
    """Fail if anything in the block leaves the device or waits for it, compaction excepted."""
    with waits_refused(device.type == "cuda"), Copies(device) as copies, Reads(device) as reads:
        yield reads
    assert not reads.found and not copies.found


@pytest.mark.parametrize("read", [float, bool, torch.Tensor.tolist, torch.Tensor.cpu, np.asarray])
def test_what_leaves_a_device_is_seen(device, read):
    one = torch.ones((), device=device)
    with pytest.raises((AssertionError, RuntimeError, TypeError)), stays(device):
        read(one)


def test_tensors_of_the_environment_never_leave_the_device(device, mdp, tiny_images):
    """But at the end of the episodes, whose infos are arrays."""
    env = SkipNetVectorEnv(on(device, mdp), tiny_images, B, array="torch")
    env.reset(options={"index": np.arange(B)})
    *before, last = routes_of(mdp).T.to(device)
    for action in before:
        with stays(device) as seen:
            came = env.step(action)[:4]
        assert {each.device.type for each in came} == {device.type}
        if isinstance(mdp, RoutingMDP):  # the networks of a chain select images themselves
            assert seen.compactions == 1
    came = env.step(last)
    assert {each.device.type for each in came[:4]} == {device.type}
    assert {row.device.type for row in came[4]["final_obs"]} == {device.type}


# training


def small(device: torch.device, **flags: Any) -> hybrid_reinforce.Args:
    """A few steps of every stage on a ResNet-14."""
    return hybrid_reinforce.Args(
        **{
            "env": "SkipResNet14-v0",
            "dataset": "rendered-digits",
            "weights": "none",
            "sp_iterations": 2,
            "iterations": 4,
            "tune_iterations": 2,
            "batch_size": 8,
            "eval_every": 4,
            "eval_images": 8,
            "test_images": 8,
            "bn_images": 250,
            "precision": "fp32",
            "device": str(device),
            **flags,
        }
    )


def backbone(device: torch.device, **flags: Any) -> pretrain.Args:
    """One epoch and a half of a ResNet-14 on 32 images."""
    return pretrain.Args(
        **{
            "depth": 14,
            "dataset": "rendered-digits",
            "epochs": 1.5,
            "batch_size": 8,
            "test_images": 8,
            "precision": "fp32",
            "device": str(device),
            **flags,
        }
    )


@pytest.mark.parametrize("stage", ["pretrain", "warmup", "sp", "hrl", "tune"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_step_waits_for_the_device_at_most_to_select_images(
    device, tiny_net, tiny_images, stage, precision
):
    data, net = tiny_images.to(device), tiny_net.to(device)
    if stage == "pretrain":
        args = backbone(device)
        learner = pretrain.Learner(args, net, precision)

        def step(number: int) -> None:
            pretrain.train_step(learner, data, number, args)
    else:
        gated = small(device, warmup_iterations=2)
        costs = torch.linspace(0, 1, N)
        learner = hybrid_reinforce.Learner(gated, RoutingMDP(net, gated.alpha), precision, costs=costs)

        def step(number: int) -> None:
            hybrid_reinforce.train_step(learner, data, number, stage, gated)

    step(0)  # memory and moments of the optimizers
    before = net.blocks[3].conv1.weight.clone()
    with stays(device) as seen:
        step(1)
    assert seen.compactions == (0 if stage in ("pretrain", "sp") else N)
    assert not torch.equal(before, net.blocks[3].conv1.weight)


def test_bf16_maps_stay_in_channels_last_memory(device, tiny_net, tiny_images):
    routes = routes_of(RoutingMDP(tiny_net))
    batch = tiny_images.batch(torch.arange(B))
    with torch.no_grad():
        expected = rollout(RoutingMDP(tiny_net), Replay(routes), *batch).logits
    mdp = RoutingMDP(for_inference(tiny_net.to(device), "bf16"))
    maps = [weight for weight in mdp.net.parameters() if weight.ndim == 4]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in maps)
    state = mdp.initial(*(each.to(device) for each in batch))
    for column in routes.T.to(device):
        assert state.x.dtype == torch.bfloat16
        assert state.x.is_contiguous(memory_format=torch.channels_last)
        assert mdp.observation(state).dtype == torch.float32
        state = mdp.transition(state, column, inplace=True)
    logits = mdp.logits(state)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.cpu(), expected, rtol=0, atol=0.05 * expected.std().item())


def test_gradients_of_bf16_steps_are_float32_in_the_weights_layout(device, tiny_net, tiny_images):
    data, losses = tiny_images.to(device), {}
    for precision in ("fp32", "bf16"):
        net = copy.deepcopy(tiny_net).to(device).train()
        args = backbone(device)
        learner = pretrain.Learner(args, net, precision)
        losses[precision] = pretrain.play(learner, data, 0, args).loss.mean()
        losses[precision].backward()
        for weight in net.parameters():
            assert weight.dtype == weight.grad.dtype == torch.float32
            if weight.ndim == 4:
                assert weight.grad.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(losses["bf16"], losses["fp32"], rtol=0.05, atol=0)
    assert losses["bf16"] != losses["fp32"]


@ON_A_GPU_ABOVE_ALL
def test_compiled_blocks_train_as_they_do_without(device, tiny_net, tiny_images):
    """On the CPU without the code for it, which takes a minute to compile."""
    data, net = tiny_images.to(device), tiny_net.to(device).train()
    images, labels = data.training_batch(torch.arange(B, device=device), step_generator(0, 0, device))
    routes, found = routes_of(RoutingMDP(net)).to(device), {}
    for name in ("plain", "compiled"):
        trained = copy.deepcopy(net)
        if name == "compiled":
            compile_blocks(trained, B, backend="inductor" if device.type == "cuda" else "aot_eager")
        episode = rollout(RoutingMDP(trained), AlwaysExecute(), images, labels, routes=routes)
        episode.loss.mean().backward()
        found[name] = episode.logits.detach(), [each.grad for each in trained.parameters()]
    (expected, plain), (logits, gradients) = found["plain"], found["compiled"]
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    for gradient, other in zip(gradients, plain, strict=True):
        assert (gradient is None) == (other is None)
        if gradient is not None:  # a ReLU's bend makes much of rounding
            assert (gradient - other).norm() <= 0.05 * other.norm() + 1e-4
            assert gradient.ndim < 4 or gradient.is_contiguous(memory_format=torch.channels_last)


# seeds


def test_a_seed_draws_the_same_images_everywhere(device, tiny_net, tiny_images):
    on_cpu = SkipNetVectorEnv(RoutingMDP(copy.deepcopy(tiny_net)), tiny_images, 5)
    env = SkipNetVectorEnv(RoutingMDP(tiny_net.to(device)), tiny_images, 5)
    for seed in (3, 4, [1, 2, 3, None, 5]):
        (_, expected), (_, found) = on_cpu.reset(seed=seed), env.reset(seed=seed)
        keep = slice(None) if isinstance(seed, int) else [0, 1, 2, 4]  # None draws from the system
        np.testing.assert_array_equal(found["index"][keep], expected["index"][keep])


def test_a_seed_draws_the_same_routes_and_shifts_again(device, tiny_net, tiny_images):
    mdp, data = RoutingMDP(tiny_net.to(device)), tiny_images.to(device)

    def played(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        index = torch.arange(B, device=device)
        images, labels = data.training_batch(index, step_generator(seed, 1, device))
        draws = step_generator(seed, 1, device, Stream.ROUTES)
        with torch.no_grad():
            return images, rollout(mdp, RandomSkip(0.5), images, labels, "sample", draws).actions

    for first, again, other in zip(played(0), played(0), played(1), strict=True):
        assert torch.equal(first, again) and not torch.equal(first, other)


def test_an_augmented_environment_repeats_itself(device, tiny_net, tiny_images):
    env = SkipNetVectorEnv(RoutingMDP(tiny_net.to(device)), tiny_images, 4, augment=True)
    first, again, other = (env.reset(seed=seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


# runs


def tensors_of(state: Any) -> Iterator[torch.Tensor]:
    """The tensors of a checkpoint, in its order."""
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, (dict, list)):
        for each in state.values() if isinstance(state, dict) else state:
            yield from tensors_of(each)


@pytest.fixture
def interrupted(monkeypatch):
    """Trains, and is interrupted after the checkpoint of step 4."""
    save = Run.save

    def save_and_stop(self, state):
        save(self, state)
        if state["step"] == 4:
            raise KeyboardInterrupt

    def train(agent, args):
        with monkeypatch.context() as patch:
            patch.setattr(Run, "save", save_and_stop)
            with pytest.raises(KeyboardInterrupt):
                agent.train(args)

    return train


@pytest.mark.parametrize(
    "agent, made, flags",
    [(pretrain, backbone, {"survival": 0.5}), (hybrid_reinforce, small, {"gate_lr": 1e-3})],
    ids=["pretrain", "hybrid_reinforce"],
)
def test_a_resumed_run_ends_like_an_uninterrupted_one(
    device, agent, made, flags, tmp_path, few_images, interrupted, monkeypatch
):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    agent.train(made(device, run_dir=tmp_path / "whole", **flags))
    args = made(device, run_dir=tmp_path / "broken", **flags)
    interrupted(agent, args)
    agent.train(dataclasses.replace(args, resume=True))
    whole, resumed = (load_checkpoint(tmp_path / name / "checkpoint") for name in ("whole", "broken"))
    assert whole["step"] == resumed["step"] > 4
    pairs = [*zip(tensors_of(whole["learner"]), tensors_of(resumed["learner"]), strict=True)]
    assert len(pairs) > 100
    for expected, found in pairs:
        if device.type == "cpu":
            assert torch.equal(found, expected)
        else:  # the order of a sum may differ there
            torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)


def test_what_a_device_wrote_opens_anywhere(device, tmp_path, few_images, interrupted):
    """A run goes on on the CPU, and its weights answer there as they do on the device."""
    args = small(device, run_dir=tmp_path)
    interrupted(hybrid_reinforce, args)
    stored = load_checkpoint(tmp_path / "checkpoint")
    assert {each.device.type for each in tensors_of(stored)} == {"cpu"}
    hybrid_reinforce.train(dataclasses.replace(args, device="cpu", resume=True))
    opened = open_weights(tmp_path / "hrl.safetensors")
    images = load_images("rendered-digits", "test").first(64)
    on_cpu = evaluate(opened.mdp(), opened.policy, images)
    there = evaluate(on(device, opened.mdp()), opened.policy.to(device), images.to(device))
    assert torch.equal(there.routes, on_cpu.routes)
    torch.testing.assert_close(there.loss, on_cpu.loss, rtol=0, atol=1e-3)


@ON_A_GPU_ABOVE_ALL
def test_weights_of_a_device_are_exported(device, tmp_path, few_images):
    pytest.importorskip("onnxruntime", reason="needs the extra: pip install -e '.[export]'")
    pytest.importorskip("onnxscript", reason="needs the extra: pip install -e '.[export]'")
    args = small(device, iterations=1, tune_iterations=1, run_dir=tmp_path / "run")
    hybrid_reinforce.train(args)
    file = tmp_path / "model.onnx"
    agreement = export.main(export.Args(tmp_path / "run" / "hrl.safetensors", file, check=20))
    assert file.is_file() and agreement.same_routes == 20
