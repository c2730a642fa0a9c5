"""`benchmarks.gpu`: parts in processes of their own, cut off in time, and tables of what was measured."""

import json
import time
from pathlib import Path
from textwrap import dedent

import psutil
import pytest

from agents.common.parsing import parse
from benchmarks import checks, compiling, gpu, gpu_table, measure, operators
from benchmarks.gpu_table import Sizes

SMALLEST = Sizes(
    depth=14,
    envs=(2, 3, 4),
    batch=8,
    depths=(14,),
    batches=(4,),
    large=34,
    large_batch=1,
    repeats=1,
    ways=(),
    ways_large=(),
    select="same_images",
)
QUICK = ("tests", "environment-2", "operators-hybrid", "compiling")


def run_parts(folder: Path, only: tuple[str, ...]) -> dict:
    gpu.main(gpu.Options(minutes=60, device="cpu", only=only, out=folder), SMALLEST)
    return json.loads((folder / "gpu.json").read_text())


@pytest.mark.slow
def test_parts_run_on_the_cpu_and_fill_one_file(tmp_path):
    found = run_parts(tmp_path, QUICK)
    assert (found["device"], found["card"], tuple(found["parts"])) == ("cpu", None, QUICK)
    assert found["versions"]["torch"] and found["machine"]
    assert {part["error"] for part in found["parts"].values()} == {None}
    text = (tmp_path / "gpu.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and "`python -m" in line]
    measured = {
        name: [row for row in rows if f"`{part['command']}`" in row] for name, part in found["parts"].items()
    }
    assert all(measured.values()) and not any(
        "not measured" in row for each in measured.values() for row in each
    )
    assert "| 1 passed |" in measured["tests"][0]
    others = [row for row in rows if not any(row in each for each in measured.values())]
    assert len(others) == 9 + 1 and all("not measured" in row for row in others)


@pytest.mark.slow
def test_every_part_runs_on_the_cpu(tmp_path):
    found = run_parts(tmp_path, ())
    assert {name: part["error"] for name, part in found["parts"].items()} == dict.fromkeys(found["parts"])
    assert "not measured" not in (tmp_path / "gpu.md").read_text().split("**ImageNet")[0]


TOY = """
import json, os, subprocess, sys, time
from dataclasses import dataclass
from pathlib import Path
import torch

@dataclass(frozen=True)
class Options:
    device: str
    out: Path
    way: str = "good"

def main(options):
    started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1_000)"])
    found = {"pid": started.pid, "touched": torch.cuda._is_in_bad_fork(), "commit": "x"}
    (options.out / "toy.json").write_text(json.dumps(found))
    print("said")
    if options.way == "slow":
        time.sleep(1_000)
    if options.way == "bad":
        raise ValueError("no such thing\\nat all")
    if options.way == "dead":
        os._exit(7)
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    (tmp_path / "toy_part.py").write_text(dedent(TOY))
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(way: str, limit: float) -> dict:
        part = gpu.Part("toy", 1, "toy_part", {"way": way})
        return gpu.run(part, "cpu", tmp_path / "toy", limit)

    return run


@pytest.mark.parametrize(
    "way, error", [("good", None), ("bad", "ValueError: no such thing"), ("dead", "ended with 7")]
)
def test_an_error_of_a_part_is_noted_beside_what_it_wrote(toy, tmp_path, way, error):
    found = toy(way, 300)
    assert found["error"] == error and found["command"] == f"python -m toy_part --device cpu --way {way}"
    assert (
        found["found"]["touched"] is False
    )  # CUDA can be used in a process that was not forked from its user
    assert "commit" not in found["found"]  # that of all parts is told once
    assert "said" in (tmp_path / "toy" / "log.txt").read_text()
    assert ends(found["found"]["pid"])


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended may still wait for its parent."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def ends(pid: int) -> bool:
    """Whether a process that was killed ends; a busy machine may take its time."""
    end = time.perf_counter() + 60
    while alive(pid) and time.perf_counter() < end:
        time.sleep(0.05)
    return not alive(pid)


def test_a_part_that_takes_too_long_ends_with_all_that_it_started(toy):
    toy("good", 300)  # the server has imported what it needs
    for limit in (2, 8, 32, 128):  # until it has started its child, see `TOY`
        found = toy("slow", limit)
        assert found["error"] == f"cut off after {limit} s"
        if found["found"]:
            break
    assert found["seconds"] < limit + 300 and ends(found["found"]["pid"])


@pytest.mark.parametrize("module", [gpu, checks])
def test_a_default_in_words_is_the_only_one(module, capsys):
    with pytest.raises(SystemExit):
        parse(module.Options, ["--help"], command=module.__name__)
    text = capsys.readouterr().out
    assert f"python -m {module.__name__}" in text and text.count("(default: all)") == 1
    assert "(default: )" not in text and "(default: '')" not in text


def test_what_was_not_measured_is_named_with_its_command():
    text = gpu.table(gpu.unmeasured())
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ") and "`python -m" in line]
    assert len(rows) == len(gpu_table.rows(gpu.SIZES["cuda"]))
    assert all(row[1] == "not measured" for row in rows)
    assert "**" not in text  # no details of what was not run
    commands = {part.name: part.command("cuda") for part in gpu.parts(gpu.SIZES["cuda"])}
    in_rows = set(commands) - {"memory", "scaling", "imagenet"}
    assert all(f"`{commands[name]}`" in text for name in in_rows)


def test_numbers_of_the_table_are_those_of_the_parts():
    found = gpu.unmeasured()
    timing = {
        name: {"median": seconds} for name, seconds in {"plain": 0.02, "all": 0.025, "half": 0.0125}.items()
    }
    environment = {"timings": timing, "num_envs": 4_096, "decisions": 53}
    turns = {"eager": {"median": 0.04}, "way": {"median": 0.01}}
    way = {"timings": turns, "steps": 10, "first": 3.0}
    itself = {"timings": {"eager": {"median": 0.04}, "way": {"median": 0.04}}, "steps": 10, "first": 0.2}
    ways = {"eager": itself, "graphs": way, "blocks": {"error": "RuntimeError: no compiler"}}
    compiled = {
        **{"device": "cuda", "precision": "bf16", "step": "pretraining", "depth": 110, "batch_size": 512},
        "ways": ways,
    }
    for name, part, error in (
        ("environment-4096", environment, None),
        ("compiling", compiled, "cut off after 50 s"),
        ("imagenet", compiled, None),
        ("environment-1024", None, "RuntimeError: out of memory"),
    ):
        found["parts"][name] = {"found": part, "error": error}
    text = gpu.table({**found, "card": "NVIDIA Toy", "torch": "2.11.0"})
    assert text.startswith("| NVIDIA Toy, PyTorch 2.11.0 | measured | aim | command |")
    for row in (
        "environment's speed relative to the network's, 4,096 sub-environments | 0.80 | ≥ 0.8",
        "steps per second, 4,096 sub-environments | 8,683,520 |",
        "speed, half executed relative to all, 4,096 sub-environments | 2.00 | ≥ 1.5",
        "steps per second, 1,024 sub-environments | not measured: RuntimeError: out of memory | ≥ 2,000,000",
        "images per second | 12,800 (3.5 s per 45,000 images); cut off after 50 s |  | `python",
        "uncompiled | 4.00 (CUDA graphs of forward and backward pass, 3 s for the first steps); cut off",
        "cut off after 50 s | ≥ 3, and ≤ 1.2 s per 45,000 images |",
        "| blocks compiled, any batch size | RuntimeError: no compiler |",
        "The rest is not measured: cut off after 50 s.",
    ):
        assert row in text, row
    hours = 160 * 1_281_167 / 51_200 / 8 / 3600  # at the speed of the fastest way
    assert f"| ResNet-101 | {160 * 1_281_167 * 6 * gpu_table.macs(101) / 1e18:,.1f} | {hours:,.1f} |" in text


def test_only_what_was_not_reached_is_not_measured():
    """And a fault of a table is one: it does not look like a part that was cut off."""
    parts = {
        "compiling": {"found": {"ways": {"eager": {"error": "OutOfMemoryError: x"}}}, "error": "cut off"},
        "operators": {"found": {"device": "cpu"}, "error": None},
        "training": {"found": None, "error": "ended with 7"},
    }
    assert gpu_table.shown(parts, "compiling", gpu_table.images_per_second) == "not measured: cut off"
    assert gpu_table.shown(parts, "training", gpu_table.hybrid_step) == "not measured: ended with 7"
    assert gpu_table.shown(parts, "memory", gpu_table.busy) == "not measured"
    with pytest.raises(KeyError, match="timings"):
        gpu_table.shown(parts, "operators", gpu_table.busy)
    found = gpu.unmeasured()
    found["parts"]["imagenet"] = parts["compiling"]
    text = gpu_table.imagenet(found, gpu.SIZES["cuda"], "command")
    assert text.count("| not measured: cut off |") == 3
    scaled = [line.split(" | ")[0] for line in text.splitlines() if "ResNet-101's, scaled by MACs" in line]
    assert scaled == ["| ResNet-34", "| ResNet-50"]


def test_unknown_parts_no_time_and_half_a_page_are_refused(tmp_path):
    with pytest.raises(ValueError, match="--only names 'speed'; expected some of tests, environment-128"):
        gpu.main(gpu.Options(only=("speed",), out=tmp_path, device="cpu"), gpu.SIZES["cuda"])
    with pytest.raises(ValueError, match="--minutes is 0"):
        gpu.main(gpu.Options(minutes=0, out=tmp_path, device="cpu"))
    with pytest.raises(ValueError, match="--write renews the page from all parts"):
        gpu.main(gpu.Options(only=("tests",), write=True, out=tmp_path, device="cpu"))
    with pytest.raises(ValueError, match="no GPU is used here"):
        gpu.main(gpu.Options(write=True, out=tmp_path, device="cpu"))
    assert not list(tmp_path.iterdir())


def test_a_way_that_cannot_be_compiled_is_noted_and_the_others_go_on(tmp_path, monkeypatch):
    def none(step, options, precision):
        raise RuntimeError("no compiler\nhere")

    monkeypatch.setattr(compiling, "blocks", none)
    monkeypatch.setattr(compiling, "network", lambda step: step)
    options = compiling.Options(
        depth=14, batch_size=8, repeats=1, device="cpu", precision="fp32", out=tmp_path
    )
    ways = compiling.main(options)["ways"]
    assert list(ways) == ["eager", "blocks", "network"]
    assert ways["blocks"] == {"error": "RuntimeError: no compiler"}
    assert ways["network"]["loss"] == ways["eager"]["loss"]  # the same step
    stored = json.loads((tmp_path / "compiling-pretraining-cpu.json").read_text())
    assert list(stored["ways"]) == list(ways)


def test_operators_of_a_step(tmp_path, monkeypatch):
    def take_turns(candidates, repeats, device, calls):
        return {name: measure.Timing(*[float(calls)] * 3) for name in candidates}

    monkeypatch.setitem(measure.STEPS, "cpu", 2)
    monkeypatch.setattr(measure, "take_turns", take_turns)
    options = operators.Options(
        depth=14, batch_size=8, repeats=1, device="cpu", precision="fp32", out=tmp_path
    )
    found = operators.main(options)
    assert set(found["timings"]["step"].values()) == {2.0}
    seconds = sum(each["seconds"] for each in found["operators"].values())
    assert 0 < seconds <= found["seconds"]
    backward = found["operators"]["aten::convolution_backward"]
    assert backward["calls"] == 15  # of 13 convolutions and two projections
