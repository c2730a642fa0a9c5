"""Single images are timed at the stated share of executed blocks."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks import latency
from skipnet_rl.data import load_images
from skipnet_rl.gates import RecurrentGate
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.rollout import rollout


@pytest.fixture
def gated(tiny_net):
    """A process of eight decisions, a gate whose log-odds differ from block to block, and an image."""
    torch.manual_seed(1)
    gate = RecurrentGate(tiny_net).eval()
    nn.init.normal_(gate.head.weight, std=3.0)
    image, _ = load_images("rendered-digits", "test").first(1).batch(torch.arange(1))
    return RoutingMDP(tiny_net), gate, image


@pytest.mark.parametrize(("log_odds", "count"), [(5.0, 8), (-5.0, 0)])
def test_executed_blocks_are_counted(gated, log_odds, count):
    mdp, gate, image = gated
    nn.init.zeros_(gate.head.weight)
    nn.init.constant_(gate.head.bias, log_odds)
    assert latency.executed(mdp, gate, image) == count


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_a_bias_brings_the_gate_to_the_stated_share(gated, rate):
    mdp, gate, image = gated
    before = {name: value.clone() for name, value in gate.state_dict().items()}
    biased = latency.at_rate(mdp, gate, image, rate)
    with torch.no_grad():
        assert rollout(mdp, biased, image, torch.zeros(1).long()).actions.sum() == 8 * rate
    changed = {name for name, value in biased.state_dict().items() if not torch.equal(value, before[name])}
    assert changed <= {"head.bias"}
    assert all(torch.equal(value, before[name]) for name, value in gate.state_dict().items())


@pytest.mark.slow
def test_the_candidates_answer_alike_in_both_runtimes(gated, tmp_path, monkeypatch):
    """The plain network, a shallower one, and the gated one with half of its blocks executed."""
    pytest.importorskip("onnxruntime")
    mdp, gate, _ = gated
    opened = SimpleNamespace(mdp=lambda: mdp, policy=gate)
    monkeypatch.setattr(latency, "open_weights", lambda name: opened)
    monkeypatch.setattr(latency, "RATES", (0.5,))
    monkeypatch.setattr(latency, "SHALLOWER", (14,))
    with torch.no_grad():
        runs, counts = latency.candidates(tmp_path, threads=1)
        names = ("plain", "ResNet-14", *counts)
        assert counts == {"50%": 4}
        assert set(runs) == {f"{runtime}: {name}" for runtime in latency.RUNTIMES for name in names}
        for name in names:
            played = runs[f"PyTorch: {name}"]()
            logits, *_ = runs[f"onnxruntime: {name}"]()
            wanted = played.logits if name in counts else played
            torch.testing.assert_close(torch.from_numpy(logits), wanted, rtol=1e-3, atol=1e-3)
