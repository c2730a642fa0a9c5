"""Shipped chains are rows of what agents.cascade found."""

import json
from pathlib import Path

import pytest

from scripts import ship_chains
from skipnet_rl.catalogue import FOLDER, find
from skipnet_rl.weights import open_weights

RESULTS = Path(__file__).parent.parent / ship_chains.Options().results


@pytest.mark.parametrize("dataset, count", [("cifar10", 5), ("cifar100", 1)])
def test_they_are_written_from_the_rows(dataset, count, tmp_path, monkeypatch):
    """And are those of the package; those of another data set stay."""
    names = ship_chains.shipped_for(dataset)
    others = [
        {"name": name} for name in ("other", *(each for each in ship_chains.SHIPPED if each not in names))
    ]
    monkeypatch.setattr(ship_chains, "FOLDER", tmp_path)
    monkeypatch.setattr(ship_chains, "index", lambda: [*others, {"name": names[0]}])
    results = RESULTS.parent.with_name(f"results-{dataset}") / RESULTS.name
    entries = ship_chains.main(ship_chains.Options(results))
    assert len(entries) == count
    assert json.loads((tmp_path / "index.json").read_text()) == [*others, *entries]
    found = json.loads(results.read_text())
    for entry in entries:
        name = entry["name"]
        assert find(name) == entry
        assert (tmp_path / entry["file"]).read_bytes() == (FOLDER / entry["file"]).read_bytes()
        row, opened = ship_chains.row_of(name, found), open_weights(name)
        assert opened.policy.thresholds.tolist() == [2 * each for each in row["thresholds"]]  # temperature 2
        assert opened.network.mix.tolist() == row["mix"]
        assert entry["test_accuracy"] == row["accuracy"] and entry["after"] == row["networks"]


def test_a_row_that_is_missing_is_an_error(tmp_path):
    found = json.loads(RESULTS.read_text())
    found["rows"] = [row for row in found["rows"] if row["budget"] != 0.2]
    (tmp_path / "chains.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match="no row of SkipChain14x38x110-v0 at budget 0.2"):
        ship_chains.main(ship_chains.Options(tmp_path / "chains.json"))


def test_networks_that_are_not_shipped_are_refused():
    found = json.loads(RESULTS.read_text())
    for row in found["rows"]:
        row["networks"] = ["resnet14-cifar10-distilled", "resnet8-mine"]
    with pytest.raises(ValueError, match="resnet8-mine is not a shipped network"):
        ship_chains.entry_of("chain14x38x110-cifar10", found)
