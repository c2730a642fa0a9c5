"""Controls of a policy that chooses by the image: its routes shuffled, its most frequent route."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from skipnet_rl.evaluate import Evaluation
from skipnet_rl.randomness import Stream, step_generator
from skipnet_rl.statistics import accuracy_difference

EXCHANGED, MOST_FREQUENT = "routes exchanged", "most frequent route"  # names of their rows


def gains(name: str, rows: Mapping[str, Evaluation]) -> dict[str, dict[str, float]]:
    """Difference of the policy's accuracy from each control's on the same images.

    `"changed"` is the share of images with another route, an upper bound of the difference.
    """
    own, found = rows[name], {}
    for control in (EXCHANGED, MOST_FREQUENT):
        other = rows[control]
        gain = accuracy_difference(own.correct, other.correct)
        changed = (own.routes != other.routes).any(dim=1).double().mean().item()
        found[control] = {**gain, "changed": changed}
    return found


def gain_lines(name: str, found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The `gains` as text."""
    return [
        f"{name} over {control}: {100 * gain['accuracy']:+.2f} ± {100 * gain['ci95']:.2f} points of "
        f"accuracy; {gain['changed']:.0%} of the images have another route there"
        for control, gain in found.items()
    ]


def exchanged(routes: Tensor, seed: int) -> Tensor:
    """The routes [M, N] in random order, each as often as before; an image may get one like its own."""
    draws = step_generator(seed, 0, "cpu", Stream.EXCHANGE)
    return routes[torch.randperm(len(routes), generator=draws, device="cpu")]


def at_the_ends(rows: Mapping[str, Evaluation]) -> list[str]:
    """Notes on biases that execute or skip everything, so that a further one changes nothing."""
    notes = []
    for name, done in rows.items():
        if name.startswith("bias") and done.routes.all():
            notes.append(f"{name} executes every block of every image; a larger one cannot spend more")
        elif name.startswith("bias") and not done.routes.any():
            notes.append(f"{name} skips every block of every image; a smaller one cannot spend less")
    return notes
