"""The weights that a run keeps: the last ones, or the best ones on validation images."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

from agents.common.learner import GatedLearner, ModelLearner
from agents.common.outcome import weights_header
from agents.common.setting import Setting
from skipnet_rl.batchnorm import BATCH_SIZE, recalibrate
from skipnet_rl.checkpoint import save_weights
from skipnet_rl.data import Images

# metrics of the kept weights in result.json
KEPT = ("accuracy", "loss", "return", "compute_blocks", "compute_flops")
FILES = {"sp": "sp.safetensors", "hrl": "hrl.safetensors", "tune": "hrl.safetensors"}  # after each stage


class KeepLast:
    """Keeps the last weights.

    Args:
        setting: the setting of the run.
        learner: the agent in training.
        folder: folder of the run.
        row: name of the policy in the table.
        header: header of the weights file.
        trained: the stages that train the backbone; its batch norms are settled after each.
    """

    FILE = "policy.safetensors"

    def __init__(
        self,
        setting: Setting,
        learner: ModelLearner,
        folder: Path,
        *,
        row: str,
        header: dict[str, Any],
        trained: Collection[str] = (),
    ) -> None:
        self.setting, self.learner, self.folder = setting, learner, folder
        self.row, self.header, self.trained = row, header, trained

    def begin(self) -> None:
        """Before the first step, do nothing: the start is not kept."""

    def validate(self, done: int, stage: str, ended: bool) -> dict[str, Any]:
        """Summary on validation images after `done` steps; `ended` says whether the stage has ended."""
        return self.setting.validate(self.learner.mdp, self.learner.policy)

    def end_stage(self, stage: str) -> None:
        """Settle the batch norms of a backbone that was trained, before the stage's last validation."""
        setting, learner = self.setting, self.learner
        if stage in self.trained:
            recalibrate(
                learner.mdp,
                learner.policy,
                setting.train,
                precision=setting.precision,
                seed=setting.args.seed,
            )

    def files(self) -> dict[str, str]:
        """Write the weights; returns the file of each row of the table, the run's own policy last."""
        save_weights(self.folder / self.FILE, self.learner.model, self.header)
        return {self.row: self.FILE}

    def kept(self) -> dict[str, Any]:
        """Summary of the weights in the file: the last validation saw them before they were rounded."""
        return self.setting.validate(self.learner.mdp, self.learner.policy)

    def about(self, rate: float) -> dict[str, Any]:
        """Further fields of result.json, notes among them; `rate` is the last row's share of executions."""
        return {"notes": []}


class KeepBest:
    """Keeps the weights of gated networks whose return on validation images is best, after each stage.

    Args:
        setting: the setting of the run; its `args` have `bn`, `bn_images` and `plan`.
        learner: the agent in training.
        folder: folder of the run.
        agent, gate: name of the module and kind of gates, for the header of the files.
        trained: whether the gates are already trained; then the start is kept until something beats it.
    """

    def __init__(
        self, setting: Setting, learner: GatedLearner, folder: Path, agent: str, gate: str, trained: bool
    ) -> None:
        self.setting, self.learner, self.folder = setting, learner, folder
        self.args: Any = setting.args
        self.agent, self.gate, self.trained = agent, gate, trained

    def begin(self) -> None:
        """Keep the start, if it is trained; its batch norms fit already."""
        if self.trained and {"hrl", "tune"} & set(self.args.plan()):
            self.validate(0, "hrl", ended=True)

    def validate(self, done: int, stage: str, ended: bool) -> dict[str, Any]:
        """Summary on validation images, batch norms settled as they will be at the end; keeps the best."""
        learner = self.learner
        if not ended:
            learner = learner.snapshot()
            settle(learner, self.setting.train, stage, self.args)
        found = self.setting.validate(learner.mdp, learner.gate)
        if stage in ("hrl", "tune") and found["return"] > self.learner.best.get("return", -math.inf):
            self.learner.best = {key: found[key] for key in KEPT} | {"step": done}
            self.save(stage, learner)
        return found

    def end_stage(self, stage: str) -> None:
        """Settle the batch norms; keep the end of SP, whatever its return."""
        settle(self.learner, self.setting.train, stage, self.args)
        if stage == "sp":
            self.save(stage, self.learner)

    def save(self, stage: str, learner: GatedLearner) -> None:
        """Write a stage's file of weights."""
        file = FILES[stage]
        header = {"stage": file.split(".")[0], **weights_header(self.setting, self.gate, self.agent)}
        save_weights(self.folder / file, learner.model, header)

    def files(self) -> dict[str, str]:
        """The files written, one for SP and one for what follows it."""
        files = dict.fromkeys(FILES[stage] for stage in self.args.plan() if stage in FILES)
        return {file.split(".")[0].upper(): file for file in files}

    def kept(self) -> dict[str, Any]:
        """Summary of the best; empty after SP alone."""
        return self.learner.best

    def about(self, rate: float) -> dict[str, Any]:
        """The summary of the best, and a note if it is the start."""
        best = self.learner.best
        start = [
            "nothing better was found: the network that the run started from is kept; train longer "
            "(--iterations), or at a lower rate (--lr)"
        ]
        return {"notes": start * (best.get("step") == 0), "kept": best}


Keeper = KeepLast | KeepBest  # validates a run in training, and chooses the weights that it ends with


def settle(learner: GatedLearner, data: Images, stage: str, args: Any) -> None:
    """Estimate the batch norms' statistics for the routes to come, where `args.bn` asks for it."""
    if args.bn == "recalibrate":
        recalibrate(
            learner.mdp,
            learner.gate,
            data,
            batches=math.ceil(args.bn_images / BATCH_SIZE),
            precision=learner.precision,
            seed=args.seed,
            policy_too=stage != "tune",
        )
