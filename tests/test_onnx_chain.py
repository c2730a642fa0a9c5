"""An exported chain gives PyTorch's answers by PyTorch's decisions, and runs no network that is not asked."""

import pytest
import torch
from test_mdp import lively_net
from test_onnx import undecided

from skipnet_rl.belief import BeliefGate, Threshold, margin
from skipnet_rl.chain import Chain, ChainMDP
from skipnet_rl.data import load_images
from skipnet_rl.member import Member
from skipnet_rl.onnx import compare_with_torch, export_onnx, onnx_session
from skipnet_rl.rollout import rollout

pytest.importorskip("onnx", reason="needs the extra: pip install -e '.[export]'")


def plain(depth: int = 8, temperature: float = 1.0) -> Member:
    return Member(lively_net(depth).float(), temperature=temperature)


def gated() -> Member:
    mdp, gate = undecided("rnn", "projection")
    return Member(mdp.net, gate)


def half_asked(*members: Member) -> tuple[ChainMDP, Threshold]:
    """A chain whose thresholds are medians: each decision differs between images."""
    mdp, images = ChainMDP(Chain(members, 0.3)), load_images("rendered-digits", "val").first(64)
    state, thresholds = mdp.initial(*images.batch(torch.arange(64))), []
    with torch.no_grad():
        for _ in members[1:]:
            thresholds.append(margin(state.answer).median().item())
            state = mdp.transition(state, torch.ones(64, dtype=torch.bool))
    return mdp, Threshold(thresholds)


@pytest.mark.parametrize(
    "members, batched",
    [
        ([plain, plain], False),
        pytest.param([gated, plain, plain], False, marks=pytest.mark.slow),
        pytest.param([plain, gated], False, marks=pytest.mark.slow),
        ([gated, plain], True),
        pytest.param([plain, gated, plain], True, marks=pytest.mark.slow),
    ],
)
def test_answers_and_decisions_are_those_of_pytorch(members, batched, tmp_path):
    mdp, policy = half_asked(*(make() for make in members))
    images = load_images("rendered-digits", "test").first(80)
    with torch.no_grad():
        routes = rollout(mdp, policy, *images.batch(torch.arange(80))).actions
    assert len(routes.unique(dim=0)) >= 2  # or the test would not see a decision
    export_onnx(mdp, policy, tmp_path / "model.onnx", batched)
    found = compare_with_torch(tmp_path / "model.onnx", mdp, policy, images)
    assert found.images == found.same_routes == 80
    assert found.logits < 1e-5


def test_a_learned_policy_exports_too(tmp_path):
    mdp, _ = half_asked(plain(temperature=2.0), plain())
    images, policy = load_images("rendered-digits", "test").first(80), BeliefGate(mdp)
    torch.nn.init.normal_(policy.layers[2].weight, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        policy.layers[2].bias -= rollout(mdp, policy, *images.batch(torch.arange(80))).gate_logits.median()
        routes = rollout(mdp, policy, *images.batch(torch.arange(80))).actions
    assert len(routes.unique()) == 2
    export_onnx(mdp, policy, tmp_path / "model.onnx", batched=True)
    found = compare_with_torch(tmp_path / "model.onnx", mdp, policy, images)
    assert found.images == found.same_routes == 80
    assert found.logits < 1e-5


@pytest.mark.parametrize("batched", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_network_that_is_not_asked_does_not_run(batched, tmp_path):
    mdp, _ = half_asked(plain(), plain())
    torch.nn.init.constant_(mdp.member(1).net.fc.weight, torch.nan)  # whatever it touches is NaN
    images, _ = load_images("rendered-digits", "test").first(1).batch(torch.arange(1))
    outcomes = {}
    for threshold in (-torch.inf, torch.inf):
        export_onnx(mdp, Threshold([threshold]), tmp_path / "model.onnx", batched)
        session = onnx_session(tmp_path / "model.onnx")
        answer, routes = session.run(None, {"images": images.contiguous().numpy()})
        outcomes[routes.item()] = torch.from_numpy(answer).isnan().any().item()
    assert outcomes == {False: False, True: True}
