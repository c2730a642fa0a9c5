"""Cost of each gate, relative to the block about which it decides.

    python -m benchmarks.gate_costs            # prints the table of docs/gates.md
    python -m benchmarks.gate_costs --write    # and writes it there and to docs/gates.json

Costs are MACs of convolutions and linear layers, counted from shapes, so every machine gives the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agents.common.cli import main_with_named_errors
from agents.common.tables import markdown, renew
from skipnet_rl.checkpoint import write_json
from skipnet_rl.flops import network_macs
from skipnet_rl.gates import GATES, make_gate
from skipnet_rl.resnet import ResNet
from skipnet_rl.terminal import say

DEPTHS = (38, 74, 110, 152)
FOLDER = Path(__file__).parent.parent / "docs"


@dataclass(frozen=True)
class Options:
    """Count what the gates cost."""

    write: bool = False
    """renew docs/gates.md and docs/gates.json"""
    debug: bool = False
    """traceback of an error"""


def costs(depth: int, gate: str) -> dict[str, float]:
    """Return costs in percent: a gate relative to its block (mean), and all gates relative to the network."""
    net = ResNet(depth)
    macs = network_macs(net)
    decisions = make_gate(gate, net).macs_per_decision()
    shares = [own / block for own, block in zip(decisions, macs.transforms, strict=True)]
    same_shape = [s for s, block in zip(shares, net.blocks[1:], strict=True) if block.stride == 1]
    return {
        "of_block": 100 * sum(same_shape) / len(same_shape),
        "of_downsampling_block": 100 * max(set(shares) - set(same_shape), default=0.0),
        "of_network": 100 * sum(decisions) / macs.total,
    }


def table(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """Return the result as a Markdown table."""
    line = "{of_block:.3g} % / {of_downsampling_block:.3g} % / {of_network:.3g} %"
    rows = [[gate, *(line.format(**cost) for cost in by_depth.values())] for gate, by_depth in found.items()]
    return markdown(["gate", *(f"ResNet-{depth}" for depth in DEPTHS)], rows)


def main(options: Options) -> None:
    """Print the table, and write it with `--write`."""
    found = {gate: {str(depth): costs(depth, gate) for depth in DEPTHS} for gate in GATES}
    if options.write:
        write_json(FOLDER / "gates.json", found)
        renew(FOLDER / "gates.md", "gate costs", table(found))
    say(table(found))


if __name__ == "__main__":
    main_with_named_errors(Options, main)
