"""Values that flags may take: one rule for each name, whichever agent has the flag."""

from __future__ import annotations

import math
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from envs.ids import is_chain
from skipnet_rl.errors import unknown_name
from skipnet_rl.normalisation import check_statistics

POSITIVE = {
    "batch_size",
    "bn_images",
    "buffer",
    "epochs",
    "episodes",
    "eval_every",
    "eval_images",
    "gate_gain",
    "image_size",
    "images",
    "jobs",
    "length",
    "minibatches",
    "minutes",
    "num_envs",
    "points",
    "routes",
    "survival",
    "test_images",
    "threads",
    "updates",
    "width",
    "workers",
}
NOT_NEGATIVE = {
    "alpha",
    "curriculum",
    "entropy",
    "exhaustive",
    "gate_lr",
    "gpus",
    "iterations",
    "joint",
    "joint_lr",
    "lr",
    "penalty",
    "policy_weight",
    "restarts",
    "sp_iterations",
    "sp_lr",
    "tau",
    "tune_iterations",
    "warmup_iterations",
    "weight_decay",
}
SHARES = {"distillation", "survival", "target", "warmup"}
RESNET_FLAGS = ("depth", "shortcut", "zero_init_residual")  # of this project's ResNets
MODEL_FLAGS = ("model", "model_kwargs", "image_size")  # of models of other libraries


def choices_of(kind: Any) -> tuple[Any, ...]:
    """The choices of a flag of the type `Literal[…]` or `Literal[…] | None`; () for any other type."""
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return next((get_args(each) for each in kinds if get_origin(each) is Literal), ())


def check_choices(args: Any) -> None:
    """Raise a ValueError for the first flag of a dataclass whose value is not one of its choices."""
    for name, kind in get_type_hints(type(args)).items():
        choices, value = choices_of(kind), getattr(args, name)
        if choices and value not in choices and not (value is None and NoneType in get_args(kind)):
            raise unknown_name(name.replace("_", " "), value, choices)


def check_numbers(args: Any) -> None:
    """Raise a ValueError for the first flag of a dataclass whose number makes no sense."""
    for name, given in vars(args).items():
        for value in given if isinstance(given, tuple) else (given,):
            if expected := _expected(name, value):
                raise ValueError(f"--{name.replace('_', '-')} is {value}; expected {expected}")
    check_statistics(getattr(args, "mean", None), getattr(args, "std", None))


def check_model(args: Any) -> None:
    """Raise a ValueError for flags of another library's models with a built-in network, or vice versa."""
    usual = {each.name: each.default for each in fields(args)}
    unfit = RESNET_FLAGS if args.other_library else MODEL_FLAGS
    given = [name for name in unfit if name in usual and getattr(args, name) != usual[name]]
    if not given:
        return
    flag = f"--{given[0].replace('_', '-')}"
    if args.other_library:
        network = args.model or f"that of {args.env}"
        raise ValueError(f"{flag} is for the built-in ResNets, but the network is {network}; leave it out")
    raise ValueError(
        f"{flag} is for models of other libraries, but the environment is {args.env}; name a model, such as "
        "--model torchvision/convnext_tiny, and no other --env than SkipNet-v0"
    )


def check_routes(batch_size: int, routes: int, baseline: str) -> None:
    """Raise a ValueError for a batch that is not `routes` episodes per image, or too few for the baseline."""
    if batch_size % routes:
        raise ValueError(f"--batch-size {batch_size} is not a multiple of --routes {routes}")
    if baseline == "leave-one-out" and routes == 1:
        raise ValueError("baseline leave-one-out needs --routes 2 or more; for one route: baseline none")


def check_gates(args: Any) -> None:
    """Raise a ValueError for flags of `hybrid_reinforce` about its gates that exclude each other."""
    if args.gate_weights and args.warmup_iterations:
        raise ValueError("a preparation trains new gates; leave out --gate-weights")
    if args.gate_weights and args.gate_gain != 1:
        raise ValueError("a gain is for new gates; leave out --gate-weights")
    if not is_chain(args.env):
        return
    if args.gate_weights or args.teacher or args.sp_iterations:
        raise ValueError(
            "on a chain the gate is new and learns in HRL alone, and the chain is its own teacher; leave out "
            "--gate-weights, --teacher and --sp-iterations"
        )
    if args.bn != "frozen" or args.baseline == "value":
        raise ValueError(
            f"bn is {args.bn} and baseline {args.baseline}; on a chain batch norms are frozen and no "
            f'baseline is learned, see hybrid_reinforce.arguments(["--env", "{args.env}"])'
        )


def _expected(name: str, value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if not math.isfinite(value):
        return "a finite number"
    if name in POSITIVE and value <= 0:
        return "more than 0"
    if name in NOT_NEGATIVE and value < 0:
        return "0 or more"
    if name == "momentum" and not 0 <= value < 1:
        return "0 or more, and less than 1"
    if name in SHARES and not 0 <= value <= 1:
        return "a share between 0 and 1"
    return None
