"""The score-function estimator against hand-worked numbers and exact expectations."""

import itertools
import math

import pytest
import torch

from skipnet_rl.estimators import advantages, entropy, leave_one_out, score_function_loss


def test_leave_one_out_by_hand():
    rewards_to_go = torch.tensor([[1.0, 2.0], [3.0, 2.0], [10.0, 0.0], [20.0, 4.0]])
    # image 0: routes 1 and 3 at decision 0 → 1-3 = -2 and 3-1 = +2; decision 1: equal → 0
    # image 1: 10-20 = -10, +10; 0-4 = -4, +4
    expected = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [-10.0, -4.0], [10.0, 4.0]])
    assert torch.equal(leave_one_out(rewards_to_go, 2), expected)


def test_baselines_by_hand():
    rewards_to_go = torch.tensor([[1.0, 2.0], [3.0, 2.0], [8.0, 5.0]])
    values = torch.tensor([[0.5, 1.0], [3.0, 0.0], [9.0, 5.0]], requires_grad=True)
    assert advantages(rewards_to_go, "none") is rewards_to_go
    # against the mean of the other two: 1 - 5.5, 3 - 4.5, 8 - 2 and 2 - 3.5, 2 - 3.5, 5 - 2
    expected = torch.tensor([[-4.5, -1.5], [-1.5, -1.5], [6.0, 3.0]])
    torch.testing.assert_close(advantages(rewards_to_go, "batch-mean"), expected)
    learned = advantages(rewards_to_go, "value", values=values)
    assert learned.tolist() == [[0.5, 1.0], [0.0, 2.0], [-1.0, 0.0]]
    assert not learned.requires_grad


def test_baselines_with_missing_arguments():
    with pytest.raises(ValueError, match="at least 2 per image, not 1"):
        advantages(torch.zeros(4, 3), "leave-one-out", routes=1)
    with pytest.raises(ValueError, match="values are None; expected .* shape \\(4, 3\\)"):
        advantages(torch.zeros(4, 3), "value")
    with pytest.raises(ValueError, match="unknown baseline 'batch'; did you mean 'batch-mean'"):
        advantages(torch.zeros(4, 3), "batch")


def test_entropy_by_hand():
    # p = 1/2 → log 2; p = 3/4 → 3/4 log 4/3 + 1/4 log 4; far out → 0
    logits = torch.tensor([[0.0, math.log(3), -math.log(3), 200.0, -200.0]], dtype=torch.float64)
    quarter = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    expected = torch.tensor([[math.log(2), quarter, quarter, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(entropy(logits), expected)


def test_episodes_must_be_a_multiple_of_routes():
    with pytest.raises(ValueError, match="5 episodes .* 2 routes"):
        leave_one_out(torch.zeros(5, 3), 2)


def test_broadcasting_shapes_are_refused():
    """(B,) log-probabilities by (B, 1) returns silently sum over all pairs of images."""
    with pytest.raises(ValueError, match=r"\(4,\) and \(4, 1\)"):
        score_function_loss(torch.zeros(4), torch.zeros(4, 1))


def test_loss_gradient_is_minus_the_advantage():
    log_probs = torch.zeros(2, 3, requires_grad=True)
    advantages = torch.tensor([[1.0, 2.0, 3.0], [-4.0, 5.0, 6.0]])
    score_function_loss(log_probs, advantages).backward()
    assert torch.equal(log_probs.grad, -advantages / 2)


@pytest.mark.parametrize("routes", [1, 2])
def test_expected_gradient_is_exact_with_and_without_the_baseline(routes):
    """Summed over every pair of routes with its probability, the estimate is ∇E[return].

    Two decisions with logits θ; the return of each of the four routes is arbitrary.
    """
    theta = torch.tensor([0.3, -0.8], dtype=torch.float64, requires_grad=True)
    rewards = {(0, 0): (0.5, -1.0), (0, 1): (0.5, 2.0), (1, 0): (0.0, 0.7), (1, 1): (0.0, -3.0)}

    def log_probs(route):
        signs = torch.tensor(route, dtype=torch.float64) * 2 - 1
        return torch.nn.functional.logsigmoid(signs * theta)

    exact = sum(log_probs(route).sum().exp() * sum(r) for route, r in rewards.items())
    (wanted,) = torch.autograd.grad(exact, theta)
    estimate = torch.zeros(2, dtype=torch.float64)
    for chosen in itertools.product(rewards, repeat=routes):
        batch = torch.stack([log_probs(route) for route in chosen])
        pay = torch.tensor([rewards[route] for route in chosen], dtype=torch.float64)
        to_go = pay.flip(1).cumsum(1).flip(1)
        baseline = "none" if routes == 1 else "leave-one-out"
        loss = score_function_loss(batch, advantages(to_go, baseline, routes))
        (gradient,) = torch.autograd.grad(loss, theta)
        estimate -= batch.sum().exp().detach() * gradient
    torch.testing.assert_close(estimate, wanted, rtol=1e-12, atol=1e-12)
