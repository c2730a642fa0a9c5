"""Flags of the agents: one flat dataclass for the code, four headings on the command line.

A field declared as `Data[…]`, `Method[…]`, `Schedule[…]` or `Run[…]` is a flag, listed in `--help` under
that heading. Any other field is set by presets and by Python code alone. What numbers a flag takes is in
`agents.common.flag_rules`.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, make_dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from typing import Annotated, Literal, TypeVar, get_args, get_origin, get_type_hints

import tyro

from agents.common.flag_rules import check_choices, check_numbers
from envs.ids import depth_of
from skipnet_rl.errors import unknown_name

T = TypeVar("T")
ArgsT = TypeVar("ArgsT")


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
    """Flags that every agent has."""

    env: Data[str] = "SkipResNet110-v0"
    """registered environment id, which names the depth"""
    dataset: Data[
        Literal["auto", "rendered-digits", "cifar10", "cifar100", "svhn", "imagenet", "imagefolder"]
    ] = "auto"
    """data set; auto: CIFAR-10 where its files are, else rendered-digits"""
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
    name of a shipped one, auto for the best shipped one that fits, torchvision for torchvision's, or none"""
    shortcut: Data[Literal["projection", "pad", "pool"]] = "projection"
    """kind of shortcut where a block changes the shape"""
    alpha: Method[float | None] = None
    """weight of the compute saving against the loss (default: 1; of a chain 0.05 per decision)"""
    cost: Method[Literal["blocks", "flops"] | None] = None
    """unit of the compute saving: 1 for each skipped block, or its FLOPs (default: blocks; of a chain,
    flops)"""
    eval_images: Run[int] = 500
    """validation images in each evaluation during training"""
    test_images: Run[int | None] = None
    """number of test images at the end, the first ones (default: all; of rendered-digits 2000)"""
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
    def depth(self) -> int:
        """Depth of the network that the id names."""
        return depth_of(self.env)

    @property
    def images_per_step(self) -> int:
        """Different images of a training step, at most; 0 where the environments choose them."""
        return 0

    @property
    def frozen(self) -> bool:
        """Whether the network stays as it is, and a policy over it is learned."""
        return False

    @property
    def takes_chains(self) -> bool:
        """Whether the environment may be a chain of networks, which then stay as they are."""
        return False

    @property
    def first_look(self) -> bool:
        """Whether a data set for a first look is by default tested on its first images alone."""
        return True

    @property
    def networks(self) -> tuple[str | None, ...]:
        """Weights of every network that is to see the images."""
        return (self.weights,)

    def check(self) -> None:
        """Raise a ValueError for a name or number that makes no sense."""
        check_choices(self)
        check_numbers(self)


@dataclass(frozen=True)
class TrainingArgs(CommonArgs):
    """Flags of every agent that trains step by step."""

    batch_size: Schedule[int] = 128
    """episodes per step"""
    eval_every: Run[int] = 100
    """steps between evaluations on validation images"""
    resume: Run[bool] = False
    """continuation from the checkpoint in --run-dir, where there is one"""

    @property
    def images_per_step(self) -> int:
        """One for each episode."""
        return self.batch_size

    @property
    def images_per_validation(self) -> int:
        """Images that a validation plays, and those that it settles the batch norms on."""
        return self.eval_images + getattr(self, "bn_images", 0)

    def plan(self) -> list[str]:
        """The stage of each training step."""
        raise NotImplementedError


def headings(args_type: type) -> dict[str, Heading]:
    """The heading of each flag of a dataclass; its other fields are left out."""
    hints = get_type_hints(args_type, include_extras=True)
    found = {each.name: get_args(hints[each.name])[-1:] for each in fields(args_type)}
    return {name: marks[0] for name, marks in found.items() if marks and isinstance(marks[0], Heading)}


def parse(args_type: type[ArgsT], words: Sequence[str] | None = None, default: ArgsT | None = None) -> ArgsT:
    """Read a command line.

    Args:
        args_type: a dataclass whose flags are marked as in `CommonArgs`.
        words: the command line; None for that of this process.
        default: values of the flags that are not given, and of all fields that are no flags.

    Raises:
        ValueError: a value that is not one of a flag's choices.
    """
    if not headings(args_type):  # all of its fields are flags, under one heading
        return (
            tyro.cli(args_type, args=words, prog=_prog())
            if default is None
            else tyro.cli(args_type, args=words, prog=_prog(), default=default)
        )
    start = args_type() if default is None else default
    words = sys.argv[1:] if words is None else list(words)
    _check_choices(args_type, words)
    form, parts = _form(args_type)  # type: ignore[arg-type]
    values = {
        name: part(**{flag.name: getattr(start, flag.name) for flag in fields(part)})
        for name, part in parts.items()
    }
    config = (tyro.conf.DisallowNone, tyro.conf.FlagCreatePairsOff)
    found = tyro.cli(
        form,
        args=words,
        prog=_prog(),
        default=form(**values),
        description=inspect.getdoc(args_type),
        config=config,
    )
    given = {name: value for part in vars(found).values() for name, value in vars(part).items()}
    return replace(start, **given)  # type: ignore[type-var]


def _prog() -> str | None:
    """The command as a user types it, for the line of usage; None outside `python -m`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return None if spec is None else f"python -m {spec.name}"


@cache
def _form(args_type: type) -> tuple[type, dict[str, type]]:
    """A dataclass with one nested dataclass per heading, of which tyro makes the parser and its help."""
    hints, texts, marks = get_type_hints(args_type), _helps(args_type), headings(args_type)
    parts = {}
    for heading in (DATA, METHOD, SCHEDULE, RUN):
        flags = [
            (name, Annotated[hints[name], _flag(texts[name])]) for name in marks if marks[name] is heading
        ]
        if flags:
            parts[heading.name] = make_dataclass(heading.name, flags, frozen=True)
            parts[heading.name].__doc__ = heading.line
    return make_dataclass(args_type.__name__, parts.items(), frozen=True), parts


def _check_choices(args_type: type, words: Sequence[str]) -> None:
    """Name the nearest choice in one line, which tyro's own message does not."""
    kinds = get_type_hints(args_type)
    for word, following in pairwise([*words, "--"]):
        flag, _, joined = word.partition("=")
        value, name = joined or following, flag.removeprefix("--")
        kind = kinds.get(name.replace("-", "_")) if flag.startswith("--") else None
        if get_origin(kind) is Literal and not value.startswith("--") and value not in get_args(kind):
            raise unknown_name(name.replace("-", " "), value, get_args(kind))


def _flag(text: str) -> object:
    """A flag with a help text, which itself says what a flag is that has no value yet."""
    return tyro.conf.arg(
        help=text,
        help_behavior_hint=lambda value: "" if value in ("None", "False", "") else f"(default: {value})",
        prefix_name=False,
    )


def _helps(args_type: type) -> dict[str, str]:
    """The docstring below each field, of the class and of those that it inherits from."""
    found: dict[str, str] = {}
    for kind in reversed(args_type.__mro__[:-1]):
        (tree,) = ast.parse(dedent(inspect.getsource(kind))).body
        for line, below in pairwise(tree.body if isinstance(tree, ast.ClassDef) else []):
            if isinstance(line, ast.AnnAssign) and isinstance(below, ast.Expr):
                text = inspect.cleandoc(ast.literal_eval(below.value))
                found[ast.unparse(line.target)] = text.replace("\n", " ")
    return found
