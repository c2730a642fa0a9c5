"""Gymnasium environments over `skipnet_rl.mdp`: importing this package registers their ids."""

from __future__ import annotations

from pathlib import Path

# setup.py installs this file as envs.py beside the folder: a module that is a package, too.
__path__ = [
    str(Path(__file__).parent if Path(__file__).stem == "__init__" else Path(__file__).with_suffix(""))
]

from envs.ids import CIFAR_DEPTHS, IMAGENET_DEPTHS, depth_of

__all__ = ["CIFAR_DEPTHS", "IMAGENET_DEPTHS", "depth_of"]
