"""Adaptive computation time: the paper's equations by hand, finite differences, whole routes."""

import pytest
import torch
from other_models import SIZE, TORCHVISION
from torch import nn
from toys import spread

from skipnet_rl import adapt
from skipnet_rl.checkpoint import load_weights, save_weights
from skipnet_rl.data import load_images
from skipnet_rl.evaluate import evaluate
from skipnet_rl.halting import EPSILON, HaltingGate, halting, pondered
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.policies import AlwaysExecute, Biased
from skipnet_rl.resnet import Architecture, ResNet
from skipnet_rl.rollout import rollout
from skipnet_rl.weights import open_weights

BEGINS = (2, 5)  # decisions of a ResNet-20 about the first block of a stage
LAST, SECOND = (1, 4, 7), (0, 3, 6)


def halted(*scores: float):
    """How one image halts in a stage whose units but the last have these scores."""
    h = torch.tensor([scores], dtype=torch.float64)
    return halting(torch.cat([torch.zeros(1, 1), h.cumsum(1)], dim=1))


@pytest.mark.parametrize(
    "scores, weights, units, cost",
    [
        ((0.3, 0.5), [0.3, 0.5, 0.2], 3, 3.2),  # every unit runs, the last takes the remainder
        ((0.6, 0.5), [0.6, 0.4, 0.0], 2, 2.4),  # halts at the second, whose score exceeds what is left
        ((0.995, 0.2), [1.0, 0.0, 0.0], 1, 2.0),  # within ε of one: halts at the first
        ((0.985, 0.001), [0.985, 0.001, 0.014], 3, 3.014),
        ((0.6, 0.395), [0.6, 0.4, 0.0], 2, 2.4),
        ((), [1.0], 1, 2.0),  # a stage of one unit
    ],
)
def test_the_halting_distribution_by_hand(scores, weights, units, cost):
    found = halted(*scores)
    assert found.weights.squeeze(0).tolist() == pytest.approx(weights)
    assert found.units.tolist() == [units]
    assert found.remainder.tolist() == pytest.approx([weights[units - 1]])
    assert found.ponder_cost.tolist() == pytest.approx([cost])


def test_the_halting_distribution_is_one():
    scores = torch.rand(500, 17, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 3
    before = torch.cat([torch.zeros(500, 1), scores.cumsum(1)], dim=1)
    found = halting(before)
    torch.testing.assert_close(found.weights.sum(1), torch.ones(500).double())
    assert (found.weights >= 0).all()
    assert len(found.units.unique()) > 5
    for image, units in enumerate(found.units.tolist()):
        assert found.weights[image, : units - 1].tolist() == pytest.approx(
            scores[image, : units - 1].tolist()
        )
        assert not found.weights[image, units:].any()
        assert before[image, units - 1] < 1 - EPSILON and (units == 18 or before[image, units] >= 1 - EPSILON)


def test_the_gradient_of_the_ponder_cost():
    """-1 for the score of each unit that runs before the last, and none for the others."""
    scores = torch.tensor([[0.3, 0.5], [0.6, 0.5], [0.995, 0.2]], dtype=torch.float64, requires_grad=True)

    def cost(scores):
        return halting(torch.cat([torch.zeros(3, 1), scores.cumsum(1)], dim=1)).ponder_cost

    cost(scores).sum().backward()
    assert scores.grad.tolist() == [[-1, -1], [-1, 0], [0, 0]]
    assert torch.autograd.gradcheck(cost, scores)  # finite differences


@pytest.fixture
def batch():
    images = load_images("rendered-digits", "val").first(64)
    return images.batch(torch.arange(64))


@pytest.fixture
def gate(tiny_net, batch):
    return spread(tiny_net, batch[0])


def by_hand(net: ResNet, gate: HaltingGate, images: torch.Tensor, mean: bool):
    """Route, logits and ponder cost of each image, one at a time, block by block."""
    routes, logits, costs = [], [], []
    for image in images:
        x, route, cost, number = net.stem(image[None]), [], torch.zeros(()), 0
        for stage in range(3):
            outputs, weights, total = [], [], 0.0
            for position in range(3):
                if total >= 1 - EPSILON:
                    route.append(0)
                    number += position < 2
                    continue
                x = net.blocks[3 * stage + position](x)
                route.append(1)
                outputs.append(x)
                score = torch.ones(())
                if position < 2:
                    head = gate.scores[number]
                    score = torch.sigmoid(head(x.mean(dim=(2, 3)))).squeeze()
                    number += 1
                weights.append(torch.where(total + score >= 1 - EPSILON, 1 - total, score))
                total = total + score
            cost = cost + len(outputs) + weights[-1]
            x = sum(w * out for w, out in zip(weights, outputs, strict=True)) if mean else x
        routes.append(route[1:])
        logits.append(net.classify(x))
        costs.append(cost)
    return torch.tensor(routes), torch.cat(logits), torch.stack(costs)


def test_the_policy_and_the_training_are_the_papers(tiny_net, gate, batch):
    images, labels = batch
    with torch.no_grad():
        for mean in (False, True):
            routes, logits, costs = by_hand(tiny_net, gate, images, mean)
            if mean:
                episode, cost = pondered(RoutingMDP(tiny_net), gate, images, labels)
                torch.testing.assert_close(cost, costs)
            else:
                episode = rollout(RoutingMDP(tiny_net), gate, images, labels)
            assert torch.equal(episode.actions.long(), routes)
            assert len(routes.unique(dim=0)) > 5
            torch.testing.assert_close(episode.logits, logits, rtol=1e-4, atol=1e-4)


def test_once_halted_an_image_skips_the_rest_of_the_stage_alone(tiny_net, gate, batch):
    with torch.no_grad():
        routes = rollout(RoutingMDP(tiny_net), gate, *batch).actions
        assert routes[:, BEGINS].all()  # it goes on at the next stage
        for second, last in zip(SECOND, LAST, strict=True):
            assert (routes[:, last] <= routes[:, second]).all()
        assert all(0 < routes[:, t].mean() < 1 for t in (*SECOND, *LAST))
        early = HaltingGate(tiny_net)
        nn.init.constant_(early.scores[2].bias, 20.0)  # of the first unit of the second stage
        halts = rollout(RoutingMDP(tiny_net), early, *batch).actions
    assert halts.unique(dim=0).tolist() == [[1, 1, 1, 0, 0, 1, 1, 1]]


@pytest.mark.parametrize("bias, route", [(-100.0, [1] * 8), (100.0, [0, 0, 1, 0, 0, 1, 0, 0])])
def test_sure_scores_make_the_mean_a_route(tiny_net, batch, bias, route):
    """Scores of 0 leave all weight to a stage's last unit, scores of 1 to its first."""
    gate, mdp = HaltingGate(tiny_net), RoutingMDP(tiny_net)
    for score in gate.scores:
        nn.init.constant_(score.bias, bias)
    with torch.no_grad():
        episode, cost = pondered(mdp, gate, *batch)
        routes = torch.tensor(route).bool().expand(64, 8)
        expected = rollout(mdp, AlwaysExecute(), *batch, routes=routes)
    assert torch.equal(episode.actions.bool(), routes)
    torch.testing.assert_close(episode.logits, expected.logits)
    torch.testing.assert_close(episode.rewards, expected.rewards)
    units, remainders = sum(route) + 1, 3.0  # the first unit is no decision
    torch.testing.assert_close(cost, torch.full((64,), units + remainders))


def test_the_gradient_of_loss_and_ponder_cost():
    """Of every score and of a convolution, against finite differences where no image is about to halt."""
    torch.manual_seed(0)
    net = ResNet(Architecture(8, (2, 3), (3, 3)), num_classes=4).double().eval()
    images, labels = torch.randn(6, 3, 8, 8).double(), torch.arange(6) % 4
    gate = spread(net, images)
    mdp = RoutingMDP(net)
    chosen = [score.weight for score in gate.scores] + [net.blocks[0].conv1.weight]

    def objective(*_):
        episode, cost = pondered(mdp, gate, images, labels)
        return episode.loss.mean() + 0.1 * cost.mean()

    assert len(rollout(mdp, gate, images, labels).actions.unique(dim=0)) > 1
    assert torch.autograd.gradcheck(objective, chosen, fast_mode=True)


def test_the_cost_of_the_scores(tiny_net):
    gate = HaltingGate(tiny_net)
    assert gate.macs_per_decision() == [16, 16, 0, 32, 32, 0, 64, 64]  # of a linear layer on C channels
    assert gate.macs() == 224
    large = HaltingGate(ResNet(50))
    assert [t for t, macs in enumerate(large.macs_per_decision()) if not macs] == [2, 6, 12]


def test_at_first_every_unit_runs(tiny_net, batch):
    with torch.no_grad():
        episode, cost = pondered(RoutingMDP(tiny_net), HaltingGate(tiny_net), *batch)
    score = torch.tensor(-3.0).sigmoid().item()
    assert episode.actions.all()
    torch.testing.assert_close(cost, torch.full((64,), 9 + 3 * (1 - 2 * score)))


def test_a_network_with_nothing_to_skip_is_refused():
    with pytest.raises(ValueError, match="every stage of this ResNet-8 has one block, which always runs"):
        HaltingGate(ResNet(8))


def test_a_model_with_layers_between_its_blocks_is_refused():
    with pytest.raises(ValueError, match="ConvNeXt has layers between its blocks"):
        HaltingGate(adapt(TORCHVISION["ConvNeXt"](), SIZE))


def test_saved_and_opened_again_it_takes_the_same_routes(tiny_net, gate, tmp_path):
    images, file = load_images("rendered-digits", "val").first(64), tmp_path / "act.safetensors"
    both = nn.ModuleDict({"net": tiny_net, "gate": gate})
    save_weights(file, both, {"kind": "act"})
    load_weights(file, both)  # rounded to half precision
    opened = open_weights(file)
    assert isinstance(opened.policy, HaltingGate)
    found = evaluate(opened.mdp(), opened.policy, images)
    expected = evaluate(RoutingMDP(tiny_net), gate, images)
    assert torch.equal(found.routes, expected.routes) and len(found.routes.unique(dim=0)) > 5
    assert torch.equal(found.loss, expected.loss) and found.policy_flops == expected.policy_flops > 0


def test_a_bias_moves_the_threshold(tiny_net, gate):
    """Other compute budgets without training anew, see `agents.evaluate --biases`."""
    images = load_images("rendered-digits", "val").first(64)
    rates = [
        evaluate(RoutingMDP(tiny_net), Biased(gate, bias), images).rate for bias in (-2, -0.4, 0, 0.4, 9)
    ]
    assert rates == sorted(rates) and rates[0] == 2 / 8 and rates[-1] == 1
    assert rates[0] < rates[1] < rates[2]
