"""Every image once: accuracy, computation, return, routes."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skipnet_rl.data import Images
from skipnet_rl.device import autocast
from skipnet_rl.files import whole_file
from skipnet_rl.flops import compute_blocks
from skipnet_rl.policies import Policy, policy_macs
from skipnet_rl.process import DecisionProcess
from skipnet_rl.rollout import rollout
from skipnet_rl.statistics import wilson_interval


class Record(NamedTuple):
    """What `save_evaluations` keeps of a policy: routes [M, N] bool, predictions [M], correct [M] bool."""

    routes: NDArray[np.bool_]
    predictions: NDArray[np.int16]
    correct: NDArray[np.bool_]


# what NumPy and zipfile raise of files whose bytes have changed
DAMAGE = (KeyError, TypeError, OSError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Evaluation:
    """What a policy did with each of M images; N decisions, K classes.

    Attributes:
        routes: [M, N] bool, True where the block was executed.
        predictions: [M] int64.
        correct: [M] bool.
        confidence: [M] float64, the largest class probability (of the softmax).
        loss: [M] cross-entropy.
        returns: [M] episode returns.
        compute_flops: [M] FLOPs over those of the plain network, gates included.
        policy_flops: the gates' part in it, alike for every image.
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
        """Share of the N decisions that were "execute"."""
        return self.routes.float().mean().item()

    @property
    def accuracy(self) -> float:
        """Share of correct predictions."""
        return self.correct.double().mean().item()

    @property
    def accuracy_ci95(self) -> tuple[float, float]:
        """The accuracy's 95 % interval over images, (low, high); see `wilson_interval`."""
        return wilson_interval(int(self.correct.sum()), len(self.correct))

    def record(self) -> Record:
        """What `save_evaluations` keeps of it."""
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
    """Play every image once, in evaluation mode, through a copy of the network for inference.

    Args:
        mdp: the decision process; its network is left as it is.
        policy: what decides; a module's gate MACs are counted where it has `macs()`.
        images: the split, on the network's device.
        mode: how log-odds become actions, see `rollout.choose`.
        generator: for the modes that draw, on the images' device.
        routes: [M, N] bool, played instead of the policy's choices: a replay.
        batch_size: images at a time (default: 125, on a GPU 1,000); greedy results do not depend on it beyond
            rounding.
        precision: `"fp32"` or `"bf16"`.
        progress: called after each batch with the number of images done, and with M.

    Raises:
        ValueError: no images, or routes of another shape.
    """
    images.check_not_empty()
    if routes is not None and routes.shape != (len(images), mdp.num_decisions):
        wanted = (len(images), mdp.num_decisions)
        raise ValueError(f"routes have shape {tuple(routes.shape)}; expected {wanted}, one per image")
    parts = []
    batch_size = batch_size or usual_batch_size(images.device)
    whole, gates = mdp.whole_macs, policy_macs(policy)
    mdp = mdp.for_inference()
    with evaluation_mode(policy):
        for number, (batch, labels) in enumerate(images.batches(batch_size)):
            given = None if routes is None else routes.to(batch.device).split(batch_size)[number].bool()
            with autocast(precision, batch.device):
                episode = rollout(mdp, policy, batch, labels, mode, generator, routes=given)
            # confidence in float64: in float32 the surest images would all have the same, exactly 1
            routes_taken = episode.actions > 0.5
            parts.append(
                {
                    "routes": routes_taken,
                    "predictions": episode.predictions,
                    "correct": episode.correct,
                    "confidence": episode.logits.double().softmax(dim=1).amax(dim=1),
                    "loss": episode.loss,
                    "returns": episode.returns,
                    "compute_flops": mdp.compute_flops(episode.state, routes_taken, gates),
                }
            )
            if progress:
                progress(min((number + 1) * batch_size, len(images)), len(images))
    found = {key: torch.cat([part[key] for part in parts]).cpu() for key in parts[0]}
    return Evaluation(**found, policy_flops=gates / whole)


def usual_batch_size(device: torch.device) -> int:
    """Images at a time where nothing is trained: on a CPU what the caches hold is quicker."""
    return 1_000 if device.type == "cuda" else 125


def most_frequent(routes: Tensor) -> Tensor:
    """The commonest [N] of the routes [M, N]; of several the first in their order as binary numbers."""
    each, counts = routes.unique(dim=0, return_counts=True)
    return each[counts.argmax()]


def save_evaluations(path: Path, evaluations: Mapping[str, Evaluation]) -> None:
    """Write the routes and predictions of each policy, image by image, as one .npz."""
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
    """Read them back, by the policy's name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or not such a file.
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


@contextmanager
def evaluation_mode(policy: Policy) -> Iterator[None]:
    """A policy that is a module in evaluation mode, then each submodule as it was."""
    modules = list(policy.modules()) if isinstance(policy, nn.Module) else []
    training = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, was_training in zip(modules, training, strict=True):
            module.training = was_training
