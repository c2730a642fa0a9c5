"""What is behind the results: commands that are those of the agents, tables that are those of the runs."""

import dataclasses
import json
import os
import shutil
import sys
import time
from pathlib import Path

import pytest
import torch
import tyro

from agents import hybrid_reinforce, pretrain
from agents.common import setting
from agents.common.finished import FinishedRun
from scripts import reproduce, results, rows, ship
from skipnet_rl import weights
from skipnet_rl.checkpoint import parts_of, read_tensors
from skipnet_rl.data import load_images
from skipnet_rl.errors import WeightsError
from skipnet_rl.gated import read_header, restore_checkpoint
from skipnet_rl.runs import as_stored, without_places

# names of the folders, by schedule
PLAIN = {"cores": ("backbone", "restart"), "gpu": ("backbone",), "grown": ("grown",), "large": ("grown",)}
GATED = {
    "cores": ("sp", "hrl-0.5", "hrl-0.5-distilled", "hrl-1.0", "hrl-1.0-gain6", "hrl-1.0-gain6-distilled"),
    "gpu": ("sp", "hrl-0.1", "hrl-0.2", "hrl-0.4", "hrl-0.4-distilled", "hrl-0.8", "hrl-0.8-distilled"),
    "grown": ("sp", "hrl-0.5", "hrl-1.0"),
    "large": ("sp", "hrl-0.5"),
}
KINDS = {"resnet38": "cores", "resnet110": "gpu", "resnet74": "grown", "resnet152": "large"}
EPOCHS = {"cores": [20, 7.5], "gpu": [35], "grown": [7], "large": [4]}  # at half of the length
RATES = {  # of the plain network, with gates
    "cores": (0.1, 0.05),
    "gpu": (0.4, 0.2),
    "grown": (0.05, 0.05),
    "large": (0.05, 0.05),
}
ORIGINS = {"grown": "resnet38-cifar10-distilled", "large": "resnet110-cifar10-distilled"}
TEACHERS = ("resnet110-cifar10", "resnet38-cifar10-distilled")


def parsed(step, options):
    """The step's command as its agent reads it."""
    python, dash_m, module, *flags = step.command(options)
    assert (dash_m, module) == ("-m", f"agents.{step.agent}")
    return tyro.cli(rows.AGENTS[step.agent], args=flags)


@pytest.mark.parametrize("row", rows.ROWS)
def test_each_step_is_a_command_that_starts_from_those_before(tmp_path, row):
    options = rows.Options(runs=tmp_path, seed=3, length=0.5)
    gate, schedule = rows.ROWS[row].gate, rows.ROWS[row].schedule
    steps = rows.chain(row, options)
    prefix = "" if gate == "rnn" else f"{gate}-"
    kind = KINDS[row.split("-")[0]]
    gated = [f"{prefix}{title}" for title in GATED[kind]]
    assert [step.folder.name for step in steps] == [*PLAIN[kind], *gated]
    for number, step in enumerate(steps):
        args = parsed(step, options)
        assert args.lr == (
            RATES[kind][0] if number == 0
            else 0.05 if getattr(args, "stage", "") == "tune"
            else RATES[kind][1]
        )  # fmt: skip
        assert args.seed == 3 and args.dataset == "cifar10" and args.run_dir == step.folder
        assert args.depth == rows.ROWS[row].depth and not args.resume
        assert args.batch_size == schedule.batch_size
        named = [args.weights, getattr(args, "gate_weights", None), *args.teacher]
        needed = {Path(file).parent for file in named if file} - {Path(".")}  # of shipped names
        if kind in ORIGINS:
            assert args.teacher == TEACHERS and args.distillation == 0.9
        before = steps[:number]
        assert needed == {other.folder for other in before if step.needs([other])}
        assert bool(needed) == bool(number) and not step.needs(steps[number:])
        if step.agent == "hybrid_reinforce":
            args.check()
            assert args.eval_every == step.between
            assert (args.gate_lr, args.entropy) == (schedule.gate_lr, schedule.entropy)
            assert args.gate == gate and args.plan() == [s for s in step.plan for _ in range(step.plan[s])]
    plain = [step for step in steps if step.agent == "pretrain"]
    epochs = [parsed(step, options).epochs for step in plain]
    assert epochs == [step.plan["epochs"] for step in plain] == EPOCHS[kind]
    first = parsed(plain[0], options)
    assert first.weights == ORIGINS.get(kind)
    sp, *hrl = (parsed(step, options) for step in steps[len(plain) :])
    assert sp.plan()[0] == "warmup" and sp.plan()[-1] == "sp" and sp.weights == str(weights_of(plain[-1]))
    runs = [args for args in hrl if args.stage == "hrl"]
    assert [(args.alpha, args.gate_gain) for args in runs] == list(schedule.runs)
    for args in runs:
        assert args.weights == str(sp.run_dir / "sp.safetensors")
        assert args.gate_weights == (args.weights if args.gate_gain == 1 else None)
    taught = [args for args in hrl if args.stage == "tune"]
    assert len(taught) == len(schedule.taught) == len(hrl) - len(runs)
    for args, (alpha, gain) in zip(taught, schedule.taught, strict=True):
        start = next(run for run in runs if (run.alpha, run.gate_gain) == (alpha, gain))
        assert args.weights == args.gate_weights == str(start.run_dir / "hrl.safetensors")
        assert args.teacher == (sp.weights,) and args.distillation == 0.9


@pytest.mark.parametrize(
    ("row", "parts", "origins"),
    [
        ("resnet110", ("", "-sp", "-hrl-0.4", "-hrl-0.4-distilled", "-hrl-0.8", "-hrl-0.8-distilled"), ()),
        (
            "resnet74",
            ("-distilled", "-sp", "-hrl-0.5", "-hrl-1.0"),
            ("resnet38-cifar10-distilled", "resnet110-cifar10"),
        ),
    ],
)
def test_shipped_networks_came_from_the_commands_of_their_row(row, parts, origins):
    steps = rows.chain(row, rows.Options())
    commands = {without_places(["python", *step.command(rows.Options())[1:]]) for step in steps}
    shipped = {entry["name"]: entry["command"] for entry in weights.index()}
    before = {command for name in origins for command in shipped[name]}
    for part in parts:
        made_by = shipped[f"{row}-cifar10{part}"]
        assert made_by[-1] in commands and set(made_by) <= commands | before, part
        assert before <= set(made_by)  # what it grew out of, and its teachers


def weights_of(step):
    return step.folder / "weights.safetensors"


@pytest.mark.parametrize(("row", "name"), [
    ("resnet38", "resnet38-cifar10"), ("resnet74", "resnet74-cifar10-distilled"),
    ("resnet152", "resnet152-cifar10-distilled"),  # a name of two files
])  # fmt: skip
def test_the_shipped_backbone_instead(row, name, tmp_path):
    first = rows.chain(row, rows.Options(runs=tmp_path, shipped_backbone=True))[0]
    assert first.agent == "hybrid_reinforce" and name in first.flags


def test_an_unknown_row():
    with pytest.raises(ValueError, match="unknown row 'resnet39'; did you mean 'resnet38'"):
        reproduce.main(rows.Options(rows=("resnet39",)))


@pytest.fixture
def no_work(monkeypatch):
    """A data set of no size, and steps that would take 40 minutes each."""
    monkeypatch.setattr(reproduce, "load_images", lambda *rest: None)
    monkeypatch.setattr(
        reproduce,
        "estimate",
        lambda name, options, data: {s.folder: 2400.0 for s in rows.chain(name, options)},
    )
    monkeypatch.setattr(reproduce, "run", lambda *rest: pytest.fail("a step was run"))


def test_the_list_runs_nothing(tmp_path, no_work, capsys):
    options = rows.Options(rows=("resnet38",), runs=tmp_path, list=True)
    reproduce.main(options)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "resnet38: backbone: about 40 minutes here"
    assert len(lines) == len(rows.chain("resnet38", options)) == 8


def test_the_estimate_is_of_each_step(tmp_path, monkeypatch):
    schedule = dataclasses.replace(rows.CORES, batch_size=16)
    monkeypatch.setitem(rows.ROWS, "resnet20", rows.Row(20, schedule=schedule))
    options = rows.Options(runs=tmp_path, device="cpu")
    steps = rows.chain("resnet20", options)
    images = load_images("rendered-digits", "train")
    seconds = reproduce.estimate("resnet20", options, images)
    assert list(seconds) == [step.folder for step in steps] and min(seconds.values()) > 1
    took = {folder.name: value for folder, value in seconds.items()}
    assert took["backbone"] / took["restart"] == pytest.approx(40 / 15)
    assert took["hrl-0.5"] == took["hrl-1.0"]
    assert took["hrl-0.5-distilled"] == took["hrl-1.0-gain6-distilled"]
    monkeypatch.setattr(reproduce, "timed", lambda step: 1.0)  # of a step, and of a pass of the teacher
    again = reproduce.estimate("resnet20", options, images)
    counted = {folder.name: value for folder, value in again.items()}
    assert counted["hrl-0.5"] == 1500 + 2500
    assert counted["hrl-0.5-distilled"] == 2 * 12_000  # the student's steps and the teacher's passes


def test_too_few_minutes_for_a_checkpoint_are_refused(tmp_path, no_work):
    options = rows.Options(rows=("resnet38",), runs=tmp_path, minutes=0.5)
    with pytest.raises(ValueError, match="0.5 is less than the 1 between two checkpoints of backbone"):
        reproduce.main(options)


def test_a_folder_with_other_flags_is_refused(tmp_path, no_work):
    options = rows.Options(rows=("resnet38",), runs=tmp_path)
    for step in rows.chain("resnet38", options)[:3]:
        step.folder.mkdir(parents=True)
        (step.folder / "args.json").write_text(json.dumps(as_stored(parsed(step, options))))
        step.check(options)
    for change, flag in (({"length": 2.0}, "epochs"), ({"shipped_backbone": True}, "weights")):
        with pytest.raises(ValueError, match=f"has other flags: .*{flag}.*another --runs"):
            reproduce.main(dataclasses.replace(options, **change))


def test_what_is_done_is_not_run_again_and_what_was_begun_goes_on(tmp_path):
    options = rows.Options(runs=tmp_path)
    step = rows.chain("resnet38", options)[0]
    assert not step.done and "--resume" not in step.command(options)
    step.folder.mkdir(parents=True)
    (step.folder / "args.json").write_text("{}")
    assert not step.done and step.command(options)[-1] == "--resume"
    (step.folder / "result.json").write_text("{}")
    assert step.done


@pytest.fixture
def played(tmp_path, monkeypatch):
    """Steps that are scripts; each leaves what it is called and when it began and ended."""

    def make(*needs, code="pass"):
        script = (
            "import json, os, pathlib, signal, sys, time\n"
            "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"  # as in a script's background
            "folder, begun = pathlib.Path(sys.argv[1]), time.monotonic()\n"
            "folder.mkdir(parents=True)\n"
            "(folder / 'pid').write_text(str(os.getpid()))\n"
            f"{code}\n"
            "(folder / 'result.json').write_text(json.dumps([begun, time.monotonic()]))"
        )
        flags = (script, *(f"{other.folder}/weights.safetensors" for other in needs))
        return rows.Step("pretrain", flags, tmp_path / f"row/{next(names)}", {})

    names = iter("abcdefgh")
    monkeypatch.setattr(
        rows.Step,
        "command",
        lambda step, options: [sys.executable, "-c", step.flags[0], str(step.folder)],
    )
    return make


def test_it_stops_in_time(played):
    steps = [played(code="time.sleep(60)"), played(code="time.sleep(60)")]
    begun = time.monotonic()
    assert reproduce.run(steps, rows.Options(jobs=2), begun + 5) is False
    assert time.monotonic() - begun < 30
    assert not any(step.done for step in steps)
    for step in steps:
        with pytest.raises(ProcessLookupError):
            os.kill(int((step.folder / "pid").read_text()), 0)
    assert reproduce.run([played()], rows.Options(), begun) is False  # the time was up before
    assert len(list(steps[0].folder.parent.iterdir())) == 4  # two folders, two logs


def test_a_step_that_fails_ends_the_row(played, capsys):
    for jobs in (1, 2):
        begun = "True" if jobs == 1 else "(folder.parent / 'f').exists()"
        failing = played(code=f"while not {begun}: time.sleep(0.05)\nraise SystemExit(2)")
        steps = [failing, played(failing), played(code="time.sleep(60)")]
        with pytest.raises(SystemExit) as stop:
            reproduce.run(steps, rows.Options(jobs=jobs), None)
        assert stop.value.code == 2 and not steps[1].folder.exists()
        assert f"{failing.folder} ended with exit code 2, not done" in capsys.readouterr().out
        assert steps[2].folder.exists() == (jobs == 2)


def test_steps_run_side_by_side_where_none_needs_the_other(played):
    first = played()
    pair = [played(first, code="time.sleep(2); print('heard')"), played(first, code="time.sleep(2)")]
    last = played(pair[1])
    steps = [first, pair[0], last, pair[1]]
    assert reproduce.run(steps, rows.Options(jobs=2), None) is True
    times = {step.folder.name: json.loads((step.folder / "result.json").read_text()) for step in steps}
    assert times["a"][1] < min(times["b"][0], times["c"][0])
    assert max(times["b"][0], times["c"][0]) < min(times["b"][1], times["c"][1])
    assert times["c"][1] < times["d"][0]
    assert pair[0].folder.with_name("b.log").read_text().strip() == "heard"
    again = (first.folder / "result.json").stat().st_mtime_ns
    assert reproduce.run(steps, rows.Options(jobs=2), None) is True
    assert (first.folder / "result.json").stat().st_mtime_ns == again


def few(*args, **kwargs):
    return load_images("rendered-digits", *args[1:2]).first(32)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A row of two alphas with two seeds, a few steps each."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        for agent in (setting, pretrain):
            patch.setattr(agent, "load_images", few)
        for seed in (0, 1):
            place = folder / f"resnet20-{seed}"
            backbone = pretrain.Args(
                depth=20,
                dataset="rendered-digits",
                batch_size=16,
                epochs=1,
                seed=seed,
                run_dir=place / "backbone",
            )
            pretrain.train(backbone)
            sp = str(place / "sp" / "sp.safetensors")
            shared = {
                "env": "SkipResNet20-v0",
                "dataset": "rendered-digits",
                "seed": seed,
                "sp_iterations": 1,
                "iterations": 2,
                "tune_iterations": 1,
                "batch_size": 8,
                "eval_images": 16,
                "precision": "fp32",
            }
            hybrid_reinforce.train(hybrid_reinforce.Args(
                **shared, stage="sp", weights=str(place / "backbone" / "weights.safetensors"),
                run_dir=place / "sp",
            ))  # fmt: skip
            for alpha in (3.0, 0.5):
                hybrid_reinforce.train(hybrid_reinforce.Args(
                    **shared, stage="hrl", weights=sp, gate_weights=sp, alpha=alpha,
                    run_dir=place / f"hrl-{alpha}",
                ))  # fmt: skip
            hybrid_reinforce.train(hybrid_reinforce.Args(
                **shared, stage="hrl", weights=sp, gate_gain=6.0, alpha=0.5, run_dir=place / "hrl-0.5-gain6",
            ))  # fmt: skip
            routed = str(place / "hrl-0.5-gain6" / "hrl.safetensors")
            hybrid_reinforce.train(hybrid_reinforce.Args(
                **shared, stage="tune", weights=routed, gate_weights=routed, alpha=0.5, distillation=0.9,
                teacher=(str(place / "backbone" / "weights.safetensors"),),
                run_dir=place / "hrl-0.5-gain6-distilled",
            ))  # fmt: skip
    return folder


@pytest.fixture
def folders(finished):
    names = ("backbone", "sp", "hrl-3.0", "hrl-0.5-gain6-distilled", "hrl-0.5-gain6", "hrl-0.5")
    return [finished / "resnet20-0" / name for name in names]


def test_the_table_is_that_of_the_runs(folders, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "load_images", few)
    results.add("resnet20", folders, tmp_path)
    rows = results.read(tmp_path)
    assert [(row["name"], row["gate"], row["alpha"], row["distillation"], row["n"]) for row in rows] == [
        ("all blocks", None, None, 0, 2), ("SP", "rnn", None, 0, 2), ("HRL", "rnn", 0.5, 0, 2),
        ("HRL", "rnn, gain 6", 0.5, 0, 2), ("HRL", "rnn, gain 6", 0.5, 0.9, 2), ("HRL", "rnn", 3.0, 0, 2),
    ]  # fmt: skip
    assert len(rows[4]["command"]) == 4
    runs = [FinishedRun.read(finished / f"resnet20-{seed}" / "hrl-3.0") for seed in (0, 1)]
    accuracies = [run.result["policies"][-1]["accuracy"] for run in runs]
    assert rows[-1]["accuracy"] == pytest.approx(sum(accuracies) / 2)
    assert rows[-1]["mega_flops"] == pytest.approx(rows[-1]["compute_flops"] * 81.626, rel=1e-4)
    assert len(rows[0]["command"]) == 1 and len(rows[-1]["command"]) == 3
    assert rows[-1]["wall_time_s"] > rows[1]["wall_time_s"] > rows[0]["wall_time_s"] > 0
    text = (tmp_path / "results.md").read_text()
    assert text == results.table(rows) and text.count("| ResNet-20 |") == 6
    assert text.count("| rnn, gain 6 | HRL, distilled | 0.5 |") == 1
    for name in ("results", "resnet20-skipped_layers", "resnet20-easy_and_hard"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5_000
    monkeypatch.setattr(results.plots, "save_figure", lambda figure, path: None)
    for depth, kept in ((38, rows), (20, rows[1:])):  # another gate's row of this depth has the plain network
        other = [{**row, "row": "other", "depth": depth} for row in rows]
        (tmp_path / "results.json").write_text(json.dumps({"rows": other}))
        results.add("resnet20", folders, tmp_path)
        assert results.read(tmp_path) == [*other, *kept]


def with_other_flags(finished, folders, place, seed, **flags):
    """Seed 0's folders in a copy of the runs in which SP of a seed had other flags."""
    copy = place / "runs"
    shutil.copytree(finished, copy)
    file = copy / f"resnet20-{seed}" / "sp" / "args.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **flags}))
    return [copy / "resnet20-0" / folder.name for folder in folders]


def test_a_backbone_that_seeds_share_is_counted_once(finished, folders, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "load_images", few)
    shared = FinishedRun.read(folders[1]).args["weights"]
    changed = with_other_flags(finished, folders, tmp_path, 1, weights=shared)
    results.add("resnet20", changed, tmp_path / "out")
    plain, *gated = results.read(tmp_path / "out")
    first = FinishedRun.read(folders[1]).result["policies"][0]
    assert (plain["n"], plain["accuracy_seeds_ci95"], plain["accuracy"]) == (1, None, first["accuracy"])
    assert {row["n"] for row in gated} == {2}


def test_commands_are_told_without_what_a_machine_has(folders):
    run = FinishedRun.read(folders[0])
    for places in (
        "--data-dir /mine --device cpu --resume",
        "--data-dir='/my data' --device=cuda:0 --no-debug",
        "--data_dir '/my data' --no-resume --debug",
    ):
        command = f"python -m agents.pretrain {places} --depth 20 --run-dir runs/a"
        ran = dataclasses.replace(run, result={**run.result, "command": command})
        assert ship.lineage(ran).commands == ["python -m agents.pretrain --depth 20 --run-dir runs/a"]


def test_a_teacher_from_elsewhere_belongs_to_what_a_network_took(finished, folders, tmp_path):
    """Once, also where the network began with it."""
    run, other = (FinishedRun.read(finished / f"resnet20-{seed}" / "backbone") for seed in (0, 1))
    taught = dataclasses.replace(
        run, args={**run.args, "distillation": 0.9, "teacher": [str(other.folder / "weights.safetensors")]}
    )
    found = ship.lineage(taught)
    assert found.seconds == run.result["wall_time_s"] + other.result["wall_time_s"]
    assert len(found.commands) == 2
    older = tmp_path / "older"
    shutil.copytree(run.folder, older)
    (older / "args.json").write_text(json.dumps({**taught.args, "teacher": taught.args["teacher"][0]}))
    assert ship.lineage(FinishedRun.read(older)) == found  # it had one teacher at most
    distilled = FinishedRun.read(folders[3])  # its teacher is the network that it began with
    chain = [run, *(FinishedRun.read(folders[number]) for number in (1, 4, 3))]
    expected = sum(each.result["wall_time_s"] for each in chain)
    assert ship.lineage(distilled).seconds == pytest.approx(expected)


def test_gates_and_teachers_from_elsewhere_belong_to_what_a_network_took(finished, tmp_path):
    """Whole where they came from other weights; where they came from the run's own start it is in theirs."""
    copy = tmp_path / "runs"
    shutil.copytree(finished, copy)
    for file in copy.rglob("result.json"):  # each has a command of its own
        stored = json.loads(file.read_text())
        command = f"python -m agents.{stored['agent']} --run-dir {file.parent.relative_to(copy)}"
        file.write_text(json.dumps({**stored, "command": command}))
        args = file.with_name("args.json")
        args.write_text(args.read_text().replace(str(finished), str(copy)))
    run, other = (FinishedRun.read(copy / f"resnet20-{seed}" / "hrl-3.0") for seed in (0, 1))
    took = [ship.lineage(each).seconds for each in (run, other)]
    others_start = str(copy / "resnet20-1" / "backbone" / "weights.safetensors")
    for start, seconds, count in (
        (run.args["weights"], sum(took), 6),
        (others_start, took[1] + run.result["wall_time_s"], 4),
    ):
        args = {**run.args, "weights": start, "gate_weights": str(other.folder / "hrl.safetensors")}
        found = ship.lineage(dataclasses.replace(run, args=args))
        assert found.seconds == pytest.approx(seconds) and len(found.commands) == count
    both = [str(each.folder / "hrl.safetensors") for each in (run, other)]
    pupil = dataclasses.replace(
        run,
        args={**run.args, "distillation": 0.9, "teacher": both},
        result={**run.result, "command": "python -m mine"},
    )
    found = ship.lineage(pupil)
    assert found.seconds == pytest.approx(sum(took) + run.result["wall_time_s"])
    assert len(found.commands) == 7 and found.commands[-1] == "python -m mine"


def test_a_run_tested_on_some_images_alone_is_no_result(finished, folders, tmp_path):
    changed = with_other_flags(finished, folders, tmp_path, 0, test_images=16)
    file = changed[1] / "result.json"
    result = {**json.loads(file.read_text()), "n_images": 16}
    older = {key: value for key, value in result.items() if key != "split_images"}
    for content in (result, older):
        file.write_text(json.dumps(content))
        with pytest.raises(ValueError, match="was tested on some images alone, 16; raise --test-images"):
            results.add("resnet20", changed, tmp_path / "out")
        with pytest.raises(ValueError, match="was tested on some images alone, 16"):
            ship.main(ship.Options(changed[1], "quick"))


def test_runs_with_other_flags_are_no_seeds(finished, folders, tmp_path):
    changed = with_other_flags(finished, folders, tmp_path, 1, sp_iterations=3000)
    with pytest.raises(ValueError, match="are no seeds of one another: sp_iterations"):
        results.add("resnet20", changed, tmp_path / "out")


def test_no_table_of_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no rows in .*no results.json"):
        results.draw(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_length_that_is_none(no_work):
    with pytest.raises(ValueError, match="--length is 0.0; expected more than 0"):
        reproduce.main(rows.Options(length=0.0))
    short = rows.chain("resnet38", rows.Options(length=1e-4))
    assert all(min(step.plan.values()) > 0 for step in short)


def test_what_is_shipped_is_what_the_run_measured(folders, tmp_path, monkeypatch):
    package = tmp_path / "weights"
    package.mkdir()
    (package / "index.json").write_text("[]")
    for module in (weights, ship):
        monkeypatch.setattr(module, "FOLDER", package)
    for run, name, stage in ((0, "plain", None), (1, "supervised", "sp"), (2, "hybrid", None)):
        ship.main(ship.Options(folders[run], name, stage))
        ship.main(ship.Options(folders[run], name, stage))  # replaces its entry
    plain, supervised, hybrid = weights.index()
    assert weights.find_shipped(20, "rendered-digits", "projection") == package / "plain.safetensors"
    assert weights.weights_path("hybrid").read_bytes() == (folders[2] / "hrl.safetensors").read_bytes()
    assert supervised["stage"] == "sp" and hybrid["stage"] == "hrl" and "gate" not in plain
    last = FinishedRun.read(folders[2]).result["policies"][-1]
    assert hybrid["test_accuracy"] == last["accuracy"] and hybrid["alpha"] == 3.0
    assert len(hybrid["command"]) == 3 and len(supervised["command"]) == 2
    before = (package / "plain.safetensors").read_bytes()
    with pytest.raises(ValueError, match="--weights auto would find plain or this one; give another --stage"):
        ship.main(ship.Options(folders[0], "other"))
    assert not (package / "other.safetensors").exists()
    ship.main(ship.Options(folders[0], "other", "backbone-again"))
    assert weights.find_shipped(20, "rendered-digits", "projection").read_bytes() == before
    taught = {**plain, "name": "taught", "stage": "backbone-distilled"}
    (package / "index.json").write_text(json.dumps([taught]))
    assert weights.find_shipped(20, "rendered-digits", "projection") == package / "plain.safetensors"
    ship.main(ship.Options(folders[0], "other"))  # without a teacher: auto finds the other one first
    assert weights.find_shipped(20, "rendered-digits", "projection") == package / "plain.safetensors"
    learned = dataclasses.replace(
        FinishedRun.read(folders[2]), result={**FinishedRun.read(folders[2]).result, "agent": "reinforce"}
    )
    with pytest.raises(ValueError, match="is of agents.reinforce, whose policies are not shipped"):
        ship.describe(learned, None)


def test_a_large_network_is_shipped_in_parts(folders, tmp_path, monkeypatch):
    (tmp_path / "index.json").write_text("[]")
    for module in (weights, ship):
        monkeypatch.setattr(module, "FOLDER", tmp_path)
    monkeypatch.setattr(ship, "LARGEST", 250_000)
    ship.main(ship.Options(folders[2], "hybrid"))
    source, first = folders[2] / "hrl.safetensors", weights.weights_path("hybrid")
    parts = sorted(tmp_path.glob("*.safetensors"))
    assert [part.name for part in parts] == [f"hybrid-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert first == parts[0] and max(part.stat().st_size for part in parts) <= 250_000
    whole, together = read_tensors(source), read_tensors(first)
    assert whole.keys() == together.keys()
    assert all(torch.equal(whole[name], together[name]) for name in whole)
    assert read_header(first) == read_header(source)
    assert restore_checkpoint(first)[0].num_decisions == 8
    for read in (read_tensors, read_header):
        with pytest.raises(WeightsError, match="is one of 3 parts; give the first, hybrid-00001-of-00003"):
            read(parts[1])
    parts[1].write_bytes(parts[1].read_bytes()[:-1] + b"\x01")
    with pytest.raises(WeightsError, match="hybrid-00001-of-00003.safetensors is missing or damaged"):
        weights.weights_path("hybrid")
    parts[2].unlink()
    for read in (read_tensors, read_header):
        with pytest.raises(WeightsError, match="no weights file .*hybrid-00003-of-00003.safetensors"):
            read(first)
    with pytest.raises(WeightsError, match="hybrid-00003-of-00003.safetensors is missing or damaged"):
        weights.weights_path("hybrid")
    for largest, count in ((400_000, 2), (4_000_000, 1)):  # other parts take their place
        monkeypatch.setattr(ship, "LARGEST", largest)
        ship.main(ship.Options(folders[2], "hybrid"))
        left = sorted(tmp_path.glob("*.safetensors"))
        assert left == parts_of(weights.weights_path("hybrid")) and len(left) == count
    monkeypatch.setattr(ship, "LARGEST", 10_000)  # one tensor alone has more
    with pytest.raises(ValueError, match="has parts of .* bytes, more than 10,000"):
        ship.main(ship.Options(folders[2], "hybrid"))
    assert sorted(tmp_path.glob("*.safetensors")) == left
