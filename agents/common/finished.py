"""Finished runs, restored from their files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.common.kinds import Fits, are_numbers, is_count, is_number, is_text
from envs.factory import problem_of
from envs.ids import depth_of, is_chain
from skipnet_rl import catalogue
from skipnet_rl.chain import ChainMDP
from skipnet_rl.errors import WeightsError
from skipnet_rl.evaluate import Record, load_records
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.model_problem import load_named, parsed
from skipnet_rl.models import ModelName
from skipnet_rl.network import Network
from skipnet_rl.policies import Policy
from skipnet_rl.problem import load_network
from skipnet_rl.runs import as_now
from skipnet_rl.weights import open_weights

# values of every run; older ones lack some
WRITTEN: dict[str, Fits] = {"split_images": is_count, "alpha": is_number, "cost": is_text}
WRITTEN_IN_ROWS: dict[str, Fits] = {
    "weights": lambda value: value is None or is_text(value),
    "mix": are_numbers,
}
# agents whose older runs learned on half of the validation images without saying so
ON_CALIBRATION_IMAGES = ("ppo", "a2c", "dqn", "reinforce")


@dataclass(frozen=True)
class FinishedRun:
    """The folder of a run that has finished.

    Attributes:
        folder: its path.
        args: args.json, see `as_now`.
        result: result.json.
    """

    folder: Path
    args: Mapping[str, Any]
    result: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> FinishedRun:
        """Read a run folder.

        Raises:
            FileNotFoundError: it holds no run, or one that is not finished.
            ValueError: its files are damaged.
        """
        if not (folder / "args.json").is_file():
            raise FileNotFoundError(f"no run in {folder}: it has no args.json")
        if not (folder / "result.json").is_file():
            raise FileNotFoundError(f"no finished run in {folder}: it has no result.json")
        try:
            args, result = (
                json.loads((folder / name).read_text(encoding="utf-8"))
                for name in ("args.json", "result.json")
            )
        except ValueError as error:
            raise ValueError(f"{folder} holds a damaged args.json or result.json: {error}") from error
        if not (isinstance(args, dict) and isinstance(result, dict) and _is_result(result)):
            raise ValueError(
                f"{folder}/result.json names no agent or no policies; expected a file that a run wrote"
            )
        run = cls(folder, as_now(args), result)
        run.check(WRITTEN, WRITTEN_IN_ROWS, optional=True)
        return run

    def check(self, needed: Mapping[str, Fits], in_rows: Mapping[str, Fits], optional: bool = False) -> None:
        """Check values of result.json and of each of its rows.

        Args:
            needed, in_rows: for each value, a function that says whether it fits.
            optional: values may be missing.

        Raises:
            ValueError: one is missing, or is not of the kind that a run writes.
        """
        for values, kinds in [(self.result, needed), *((row, in_rows) for row in self.result["policies"])]:
            lacking = [key for key in kinds if key not in values and not optional]
            wrong = [key for key, fits in kinds.items() if key in values and not fits(values[key])]
            if lacking or wrong:
                what = "it lacks" if lacking else "no run writes its"
                names = " and ".join(lacking or wrong)
                raise ValueError(f"{self.folder}/result.json is damaged: {what} {names}")

    @property
    def agent(self) -> str:
        """The module's name."""
        return self.result["agent"]

    @property
    def depth(self) -> int:
        """Depth of the network: by pretraining's flag, which takes depths that no id has, else by the id."""
        return self.args["depth"] if "depth" in self.args else depth_of(self.result["env"])

    @property
    def model(self) -> ModelName | None:
        """Name of the network, if it is a model of another library."""
        if self.args.get("model") is None:
            return None
        return ModelName(self.args["model"], parsed(self.args["model_kwargs"]), self.args["image_size"])

    @property
    def on_calibration_images(self) -> bool:
        """Whether its policy learned on half of the validation images."""
        learned_on = "calibration" if self.agent in ON_CALIBRATION_IMAGES else "train"
        return self.result.get("learned_on", learned_on) == "calibration"

    @property
    def learned(self) -> bool:
        """Whether the run saved weights; static policies and the routes of the oracle have none."""
        return not {"greedy_order", "exact"} & self.result.keys()

    @property
    def policy_name(self) -> str:
        """Name of the run's own policy in the table."""
        return self.result["policies"][-1]["name"]

    @property
    def statistics(self) -> tuple[Any, Any]:
        """Mean and std that the run normalised images with; None where they are the data set's own."""
        return self.args.get("mean"), self.args.get("std")

    def data_dir(self, given: Path | None) -> Path | None:
        """Return the folder of its images: the given one, else the run's if it is still there."""
        own = self.args.get("data_dir")
        return Path(own) if given is None and own and Path(own).is_dir() else given

    def records(self) -> dict[str, Record]:
        """The stored routes of each policy."""
        return load_records(self.folder / "routes.npz")

    def network(self, num_classes: int, file: str | None = None) -> Network:
        """Load the backbone of one of the run's files, of a shipped name, or that the run started from."""
        shipped = file is None or catalogue.find(file)
        start = self._start if file is None else file if shipped else self._inside(file)
        if self.model is not None:
            return load_named(start, self.model, num_classes, new_classifier=False)
        return load_network(
            start, self.depth, num_classes, self.result["dataset"], self._shortcut, new_classifier=False
        )

    def process(self, num_classes: int, file: str | None = None, mix: Sequence[float] | None = None) -> Any:
        """Return the decision process of a row of the table, on the CPU.

        Args:
            num_classes: K of the data set.
            file: the row's weights, see `network`.
            mix: the row's own weights of the answer so far on a chain, N.
        """
        if not is_chain(self.result["env"]):
            return RoutingMDP(self.network(num_classes, file), *self._payment)
        if file is not None:
            mdp = open_weights(self._inside(file), num_classes=num_classes).mdp()
        else:
            known = {name: self.result[name] for name in ("dataset", "alpha", "cost")}
            known |= {"weights": self.args.get("weights", "auto"), "shortcut": self._shortcut}
            problem = problem_of(self.result["env"], **known, device="cpu").resolve()
            mdp = problem.mdp(problem.network(num_classes))
        return mdp if mix is None else ChainMDP(mdp.net.mixed(mix), mdp.alpha, mdp.cost)

    def weights(self, stage: str | None = None) -> Path:
        """Return the file of the run's policy, or of one of its stages.

        Raises:
            WeightsError: there is none, as of a run that saves no policy.
        """
        names = [stage] if stage else [self.policy_name.lower(), "policy", "weights"]
        files = [self._inside(f"{name}.safetensors") for name in names]
        found = next((file for file in files if file.is_file()), None)
        if found is None and stage:
            raise WeightsError(
                f"no weights file {files[0]}: {self.folder} is a run of agents.{self.agent}, which has no "
                f"stage {stage!r}"
            )
        if found is None:
            raise WeightsError(
                f"no weights file {' or '.join(map(str, files))}; to compare a run of agents.{self.agent} "
                "with others, use agents.compare, which needs none"
            )
        return found

    def restore(self, num_classes: int, stage: str | None = None) -> tuple[Any, Policy]:
        """Restore decision process and policy, in evaluation mode on the CPU.

        Args:
            num_classes: K of the data set.
            stage: a stage with a separate file, such as `"sp"`; None for the last.

        Raises:
            WeightsError: a file is missing or does not fit.
            ValueError: args.json or result.json is damaged.
        """
        file = self.weights(stage)
        if is_chain(self.result["env"]):
            chain = open_weights(file, num_classes=num_classes)
            return chain.mdp(), chain.policy
        try:
            model, start, payment = self.model, self._start, self._payment
            depth, shortcut = (None, None) if model else (self.depth, self._shortcut)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.folder}/args.json or result.json is damaged: {error!r}") from error
        opened = open_weights(
            file, depth=depth, shortcut=shortcut, num_classes=num_classes, network=start, model=model
        )
        return RoutingMDP(opened.network, *payment), opened.policy

    @property
    def _payment(self) -> tuple[float, str]:
        return self.result["alpha"], self.result.get("cost", "blocks")

    @property
    def _shortcut(self) -> str:
        return self.args.get("shortcut", "projection")

    @property
    def _start(self) -> str:
        """The weights that the run started from; older runs did not store the name behind `auto`."""
        start = self.args["weights"]
        if start != "auto":
            return start or "none"
        entry = catalogue.find_auto(self.depth, self.result["dataset"], self._shortcut)
        return entry["name"] if entry else "none"

    def _inside(self, file: str) -> Path:
        path = self.folder / file
        if path.resolve().parent != self.folder.resolve():
            raise ValueError(f"{self.folder}/result.json names weights outside of the run's folder: {file}")
        return path


def _is_result(result: Mapping[str, Any]) -> bool:
    names = all(isinstance(result.get(key), str) for key in ("agent", "env", "dataset"))
    rows = result.get("policies")
    return names and isinstance(rows, list) and bool(rows) and all(_is_row(row) for row in rows)


def _is_row(row: Any) -> bool:
    return isinstance(row, dict) and isinstance(row.get("name"), str)
