"""Tables and shipped networks are those of the runs behind them."""

import dataclasses
import json
import shutil

import pytest
import torch

from agents import finetune, hybrid_reinforce, pretrain
from agents.common import setting
from agents.common.finished import FinishedRun
from scripts import collect, lineage, results, ship
from skipnet_rl import catalogue
from skipnet_rl.checkpoint import parts_of, read_tensors
from skipnet_rl.data import load_images
from skipnet_rl.errors import WeightsError
from skipnet_rl.stored import find_file, read_header
from skipnet_rl.weights import open_weights


def few(*args, **kwargs):
    return load_images("rendered-digits", *args[1:2]).first(32)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A row of two alphas with two seeds, a few steps each."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setting, "load_images", few)
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
                "batch_size": 8,
                "eval_images": 16,
                "precision": "fp32",
            }
            hybrid = {**shared, "sp_iterations": 0, "iterations": 2, "tune_iterations": 1}
            hybrid_reinforce.train(
                hybrid_reinforce.Args(
                    **{**hybrid, "sp_iterations": 1, "iterations": 0},
                    weights=str(place / "backbone" / "weights.safetensors"),
                    run_dir=place / "sp",
                )
            )
            for alpha in (3.0, 0.5):
                hybrid_reinforce.train(
                    hybrid_reinforce.Args(
                        **hybrid,
                        weights=sp,
                        gate_weights=sp,
                        alpha=alpha,
                        run_dir=place / f"hrl-{alpha}",
                    )
                )
            hybrid_reinforce.train(
                hybrid_reinforce.Args(
                    **hybrid,
                    weights=sp,
                    gate_gain=6.0,
                    alpha=0.5,
                    run_dir=place / "hrl-0.5-gain6",
                )
            )
            routed = str(place / "hrl-0.5-gain6" / "hrl.safetensors")
            finetune.train(
                finetune.Args(
                    **shared,
                    iterations=1,
                    weights=routed,
                    alpha=0.5,
                    teacher=(str(place / "backbone" / "weights.safetensors"),),
                    run_dir=place / "hrl-0.5-gain6-distilled",
                )
            )
    return folder


@pytest.fixture
def folders(finished):
    names = ("backbone", "sp", "hrl-3.0", "hrl-0.5-gain6-distilled", "hrl-0.5-gain6", "hrl-0.5")
    return [finished / "resnet20-0" / name for name in names]


def test_the_table_is_that_of_the_runs(folders, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "load_images", few)
    collect.add("resnet20", folders, tmp_path)
    rows = results.read(tmp_path)
    assert [(row["name"], row["gate"], row["alpha"], row["distillation"], row["n"]) for row in rows] == [
        ("all blocks", None, None, 0, 2),
        ("SP", "rnn", None, 0, 2),
        ("HRL", "rnn", 0.5, 0, 2),
        ("HRL", "rnn, gain 6", 0.5, 0, 2),
        ("HRL", "rnn, gain 6", 0.5, 0.9, 2),
        ("HRL", "rnn", 3.0, 0, 2),
    ]
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
    for name in ("all_rows", "resnet20-skipped_layers", "resnet20-easy_and_hard"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5_000
    monkeypatch.setattr(results.plots, "save_figure", lambda figure, path: None)
    for depth, kept in ((38, rows), (20, rows[1:])):  # another gate's row of this depth has the plain network
        other = [{**row, "row": "other", "depth": depth} for row in rows]
        (tmp_path / "results.json").write_text(json.dumps({"rows": other}))
        collect.add("resnet20", folders, tmp_path)
        assert results.read(tmp_path) == [*other, *kept]


def test_a_network_without_gates_is_a_row_of_its_own(folders, tmp_path):
    collect.add("resnet20", [folders[0].parent / "backbone"], tmp_path)
    (row,) = results.read(tmp_path)
    runs = [FinishedRun.read(folders[0].parent.parent / f"resnet20-{seed}" / "backbone") for seed in (0, 1)]
    assert (row["name"], row["gate"], row["n"], row["dataset"]) == ("all blocks", None, 2, "rendered-digits")
    assert row["accuracy"] == pytest.approx(sum(run.result["policies"][0]["accuracy"] for run in runs) / 2)
    assert len(row["command"]) == 1 and "agents.pretrain" in row["command"][0]


def test_rows_of_two_data_sets_are_refused(tmp_path):
    stored = [{"accuracy": 0.5, "dataset": name} for name in ("cifar10", "cifar100")]
    (tmp_path / "results.json").write_text(json.dumps({"rows": stored}))
    with pytest.raises(ValueError, match="has rows for cifar10 and cifar100; expected one data set"):
        results.draw(tmp_path)


def with_other_flags(finished, folders, place, seed, **flags):
    """Seed 0's folders in a copy of the runs in which SP of a seed had other flags."""
    copy = place / "runs"
    shutil.copytree(finished, copy)
    file = copy / f"resnet20-{seed}" / "sp" / "args.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **flags}))
    return [copy / "resnet20-0" / folder.name for folder in folders]


def test_a_backbone_that_seeds_share_is_counted_once(finished, folders, tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "load_images", few)
    shared = FinishedRun.read(folders[1]).args["weights"]
    changed = with_other_flags(finished, folders, tmp_path, 1, weights=shared)
    collect.add("resnet20", changed, tmp_path / "out")
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
        assert lineage.lineage(ran).commands == ["python -m agents.pretrain --depth 20 --run-dir runs/a"]


def test_a_teacher_from_elsewhere_belongs_to_what_a_network_took(finished, folders, tmp_path):
    """Once, also where the network began with it."""
    run, other = (FinishedRun.read(finished / f"resnet20-{seed}" / "backbone") for seed in (0, 1))
    taught = dataclasses.replace(
        run, args={**run.args, "distillation": 0.9, "teacher": [str(other.folder / "weights.safetensors")]}
    )
    found = lineage.lineage(taught)
    assert found.seconds == run.result["wall_time_s"] + other.result["wall_time_s"]
    assert len(found.commands) == 2
    older = tmp_path / "older"
    shutil.copytree(run.folder, older)
    (older / "args.json").write_text(json.dumps({**taught.args, "teacher": taught.args["teacher"][0]}))
    assert lineage.lineage(FinishedRun.read(older)) == found  # it had one teacher at most
    distilled = FinishedRun.read(folders[3])  # its teacher is the network that it began with
    chain = [run, *(FinishedRun.read(folders[number]) for number in (1, 4, 3))]
    expected = sum(each.result["wall_time_s"] for each in chain)
    assert lineage.lineage(distilled).seconds == pytest.approx(expected)


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
    took = [lineage.lineage(each).seconds for each in (run, other)]
    others_start = str(copy / "resnet20-1" / "backbone" / "weights.safetensors")
    for start, seconds, count in (
        (run.args["weights"], sum(took), 6),
        (others_start, took[1] + run.result["wall_time_s"], 4),
    ):
        args = {**run.args, "weights": start, "gate_weights": str(other.folder / "hrl.safetensors")}
        found = lineage.lineage(dataclasses.replace(run, args=args))
        assert found.seconds == pytest.approx(seconds) and len(found.commands) == count
    both = [str(each.folder / "hrl.safetensors") for each in (run, other)]
    pupil = dataclasses.replace(
        run,
        args={**run.args, "distillation": 0.9, "teacher": both},
        result={**run.result, "command": "python -m mine"},
    )
    found = lineage.lineage(pupil)
    assert found.seconds == pytest.approx(sum(took) + run.result["wall_time_s"])
    assert len(found.commands) == 7 and found.commands[-1] == "python -m mine"


def test_a_run_tested_on_some_images_alone_is_no_result(finished, folders, tmp_path):
    changed = with_other_flags(finished, folders, tmp_path, 0, test_images=16)
    file = changed[1] / "result.json"
    result = {**json.loads(file.read_text()), "n_images": 16}
    older = {key: value for key, value in result.items() if key != "split_images"}
    for content in (result, older):
        file.write_text(json.dumps(content))
        with pytest.raises(ValueError, match="only 16 images; expected all: raise --test-images"):
            collect.add("resnet20", changed, tmp_path / "out")
        with pytest.raises(ValueError, match="was tested on only 16 images"):
            ship.main(ship.Options(changed[1], "quick"))


def test_runs_with_other_flags_are_no_seeds(finished, folders, tmp_path):
    changed = with_other_flags(finished, folders, tmp_path, 1, sp_iterations=3000)
    with pytest.raises(ValueError, match="differ in more than the seed: sp_iterations"):
        collect.add("resnet20", changed, tmp_path / "out")


def test_no_table_of_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no rows in .*no results.json"):
        results.draw(tmp_path)
    assert not list(tmp_path.iterdir())


def auto_file(*wanted):
    """The file of the network that "auto" stands for."""
    return catalogue.path_of(catalogue.find_auto(*wanted))


def test_what_is_shipped_is_what_the_run_measured(folders, tmp_path, monkeypatch):
    package = tmp_path / "weights"
    package.mkdir()
    (package / "index.json").write_text("[]")
    for module in (catalogue, ship):
        monkeypatch.setattr(module, "FOLDER", package)
    for run, name, stage in ((0, "plain", None), (1, "supervised", "sp"), (2, "hybrid", None)):
        ship.main(ship.Options(folders[run], name, stage))
        ship.main(ship.Options(folders[run], name, stage))  # replaces its entry
    plain, supervised, hybrid = catalogue.index()
    assert auto_file(20, "rendered-digits", "projection") == package / "plain.safetensors"
    assert find_file("hybrid").read_bytes() == (folders[2] / "hrl.safetensors").read_bytes()
    assert supervised["stage"] == "sp" and hybrid["stage"] == "hrl" and "gate" not in plain
    last = FinishedRun.read(folders[2]).result["policies"][-1]
    assert hybrid["test_accuracy"] == last["accuracy"] and hybrid["alpha"] == 3.0
    assert (hybrid["after"], supervised["after"], plain["after"]) == (["supervised"], ["plain"], [])
    assert (hybrid["kind"], plain["kind"]) == ("rnn", "plain")
    run = FinishedRun.read(folders[2])
    command = f"python -m agents.hybrid_reinforce --weights {run.args['weights']} --device cpu --run-dir a"
    told = dataclasses.replace(run, result={**run.result, "command": command})
    _, entry = ship.describe(told, None)
    assert entry["command"] == "python -m agents.hybrid_reinforce --weights supervised"
    before = (package / "plain.safetensors").read_bytes()
    with pytest.raises(ValueError, match="--weights auto could not tell other from plain; give another"):
        ship.main(ship.Options(folders[0], "other"))
    assert not (package / "other.safetensors").exists()
    ship.main(ship.Options(folders[0], "other", "backbone-again"))
    assert auto_file(20, "rendered-digits", "projection").read_bytes() == before
    taught = {**plain, "name": "taught", "stage": "backbone-distilled"}
    (package / "index.json").write_text(json.dumps([taught]))
    assert auto_file(20, "rendered-digits", "projection") == package / "plain.safetensors"
    ship.main(ship.Options(folders[0], "other"))  # without a teacher: auto finds the other one first
    assert auto_file(20, "rendered-digits", "projection") == package / "plain.safetensors"
    learned = dataclasses.replace(
        FinishedRun.read(folders[2]), result={**FinishedRun.read(folders[2]).result, "agent": "reinforce"}
    )
    with pytest.raises(ValueError, match="is a run of agents.reinforce, whose policies"):
        ship.describe(learned, None)


def test_a_large_network_is_shipped_in_parts(folders, tmp_path, monkeypatch):
    (tmp_path / "index.json").write_text("[]")
    for module in (catalogue, ship):
        monkeypatch.setattr(module, "FOLDER", tmp_path)
    monkeypatch.setattr(ship, "LARGEST", 250_000)
    ship.main(ship.Options(folders[2], "hybrid"))
    source, first = folders[2] / "hrl.safetensors", find_file("hybrid")
    parts = sorted(tmp_path.glob("*.safetensors"))
    assert [part.name for part in parts] == [f"hybrid-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert first == parts[0] and max(part.stat().st_size for part in parts) <= 250_000
    whole, together = read_tensors(source), read_tensors(first)
    assert whole.keys() == together.keys()
    assert all(torch.equal(whole[name], together[name]) for name in whole)
    assert read_header(first) == read_header(source)
    assert open_weights(first).mdp().num_decisions == 8
    for read in (read_tensors, read_header):
        with pytest.raises(WeightsError, match="is one of 3 parts; give the first, hybrid-00001-of-00003"):
            read(parts[1])
    parts[1].write_bytes(parts[1].read_bytes()[:-1] + b"\x01")
    with pytest.raises(WeightsError, match="hybrid-00001-of-00003.safetensors is missing or damaged"):
        find_file("hybrid")
    parts[2].unlink()
    for read in (read_tensors, read_header):
        with pytest.raises(WeightsError, match="no weights file .*hybrid-00003-of-00003.safetensors"):
            read(first)
    with pytest.raises(WeightsError, match="hybrid-00003-of-00003.safetensors is missing or damaged"):
        find_file("hybrid")
    for largest, count in ((400_000, 2), (4_000_000, 1)):  # other parts take their place
        monkeypatch.setattr(ship, "LARGEST", largest)
        ship.main(ship.Options(folders[2], "hybrid"))
        left = sorted(tmp_path.glob("*.safetensors"))
        assert left == parts_of(find_file("hybrid")) and len(left) == count
    monkeypatch.setattr(ship, "LARGEST", 10_000)  # one tensor alone has more
    with pytest.raises(ValueError, match="has parts of .* bytes, more than 10,000"):
        ship.main(ship.Options(folders[2], "hybrid"))
    assert sorted(tmp_path.glob("*.safetensors")) == left
