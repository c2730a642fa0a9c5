"""agents.compare: seeds averaged, random skipping beside its policy, stored routes played again."""

import csv
import json
import math
import sys

import pytest
from toys import load_first

from agents import compare, hybrid_reinforce, oracle, ppo, pretrain, static
from agents.common import setting
from agents.common.cli import main_with_named_errors
from agents.common.entries import collect, wider_interval
from agents.common.finished import FinishedRun
from agents.common.tables import comparison
from skipnet_rl.statistics import wilson_interval


def row(name, accuracy, blocks=0.5, **more):
    return {
        "name": name,
        "accuracy": accuracy,
        "accuracy_ci95": 0.01,
        "loss": 0.3,
        "return": -0.1,
        "compute_blocks": blocks,
        "compute_flops": blocks,
        "compute_flops_std": 0.02,
        "executed_blocks_mean": 4.0,
        "executed_blocks_std": 1.0,
        "unique_routes": 3,
        "execution_rate": [accuracy, 0.5],
        **more,
    }


def run(tmp_path, agent, seed, rows, env="SkipResNet20-v0", **flags):
    """A finished run with made-up numbers."""
    result = {
        "env": env,
        "agent": agent,
        "dataset": "cifar10",
        "split": "test",
        "n_images": 10_000,
        "alpha": 1.0,
        "seed": seed,
        "wall_time_s": 60.0,
        "command": f"python -m agents.{agent}",
        "policies": rows,
    }
    if agent == "static":
        result["greedy_order"] = [0, 1]
    return FinishedRun(tmp_path, {"seed": seed, "weights": "auto", **flags}, result)


def seeds(tmp_path, agent, accuracies, random, **flags):
    runs = []
    for seed, (accuracy, other) in enumerate(zip(accuracies, random, strict=True)):
        rows = [row("all blocks", 0.9, 1.0), row("random", other), row("PPO", accuracy)]
        runs.append(run(tmp_path, agent, seed, rows, **flags))
    return runs


def test_seeds_are_one_row_with_students_interval(tmp_path):
    entries = collect(seeds(tmp_path, "ppo", [0.80, 0.82, 0.84], [0.6, 0.6, 0.6]))
    plain, learned = (entry.summary() for entry in entries)
    assert (plain["name"], plain["n"], plain["accuracy"]) == ("all blocks", 1, 0.9)
    assert "beats_random" not in plain and math.isnan(plain["accuracy_seeds_ci95"])
    assert (learned["name"], learned["n"]) == ("PPO", 3)
    assert (learned["wall_times_s"], learned["wall_time_s"]) == ([60.0] * 3, 60.0)
    assert learned["accuracy"] == pytest.approx(0.82)
    # deviation 0.02, t(0.975; 2) = 4.302653: 4.302653 · 0.02 / √3
    assert learned["accuracy_seeds_ci95"] == pytest.approx(0.0496828, rel=1e-5)
    assert learned["accuracy_ci95"] == list(wilson_interval(8_200, 10_000))  # the rows' own is not read
    assert learned["execution_rate"] == pytest.approx([0.82, 0.5])
    assert learned["random_accuracy"] == pytest.approx(0.6)
    assert learned["random_gain"] == pytest.approx(0.22)
    assert learned["random_gain_seeds_ci95"] == pytest.approx(0.0496828, rel=1e-5)


@pytest.mark.parametrize(
    ("key", "value"),
    [("split", 1), ("n_images", 0), ("alpha", "1"), ("seed", [1]), ("wall_time_s", None), ("command", None)],
)
def test_a_run_without_a_number_of_the_table_is_damaged(tmp_path, key, value):
    (one,) = seeds(tmp_path, "ppo", [0.8], [0.6])
    one.result[key] = value
    with pytest.raises(ValueError, match=f"result.json is damaged: no run writes its {key}$"):
        collect([one])
    del one.result[key]
    with pytest.raises(ValueError, match=f"result.json is damaged: it lacks {key}$"):
        collect([one])


@pytest.mark.parametrize("key", ["accuracy", "return", "compute_flops_std", "execution_rate"])
def test_a_row_without_a_number_of_the_table_is_damaged(tmp_path, key):
    (one,) = seeds(tmp_path, "ppo", [0.8], [0.6])
    last = one.result["policies"][-1]
    last[key] = ["much"]
    with pytest.raises(ValueError, match=f"result.json is damaged: no run writes its {key}$"):
        collect([one])
    del last[key]
    with pytest.raises(ValueError, match=f"result.json is damaged: it lacks {key}$"):
        collect([one])


def test_verifying_takes_what_it_compares(tmp_path):
    (one,) = seeds(tmp_path, "ppo", [0.8], [0.6])
    with pytest.raises(ValueError, match=r"result.json is damaged: it lacks precision$"):
        compare.verify(one, None, "cpu")
    one.result["precision"] = "fp32"
    with pytest.raises(ValueError, match=r"result.json is damaged: it lacks policy_flops$"):
        compare.verify(one, None, "cpu")


def test_each_seed_is_compared_with_random_skipping_at_its_rate(tmp_path):
    """Wilson intervals over 10,000 images: 0.7920 is above 0.7880 with certainty, not above 0.7979."""

    def wins(accuracies, random):
        return collect(seeds(tmp_path, "ppo", accuracies, random))[1].summary()["beats_random"]

    assert wins([0.80], [0.78]) == 1
    assert wins([0.80], [0.79]) == 0
    assert wins([0.80, 0.90, 0.70], [0.78, 0.88, 0.68]) == 3  # however far the seeds lie apart
    assert wins([0.80, 0.90, 0.70], [0.79, 0.80, 0.71]) == 1


def test_few_correct_images_are_not_significant(tmp_path):
    """5 of 5 against 2 of 5: the normal approximation has no width at 1, Wilson's goes down to 0.57."""
    (one,) = seeds(tmp_path, "ppo", [1.0], [0.4])
    one.result["n_images"] = 5
    learned = collect([one])[1].summary()
    assert learned["beats_random"] == 0
    assert wider_interval(learned) == wilson_interval(5, 5)
    assert wider_interval({**learned, "accuracy_seeds_ci95": 0.3}) == pytest.approx((0.7, 1.3))


def test_random_skipping_uses_its_better_weights(tmp_path):
    rows = [row("random", 0.5), row("random, Gumbel weights", 0.7), row("Gumbel", 0.8)]
    (entry,) = collect([run(tmp_path, "gumbel", 0, rows)])
    assert entry.random == (0.7,)


def test_a_policy_that_skips_nothing_is_not_compared(tmp_path):
    (entry,) = collect([run(tmp_path, "a2c", 0, [row("random", 0.9, 1.0), row("A2C", 0.9, 1.0)])])
    assert entry.summary()["beats_random"] is None
    assert "skips nothing" in comparison("title", [entry.summary()])


def test_other_flags_are_separate_rows(tmp_path):
    runs = seeds(tmp_path, "ppo", [0.8, 0.8], [0.6, 0.6], alpha=1.0) + seeds(
        tmp_path, "ppo", [0.7], [0.5], alpha=3.0
    )
    names = {entry.name: len(entry.rows) for entry in collect(runs)}
    assert names == {"all blocks": 1, "PPO alpha=1.0": 2, "PPO alpha=3.0": 1}


def test_seeds_from_before_a_flag_go_with_later_ones(tmp_path):
    older = run(tmp_path / "older", "gumbel", 0, [row("Gumbel", 0.8)])
    later = [
        run(tmp_path / f"{each}", "gumbel", 1, [row("Gumbel", 0.8)], compile=each) for each in (False, True)
    ]
    for each in (older, *later):
        each.folder.mkdir()
        (each.folder / "args.json").write_text(json.dumps(each.args))
        (each.folder / "result.json").write_text(json.dumps(each.result))
    found = collect([FinishedRun.read(each.folder) for each in (older, *later)])
    names = {entry.name: len(entry.rows) for entry in found}
    assert names == {"Gumbel compile=False": 2, "Gumbel compile=True": 1}


def test_found_values_are_rounded_where_that_tells_the_rows_apart(tmp_path):
    """As in the folders' names of a search."""

    def named(*rates):
        runs = [
            seeds(tmp_path / f"{len(rates)}-{rate}", "ppo", [0.8], [0.6], alpha=1.0, lr=rate)[0]
            for rate in rates
        ]
        return [entry.name for entry in collect(runs)][1:]

    assert named(0.001605191133358, 0.02) == ["PPO lr=0.00161", "PPO lr=0.02"]
    close = ["PPO lr=0.001605191133358", "PPO lr=0.00160519"]
    assert named(0.001605191133358, 0.00160519, 0.3) == [*close, "PPO lr=0.3"]


def test_curves_over_alpha_join_what_differs_in_nothing_else(tmp_path):
    """Two alphas of the same flags are a curve; a third run with another gate stands alone."""
    runs = [
        *seeds(tmp_path, "ppo", [0.8, 0.81], [0.6, 0.6], alpha=1.0, width=64),
        *seeds(tmp_path, "ppo", [0.7], [0.5], alpha=3.0, width=64),
        *seeds(tmp_path, "ppo", [0.6], [0.5], alpha=1.0, width=32),
    ]
    found = compare.by_alpha([entry for entry in collect(runs) if entry.random])
    assert sorted(result["policies"][-1]["accuracy"] for result in found) == [0.7, 0.8, 0.81]


def test_incomparable_runs_are_refused(tmp_path):
    runs = seeds(tmp_path, "ppo", [0.8], [0.6]) + [
        run(tmp_path, "ppo", 0, [row("PPO", 0.9)], "SkipResNet32-v0")
    ]
    with pytest.raises(ValueError, match="differ in env: SkipResNet20-v0, SkipResNet32-v0"):
        collect(runs)


def test_a_run_without_a_new_flag_has_its_default(tmp_path):
    runs = [
        *seeds(tmp_path, "ppo", [0.8], [0.6]),
        *seeds(tmp_path, "ppo", [0.5, 0.9], [0.6, 0.6], new=None)[1:],
    ]
    _, entry = collect(runs)
    assert entry.summary()["seeds"] == [0, 1] and entry.summary()["accuracy"] == pytest.approx(0.85)


def test_the_bound_is_marked(tmp_path):
    rows = [row("random", 0.3), row("oracle (bound)", 0.99)]
    (entry,) = collect([run(tmp_path, "oracle", 0, rows)])
    assert entry.summary()["bound"]
    assert r"oracle (bound) \* |" in comparison("title", [entry.summary()])


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Four small runs: two kinds of learner, static policies, the bound."""
    folder = tmp_path_factory.mktemp("runs")
    small = {
        "env": "SkipResNet20-v0",
        "dataset": "rendered-digits",
        "eval_images": 16,
        "test_images": 40,
        "precision": "fp32",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setting, "load_images", load_first(48))
        hybrid_reinforce.train(
            hybrid_reinforce.Args(
                **small,
                sp_iterations=1,
                iterations=2,
                tune_iterations=1,
                batch_size=8,
                alpha=30.0,
                gate_lr=1.0,
                run_dir=folder / "hybrid",
            )
        )
        ppo.train(ppo.Args(**small, episodes=64, num_envs=32, run_dir=folder / "ppo"))
        static.evaluate_all(static.Args(**small, points=2, rates=(0.5,), run_dir=folder / "static"))
        oracle.find_routes(oracle.Args(**small, run_dir=folder / "oracle"))
        plain = {"depth": 20, "dataset": "rendered-digits", "test_images": 40, "precision": "fp32"}
        pretrain.train(pretrain.Args(**plain, epochs=1, batch_size=16, run_dir=folder / "pretrain"))
    return folder


def test_verify_reproduces_stored_results(real, monkeypatch, capsys):
    monkeypatch.setattr(compare, "load_images", load_first(48))
    runs = tuple(sorted(real.iterdir()))
    assert {FinishedRun.read(run).result["n_images"] for run in runs} == {40}  # of the 48 there are
    compare.main(compare.Args(runs=runs, verify=True))  # rows: 5 + 3 + 7 + 3 + 1
    assert "verified: 19 rows of 5 runs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("agent", "lowered"),
    [
        ("hybrid", ["compute_flops"]),
        ("ppo", ["compute_flops", "policy_flops"]),
        ("oracle", ["unique_routes"]),
    ],
)
def test_verify_finds_wrong_results(real, agent, lowered, tmp_path, monkeypatch, capsys):
    """Includes the policy's own cost if it was left out of the total."""
    monkeypatch.setattr(compare, "load_images", load_first(48))
    claimed = tmp_path / "claimed"
    claimed.mkdir()
    for file in (real / agent).iterdir():
        if file.is_file():
            (claimed / file.name).write_bytes(file.read_bytes())
    result = json.loads((claimed / "result.json").read_text())
    for key in lowered:
        result["policies"][-1][key] -= 0.01 if "flops" in key else 1
    (claimed / "result.json").write_text(json.dumps(result))
    monkeypatch.setattr(sys, "argv", ["compare", str(claimed), "--verify"])
    with pytest.raises(SystemExit) as stop:
        main_with_named_errors(compare.Args, compare.main)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert all(f"{result['policies'][-1]['name']}: {key} is" in said for key in lowered)


def test_table_and_pictures_are_written(real, tmp_path):
    rows = compare.main(compare.Args(runs=tuple(sorted(real.iterdir())), out=tmp_path))
    stored = json.loads((tmp_path / "comparison.json").read_text())["policies"]
    assert [one["name"] for one in stored] == [one["name"] for one in rows]
    with (tmp_path / "comparison.csv").open() as file:
        assert [float(line["accuracy"]) for line in csv.DictReader(file)] == [one["accuracy"] for one in rows]
    text = (tmp_path / "comparison.md").read_text()
    assert text.count("\n| ") == len(rows) + 2  # and the header with its rule
    for name in ("frontier", "frontier_top", "computation_reduction", "skipped_layers"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_no_runs_is_a_one_line_error(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["compare", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        main_with_named_errors(compare.Args, compare.main)
    assert stop.value.code == 2 and "no run in" in capsys.readouterr().err


def test_pretrained_networks_are_separate_rows(tmp_path):
    """A pretrained network is the result of its run; as the start of other runs it is listed once."""
    plain = [
        run(tmp_path / str(seed), "pretrain", seed, [row("all blocks", accuracy, 1.0)], weights=None, lr=lr)
        for seed, accuracy, lr in ((0, 0.90, 0.1), (1, 0.92, 0.1), (0, 0.80, 0.2))
    ]
    entries = [entry.summary() for entry in collect(plain)]
    assert [(entry["name"], entry["n"]) for entry in entries] == [
        ("all blocks lr=0.1", 2),
        ("all blocks lr=0.2", 1),
    ]
    assert entries[0]["accuracy"] == pytest.approx(0.91)


def test_one_run_twice_is_not_two_seeds(tmp_path):
    (one,) = seeds(tmp_path, "ppo", [0.8], [0.6])
    with pytest.raises(ValueError, match="differ in nothing, not even the seed"):
        collect([one, one])


def test_images_of_the_greedy_choice_distinguish_runs(tmp_path):
    """Only for static runs: for others this flag is just the size of a validation."""
    for agent, random, seeds_of_each in (("static", "random 50%", [1, 1, 1, 1]), ("ppo", "random", [2])):
        rows = [row(random, 0.5), row("PPO", 0.8)]
        runs = [run(tmp_path, agent, seed, rows, eval_images=20 * (seed + 1)) for seed in (0, 1)]
        assert [entry.summary()["n"] for entry in collect(runs)] == seeds_of_each
