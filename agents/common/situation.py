"""The defaults of an agent's flags on a command line, which follow from the flags that are given.

A given flag overrides them. The values that a run uses are stored in args.json, and a resumed run keeps them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import tyro
from typeguard import TypeCheckError, check_type

from agents.common.flags import CommonArgs
from envs.ids import ENVIRONMENTS, id_of
from skipnet_rl import catalogue
from skipnet_rl.chain_problem import shape_in_chain
from skipnet_rl.data import resolve_dataset
from skipnet_rl.models import PRETRAINED, ModelName
from skipnet_rl.runs import LACKED, NOT_COMPARED, PROVENANCE, started_with
from skipnet_rl.stored import header_of

ArgsT = TypeVar("ArgsT", bound=CommonArgs)

UNNAMED = ("auto", "none", "torchvision", PRETRAINED)  # weights that are no file and no shipped network


@dataclass(frozen=True)
class Situation:
    """The flags that decide the defaults of the others; `situation_of` fills in the environment."""

    preset: str = "auto"
    env: str = ""
    dataset: str = "auto"
    data_dir: Path | None = None
    weights: str = "auto"
    model: str | None = None
    model_kwargs: str | None = None
    image_size: int | None = None
    gate: str = "rnn"
    gate_weights: str | None = None
    teacher: tuple[str, ...] = ()
    sp_iterations: int | None = None
    iterations: int | None = None
    alpha: float | None = None
    device: str = "auto"
    resume: bool = False
    run_dir: Path | None = None

    @property
    def start(self) -> str:
        """The weights that a run starts from; gates that are named alone bring their network along."""
        return self.gate_weights if self.gate_weights and self.weights == "auto" else self.weights


def situation_of(words: Sequence[str] | None = None) -> Situation:
    """Read a situation from `words`, or from this process's command line.

    Without `--env`, the environment is that of `--model`, or else of the weights, see `environment_of`.
    """
    words = [word for word in (sys.argv[1:] if words is None else words) if word not in ("-h", "--help")]
    found, _ = tyro.cli(Situation, args=words, return_unknown_args=True, add_help=False)
    if found.env:
        return found
    env = id_of(None) if found.model else environment_of(found.start, found.dataset, found.data_dir)
    return replace(found, env=env)


def environment_of(weights: str, dataset: str = "auto", data_dir: Path | None = None) -> str:
    """Return the id of the environment of stored weights; for "auto", of the deepest network that is shipped.

    It is the default one for a chain, for a depth without an id, if none is shipped for the data set, and if
    weights or data set cannot be read, which the run will report.
    """
    depth: int | None = None
    try:
        if weights == "auto":
            depth = catalogue.deepest(resolve_dataset(dataset, data_dir)[0])
        elif (
            weights not in UNNAMED and (catalogue.find(weights) or header_of(weights)).get("kind") != "chain"
        ):
            shape = shape_in_chain(weights)
            if isinstance(shape, ModelName):
                return id_of(None)
            depth = shape.depth
    except (ValueError, OSError):
        pass
    id = "" if depth is None else id_of(depth)
    return id if id in ENVIRONMENTS else CommonArgs.env


def defaults_of(
    args_type: type[ArgsT],
    words: Sequence[str] | None = None,
    values: Callable[[Situation], Mapping[str, Any]] = lambda situation: {},
) -> ArgsT:
    """Return the flags that an agent has on a command line by default; a resumed run keeps all of its own.

    Args:
        args_type: the agent's flags.
        words: the command line (default: that of this process).
        values: returns the defaults of a new run in a situation, besides its environment.
    """
    situation = situation_of(words)
    stored = _stored(situation, args_type)
    return args_type(**({"env": situation.env, **values(situation)} if stored is None else stored))


def _stored(situation: Situation, args_type: type[CommonArgs]) -> dict[str, Any] | None:
    """Return the flags that a resumed run started with, except those of the machine; None for a new run.

    If they were chosen again, they could differ on another machine. The run of another agent has no values
    for this one; comparing the flags will report it.

    Raises:
        ValueError: args.json is damaged.
    """
    before, hints = started_with(situation), get_type_hints(args_type)
    known = {each.name for each in fields(args_type) if each.init}
    if before is None or before.keys() - known - {*PROVENANCE, *LACKED}:
        return None
    found = {name: before[name] for name in (known & before.keys()) - (NOT_COMPARED - {"data_dir"})}
    found = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
    if isinstance(found.get("data_dir"), str):
        found["data_dir"] = Path(found["data_dir"])
    for name, value in found.items():
        try:
            check_type(value, hints[name])
        except TypeCheckError as error:
            raise ValueError(f"{situation.run_dir}/args.json is damaged: {name} is {value!r}") from error
    return found
