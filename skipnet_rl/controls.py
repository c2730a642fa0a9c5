"""Controls for a chain's decisions: its routes dealt out at random, and one route for all images.

Every route of a chain can be played on every image, so `Routes.dealt_out` is the exact expectation over all
ways of dealing the routes out, not an estimate from one random permutation of them.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from skipnet_rl.chain import ChainMDP
from skipnet_rl.evaluate import Evaluation, evaluate
from skipnet_rl.policies import FixedRoute
from skipnet_rl.recording import Records


class Routes(NamedTuple):
    """Every route of a chain for every image; R = 2^N, and N is small.

    Attributes:
        routes: [R, N] bool.
        correct: whether each image is right on each route, [R, M] bool.
        compute_flops: FLOPs over those of the last network, [R, M].
    """

    routes: Tensor
    correct: Tensor
    compute_flops: Tensor

    def dealt_out(self, taken: Tensor) -> Tensor:
        """The chance that each image [M] is right if the routes taken [M, N] are dealt out at random."""
        same = (taken[None] == self.routes[:, None]).all(dim=2)  # [R, M]
        return same.double().mean(dim=1) @ self.correct.double()

    def fixed(self, compute_flops: float) -> Tensor:
        """Row numbers of the routes that cost no more than `compute_flops` on average over all images."""
        return (self.compute_flops.mean(dim=1) <= compute_flops).nonzero().squeeze(1)


def every_route(mdp: ChainMDP, records: Records) -> Routes:
    """Play each of the 2^N routes on all of the recorded images."""
    routes = torch.tensor(list(product([False, True], repeat=mdp.num_decisions)), device="cpu")
    played: list[Evaluation] = [evaluate(mdp, FixedRoute(route).to(mdp.device), records) for route in routes]
    return Routes(
        routes,
        torch.stack([done.correct for done in played]),
        torch.stack([done.compute_flops for done in played]),
    )
