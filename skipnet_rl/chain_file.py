"""Chains as files: a JSON object that names networks, and says how to mix their answers and when to ask.

It is a header like that of a weights file: `kind` ("chain"), `dataset`, `networks` (names of shipped
networks, or paths), `mix` (the weight of the answer so far, one for each decision), `thresholds` (as many)
and `by` (what they are compared with, see `belief.Threshold`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from skipnet_rl.belief import Threshold
from skipnet_rl.chain import Chain
from skipnet_rl.checkpoint import write_json
from skipnet_rl.errors import WeightsError
from skipnet_rl.member import Member
from skipnet_rl.stored import CHAIN, Stored

NEEDED = ("networks", "mix", "thresholds")
BEYOND = 1e9  # in the place of infinity, which JSON lacks; no answer is as sure


def save_chain(path: Path, row: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write a chain with the thresholds and weights that were tuned for a budget.

    Args:
        path: a name that ends in `.json`.
        row: `networks` (names or paths, in the order in which they are asked), `mix` and `thresholds`, and
            where they are known `by` and `budget`.
        about: more of the header: `dataset`, `depth`, `command`, …

    Raises:
        ValueError: a path with another ending.
    """
    if path.suffix != CHAIN:
        raise ValueError(f"the file of a chain is {path}; expected a name that ends in {CHAIN}")
    own = {key: row[key] for key in ("networks", "mix", "thresholds", "by", "budget") if key in row}
    own["thresholds"] = [min(max(each, -BEYOND), BEYOND) for each in row["thresholds"]]
    write_json(path, {"kind": "chain", **about, **own})


def open_chain(stored: Stored, open_network: Callable[[str], Any]) -> tuple[Chain, Threshold, dict[str, Any]]:
    """The chain of a header, its policy, and the header with what its networks add.

    Args:
        stored: what was read of the file.
        open_network: opens one of the networks by its name, see `weights.open_weights`.

    Raises:
        WeightsError: a header that lacks something or does not make sense, or a network that does not open.
    """
    header, source = stored.header, stored.source
    if missing := [name for name in NEEDED if name not in header]:
        raise WeightsError(f"{source} is damaged: its header lacks {', '.join(missing)}")
    opened = [open_network(name) for name in header["networks"]]
    try:
        chain = Chain([Member(each.network, each.policy) for each in opened], header["mix"])
        policy = Threshold(header["thresholds"], header.get("by", "margin"))
    except (ValueError, TypeError, AttributeError) as error:
        raise WeightsError(f"{source} is damaged: {error}") from error
    if len(policy.thresholds) != len(opened) - 1:
        came, wanted = len(policy.thresholds), len(opened) - 1
        raise WeightsError(f"{source} is damaged: its header has {came} thresholds for {wanted} decisions")
    known = {key: opened[0].header[key] for key in ("mean", "std") if key in opened[0].header}
    known |= {"depth": chain.depth, "num_classes": chain.num_classes}
    return chain.eval(), policy.eval(), {**known, **header}
