"""The problem that the flags of a command line name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from agents.common.flag_rules import MODEL_FLAGS
from agents.common.flags import CommonArgs
from envs.factory import problem_of
from envs.ids import is_chain
from skipnet_rl import catalogue
from skipnet_rl.chain_problem import ChainProblem
from skipnet_rl.errors import WeightsError
from skipnet_rl.model_problem import ModelProblem
from skipnet_rl.models import PRETRAINED
from skipnet_rl.problem import Problem


def named_model(problem: Problem) -> dict[str, Any]:
    """The flags that name a model of another library, as they were resolved, with its statistics."""
    if not isinstance(problem, ModelProblem):
        return {}
    return {name: getattr(problem, name) for name in (*MODEL_FLAGS, "mean", "std")}


def named_problem(args: CommonArgs) -> Problem:
    """The problem that the flags name, every `auto` resolved.

    Raises:
        ValueError: a chain, for an agent that works within one network.
    """
    kind: Any = ModelProblem if args.other_library else Problem
    given = {each.name: getattr(args, each.name) for each in fields(kind) if each.name in vars(args)}
    if "depth" in given:  # pretraining, also at depths that no id has
        return kind(**given).resolve()
    if is_chain(args.env) and not args.takes_chains:
        raise ValueError(
            f"--env {args.env} is a chain of networks, and this agent works within one network; choose an "
            "id such as SkipResNet110-v0"
        )
    return problem_of(args.env, **given).resolve(catalogue.START if args.frozen else ("plain",))


def check_shipped(args: CommonArgs, problem: Problem) -> None:
    """Raise a WeightsError, which says what to do, where no network is shipped for `--weights auto`.

    All networks of a chain must be shipped. With a single network, an agent that does not train it runs on an
    untrained one instead, with a warning.

    Args:
        args: the flags.
        problem: what they name, resolved.
    """
    if problem.weights != "auto":
        return
    if isinstance(problem, ChainProblem):
        missing = [each for each in problem.networks if isinstance(each, int)]
        if missing:
            raise WeightsError(
                f"no ResNet-{missing[0]} on {problem.dataset} is shipped; choose another data set or chain "
                "(for rendered-digits SkipChain20x110-v0), or --weights none for untrained networks"
            )
        return
    if not args.trains_networks:
        return
    if isinstance(problem, ModelProblem):
        lacking, named = f"no weights of {problem.model} are shipped", f"--model {problem.model}"
        own = f", or --weights {PRETRAINED} for the library's own"
    else:
        lacking = f"no ResNet-{problem.depth} on {problem.dataset} is shipped"
        named, own = f"--depth {problem.depth} --dataset {problem.dataset}", ""
    if type(args).weights == "none":  # pretraining, which the others are sent to
        raise WeightsError(f"{lacking}; leave out --weights to start from new ones{own}")
    raise WeightsError(
        f"{lacking}; train some: python -m agents.pretrain {named}, and give the file: "
        f"--weights runs/…/weights.safetensors (or --weights none for untrained ones{own})"
    )
