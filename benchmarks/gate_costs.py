"""What each gate costs beside the block that it decides on.

    python -m benchmarks.gate_costs            # prints the table of docs/gates.md
    python -m benchmarks.gate_costs --write    # and writes it there, with docs/gates.json

MACs of convolutions and linear layers, counted on shapes alone: the same on every machine.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from skipnet_rl.checkpoint import write_json
from skipnet_rl.files import write_text
from skipnet_rl.flops import network_macs
from skipnet_rl.gates import GATES, make_gate
from skipnet_rl.resnet import ResNet
from skipnet_rl.terminal import say

DEPTHS = (38, 74, 110, 152)
FOLDER = Path(__file__).parent.parent / "docs"
BEGIN, END = "<!-- gate costs -->\n", "<!-- end -->"


def costs(depth: int, gate: str) -> dict[str, float]:
    """Shares in per cent: of a gate in the block it decides on (mean), of all gates in the network."""
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
    """The result as Markdown."""
    lines = ["| gate | " + " | ".join(f"ResNet-{depth}" for depth in DEPTHS) + " |", "|---|" + "---|" * 4]
    for gate, by_depth in found.items():
        cells = (
            f"{c['of_block']:.3g} % / {c['of_downsampling_block']:.3g} % / {c['of_network']:.3g} %"
            for c in by_depth.values()
        )
        lines.append(f"| `{gate}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the table where asked; print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write", action="store_true", help="renew docs/gates.md and docs/gates.json")
    write = parser.parse_args().write
    found = {gate: {str(depth): costs(depth, gate) for depth in DEPTHS} for gate in GATES}
    if write:
        write_json(FOLDER / "gates.json", found)
        page = (FOLDER / "gates.md").read_text(encoding="utf-8")
        before, _, rest = page.partition(BEGIN)
        _, _, after = rest.partition(END)
        write_text(FOLDER / "gates.md", before + BEGIN + table(found) + END + after)
    say(table(found))


if __name__ == "__main__":
    main()
