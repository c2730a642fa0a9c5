"""Lengths and hyperparameters of the commands in each row of `scripts.rows`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Schedule:
    """Lengths and hyperparameters of a row's commands.

    Attributes:
        preset: preset of HRL in agents/common/presets.py; with `-sp` appended, that of SP.
        backbone: epochs of the backbone and of its warm restarts, keyed by the names of their folders.
        batch_size: images per step of the backbone and of the longer tuning.
        lr: peak learning rate of SGD for the backbone; warm restarts use half of it.
        distilled: training steps of the longer tuning by `agents.finetune`.
        eval_every: steps between validations in the longer tuning.
        runs: alpha of each HRL run and gain of the initial weights of its gates. With gain 1 the run starts
            from the gates of SP, otherwise from new ones.
        taught: the runs that are tuned for longer, with the plain network as the teacher.
        fixed: the runs that are tuned in the same way on one route for all images.
        survival: stochastic depth of the backbone, see `agents.pretrain`.
        changes: values that replace the preset's in SP and HRL.
        teachers: shipped networks that teach the backbone, SP and HRL, if any.
    """

    preset: str
    backbone: dict[str, float]
    batch_size: int
    lr: float
    distilled: int
    eval_every: int
    runs: tuple[tuple[float, float], ...]
    taught: tuple[tuple[float, float], ...]
    changes: dict[str, float] = field(default_factory=dict)
    teachers: tuple[str, ...] = ()
    fixed: tuple[tuple[float, float], ...] = ()
    survival: float = 1.0


# ResNet-38: one night on 2 CPU cores. Two runs are tuned for longer: the one at half of the FLOPs and, of the
# two at a third, the one whose routes vary.
CORES = Schedule(
    preset="cores",
    backbone={"backbone": 40, "restart": 15},
    batch_size=128,
    lr=0.1,
    distilled=12_000,
    eval_every=250,
    runs=((0.5, 1.0), (1.0, 1.0), (1.0, 6.0)),
    taught=((0.5, 1.0), (1.0, 6.0)),
)
# Deeper networks: batches that fill a GPU, with SGD's rates scaled in proportion (Goyal et al. 2017, arXiv
# 1706.02677). The longer tuning keeps its rate: at 0.2 the networks forgot more than the teacher gave back in
# so few epochs.
GPU = Schedule(
    preset="gpu",
    backbone={"backbone": 70},
    batch_size=512,
    lr=0.4,
    distilled=530,
    eval_every=265,
    runs=((0.1, 1.0), (0.2, 1.0), (0.4, 1.0), (0.8, 1.0)),
    taught=((0.4, 1.0), (0.8, 1.0)),
)
# ResNet-74 grows out of the shipped ResNet-38; two teachers are used from the first step on.
GROWN = replace(
    GPU,
    backbone={"grown": 14},
    lr=0.05,
    runs=((0.5, 1.0), (1.0, 1.0)),
    taught=(),
    changes={"lr": 0.05, "tune_iterations": 850},
    teachers=("resnet110-cifar10", "resnet38-cifar10-distilled"),
)
# ResNet-152 grows out of a ResNet-110 that two teachers have trained. Its steps cost twice ResNet-74's.
LARGE = replace(
    GROWN,
    backbone={"grown": 8},
    runs=((0.5, 1.0),),
    changes={"lr": 0.05, "iterations": 250, "tune_iterations": 450},
)


# The usual length in the literature, with stochastic depth (Huang et al. 2016, arXiv 1603.09382), so that the
# networks are used to skips; a third of that length on CPU cores.
LONG = Schedule(
    preset="gpu",
    backbone={"backbone": 300},
    batch_size=512,
    lr=0.4,
    distilled=2_000,
    eval_every=250,
    runs=((0.4, 1.0), (0.8, 1.0), (1.6, 1.0)),
    taught=((0.8, 1.0),),
    fixed=((0.8, 1.0),),
    survival=0.5,
)
LONG_ON_CORES = replace(
    LONG, preset="cores", backbone={"backbone": 100}, batch_size=128, lr=0.1, distilled=12_000
)
# ImageNet networks start from torchvision's weights, as in the paper.
IMAGENET = replace(
    LONG,
    backbone={},
    batch_size=256,
    changes={"batch_size": 256, "lr": 0.05, "iterations": 20_000, "tune_iterations": 10_000},
    distilled=20_000,
    eval_every=1_000,
    taught=(),
    fixed=(),
    survival=1.0,
)


def only_plain(schedule: Schedule) -> Schedule:
    """Return the schedule without gates: the backbone alone."""
    return replace(schedule, runs=(), taught=(), fixed=())
