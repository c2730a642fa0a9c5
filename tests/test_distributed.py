"""Several processes that share each batch: the same gradients, runs that go on, refusals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from commands import parsed
from PIL import Image
from safetensors.torch import load_file

import agents.common.processes
from agents.common.processes import check_gpus, check_processes
from skipnet_rl.distributed import average_gradients, from_leader, processes, share
from skipnet_rl.randomness import SharedGenerator, for_images, step_generator
from tests.shared_gradient import gradients

ROOT = Path(__file__).parents[1]
CASES = ("pretrain", "warmup", "sp", "hrl", "tune", "unvisited")
RUN = (
    "-m agents.hybrid_reinforce --env SkipResNet14-v0 --dataset rendered-digits --weights none "
    "--test-images 50 "
    "--batch-size 16 --sp-iterations 4 --iterations 120 --tune-iterations 4 --device cpu --precision fp32"
)


def torchrun(*words: str, count: int = 2) -> subprocess.Popen[str]:
    """Start several processes."""
    line = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={count}",
        *words,
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        line, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8"
    )


def test_two_processes_have_the_gradient_of_one(tmp_path: Path) -> None:
    """One test for all cases, since starting two processes takes longer than the cases."""
    started = torchrun("-m", "tests.shared_gradient", str(tmp_path), *CASES)
    output, _ = started.communicate(timeout=300)
    assert started.returncode == 0, output
    for case in CASES:
        two, one = torch.load(tmp_path / f"{case}.pt"), gradients(case)
        assert two.keys() == one.keys(), case  # a block that nobody executes has no gradient in either
        assert any(name.startswith("grad") and value.abs().max() > 0 for name, value in one.items()), case
        for name, value in one.items():
            error = (two[name] - value).norm() / value.norm().clamp(min=1e-8)
            assert error < 1e-4, (case, name, float(error))  # a bias of zero mean is mostly rounding
        every = torch.cat([one[name].flatten() for name in one if name.startswith("grad")])
        other = torch.cat([two[name].flatten() for name in one if name.startswith("grad")])
        assert (every - other).norm() / every.norm() < 1e-6, case
    names = set(torch.load(tmp_path / "unvisited.pt"))
    assert "grad net.blocks.0.conv1.weight" in names
    assert "weight net.blocks.1.conv1.weight" in names and "grad net.blocks.1.conv1.weight" not in names


def test_shares_of_random_numbers_are_those_of_the_whole_batch() -> None:
    def draw(part: int, parts: int, count: int) -> torch.Tensor:
        generator = step_generator(3, 5, "cpu", share=(part, parts))
        return for_images(lambda n: torch.rand(2, n, generator=generator), count, generator, dim=1)

    whole = draw(0, 1, 6)
    assert torch.equal(torch.cat([draw(part, 3, 2) for part in range(3)], 1), whole)
    assert isinstance(step_generator(3, 5, "cpu", share=(1, 3)), SharedGenerator)


def test_one_process_shares_with_nobody() -> None:
    weight = torch.ones(2, requires_grad=True)
    average_gradients([weight])
    assert processes() == 1 and weight.grad is None and from_leader(lambda: 7) == 7
    assert torch.equal(share(torch.arange(4)), torch.arange(4))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("agents.ppo --env SkipResNet14-v0", "this command runs in one process"),
        ("agents.hybrid_reinforce --env SkipChain20x110-v0", "is a chain, which trains in one process"),
        (
            "agents.hybrid_reinforce --env SkipResNet14-v0 --batch-size 36 --routes 4",
            "is 9 images per step, which 2 processes cannot share equally",
        ),
        (
            "agents.pretrain --depth 14 --batch-size 1",
            "is 1 images per step, which 2 processes cannot share equally",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused(line: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents.common.processes, "processes", lambda: 2)
    with pytest.raises(ValueError, match=message):
        check_processes(parsed(f"python -m {line}"))


@pytest.mark.slow
def test_a_refusal_ends_all_processes() -> None:
    started = torchrun("-m", "agents.ppo", "--env", "SkipResNet14-v0")
    output, _ = started.communicate(timeout=120)
    assert started.returncode != 0 and "this command runs in one process" in output, output


@pytest.mark.parametrize(
    ("device", "count", "message"),
    [
        ("auto", 3, "3 processes on this machine, but PyTorch sees 2 GPUs"),
        ("cuda:1", 2, "--device cuda:1 is one GPU for every process"),
        ("auto", 2, None),
        ("cpu", 3, None),
    ],
)
def test_each_process_has_a_gpu_of_its_own(
    device: str, count: int, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=message) if message else nullcontext():
        check_gpus(device, count)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--alpha 1.$RANK", "process 1 has other flags than process 0"),
        ("--dataset imagefolder --data-dir {folder}/$RANK", "process 1 has other images than process 0"),
    ],
)
def test_processes_that_differ_end(flags: str, message: str, tmp_path: Path) -> None:
    """Each says in what; nothing is written."""
    rng = np.random.default_rng(0)
    for number in range(128):
        part = "test" if number % 8 < 2 else "train"
        file = tmp_path / str(number % 2) / part / "ab"[number // 8 % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file)
    run = f"{sys.executable} {RUN} {flags.format(folder=tmp_path)} --run-dir {tmp_path}/run"
    started = torchrun("--no-python", "bash", "-c", run)
    output, _ = started.communicate(timeout=120)
    assert started.returncode != 0 and message in output, output
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_loses_nothing(killed: int, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    command = [*RUN.split(), "--resume", "--run-dir"]
    started = torchrun(*command, str(whole))
    output, _ = started.communicate(timeout=600)
    assert started.returncode == 0, output
    started = torchrun(*command, str(broken))
    while not (broken / "checkpoint.previous").exists():  # two checkpoints are written
        assert started.poll() is None
        time.sleep(0.02)
    workers = [p for p in psutil.Process(started.pid).children() if "agents.hybrid_reinforce" in p.cmdline()]
    number = {int(p.environ()["RANK"]): p for p in workers}
    number[killed].send_signal(signal.SIGKILL)
    started.communicate(timeout=300)
    assert started.returncode != 0 and not (broken / "result.json").exists()
    started = torchrun(*command, str(broken))
    output, _ = started.communicate(timeout=600)
    assert started.returncode == 0, output
    assert output.count("wrote ") == 1  # only the leader's
    for file in ("sp.safetensors", "hrl.safetensors"):
        ours, theirs = load_file(whole / file), load_file(broken / file)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
