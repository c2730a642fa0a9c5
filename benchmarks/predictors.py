"""Binary predictors from features, judged by the area under the ROC curve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skipnet_rl.statistics import area_under_roc

PREDICTORS = {"linear": 0, "hidden": 32}  # units of the hidden layer
DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)  # weight decays to choose from, by cross-validation
FOLDS = 5
STEPS = 60  # of L-BFGS


def fit(features: Tensor, positive: Tensor, hidden: int, decay: float) -> Callable[[Tensor], Tensor]:
    """Fit a predictor of `positive` [M] from features [M, C]; it maps features to scores [M].

    Args:
        features: on any scale; they are standardised.
        positive: labels, bool.
        hidden: tanh units of the hidden layer; 0 for logistic regression.
        decay: weight of the squared weights in the loss.
    """
    mean, std = features.mean(dim=0), features.std(dim=0).clamp(min=1e-6)
    width, inputs, targets = features.shape[1], (features - mean) / std, positive.float()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        layers = (
            [nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, 1)] if hidden else [nn.Linear(width, 1)]
        )
        net = nn.Sequential(*layers).to(features.device)
    weights = [parameter for name, parameter in net.named_parameters() if name.endswith("weight")]
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.binary_cross_entropy_with_logits(net(inputs).squeeze(1), targets)
        value = value + decay * sum(weight.square().sum() for weight in weights)
        value.backward()
        return value

    optimizer.step(loss)
    net.requires_grad_(False)
    return lambda others: net((others - mean) / std).squeeze(1)


def fit_best(features: Tensor, positive: Tensor, hidden: int) -> Callable[[Tensor], Tensor]:
    """Fit a predictor with the weight decay that is best in cross-validation."""
    fold, areas = torch.arange(len(features), device=features.device) % FOLDS, {}
    for decay in DECAYS:
        scores = features.new_empty(len(features))
        for k in range(FOLDS):
            scores[fold == k] = fit(features[fold != k], positive[fold != k], hidden, decay)(
                features[fold == k]
            )
        areas[decay] = area(scores, positive)["auc"]
    return fit(features, positive, hidden, max(areas, key=areas.__getitem__))


def area(scores: Tensor, positive: Tensor) -> dict[str, Any]:
    """Return the area under the ROC curve and its interval as JSON fields."""
    value, *interval = area_under_roc(scores.cpu(), positive.cpu())
    return {"auc": value, "auc_ci95": interval}
