"""A search for values of an agent's flags with Optuna, on validation images; the test set is never looked at.

Each trial is a run. A journal in the folder of the runs records the trials, so that an interrupted search
continues, with its unfinished runs first.
"""

from __future__ import annotations

import json
import re
import shlex
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from agents.common.entries import rounded
from agents.common.jobs import Job, Pool, work
from agents.common.plan import Plan
from agents.common.ranges import Range
from skipnet_rl.checkpoint import write_json
from skipnet_rl.terminal import say

Objective = Literal["auto", "return", "accuracy", "tradeoff"]
MEASURED = {"return": ["return"], "accuracy": ["accuracy"], "tradeoff": ["accuracy", "compute_flops"]}
PAYMENT = {"alpha", "cost"}  # flags that change what a return is
JOURNAL = "search.journal"


@dataclass(frozen=True)
class Budget:
    """The length of a search: a number of trials, earlier calls included, or minutes from now."""

    trials: int | None = None
    minutes: float | None = None

    @classmethod
    def of(cls, text: str) -> Budget:
        """Read `"20"` (trials) or `"90m"` (minutes)."""
        match = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?)m", text)
        if match is None or not float(match[1] or match[2]):
            raise ValueError(f"--search is {text!r}; expected a number of runs, or minutes such as 90m")
        return cls(int(match[1])) if match[1] else cls(minutes=float(match[2]))

    def left(self, trials: int, begun: float) -> bool:
        """Return whether another trial may begin; `begun` is the `time.monotonic()` of the search's start."""
        if self.minutes is None:
            return trials < (self.trials or 0)
        return time.monotonic() - begun < 60 * self.minutes


class Search:
    """The trials of one search.

    Args:
        plan: the agent, and the flags of all runs.
        ranges: of the flags that vary.
        objective: `"return"` and `"accuracy"` are maximised. `"tradeoff"` maximises accuracy and minimises
            computation, so that no single trial is the best. `"auto"` is the return, or the trade-off if
            alpha or cost varies, because returns cannot be compared then.

    Raises:
        ModuleNotFoundError: Optuna is not installed.
        ValueError: an agent that is not validated; returns that cannot be compared; values that make no
            sense; a folder with another search.
    """

    def __init__(self, plan: Plan, ranges: Mapping[str, Range], objective: Objective = "auto") -> None:
        if find_spec("optuna") is None:
            raise ModuleNotFoundError(
                'a search needs Optuna, which is not installed: pip install -e ".[sweep]"'
            )
        if not plan.trains:
            raise ValueError(f"agents.{plan.agent} learns nothing to search for; use --grid")
        payment = sorted(PAYMENT & ranges.keys())
        if objective == "return" and payment:
            raise ValueError(
                f"returns under different {' and '.join(payment)} cannot be compared; choose by tradeoff"
            )
        self.plan, self.ranges = plan, ranges
        self.objective = objective if objective != "auto" else "tradeoff" if payment else "return"
        ends = zip(*(each.ends() for each in ranges.values()), strict=True)
        plan.check([plan.job(dict(zip(ranges, end, strict=True)), f"{k}-") for k, end in enumerate(ends)])
        self.study = self._open()

    def _open(self) -> Any:
        """Open the study in the journal, or a new one."""
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        path = self.plan.out / JOURNAL
        path.parent.mkdir(parents=True, exist_ok=True)
        file = JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path)))
        directions: Any = ["maximize", "minimize"][: len(MEASURED[self.objective])]
        study = optuna.create_study(
            storage=JournalStorage(file), study_name="search", directions=directions, load_if_exists=True
        )
        ours = {
            "agent": self.plan.agent,
            "flags": shlex.join(self.plan.words),
            "ranges": " ".join(f"{name}={each}" for name, each in self.ranges.items()),
            "objective": self.objective,
        }
        for key, value in ours.items():
            if (before := study.user_attrs.get(key, value)) != value:
                raise ValueError(f"{path} is a search with {key} {before}, not {value}; name another folder")
            study.set_user_attr(key, value)
        # draws other than those of earlier calls
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.sampler = optuna.samplers.TPESampler(seed=len(study.trials), constant_liar=True)
        return study

    def job(self, trial: Any) -> Job:
        """Return the run of a trial; its folder is named by the number and the rounded values."""
        values = {name: trial.params[name] for name in self.ranges}
        given = {name: str(value) for name, value in values.items()}
        shown = {name: str(rounded(value)) for name, value in values.items()}
        return self.plan.job(given, f"{trial.number:03d}-", shown)

    def run(self, pool: Pool, budget: Budget) -> list[Job]:
        """Search until the budget is used up; returns the jobs that failed."""
        from optuna.trial import TrialState

        begun, failed = time.monotonic(), []
        numbers: dict[Job, int] = {}
        interrupted = list(self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING]))
        distributions = {name: each.distribution() for name, each in self.ranges.items()}

        def take() -> Job | None:
            while True:
                if interrupted:
                    trial = interrupted.pop(0)
                elif budget.left(len(self.study.trials), begun):
                    trial = self.study.ask(distributions)
                else:
                    return None
                job = self.job(trial)
                numbers[job] = trial.number
                if not job.done():
                    self._check(job, trial.number)
                    return job
                ended(job, True)

        def ended(job: Job, done: bool) -> None:
            number = numbers[job]
            if not done:
                self.study.tell(number, state=TrialState.FAIL)
                failed.append(job)
                return
            found = validated(job.folder)
            self.study.tell(number, [found[name] for name in MEASURED[self.objective]])
            say(f"{job.folder}: {self._told(found)}")

        work(pool, take, ended)
        return failed

    def _check(self, job: Job, number: int) -> None:
        from optuna.trial import TrialState

        try:
            self.plan.check([job])
        except ValueError:
            self.study.tell(number, state=TrialState.FAIL)
            raise

    def _told(self, found: Mapping[str, float]) -> str:
        return ", ".join(f"{name} {found[name]:.4g}" for name in MEASURED[self.objective])

    def best(self) -> list[Job]:
        """Return the runs that no other one dominates, the best by the first objective first."""
        trials = sorted(self.study.best_trials, key=lambda trial: -trial.values[0])
        different = {json.dumps(trial.params, sort_keys=True): trial for trial in reversed(trials)}
        return [self.job(trial) for trial in reversed(different.values())]

    def report(self) -> None:
        """Print the best runs, and write search.json with every finished trial."""
        from optuna.trial import TrialState

        finished = self.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        trials = [
            {
                "folder": str(self.job(trial).folder),
                "params": trial.params,
                **dict(zip(MEASURED[self.objective], trial.values, strict=True)),
            }
            for trial in finished
        ]
        best = [str(job.folder) for job in self.best()]
        content = {"schema": 1, **self.study.user_attrs, "trials": trials, "best": best}
        write_json(self.plan.out / "search.json", content)
        say(f"best of {len(trials)} runs by {self.objective} on validation images:")
        for folder in best:
            say(f"  {folder}: {self._told(next(each for each in trials if each['folder'] == folder))}")


def validated(folder: Path) -> dict[str, float]:
    """Return a finished run's summary on validation images: of the kept weights, else of the last ones."""
    kept = json.loads((folder / "result.json").read_text(encoding="utf-8")).get("kept")
    if kept:
        return kept
    lines: Sequence[str] = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    last = json.loads(lines[-1])
    return {name.removeprefix("val/"): value for name, value in last.items() if name.startswith("val/")}
