"""The verdict on a policy at the end of a run: whether it saves compute and keeps the accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from agents.common.preparation import shortcomings
from skipnet_rl.policies import AlwaysExecute
from skipnet_rl.tolerance import Tolerance

if TYPE_CHECKING:
    from agents.common.setting import Setting

SHOWN = 5e-4  # share of the FLOPs that is shown as 0.1 %


def verdict(
    setting: Setting, kept: Mapping[str, Any], policy_flops: float, tolerance: Tolerance | None = None
) -> list[str]:
    """Return notes on a policy that saves nothing or loses accuracy, see `shortcomings`; none if it is fine.

    It is compared with the network of the row "all blocks", on the validation images of the training.

    Args:
        setting: the setting of the run; its `args` name the flags to change.
        kept: summary of the policy that the run keeps, on these images.
        policy_flops: the policy's own FLOPs over those of the plain network.
        tolerance: the measurement before training, if any, which may have counted the same images.
    """
    save, spare = setting.args.advice
    if kept["compute_flops"] >= 1 + SHOWN:
        save = f"The policy itself costs {policy_flops:.1%}, more than its skips save. {save}"
    whole = accuracy_of_whole(setting, tolerance)
    return shortcomings(whole, kept["accuracy"], kept["compute_flops"], (save, spare))


def accuracy_of_whole(setting: Setting, tolerance: Tolerance | None) -> float:
    """Return the accuracy of the row "all blocks", on the validation images of the training."""
    images = min(setting.args.eval_images, len(setting.val))
    if tolerance and not setting.plain_name and tolerance.images == images:
        return tolerance.whole
    found: float = setting.validate(setting.problem.mdp(setting.plain), AlwaysExecute())["accuracy"]
    return found
