"""A bound, not a policy: for each image the cheapest route found that classifies it correctly.

    python -m agents.oracle --env SkipResNet20-v0 --dataset cifar10 --data-dir data

It looks at the labels of the images that it is evaluated on. The cheapest route is that of the least
`--cost`: by default the fewest blocks of a network, the fewest FLOPs of a chain. With at most `--exhaustive`
decisions every route is tried and the bound is exact. Deeper networks are searched: starting from the full
route, or from a correct random one where that is wrong, blocks are dropped in random order as long as the
answer stays correct; the exact bound is at least as good as what is found. An image for which no correct
route is found executes none of the blocks and counts as wrong.

It bounds accuracy and computation of the policies over this network, not their return: a route that is only
just right has a high loss.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from agents.common.cli import main_with_named_errors
from agents.common.flags import CommonArgs, Method, Run
from agents.common.outcome import finish
from agents.common.setting import Setting
from agents.common.situation import defaults_of
from skipnet_rl.device import autocast, cpu_by_default
from skipnet_rl.policies import AlwaysExecute
from skipnet_rl.process import DecisionProcess, select
from skipnet_rl.progress import progress_bar
from skipnet_rl.randomness import Stream, step_generator
from skipnet_rl.rollout import rollout


@dataclass(frozen=True)
class Args(CommonArgs):
    """Search for the cheapest correct route of each test image."""

    takes_chains: ClassVar[bool] = True
    exhaustive: Method[int] = 10
    """largest number of decisions at which every route is tried"""
    restarts: Method[int] = 8
    """random routes that the search tries for an image that the whole network gets wrong"""
    batch_size: Run[int] = 250
    """images at a time"""
    precision: Run[Literal["auto", "bf16", "fp32"]] = "fp32"
    """floating-point format; a choice among many routes also selects rounding errors, which are large in
    bf16"""


@torch.no_grad()
def every_route(mdp: DecisionProcess, images: Tensor, labels: Tensor) -> Tensor:
    """Find the cheapest correct routes by `mdp.cost`, [B, N] bool, by a walk over the tree of all routes.

    A branch keeps only the images whose best route so far costs more than the branch already does.
    """
    count, n, device = len(labels), mdp.num_decisions, images.device
    best = torch.zeros(count, n, dtype=torch.bool, device=device)
    cost = torch.full((count,), torch.inf, dtype=torch.float64, device=device)  # of the best route
    route = torch.zeros(n, dtype=torch.bool, device=device)
    prices = mdp.cost.to(device, torch.float64)

    def walk(state: Any, index: Tensor) -> None:
        spent = (route * prices).sum()
        hopeful = cost[index] > spent
        if not hopeful.all():
            state, index = select(state, hopeful), index[hopeful]
        if len(index) == 0:
            return
        if mdp.terminal(state):
            correct = index[mdp.logits(state).argmax(dim=1) == state.y]
            best[correct], cost[correct] = route, spent
            return
        for execute in (False, True):  # cheap routes first, so that expensive ones need fewer images
            route[state.t] = execute
            walk(mdp.transition(state, torch.full_like(state.y, execute, dtype=torch.bool)), index)
        route[state.t] = False

    walk(mdp.initial(images, labels), torch.arange(count, device=device))
    return best


@torch.no_grad()
def search(
    mdp: DecisionProcess, images: Tensor, labels: Tensor, generator: torch.Generator, restarts: int = 8
) -> Tensor:
    """Search for correct routes, [B, N] bool: drop blocks, in random order, if the answer stays correct."""
    count, n, device = len(labels), mdp.num_decisions, images.device

    def correct(routes: Tensor) -> Tensor:
        return rollout(mdp, AlwaysExecute(), images, labels, routes=routes).correct

    routes = torch.ones(count, n, dtype=torch.bool, device=device)
    right = correct(routes)
    for rate in torch.linspace(0.9, 0.4, restarts, device="cpu").tolist():
        if right.all():
            break
        tried = torch.rand(count, n, generator=generator, device=device) < rate
        found = correct(tried) & ~right
        routes[found], right = tried[found], right | found
    order = torch.rand(count, n, generator=generator, device=device).argsort(dim=1)
    for position in range(n):
        tried = routes.scatter(1, order[:, position : position + 1], False)
        keeps = correct(tried) & right
        routes[keeps] = tried[keeps]
    routes[~right] = False
    return routes


@cpu_by_default()
def find_routes(args: Args) -> dict[str, Any]:
    """Compute the bound on the test set; returns result.json's content."""
    setting = Setting.of(args)
    mdp = setting.mdp()
    run = setting.start_run("oracle")
    draws = step_generator(args.seed, 0, setting.device, Stream.ORACLE)
    exact = mdp.num_decisions <= args.exhaustive
    started, found = time.perf_counter(), []
    batches = list(setting.test.batches(args.batch_size))
    for images, labels in progress_bar(batches, desc="oracle", unit="batch"):
        with autocast(setting.precision, setting.device):
            if exact:
                found.append(every_route(mdp, images, labels))
            else:
                found.append(search(mdp, images, labels, draws, args.restarts))
    wall_time = time.perf_counter() - started
    routes = torch.cat(found)
    name = "oracle (bound)"
    bound = setting.evaluate(mdp, AlwaysExecute(), routes=routes, name=name)
    rows = {**setting.references(bound.rate), name: bound}
    return finish(setting, run, "oracle", rows, wall_time, exact=exact)


arguments = partial(defaults_of, Args)  # the flags' defaults on a command line


if __name__ == "__main__":
    main_with_named_errors(Args, find_routes, defaults=arguments)
