"""Knowledge distillation: the predictions of trained networks as a part of another network's loss.

Hinton, Vinyals, Dean 2015 (arXiv 1503.02531), section 2. Several teachers count as one with the geometric
mean of their distributions, which is the mean of their logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agents.common.flags import CompiledArgs, Method
from skipnet_rl import catalogue
from skipnet_rl.chain import Chain
from skipnet_rl.errors import WeightsError
from skipnet_rl.folding import for_inference
from skipnet_rl.network import Network
from skipnet_rl.problem import Problem
from skipnet_rl.resnet import ResNet
from skipnet_rl.weights import open_weights

if TYPE_CHECKING:
    from agents.common.setting import Setting

TEMPERATURE = 4.0
SHARE = 0.9  # of the teachers in the loss, if any are named and no share is given


@dataclass(frozen=True)
class TaughtArgs(CompiledArgs):
    """Flags of an agent that learns from the labels, and from teachers if any are named."""

    teacher: Method[tuple[str, ...]] = ()
    """networks whose predictions the backbone also learns to match: files, names of shipped ones, or auto"""
    distillation: Method[float] = SHARE
    """share of the teachers in the loss, if there are any"""

    @property
    def share(self) -> float:
        """The teachers' share of the loss."""
        return self.distillation if self.teacher else 0.0

    @property
    def networks(self) -> tuple[str | None, ...]:
        """Weights that the run starts from, and the teachers'."""
        return (self.weights, *self.teacher)

    def check(self) -> None:
        """Raise a ValueError for a name or number that makes no sense."""
        super().check()
        check_teachers(self.teacher, self.share)


class Teacher(nn.Module):
    """Copies of trained networks, every block executed: images [B, 3, H, W] → mean logits [B, K].

    Args:
        nets: one or more networks or chains with the same classes, on one device.
        precision: of their convolutions, see `for_inference`.
    """

    def __init__(self, nets: Sequence[Network | Chain], precision: str) -> None:
        super().__init__()
        self.nets = nn.ModuleList(
            net.for_inference(precision) if isinstance(net, Chain) else for_inference(net, precision)
            for net in nets
        )

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


def check_teachers(teachers: Sequence[str], share: float, start: str | None = None) -> None:
    """Raise a ValueError for teachers without a share of the loss, or without training.

    Args:
        teachers: `--teacher`.
        share: `--distillation`.
        start: `--weights`, the teacher if none is named.
    """
    if teachers and not share:
        raise ValueError("the teachers have no share of the loss; give them one, or leave out --teacher")
    if share and ("none" in teachers if teachers else start == "none"):
        raise ValueError("an untrained network cannot teach; name a trained one: --teacher")


def teachers_of(setting: Setting[Any]) -> list[Network]:
    """Return the networks of `--teacher`, or else the plain network that the run is compared with."""
    args = setting.args
    if not args.teacher:
        return [setting.plain]
    return load_teachers(args.teacher, setting.net, len(setting.train.classes), setting.problem)


def load_teachers(
    teachers: Sequence[str], student: Network | Chain, num_classes: int, problem: Problem
) -> list[Network]:
    """Open the teachers, whatever their depth; `"auto"` is the best shipped network of the student's depth.

    Raises:
        WeightsError: no such network, or one for other classes.
        ValueError: a network for images of another size than the student's.
    """
    nets, dataset = [], problem.dataset
    student_depth = student.depth if isinstance(student, ResNet) else None
    for name in teachers:
        entry = catalogue.find_auto(student_depth, dataset, problem.shortcut) if name == "auto" else None
        if name == "auto" and entry is None:
            raise WeightsError(f"no {student.name} on {dataset} is shipped to teach; name a file: --teacher")
        depth = student_depth if name == "torchvision" else None
        net = open_weights(entry["name"] if entry else name, depth=depth, num_classes=num_classes).network
        if net.image_size != student.image_size:
            raise ValueError(
                f"the teacher {name} takes images of {net.image_size} pixels, a {student.name} images of "
                f"{student.image_size}; name a teacher for the same size"
            )
        nets.append(net.to(problem.device))
    return nets
