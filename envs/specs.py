"""What `env.spec` remembers of an environment: plain text and numbers, so that it can be written as JSON.

Importing this loads no PyTorch: the ids are registered with it.
"""

from __future__ import annotations

import copy
import os
from dataclasses import asdict, fields
from enum import Enum
from typing import Any

from gymnasium.envs.registration import EnvSpec


class PlainSpec(EnvSpec):
    """The spec of a registered id, whose arguments become plain when it is written.

    Gymnasium's own vector environments keep a copy of it, with the arguments as they were given.
    """

    @classmethod
    def like(cls, spec: EnvSpec) -> PlainSpec:
        """The same spec as one of this kind."""
        return cls(**{each.name: getattr(spec, each.name) for each in fields(spec) if each.init})

    def to_json(self) -> str:
        """The spec as JSON, which `EnvSpec.from_json` reads."""
        written = copy.copy(self)
        written.kwargs = plain(self.kwargs)
        return super(PlainSpec, written).to_json()

    def __eq__(self, other: object) -> bool:
        """Whether both describe the same environment, whichever kind of spec they are."""
        return isinstance(other, EnvSpec) and asdict(self) == asdict(other)

    __hash__ = None  # type: ignore[assignment]


class WithPlainSpec:
    """An environment that keeps the spec it is given with its arguments as plain values."""

    _spec: EnvSpec | None = None

    @property
    def spec(self) -> EnvSpec | None:
        """The spec that the environment was made from, if it was."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        self._spec = copy.copy(spec)
        if self._spec is not None:
            self._spec.kwargs = plain(self._spec.kwargs)


def plain(value: Any) -> Any:
    """Paths, enums, devices, NumPy's and PyTorch's numbers and tuples as what JSON has; the rest as it is.

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
        return str(value)  # of NumPy's, too
    return value.tolist() if hasattr(value, "tolist") else value
