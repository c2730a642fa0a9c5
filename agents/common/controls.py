"""Controls for a policy that chooses per image: its routes shuffled, its most frequent route.

`exchanged` is one random permutation of the routes, an unbiased estimate of the expectation over all of them.
For chains, whose routes are few, `skipnet_rl.controls.Routes.dealt_out` computes that expectation.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from skipnet_rl.evaluate import Evaluation
from skipnet_rl.randomness import Stream, step_generator
from skipnet_rl.statistics import accuracy_difference

EXCHANGED, MOST_FREQUENT = "routes exchanged", "most frequent route"  # names of their rows


def gains(name: str, rows: Mapping[str, Evaluation]) -> dict[str, dict[str, float]]:
    """Compare the policy's accuracy with each control's on the same images.

    `"changed"` is the share of images with another route, an upper bound on the difference.
    """
    own, found = rows[name], {}
    for control in (EXCHANGED, MOST_FREQUENT):
        other = rows[control]
        gain = accuracy_difference(own.correct, other.correct)
        changed = (own.routes != other.routes).any(dim=1).double().mean().item()
        found[control] = {**gain, "changed": changed}
    return found


def gain_lines(name: str, found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Format the `gains` as text."""
    return [
        f"{name} over {control}: {100 * gain['accuracy']:+.2f} ± {100 * gain['ci95']:.2f} points of "
        f"accuracy; {gain['changed']:.0%} of the images have another route there"
        for control, gain in found.items()
    ]


def exchanged(routes: Tensor, seed: int) -> Tensor:
    """Shuffle the routes [M, N] over the images; an image may get one that equals its own."""
    draws = step_generator(seed, 0, "cpu", Stream.EXCHANGE)
    return routes[torch.randperm(len(routes), generator=draws, device="cpu")]


def at_the_ends(rows: Mapping[str, Evaluation]) -> list[str]:
    """Return notes on biases that execute or skip everything, beyond which nothing changes."""
    notes = []
    for name, done in rows.items():
        if name.startswith("bias") and done.routes.all():
            notes.append(f"{name} executes every block of every image; a larger one cannot spend more")
        elif name.startswith("bias") and not done.routes.any():
            notes.append(f"{name} skips every block of every image; a smaller one cannot spend less")
    return notes
