"""The picture of the results: which networks are in it, and as what."""

from pathlib import Path

import pytest

from scripts import picture, results
from scripts.picture import Kind

NETWORKS = results.networks(Path(__file__).parent.parent / "docs" / "results-cifar10")


def row(name, depth, gate=None, distillation=0.0, over_seeds=None):
    """A row of results.json."""
    return {
        "name": name,
        "depth": depth,
        "gate": gate,
        "distillation": distillation,
        "mega_flops": 100.0,
        "accuracy": 0.9,
        "accuracy_ci95": [0.8945, 0.9045],
        "accuracy_seeds_ci95": over_seeds,
    }


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (row("HRL", 38, "rnn"), Kind(38, "rnn", False)),
        (row("HRL", 38, "rnn, gain 6", 0.9), Kind(38, "rnn", True)),
        (row("HRL", 74, "ff1"), Kind(74, "ff1", False)),
        (row("all blocks", 44, None, 0.9), Kind(None, None, True)),  # none is shipped
    ],
)
def test_rows_that_are_drawn(given, kind):
    point = picture.Point(100.0, 90.0, pytest.approx(0.5))
    assert list(picture.points_of_rows([given], NETWORKS)) == [(kind, point)]


def test_rows_that_are_not_drawn():
    """SP, and plain networks that are listed: they are drawn by what the list says of them."""
    assert not list(picture.points_of_rows([row("SP", 38, "rnn"), row("all blocks", 110)], NETWORKS))


def test_a_bar_is_the_wider_interval():
    halves = [
        point.half
        for over_seeds in (None, 0.001, 0.02)
        for _, point in picture.points_of_rows([row("HRL", 38, "rnn", over_seeds=over_seeds)], [])
    ]
    assert halves == pytest.approx([0.5, 0.5, 2.0])


def test_networks_that_are_drawn():
    kinds = {}
    for kind, point in picture.points_of_networks(NETWORKS):
        kinds.setdefault(kind, []).append(point)
    assert Kind(110, "fixed", True) in kinds
    assert len(kinds[Kind(110, "rnn", True)]) == 4  # two that are shipped, two that are not
    assert not any(kind.gate and not kind.taught for kind in kinds)  # those are rows of the table
    plain, taught = kinds[Kind(None, None, False)], kinds[Kind(None, None, True)]
    assert (picture.mega_flops(110), 93.19) in [(point.flops, round(point.accuracy, 2)) for point in plain]
    assert (picture.mega_flops(152), 93.48) in [(point.flops, round(point.accuracy, 2)) for point in taught]
    assert (picture.mega_flops(110), 93.60) in [(point.flops, round(point.accuracy, 2)) for point in taught]


def test_networks_without_a_teacher_are_hollow():
    figure = picture.picture([row("HRL", 38, "ff1"), row("HRL", 38, "ff2", 0.9)], NETWORKS)
    lines = {
        line.get_marker(): line
        for line in figure.axes[0].lines
        if line.get_marker() in "v^" and len(line.get_xdata())
    }
    assert lines["v"].get_markerfacecolor() == "white"
    assert lines["^"].get_markerfacecolor() == lines["^"].get_color()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"FFGate-I", "FFGate-II", "hollow: trained without a teacher"} < set(labels)
