"""Compiled blocks compute in training what they compute without, once per kind; what is missing is named."""

import copy
import dataclasses
import json
import pickle
from functools import partial

import pytest
import torch
from other_models import CLASSES, SIZE, TORCHVISION
from test_chain import lively_chain
from test_gpu import backbone, small
from torch._dynamo.testing import CompileCounter

from agents import hybrid_reinforce, pretrain
from agents.common import compiled
from skipnet_rl import adapt
from skipnet_rl.compiling import compile_blocks
from skipnet_rl.errors import CompilationError
from skipnet_rl.folding import for_inference
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.policies import AlwaysExecute
from skipnet_rl.resnet import ResNet
from skipnet_rl.rollout import rollout

B = 12
TRACED = "aot_eager"  # all of torch.compile but the code for the device, which takes a minute


def compiler_missing() -> str:
    """Why this CPU's code cannot be compiled; empty where it can."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "there is no C++ compiler"
    return ""


def resnet(depth=14, dtype=torch.float64):
    """A ResNet in training mode; in float64, where rounding puts no number on the other side of a ReLU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(depth)
        return ResNet(depth).to(dtype).to(memory_format=torch.channels_last).train()


def batch(size=32, count=B):
    images = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    return images.contiguous(memory_format=torch.channels_last), torch.arange(count) % CLASSES


def some_routes(decisions, seed=0, count=B):
    """Random routes; one block executes one image alone."""
    routes = torch.rand(count, decisions, generator=torch.Generator().manual_seed(seed)) < 0.6
    routes[:, 0] = torch.arange(count) == 3
    return routes


def taken(net, routes, size=32):
    """Logits, gradients and batch norm statistics of a step on given routes."""
    net.zero_grad()
    images, labels = batch(size, len(routes))
    episode = rollout(RoutingMDP(net), AlwaysExecute(), images, labels, routes=routes)
    episode.loss.mean().backward()
    gradients = [each.grad for each in net.parameters() if each.grad is not None]
    return [episode.logits.detach(), *gradients, *net.buffers()]


@pytest.mark.parametrize(
    "backend, depth, kinds", [(TRACED, 8, 3), pytest.param("inductor", 14, 5, marks=pytest.mark.slow)]
)
def test_a_step_is_that_of_the_blocks_as_they_are(backend, depth, kinds):
    if backend == "inductor" and (missing := compiler_missing()):
        pytest.skip(missing)
    plain = resnet(depth)
    net = copy.deepcopy(plain)
    before = {name: each.clone() for name, each in net.state_dict().items()}
    assert compile_blocks(net, B, backend=backend) == kinds
    assert list(net.state_dict()) == list(before)
    assert all(torch.equal(each, before[name]) for name, each in net.state_dict().items())
    copied = copy.deepcopy(net)
    for seed, count in enumerate((B, B, 7)):
        routes = some_routes(len(net.blocks) - 1, seed, count)
        expected = taken(plain, routes)
        assert len(expected) > 20
        for each in (net, copied):
            for found, value in zip(taken(each, routes), expected, strict=True):
                torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-10)
    images, _ = batch()
    torch.testing.assert_close(net(images), plain(images), rtol=1e-5, atol=1e-10)


def test_a_deeper_network_compiles_no_more():
    counts = {}
    for depth in (20, 38):
        counter, net = CompileCounter(), resnet(depth, torch.float32)
        assert compile_blocks(net, B, backend=counter) == 5
        assert counter.frame_count == 5
        for seed, count in enumerate((B, 9, 2)):
            taken(net, some_routes(len(net.blocks) - 1, seed, count))
        taken(copy.deepcopy(net), some_routes(len(net.blocks) - 1))
        counts[depth] = counter.frame_count
    assert counts == {20: 5, 38: 5}


def test_only_training_runs_compiled_code():
    counter, plain = CompileCounter(), resnet()
    net = copy.deepcopy(plain)
    compile_blocks(net, B, backend=counter)
    images, labels = batch()
    with torch.no_grad():
        for mode in (True, False):
            assert torch.equal(net.train(mode)(images), plain.train(mode)(images))
        routes = some_routes(5)
        for each in (net, for_inference(net)):
            rollout(RoutingMDP(each), AlwaysExecute(), images, labels, routes=routes)
    assert counter.frame_count == 5
    net.eval()(images).sum().backward()  # batch norms that stay: other code
    assert counter.frame_count == 10
    assert "execute" in vars(net.blocks[1])
    unpickled = pickle.loads(pickle.dumps(net))
    assert unpickled.blocks[1].execute.__func__ is type(net.blocks[1]).execute
    assert torch.equal(unpickled(images), plain(images))


def test_batch_norms_that_stay_are_compiled_so():
    counter, net = CompileCounter(), resnet().eval()
    compile_blocks(net, B, training=False, backend=counter)
    taken(net, some_routes(5))
    assert counter.frame_count == 5 and not net.training


def test_networks_of_a_chain_share_their_kinds():
    counter, chain = CompileCounter(), lively_chain().train()
    images, _ = batch()
    expected = copy.deepcopy(chain)(images)
    assert compile_blocks(chain, B, backend=counter) == 5  # a ResNet-8 has three of the ResNet-14's
    torch.testing.assert_close(chain(images), expected)
    assert counter.frame_count == 5


# features in another order of memory count again: maps of one place, and the tokens before the first block
@pytest.mark.parametrize("name, blocks, compilations", [("ResNet", 8, 12), ("ConvNeXt", 4, 2), ("ViT", 3, 2)])
def test_models_of_other_libraries(name, blocks, compilations):
    torch.manual_seed(0)
    plain = adapt(TORCHVISION[name](num_classes=CLASSES), SIZE).double().train()
    counter, net = CompileCounter(), copy.deepcopy(plain)
    compile_blocks(net, B, backend=counter)
    routes = some_routes(blocks - 1)
    for found, expected in zip(taken(net, routes, SIZE), taken(plain, routes, SIZE), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-10)
    images, _ = batch(SIZE)
    net(images).sum().backward()
    assert (len(net.blocks), counter.frame_count) == (blocks, compilations)


def test_without_a_compiler_the_error_says_what_is_missing(tmp_path, monkeypatch):
    from torch._inductor import config, cpp_builder

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    cpp_builder.cpp_compiler_search.cache_clear()
    net = resnet(8, torch.float32)
    absent = config.patch({"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False})
    message = r"blocks of ResNet-8 .* a C\+\+ compiler, .*; install"
    with absent, pytest.raises(CompilationError, match=message) as raised:
        compile_blocks(net, 4)
    cpp_builder.cpp_compiler_search.cache_clear()
    assert "no-such-compiler" in str(raised.value) and "\n" not in str(raised.value)
    assert "execute" not in vars(net.blocks[0])


def test_a_block_that_cannot_be_traced_is_an_error():
    class Odd(type(resnet().blocks[0])):
        def transform(self, x):
            print(x)
            return super().transform(x)

    net = resnet(8)
    net.blocks[1].__class__ = Odd
    with pytest.raises(
        CompilationError, match="cannot compile the blocks of ResNet-8 on this machine: Unsupp"
    ):
        compile_blocks(net, 4, backend=TRACED)


def refused(*args):
    raise RuntimeError("no compiler\nat all")


@pytest.mark.parametrize("agent, made", [(pretrain, backbone), (hybrid_reinforce, small)])
def test_a_run_ends_at_its_start_where_nothing_can_be_compiled(
    agent, made, tmp_path, few_images, monkeypatch
):
    monkeypatch.setattr(compiled, "compile_blocks", partial(compile_blocks, backend=refused))
    with pytest.raises(CompilationError, match=r"RuntimeError: no compiler\. It needs a C\+\+ compiler"):
        agent.train(made(torch.device("cpu"), run_dir=tmp_path / "run", compile=True))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("agent, made", [(pretrain, backbone), (hybrid_reinforce, small)])
def test_a_compiled_run_is_that_without(agent, made, tmp_path, few_images, monkeypatch, capsys):
    monkeypatch.setattr(compiled, "compile_blocks", partial(compile_blocks, backend="eager"))
    cpu = torch.device("cpu")
    args = made(cpu, run_dir=tmp_path / "compiled", compile=True)
    found, expected = agent.train(args), agent.train(made(cpu, run_dir=tmp_path / "plain"))
    said = capsys.readouterr().out
    assert said.index("compiling: each kind") < said.index("compiled: 5 kinds of blocks, in ")
    assert said.count("compiling: ") == 1
    assert json.loads((tmp_path / "compiled" / "args.json").read_text())["compile"] is True
    for row, other in zip(found["policies"], expected["policies"], strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-3)
    with pytest.raises(ValueError, match="cannot resume with compile False: the run was started with True"):
        agent.train(dataclasses.replace(args, compile=False, resume=True))


@pytest.mark.parametrize("agent, made", [(pretrain, backbone), (hybrid_reinforce, small)])
def test_a_used_folder_is_refused_before_anything_is_compiled(agent, made, tmp_path, few_images, monkeypatch):
    monkeypatch.setattr(compiled, "compile_blocks", lambda *_, **__: pytest.fail("blocks were compiled"))
    args = made(torch.device("cpu"), run_dir=tmp_path, compile=True)
    stored = tmp_path / "args.json"
    stored.write_text(json.dumps({"seed": args.seed + 1, "compile": True}))
    with pytest.raises(FileExistsError, match="holds a run; resume it, or choose another folder"):
        agent.train(args)
    with pytest.raises(ValueError, match=r"cannot resume with seed .*: the run was started with"):
        agent.train(dataclasses.replace(args, resume=True))
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        agent.train(dataclasses.replace(args, resume=True, run_dir=None))
    assert list(tmp_path.iterdir()) == [stored]


@pytest.mark.slow
def test_a_run_through_the_compiler(tmp_path, few_images, capsys):
    if missing := compiler_missing():
        pytest.skip(missing)
    args = small(torch.device("cpu"), run_dir=tmp_path, compile=True)
    assert hybrid_reinforce.train(args)["policies"]
    assert "compiled: 5 kinds of blocks, in " in capsys.readouterr().out
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in metrics] == ["sp", "hrl", "hrl", "tune"]
