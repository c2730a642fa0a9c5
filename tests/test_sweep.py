"""A sweep: what it runs, what it refuses, what a search chooses."""

import dataclasses
import importlib
import json
import shlex
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_jobs import Instant

from agents import sweep
from agents.common import jobs
from agents.common.cli import main_with_named_errors
from agents.common.flags import CommonArgs
from agents.common.plan import Plan, grid_of
from agents.common.ranges import Range, ranges_of
from agents.common.search import Budget, Search, validated
from skipnet_rl.errors import DataNotFoundError, WeightsError

ROOT = Path(__file__).parent.parent
SMALL = ("--env", "SkipResNet14-v0", "--dataset", "rendered-digits", "--weights", "none")


def planned(out, *words, agent="hybrid_reinforce"):
    return Plan(agent, (*SMALL, *words), out)


def refused(capsys, monkeypatch, *words):
    """What a command line is refused with, before anything starts."""
    monkeypatch.setattr(jobs, "work", lambda *rest: pytest.fail("a run was started"))
    monkeypatch.setattr(sys, "argv", ["sweep", *words])
    with pytest.raises(SystemExit) as leaving:
        main_with_named_errors(sweep.Args, sweep.main)
    assert leaving.value.code == 2
    return capsys.readouterr().err


def test_every_agent_that_leaves_a_run_folder_can_be_swept():
    modules = {path.stem for path in (ROOT / "agents").glob("*.py")} - {"__init__", "sweep"}
    kinds = {
        name: getattr(__import__(f"agents.{name}", fromlist=["Args"]), "Args", object) for name in modules
    }
    runners = {name for name, kind in kinds.items() if issubclass(kind, CommonArgs)}
    assert runners == set(sweep.Agent.__args__)


def test_a_grid_is_every_combination_whatever_the_order():
    grid = grid_of(["seed=0,1", "gate-lr=1e-3,0.01", "alpha=0.5"])
    assert grid == grid_of(["--alpha=0.5", "seed=0,1", "gate_lr=1e-3,0.01"])
    assert [",".join(point.values()) for point in grid] == [
        "0.5,1e-3,0",
        "0.5,1e-3,1",
        "0.5,0.01,0",
        "0.5,0.01,1",
    ]
    assert list(grid[0]) == ["alpha", "gate_lr", "seed"]


def test_a_run_is_named_by_its_values_and_has_the_command_of_a_user(tmp_path):
    plan = planned(tmp_path, "--iterations", "4", agent="ppo")
    job = plan.job({"recurrent": "True", "weights": "a/b.safetensors", "seed": "2"})
    assert job.folder == tmp_path / "recurrent=True,weights=a-b.safetensors,seed=2"
    given = ["--recurrent", "--weights", "a/b.safetensors", "--seed", "2", *plan.words, "--resume"]
    assert job.line == ["python", "-m", "agents.ppo", *given, "--run-dir", str(job.folder)]
    assert "--recurrent" not in plan.job({"recurrent": "False"}).command
    pretrain = planned(tmp_path, agent="pretrain")
    assert "--no-zero-init-residual" in pretrain.job({"zero_init_residual": "False"}).command
    assert "--resume" not in planned(tmp_path, agent="static").job({"alpha": "1"}).command


def test_runs_are_listed_without_being_started(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jobs, "work", lambda *rest: pytest.fail("a run was started"))
    words = shlex.split(f"--agent reinforce --grid seed=0,1 --out {tmp_path} --list -- {' '.join(SMALL)}")
    monkeypatch.setattr(sys, "argv", ["sweep", *words])
    main_with_named_errors(sweep.Args, sweep.main)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"{tmp_path}/seed=0", f"{tmp_path}/seed=1"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words, message", [
    ("--grid alhpa=1", "unknown flag of agents.hybrid_reinforce 'alhpa'; did you mean 'alpha'?"),
    ("--grid seed=0 -- --iteratons 3", "'iteratons'; did you mean 'iterations'?"),
    ("--grid baseline=none", "unknown flag of agents.hybrid_reinforce 'baseline'"),  # set by presets alone
    ("--agent reinforc --grid seed=0", "unknown agent 'reinforc'; did you mean 'reinforce'?"),
    ("--grid gate=rnn,rrn", "gate=rrn: unknown gate 'rrn'; did you mean 'rnn'?"),
    ("--grid seed=0 -- --gate rrn", "unknown gate 'rrn'; did you mean 'rnn'?"),
    ("--grid alpha=1,-1", "alpha=-1: --alpha is -1.0; expected 0 or more"),
    ("--grid alpha=much", "--alpha"),
    ("--grid routes=2,7 -- --batch-size 8", "routes=7: --batch-size 8 is not a multiple of --routes 7"),
    ("--grid alpha", "--grid is 'alpha'; expected NAME=…"),
    ("--grid alpha=1 alpha=2", "--grid has alpha twice"),
    ("--grid seed=0,0", "seed=0,0; expected different values"),
    ("--grid seed=0,", "seed=0,; expected different values"),
    ("--grid seed=0 -- --seed 4", "seed is both varied and, after --, a flag of every run"),
    ("--grid seed=0 -- --resume", "--resume is the sweep's own"),
    ("--grid run_dir=a,b", "--run-dir is the sweep's own"),
    ("--grid device=cpu,cuda", "device does not change a result"),
    ("--grid weights=a/b,a-b --agent oracle", "several runs would have the folder"),
    ("--agent ppo --grid recurrent=yes", "recurrent is yes; expected True or False"),
    ("", "expected either --grid"),
    ("--grid seed=0 --range alpha=0:1 --search 2", "expected either --grid"),
    ("--range alpha=0:1", "--range and --search go together"),
    ("--grid seed=0 --workers 0", "--workers is 0; expected more than 0"),
    ("--grid seed=0 --workers 2 --address auto", "--workers is for this machine"),
    ("--grid seed=0 --workers 1 --gpus 0", "--gpus deals out GPUs to runs side by side"),
    ("--range lr=0.1:1 --search 4h", "--search is '4h'; expected a number of runs, or minutes"),
    ("--range lr=0.1:1 --search 0", "--search is '0'"),
    ("--range lr=1:0.1 --search 4", "lr=1:0.1; expected LOW < HIGH"),
    ("--range lr=0:1:log --search 4", "lr=0:1:log; expected LOW < HIGH, and LOW > 0"),
    ("--range routes=1:2.5 --search 4", "routes=1:2.5; expected numbers LOW:HIGH"),
    ("--range gate=0:1 --search 4", "gate=0:1; expected values A,B,C"),
    ("--range alhpa=0:1 --search 4", "did you mean 'alpha'?"),
    ("--range batch_size=7:12 --search 4 -- --routes 4", "--batch-size 7 is not a multiple of --routes 4"),
    ("--range alpha=0:1 --search 4 --objective return", "returns under different alpha cannot be compared"),
    ("--agent static --range alpha=0:1 --search 4", "agents.static learns nothing to search for"),
])  # fmt: skip
def test_refused_before_anything_starts(words, message, capsys, monkeypatch, tmp_path):
    if "--search" in words:
        pytest.importorskip("optuna")
    before, dashes, after = words.partition(" -- ")
    after = (*SMALL, *after.split()) if "weights" not in words else SMALL[:4]
    assert message in refused(capsys, monkeypatch, *before.split(), "--out", str(tmp_path), "--", *after)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words, message", [
    ("--agent ppo --grid env=SkipResNet14-v0,SkipResNet99-v0", "env=SkipResNet99-v0: Environment `Skip"),
    ("--grid env=SkipResNet99-v0", "env=SkipResNet99-v0: Environment `SkipResNet99"),
    ("--agent ppo --grid weights=none,nonexist", "weights=nonexist: no weights file nonexist"),
    ("--agent ppo --grid seed=0 -- --weights resnet38-cifar10-distiled", "did you mean the shipped resnet38"),
    ("--grid gate_weights=elsewhere", "gate_weights=elsewhere: no weights file elsewhere"),
    ("--agent pretrain --grid teacher=resnet38-cifar10,b", "teacher=b: no weights file b"),
    ("--agent pretrain --grid weights=none,b", "weights=b: no weights file b"),
    ("--agent pretrain --grid model=torchvision/resnet18,torchvision/resnt18", "did you mean 'resnet18'"),
    ("--agent pretrain --grid depth=14,21", "depth=21: depth 21 is not 6n+2"),
])  # fmt: skip
def test_what_does_not_exist_is_not_listed(words, message, capsys, monkeypatch, tmp_path):
    before, dashes, after = words.partition(" -- ")
    line = [*before.split(), "--out", str(tmp_path), "--list", "--", *after.split()]
    assert message in refused(capsys, monkeypatch, *line)


@pytest.mark.parametrize("agent, grid, flags", [
    ("hybrid_reinforce", "env=SkipResNet20-v0,SkipResNet74-v0", {"env": "SkipResNet74-v0"}),
    ("act", "dataset=rendered-digits,svhn", {"env": "SkipResNet20-v0", "dataset": "svhn"}),
    ("ppo", "env=SkipChain14x110-v0", {"env": "SkipChain14x110-v0"}),
    ("gumbel", "env=SkipNet-v0", {"env": "SkipNet-v0", "image_size": 32}),
    ("pretrain", "depth=14", {"depth": 14, "weights": "auto"}),
])  # fmt: skip
def test_networks_that_are_not_shipped_are_refused_as_by_the_run(
    agent, grid, flags, capsys, monkeypatch, tmp_path
):
    module = importlib.import_module(f"agents.{agent}")
    flags = {"dataset": "rendered-digits", **flags}
    with pytest.raises(WeightsError, match="shipped") as error:
        module.train(module.Args(**flags, run_dir=tmp_path / "run"))
    del flags[grid.partition("=")[0]]
    common = [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    words = ["--agent", agent, "--grid", grid, "--out", str(tmp_path), "--", *common]
    assert str(error.value) in refused(capsys, monkeypatch, *words)
    assert not list(tmp_path.iterdir())


def test_on_a_cluster_data_that_is_only_there_refuses_nothing(tmp_path):
    plan = Plan("gumbel", ("--env", "SkipResNet38-v0", "--data-dir", "/nowhere"), tmp_path, elsewhere=True)
    made = [plan.job({"seed": "0"})]
    plan.check(made)
    with pytest.raises(DataNotFoundError, match="/nowhere"):
        dataclasses.replace(plan, elsewhere=False).check(made)


def test_weights_exist_or_are_those_of_another_run(tmp_path):
    taught = Plan("pretrain", ("--teacher", f"{tmp_path}/depth=14/weights.safetensors"), tmp_path)
    jobs = [taught.job({"depth": depth}) for depth in ("14", "20")]
    with pytest.raises(ValueError, match="depth=14: a flag names a file in .*, which this run itself is to"):
        taught.check(jobs)
    with pytest.raises(ValueError, match="depth=20: no weights file .*depth=14/weights.safetensors"):
        taught.check(jobs[1:])
    (file := tmp_path / "mine.safetensors").touch()
    plan = Plan("ppo", (), tmp_path)
    first = plan.job({"weights": "none"})
    plan.check([first, plan.job({"weights": f"{first.folder}/policy.safetensors"})])
    for weights in (str(file), "auto", "none", "torchvision", "resnet38-cifar10"):
        plan.check([plan.job({"weights": weights})])


def test_a_flag_that_cannot_be_read_points_to_the_help_of_its_agent(tmp_path, capsys):
    plan = planned(tmp_path, "stray", agent="ppo")
    with pytest.raises(SystemExit):
        plan.check([plan.job({"seed": "0"})])
    said = capsys.readouterr()
    assert "python -m agents.ppo --help" in " ".join((said.out + said.err).replace("│", " ").split())


def test_there_is_a_table_for_each_environment(tmp_path, monkeypatch):
    compared = {}
    monkeypatch.setattr(sweep.compare, "main", lambda args: compared.update({args.out: args.runs}))
    made = [planned(tmp_path).job({"seed": str(seed)}) for seed in range(3)]
    for number, job in enumerate(made):
        result = {
            "agent": "ppo",
            "env": f"Skip{number // 2}-v0",
            "dataset": "d",
            "split": "test",
            "n_images": 9,
        }
        job.folder.mkdir()
        (job.folder / "args.json").write_text("{}")
        (job.folder / "result.json").write_text(json.dumps({**result, "policies": [{"name": "PPO"}]}))
    place, folders = tmp_path / "comparison", [job.folder for job in made]
    sweep.compare_all(made[:2], tmp_path)
    assert compared.pop(place) == tuple(folders[:2])
    sweep.compare_all(made, tmp_path)
    assert compared == {
        place / "Skip0-v0-d-test-9": tuple(folders[:2]),
        place / "Skip1-v0-d-test-9": tuple(folders[2:]),
    }


def test_runs_that_need_a_failed_one_fail_with_it_and_the_others_are_compared(tmp_path, monkeypatch):
    compared = []
    monkeypatch.setattr(sweep, "compare_all", lambda runs, out: compared.extend(runs))
    monkeypatch.setattr(sweep, "pool_for", lambda args, plan: Instant(1, *["it failed"] * 2))
    (file := tmp_path / "mine.safetensors").touch()
    names = ("none", file, tmp_path / "weights=none" / "policy.safetensors")
    flags = ("--env", "SkipResNet14-v0", "--dataset", "rendered-digits")
    grid = (f"weights={','.join(map(str, names))}",)
    plan = Plan("ppo", flags, tmp_path)
    failing, whole, needing = (plan.job(values) for values in grid_of(grid))
    args = sweep.Args(flags, agent="ppo", grid=grid, out=tmp_path)
    with pytest.raises(SystemExit, match=f"failed: {failing.folder}, {needing.folder}; repeat the command"):
        sweep.main(args)
    assert compared == [whole]


def test_a_folder_of_another_sweep_is_refused(tmp_path):
    assert jobs.run([planned(tmp_path).job({"seed": "0"})], Instant(1)) == []
    with pytest.raises(ValueError, match="was made by .* not by .*--iterations 5.*; name another folder"):
        jobs.run([planned(tmp_path, "--iterations", "5").job({"seed": "0"})], Instant(1))


class Learned(Instant):
    """Finishes at once runs whose validation is a function of their learning rate; their tests are better the
    worse it is."""

    def __init__(self, size=1, fails=()):
        super().__init__(size)
        self.fails = fails

    def wait(self):
        number = int(self.open[0].folder.name[:3])
        if number in self.fails:
            return self.open.pop(0), "it failed"
        job, problem = super().wait()
        rate, alpha = (float(job.line[job.line.index(flag) + 1]) for flag in ("--lr", "--alpha"))
        found = {"return": -abs(rate - 0.1), "accuracy": 1 - alpha / 4, "compute_flops": 1 - alpha / 2}
        result = {"command": shlex.join(job.line), "kept": found, "policies": [{"accuracy": rate}]}
        (job.folder / "result.json").write_text(json.dumps(result))
        return job, problem


def searching(out, objective="auto", **ranges):
    pytest.importorskip("optuna")
    words = () if "alpha" in ranges else ("--alpha", "1")
    plan = planned(out, *words)
    return Search(plan, ranges_of([f"{name}={text}" for name, text in ranges.items()], plan), objective)


def test_a_search_chooses_on_validation_images_and_goes_on(tmp_path, capsys):
    first = searching(tmp_path, lr="0.001:1:log", gate="rnn,ff1")
    assert first.run(pool := Learned(2), Budget.of("6")) == []
    assert len(pool.started) == 6
    assert [job.folder.name[:3] for job in pool.started] == [f"00{k}" for k in range(6)]
    again = searching(tmp_path, lr="0.001:1:log", gate="rnn,ff1")
    assert again.run(pool := Learned(), Budget.of("6")) == [] and not pool.started
    assert again.run(pool := Learned(), Budget.of("20")) == [] and len(pool.started) == 14
    rates = {job: float(job.line[job.line.index("--lr") + 1]) for job in map(again.job, again.study.trials)}
    assert len(rates) == len(set(rates.values())) == 20
    nearest = min(rates, key=lambda job: abs(rates[job] - 0.1))
    assert again.best() == [nearest] and abs(rates[nearest] - 0.1) < 0.05
    again.report()
    stored = json.loads((tmp_path / "search.json").read_text())
    assert stored["best"] == [str(nearest.folder)] and len(stored["trials"]) == 20
    assert stored["objective"] == "return" and f"{nearest.folder}: return -0.0" in capsys.readouterr().out
    theirs, ours = "gate=rnn,ff1 lr=0.001:1.0:log", "gate=rnn,ff1 lr=0.001:2.0:log"
    with pytest.raises(
        ValueError, match=f"is a search with ranges {theirs}, not {ours}; name another folder"
    ):
        searching(tmp_path, lr="0.001:2:log", gate="rnn,ff1")


def test_folders_of_a_search_have_rounded_values(tmp_path):
    found = searching(tmp_path, lr="0.001:1:log", gate_lr="0:2000", gate="rnn,ff1")
    params = {"lr": 0.0123456, "gate_lr": 1234.5678, "gate": "ff1"}
    job = found.job(SimpleNamespace(number=3, params=params))
    assert job.folder.name == "003-gate=ff1,gate_lr=1230.0,lr=0.0123"
    assert job.line[3:9] == ["--gate", "ff1", "--gate-lr", "1234.5678", "--lr", "0.0123456"]


def test_where_alpha_varies_a_search_finds_a_trade_off(tmp_path):
    found = searching(tmp_path, alpha="0.1:1", lr="0.05,0.1")
    assert found.objective == "tradeoff"
    found.run(Learned(2), Budget.of("5"))
    alphas = [float(job.line[job.line.index("--alpha") + 1]) for job in found.best()]
    assert len(alphas) == 5 and alphas == sorted(alphas)  # none is better in both


def test_an_interrupted_search_finishes_its_runs_first_and_a_failed_one_counts(tmp_path):
    found = searching(tmp_path, lr="0.001:1:log")

    class Interrupted(Learned):
        def wait(self):
            if len(self.started) == 4:
                raise KeyboardInterrupt
            return super().wait()

    with pytest.raises(KeyboardInterrupt):
        found.run(pool := Interrupted(2), Budget.of("6"))
    left = pool.open
    assert len(left) == 2
    again = searching(tmp_path, lr="0.001:1:log")
    (failed,) = again.run(pool := Learned(2, fails={4}), Budget.of("6"))
    assert pool.started[:2] == left and failed.folder.name.startswith("004")
    states = [trial.state.name for trial in again.study.trials]
    assert states == ["COMPLETE"] * 4 + ["FAIL", "COMPLETE"]


def test_a_search_for_minutes(monkeypatch):
    budget = Budget.of("1.5m")
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    assert budget.left(1_000, begun=11.0) and not budget.left(0, begun=10.0)


def test_ranges_are_of_the_type_of_their_flag(tmp_path):
    flags = planned(tmp_path).flags
    assert Range.of("iterations", "10:20", flags["iterations"]) == Range(10, 20, whole=True)
    assert Range.of("lr", "1e-3:1:log", flags["lr"]) == Range(1e-3, 1.0, log=True)
    assert Range.of("test_images", "10:20", flags["test_images"]).whole  # int | None
    assert Range.of("gate", "rnn,ff1", flags["gate"]) == Range(values=("rnn", "ff1"))


def test_a_damaged_run_is_named_before_the_comparison(tmp_path):
    (tmp_path / "args.json").write_text("{}")
    result = {"agent": "ppo", "env": "SkipResNet20-v0", "dataset": "cifar10", "policies": [{"name": "PPO"}]}
    (tmp_path / "result.json").write_text(json.dumps(result))
    with pytest.raises(ValueError, match="result.json is damaged: it lacks split and n_images and"):
        sweep.compare_all([SimpleNamespace(folder=tmp_path)], tmp_path / "sweep")


def test_without_kept_weights_the_last_validation_counts(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps({"policies": [{"accuracy": 1.0}]}))
    lines = [{"step": step, "train/accuracy": 1.0, "val/accuracy": step / 10} for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert validated(tmp_path) == {"accuracy": 0.2}
