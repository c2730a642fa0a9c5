"""Register the ids of the environments; importing this module does it.

Importing `envs` does it, too. Where another distribution has installed a package `envs`, import this module
instead: `import envs.ids`, or `gym.make("envs.ids:SkipResNet20-v0")`.
"""

from __future__ import annotations

import gymnasium as gym

import skipnet_rl  # noqa: F401  (forked processes: skipnet_rl.forking)
from envs.specs import PlainSpec

# repeated from skipnet_rl.resnet, so that registering ids does not import PyTorch
CIFAR_DEPTHS = (14, 20, 32, 38, 44, 56, 74, 110, 152)  # 6n+2, for 32×32 images
IMAGENET_DEPTHS = (34, 50, 101)  # for 224×224 images


def depth_of(id: str) -> int:
    """Depth of the network that a registered id names.

    Raises:
        gymnasium.error.Error: no such id.
        ValueError: the id of an environment of another project.
    """
    depth = gym.spec(id).kwargs.get("depth")
    if not isinstance(depth, int):
        raise ValueError(
            f"{id} is not an environment of this project; expected an id such as SkipResNet110-v0"
        )
    return depth


for depth in (*CIFAR_DEPTHS, *IMAGENET_DEPTHS):
    gym.register(
        id=f"SkipResNet{depth}-v0",
        entry_point="envs.factory:make_env",
        vector_entry_point="envs.factory:make_vector_env",
        kwargs={"depth": depth},
    )
    gym.registry[f"SkipResNet{depth}-v0"] = PlainSpec.like(gym.spec(f"SkipResNet{depth}-v0"))
