"""agents.evaluate: finished runs, checkpoints and models played again, at one budget or at many."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from toys import load_first

from agents import evaluate as evaluation
from agents import hybrid_reinforce, ppo
from agents.common import finished as finished_runs
from agents.common import setting, subjects
from agents.common.cli import main_with_named_errors
from agents.common.finished import FinishedRun
from skipnet_rl.errors import WeightsError
from skipnet_rl.evaluate import evaluate, load_records
from skipnet_rl.stored import read_header
from skipnet_rl.weights import open_weights

SMALL = {
    "env": "SkipResNet20-v0",
    "dataset": "rendered-digits",
    "eval_images": 16,
    "precision": "fp32",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A short run with a feed-forward gate."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setting, "load_images", load_first(64))
        hybrid_reinforce.train(
            hybrid_reinforce.Args(
                **SMALL,
                gate="ff2",
                warmup_iterations=1,
                sp_iterations=2,
                iterations=2,
                tune_iterations=1,
                batch_size=8,
                run_dir=folder,
            )
        )
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A short run of PPO."""
    folder = tmp_path_factory.mktemp("runs") / "ppo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setting, "load_images", load_first(64))
        ppo.train(ppo.Args(**SMALL, episodes=64, num_envs=32, run_dir=folder))
    return folder


@pytest.fixture
def play(monkeypatch):
    """agents.evaluate on 64 images of a split."""
    monkeypatch.setattr(subjects, "load_images", load_first(64))

    def run(*paths, **flags):
        args = evaluation.Args(paths=tuple(paths), **flags)
        return [found["policies"] for found in evaluation.main(args)]

    return run


def last_row(folder):
    return json.loads((folder / "result.json").read_text())["policies"][-1]


@pytest.mark.parametrize("which", ["finished", "model"])
def test_a_run_played_again_gives_its_result(which, request, play):
    folder = request.getfixturevalue(which)
    (rows,) = play(folder)
    assert [row["name"] for row in rows] == ["all blocks", last_row(folder)["name"]]
    ran = last_row(folder)
    for key in ("accuracy", "loss", "return", "compute_blocks", "compute_flops", "execution_rate"):
        assert rows[1][key] == ran[key], key
    for picture in ("easy_and_hard", "skip_rate_by_class", "difficulty"):
        assert (folder / "plots" / f"{picture}-test-greedy.png").is_file()
    stored = json.loads((folder / "evaluation-test-greedy.json").read_text())
    assert stored["policies"] == rows and stored["split"] == "test"
    record = load_records(folder / "evaluation-test-greedy.npz")[ran["name"]]
    assert record.routes.mean(axis=0).tolist() == pytest.approx(ran["execution_rate"])
    assert record.correct.mean() == ran["accuracy"]


def test_the_first_images_alone(finished, play, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    whole, first = play(folder)[0], play(folder, images=20)[0]
    stored = json.loads((folder / "evaluation-test-first-20-greedy.json").read_text())
    assert stored["policies"] == first and stored["n_images"] == 20
    records = load_records(folder / "evaluation-test-first-20-greedy.npz")
    for name, record in load_records(folder / "evaluation-test-greedy.npz").items():  # not overwritten
        assert len(record.correct) == 64
        assert np.array_equal(records[name].correct, record.correct[:20])
    assert [row["accuracy"] for row in first] != [row["accuracy"] for row in whole]
    with pytest.raises(ValueError, match="--images is 0; expected more than 0"):
        play(folder, images=0)


@pytest.mark.parametrize("of_the_run", ["bf16", "fp32"])
def test_a_run_is_played_in_its_own_precision(of_the_run, finished, play, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    folder = shutil.copytree(finished, tmp_path / "run")
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps({**result, "precision": of_the_run}))
    play(folder, device="cpu")
    found = json.loads((folder / "evaluation-test-greedy.json").read_text())
    assert found["precision"] == of_the_run


def test_a_shipped_network_is_played_in_float32_unless_asked_otherwise(play, tmp_path):
    """The precision of its stated accuracy, so that the command repeats the figure."""
    for flags, used in (({}, "fp32"), ({"precision": "bf16"}, "bf16")):
        play(Path("resnet20-rendered-digits"), out=tmp_path / used, **flags)
        found = json.loads((tmp_path / used / "evaluation-test-greedy.json").read_text())
        assert found["precision"] == used


def test_bias_zero_is_the_run_and_more_bias_more_blocks(finished, play):
    (rows,) = play(finished, split="test", biases=(30.0, 0.0, -30.0))
    assert [row["name"] for row in rows] == ["all blocks", "bias -30", "bias +0", "bias +30"]
    for key in ("accuracy", "loss", "compute_blocks", "compute_flops"):
        assert rows[2][key] == last_row(finished)[key]
    assert rows[1]["compute_blocks"] == pytest.approx(1 / 9) and rows[3]["compute_blocks"] == 1
    assert rows[3]["compute_flops"] > 1.1  # the gates cost 12 %, executed or not
    assert rows[0]["compute_flops"] == 1 and rows[0]["accuracy"] == rows[3]["accuracy"]
    assert (finished / "plots" / "budget-test-greedy.png").is_file()
    stored = json.loads((finished / "budget-test-greedy.json").read_text())
    assert stored["policies"] == rows
    low, high = stored["notes"]
    assert low.startswith("bias -30 skips every block") and high.startswith("bias +30 executes every block")


def test_biases_that_look_alike_keep_their_rows(finished, play):
    (rows,) = play(finished, split="test", biases=(1.0, 1.0000001, 2.0))
    assert [row["name"] for row in rows[1:]] == ["bias +1", "bias +1.0000001", "bias +2"]
    assert [row["bias"] for row in rows[1:]] == [1.0, 1.0000001, 2.0]


def test_controls_do_not_choose_by_the_image(finished, play, tmp_path, capsys):
    """Sampled gates, whose routes vary: exchanged they cost the same; the most frequent is one of them."""
    _, own, exchanged, frequent = play(finished, controls=True, mode="sample", out=tmp_path)[0]
    assert [exchanged["name"], frequent["name"]] == ["routes exchanged", "most frequent route"]
    for key in ("policy_flops", "executed_blocks_histogram", "execution_rate", "unique_routes"):
        assert exchanged[key] == own[key] and own["unique_routes"] > 8, key
    for key in ("compute_blocks", "compute_flops", "compute_flops_std"):  # sums in another order
        assert exchanged[key] == pytest.approx(own[key]), key
    assert frequent["unique_routes"] == 1 and frequent["policy_flops"] == 0
    records = load_records(tmp_path / "controls-val-sample.npz")
    routes, counts = np.unique(records["HRL"].routes, axis=0, return_counts=True)
    assert (records["most frequent route"].routes == routes[counts.argmax()]).all()
    dealt = records["routes exchanged"].routes
    assert sorted(map(tuple, dealt)) == sorted(map(tuple, records["HRL"].routes))
    gains = json.loads((tmp_path / "controls-val-sample.json").read_text())["gain_over"]
    for row in (exchanged, frequent):
        differs = np.subtract(records["HRL"].correct, records[row["name"]].correct, dtype=float)
        assert gains[row["name"]]["accuracy"] == pytest.approx(own["accuracy"] - row["accuracy"])
        changed = (records["HRL"].routes != records[row["name"]].routes).any(axis=1)
        assert gains[row["name"]]["changed"] == changed.mean() > 0.5
        assert gains[row["name"]]["ci95"] == pytest.approx(stats.sem(differs) * stats.t.ppf(0.975, 63))
    assert "HRL over routes exchanged: " in capsys.readouterr().out


def test_controls_where_nothing_is_chosen(finished, play):
    for flags in ({"controls": True}, {"biases": (1.0,)}):
        with pytest.raises(ValueError, match="--controls and --biases need a policy that chooses"):
            play("resnet20-rendered-digits", **flags)
    with pytest.raises(ValueError, match="--controls and --biases exclude"):
        play(finished, controls=True, biases=(1.0,))


@pytest.mark.slow
def test_results_that_would_take_each_others_place(finished, model, play, tmp_path):
    with pytest.raises(ValueError, match="--out .* takes the results of one path"):
        play(finished, model, out=tmp_path)
    with pytest.raises(ValueError, match="nothing to evaluate"):
        play()
    with pytest.raises(ValueError, match="a run of agents.ppo, which has no stage 'sp'"):
        play(model, stage="sp")
    assert [row["name"] for row in play(finished, biases=(1.0, 0.0, 1.0))[0]] == [
        "all blocks",
        "bias +0",
        "bias +1",
    ]
    last, supervised = play(finished)[0], play(finished, stage="sp")[0]
    for file, rows in (("test-greedy", last), ("sp-test-greedy", supervised)):
        assert json.loads((finished / f"evaluation-{file}.json").read_text())["policies"] == rows
        assert (finished / "plots" / f"easy_and_hard-{file}.png").is_file()


def test_biases_are_read_on_validation_images(finished, play):
    play(finished, biases=(-1.0,))
    assert json.loads((finished / "budget-val-greedy.json").read_text())["split"] == "val"


def test_sampled_gates(finished, play):
    first, again = (play(finished, mode="sample", biases=(-2.0,))[0][1] for _ in range(2))
    assert first == again
    assert first["unique_routes"] > 8  # sampled from p near 1/2


def test_stages_and_checkpoints_outside_of_a_run(finished, play, tmp_path):
    assert read_header(finished / "sp.safetensors")["kind"] == "ff2"
    elsewhere = tmp_path / "mine.safetensors"
    elsewhere.write_bytes((finished / "sp.safetensors").read_bytes())
    by_stage, by_file = play(finished, stage="sp")[0], play(elsewhere, dataset="rendered-digits")[0]
    assert by_file[1] == {**by_stage[1], "name": "mine"}
    assert not list(tmp_path.glob("*.json"))  # outside of a run nothing is written unasked
    play(elsewhere, dataset="rendered-digits", out=tmp_path / "out")
    assert (tmp_path / "out" / "evaluation-test-greedy.json").is_file()


def test_a_shipped_network_by_its_name(play, tmp_path):
    (rows,) = play("resnet20-rendered-digits", out=tmp_path)
    assert [row["name"] for row in rows] == ["all blocks"]
    assert rows[0]["accuracy"] > 0.9 and rows[0]["compute_flops"] == 1
    assert json.loads((tmp_path / "evaluation-test-greedy.json").read_text())["dataset"] == "rendered-digits"
    with pytest.raises(WeightsError, match="no weights file resnet21-rendered-digits.st"):
        play("resnet21-rendered-digits.st")


def test_the_file_of_a_frozen_networks_policy_opens_without_stable_baselines3(model):
    """It names the network that the policy learned over; what it plays is what the run measured."""
    opened = open_weights(model / "policy.safetensors")
    header = opened.header
    assert (header["kind"], header["network"]) == ("sb3", "resnet20-rendered-digits")
    assert (header["dataset"], header["learned_on"]) == ("rendered-digits", "calibration")
    assert header["after"] == ["resnet20-rendered-digits"] and header["command"].startswith(
        "python -m agents"
    )
    images = load_first(64)("rendered-digits", "test")
    row = evaluate(opened.mdp(), opened.policy, images).summary("PPO")
    assert {key: row[key] for key in ("accuracy", "loss", "compute_flops", "policy_flops")} == (
        {key: last_row(model)[key] for key in ("accuracy", "loss", "compute_flops", "policy_flops")}
    )


def test_a_shipped_network_keeps_its_name():
    name = Path("resnet38-cifar10-hrl-0.5-ensemble")
    subject = evaluation.restore(name, evaluation.Args(paths=(name,), dataset="rendered-digits"))
    assert subject.name == str(name)
    assert subject.mdp.num_decisions == 17 and subject.policy.head.weight.abs().sum() > 0


def test_a_model_saved_elsewhere_is_read_on_trust_alone(model, play):
    path = model / "model.zip"
    with pytest.raises(ValueError, match="can execute code.*--trust-sb3 ppo"):
        play(path)
    flags = {"env": "SkipResNet20-v0", "dataset": "rendered-digits"}
    rows = play(path, trust_sb3="ppo", **flags)[0]
    assert rows[1]["accuracy"] == pytest.approx(
        last_row(model)["accuracy"], abs=0.04
    )  # fp32 and fp16 weights
    named = play(path, trust_sb3="ppo", weights="resnet20-rendered-digits")[0]
    assert [row["accuracy"] for row in named] == [row["accuracy"] for row in rows]
    with pytest.raises(ValueError, match="unknown algorithm 'pppo'; did you mean 'ppo'"):
        play(path, trust_sb3="pppo", **flags)
    with pytest.raises(ValueError, match="model.zip is not a model of dqn"):
        play(path, trust_sb3="dqn", **flags)
    with pytest.raises(ValueError, match="CartPole-v1 is not an environment of this project"):
        play(path, trust_sb3="ppo", **{**flags, "env": "CartPole-v1"})


def test_folders_without_a_run(tmp_path, finished):
    with pytest.raises(FileNotFoundError, match="no run in .*args.json"):
        FinishedRun.read(tmp_path)
    (tmp_path / "args.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="no finished run in"):
        FinishedRun.read(tmp_path)
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        FinishedRun.read(tmp_path)
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(ValueError, match="names no agent"):
        FinishedRun.read(tmp_path)
    plain = FinishedRun(tmp_path, {"depth": 26}, {"agent": "pretrain", "env": "SkipResNet26-v0"})
    assert plain.depth == 26  # which no id has
    with pytest.raises(WeightsError, match="no weights file .*warm.safetensors"):
        FinishedRun.read(finished).restore(10, "warm")


@pytest.mark.parametrize(
    ("changed", "row", "named"),
    [
        ({"cost": None}, {}, "cost"),
        ({"alpha": "1"}, {}, "alpha"),
        ({}, {"weights": 5}, "weights"),
        ({}, {"mix": 0.5}, "mix"),
        ({"cost": 1, "alpha": None}, {"mix": [None]}, "alpha and cost"),
        ({"split_images": 0}, {}, "split_images"),
    ],
)
def test_values_that_no_run_writes_are_damage(tmp_path, changed, row, named):
    result = {"agent": "ppo", "env": "SkipChain14x38-v0", "dataset": "cifar10", "alpha": 1.0, "cost": "flops"}
    policies = [{"name": "PPO", "weights": None, "mix": [0.5]}]
    (tmp_path / "args.json").write_text("{}")
    (tmp_path / "result.json").write_text(json.dumps({**result, "policies": policies}))
    assert FinishedRun.read(tmp_path).policy_name == "PPO"
    damaged = {**result, **changed, "policies": [{**policies[0], **row}]}
    (tmp_path / "result.json").write_text(json.dumps(damaged))
    with pytest.raises(ValueError, match=f"result.json is damaged: no run writes its {named}$"):
        FinishedRun.read(tmp_path)


def test_an_error_of_the_program_is_not_taken_for_a_damaged_run(tmp_path, monkeypatch):
    (tmp_path / "policy.safetensors").touch()
    result = {"env": "SkipResNet14-v0", "policies": [{"name": "PPO"}], "alpha": 1.0}
    run = FinishedRun(tmp_path, {"weights": "none"}, result)

    def wrong(*args, **kwargs):
        raise TypeError("an error of the program")

    monkeypatch.setattr(finished_runs, "open_weights", wrong)
    with pytest.raises(TypeError, match="an error of the program"):
        run.restore(10)
    del result["alpha"]
    with pytest.raises(ValueError, match=r"args.json or result.json is damaged: KeyError\('alpha'\)"):
        run.restore(10)


def test_weights_without_a_header(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "bare.safetensors")
    assert read_header(tmp_path / "bare.safetensors") == {}
    with pytest.raises(WeightsError, match="bare.safetensors holds no ResNet"):
        open_weights(tmp_path / "bare.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "bare.safetensors", metadata={"about": "[1]"})
    with pytest.raises(WeightsError, match="its header is not a JSON object"):
        read_header(tmp_path / "bare.safetensors")
    (tmp_path / "bare.safetensors").write_bytes(b"no")
    with pytest.raises(WeightsError, match="not a readable"):
        read_header(tmp_path / "bare.safetensors")


def test_a_missing_run_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate", str(tmp_path / "none")])
    with pytest.raises(SystemExit) as stop:
        main_with_named_errors(evaluation.Args, evaluation.main)
    assert stop.value.code == 2
    assert "it is not a shipped network, and" in capsys.readouterr().err
