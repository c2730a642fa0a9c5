"""Policies that do not look at the image: what a learned one has to beat.

    python -m agents.static --env SkipResNet20-v0 --dataset cifar10 --data-dir data

    all blocks, no blocks   the two ends
    random                  each block of each image runs with the same probability, at several rates
    greedy                  one fixed set of blocks for all images; starting from all blocks, the one whose
                            absence costs the least return on validation images is dropped, repeatedly
    thresholds              on a chain, the next network is asked where the answer so far is not sure, see
                            skipnet_rl.thresholds; the only row here that looks at the image, and the baseline
                            of every learned policy
    last first              blocks dropped from the last one on: stochastic depth (Huang et al. 2016,
                            arXiv 1603.09382) drops these most often

With `--weights runs/…/hrl.safetensors`, these are the static policies of a trained run's network.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from agents.common.cli import main_with_named_errors
from agents.common.flags import CommonArgs, Method, Run
from agents.common.outcome import finish
from agents.common.setting import Setting
from agents.common.situation import defaults_of
from skipnet_rl.chain import Chain
from skipnet_rl.data import Images
from skipnet_rl.device import cpu_by_default
from skipnet_rl.evaluate import Evaluation, evaluate
from skipnet_rl.policies import FixedRoute, RandomSkip
from skipnet_rl.process import DecisionProcess
from skipnet_rl.progress import progress_bar
from skipnet_rl.recording import Records
from skipnet_rl.thresholds import Tuned, tune


@dataclass(frozen=True)
class Args(CommonArgs):
    """Evaluate policies that need no training."""

    takes_chains: ClassVar[bool] = True
    rates: Method[tuple[float, ...]] = (0.9, 0.8, 0.7, 0.6, 0.5)
    """p(execute) of the random policies"""
    budgets: Method[tuple[float, ...]] = ()
    """compute budgets for which a chain's thresholds are tuned on validation images: mean FLOPs per image,
    relative to the last network (default: six between the first network and all of them)"""
    points: Method[int] = 8
    """number of evenly spread sizes at which a fixed set of blocks is evaluated on the test set"""
    eval_images: Run[int] = 1_000
    """validation images for the greedy choice"""


def greedy_order(mdp: DecisionProcess, images: Images, precision: str = "fp32") -> list[int]:
    """Return the N decisions in the order in which their blocks are best dropped.

    Takes N (N + 1) / 2 - 1 passes over the images; for the last block there is nothing to choose.
    """
    kept = list(range(mdp.num_decisions))
    order: list[int] = []
    passes = mdp.num_decisions * (mdp.num_decisions + 1) // 2 - 1
    bar = progress_bar(total=passes, desc="greedy", unit="pass")
    while kept:
        returns = []
        for block in kept if len(kept) > 1 else []:
            policy = FixedRoute(without(mdp, [*order, block])).to(images.device)
            returns.append(evaluate(mdp, policy, images, precision=precision).returns.mean().item())
            bar.update()
        order.append(kept.pop(int(np.argmax(returns)) if returns else 0))
    bar.close()
    return order


def without(mdp: DecisionProcess, dropped: list[int]) -> Tensor:
    """Return the route [N] that executes all but the dropped blocks."""
    route = torch.ones(mdp.num_decisions, dtype=torch.bool, device="cpu")
    route[dropped] = False
    return route


def tuned_thresholds(setting: Setting[Args], budgets: Sequence[float]) -> list[Tuned]:
    """Tune thresholds and mixing weights for each budget, on the validation images."""
    records, whole = setting.val, setting.mdp().whole_macs
    assert isinstance(records, Records)
    least, most = (records.answers[:, :count, -1].sum(dim=1).mean().item() / whole for count in (1, None))
    budgets = budgets or [least + share * (most - least) for share in (0.03, 0.06, 0.1, 0.2, 0.35, 0.6)]
    return tune(records, whole, budgets)


@cpu_by_default()
def evaluate_all(args: Args) -> dict[str, Any]:
    """Evaluate every static policy on the test set once; returns result.json's content."""
    setting = Setting.of(args)
    mdp = setting.mdp()
    at_random = {f"random {100 * rate:g}%": RandomSkip(rate) for rate in args.rates}
    run = setting.start_run("static")
    started = time.perf_counter()
    chosen = greedy_order(mdp, setting.val.first(args.eval_images), setting.precision)
    wall_time = time.perf_counter() - started
    n = mdp.num_decisions
    sizes = sorted({int(size) for size in np.linspace(1, n - 1, min(args.points, n - 1)).round()})
    rows: dict[str, Evaluation] = {}
    routes: dict[str, Tensor] = {"all blocks": without(mdp, [])}
    for name, order in (("greedy", chosen), ("last first", list(range(n))[::-1])):
        routes |= {f"{name}, {n - size} of {n}": without(mdp, order[:size]) for size in sizes}
    routes["no blocks"] = without(mdp, list(range(n)))
    for name, route in routes.items():
        rows[name] = setting.evaluate(mdp, FixedRoute(route).to(setting.device), name=name)
    for name, policy in at_random.items():
        rows[name] = setting.evaluate(mdp, policy, "sample", name=name)
    tuned = tuned_thresholds(setting, args.budgets) if isinstance(setting.net, Chain) else []
    mixes = {}
    for each in tuned:
        name = f"thresholds, budget {100 * each.budget:.3g}%"
        mixes[name] = each.mix
        at_its_mix = setting.problem.mdp(setting.net.mixed(each.mix))
        rows[name] = setting.evaluate(at_its_mix, each.policy().to(setting.device), name=name)
    more = {"greedy_order": chosen, "thresholds": [asdict(each) for each in tuned]}
    return finish(setting, run, "static", rows, wall_time, {"all blocks": None}, mixes, **more)


arguments = partial(defaults_of, Args)  # the flags' defaults on a command line


if __name__ == "__main__":
    main_with_named_errors(Args, evaluate_all, defaults=arguments)
