"""The choice of a row of `agents.common.presets`, by what a run learns on and what it starts from.

A given flag overrides the row. The values that a run uses are printed, and stored in args.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import tyro
from typeguard import TypeCheckError, check_type

from agents.common.distillation import SHARE
from agents.common.flag_rules import MODEL_FLAGS
from agents.common.flags import CommonArgs
from agents.common.presets import PRESETS
from envs.factory import problem_of
from envs.ids import ENVIRONMENTS, depth_of, is_chain, is_model
from skipnet_rl import catalogue
from skipnet_rl.chain_problem import shape_in_chain
from skipnet_rl.data import resolve_dataset
from skipnet_rl.device import pick_device
from skipnet_rl.errors import WeightsError, unknown_name
from skipnet_rl.evaluate import SMALL
from skipnet_rl.flops import network_macs
from skipnet_rl.model_problem import ModelProblem
from skipnet_rl.models import PRETRAINED, ModelName
from skipnet_rl.network import Network
from skipnet_rl.resnet import Architecture, ResNet
from skipnet_rl.runs import LACKED, NOT_COMPARED, PROVENANCE, started_with
from skipnet_rl.stored import header_of, trained_on
from skipnet_rl.stored_networks import shape_of

ArgsT = TypeVar("ArgsT", bound=CommonArgs)

USUAL, USUAL_CHAIN = 20, (14, 38)  # depths that the steps of a preset are for
FIRST_LOOK = 110  # depth of the network that `quick` is made for
ANY_MODEL = "SkipNet-v0"  # the id for models of other libraries
UNNAMED = ("auto", "none", "torchvision", PRETRAINED)  # weights that are no file and no shipped network
STEPS = ("warmup_iterations", "sp_iterations", "iterations", "tune_iterations")
FEWEST = 60  # of each kind that is not zero, whatever a network costs
CHEAPEST = 0.5  # least relative cost of a model of another library: MACs are not everything
GPU_STEPS, GPU_BATCH = 4, 4  # factors on a GPU; the learning rate grows by √4


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
    env = ANY_MODEL if found.model else environment_of(found.start, found.dataset, found.data_dir)
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
        elif weights not in UNNAMED and header_of(weights).get("kind") != "chain":
            shape = shape_of(weights)
            if isinstance(shape, ModelName):
                return ANY_MODEL
            depth = shape.depth
    except (ValueError, OSError):
        pass
    id = f"SkipResNet{depth}-v0"
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


def values_of(situation: Situation) -> dict[str, Any]:
    """Return the values of a preset by flag.

    Raises:
        ValueError: an unknown preset, data set or device; weights without gates; a preset without gates.
    """
    given = situation.preset
    check_preset(given, situation.env)
    if is_chain(situation.env):
        return _of_chain(situation)
    model = is_model(situation.env)
    depth = None if model else depth_of(situation.env)
    dataset, _ = resolve_dataset(situation.dataset, situation.data_dir, trained_on([situation.start]))
    gates = _gates(situation, depth, dataset) if given in ("auto", "gated") else {}
    if given == "gated" and not gates:
        raise ValueError(
            "--preset gated continues from trained gates, and none are shipped; name some: --gate-weights"
        )
    name = given
    if given == "auto":
        own = situation.weights not in UNNAMED and not catalogue.find(situation.weights)
        first_look = dataset == "rendered-digits" and depth == FIRST_LOOK and not own
        name = "quick" if first_look else "gated" if gates else "plain"
    values = PRESETS[name] | gates
    if name in ("plain", "gated"):
        values |= _scaled(values, [_network(situation)], [USUAL], situation.device)
    if situation.iterations == 0 and values.get("sp_iterations") == 0:
        values["sp_iterations"] = values["iterations"]
    if situation.weights == "none":  # there is nothing to prepare, and no teacher
        values |= {"warmup_iterations": 0, "distillation": 0.0}
    if situation.teacher:
        values["distillation"] = values.get("distillation") or SHARE
    about = trained_as(situation.weights, situation.model)
    named = ("mean", "std", *(MODEL_FLAGS if model else ()))
    images: dict[str, Any] = {key: about[key] for key in named if key in about}
    return {**values, **images, "preset": name}


def scaled_to(situation: Situation, values: Mapping[str, Any]) -> dict[str, Any]:
    """Scale an agent's values, made for a ResNet-20 on a CPU, to the network and the device of a run.

    Only what changes is returned.
    """
    if is_chain(situation.env):  # the run refuses it, if the agent takes no chains
        return {}
    found = _scaled(values, [_network(situation)], [USUAL], situation.device)
    return {name: found[name] for name in found.keys() & values.keys() & {*STEPS, "batch_size", "lr"}}


def check_preset(preset: str, env: str) -> None:
    """Raise a ValueError for an unknown preset, or one that is not for the environment."""
    if preset not in ("auto", *PRESETS):
        raise unknown_name("preset", preset, ("auto", *PRESETS))
    if preset != "auto" and is_chain(env) != (preset == "chain"):
        of, other = ("one network", "chain") if is_chain(env) else ("chains of networks", "auto")
        raise ValueError(f"--preset {preset} is for {of}; with --env {env} use --preset {other}")


def _of_chain(situation: Situation) -> dict[str, Any]:
    """Return the values of the preset for chains, with the alpha and cost of the environment."""
    problem: Any = problem_of(situation.env)
    alpha, cost = problem.payment
    shapes = map(shape_in_chain, problem.networks)
    nets = [ResNet(shape) if isinstance(shape, Architecture) else shape.build(2) for shape in shapes]
    values = PRESETS["chain"] | _scaled(PRESETS["chain"], nets, USUAL_CHAIN, situation.device)
    taught = {"distillation": 0.0} if situation.weights == "none" else {}
    return {**values, **taught, "alpha": alpha, "cost": cost, "preset": "chain"}


def trained_as(weights: str, model: str | None = None) -> dict[str, Any]:
    """Return the flags that a weights file states: alpha, cost, mean, std, and those of its model.

    Arguments and image size of a model of another library are left out if `model` names another model.

    Raises:
        WeightsError: there is no such file, or it is damaged.
    """
    if weights in UNNAMED:
        return {}
    header = header_of(weights)
    known = ["alpha", "cost"]
    if not catalogue.find(weights):  # a shipped network has the data set's own
        known += ["mean", "std"]
    found = {name: header[name] for name in known if header.get(name) is not None}
    found |= {name: tuple(found[name]) for name in ("mean", "std") if name in found}
    if (named := ModelName.of(header)) is not None:
        about = {**named.about(), "model_kwargs": json.dumps(named.arguments, sort_keys=True)}
        about = about if model in (None, named.model) else {"model": model}
        return found | about
    return found


def _network(situation: Situation) -> Network:
    """Build the network that the flags name, to count its cost; one of another library as an outline."""
    if not is_model(situation.env):
        return ResNet(depth_of(situation.env))
    names = ("dataset", "data_dir", "weights", *MODEL_FLAGS)
    problem = ModelProblem(**{name: getattr(situation, name) for name in names}, device="cpu").resolve()
    return problem.named.outline(2)


def _gates(situation: Situation, depth: int | None, dataset: str) -> dict[str, Any]:
    """Return the flags that continue from gates: named ones, those of `--weights`, or shipped ones.

    Empty if there are none of the kind of `--gate`, or if the stages that are asked for start without.
    """
    given, weights = situation.gate_weights, situation.weights
    if given:
        alpha = trained_as(given).get("alpha")
        if alpha is None:
            raise WeightsError(f"{given} does not name its alpha; expected a gated network")
        return {"weights": situation.start, "alpha": alpha}
    if situation.sp_iterations or situation.iterations == 0:
        return {}
    if weights == "auto":
        start = catalogue.find_auto(depth, dataset, "projection", (situation.gate,), situation.alpha) or {}
        weights = start.get("name", weights)
    else:
        start = {} if weights in UNNAMED else header_of(weights)
    gated = start.get("kind") == situation.gate and "alpha" in start
    return {"weights": weights, "gate_weights": weights, "alpha": start["alpha"]} if gated else {}


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


def _scaled(
    values: Mapping[str, Any], nets: Sequence[Network], usual: Sequence[int], device: str
) -> dict[str, Any]:
    """Scale steps to take equally long whatever the networks cost; a GPU takes more and larger ones.

    `usual` are the depths of the networks that the values are for.
    """
    macs, wanted = (
        sum(network_macs(each).total for each in these) for these in (nets, [ResNet(each) for each in usual])
    )
    built_in = all(isinstance(net, ResNet) for net in nets)
    cost = macs / wanted if built_in else max(macs / wanted, CHEAPEST)
    gpu = pick_device(device).type == "cuda"
    factor = (GPU_STEPS if gpu else 1) / cost
    scaled = {key: max(FEWEST, round(factor * values[key])) if values.get(key) else 0 for key in STEPS}
    if gpu and nets[-1].image_size <= SMALL:
        larger = GPU_BATCH * values["batch_size"]
        scaled |= {"batch_size": larger, "lr": GPU_BATCH**0.5 * values["lr"]}
    return scaled
