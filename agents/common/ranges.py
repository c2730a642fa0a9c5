"""The values among which a search chooses: `lr=1e-4:1e-2:log`, `gate=rnn,ff1`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, get_args

from agents.common.plan import Plan, parted, values_of


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, whole ones if `whole`, or a choice of `values`."""

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    values: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, text: str, kind: Any) -> Range:
        """Read LOW:HIGH, LOW:HIGH:log or VALUE,VALUE…; `kind` is the type of the flag."""
        if ":" not in text:
            return cls(values=tuple(values_of("range", name, text)))
        number = next((each for each in (int, float) if each in (kind, *get_args(kind))), None)
        numbers = "numbers LOW:HIGH or LOW:HIGH:log, or " if number else ""
        wrong = ValueError(f"--range has {name}={text}; expected {numbers}values A,B,C")
        match = re.fullmatch(r"([^:]+):([^:]+)(:log)?", text)
        if match is None or number is None:
            raise wrong
        try:
            low, high = number(match[1]), number(match[2])
        except ValueError as error:
            raise wrong from error
        log = match[3] is not None
        if not low < high or (log and low <= 0):
            raise ValueError(f"--range has {name}={text}; expected LOW < HIGH{', and LOW > 0' * log}")
        return cls(low, high, log, whole=number is int)

    def __str__(self) -> str:
        """Format the range as on a command line."""
        return ",".join(self.values) or f"{self.low}:{self.high}{':log' * self.log}"

    def distribution(self) -> Any:
        """Return the range as a distribution of Optuna."""
        from optuna import distributions

        if self.values:
            return distributions.CategoricalDistribution(self.values)
        kind: Any = distributions.IntDistribution if self.whole else distributions.FloatDistribution
        return kind(self.low, self.high, log=self.log)

    def ends(self) -> tuple[str, str]:
        """Return the first and the last value."""
        return (self.values[0], self.values[-1]) if self.values else (f"{self.low}", f"{self.high}")


def ranges_of(specs: Iterable[str], plan: Plan) -> dict[str, Range]:
    """Read the ranges of a command line, by flag; raises a ValueError for an unknown flag or no range."""
    texts = parted("range", specs)
    plan.check_names(texts)
    return {name: Range.of(name, text, plan.flags[name]) for name, text in sorted(texts.items())}
