"""Specs of environments whose arguments can be written as JSON.

Importing this module does not import PyTorch, so that registering ids is fast.
"""

from __future__ import annotations

import copy
import os
from dataclasses import asdict, fields
from enum import Enum
from typing import Any

from gymnasium.envs.registration import EnvSpec


class PlainSpec(EnvSpec):
    """Spec of a registered id; its arguments are converted when it is written as JSON.

    Gymnasium's own vector environments keep a copy of it with the arguments as they were given.
    """

    @classmethod
    def like(cls, spec: EnvSpec) -> PlainSpec:
        """Copy a spec into this class."""
        return cls(**{each.name: getattr(spec, each.name) for each in fields(spec) if each.init})

    def to_json(self) -> str:
        """JSON that `EnvSpec.from_json` reads."""
        written = copy.copy(self)
        written.kwargs = plain(self.kwargs)
        return super(PlainSpec, written).to_json()

    def __eq__(self, other: object) -> bool:
        """Whether both describe the same environment, whatever their class."""
        return isinstance(other, EnvSpec) and asdict(self) == asdict(other)

    __hash__ = None  # type: ignore[assignment]


class WithPlainSpec:
    """Mixin of an environment whose spec has its arguments in JSON types."""

    _spec: EnvSpec | None = None

    @property
    def spec(self) -> EnvSpec | None:
        """Spec that the environment was made from, if any."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        self._spec = copy.copy(spec)
        if self._spec is not None:
            self._spec.kwargs = plain(self._spec.kwargs)


def plain(value: Any) -> Any:
    """Convert paths, enums, devices, tuples and numbers of NumPy and PyTorch to JSON types.

    >>> from pathlib import Path
    >>> plain({"data_dir": Path("data"), "cost": (1, 2.5), "weights": None})
    {'data_dir': 'data', 'cost': [1, 2.5], 'weights': None}
    """
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if (type(value).__module__, type(value).__name__) == ("torch", "device"):
        return str(value)
    if isinstance(value, str):
        return str(value)  # also NumPy's
    return value.tolist() if hasattr(value, "tolist") else value
