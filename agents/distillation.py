"""Knowledge distillation: what a trained network predicts, as a part of another's loss.

Hinton, Vinyals, Dean 2015 (arXiv 1503.02531), section 2.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from skipnet_rl.errors import WeightsError
from skipnet_rl.resnet import Architecture, ResNet
from skipnet_rl.weights import build_backbone, find_shipped

TEMPERATURE = 4.0


def distilled(loss: Tensor, logits: Tensor, targets: Tensor | None, share: float) -> Tensor:
    """Mix each image's cross-entropy with T² KL(teacher ‖ student) at temperature T = 4.

    Args:
        loss: cross-entropy [B].
        logits: the student's, [B, K].
        targets: the teacher's logits [B, K], or None for the labels alone.
        share: of the teacher in the mixture, from 0 to 1.

    Returns:
        The loss [B].
    """
    if targets is None:
        return loss
    student, teacher = (F.log_softmax(each / TEMPERATURE, dim=1) for each in (logits, targets))
    divergence = F.kl_div(student, teacher, log_target=True, reduction="none").sum(dim=1)
    return loss + share * (TEMPERATURE**2 * divergence - loss)


def check_teacher(
    teacher: str | None, share: float, depth: int | None, student: int, start: str | None = None
) -> None:
    """Raise a ValueError for a teacher that has no say or no training, or that is made for other images.

    Args:
        teacher: `--teacher`.
        share: `--distillation`.
        depth: `--teacher-depth`.
        student: depth of the network that learns.
        start: `--weights`, the teacher where none is named.
    """
    if teacher and not share:
        raise ValueError("--teacher has no say without --distillation")
    if share and (teacher or start) == "none":
        raise ValueError("an untrained network cannot teach; name a trained one: --teacher")
    if depth and not teacher:
        raise ValueError("--teacher-depth has no say without --teacher")
    if depth:
        size, own = Architecture.of_depth(depth).image_size, Architecture.of_depth(student).image_size
        if size != own:
            raise ValueError(
                f"--teacher-depth {depth} takes images of {size} pixels, a ResNet-{student} those of {own}"
            )


def load_teacher(
    weights: str | None, depth: int, num_classes: int, dataset: str, shortcut: str, device: torch.device
) -> ResNet | None:
    """The teacher or None, see `build_backbone`; an untrained one is a WeightsError."""
    if not weights:
        return None
    if weights == "auto" and find_shipped(depth, dataset, shortcut) is None:
        raise WeightsError(f"no ResNet-{depth} on {dataset} is shipped to teach; name a file: --teacher")
    return build_backbone(depth, num_classes, dataset, shortcut, weights).to(device)
