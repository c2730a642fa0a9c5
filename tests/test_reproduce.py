"""The script behind the results: its commands are those of the agents, and it stops in time."""

import importlib.util
import sys
import time
from pathlib import Path

import pytest
import tyro

from agents import hybrid_reinforce, pretrain

PATH = Path(__file__).parent.parent / "scripts" / "reproduce.py"
AGENTS = {"pretrain": pretrain.Args, "hybrid_reinforce": hybrid_reinforce.Args}


@pytest.fixture(scope="module")
def reproduce():
    spec = importlib.util.spec_from_file_location("reproduce", PATH)
    module = sys.modules["reproduce"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["reproduce"]


@pytest.mark.parametrize("row", ["resnet38", "resnet110"])
def test_each_step_is_a_command_that_starts_from_the_one_before(reproduce, tmp_path, row):
    options = reproduce.Options(runs=tmp_path, seed=3)
    steps = reproduce.chain(row, options)
    assert [step.folder.name for step in steps] == ["backbone", "restart", "skips", "hrl-1.0", "hrl-2.0"]
    before = {"restart": "backbone", "skips": "restart", "hrl-1.0": "skips", "hrl-2.0": "skips"}
    for step in steps:
        python, dash_m, module, *flags = step.command(options)
        assert (dash_m, module) == ("-m", f"agents.{step.agent}")
        args = tyro.cli(AGENTS[step.agent], args=flags)
        assert args.seed == 3 and args.dataset == "cifar10" and args.run_dir == step.folder
        assert args.depth == reproduce.DEPTHS[row] and not args.resume
        if step.folder.name in before:
            weights = tmp_path / f"{row}-3" / before[step.folder.name] / "weights.safetensors"
            assert Path(args.weights) == weights
        if step.agent == "hybrid_reinforce":
            args.check()


def test_what_is_done_is_not_run_again_and_what_was_begun_goes_on(reproduce, tmp_path):
    options = reproduce.Options(runs=tmp_path)
    step = reproduce.chain("resnet38", options)[0]
    assert not step.done and "--resume" not in step.command(options)
    step.folder.mkdir(parents=True)
    (step.folder / "args.json").write_text("{}")
    assert not step.done and step.command(options)[-1] == "--resume"
    (step.folder / "result.json").write_text("{}")
    assert step.done


def test_it_stops_in_time(reproduce, tmp_path, monkeypatch):
    script = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: open('told', 'w')"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduce.Step, "command", lambda *_: [sys.executable, "-c", script])
    step = reproduce.Step("pretrain", (), tmp_path)
    begun = time.monotonic()
    assert reproduce.run(step, reproduce.Options(), begun + 1.5) is False
    assert time.monotonic() - begun < 30
    assert (tmp_path / "told").exists()  # an interrupt, after which agents can be resumed


def test_a_step_that_fails_ends_the_row(reproduce, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce.Step, "command", lambda *_: [sys.executable, "-c", "raise SystemExit(2)"])
    with pytest.raises(SystemExit) as stop:
        reproduce.run(reproduce.Step("pretrain", (), tmp_path), reproduce.Options(), None)
    assert stop.value.code == 2
