"""Flags of the agents: one flat dataclass for the code, four headings on the command line.

A field declared as `Data[…]`, `Method[…]`, `Schedule[…]` or `Run[…]` is a flag, listed in `--help` under
that heading. Any other field is set by presets and by Python code alone. `agents.common.flag_rules` checks
the values of the flags, `agents.common.parsing` reads the command line.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeVar

from agents.common.flag_rules import check_choices, check_model, check_numbers
from envs.ids import depth_of, is_model

T = TypeVar("T")


@dataclass(frozen=True)
class Heading:
    """A heading of `--help`: the name of its box, and the line below it."""

    name: str
    line: str


DATA = Heading("data", "Images and network.")
METHOD = Heading("method", "Algorithm and reward.")
SCHEDULE = Heading("schedule", "Length of training, batches and learning rates.")
RUN = Heading("run", "Evaluation, hardware and output.")
Data = Annotated[T, DATA]
Method = Annotated[T, METHOD]
Schedule = Annotated[T, SCHEDULE]
Run = Annotated[T, RUN]


@dataclass(frozen=True)
class CommonArgs:
    """Flags that every agent has.

    Attributes:
        frozen: whether a policy is learned over a network that stays as it is.
        takes_chains: whether the environment may be a chain of networks.
        takes_processes: whether several processes may train together, see `agents.common.processes`.
        first_look: whether, by default, a data set for a first look is tested on its first images alone.
        advice: what to change if a run saves nothing, and if it loses accuracy, see `agents.common.verdict`.
    """

    frozen: ClassVar[bool] = False
    takes_chains: ClassVar[bool] = False
    takes_processes: ClassVar[bool] = False
    first_look: ClassVar[bool] = True
    advice: ClassVar[tuple[str, str]] = (
        "Raise --alpha, or train longer (--iterations)",
        "Lower --alpha, or train longer (--iterations)",
    )

    env: Data[str] = "SkipResNet110-v0"
    """registered environment id, which names the network; on a command line by default that of --model, of
    the weights, or of the deepest network that is shipped for the data set"""
    dataset: Data[
        Literal["auto", "rendered-digits", "cifar10", "cifar100", "svhn", "imagenet", "imagefolder"]
    ] = "auto"
    """data set; auto: the one that the weights were trained on, unless --data-dir lacks it; else the one in
    --data-dir; else CIFAR-10 if ./data has it, or rendered-digits"""
    data_dir: Data[Path | None] = None
    """folder of the data set's official files (else $SKIPNET_DATA, else ./data)"""
    download: Data[bool] = False
    """download of missing files through torchvision"""
    mean: Data[tuple[float, float, float] | None] = None
    """mean of the images' pixels in 0 … 1, per channel, for normalising (default: the data set's own)"""
    std: Data[tuple[float, float, float] | None] = None
    """standard deviation of these pixels (default: the data set's own)"""
    weights: Data[str] = "auto"
    """backbone to start from: a file (.safetensors, or a PyTorch state_dict of this or another project), the
    name of a shipped one, auto for the best shipped one that fits, torchvision for torchvision's weights,
    DEFAULT for those of the library of --model, or none"""
    shortcut: Data[Literal["projection", "pad", "pool"] | None] = None
    """kind of shortcut where a block changes the shape (default: that of the weights, else projection)"""
    model: Data[str | None] = None
    """classifier of torchvision or timm, such as torchvision/convnext_tiny (default: the one that a weights
    file names; with --env SkipNet-v0, torchvision/resnet18)"""
    model_kwargs: Data[str | None] = None
    """further arguments of the model, as JSON"""
    image_size: Data[int | None] = None
    """side in pixels of the images that the model sees (default: the file's, else the model's)"""
    alpha: Method[float | None] = None
    """weight of the compute saving against the loss (default: the environment's, usually 1)"""
    cost: Method[Literal["blocks", "flops"] | None] = None
    """unit of the compute saving: 1 for each skipped block, or its FLOPs (default: the environment's, usually
    blocks)"""
    eval_images: Run[int] = 500
    """validation images in each evaluation during training"""
    test_images: Run[int | None] = None
    """number of test images at the end, the first ones (default: all; on rendered-digits, 2000)"""
    precision: Run[Literal["auto", "bf16", "fp32"]] = "auto"
    """floating-point format; auto: bf16 where the hardware has it"""
    device: Run[str] = "auto"
    """cpu, cuda, or auto"""
    seed: Run[int] = 0
    """random seed"""
    run_dir: Run[Path | None] = None
    """run folder (default: runs/<env>-<agent>-<seed>-<time>)"""
    debug: Run[bool] = False
    """traceback of an error"""

    @property
    def depth(self) -> int | None:
        """Depth of the ResNet that the id names; None for models of other libraries."""
        return None if self.other_library else depth_of(self.env)

    @property
    def other_library(self) -> bool:
        """Whether the network is a model of another library."""
        return is_model(self.env)

    @property
    def images_per_step(self) -> int:
        """Largest number of different images in a training step; 0 if the environments choose them."""
        return 0

    @property
    def trains_networks(self) -> bool:
        """Whether the networks of the environment are trained."""
        return False

    @property
    def networks(self) -> tuple[str | None, ...]:
        """Weights of every network that sees the images."""
        return (self.weights,)

    def check(self) -> None:
        """Raise a ValueError for a name or number that makes no sense."""
        check_choices(self)
        check_numbers(self)
        check_model(self)


@dataclass(frozen=True)
class TrainingArgs(CommonArgs):
    """Flags of every agent that trains step by step.

    Attributes:
        lengths: flags with the steps that train the policy; one of them must be more than 0.
    """

    lengths: ClassVar[tuple[str, ...]] = ("iterations",)

    batch_size: Schedule[int] = 128
    """episodes per step"""
    eval_every: Run[int] = 100
    """steps between evaluations on validation images"""
    resume: Run[bool] = False
    """continuation from the checkpoint in --run-dir, if there is one"""

    @property
    def trains_networks(self) -> bool:
        """Unless they are frozen."""
        return not self.frozen

    @property
    def images_per_step(self) -> int:
        """One per episode."""
        return self.batch_size

    @property
    def images_per_validation(self) -> int:
        """Images that a validation plays, and those on which it estimates batch norms."""
        return self.eval_images + getattr(self, "bn_images", 0)

    def plan(self) -> list[str]:
        """The stage of each training step."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise a ValueError for a name or number that makes no sense."""
        super().check()
        if not any(getattr(self, name) for name in self.lengths):
            flags = " and ".join(f"--{name.replace('_', '-')}" for name in self.lengths)
            are = "is" if len(self.lengths) == 1 else "are"
            raise ValueError(f"{flags} {are} 0, so that no step trains the policy; expected more than 0")


@dataclass(frozen=True)
class CompiledArgs(CommonArgs):
    """Flags of an agent that trains the network, whose blocks it can compile."""

    compile: Run[bool] = False
    """training with compiled blocks; the start takes longer, and PyTorch needs a compiler"""


@dataclass(frozen=True)
class PreparedArgs(CompiledArgs, TrainingArgs):
    """Flags of an agent that prepares the network for skips if it must."""

    warmup_iterations: Schedule[int] = 250
    """steps that prepare the network for skips, taken only if skips cost it too much"""


@dataclass(frozen=True)
class FrozenArgs(CommonArgs):
    """Flags of an agent that learns a policy over a network that stays as it is, or over a chain."""

    frozen: ClassVar[bool] = True
    takes_chains: ClassVar[bool] = True
