"""Chains are timed in turns with the plain networks, image by image."""

import pytest

from benchmarks import chains
from skipnet_rl.data import load_images


class Session:
    """Answers class 0, and keeps the order of the calls."""

    def __init__(self, name, calls):
        self.name, self.calls = name, calls

    def run(self, outputs, feed):
        import numpy as np

        self.calls.append((self.name, float(feed["images"].sum())))
        return [np.eye(10)[:1]]


def test_every_image_takes_its_turn_in_every_model(monkeypatch):
    calls = []
    monkeypatch.setattr(chains, "onnx_session", lambda path, threads: Session(path, calls))
    monkeypatch.setattr(chains, "WARM_UP", 2)
    images = load_images("rendered-digits", "test").first(5)
    found = chains.turns({"a": "a", "b": "b"}, 1, images, 2)
    assert [name for name, _ in calls] == ["a", "b"] * 12  # two images to warm up, then five, twice
    shown = [total for name, total in calls if name == "a"]
    assert shown == [total for name, total in calls if name == "b"]
    assert len(set(shown)) == 5 and shown[:2] == shown[2:4] and shown[2:7] == shown[7:]
    for each in found.values():
        assert 0 < each["median"] <= each["p95"] and each["cpu"] >= 0
        assert each["right"] == pytest.approx((images.labels == 0).double().mean().item())


def test_the_aim_is_met_by_a_chain_that_is_as_accurate():
    names = (chains.REFERENCE, "chain-a", "chain-b", "chain-c")
    accuracy = dict(zip(names, (0.93, 0.92, 0.94, 0.95), strict=True))
    timings = {
        name: {"mean": mean, "median": mean, "p95": 2 * mean, "cpu": mean}
        for name, mean in zip(names, (0.01, 0.001, 0.003, 0.005), strict=True)
    }
    text = chains.table({"threads": {"1": timings, "2": timings}, "accuracy": accuracy, "load": 0.5})
    assert text.count("| chain-b | 94.00 % | 3.00 | 3.00 | 6.00 | 0.30 | 0.30 |") == 2
    assert "one thread. Reached: 0.30 (chain-b)" in text and "2 CPU threads" in text
