"""The rows of the study: commands that their agents accept, and that made the listed networks."""

import dataclasses
import re
import shlex
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import parsed

from agents import finetune, hybrid_reinforce
from agents.common.presets import PRESETS
from scripts import results, rows

# names of the folders, by schedule
PLAIN = {"cores": ("backbone", "restart"), "gpu": ("backbone",), "grown": ("grown",), "large": ("grown",)}
GATED = {
    "cores": ("sp", "hrl-0.5", "hrl-0.5-distilled", "hrl-1.0", "hrl-1.0-gain6", "hrl-1.0-gain6-distilled"),
    "gpu": ("sp", "hrl-0.1", "hrl-0.2", "hrl-0.4", "hrl-0.4-distilled", "hrl-0.8", "hrl-0.8-distilled"),
    "grown": ("sp", "hrl-0.5", "hrl-1.0"),
    "large": ("sp", "hrl-0.5"),
}
STUDY = rows.Options().chosen
LONG = [name for name in rows.ROWS if name not in STUDY]
KINDS = {"resnet38": "cores", "resnet110": "gpu", "resnet74": "grown", "resnet152": "large"}
EPOCHS = {"cores": [20, 7.5], "gpu": [35], "grown": [7], "large": [4]}  # at half of the length
RATES = {  # of the plain network, with gates
    "cores": (0.1, 0.05),
    "gpu": (0.4, 0.2),
    "grown": (0.05, 0.05),
    "large": (0.05, 0.05),
}
STEPS = {  # of SP and of HRL, at half of the length
    "cores": ({"warmup": 600, "sp": 150}, {"hrl": 750, "tune": 1_250}),
    "gpu": ({"warmup": 200, "sp": 50}, {"hrl": 250, "tune": 150}),
    "grown": ({"warmup": 200, "sp": 50}, {"hrl": 250, "tune": 425}),
    "large": ({"warmup": 200, "sp": 50}, {"hrl": 125, "tune": 225}),
}
ORIGINS = {"grown": "resnet38-cifar10-distilled", "large": "resnet110-cifar10-distilled"}
TEACHERS = ("resnet110-cifar10", "resnet38-cifar10-distilled")


@pytest.mark.parametrize("row", STUDY)
def test_each_step_is_a_command_that_starts_from_those_before(tmp_path, row):
    options = rows.Options(runs=tmp_path, seed=3, length=0.5)
    gate, schedule = rows.ROWS[row].gate, rows.ROWS[row].schedule
    jobs = rows.jobs_of(row, options)
    prefix = "" if gate == "rnn" else f"{gate}-"
    kind = KINDS[row.split("-")[0]]
    gated = [f"{prefix}{title}" for title in GATED[kind]]
    assert [job.folder.name for job in jobs] == [*PLAIN[kind], *gated]
    for number, job in enumerate(jobs):
        args, title = parsed(job.line), job.folder.name.removeprefix(prefix)
        assert args.lr == (
            RATES[kind][0] if number == 0 else 0.05 if job.command[0] == "agents.finetune" else RATES[kind][1]
        )
        assert args.seed == 3 and args.dataset == "cifar10" and args.run_dir == job.folder
        assert args.depth == rows.ROWS[row].depth and args.resume
        assert args.batch_size == schedule.batch_size
        named = [args.weights, getattr(args, "gate_weights", None), *args.teacher]
        needed = {Path(file).parent for file in named if file} - {Path(".")}  # of shipped names
        if kind in ORIGINS:
            assert args.teacher == TEACHERS and args.distillation == 0.9
        before = jobs[:number]
        assert needed == {other.folder for other in before if job.needs([other])}
        assert bool(needed) == bool(number) and not job.needs(jobs[number:])
        args.check()
        if job.command[0] == "agents.finetune":
            assert args.plan() == ["tune"] * round(schedule.distilled / 2)
            assert args.eval_every == schedule.eval_every
        if job.command[0] == "agents.hybrid_reinforce":
            assert args.gate == gate and args.eval_every == PRESETS[schedule.preset]["eval_every"]
            expected = STEPS[kind][0] if title == "sp" else STEPS[kind][1]
            assert dict(Counter(args.plan())) == expected


@pytest.mark.parametrize("row", STUDY)
def test_what_each_command_goes_on_from(tmp_path, row):
    schedule, kind = rows.ROWS[row].schedule, KINDS[row.split("-")[0]]
    jobs = rows.jobs_of(row, rows.Options(runs=tmp_path, length=0.5))
    plain = [job for job in jobs if job.command[0] == "agents.pretrain"]
    assert [parsed(job.line).epochs for job in plain] == EPOCHS[kind]
    first = parsed(plain[0].line)
    assert first.weights == ORIGINS.get(kind, "none")
    sp, *hrl = (parsed(job.line) for job in jobs[len(plain) :])
    assert sp.plan()[0] == "warmup" and sp.plan()[-1] == "sp"
    assert sp.weights == str(plain[-1].folder / "weights.safetensors")
    runs = [args for args in hrl if isinstance(args, hybrid_reinforce.Args)]
    assert [(args.alpha, args.gate_gain) for args in runs] == list(schedule.runs)
    for args in runs:
        assert args.weights == str(sp.run_dir / "sp.safetensors")
        assert args.gate_weights == (args.weights if args.gate_gain == 1 else None)
    taught = [args for args in hrl if isinstance(args, finetune.Args)]
    assert len(taught) == len(schedule.taught) == len(hrl) - len(runs)
    for args, (alpha, gain) in zip(taught, schedule.taught, strict=True):
        start = next(run for run in runs if (run.alpha, run.gate_gain) == (alpha, gain))
        assert args.weights == str(start.run_dir / "hrl.safetensors")
        assert args.teacher == (sp.weights,) and args.distillation == 0.9


NETWORKS = {
    entry["name"]: entry
    for entry in results.networks(Path(__file__).parent.parent / "docs" / "results-cifar10")
}
NAMES = {  # of the networks that the backbones' folders end with
    "resnet38": {"backbone": "-first", "restart": ""},
    "resnet110": {"backbone": ""},
    "resnet74": {"grown": "-distilled"},
    "resnet152": {"grown": "-distilled"},
}


def names_of(row, jobs):
    """The network that each run folder of a row ends with."""
    network = row.split("-")[0]
    backbones = NAMES[network]
    return {
        str(job.folder): f"{network}-cifar10{backbones.get(job.folder.name, f'-{job.folder.name}')}"
        for job in jobs
    }


@pytest.mark.parametrize("row", STUDY)
def test_listed_networks_came_from_the_commands_of_their_row(row, tmp_path):
    jobs = rows.jobs_of(row, rows.Options(runs=tmp_path))
    names, compared = names_of(row, jobs), 0
    for job in jobs:
        if entry := NETWORKS.get(names[str(job.folder)]):
            line = [re.sub(r"/\w+\.safetensors$", "", word) for word in job.line]
            ours = parsed([names.get(word, word) if word != str(job.folder) else word for word in line])
            theirs = parsed(shlex.split(entry["command"]))
            places = {"run_dir": None, "resume": False}
            assert dataclasses.replace(ours, **places) == dataclasses.replace(theirs, **places), entry["name"]
            used = {name for folder, name in names.items() if any(folder + "/" in word for word in job.line)}
            assert used - {entry["name"]} <= set(entry["after"])
            compared += 1
    assert compared >= 3 or row not in ("resnet38", "resnet74", "resnet110", "resnet152")


@pytest.mark.parametrize("row, name", rows.SHIPPED.items())
def test_the_shipped_backbone_instead(row, name, tmp_path):
    first = rows.jobs_of(f"resnet{row}", rows.Options(runs=tmp_path, shipped_backbone=True))[0]
    assert first.command[0] == "agents.hybrid_reinforce" and name in first.command


def test_the_usual_rows_are_those_of_the_page():
    assert set(STUDY) == {
        "resnet38", "resnet74", "resnet110", "resnet152", "resnet38-ff1", "resnet38-ff2", "resnet74-ff1",
        "resnet110-ff2", "resnet152-ff2",
    }  # fmt: skip


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("row", LONG)
def test_long_rows_are_commands_that_start_from_those_before(row, device, tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "pick_device", lambda name: SimpleNamespace(type=device))
    known = rows.ROWS[row]
    jobs = rows.jobs_of(row, rows.Options(runs=tmp_path, seed=3))
    for number, job in enumerate(jobs):
        args = parsed(job.line)
        args.check()
        assert (args.dataset, args.seed, args.run_dir) == (known.dataset, 3, job.folder) and args.resume
        assert known.chain or args.depth == known.depth
        named = [args.weights, getattr(args, "gate_weights", None), *args.teacher]
        needed = {Path(file).parent for file in named if file} - {Path(".")}
        assert needed == {other.folder for other in jobs[:number] if job.needs([other])}
    titles = [job.folder.name for job in jobs]
    small = device == "cpu" and known.dataset != "imagenet"
    plain = [parsed(job.line) for job in jobs if job.command[0] == "agents.pretrain"]
    assert all((args.epochs, args.survival) == (100 if small else 300, 0.5) for args in plain)
    assert all((args.batch_size, args.lr) == ((128, 0.1) if small else (512, 0.4)) for args in plain)
    if known.chain:
        assert [args.depth for args in plain] == [14, 38, 110] and len(plain) == len(jobs)
    elif known.dataset == "imagenet":
        assert titles == ["sp", "hrl-0.4", "hrl-0.8", "hrl-1.6"]
        assert parsed(jobs[0].line).weights == "torchvision"
    elif known.depth == 14:
        assert titles == ["backbone"]
    else:
        gate = "ff2-" if known.gate == "ff2" else ""
        gated = ["sp", "hrl-0.4", "hrl-0.8", "hrl-0.8-distilled", "hrl-0.8-fixed", "hrl-1.6"]
        assert titles == ["backbone", *(gate + title for title in gated)]
        taught, fixed = (parsed(job.line) for job in jobs[4:6])
        assert fixed.fixed_route and not taught.fixed_route
        same = {"fixed_route": False, "run_dir": None}
        assert dataclasses.replace(fixed, **same) == dataclasses.replace(taught, **same)


def test_rows_of_one_backbone_share_it_and_no_others():
    def folders(name):
        return {
            job.folder for job in rows.jobs_of(name, rows.Options()) if job.command[0] == "agents.pretrain"
        }

    assert folders("resnet110-long") == folders("resnet110-ff2-long") < folders("chains-long")
    assert folders("resnet110") == folders("resnet110-ff2")
    for name, other in (("resnet110", "resnet110-long"), ("resnet110-long", "resnet110-cifar100")):
        assert not folders(name) & folders(other)


def test_rows_without_figures_say_why():
    folder = Path(__file__).parent.parent / "docs" / "results-cifar10"
    with_figures = {row["row"] for row in results.read(folder)}
    for name, row in rows.ROWS.items():
        assert (name in with_figures) == (not row.not_run), name
        assert (row.not_run == rows.NO_DATA) == (row.dataset in ("svhn", "imagenet")), name
