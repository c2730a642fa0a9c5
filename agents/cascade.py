"""Cascades: chains of networks, in which the next one is asked where the answer so far is not sure.

    python -m agents.cascade --data-dir data --out docs/results-cifar10
    python -m agents.cascade --chains SkipChain14x38-v0 resnet20-cifar10,runs/mine,110 --budgets 0.3 0.5
    python -m agents.cascade --chains SkipChain14x38-v0 --mix 0     # the last network that is asked decides

The first network sees every image; the next one is asked where the margin of the answer so far is small, and
its answer is mixed in (`skipnet_rl.chain`). With `--mix 0` its answer replaces the one before (IDK cascades,
Wang et al. 2017, arXiv 1706.00885). For each budget, thresholds and mixing weights are chosen on the
validation images (`skipnet_rl.thresholds`); the test images are read once, at the end. Nothing is learned.

Each row is compared, image by image, with every network alone (`single` is the best that costs no more),
with its own routes reassigned to the images at random, and with the best single route for all images that
costs no more. The best is chosen on the validation images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from agents.common.chains import recorded
from agents.common.cli import main_with_named_errors
from agents.common.finished import FinishedRun
from agents.common.tables import markdown, points, publish
from envs.ids import CHAINS
from skipnet_rl.catalogue import find
from skipnet_rl.chain import Chain, ChainMDP
from skipnet_rl.chain_problem import ChainProblem
from skipnet_rl.controls import every_route
from skipnet_rl.evaluate import evaluate
from skipnet_rl.progress import load_images
from skipnet_rl.recording import Records, replayed
from skipnet_rl.statistics import accuracy_difference, half_width
from skipnet_rl.thresholds import ROUNDING, Tuned, tune

FILE = "chains.json"
BESIDE = (
    "resnet38-cifar10-hrl-0.5-ensemble",
    "resnet74-cifar10-hrl-0.5",
    "resnet110-cifar10-hrl-0.8-ensemble",
)
DEFAULT = tuple(f"SkipChain{name}-v0" for name in CHAINS if name)
AT_RANDOM, ONE_ROUTE = "its routes at random", "one route for all"


@dataclass(frozen=True)
class Options:
    """Tune chains for budgets on validation images; evaluate them on the test images."""

    chains: tuple[str, ...] = DEFAULT
    """registered ids, names of shipped chains, or networks separated by commas: names, weights files, run
    folders or depths"""
    beside: tuple[str, ...] | None = None
    """further networks to compare with (default: for the default chains, shipped ones; else none)"""
    budgets: tuple[float, ...] = (0.2, 0.26, 0.36, 0.46)
    """compute budgets: mean FLOPs per image, relative to the chain's last network; budgets below the cost
    of its first network are left out"""
    mix: tuple[float, ...] | None = None
    """weights of the answer so far to try; 0 alone is the plain cascade (default: a grid)"""
    dataset: str = "cifar10"
    """data set"""
    data_dir: Path | None = None
    """folder of the data set's official files (else $SKIPNET_DATA, else ./data)"""
    out: Path = Path("runs/results/table")
    """folder of chains.json"""
    device: str = "auto"
    """cpu, cuda, or auto"""
    debug: bool = False
    """traceback of an error"""


def networks_of(chain: str) -> list[int | str]:
    """Return the networks of a registered id, of a shipped chain, or of a list separated by commas.

    A run folder stands for the weights that the run saved.
    """
    name = chain.removeprefix("SkipChain").removesuffix("-v0")
    if chain.startswith("SkipChain") and name in CHAINS:
        return CHAINS[name]
    entry = find(chain)
    if entry and entry["kind"] == "chain":
        return list(entry["after"])
    return [int(word) if word.isdecimal() else _weights(word) for word in chain.split(",")]


def _weights(network: str) -> str:
    """Return a run folder's weights file, or any other name or path as it is."""
    folder = Path(network)
    return str(FinishedRun.read(folder).weights()) if folder.is_dir() else network


def main(options: Options) -> dict[str, Any]:
    """Tune and evaluate every chain; returns what was written.

    Raises:
        ValueError: no chains, or only budgets below their first networks.
        FileNotFoundError, WeightsError: a network does not exist.
    """
    if not options.chains:
        raise ValueError("no chains given; name one, such as SkipChain14x38-v0")
    given = options.beside if options.beside is not None else BESIDE * (options.chains == DEFAULT)
    beside = networks_of(",".join(given)) if given else []
    chains = {name: networks_of(name) for name in options.chains}
    wanted = list(dict.fromkeys([*chain.from_iterable(chains.values()), *beside]))
    problem = ChainProblem(
        networks=wanted, dataset=options.dataset, data_dir=options.data_dir, device=options.device
    ).resolve()
    images = {split: problem.images(split, load_images) for split in ("val", "test")}
    names = [str(name) for name in dict.fromkeys(problem.networks)]  # each network is asked once
    place = {network: names.index(str(name)) for network, name in zip(wanted, problem.networks, strict=True)}
    everything = replace(problem, networks=tuple(dict.fromkeys(problem.networks))).network(
        len(images["val"].classes)
    )
    records = {split: recorded(everything, each, "fp32") for split, each in images.items()}
    alone = {name: Alone.of(number, **records, name=name) for number, name in enumerate(names)}
    rows = []
    for name, networks in chains.items():
        places = [place[each] for each in networks]
        rows += rows_of(name, places, everything, records, alone, options)
    if not rows:
        budgets = ", ".join(f"{each:g}" for each in options.budgets)
        raise ValueError(f"budgets {budgets} are all below what the first network costs; raise one")
    found = {
        "dataset": problem.dataset,
        "n_images": len(images["test"]),
        "precision": "fp32",
        "networks": {name: each.summary() for name, each in alone.items()},
        "rows": rows,
    }
    return publish("agents.cascade", options.out / FILE, found, table(found))


class Alone(NamedTuple):
    """A network alone: its name, MACs per test image, accuracy on validation images, right test images."""

    name: str
    macs: float
    val_accuracy: float
    correct: Tensor

    @classmethod
    def of(cls, number: int, name: str, val: Records, test: Records) -> Alone:
        """Read network `number` alone off the records."""
        known, right = (each.correct[:, number] for each in (val, test))
        return cls(name, test.answers[:, number, -1].mean().item(), known.double().mean().item(), right)

    def summary(self) -> dict[str, float]:
        """Its entry in the file."""
        accuracy = self.correct.double().mean().item()
        return {"mega_flops": 2e-6 * self.macs, "accuracy": accuracy, "val_accuracy": self.val_accuracy}


def rows_of(
    name: str,
    places: Sequence[int],
    everything: Chain,
    records: Mapping[str, Records],
    alone: Mapping[str, Alone],
    options: Options,
) -> list[dict[str, Any]]:
    """Return a row for each budget above the cost of the chain's first network."""
    val, test = (
        Records(records[split].source, records[split].answers[:, places]) for split in ("val", "test")
    )
    asked = replayed(Chain([everything.members[place] for place in places]))
    whole = ChainMDP(asked).whole_macs
    least = val.answers[:, 0, -1].mean().item() / whole
    affordable = [budget for budget in sorted(options.budgets) if budget > least]
    if not affordable:
        return []
    return [
        {
            "chain": name,
            "networks": [list(alone)[place] for place in places],
            **row(asked, tuned, val, test, alone),
        }
        for tuned in tune(val, whole, affordable, weights=options.mix)
    ]


def row(
    asked: Chain, tuned: Tuned, val: Records, test: Records, alone: Mapping[str, Alone]
) -> dict[str, Any]:
    """Evaluate thresholds and weights on the test images, beside what they are compared with."""
    mdp = ChainMDP(asked.mixed(tuned.mix))
    done = evaluate(mdp, tuned.policy(), test)
    cost = done.compute_flops.mean().item()
    chosen, routes = every_route(mdp, val), every_route(mdp, test)
    most = cost * ROUNDING
    fixed = max(routes.fixed(most).tolist(), key=lambda r: chosen.correct[r].double().mean().item())
    single = max(
        (each for each in alone.values() if each.macs <= most * mdp.whole_macs),
        key=lambda each: each.val_accuracy,
    )
    rivals = {AT_RANDOM: routes.dealt_out(done.routes), ONE_ROUTE: routes.correct[fixed]}
    rivals |= {name: each.correct for name, each in alone.items()}
    return {
        "budget": tuned.budget,
        "mix": tuned.mix,
        "thresholds": tuned.thresholds,
        "by": tuned.by,
        "temperature": ChainProblem.temperature,
        "asked": done.routes.double().mean(dim=0).tolist(),
        "compute_flops": cost,
        "mega_flops": 2e-6 * cost * mdp.whole_macs,
        "accuracy": done.accuracy,
        "accuracy_ci95": list(done.accuracy_ci95),
        "val_accuracy": tuned.accuracy,
        "one_route": routes.routes[fixed].int().tolist(),
        "single": single.name,
        "over": {name: accuracy_difference(done.correct, rival) for name, rival in rivals.items()},
    }


COLUMNS = ("chain", "MFLOPs", "asked", "validation", "accuracy")
COMPARED = (f"over {AT_RANDOM}", f"over {ONE_ROUTE}", "over the best alone", "which is")


def table(found: Mapping[str, Any]) -> str:
    """Format the rows as Markdown: percent of the images, and differences in points on the same images."""
    return markdown(COLUMNS + COMPARED, [cells(each) for each in found["rows"]])


def cells(each: Mapping[str, Any]) -> list[str]:
    """Format the cells of a row."""
    over = [each["over"][name] for name in (AT_RANDOM, ONE_ROUTE, each["single"])]
    return [
        each["chain"].removesuffix("-v0"),
        f"{each['mega_flops']:.1f}",
        ", ".join(f"{100 * share:.1f}" for share in each["asked"]),
        f"{100 * each['val_accuracy']:.2f}",
        points(each["accuracy"], half_width(each["accuracy_ci95"])),
        *(points(difference["accuracy"], difference["ci95"], "+") for difference in over),
        each["single"],
    ]


if __name__ == "__main__":
    main_with_named_errors(Options, main)
