"""How well policies learned on a chain recognise the images that the next network corrects.

    python -m benchmarks.deferral runs/chain/reinforce-0 runs/chain/ppo-0 --data-dir data

An image is mended if the answer so far is wrong and becomes right when the next network's answer is mixed in.
Reported for each decision: the share of the images for which the policy asks the next network, and how well
its log-odds and the margin tell mended images from the others: the area under the ROC curve, where 0.5 is
chance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from agents.common.chains import recorded
from agents.common.cli import main_with_named_errors
from agents.common.finished import FinishedRun
from agents.common.tables import markdown, publish
from benchmarks.predictors import area
from skipnet_rl.belief import margin
from skipnet_rl.chain import ChainMDP
from skipnet_rl.normalisation import normalised
from skipnet_rl.policies import Policy
from skipnet_rl.progress import load_images
from skipnet_rl.recording import Records, replayed
from skipnet_rl.rollout import rollout


@dataclass(frozen=True)
class Options:
    """Measure which images learned policies defer to the next network."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """run folders of agents on a chain"""
    data_dir: Path | None = None
    """folder of the data set's official files (else $SKIPNET_DATA, else ./data)"""
    out: Path = Path("runs/benchmarks")
    """folder of the JSON file (docs/benchmarks for docs/policies.md)"""
    debug: bool = False
    """traceback of an error"""


@torch.no_grad()
def decisions(mdp: ChainMDP, policy: Policy, records: Records) -> list[dict[str, Any]]:
    """Play the policy on the recorded images; return the figures of each decision."""
    answers, labels = records.batch(torch.arange(len(records), device=records.device))
    episode = rollout(mdp, policy, answers, labels)
    found = []
    for t in range(mdp.num_decisions):
        so_far = mdp.initial(answers, labels)._replace(t=t, answers=episode.state.answers[: t + 1])
        asked = mdp.transition(so_far, torch.ones_like(labels, dtype=torch.bool)).answer
        right = [each.argmax(dim=1) == labels for each in (so_far.answer, asked)]
        mended = right[1] & ~right[0]
        found.append(
            {
                "asked": episode.actions[:, t].mean().item(),
                "mended": mended.double().mean().item(),
                "logit": area(episode.gate_logits[:, t].double(), mended),
                "margin": area(-margin(so_far.answer), mended),
            }
        )
    return found


def of_run(folder: Path, data_dir: Path | None) -> dict[str, Any]:
    """Return the figures of a run's policy on the test images.

    Raises:
        ValueError: the run is not on a chain.
    """
    run = FinishedRun.read(folder)
    images = load_images(run.result["dataset"], "test", run.data_dir(data_dir))
    images = normalised(images, *run.statistics)
    mdp, policy = run.restore(len(images.classes))
    if not isinstance(mdp, ChainMDP):
        raise ValueError(f"{folder} is a run on {run.result['env']}; expected one on a chain")
    records = recorded(mdp.net, images, "fp32")
    replay = ChainMDP(replayed(mdp.net), mdp.alpha, mdp.cost)
    about = {"env": run.result["env"], "policy": run.policy_name, "seed": run.result["seed"]}
    return {**about, "n_images": len(images), "decisions": decisions(replay, policy, records)}


def main(options: Options) -> dict[str, Any]:
    """Measure every run; return the content of the JSON file.

    Raises:
        ValueError: no runs are given, or one is not on a chain.
    """
    if not options.runs:
        raise ValueError("no runs given; name the folder of an agent's run on a chain")
    found = {"runs": [of_run(folder, options.data_dir) for folder in options.runs]}
    return publish("benchmarks.deferral", options.out / "deferral.json", found, table(found))


def table(found: Mapping[str, Any]) -> str:
    """Return the runs as a Markdown table."""
    columns = ("policy", "seed", "decision", "asked", "mended", "its log-odds", "the margin")
    rows = [
        [
            run["policy"],
            str(run["seed"]),
            str(number + 1),
            f"{100 * each['asked']:.1f} %",
            f"{100 * each['mended']:.1f} %",
            *(f"{each[name]['auc']:.3f}" for name in ("logit", "margin")),
        ]
        for run in found["runs"]
        for number, each in enumerate(run["decisions"])
    ]
    return markdown(columns, rows)


if __name__ == "__main__":
    main_with_named_errors(Options, main)
