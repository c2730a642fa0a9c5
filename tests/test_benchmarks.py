"""The candidates of the benchmarks run, at a small size; nothing is timed."""

import pytest
import torch
from toys import load_first

from benchmarks import chain_training, soak, throughput, training

SMALL = {
    throughput: throughput.Options(depth=20, num_envs=4, precision="fp32"),
    training: training.Options(depth=20, batch_size=8, precision="fp32"),
}


@pytest.mark.parametrize("module", SMALL, ids=lambda module: module.__name__)
def test_candidates_run(module):
    candidates = module.candidates(SMALL[module], torch.device("cpu"))
    assert len(candidates) > 2
    for run in candidates.values():
        run()


@pytest.mark.parametrize("part", [soak.environment, soak.training])
def test_soak_measures_growth(part):
    found = part(soak.Options(steps=160, iterations=3, num_envs=2))
    assert abs(found["growth"]) < 1 and {"files", "threads"} <= found.keys()


def test_chains_are_trained_in_three_ways(few_images, tmp_path, monkeypatch):
    options = chain_training.Options(env="SkipChain-v0", budgets=(0.6,), seeds=1, out=tmp_path)
    short = {"iterations": 2, "tune_iterations": 1, "batch_size": 8, "dataset": "rendered-digits"}
    known = chain_training.arguments
    monkeypatch.setattr(chain_training, "load_images", load_first(32))
    monkeypatch.setattr(
        chain_training,
        "arguments",
        lambda words: chain_training.replace(known(words), **short, weights="none", device="cpu"),
    )
    found = chain_training.main(options)
    rows = {row["way"]: row for row in found["rows"]}
    assert list(rows) == ["frozen", "hybrid", "every image"]
    assert found["images_per_run"] == 3 * 8
    assert all(0.32 <= row["compute_flops"] <= 1.32 for row in rows.values())
    assert [row.get("over_frozen") is None for row in rows.values()] == [True, False, False]
    assert (tmp_path / "chain_training.json").is_file()
