"""The header of a weights file that does not say what it is: read off the names and shapes of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from skipnet_rl.foreign import architecture_of

POLICY = "policy."  # before the tensors of BlockDrop's policy network
MARKS = {  # tensors that only files of one kind have; the first match counts
    "gate.route": "fixed",
    "gate.lstm.weight_ih": "rnn",
    "gate.features.0.4.weight": "ff1",  # its second convolution
    "gate.heads.0.weight": "ff2",
    "policy.net.fc.weight": "blockdrop",
    "action_net.weight": "sb3",
    "q_net.q_net.0.weight": "sb3",
}


def recognise(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The kind of policy that tensors hold, and what rebuilding it takes."""
    kind = next((kind for mark, kind in MARKS.items() if mark in tensors), "plain")
    if kind != "blockdrop":
        return {"kind": kind}
    own = f"{POLICY}net."
    plan = architecture_of({name.removeprefix(own): value for name, value in tensors.items() if own in name})
    return {"kind": kind, **({"policy_depth": plan.depth} if plan else {})}
