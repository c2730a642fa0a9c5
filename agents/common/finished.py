"""Finished runs and saved policies, put together again from their files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from agents.blockdrop import PolicyNetwork
from agents.common.sb3_policies import WEIGHTS, build_policy, load_model
from envs.ids import depth_of
from skipnet_rl.checkpoint import load_weights
from skipnet_rl.evaluate import Record, load_records
from skipnet_rl.gated import empty_policy
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.policies import AlwaysExecute, Policy
from skipnet_rl.resnet import ResNet
from skipnet_rl.runs import as_now
from skipnet_rl.weights import build_backbone, find_named, find_start

GATED = ("hybrid_reinforce", "reinforce", "gumbel")  # backbone and gate in one file
FROZEN = ("ppo", "a2c", "dqn")  # a stable-baselines3 policy over the backbone that the run started from


@dataclass(frozen=True)
class FinishedRun:
    """A run folder that came to its end.

    Attributes:
        folder: where.
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
            raise FileNotFoundError(f"no run in {folder} that came to its end: it has no result.json")
        try:
            args, result = (
                json.loads((folder / name).read_text(encoding="utf-8"))
                for name in ("args.json", "result.json")
            )
        except ValueError as error:
            raise ValueError(f"{folder} holds a damaged args.json or result.json: {error}") from error
        if not (isinstance(args, dict) and isinstance(result, dict) and _is_result(result)):
            raise ValueError(f"{folder}/result.json names no agent or no policies; was it made by one here?")
        return cls(folder, as_now(args), result)

    @property
    def agent(self) -> str:
        """The module's name."""
        return self.result["agent"]

    @property
    def depth(self) -> int:
        """Of the network: of pretraining, which takes depths that no id has, the flag; else the id's."""
        return self.args["depth"] if self.agent == "pretrain" else depth_of(self.result["env"])

    @property
    def on_calibration_images(self) -> bool:
        """Whether its policy learned on half of the validation images."""
        return self.agent in (*FROZEN, "reinforce")

    @property
    def policy_name(self) -> str:
        """The policy that the run is about, as the table calls it."""
        return self.result["policies"][-1]["name"]

    @property
    def statistics(self) -> tuple[Any, Any]:
        """Mean and std that the run normalised images with; None where they are the data set's own."""
        return self.args.get("mean"), self.args.get("std")

    def records(self) -> dict[str, Record]:
        """The stored routes of each policy."""
        return load_records(self.folder / "routes.npz")

    def network(self, num_classes: int, file: str | None = None) -> ResNet:
        """The backbone in one of the run's files, that of a shipped name, or the one that it started from."""
        if file is None or find_named(file):
            kind, start = self.args.get("shortcut", "projection"), file or self.args["weights"]
            return build_backbone(self.depth, num_classes, self.result["dataset"], kind, start, exact=True)
        net = self._empty_network(num_classes)
        load_weights(self._inside(file), net, prefix="net.")
        return net

    def mdp(self, net: ResNet) -> RoutingMDP:
        """The decision process of the run over a network."""
        return RoutingMDP(net, self.result["alpha"], self.result.get("cost", "blocks"))

    def restore(self, num_classes: int, stage: str | None = None) -> tuple[RoutingMDP, Policy]:
        """Decision process and policy, in evaluation mode on the CPU.

        Args:
            num_classes: K of the data set.
            stage: `"sp"` or `"hrl"` of hybrid REINFORCE; None for the last. Other agents have none.

        Raises:
            WeightsError: a file is missing or does not fit.
            ValueError: the run has no policy that could be played on other images, or its args.json lacks
                what made it.
        """
        if stage and self.agent != "hybrid_reinforce":
            raise ValueError(f"{self.folder} is a run of agents.{self.agent}, which has no stage {stage!r}")
        try:
            return self._restore(num_classes, stage)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.folder}/args.json or result.json is damaged: {error!r}") from error

    def _restore(self, num_classes: int, stage: str | None) -> tuple[RoutingMDP, Policy]:
        agent = self.agent
        if agent == "pretrain":
            return self.mdp(self.network(num_classes, "weights.safetensors")), AlwaysExecute()
        if agent in GATED or agent == "blockdrop":
            name = (stage or self.policy_name.lower()) if agent == "hybrid_reinforce" else "policy"
            path = self._inside(f"{name}.safetensors")
            net = self._empty_network(num_classes)
            load_weights(path, net, prefix="net.")
            policy = self._own_policy(net)
            load_weights(path, policy, prefix="policy." if agent == "blockdrop" else "gate.")
            return self.mdp(net), policy.eval()
        if agent in FROZEN:
            mdp = self.mdp(self.network(num_classes))
            model = build_policy(self.result["policy"], mdp.num_decisions)
            load_weights(self.folder / WEIGHTS, model.policy)
            return mdp, model.eval()
        raise ValueError(
            f"{self.folder} is a run of agents.{agent}, whose rows are not policies to be played again; "
            "agents.compare reads them as they are"
        )

    def _inside(self, file: str) -> Path:
        path = self.folder / file
        if path.resolve().parent != self.folder.resolve():
            raise ValueError(f"{self.folder}/result.json names weights outside of the run's folder: {file}")
        return path

    def _own_policy(self, net: ResNet) -> nn.Module:
        if self.agent == "blockdrop":
            return PolicyNetwork(len(net.blocks) - 1, self.args["policy_depth"], net.image_size)
        return empty_policy(self.args["gate"], net)

    def _empty_network(self, num_classes: int) -> ResNet:
        return ResNet(self.depth, num_classes, self.args.get("shortcut", "projection")).eval()


def _is_result(result: Mapping[str, Any]) -> bool:
    names = all(isinstance(result.get(key), str) for key in ("agent", "env", "dataset"))
    rows = result.get("policies")
    return names and isinstance(rows, list) and bool(rows) and all(_is_row(row) for row in rows)


def _is_row(row: Any) -> bool:
    return isinstance(row, dict) and isinstance(row.get("name"), str)


def restore_model(
    path: Path, algorithm: str, env: str, dataset: str, num_classes: int, weights: str, alpha: float
) -> tuple[RoutingMDP, Policy]:
    """Decision process and policy of a stable-baselines3 .zip; see `load_model` on trust."""
    depth = depth_of(env)
    if weights == "auto" and (start := find_start(depth, dataset, "projection", alpha)):
        weights = start["name"]  # as the agents do
    net = build_backbone(depth, num_classes, dataset, weights=weights, exact=True)
    mdp = RoutingMDP(net, alpha)
    return mdp, load_model(path, algorithm, mdp.num_decisions).eval()
