"""The hybrid gradient against the exact one, found by enumerating every route in float64.

`exact_gradients` shares nothing with the estimator: it walks the blocks itself, weighs each route's
loss with the product of its probabilities and lets autograd differentiate the sum. The estimator's
expectation must be that, for the gates' and the backbone's parameters alike: the gates read features
that the backbone makes.
"""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from agents import hybrid_reinforce
from agents.hybrid_reinforce import Args, hrl_loss
from skipnet_rl.estimators import BASELINES
from skipnet_rl.flops import network_macs
from skipnet_rl.gates import GATES, make_gate
from skipnet_rl.mdp import RoutingMDP, State
from skipnet_rl.policies import Exploring, ValueBaseline
from skipnet_rl.resnet import Architecture, ResNet
from skipnet_rl.rollout import rollout

THREE_GATES = Architecture(8, (2, 3), (2, 2))
EIGHT_GATES = Architecture(8, (2, 3, 4), (3, 3, 3))


class Problem:
    """A tiny network, its gates and one or two images, all in float64 and with frozen batch norms."""

    def __init__(
        self, gate: str, cost: str, *, images: int = 2, plan: Architecture = THREE_GATES, mdp_class=RoutingMDP
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.net = ResNet(plan, num_classes=3).double()
            self.gate = make_gate(gate, self.net).double()
            for module in [*self.net.modules(), *self.gate.modules()]:
                if isinstance(module, torch.nn.BatchNorm2d):
                    torch.nn.init.uniform_(module.weight, 0.5, 1.0)
                    torch.nn.init.uniform_(module.bias, -0.2, 0.4)
            for head in [self.gate.head] if gate == "rnn" else self.gate.heads:  # neither sure nor alike
                torch.nn.init.normal_(head.weight, std=1.0)
                torch.nn.init.normal_(head.bias, std=0.3)
            self.images = torch.randn(2, 3, 8, 8, dtype=torch.float64)[:images]
            self.labels = torch.tensor([0, 2])[:images]
            self.net.eval()
            self.gate.eval()
            self.mdp = mdp_class(self.net, alpha=0.7, cost=cost)
            self.critic = ValueBaseline(self.mdp).double()
            for head in self.critic.heads:
                torch.nn.init.normal_(head.weight)

    @property
    def decisions(self) -> int:
        return self.mdp.num_decisions

    def gradients(self, loss: Tensor) -> Tensor:
        """d loss / d (gates, backbone) as one vector, the gates' part first."""
        parameters = [*self.gate.parameters(), *self.net.parameters()]
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        return torch.cat(
            [
                (torch.zeros_like(p) if g is None else g).flatten()
                for p, g in zip(parameters, found, strict=True)
            ]
        )

    @property
    def gate_size(self) -> int:
        return sum(p.numel() for p in self.gate.parameters())

    def all_routes(self) -> list[tuple[int, ...]]:
        return list(itertools.product((0, 1), repeat=self.decisions))

    def saving(self, route: tuple[int, ...], shares: list[float]) -> float:
        """alpha/N Σ (1 - a) C, worked out here."""
        return 0.7 / self.decisions * sum((1 - a) * c for a, c in zip(route, shares, strict=True))

    def shares(self, cost: str) -> list[float]:
        """C of each decision."""
        if cost == "blocks":
            return [1.0] * self.decisions
        macs = network_macs(self.net).transforms
        return [m * len(macs) / sum(macs) for m in macs]


def route_terms(problem: Problem, route: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """p(route|x) and L(route, x) of each image, block by block and by hand."""
    net, log_p = problem.net, torch.zeros(len(problem.labels), dtype=torch.float64)
    x, hidden = net.blocks[0](net.stem(problem.images)), None
    for t, action in enumerate(route):
        logit, hidden = problem.gate(problem.mdp, State(x, problem.labels, t), hidden)
        log_p = log_p + F.logsigmoid(logit if action else -logit)
        block = net.blocks[t + 1]
        x = F.relu(block.transform(x) + block.shortcut(x)) if action else block.shortcut(x)
    loss = F.cross_entropy(net.fc(x.mean(dim=(2, 3))), problem.labels, reduction="none")
    return log_p.exp(), loss


def exact_gradients(problem: Problem, cost: str) -> Tensor:
    """∇J of J = E_x E_g [L - α/N Σ (1 - g) C] over the images."""
    objective, shares = torch.zeros((), dtype=torch.float64), problem.shares(cost)
    total = torch.zeros(len(problem.labels), dtype=torch.float64)
    for route in problem.all_routes():
        p, loss = route_terms(problem, route)
        objective = objective + (p * (loss - problem.saving(route, shares))).mean()
        total = total + p.detach()
    torch.testing.assert_close(total, torch.ones_like(total))
    return problem.gradients(objective)


def estimate(problem: Problem, args: Args, routes: Tensor | None, generator=None) -> Tensor:
    """Gradient estimate of one training step; the routes of an image are adjacent."""
    count = args.routes
    critic = problem.critic if args.baseline == "value" else None
    episode = rollout(
        problem.mdp,
        Exploring(problem.gate, args.exploration),
        problem.images.repeat_interleave(count, 0),
        problem.labels.repeat_interleave(count),
        "sample",
        generator,
        routes=routes,
        critic=critic,
    )
    return problem.gradients(hrl_loss(episode, args))


def expectation(problem: Problem, args: Args) -> Tensor:
    """Mean of `estimate` over every combination of routes in a batch."""
    all_routes = problem.all_routes()
    with torch.no_grad():
        p = torch.stack([route_terms(problem, route)[0] for route in all_routes])  # [routes, images]
    owner = [image for image in range(len(problem.labels)) for _ in range(args.routes)]
    mean = torch.zeros(())
    for chosen in itertools.product(range(len(all_routes)), repeat=len(owner)):
        weight = math.prod(p[r, image].item() for r, image in zip(chosen, owner, strict=True))
        mean = mean + weight * estimate(problem, args, torch.tensor([all_routes[r] for r in chosen]).bool())
    return mean


def flags(baseline: str, routes: int, **others) -> Args:
    return Args(baseline=baseline, routes=routes, policy_weight=1.0, **others)


@pytest.mark.parametrize(
    ("gate", "baseline", "cost"),  # every gate and every baseline with either cost
    [
        (gate, baseline, ("blocks", "flops")[(row + column) % 2])
        for row, gate in enumerate(GATES)
        for column, baseline in enumerate(("none", "batch-mean", "value"))
    ],
)
def test_expected_estimate_is_the_exact_gradient(gate, cost, baseline):
    """Every pair of routes of the two images: nothing is sampled, so nothing is left to chance."""
    problem = Problem(gate, cost)
    exact = exact_gradients(problem, cost)
    mean = expectation(problem, flags(baseline, routes=1))
    torch.testing.assert_close(mean, exact, rtol=1e-6, atol=1e-8)
    assert exact[: problem.gate_size].norm() > 1e-3 and exact[problem.gate_size :].norm() > 1e-3


@pytest.mark.parametrize("gate", GATES)
def test_expected_leave_one_out_is_the_exact_gradient(gate):
    """Every pair of routes of one image."""
    problem = Problem(gate, "flops", images=1)
    mean = expectation(problem, flags("leave-one-out", routes=2))
    torch.testing.assert_close(mean, exact_gradients(problem, "flops"), rtol=1e-6, atol=1e-8)


def check_samples(problem: Problem, args: Args, cost: str, samples: int) -> float:
    """Sampled estimates agree with the exact gradient within their own interval; their variance.

    Compared are the parts along 12 fixed random directions of the gates' parameters and as many of
    the backbone's. Bonferroni: |z| < 4 in all 24 has a chance of 1 - 24 * 6.3e-5 = 99.8 %.
    """
    exact = exact_gradients(problem, cost)
    generator = torch.Generator().manual_seed(11)
    drawn = torch.stack([estimate(problem, args, None, generator) for _ in range(samples)])
    split = problem.gate_size
    for part in (slice(None, split), slice(split, None)):
        size = exact[part].numel()
        directions = torch.randn(size, 12, generator=generator, dtype=torch.float64) / math.sqrt(size)
        along = drawn[:, part] @ directions
        error = along.mean(dim=0) - exact[part] @ directions
        z = error / (along.std(dim=0) / math.sqrt(samples))
        assert z.abs().max() < 4, f"estimate is off by up to {z.abs().max():.1f} standard errors"
    return drawn.var(dim=0).sum().item()


@pytest.mark.parametrize(
    "gate",  # of each the exact expectation is compared above
    [pytest.param(gate, marks=pytest.mark.slow if gate != "rnn" else ()) for gate in GATES],
)
def test_sampled_estimates_agree_and_baselines_lower_the_variance(gate):
    """At four routes per image, as the agent draws them."""
    variance = {}
    for baseline in BASELINES:
        problem = Problem(gate, "blocks")
        variance[baseline] = check_samples(problem, flags(baseline, routes=4), "blocks", samples=300)
    print(f"\n{gate}: total variance", {name: f"{value:.3g}" for name, value in variance.items()})
    assert variance["leave-one-out"] < variance["none"]


@pytest.mark.slow
@pytest.mark.parametrize("cost", ["blocks", "flops"])
@pytest.mark.parametrize("gate", GATES)
def test_eight_gates(gate, cost):
    """256 routes: too many to pair, few enough to enumerate."""
    problem = Problem(gate, cost, images=1, plan=EIGHT_GATES)
    assert problem.decisions == 8
    mean = expectation(problem, flags("none", routes=1))
    torch.testing.assert_close(mean, exact_gradients(problem, cost), rtol=1e-6, atol=1e-8)
    check_samples(problem, flags("leave-one-out", routes=4), cost, samples=400)


def test_exploration_floor_is_on_policy():
    """With a floor the objective is that of the floored probabilities, and the estimate is its gradient."""
    problem, floored = Problem("rnn", "blocks", images=1), Problem("rnn", "blocks", images=1)
    floored.gate.forward = floor_of(floored.gate.forward)
    args = flags("none", routes=1, exploration=0.2)
    p = {route: route_terms(floored, route)[0].item() for route in floored.all_routes()}
    mean = sum(p[route] * estimate(problem, args, torch.tensor([route]).bool()) for route in p)
    torch.testing.assert_close(mean, exact_gradients(floored, "blocks"), rtol=1e-6, atol=1e-8)


def floor_of(forward: Callable) -> Callable:
    """p' = 0.2 + 0.6 p, worked out here."""

    def floored(mdp, state, hidden):
        logit, hidden = forward(mdp, state, hidden)
        p = 0.2 + 0.6 * torch.sigmoid(logit)
        return torch.log(p / (1 - p)), hidden

    return floored


def wrong_sign(monkeypatch) -> None:
    right = hybrid_reinforce.score_function_loss
    monkeypatch.setattr(hybrid_reinforce, "score_function_loss", lambda *pair: -right(*pair))


def wrong_broadcast(monkeypatch) -> None:
    """(B,) log-probabilities of a decision times (B, 1) returns: summed over all pairs of episodes.

    With plain returns of independent episodes this leaves the mean as it is, since E ∇log p = 0, and
    adds variance alone. With a baseline the advantages of a decision sum to zero: the gates learn
    nothing.
    """

    def pairs(log_probs: Tensor, weights: Tensor) -> Tensor:
        columns = zip(log_probs.T, weights.detach().T, strict=True)
        return -sum((log_prob * weight.unsqueeze(1)).sum() for log_prob, weight in columns) / len(log_probs)

    monkeypatch.setattr(hybrid_reinforce, "score_function_loss", pairs)


class Attached(RoutingMDP):
    """Pays a reward that still hangs on the network."""

    def reward(self, state: State, action: Tensor, next_state: State, loss: Tensor | None = None) -> Tensor:
        paid = super().reward(state, action, next_state, loss)
        return paid - self.loss(next_state) + self.loss(next_state).detach() if paid.min() < -0.3 else paid


def missing_detach(monkeypatch) -> None:
    def attached(log_probs: Tensor, weights: Tensor) -> Tensor:
        return -(log_probs * weights).sum(dim=1).mean()

    monkeypatch.setattr(hybrid_reinforce, "score_function_loss", attached)


def surplus_detach(monkeypatch) -> None:
    """Log-odds that do not reach the backbone."""
    right = Exploring.forward

    def detached(self, mdp, state, hidden):
        return right(self, mdp, state._replace(x=state.x.detach()), hidden)

    monkeypatch.setattr(Exploring, "forward", detached)


def late_rewards(monkeypatch) -> None:
    """Rewards-to-go that begin one decision too late."""
    right = hybrid_reinforce.rewards_to_go
    monkeypatch.setattr(hybrid_reinforce, "rewards_to_go", lambda rewards: right(rewards) - rewards)


MISTAKES: dict[str, Callable] = {
    "sign": wrong_sign,
    "broadcast": wrong_broadcast,
    "missing detach": missing_detach,
    "surplus detach": surplus_detach,
    "late rewards": late_rewards,
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_caught(mistake, monkeypatch):
    """Each deliberate mistake fails both the enumeration and the sampled check."""
    mdp_class = Attached if mistake == "missing detach" else RoutingMDP
    problem = Problem("rnn", "blocks", mdp_class=mdp_class)
    MISTAKES[mistake](monkeypatch)
    exact = exact_gradients(problem, "blocks")
    mean = expectation(problem, flags("batch-mean", routes=1))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(mean, exact, rtol=1e-6, atol=1e-8)
    with pytest.raises(AssertionError, match="standard errors"):
        check_samples(problem, flags("leave-one-out", routes=4), "blocks", samples=300)
