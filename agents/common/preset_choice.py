"""The choice of a row of `agents.common.presets`, by what a run learns on and what it starts from.

A given flag overrides the row. The values that a run uses are printed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from agents.common.distillation import SHARE
from agents.common.flag_rules import MODEL_FLAGS
from agents.common.presets import PRESETS
from agents.common.situation import UNNAMED, Situation
from envs.factory import problem_of
from envs.ids import depth_of, is_chain, is_model
from skipnet_rl import catalogue
from skipnet_rl.chain_problem import shape_in_chain
from skipnet_rl.data import resolve_dataset
from skipnet_rl.device import pick_device
from skipnet_rl.errors import WeightsError, unknown_name
from skipnet_rl.evaluate import SMALL
from skipnet_rl.flops import network_macs
from skipnet_rl.model_problem import ModelProblem
from skipnet_rl.models import ModelName
from skipnet_rl.network import Network
from skipnet_rl.resnet import Architecture, ResNet
from skipnet_rl.stored import header_of, trained_on

USUAL, USUAL_CHAIN = 20, (14, 38)  # depths that the steps of a preset are for
FIRST_LOOK = 110  # depth of the network that `quick` is made for
STEPS = ("warmup_iterations", "sp_iterations", "iterations", "tune_iterations")
FEWEST = 60  # of each kind that is not zero, whatever a network costs
CHEAPEST = 0.5  # least relative cost of a model of another library: MACs are not everything
GPU_STEPS, GPU_BATCH = 4, 4  # factors on a GPU; the learning rate grows by √4


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
