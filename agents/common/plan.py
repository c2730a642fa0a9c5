"""The runs of a sweep: values of an agent's flags, checked before anything starts, and a job for each."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, get_type_hints

from gymnasium.error import Error as GymnasiumError

from agents.common.flags import CommonArgs
from agents.common.jobs import Job
from agents.common.parsing import headings, parse
from agents.common.problems import check_shipped, named_problem
from agents.common.situation import UNNAMED
from envs.ids import is_chain
from skipnet_rl import catalogue
from skipnet_rl.errors import DataNotFoundError, unknown_name
from skipnet_rl.files import as_name
from skipnet_rl.libraries import check_model
from skipnet_rl.runs import NOT_COMPARED
from skipnet_rl.stored import find_file

OWN = ("run_dir", "resume")  # flags that a sweep gives to each run


def parted(flag: str, specs: Iterable[str]) -> dict[str, str]:
    """Split each NAME=REST of a flag; returns the rests by name, spelt as a field.

    Raises:
        ValueError: there is no name or no rest, or a name comes twice.
    """
    found: dict[str, str] = {}
    for spec in specs:
        name, _, rest = spec.partition("=")
        name = name.removeprefix("--").replace("-", "_")
        if not (name and rest):
            raise ValueError(f"--{flag} is {spec!r}; expected NAME=…, such as alpha=0.2,0.4")
        if name in found:
            raise ValueError(f"--{flag} has {name} twice; give all its values at once")
        found[name] = rest
    return found


def values_of(flag: str, name: str, text: str) -> list[str]:
    """Split values at commas; raises a ValueError if one is empty or comes twice."""
    values = text.split(",")
    if "" in values or len(set(values)) < len(values):
        raise ValueError(f"--{flag} has {name}={text}; expected different values, a comma between them")
    return values


def grid_of(specs: Iterable[str]) -> list[dict[str, str]]:
    """Return every combination of the values of NAME=VALUE,VALUE…, by name; seeds vary fastest.

    The order of the names does not depend on how they are given, so that folders keep their names.
    """
    named = {name: values_of("grid", name, text) for name, text in parted("grid", specs).items()}
    names = sorted(named, key=lambda name: (name == "seed", name))
    return [dict(zip(names, point, strict=True)) for point in product(*(named[name] for name in names))]


@dataclass(frozen=True)
class Plan:
    """Runs of one agent that differ in some flags.

    Args:
        agent: the module's name.
        words: the flags that all runs have, as on a command line.
        out: folder of the run folders.
        elsewhere: whether the runs are on other machines, so that this one may lack their device.
    """

    agent: str
    words: tuple[str, ...]
    out: Path
    elsewhere: bool = False

    @property
    def args_type(self) -> type[CommonArgs]:
        """The dataclass of the agent's flags."""
        return importlib.import_module(f"agents.{self.agent}").Args

    @property
    def on_cpu(self) -> bool:
        """Whether a flag puts all runs on the CPU."""
        return bool(re.search(r"--device[ =]cpu", " ".join(self.words)))

    @property
    def trains(self) -> bool:
        """Whether the agent trains, and is validated meanwhile."""
        return "resume" in self.flags

    @property
    def flags(self) -> dict[str, Any]:
        """The flags and their types, without the fields that are not for the command line."""
        hints = get_type_hints(self.args_type)
        return {name: hints[name] for name in headings(self.args_type)}

    def check_names(self, varied: Iterable[str]) -> None:
        """Check the names of the flags that vary, and of those that all runs have.

        Raises:
            ValueError: an unknown flag, one that is not for sweeping, or one in both places.
        """
        common = [word[2:].partition("=")[0].replace("-", "_") for word in self.words if word[:2] == "--"]
        plain = [
            name.removeprefix("no_") if self.flags.get(name.removeprefix("no_")) is bool else name
            for name in common
        ]
        for name in (*varied, *plain):
            if name not in (*self.flags, "help"):
                raise unknown_name(f"flag of agents.{self.agent}", name, self.flags)
            if name in OWN:
                raise ValueError(f"--{name.replace('_', '-')} is the sweep's own; leave it out")
        for name in varied:
            if name in NOT_COMPARED:
                raise ValueError(f"{name} does not change a result; vary another flag, or give it after --")
            if name in plain:
                raise ValueError(f"{name} is both varied and, after --, a flag of every run; choose one")

    def job(self, values: Mapping[str, str], prefix: str = "", shown: Mapping[str, str] | None = None) -> Job:
        """Return the job for some values.

        Args:
            values: of the flags that vary.
            prefix: beginning of the folder's name.
            shown: the values as the folder's name has them (default: as they are).
        """
        name = ",".join(f"{name}={value}" for name, value in (shown or values).items())
        own = [word for name, value in values.items() for word in self._words_of(name, value)]
        resume = ("--resume",) if self.trains else ()
        return Job(self.out / as_name(prefix + name), (f"agents.{self.agent}", *own, *self.words, *resume))

    def _words_of(self, name: str, value: str) -> list[str]:
        """Return the words of a flag on the command line, none for a switch in its usual position."""
        flag = name.replace("_", "-")
        if self.flags[name] is not bool:
            return [f"--{flag}", value]
        if value not in ("True", "False"):
            raise ValueError(f"{name} is {value}; expected True or False")
        usual = self.args_type.__dataclass_fields__[name].default
        return [] if value == str(usual) else [f"--no-{flag}" if usual else f"--{flag}"]

    def check(self, jobs: Sequence[Job]) -> None:
        """Read the command line of each job as the agent will.

        Raises:
            ValueError: a value that makes no sense; an environment or weights that do not exist, unless
                another job is to make them; two jobs with the same folder; a job that needs itself.
            SystemExit: words that cannot be read, which are printed.
        """
        if twice := {str(job.folder) for job in jobs if [each.folder for each in jobs].count(job.folder) > 1}:
            raise ValueError(f"several runs would have the folder {', '.join(sorted(twice))}")
        for job in jobs:
            if job.needs([job]):
                raise ValueError(
                    f"{job.folder.name}: a flag names a file in {job.folder}, which this run itself is to "
                    "write; name another file, or another folder for the runs: --out"
                )
        name = f"agents.{self.agent}"
        module: Any = importlib.import_module(name)
        for job in jobs:
            words = [*job.line[3:], *(["--device", "cpu"] if self.elsewhere else [])]
            try:
                default = module.arguments(words) if hasattr(module, "arguments") else None
                args = parse(self.args_type, words, default, command=name)
                args.check()
                self._check_existing(args, jobs)
                if args.weights == "auto":
                    self._check_shipped(args)
            except (ValueError, GymnasiumError) as error:
                raise ValueError(f"{job.folder.name}: {error}") from error

    def _check_existing(self, args: CommonArgs, jobs: Sequence[Job]) -> None:
        """Raise an error for an environment, model or weights that neither exist nor are made by a job."""
        if "env" in self.flags:
            is_chain(args.env)
        if args.model is not None:
            check_model(args.model)
        for weights in (args.weights, *args.networks):
            made = any(job.makes(str(weights)) for job in jobs)
            if weights not in (None, *UNNAMED) and not made and catalogue.find(str(weights)) is None:
                find_file(str(weights))

    def _check_shipped(self, args: CommonArgs) -> None:
        """Raise the WeightsError of a run that needs a shipped network where there is none."""
        try:
            problem = named_problem(args)
        except DataNotFoundError:
            if self.elsewhere:  # the machine of the run may have it
                return
            raise
        check_shipped(args, problem)
