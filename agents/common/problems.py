"""The problem that the flags of a command line name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from agents.common.flags import CommonArgs
from envs.factory import problem_of
from envs.ids import is_chain
from skipnet_rl import catalogue
from skipnet_rl.errors import WeightsError
from skipnet_rl.model_problem import ModelProblem
from skipnet_rl.problem import Problem


def named_model(problem: Problem) -> dict[str, Any]:
    """The flags that name a model of another library, as they were resolved, with its statistics."""
    if not isinstance(problem, ModelProblem):
        return {}
    return {name: getattr(problem, name) for name in ("model", "model_kwargs", "image_size", "mean", "std")}


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


def check_shipped(problem: Problem) -> None:
    """Raise a WeightsError where a chain has a network that is not shipped for its data set."""
    missing = [each for each in getattr(problem, "networks", ()) if isinstance(each, int)]
    if missing and problem.weights == "auto":
        raise WeightsError(
            f"no ResNet-{missing[0]} on {problem.dataset} is shipped; choose another data set or chain "
            "(for rendered-digits SkipChain20x110-v0), or --weights none for untrained networks"
        )
