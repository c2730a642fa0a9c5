"""The tables that the commands print."""

import re

from agents.report import print_table


def test_names_are_printed_whole(capsys):
    """In a terminal of 80 columns, too, which a piped command has."""
    name = "resnet38-cifar10-hrl-1.0-gain6-distilled"
    row = {
        "name": name, "accuracy": 0.9109, "accuracy_ci95": 0.0056, "compute_blocks": 0.346,
        "compute_flops": 0.333, "return": 0.31, "unique_routes": 46,
    }  # fmt: skip
    about = {"env": "SkipResNet38-v0", "dataset": "cifar10", "split": "test", "n_images": 10_000}
    print_table({**about, "policies": [row]})
    lines = capsys.readouterr().out.splitlines()
    cells = [re.split("[│┃]", line)[1].strip() for line in lines if re.match("[│┃]", line)]
    assert "".join(cells) == f"policy{name}"
    assert "on cifar10, 10,000 test images" in lines[0]
    assert any("91.09%" in line and "33.3%" in line and "46" in line for line in lines)


def test_a_table_of_some_images_says_so(capsys):
    about = {"env": "SkipResNet38-v0", "dataset": "cifar10", "split": "test", "n_images": 500}
    print_table({**about, "split_images": 10_000, "policies": []})
    assert "the first 500 of 10,000 test images" in " ".join(capsys.readouterr().out.split())
