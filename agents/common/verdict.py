"""The verdict on a policy at the end of a run: whether it saves compute and keeps the accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from skipnet_rl.policies import AlwaysExecute
from skipnet_rl.tolerance import Tolerance

if TYPE_CHECKING:
    from agents.common.setting import Setting

WORSE = 0.02  # loss of accuracy above which a run prints a note
SHOWN = 5e-4  # share of the FLOPs that is shown as 0.1 %


def verdict(
    setting: Setting, kept: Mapping[str, Any], policy_flops: float, tolerance: Tolerance | None = None
) -> list[str]:
    """Return notes on a policy that saves nothing or loses accuracy, see `shortcomings`; none if it is fine.

    It is compared with the network of the row "all blocks", on the validation images of the training; over a
    frozen network, with that network, since no policy can make up for what the network itself lacks.

    Args:
        setting: the setting of the run; its `args` name the flags to change.
        kept: summary of the policy that the run keeps, on these images.
        policy_flops: the policy's own FLOPs over those of the plain network.
        tolerance: the measurement before training; None for a chain.
    """
    save, spare = setting.args.advice
    if kept["compute_flops"] >= 1 + SHOWN:
        save = f"The policy itself costs {policy_flops:.1%}, more than its skips save. {save}"
    whole = accuracy_of_whole(setting, tolerance)
    return shortcomings(whole, kept["accuracy"], kept["compute_flops"], (save, spare))


def accuracy_of_whole(setting: Setting, tolerance: Tolerance | None) -> float:
    """Return the accuracy of the network that a policy is compared with, every block executed."""
    net = setting.net if setting.args.frozen else setting.plain
    images = min(setting.args.eval_images, len(setting.val))
    if tolerance and net is setting.net and tolerance.images == images:  # it counted the same images
        return tolerance.whole
    found: float = setting.validate(setting.problem.mdp(net), AlwaysExecute())["accuracy"]
    return found


def shortcomings(whole: float, accuracy: float, compute_flops: float, advice: Sequence[str]) -> list[str]:
    """Notes on a run that saves no compute or loses accuracy; none if it does neither.

    Args:
        whole: accuracy of the network with all blocks, on validation images.
        accuracy: accuracy of the final policy on the same images.
        compute_flops: FLOPs of the final policy over those of the plain network.
        advice: what to do if nothing is saved, and if accuracy is lost.
    """
    found = []
    idle, worse = compute_flops > 0.99, whole - accuracy > WORSE
    if idle and worse:  # to follow one advice would make the other fault worse
        advice = ("It also loses accuracy", "Train for longer, or start from another network (--weights)")
    if idle:
        found.append(f"nothing is saved: {compute_flops:.1%} of the FLOPs remain. {advice[0]}")
    if worse:
        found.append(
            f"accuracy is lost: {accuracy:.1%} of the validation images are right, {whole:.1%} with all "
            f"blocks. {advice[1]}"
        )
    return found
