"""Evaluate a policy on every image: accuracy, computation, return, routes."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skipnet_rl.data import Images
from skipnet_rl.device import autocast
from skipnet_rl.files import whole_file
from skipnet_rl.flops import compute_blocks
from skipnet_rl.modules import evaluation_mode
from skipnet_rl.policies import Policy, policy_macs
from skipnet_rl.process import DecisionProcess
from skipnet_rl.rollout import Trajectory, rollout
from skipnet_rl.statistics import wilson_interval


class Record(NamedTuple):
    """Stored results of a policy: routes [M, N] bool, predictions [M], correct [M] bool."""

    routes: NDArray[np.bool_]
    predictions: NDArray[np.int16]
    correct: NDArray[np.bool_]


SMALL = 64  # side in pixels; batches of larger images are kept small for a GPU's memory
# raised by NumPy and zipfile for damaged files
DAMAGE = (KeyError, TypeError, OSError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Evaluation:
    """Results of a policy on M images; N decisions, K classes.

    Attributes:
        routes: [M, N] bool, True where the block was executed.
        predictions: [M] int64.
        correct: [M] bool.
        confidence: [M] float64, largest softmax probability.
        loss: [M] cross-entropy.
        returns: [M] episode returns.
        compute_flops: [M] FLOPs relative to the plain network, gates included.
        policy_flops: the gates' part of `compute_flops`, the same for every image.
    """

    routes: Tensor
    predictions: Tensor
    correct: Tensor
    confidence: Tensor
    loss: Tensor
    returns: Tensor
    compute_flops: Tensor
    policy_flops: float = 0.0

    @property
    def rate(self) -> float:
        """Share of decisions that were "execute"."""
        return self.routes.float().mean().item()

    @property
    def accuracy(self) -> float:
        """Share of correct predictions."""
        return self.correct.double().mean().item()

    @property
    def accuracy_ci95(self) -> tuple[float, float]:
        """95 % interval of the accuracy over images, (low, high); see `wilson_interval`."""
        return wilson_interval(int(self.correct.sum()), len(self.correct))

    def record(self) -> Record:
        """The part that `save_evaluations` stores."""
        predictions = self.predictions.numpy().astype(np.int16)
        return Record(self.routes.numpy(), predictions, self.correct.numpy())

    def summary(self, name: str) -> dict[str, Any]:
        """The policy's entry in result.json."""
        executed = self.routes.sum(dim=1).double()
        return {
            "name": name,
            "accuracy": self.accuracy,
            "accuracy_ci95": list(self.accuracy_ci95),
            "loss": self.loss.double().mean().item(),
            "return": self.returns.double().mean().item(),
            "executed_blocks_mean": executed.mean().item(),
            "executed_blocks_std": executed.std(correction=0).item(),
            "compute_blocks": compute_blocks(self.routes).mean().item(),
            "compute_flops": self.compute_flops.mean().item(),
            "compute_flops_std": self.compute_flops.std(correction=0).item(),
            "policy_flops": self.policy_flops,
            "unique_routes": len(torch.unique(self.routes, dim=0)),
            "executed_blocks_histogram": torch.bincount(
                self.routes.sum(dim=1), minlength=self.routes.shape[1] + 1
            ).tolist(),
            "execution_rate": self.routes.double().mean(dim=0).tolist(),
        }


@torch.no_grad()
def evaluate(
    mdp: DecisionProcess,
    policy: Policy,
    images: Images,
    *,
    mode: str = "greedy",
    generator: torch.Generator | None = None,
    routes: Tensor | None = None,
    batch_size: int | None = None,
    precision: str = "fp32",
    progress: Callable[[int, int], object] | None = None,
) -> Evaluation:
    """Play every image once, in evaluation mode, on a copy of the network for inference.

    Args:
        mdp: the decision process; its network is not changed.
        policy: the policy; its MACs are counted if it has `macs()`.
        images: images on the network's device.
        mode: how log-odds become actions, see `rollout.choose`.
        generator: random generator for the modes that sample, on the images' device.
        routes: [M, N] bool, played instead of the policy's choices.
        batch_size: images at a time (default: 125, on a GPU 1,000 if they have at most 64 pixels a side);
            greedy results do not depend on it beyond rounding.
        precision: `"fp32"` or `"bf16"`.
        progress: called after each batch with the number of images done and M.

    Raises:
        ValueError: no images, or routes of another shape.
    """
    images.check_not_empty()
    if routes is not None and routes.shape != (len(images), mdp.num_decisions):
        wanted = (len(images), mdp.num_decisions)
        raise ValueError(f"routes have shape {tuple(routes.shape)}; expected {wanted}, one per image")
    parts = []
    batch_size = batch_size or usual_batch_size(images.device, mdp.net.image_size)
    given = [] if routes is None else routes.to(images.device).bool().split(batch_size)
    whole, gates = mdp.whole_macs, policy_macs(policy)
    mdp = mdp.for_inference()
    with evaluation_mode(policy):
        for number, (batch, labels) in enumerate(images.batches(batch_size)):
            played = given[number] if given else None
            with autocast(precision, batch.device):
                episode = rollout(mdp, policy, batch, labels, mode, generator, routes=played)
            parts.append(_results(mdp, episode, gates))
            if progress:
                progress(min((number + 1) * batch_size, len(images)), len(images))
    found = {key: torch.cat([part[key] for part in parts]).cpu() for key in parts[0]}
    return Evaluation(**found, policy_flops=gates / whole)


def _results(mdp: DecisionProcess, episode: Trajectory, policy_macs: int) -> dict[str, Tensor]:
    """Results of a batch, by attribute of `Evaluation`."""
    routes = episode.actions > 0.5
    return {
        "routes": routes,
        "predictions": episode.predictions,
        "correct": episode.correct,
        # in float64: in float32 the most confident images would all have exactly 1
        "confidence": episode.logits.double().softmax(dim=1).amax(dim=1),
        "loss": episode.loss,
        "returns": episode.returns,
        "compute_flops": mdp.compute_flops(episode.state, routes, policy_macs),
    }


def usual_batch_size(device: torch.device, image_size: int) -> int:
    """Batch size for evaluation: on a CPU batches that fit its caches are faster."""
    return 1_000 if device.type == "cuda" and image_size <= SMALL else 125


def most_frequent(routes: Tensor) -> Tensor:
    """The most frequent of the routes [M, N], as [N]; of several the smallest as a binary number."""
    each, counts = routes.unique(dim=0, return_counts=True)
    return each[counts.argmax()]


def save_evaluations(path: Path, evaluations: Mapping[str, Evaluation]) -> None:
    """Write routes and predictions of each policy to one .npz file."""
    arrays: dict[str, Any] = {"policies": np.array(list(evaluations))}
    for number, done in enumerate(evaluations.values()):
        record = done.record()
        arrays[f"{number}/routes"] = np.packbits(record.routes, axis=1)
        arrays[f"{number}/predictions"] = record.predictions
        arrays[f"{number}/correct"] = np.packbits(record.correct)
        arrays[f"{number}/shape"] = np.array(record.routes.shape)
    with whole_file(path) as beside, beside.open("wb") as file:
        np.savez_compressed(file, **arrays)


def load_records(path: Path) -> dict[str, Record]:
    """Read a file of `save_evaluations`: the records by the policies' names.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged or holds something else.
    """
    try:
        stored = np.load(path, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            raise TypeError("it is a single array")
        with stored:
            records = {}
            for number, name in enumerate(stored["policies"].tolist()):
                count, decisions = stored[f"{number}/shape"].tolist()
                records[name] = Record(
                    np.unpackbits(stored[f"{number}/routes"], axis=1, count=decisions).astype(bool),
                    stored[f"{number}/predictions"],
                    np.unpackbits(stored[f"{number}/correct"], count=count).astype(bool),
                )
            return records
    except FileNotFoundError:
        raise
    except DAMAGE as error:
        raise ValueError(f"{path} does not hold routes: {error}") from error
