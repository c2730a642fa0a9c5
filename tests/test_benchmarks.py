"""The candidates of the benchmarks compute what they state, at a small size; nothing is timed."""

import json
import re
import weakref
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from toys import load_first, toy_chain

from agents import hybrid_reinforce, pretrain
from benchmarks import (
    ablation,
    chain_training,
    chains,
    checks,
    compiling,
    deferral,
    latency,
    measure,
    memory,
    operators,
    policies,
    scaling,
    soak,
    steps,
    throughput,
    training,
)
from skipnet_rl.chain import ChainMDP
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.policies import AlwaysExecute
from skipnet_rl.thresholds import tune

SMALL = {
    throughput: throughput.Options(depth=20, num_envs=4, precision="fp32"),
    training: training.Options(depth=20, batch_size=8, precision="fp32"),
}
TRAINED, PLAYED = ("published, fp32", "half, fp32", "all, fp32"), ("plain", "all", "half", "masked")


@pytest.mark.parametrize("module", SMALL, ids=lambda module: module.__name__)
def test_candidates_run(module):
    candidates = module.candidates(SMALL[module], torch.device("cpu"))
    assert len(candidates) > 2
    for run in candidates.values():
        run()


def test_masked_episodes_end_where_those_of_the_environment_do():
    env = throughput.make(SMALL[throughput], "cpu", array="torch")
    lockstep = env.lockstep
    images, labels = lockstep.images.batch(torch.from_numpy(lockstep.index))
    half = (
        torch.rand(lockstep.mdp.num_decisions, len(images), generator=torch.Generator().manual_seed(0)) < 0.5
    )
    assert (half.any(1) & ~half.all(1)).any()  # some block runs for some of the images
    plain = throughput.published(20, 10, "cpu")
    throughput.episode(env, half)
    for mdp in (plain, lockstep.mdp):
        logits = throughput.masked(mdp, images, labels, half.float())
        torch.testing.assert_close(logits, lockstep.logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("rate", "spread"), [(0.5, 0.1), (1.0, 0.0)])
def test_a_timed_step_executes_the_share_it_states(rate, spread):
    args = hybrid_reinforce.Args(batch_size=32, lr=0.0, gate_lr=0.0, precision="fp32")
    learner = training.learner(20, args, rate, torch.device("cpu"))
    data = training.load_images(training.DATASET, "train")
    episode = hybrid_reinforce.train_step(learner, data, 0, "hrl", args)
    assert episode.actions.shape == (32, 8)
    assert abs(episode.actions.float().mean().item() - rate) <= spread


def test_masking_computes_what_skipping_does(tiny_net, tiny_images):
    masked, skipping = training.Masked(tiny_net), RoutingMDP(tiny_net)
    state = skipping.initial(*tiny_images.batch(torch.arange(12)))
    for t in range(skipping.num_decisions):
        action = torch.arange(12) % (t + 2) == 0
        with torch.no_grad():
            mixed, state = masked.transition(state, action), skipping.transition(state, action)
        torch.testing.assert_close(mixed.x, state.x)
        assert mixed.t == state.t == t + 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", steps.LABELS)
def test_a_step_has_the_precision_it_is_labelled_with(monkeypatch, kind, precision):
    """Whichever of the two `auto` would be on this machine."""
    taken = []

    def train_step(learner, *rest):
        taken.append(learner.precision)
        return SimpleNamespace(loss=torch.ones(1))

    for agent in (pretrain, hybrid_reinforce):
        monkeypatch.setattr(agent, "train_step", train_step)
    steps.make(kind, 14, 8, precision, torch.device("cpu")).take()
    assert taken == [precision]


def test_the_device_that_is_timed_is_waited_for(monkeypatch):
    """And not the current one, which may be another GPU."""
    calls = []
    monkeypatch.setattr(torch.cuda, "synchronize", calls.append)
    measure.take_turns({"a": lambda: calls.append("a")}, 1, "cuda:1")
    assert calls == ["cuda:1", "a", "cuda:1"] * 2
    calls.clear()
    measure.take_turns({"a": lambda: calls.append("a")}, 1, "cuda:1", calls=3)
    assert calls == ["cuda:1", *"aaa", "cuda:1"] * 2


def test_candidates_take_turns_and_the_first_does_not_count(monkeypatch):
    """A first call takes 100 s; those of the second candidate take ten times as long as the first's."""
    clock, calls = [0.0], []
    durations = {"a": [100.0, 1.0, 2.0, 4.0], "b": [1000.0, 10.0, 20.0, 40.0]}

    def call(name):
        clock[0] += durations[name][calls.count(name)]
        calls.append(name)

    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])
    timings = measure.take_turns({name: partial(call, name) for name in durations}, 3)
    assert calls == ["a", "b"] * 4
    assert timings == {"a": measure.Timing.of([1, 2, 4]), "b": measure.Timing.of([10, 20, 40])}
    assert timings["a"] == measure.Timing(2.0, 1.5, 3.0)


def test_calls_of_a_turn_share_its_seconds(monkeypatch):
    clock = iter(range(0, 100, 6))  # each turn takes six seconds
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    assert measure.take_turns({"a": lambda: None}, 2, calls=4) == {"a": measure.Timing(1.5, 1.5, 1.5)}


def test_steps_of_training_are_timed_several_at_a_time_on_a_gpu(tmp_path, monkeypatch):
    """So that the launches of one step's kernels are not all that is timed."""
    asked = []

    def take_turns(candidates, repeats, device, calls):
        asked.append(calls)
        return dict.fromkeys(candidates, measure.Timing(1.0, 1.0, 1.0))

    monkeypatch.setattr(measure, "take_turns", take_turns)
    for module, names in ((training, TRAINED), (throughput, PLAYED)):
        monkeypatch.setattr(module, "candidates", lambda options, device, names=names: names)
        for kind in ("cpu", "cuda"):
            monkeypatch.setattr(measure, "pick_device", lambda name, kind=kind: torch.device(kind))
            module.main(module.Options(precision="fp32", out=tmp_path))
    assert asked == [1, measure.STEPS["cuda"], 1, 1]


PAGED = (throughput, training, scaling, compiling, latency, soak, chains)


def test_only_what_has_a_part_of_the_page_can_be_written_to_it():
    parts = set(re.findall(r"<!-- (?!end of)(\w+)", measure.PAGE.read_text(encoding="utf-8")))
    assert {module.__name__.rpartition(".")[2] for module in PAGED} == parts
    assert all(issubclass(module.Options, measure.Paged) for module in PAGED)


def test_a_flag_exists_only_where_it_acts():
    modules = (*PAGED, operators, memory, checks)
    for flag, without in (
        ("write", {operators, memory, checks}),
        ("repeats", {soak, memory, checks}),
        ("threads", {chains, memory, checks}),
    ):
        assert {module for module in modules if not hasattr(module.Options(), flag)} == without, flag


@pytest.mark.parametrize("module", PAGED, ids=lambda module: module.__name__)
def test_a_page_without_the_part_is_refused_before_anything_is_measured(module, tmp_path, monkeypatch):
    page = tmp_path / "benchmarks.md"
    page.write_text("<!-- other -->\n<!-- end of other -->\n")
    monkeypatch.setattr(measure, "PAGE", page)
    monkeypatch.setattr(measure, "DOCS", tmp_path)
    with pytest.raises(ValueError, match=r"benchmarks.md has no part between <!-- .* -->"):
        module.main(module.Options(device="cpu", write=True))
    assert list(tmp_path.iterdir()) == [page]


def test_a_result_is_written_beside_the_page_that_shows_it(tmp_path, monkeypatch):
    page, options = tmp_path / "benchmarks.md", measure.Paged(write=True)
    page.write_text("<!-- toy-cpu -->\nold\n<!-- end of toy-cpu -->\nrest")
    monkeypatch.setattr(measure, "PAGE", page)
    monkeypatch.setattr(measure, "DOCS", tmp_path)
    measure.publish("toy-cpu", {"n": 1}, "new\n", options)
    assert page.read_text() == "<!-- toy-cpu -->\nnew\n<!-- end of toy-cpu -->\nrest"
    assert json.loads((tmp_path / "benchmarks" / "toy-cpu.json").read_text())["n"] == 1
    with pytest.raises(ValueError, match="has no part"):
        measure.publish("toy-cuda", {"n": 2}, "new\n", options)
    assert not (tmp_path / "benchmarks" / "toy-cuda.json").exists()


BY_DEVICE = (throughput, training, scaling, compiling, soak)


@pytest.mark.parametrize("module", BY_DEVICE, ids=lambda module: module.__name__)
def test_a_gpu_does_not_replace_the_part_of_the_cpu(module, monkeypatch):
    """The page has none for a GPU, which is said before anything is measured."""
    monkeypatch.setattr(measure, "pick_device", lambda name: torch.device("cuda"))
    with pytest.raises(ValueError, match="has no part between <!-- .*-cuda -->"):
        module.main(module.Options(device="cuda", write=True))


def test_scaling_names_its_files_by_the_device(tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "memory", lambda options, device: {})  # of processes of its own
    sizes = {"depth": 14, "depths": (14,), "batch": 2, "batches": (1,), "repeats": 1}
    found = scaling.main(scaling.Options(device="cpu", precision="fp32", out=tmp_path, **sizes))
    assert {case["batch"] for case in found["cases"].values()} == {1, 2}
    assert {path.name for path in tmp_path.iterdir()} == {"scaling-cpu.json", "scaling-cpu.png"}


def test_what_environments_share_does_not_count_into_the_next_peak(monkeypatch):
    """On a GPU, where all cases run in one process; the counters of a GPU are left out here."""
    kept, known = [], []

    def run(case):
        known.append([each() is None for each in kept])
        env = gym.make_vec("SkipResNet14-v0", 2, dataset="rendered-digits", weights=None, device="cpu")
        lockstep = env.unwrapped.lockstep
        kept.extend(weakref.ref(each) for each in (lockstep.mdp.net, lockstep.images.images))

    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *device: None)
    for name in ("memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 0)
    monkeypatch.setattr(memory.Case, "run", run)
    for _ in range(2):
        memory.peak(memory.Case("environment", 14, 2, device="cuda"))
    assert known == [[], [True, True]]


@pytest.mark.parametrize(("part", "units"), [(soak.environment, 10), (soak.training, 3)])
def test_the_soak_test_watches_units_of_work(part, units):
    """160 steps of two environments with eight decisions are ten episodes; nothing is left open."""
    found = part(soak.Options(steps=160, iterations=3, num_envs=2, device="cpu"))
    assert (found["units"], found["files"]) == (units, 0) and found["mib"] > 0


@pytest.mark.slow
def test_a_soak_sees_memory_that_is_kept():
    kept = []
    found = soak.watch(lambda: kept.append(np.ones(2**20)), 20)  # 8 MiB
    assert found["growth"] > soak.GROWTH and found["files"] == found["threads"] == 0


@pytest.mark.slow
def test_a_soak_sees_files_and_threads_that_are_left_open(tmp_path):
    with ExitStack() as kept:
        found = soak.watch(lambda: kept.enter_context((tmp_path / "file").open("w")), 10)
        assert (found["files"], found["threads"]) == (9, 0)  # the first reading is after the first unit
        stop = Event()
        kept.callback(stop.set)
        found = soak.watch(lambda: Thread(target=stop.wait).start(), 10)
        assert (found["files"], found["threads"]) == (0, 9)


@pytest.mark.parametrize(
    ("grown", "fails"),
    [
        ({}, False),
        ({"growth": 0.01}, False),
        ({"growth": 0.03}, True),
        ({"files": 1}, True),
        ({"threads": 1}, True),
    ],
)
@pytest.mark.parametrize("part", ["environment", "training"])
def test_the_soak_test_fails_if_something_has_grown(tmp_path, monkeypatch, part, grown, fails):
    still = {"units": 100, "mib": 500.0, "growth": 0.0, "files": 0, "threads": 0}
    for name in ("environment", "training"):
        use = {**still, **grown} if name == part else still
        monkeypatch.setattr(soak, name, lambda options, use=use: use)
    with pytest.raises(SystemExit, match="memory grew by more than 2%") if fails else nullcontext():
        soak.main(soak.Options(device="cpu", out=tmp_path))
    assert (tmp_path / "soak-cpu.json").is_file()


WORDS = ["--env", "SkipChain-v0", "--dataset", "rendered-digits", "--weights", "none", "--device", "cpu"]


def test_a_comparison_is_written_under_runs_by_data_set(monkeypatch):
    """And not over the one that is shipped."""
    found = []
    monkeypatch.setattr(policies.jobs, "run", lambda sweep, pool: [])  # nothing has failed
    monkeypatch.setattr(policies.compare, "main", lambda args: found.append(args.out))
    for dataset in ("cifar10", "rendered-digits"):
        policies.main(policies.Options(dataset=dataset, jobs=1))
    policies.main(policies.Options(jobs=1, out=Path("here")))
    assert found == [Path("runs/comparison-cifar10"), Path("runs/comparison-rendered-digits"), Path("here")]


@pytest.fixture
def short(few_images, monkeypatch):
    """A few steps of `chain_training` over untrained networks."""
    flags = {"env": "SkipChain-v0", "dataset": "rendered-digits", "weights": "none", "device": "cpu"}
    known = hybrid_reinforce.arguments(WORDS)
    args = replace(known, **flags, iterations=2, tune_iterations=1, batch_size=8)
    monkeypatch.setattr(chain_training, "load_images", load_first(32))
    monkeypatch.setattr(hybrid_reinforce, "arguments", lambda words: args)
    return args


def test_a_chain_is_compared_with_itself_after_training(short, tmp_path):
    options = chain_training.Options(env="SkipChain-v0", budgets=(0.6,), seeds=1, out=tmp_path)
    found = chain_training.main(options)
    rows = {row["way"]: row for row in found["rows"]}
    assert list(rows) == ["frozen", "hybrid", "every image"]
    assert (found["steps"], found["batch_size"]) == (3, 8)
    assert [row.get("over_frozen") is None for row in rows.values()] == [True, False, False]
    assert (tmp_path / "chain_training.json").is_file()


def test_frozen_networks_stay_as_they_are_and_others_do_not(short):
    place = chain_training.Setting.of(short)
    start, ways = place.net.state_dict(), (chain_training.FROZEN, chain_training.HYBRID, chain_training.EVERY)
    found = [chain_training.trained(place, way).mdp.net.state_dict() for way in ways]
    changed = [any(not torch.equal(after[name], start[name]) for name in start) for after in found]
    assert changed == [False, True, True]
    assert any(not torch.equal(found[1][name], found[2][name]) for name in start)


def test_deferral_on_a_toy():
    """Half of the images are mended, and a tuned threshold asks about these alone."""
    chain, records = toy_chain()
    mdp = ChainMDP(chain)
    (tuned,) = tune(records, mdp.whole_macs, [0.7], weights=[0.0])
    (decision,) = deferral.decisions(mdp, tuned.policy(), records)
    assert decision["asked"] == decision["mended"] == 0.5
    assert decision["logit"]["auc"] == decision["margin"]["auc"] == 1.0
    (decision,) = deferral.decisions(mdp, AlwaysExecute(), records)
    assert decision["asked"] == 1.0 and decision["logit"]["auc"] == 0.5


def test_the_networks_of_the_ablation_are_where_the_images_are(tmp_path, monkeypatch):
    """On a device that is not the CPU."""
    places = []

    def noted(mdp, policy, images, **options):
        places.append((mdp.device.type, images.device.type))
        return SimpleNamespace(accuracy=0.0, returns=torch.zeros(1))

    def untrained(args, net, data):
        noted(RoutingMDP(net), None, data)
        return SimpleNamespace(mdp=RoutingMDP(net))

    monkeypatch.setattr(ablation, "pick_device", lambda name: torch.device("meta"))
    monkeypatch.setattr(ablation, "load_images", load_first(8))
    monkeypatch.setattr(ablation, "train", untrained)
    monkeypatch.setattr(ablation, "evaluate", noted)
    ablation.main(ablation.Options(seeds=0, out=tmp_path / "ablation.json"))
    assert places == [("meta", "meta")] * 3  # in the warm-up, then before and after it


def test_the_ablation_measures_anew_under_runs_by_data_set(tmp_path, monkeypatch):
    """It finds no seed in the file that is shipped."""
    done = SimpleNamespace(accuracy=0.0, returns=torch.zeros(1))
    figures = dict.fromkeys(("accuracy", "compute_blocks", "return", "unique_routes"), 1.0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ablation, "load_images", load_first(8))
    monkeypatch.setattr(ablation, "warmed_up", lambda data, options: None)
    monkeypatch.setattr(ablation, "RoutingMDP", lambda *args: None)
    monkeypatch.setattr(ablation, "evaluate", lambda *args, **options: done)
    monkeypatch.setattr(ablation, "run", lambda *args: figures)
    ablation.main(ablation.Options(seeds=2, only=("reference",), device="cpu"))
    found = json.loads((tmp_path / "runs" / "ablation-rendered-digits.json").read_text())
    assert found["variants"] == {"reference": {"0": figures, "1": figures}}


@pytest.mark.parametrize(
    ("benchmark", "near", "message"),
    [
        (ablation, "soft sp", "unknown variant 'soft sp'; did you mean 'soft SP'?"),
        (policies, "pppo", "unknown agent 'pppo'; did you mean 'ppo'?"),
    ],
    ids=["ablation", "policies"],
)
def test_an_unknown_name_is_refused_before_anything_is_trained(benchmark, near, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        benchmark.main(benchmark.Options(only=(near,)))
