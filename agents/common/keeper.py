"""What a run of hybrid REINFORCE keeps: the best weights on validation images, its start included."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.common.preparation import shortcomings
from agents.common.setting import Setting
from agents.hybrid_args import Args
from skipnet_rl.batchnorm import BATCH_SIZE, recalibrate
from skipnet_rl.checkpoint import save_weights
from skipnet_rl.data import Images
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.policies import AlwaysExecute
from skipnet_rl.tolerance import Tolerance

if TYPE_CHECKING:
    from agents.hybrid_reinforce import Learner

KEPT = ("accuracy", "loss", "return", "compute_blocks", "compute_flops")  # of what is kept, in result.json
FILES = {"sp": "sp.safetensors", "hrl": "hrl.safetensors", "tune": "hrl.safetensors"}  # after which stage
ADVICE = (
    "To this network a skipped block costs more than alpha/N pays: raise --alpha, or train longer "
    "(--iterations, --tune-iterations)",
    "Lower --alpha, or train longer (--iterations, --tune-iterations)",
)


class Keeper:
    """Validates a run on the way, and keeps the weights whose return on validation images is best.

    Args:
        setting: what the run learns on.
        learner: what is validated.
        folder: the run's.
    """

    def __init__(self, setting: Setting[Args], learner: Learner, folder: Path) -> None:
        self.setting, self.learner, self.folder = setting, learner, folder
        self.args = setting.args

    def begin(self) -> None:
        """Keep the start, where it has gates already, until something better is found."""
        if self.args.gate_weights and {"hrl", "tune"} & set(self.args.plan()):
            self.validate(0, "hrl", ended=True)  # as it is: its batch norms are settled

    def validate(self, done: int, stage: str, ended: bool) -> dict[str, Any]:
        """Summary on validation images, batch norms settled as they will be at the end; keeps the best.

        Args:
            done: steps so far.
            stage: which they ended in; what SP comes to has a file of its own.
            ended: whether it is over, and its batch norms are settled.
        """
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
        """Settle the batch norms; keep what SP comes to, whatever its return."""
        settle(self.learner, self.setting.train, stage, self.args)
        if stage == "sp":
            self.save(stage, self.learner)

    def save(self, stage: str, learner: Learner) -> None:
        """Write a stage's file of weights."""
        file = FILES[stage]
        about = {"stage": file.split(".")[0], **self.setting.header(self.args.gate, "hybrid_reinforce")}
        save_weights(self.folder / file, learner.model, about)

    def notes(self, tolerance: Tolerance) -> list[str]:
        """What the run has to say of its end, see `shortcomings`."""
        best, setting = self.learner.best, self.setting
        if not best:
            return []
        whole = tolerance.whole
        if setting.plain_name or min(self.args.eval_images, len(setting.val)) != tolerance.images:
            whole = setting.validate(RoutingMDP(setting.plain), AlwaysExecute())["accuracy"]
        start = ["nothing better was found: the network that the run started from is kept"]
        found = shortcomings(whole, best["accuracy"], best["compute_flops"], ADVICE)
        return found + start * (best["step"] == 0)


def settle(learner: Learner, data: Images, stage: str, args: Args) -> None:
    """Estimate the batch norms' statistics for the routes to come, where `--bn` asks for it."""
    if args.bn == "recalibrate":
        recalibrate(
            learner.mdp, learner.gate, data, batches=math.ceil(args.bn_images / BATCH_SIZE),
            precision=learner.precision, seed=args.seed, policy_too=stage != "tune",
        )  # fmt: skip
