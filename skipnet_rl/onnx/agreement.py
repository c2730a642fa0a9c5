"""Compare an exported model with PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from skipnet_rl.data import Images
from skipnet_rl.onnx.model import onnx_session
from skipnet_rl.policies import Policy
from skipnet_rl.process import DecisionProcess
from skipnet_rl.rollout import rollout

BATCH_SIZE = 64


class Agreement(NamedTuple):
    """How far an exported model agrees with PyTorch on M images.

    Attributes:
        images: M.
        same_routes: number of images on which all N decisions are the same.
        logits: largest absolute difference of a logit on these images.
    """

    images: int
    same_routes: int
    logits: float


def compare_with_torch(
    path: Path,
    mdp: DecisionProcess,
    policy: Policy,
    images: Images,
    progress: Callable[[int, int], object] | None = None,
) -> Agreement:
    """Run every image through the model and through PyTorch, both in float32.

    Args:
        path: the exported model.
        mdp, policy: what it was exported from.
        images: images to compare on.
        progress: called after each batch with the number of images done and their total.
    """
    session = onnx_session(path)
    same_routes, largest = 0, 0.0
    batch_size = 1 if session.get_inputs()[0].shape[0] == 1 else BATCH_SIZE
    for number, (batch, labels) in enumerate(images.batches(batch_size), start=1):
        logits, routes = map(torch.from_numpy, session.run(None, {"images": batch.contiguous().numpy()}))
        with torch.no_grad():
            episode = rollout(mdp, policy, batch, labels)
        equal = (routes == episode.actions.bool()).all(dim=1)
        same_routes += int(equal.sum())
        if equal.any():
            difference = (logits - episode.logits)[equal].abs().max().nan_to_num(nan=math.inf)
            largest = max(largest, difference.item())
        if progress:
            progress(min(number * batch_size, len(images)), len(images))
    return Agreement(len(images), same_routes, largest)
