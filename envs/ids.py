"""Register the ids of the environments, on import.

Importing `envs` registers them, too. If another distribution has installed a package `envs`, import this
module instead: `import envs.ids`, or `gym.make("envs.ids:SkipResNet20-v0")`.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym

import skipnet_rl  # noqa: F401  (forked processes: skipnet_rl.forking)
from envs.specs import PlainSpec

# repeated from skipnet_rl.resnet, so that registering ids does not import PyTorch
CIFAR_DEPTHS = (14, 20, 32, 38, 44, 56, 74, 110, 152)  # 6n+2, for 32×32 images
IMAGENET_DEPTHS = (34, 50, 101)  # for 224×224 images


def arguments_of(id: str) -> dict[str, Any]:
    """Keyword arguments with which an id is registered.

    Raises:
        gymnasium.error.Error: no such id.
    """
    if id not in gym.registry and f"{id}-v0" in gym.registry:  # Gymnasium's own message names nothing near
        raise gym.error.UnregisteredEnv(f"no environment {id!r}; did you mean '{id}-v0'?")
    return gym.spec(id).kwargs


def id_of(depth: int | None) -> str:
    """Id for a ResNet of a depth, registered or not; for None, that for models of other libraries."""
    return "SkipNet-v0" if depth is None else f"SkipResNet{depth}-v0"


def depth_of(id: str) -> int:
    """Depth of the network that a registered id names.

    Raises:
        gymnasium.error.Error: no such id.
        ValueError: the id of a chain, or of an environment of another project.
    """
    if is_chain(id):
        raise ValueError(
            f"{id} is a chain of networks; expected an id of one network, such as SkipResNet110-v0"
        )
    depth = arguments_of(id).get("depth")
    if not isinstance(depth, int):
        raise ValueError(
            f"{id} is not an environment of this project; expected an id such as SkipResNet110-v0"
        )
    return depth


def is_chain(id: str) -> bool:
    """Whether a registered id names a chain of networks.

    Raises:
        gymnasium.error.Error: no such id.
    """
    return "networks" in arguments_of(id)


def is_model(id: str) -> bool:
    """Whether a registered id takes a model of another library.

    Raises:
        gymnasium.error.Error: no such id.
    """
    return "model" in arguments_of(id)


THIRD = "resnet38-cifar10-hrl-1.0-gain6-ensemble"  # ResNet-38, executes a third of its blocks
# 38g is a ResNet-38 with gates; the networks of 20x38 and 20x110 are also shipped for rendered-digits
CHAINS: dict[str, list[int | str]] = {
    "14x38": [14, 38],
    "20x38": [20, 38],
    "14x110": [14, 110],
    "20x110": [20, 110],
    "14x38x110": [14, 38, 110],
    "38gx38": [THIRD, 38],
    "38gx110": [THIRD, 110],
    "38gx38x110": [THIRD, 38, 110],
    "": [14, 38],  # the general id, for your own networks
}
ENVIRONMENTS: dict[str, dict[str, Any]] = {
    **{id_of(depth): {"depth": depth} for depth in (*CIFAR_DEPTHS, *IMAGENET_DEPTHS)},
    id_of(None): {"model": None},  # any model of torchvision or timm
    **{f"SkipChain{name}-v0": {"networks": networks} for name, networks in CHAINS.items()},
}

for name, arguments in ENVIRONMENTS.items():
    gym.register(
        id=name,
        entry_point="envs.factory:make_env",
        vector_entry_point="envs.factory:make_vector_env",
        kwargs=arguments,
    )
    gym.registry[name] = PlainSpec.like(gym.spec(name))
