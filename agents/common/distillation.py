"""Knowledge distillation: what trained networks predict, as a part of another's loss.

Hinton, Vinyals, Dean 2015 (arXiv 1503.02531), section 2; of several teachers the geometric mean of their
distributions, which is the mean of their logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skipnet_rl.errors import WeightsError
from skipnet_rl.folding import for_inference
from skipnet_rl.resnet import Architecture, ResNet
from skipnet_rl.weights import build_backbone, find_entry, index

TEMPERATURE = 4.0


class Teacher(nn.Module):
    """Trained networks as they are now, every block executed: images [B, 3, H, W] → mean logits [B, K].

    Args:
        nets: one or more of the same classes, on one device; they are copied.
        precision: of their convolutions, see `for_inference`.
    """

    def __init__(self, nets: Sequence[ResNet], precision: str) -> None:
        super().__init__()
        self.nets = nn.ModuleList(for_inference(net, precision) for net in nets)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """The mean of their logits, without gradients."""
        return torch.stack([net(images) for net in self.nets]).mean(dim=0)


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


def check_teachers(
    teachers: Sequence[str], share: float, depths: Sequence[int], student: int, start: str | None = None
) -> None:
    """Raise a ValueError for teachers that have no say or no training, or that are made for other images.

    Args:
        teachers: `--teacher`.
        share: `--distillation`.
        depths: `--teacher-depth`.
        student: depth of the network that learns.
        start: `--weights`, the teacher where none is named.
    """
    if teachers and not share:
        raise ValueError("--teacher has no say without --distillation")
    if share and (start == "none" if not teachers else "none" in teachers):
        raise ValueError("an untrained network cannot teach; name a trained one: --teacher")
    if depths and not teachers:
        raise ValueError("--teacher-depth has no say without --teacher")
    if depths and len(depths) != len(teachers):
        raise ValueError(f"--teacher-depth has {len(depths)} values for {len(teachers)} of --teacher")
    own = Architecture.of_depth(student).image_size
    for depth in depths:
        size = Architecture.of_depth(depth).image_size
        if size != own:
            raise ValueError(
                f"--teacher-depth {depth} takes images of {size} pixels, a ResNet-{student} those of {own}"
            )


def depths_of(teachers: Sequence[str], depths: Sequence[int], student: int) -> list[int]:
    """Depths of the teachers: those given, else a shipped network's own, else the student's."""
    shipped = {entry["name"]: entry["depth"] for entry in index()}
    return list(depths) or [shipped.get(name, student) for name in teachers]


def load_teachers(
    teachers: Sequence[str],
    depths: Sequence[int],
    student: int,
    num_classes: int,
    dataset: str,
    shortcut: str,
    device: torch.device,
) -> list[ResNet]:
    """The teachers, see `depths_of` and `build_backbone`; an untrained one is a WeightsError."""
    nets = []
    for name, depth in zip(teachers, depths_of(teachers, depths, student), strict=True):
        if name == "auto" and find_entry(depth, dataset, shortcut) is None:
            raise WeightsError(f"no ResNet-{depth} on {dataset} is shipped to teach; name a file: --teacher")
        nets.append(build_backbone(depth, num_classes, dataset, shortcut, name, exact=True).to(device))
    return nets
