"""Tables that commands print and that pages show."""

import math
import re

import pytest

from agents.common.tables import markdown, points, print_table, renew


def test_names_are_printed_whole(capsys):
    """In a terminal of 80 columns, too, which a piped command has."""
    name = "resnet38-cifar10-hrl-1.0-gain6-distilled"
    row = {
        "name": name,
        "accuracy": 0.9109,
        "compute_blocks": 0.346,
        "compute_flops": 0.333,
        "return": 0.31,
        "unique_routes": 46,
    }
    about = {"env": "SkipResNet38-v0", "dataset": "cifar10", "split": "test", "n_images": 10_000}
    print_table({**about, "policies": [row]})
    lines = capsys.readouterr().out.splitlines()
    cells = [re.split("[│┃]", line)[1].strip() for line in lines if re.match("[│┃]", line)]
    assert "".join(cells) == f"policy{name}"
    assert "on cifar10, 10,000 test images" in lines[0]
    assert any(re.search(r"91.09%.*90.5 – 91.6.*33.3%.* 46 ", line) for line in lines)


def test_the_interval_comes_from_the_accuracy(capsys):
    """60 of 60 right is no certainty; an interval that an older run stored is not asked for."""
    row = dict.fromkeys(("accuracy", "compute_blocks", "compute_flops", "return", "unique_routes"), 1)
    about = {"env": "SkipResNet14-v0", "dataset": "cifar10", "split": "test", "n_images": 60}
    print_table({**about, "policies": [{**row, "name": "all blocks", "accuracy_ci95": 0.0}]})
    shown = capsys.readouterr().out
    assert "94.0 – 100.0" in shown and max(map(len, shown.splitlines())) <= 80


def test_a_table_of_some_images_says_so(capsys):
    about = {"env": "SkipResNet38-v0", "dataset": "cifar10", "split": "test", "n_images": 500}
    print_table({**about, "split_images": 10_000, "policies": []})
    assert "the first 500 of 10,000 test images" in " ".join(capsys.readouterr().out.split())


def test_markdown_by_hand():
    rows = [["a|b", "1"]]
    assert markdown(["x", "y"], rows) == "| x | y |\n| --- | --- |\n| a\\|b | 1 |\n"
    assert markdown(["x", "y"], rows, numbers=True).splitlines()[1] == "| --- | ---: |"


def test_a_part_of_a_page_is_renewed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- end of a -->\nafter\n")
    renew(page, "a", "new\n")
    assert page.read_text() == "before\n<!-- a -->\nnew\n<!-- end of a -->\nafter\n"
    with pytest.raises(ValueError, match="has no part between <!-- b --> and <!-- end of b -->; add"):
        renew(page, "b", "new\n")


def test_points_of_one_run_have_no_interval():
    assert points(0.9312, 0.0025) == "93.12 ± 0.25"
    assert points(0.0125, math.nan, "+") == "+1.25"
