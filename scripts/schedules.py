"""Lengths and hyperparameters of the commands of the study's rows, see `rows`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Schedule:
    """Lengths and hyperparameters of a row's commands.

    Attributes:
        preset: rows of agents/common/presets.py for SP (with `-sp`) and HRL.
        backbone: epochs of the backbone, then of its warm restarts, by the names of their folders.
        batch_size: images per step of the backbone, and in the longer tuning.
        lr: peak learning rate of SGD for the backbone alone; half of it in warm restarts.
        distilled: training steps of the longer tuning, `agents.finetune`.
        eval_every: steps between validations in it.
        runs: alpha of each HRL run and gain of its gates' initial weights; with gain 1 the gates are those of
            SP, otherwise new ones.
        taught: the runs that are tuned further, with the plain network as the teacher.
        fixed: the runs that are tuned further in the same way on one route for all images.
        survival: stochastic depth of the backbone, see `agents.pretrain`.
        changes: steps and learning rates with gates that differ from the preset's.
        teachers: shipped networks that teach in every step before that, if any.
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


# ResNet-38: 2 CPU cores finish it in a night. The run at half of the FLOPs is tuned further, and the one of
# the two at a third whose routes vary.
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
# Deeper networks: batches that fill a GPU, SGD's rates scaled alike (Goyal et al. 2017, arXiv 1706.02677) but
# for the longer tuning: at 0.2 the networks forgot more than the teacher gave back in as few epochs.
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
# ResNet-74 grows out of the shipped ResNet-38, and two networks teach it from the first step on.
GROWN = replace(
    GPU,
    backbone={"grown": 14},
    lr=0.05,
    runs=((0.5, 1.0), (1.0, 1.0)),
    taught=(),
    changes={"lr": 0.05, "tune_iterations": 850},
    teachers=("resnet110-cifar10", "resnet38-cifar10-distilled"),
)
# ResNet-152 starts from what two teachers have taught already, and its steps cost twice as much.
LARGE = replace(
    GROWN,
    backbone={"grown": 8},
    runs=((0.5, 1.0),),
    changes={"lr": 0.05, "iterations": 250, "tune_iterations": 450},
)


# As long as the field trains them, with stochastic depth (Huang et al. 2016, arXiv 1603.09382), which leaves
# networks that are used to skips; on CPU cores a third of that.
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
# ImageNet's networks start from torchvision's weights, as the paper's do.
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
    """The backbone of a schedule, without gates."""
    return replace(schedule, runs=(), taught=(), fixed=())
