"""The pictures of the results: which networks are in them, and as what."""

import json
from pathlib import Path

import pytest

from scripts import picture, results, results_picture
from scripts.picture import Kind

OUT = Path(__file__).parent.parent / "docs" / "results-cifar10"
NETWORKS = [entry for entry in results.networks(OUT) if entry["dataset"] == "cifar10"]


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
    for kind, point in picture.points_of_networks(NETWORKS, [row("HRL", 38, "rnn")]):
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


def chain(budget, val, flops, *networks, accuracy=0.93):
    """A row of chains.json."""
    return {
        "networks": networks,
        "budget": budget,
        "val_accuracy": val,
        "mega_flops": flops,
        "accuracy": accuracy,
        "accuracy_ci95": [accuracy - 0.005, accuracy + 0.005],
    }


def test_the_chain_of_a_budget_is_chosen_on_the_validation_images():
    """Budgets are shares of the last network: those of another one are others."""
    rows = [
        chain(0.3, 0.94, 150, "a", "d", accuracy=0.92),
        chain(0.3, 0.93, 140, "b", "d", accuracy=0.95),
        chain(0.3, 0.91, 50, "a", "c"),
        chain(0.2, 0.92, 100, "b", "d"),
    ]
    drawn = [(point.flops, round(point.accuracy, 6)) for point in results_picture.best_chains(rows)]
    assert drawn == [(50, 93), (100, 93), (150, 92)]


def panel(dataset="cifar10", chains=()):
    """A panel of what is listed; rows only of CIFAR-10."""
    rows = results.read(OUT) if dataset == "cifar10" else []
    return results_picture.Panel(dataset, rows, results.networks(OUT), chains)


def texts_of(axes) -> set[str]:
    return {text.get_text() for text in axes.texts}


def test_what_the_picture_of_the_results_says():
    """Every point is a row's, and plain and published networks have their depths."""
    chains = results.read_chains(OUT, "cifar10")
    (axes,) = results_picture.picture([panel(chains=chains)]).axes
    lines = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    drawn, *_ = lines[results_picture.CHAINS].lines
    assert len(drawn.get_xdata()) == 6
    assert {*zip(*drawn.get_data(), strict=True)} <= {
        (row["mega_flops"], 100 * row["accuracy"]) for row in chains
    }
    assert texts_of(axes) == {"14", "20", "32", "38", "56", "74", "110", "152"}
    assert len(lines["plain ResNets"].get_xdata()) == 6
    assert len(lines["one network with gates"].get_xdata()) > 10
    assert list(lines["plain ResNets, published"].get_ydata()) == pytest.approx([92.74, 93.81, 94.26, 94.86])
    markers = [(line.get_marker(), line.get_markerfacecolor()) for line in axes.lines]
    assert markers.count(("D", "white")) == 3 and markers.count(("^", "white")) == 1


def test_each_data_set_has_a_panel_and_all_share_a_legend():
    chains = [chain(0.5, 0.7, 80, "a", "b", accuracy=0.65)]
    figure = results_picture.picture([panel(), panel("cifar100", chains)])
    first, second = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["CIFAR-10", "CIFAR-100"]
    assert first.get_legend() is None
    labels = [text.get_text() for text in second.get_legend().get_texts()]
    assert labels[0] == results_picture.CHAINS and "SkipNet, published" in labels and len(labels) == 6
    assert "20" in texts_of(second) and "152" not in texts_of(second)


def test_a_plain_network_with_a_teacher_hides_the_one_without():
    points = [picture.Point(80.0, accuracy, 0.5) for accuracy in (91, 92, 90)]
    kinds = [Kind(None, None, False), Kind(None, None, True), Kind(20, "rnn", False)]
    listed = list(zip(kinds, points, strict=True))
    assert results_picture.plain_networks(listed) == [(80, 92)]
    assert results_picture.gated_networks(listed) == [(80, 90)]
    taught = (Kind(20, "rnn", True), picture.Point(70.0, 89.0, 0.5))
    assert results_picture.gated_networks([*listed, taught]) == [(70, 89)]


def test_chains_of_another_data_set_are_refused(tmp_path):
    (tmp_path / "chains.json").write_text(json.dumps({"dataset": "rendered-digits", "rows": []}))
    with pytest.raises(ValueError, match="is for rendered-digits, the rows beside it for cifar10"):
        results.read_chains(tmp_path, "cifar10")
    (tmp_path / "results.json").write_bytes((OUT / "results.json").read_bytes())
    with pytest.raises(ValueError, match="is for rendered-digits, the rows beside it for cifar10"):
        results.draw_chains(tmp_path)


def test_pictures_that_are_drawn(tmp_path, monkeypatch):
    """The picture of chains is beside the folders of all data sets, and only of folders named alike."""
    drawn = []
    monkeypatch.setattr(results.plots, "save_figure", lambda figure, path: drawn.append((path, figure.axes)))
    out = tmp_path / "table-cifar10"
    out.mkdir()
    (out / "results.json").write_bytes((OUT / "results.json").read_bytes())
    results.draw_chains(out)
    assert not drawn
    results.draw(out)
    assert [path for path, _ in drawn] == [out / "all_rows.png"]
    for folder, dataset in (("table-cifar10", "cifar10"), ("table-svhn", "svhn"), ("other", "cifar100")):
        (tmp_path / folder).mkdir(exist_ok=True)
        rows = [chain(0.5, 0.9, 80, "a", "b")]
        (tmp_path / folder / "chains.json").write_text(json.dumps({"dataset": dataset, "rows": rows}))
    results.draw_chains(out)
    path, axes = drawn[-1]
    assert path == tmp_path / "results.png"
    assert [each.get_title(loc="left") for each in axes] == ["CIFAR-10", "SVHN"]


def test_networks_for_another_data_set_are_left_out():
    figure = picture.picture([row("HRL", 38, "rnn")], results.networks(OUT), "svhn")
    (axes,) = figure.axes
    assert axes.get_ylabel() == "SVHN test accuracy (%)" and not axes.texts
    drawn = [line for line in axes.lines if len(line.get_xdata()) and line.get_marker() not in ("None", "_")]
    assert {line.get_marker() for line in drawn} == {"o"}  # no diamonds, no squares
    labels = {text.get_text() for legend in figure.legends for text in legend.get_texts()}
    assert "published" not in labels and "ResNet-38 with gates, ours" in labels


def test_the_picture_of_chains_is_the_same_from_every_folder(tmp_path, monkeypatch):
    """A folder's networks that are not shipped are drawn even if another folder's chains are new."""
    panels = []
    monkeypatch.setattr(results.results_picture, "picture", panels.append)
    monkeypatch.setattr(results.plots, "save_figure", lambda figure, path: None)
    for dataset in ("cifar10", "svhn"):
        folder = tmp_path / f"table-{dataset}"
        folder.mkdir()
        (folder / "chains.json").write_text(json.dumps({"dataset": dataset, "rows": []}))
    for dataset in ("cifar10", "cifar100"):
        listed = OUT.with_name(f"results-{dataset}") / "not_shipped.json"
        if listed.is_file():
            (tmp_path / f"table-{dataset}").mkdir(exist_ok=True)
            (tmp_path / f"table-{dataset}" / listed.name).write_bytes(listed.read_bytes())
    for dataset in ("cifar10", "svhn"):
        results.draw_chains(tmp_path / f"table-{dataset}")
    assert panels[0] == panels[1] and panels[0][0].networks == results.networks(OUT)
