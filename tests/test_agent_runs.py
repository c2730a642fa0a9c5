"""Every agent leaves the same run folder, repeats itself, resumes, and refuses bad flags."""

import copy
import dataclasses
import gc
import json
import shlex
import sys

import pytest
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.logger import CSVOutputFormat, configure
from toys import load_first, slow

from agents import a2c, act, blockdrop, dqn, gumbel, oracle, ppo, reinforce, static
from agents.common import sb3, setting
from agents.common.cli import main_with_named_errors
from agents.common.parsing import parse
from agents.common.sb3 import preset, training_env
from agents.common.watch import DivergenceError
from skipnet_rl.evaluate import load_records
from skipnet_rl.runs import Run
from skipnet_rl.stored import read_header

SMALL = {
    "env": "SkipResNet20-v0",
    "dataset": "rendered-digits",
    "eval_images": 16,
    "precision": "fp32",
}
SB3 = {"episodes": 64, "num_envs": 32, "eval_every": 32}
LEARNERS = {
    "PPO": (ppo, {**SB3}),
    "RecurrentPPO": (ppo, {**SB3, "recurrent": True}),
    "A2C": (a2c, {**SB3}),
    "DQN": (dqn, {**SB3, "buffer": 1_000}),
    "REINFORCE": (reinforce, {"iterations": 4, "batch_size": 8, "eval_every": 2}),
    "Gumbel": (gumbel, {"warmup_iterations": 0, "iterations": 4, "batch_size": 8, "eval_every": 2}),
    "ACT": (act, {"iterations": 2, "tune_iterations": 2, "batch_size": 8, "eval_every": 2}),
    "BlockDrop": (
        blockdrop,
        {"warmup_iterations": 0, "curriculum": 2, "joint": 2, "batch_size": 8, "eval_every": 2},
    ),
}


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    """64 images of each split."""
    monkeypatch.setattr(setting, "load_images", load_first(64))


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


METRICS = {
    "step",
    "stage",
    "train/loss",
    "train/accuracy",
    "train/return",
    "train/compute_blocks",
    "train/least_executed",
    "train/images_per_s",
    "val/accuracy",
    "val/loss",
    "val/return",
    "val/compute_blocks",
    "val/compute_flops",
    "val/unique_routes",
}


@pytest.mark.parametrize("name", LEARNERS)
def test_a_learners_run_folder(name, tmp_path, pictures):
    module, flags = LEARNERS[name]
    result = module.train(module.Args(**SMALL, **flags, run_dir=tmp_path / "run"))
    run = tmp_path / "run"
    assert json.loads((run / "result.json").read_text())["policies"] == result["policies"]
    assert result["agent"] == module.__name__.split(".")[-1] and result["n_images"] == 64
    names = [row["name"] for row in result["policies"]]
    assert names[:2] == ["all blocks", "random"] and names[-1] == name
    assert list(load_records(run / "routes.npz")) == names
    for row in result["policies"]:
        assert 0 <= row["accuracy"] <= 1 and 1 / 9 <= row["compute_blocks"] <= 1
        assert (run / row["weights"]).is_file() if row["weights"] else "random," not in row["name"]
    at_random, learned = result["policies"][1], result["policies"][-1]
    assert learned["policy_flops"] > 0
    rate = learned["executed_blocks_mean"] / 8  # 64 images of 8 draws each at this rate
    assert at_random["executed_blocks_mean"] / 8 == pytest.approx(
        rate, abs=4 * (rate * (1 - rate) / 512) ** 0.5 + 1e-9
    )
    assert [set(line) for line in lines(run)] == [METRICS] * 2
    for file in ("args.json", "plots/training.png", "plots/execution_rate.png", "plots/skipped_layers.png"):
        assert (run / file).is_file(), file
    assert list(run.glob("events.out.tfevents*"))


# the test of resumed runs below compares two runs of one seed, too
@pytest.mark.parametrize("name", ["PPO", slow("DQN"), slow("Gumbel"), slow("ACT"), slow("BlockDrop")])
def test_same_seed_gives_the_same_results(name, tmp_path):
    module, flags = LEARNERS[name]
    runs = [
        module.train(module.Args(**SMALL, **flags, seed=seed, run_dir=tmp_path / folder))
        for folder, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    first, again, other = (run["policies"][-1] for run in runs)
    assert first == again
    curves = [
        [{key: line[key] for key in line if key != "train/images_per_s"} for line in lines(tmp_path / folder)]
        for folder in "abc"
    ]
    assert curves[0] == curves[1] != curves[2]
    assert first["loss"] != other["loss"] or name in ("PPO", "DQN")  # frozen: alike where both execute all


@pytest.mark.parametrize("name", ["REINFORCE", "Gumbel", "ACT", slow("BlockDrop")])
def test_a_resumed_run_equals_an_uninterrupted_one(name, tmp_path, monkeypatch):
    module, flags = LEARNERS[name]
    whole = module.train(module.Args(**SMALL, **flags, run_dir=tmp_path / "a"))
    save = Run.save

    def interrupted(self, state):
        save(self, state)
        if state["step"] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save", interrupted)
    args = module.Args(**SMALL, **flags, run_dir=tmp_path / "b")
    with pytest.raises(KeyboardInterrupt):
        module.train(args)
    monkeypatch.setattr(Run, "save", save)
    assert module.train(dataclasses.replace(args, resume=True))["policies"] == whole["policies"]
    kinds = {"BlockDrop": "blockdrop", "REINFORCE": "rnn", "Gumbel": "rnn", "ACT": "act"}
    header = read_header(tmp_path / "a" / "policy.safetensors")
    assert header["kind"] == kinds.get(name, "sb3") and header["depth"] == 20 and header["alpha"]
    weights = [(tmp_path / folder / "policy.safetensors").read_bytes() for folder in "ab"]
    assert weights[0] == weights[1]
    assert [line["step"] for line in lines(tmp_path / "b")] == [2, 4]


def test_static_policies_leave_the_same_files(tmp_path, pictures):
    fixed = static.evaluate_all(static.Args(**SMALL, points=3, rates=(0.9, 0.5), run_dir=tmp_path / "static"))
    names = [row["name"] for row in fixed["policies"]]
    assert names[0] == "all blocks" and "no blocks" in names and "random 90%" in names
    assert {"greedy, 7 of 8", "greedy, 4 of 8", "greedy, 1 of 8"} < set(names)
    by_name = {row["name"]: row for row in fixed["policies"]}
    assert by_name["greedy, 4 of 8"]["executed_blocks_mean"] == 4
    assert by_name["last first, 4 of 8"]["execution_rate"] == [1] * 4 + [0] * 4
    assert by_name["no blocks"]["executed_blocks_mean"] == 0
    bound = oracle.find_routes(oracle.Args(**SMALL, run_dir=tmp_path / "oracle"))
    assert bound["exact"] and bound["policies"][-1]["accuracy"] >= bound["policies"][0]["accuracy"]
    searched = oracle.find_routes(oracle.Args(**SMALL, exhaustive=0, run_dir=tmp_path / "searched"))
    assert not searched["exact"]
    exact, found = (run["policies"][-1] for run in (bound, searched))
    assert exact["executed_blocks_mean"] <= found["executed_blocks_mean"]
    for folder in ("static", "oracle", "searched"):
        assert (tmp_path / folder / "routes.npz").is_file() and (tmp_path / folder / "args.json").is_file()


@pytest.fixture
def csv_files(monkeypatch) -> list:
    """The progress.csv of each model that is trained."""
    files = []

    def spied(*args):
        logger = configure(*args)
        files.extend(each.file for each in logger.output_formats if isinstance(each, CSVOutputFormat))
        return logger

    monkeypatch.setattr(sb3, "configure", spied)
    return files


@pytest.mark.parametrize(
    ("name", "lr", "message"),
    [
        ("PPO", 1e37, r"^policy\..* holds a NaN or an infinity at step 32 \(TRAIN\); the run stops"),
        slow("RecurrentPPO", 1e37, r"^policy\..* holds a NaN or an infinity at step 32 "),
        slow("A2C", 1e37, r"^policy\..* holds a NaN or an infinity at step 64 "),
        ("DQN", 1e37, r"^policy\..* holds a NaN or an infinity at step 128 "),
        ("PPO", 1e38, r"^the optimizer's step overflows at step 32 "),
    ],
)
def test_a_model_that_diverges_ends_with_the_step_and_is_not_saved(
    name, lr, message, tmp_path, capfd, csv_files
):
    """Also between two evaluations, where no checkpoint is checked."""
    module, flags = LEARNERS[name]
    args = module.Args(
        **SMALL, **{**flags, "episodes": 128, "eval_every": 128, "lr": lr}, run_dir=tmp_path / "run"
    )
    with pytest.raises(DivergenceError, match=message):
        module.train(args)
    assert [file.closed for file in csv_files] == [True]
    assert not any((tmp_path / "run").rglob("*.safetensors"))
    capfd.readouterr()
    gc.collect()
    assert not capfd.readouterr().err  # the bar is closed, so that nothing follows the error


@pytest.mark.parametrize("env", ["SkipResNet20-v0", "SkipResNet110-v0"])
def test_presets_are_complete(env):
    for module in (ppo, a2c, dqn):
        numbers = preset(module.Args(env=env), module.PRESETS)
        assert all(value is not None for value in numbers.values())
        assert numbers["episodes"] >= 10_000


@pytest.mark.parametrize(
    ("module", "flags", "message"),
    [
        (ppo, ["--env", "SkipResNet111-v0"], "SkipResNet111"),
        (ppo, ["--weights", "/nowhere.safetensors"], "no weights file /nowhere.safetensors"),
        (ppo, ["--alpha", "-1"], "alpha is -1.0"),
        (ppo, ["--num-envs", "0"], "--num-envs is 0; expected more than 0"),
        (ppo, ["--eval-every", "0"], "--eval-every is 0"),
        (ppo, ["--minibatches", "0"], "--minibatches is 0"),
        (ppo, ["--minibatches", "9999"], "--minibatches is 9999; expected at most 1024"),
        (ppo, ["--env", "SkipChain20x38-v0", "--num-envs", "1"], "--num-envs is 1; expected 2 or more"),
        (ppo, ["--env", "CartPole-v1"], "CartPole-v1 is not an environment of this project"),
        (a2c, ["--width", "0"], "--width is 0"),
        (dqn, ["--episodes", "0"], "--episodes is 0"),
        (dqn, ["--buffer", str(10**13)], f"--buffer is {10**13}, more than memory holds: Unable to allocate"),
        (dqn, ["--buffer", str(10**19)], f"--buffer is {10**19}, more than memory holds"),
        (oracle, ["--batch-size", "0"], "--batch-size is 0"),
        (reinforce, ["--routes", "1"], "leave-one-out needs --routes 2"),
        (reinforce, ["--batch-size", "260"], "asks for 65 images per step; rendered-digits has 64"),
        (gumbel, ["--lr", "-0.01"], "--lr is -0.01; expected 0 or more"),
        (gumbel, ["--lr", "inf"], "--lr is inf; expected a finite number"),
        (gumbel, ["--penalty", "-3"], "--penalty is -3.0"),
        (act, ["--tau", "-1"], "--tau is -1.0; expected 0 or more"),
        (act, ["--iterations", "0"], "--iterations is 0, so that no step trains the policy"),
        (
            blockdrop,
            ["--curriculum", "0", "--joint", "0"],
            "--curriculum and --joint are 0, so that no",
        ),
        (blockdrop, ["--batch-size", "0"], "--batch-size is 0"),
        (static, ["--eval-images", "-3"], "--eval-images is -3"),
        (reinforce, ["--baseline", "value"], "unknown baseline 'value'"),
        (reinforce, ["--routes", "3"], "not a multiple of --routes 3"),
        (reinforce, ["--gate", "rrn"], "did you mean 'rnn'"),
        (gumbel, ["--target", "1.5"], "--target is 1.5"),
        (gumbel, ["--target-of", "blocks"], "did you mean 'block'"),
        (blockdrop, ["--bound", "0.3"], "--bound is 0.3"),
        (blockdrop, ["--policy-depth", "9", "--batch-size", "8"], "depth 9 is not 6n+2"),
        (static, ["--rates", "1.5"], "rate is 1.5"),
    ],
)
def test_bad_flags_end_in_one_line_and_code_2(module, flags, message, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    small = ["--env", "SkipResNet20-v0", "--dataset", "rendered-digits", "--run-dir", str(folder)]
    monkeypatch.setattr(sys, "argv", ["agent", *small, *flags])
    main = {static: static.evaluate_all, oracle: oracle.find_routes}.get(module) or module.train
    with pytest.raises(SystemExit) as stop:
        main_with_named_errors(module.Args, main)
    error = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2
    assert message in error[-1] and error[-1].startswith("error: ")
    assert not folder.exists()


@pytest.mark.parametrize("name", ["PPO", slow("RecurrentPPO"), "DQN"])
def test_stable_baselines_resumes_from_its_weights(name, tmp_path, monkeypatch):
    """Weights, optimizer and count of episodes are kept; the rollout or replay memory starts empty."""
    module, flags = LEARNERS[name]
    args = module.Args(**SMALL, **{**flags, "episodes": 128}, run_dir=tmp_path / "run")
    save = Run.save

    def interrupted(self, state):
        save(self, state)
        if state["done"] == 64:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "save", interrupted)
        module.train(args)
    found = {"alpha": 1.0, "cost": "blocks", "shortcut": "projection"}  # as a run writes them
    settled = dataclasses.replace(args, resume=True, **found)
    saved = Run(tmp_path / "run", settled, resume=True).load()
    assert saved["done"] == 64 and saved["timesteps"] == 64 * 8
    started = {}

    def spied(self, *positional, **keywords):
        started.update(
            parameters=copy.deepcopy(self.get_parameters()), timesteps=self.num_timesteps, left=positional[0]
        )
        return learn(self, *positional, **keywords)

    owner = next(kind for kind in (RecurrentPPO, PPO, DQN) if kind.__name__ == name)
    learn = owner.learn
    monkeypatch.setattr(owner, "learn", spied)
    module.train(dataclasses.replace(args, resume=True))
    assert started["timesteps"] == 64 * 8 and started["left"] == 64 * 8
    for key, value in saved["parameters"]["policy"].items():
        assert torch.equal(started["parameters"]["policy"][key], value), key
    assert started["parameters"]["policy.optimizer"]["state"].keys() == (
        saved["parameters"]["policy.optimizer"]["state"].keys()
    )
    assert [line["step"] for line in lines(tmp_path / "run")] == [32, 64, 96, 128]


def test_a_resumed_run_states_the_command_that_started_it(tmp_path, monkeypatch):
    """Its flags need not be repeated, so that the last command would not make the network again."""
    words = shlex.split(
        "--env SkipResNet20-v0 --dataset rendered-digits --eval-images 16 --precision fp32 --iterations 4 "
        f"--batch-size 8 --eval-every 2 --run-dir {tmp_path / 'run'}"
    )
    save = Run.save

    def interrupted(self, state):
        save(self, state)
        raise KeyboardInterrupt

    def command(*given):
        monkeypatch.setattr(sys, "argv", ["reinforce", *given])
        reinforce.train(parse(reinforce.Args, given, reinforce.arguments(given)))

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "save", interrupted)
        command(*words)
    command("--resume", "--run-dir", str(tmp_path / "run"))
    made = f"python -m agents.reinforce {' '.join(words)}"
    assert json.loads((tmp_path / "run" / "result.json").read_text())["command"] == made
    file = tmp_path / "run" / "policy.safetensors"
    assert read_header(file)["command"] == made.partition(" --run-dir")[0]


@pytest.mark.parametrize("name", ["PPO", slow("A2C"), slow("DQN")])
def test_the_last_checkpoint_holds_the_last_update(name, tmp_path, csv_files):
    """Resuming a finished run changes nothing."""
    module, flags = LEARNERS[name]
    args = module.Args(**SMALL, **flags, run_dir=tmp_path / "run")
    whole = module.train(args)
    assert [file.closed for file in csv_files] == [True]
    policy = (tmp_path / "run" / "policy.safetensors").read_bytes()
    assert module.train(dataclasses.replace(args, resume=True))["policies"] == whole["policies"]
    assert (tmp_path / "run" / "policy.safetensors").read_bytes() == policy
    assert len(lines(tmp_path / "run")) == 2


def test_a_refused_command_leaves_no_run_folder(tmp_path):
    flags = {**SMALL, "batch_size": 8, "iterations": 1, "run_dir": tmp_path / "run"}
    with pytest.raises(ValueError, match="leave-one-out needs --routes 2"):
        reinforce.train(reinforce.Args(**flags, routes=1))
    assert reinforce.train(reinforce.Args(**flags, routes=2))["policies"]
    with pytest.raises(FileExistsError, match="holds a run; choose another folder"):
        static.evaluate_all(static.Args(**SMALL, run_dir=tmp_path / "run"))


def test_stable_baselines_trains_in_the_reported_precision():
    """The environment has the precision that the run reports."""
    for precision, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        env = training_env(setting.Setting.of(ppo.Args(**{**SMALL, "precision": precision})), 4)
        mdp = env.get_attr("lockstep")[0].mdp
        assert next(mdp.net.parameters()).dtype == kind
        assert env.reset().dtype == "float32"
