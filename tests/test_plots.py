"""Figures show the numbers that they are given."""

import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba

from skipnet_rl import plots
from skipnet_rl.evaluate import Evaluation, Record, save_evaluations
from skipnet_rl.statistics import mean_interval, rank_correlations

STAGES = [0, 0, 1, 1]


@pytest.fixture(autouse=True)
def no_warnings():
    """Warnings fail the test: missing glyphs, empty legends, layouts that do not fit."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def draw(figure):
    FigureCanvasAgg(figure).draw()
    return figure


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def with_intervals(axes):
    return [bars for bars in axes.containers if bars.has_yerr]


def entry(name, accuracy, flops, **more):
    return {"name": name, "accuracy": accuracy, "compute_flops": flops, **more}


def record(rows, predictions=None, correct=None):
    """Routes from strings such as "1101"."""
    routes = np.array([[cell == "1" for cell in row] for row in rows])
    count = len(rows)
    return Record(
        routes,
        np.asarray([0] * count if predictions is None else predictions, np.int16),
        np.asarray([True] * count if correct is None else correct),
    )


def policy(name, histogram=(0, 2, 2), rate=(0.5, 1.0)):
    return {
        "name": name,
        "executed_blocks_histogram": list(histogram),
        "executed_blocks_mean": 1.5,
        "execution_rate": list(rate),
    }


def test_a_policy_has_its_colour_in_every_figure():
    names = ["PPO", "all blocks", "random", "DQN", "HRL", "PPO"]
    found = plots.palette(names)
    assert list(found) == ["PPO", "all blocks", "random", "DQN", "HRL"]
    assert {name: found[name] for name in plots.COLOURS if name in found}.items() <= plots.COLOURS.items()
    assert len(set(found.values())) == 5
    assert not set(plots.palette(map(str, range(12))).values()) & set(plots.COLOURS.values())


def test_blocks_and_rates_of_policies():
    figure = draw(plots.executed_blocks([policy("random"), policy("PPO", (4, 0, 4))]))
    heights = [[bar.get_height() for bar in bars] for bars in figure.axes[0].containers]
    assert heights == [[0, 0.5, 0.5], [0.5, 0, 0.5]]
    figure = draw(plots.execution_rate([policy("random"), policy("PPO", rate=(1, 0.25))], [0, 1]))
    lines = [patch for patch in figure.axes[0].patches if hasattr(patch, "get_data")]
    assert [line.get_data().values.tolist() for line in lines] == [[0.5, 1], [1, 0.25]]
    assert lines[0].get_data().edges.tolist() == [0.5, 1.5, 2.5]
    assert legend(figure) == ["random", "PPO"] and texts(figure) == ["stage 1", "stage 2"]


def test_computation_reduction():
    rows = [
        entry("ResNet-38", 0.9275, 0.7, compute_blocks=0.72, accuracy_ci95=0.005, plain_accuracy=0.925),
        entry("ResNet-110", 0.933, 1.25, compute_blocks=1.0),
    ]
    figure = draw(plots.computation_reduction(rows))
    axes = figure.axes[0]
    flops, blocks = ([bar.get_width() for bar in bars] for bars in axes.containers)
    assert flops == pytest.approx([30, -25]) and blocks == pytest.approx([28, 0])
    assert texts(figure) == ["92.75 ± 0.50 %\nplain 92.50 %", "93.30 %"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ResNet-38", "ResNet-110"]
    left, right = axes.get_xlim()
    assert left < -25 and right > 30


def result(alpha, seed, accuracy, flops, name="HRL"):
    return {
        "alpha": alpha,
        "seed": seed,
        "policies": [entry("all blocks", 1, 1), entry(name, accuracy, flops)],
    }


def test_alpha_curve_is_the_mean_over_seeds():
    results = [
        result(2, 0, 0.8, 0.4),
        result(1, 0, 0.9, 0.6),
        result(1, 1, 0.94, 0.62),
        result(1, 2, 0.92, 0.7),
    ]
    figure = draw(plots.alpha_curve(results))
    axes = figure.axes[0]
    one, two = with_intervals(axes)  # by alpha
    assert [one[0].get_xdata().item(), one[0].get_ydata().item()] == pytest.approx([64, 92])
    assert [two[0].get_xdata().item(), two[0].get_ydata().item()] == pytest.approx([40, 80])
    for bars, values in zip(one[2], ([60, 62, 70], [90, 94, 92]), strict=True):  # along x, then along y
        mean, half = mean_interval(values)
        ends = np.array(bars.get_segments()[0])
        assert np.ptp(ends, axis=0).max() == pytest.approx(2 * half)
    lone = [np.asarray(bars.get_segments()[0]) for bars in two[2]]
    assert not any(np.isfinite(ends).all() and ends.size for ends in lone)  # one seed: no interval
    assert legend(figure) == ["HRL (1–3 seeds)", "α = 1", "α = 2"]
    joined = next(line for line in axes.lines if len(line.get_xdata()) == 2)
    assert joined.get_xdata() == pytest.approx([64, 40])


def test_alpha_curves_of_two_policies_share_the_colours():
    figure = draw(plots.alpha_curve([result(1, 0, 0.9, 0.6), result(1, 0, 0.8, 0.5, "PPO")]))
    first, second = (bars[0] for bars in with_intervals(figure.axes[0]))
    assert to_rgba(first.get_color()) == to_rgba(second.get_color())
    assert first.get_marker() != second.get_marker()
    assert legend(figure) == ["HRL (1 seed)", "PPO (1 seed)", "α = 1"]


def test_alpha_curve_refuses_duplicate_seeds():
    with pytest.raises(ValueError, match="two results of HRL with alpha 1 and seed 0"):
        plots.alpha_curve([result(1, 0, 0.9, 0.6), result(1, 0, 0.8, 0.6)])


ENTRIES = [
    entry("all blocks", 0.98, 1.0, accuracy_ci95=[0.97, 0.985]),
    entry("PPO", 0.97, 0.6, accuracy_ci95=0.005, compute_flops_ci95=0.01),
    entry("dear", 0.97, 0.7),  # PPO is as good for less
    entry("bad", 0.5, 0.6),  # PPO is better for as much
    entry("random 80%", 0.6, 0.8),
    entry("random 50%", 0.3, 0.5),
    entry("random, HRL weights", 0.2, 0.55),
    entry("no blocks", 0.1, 0.1, bound=False),
    entry("oracle", 0.99, 0.3, bound=True),
]


def test_pareto_front():
    assert [row["name"] for row in plots.pareto_front(ENTRIES)] == [
        "no blocks",
        "random 50%",
        "PPO",
        "all blocks",
    ]
    twins = [entry("a", 0.9, 0.5), entry("b", 0.9, 0.5)]
    assert plots.pareto_front(twins) == twins
    assert plots.pareto_front(ENTRIES[-1:]) == []


def test_frontier():
    figure = draw(plots.frontier(ENTRIES))
    axes = figure.axes[0]
    drawn = {bars.get_label(): bars for bars in axes.containers}
    assert legend(figure) == list(drawn)
    steps = drawn.pop("Pareto frontier")[0]
    assert steps.get_drawstyle() == "steps-post"
    assert steps.get_xdata() == pytest.approx([10, 50, 60, 100, 100])
    assert steps.get_ydata() == pytest.approx([10, 30, 97, 98, 98])
    assert list(drawn) == [
        "all blocks",
        "PPO",
        "dear",
        "bad",
        "random",
        "random, HRL weights",
        "no blocks",
        "oracle",
    ]
    curve = drawn["random"][0]
    assert curve.get_linestyle() == "-"
    assert curve.get_xdata() == pytest.approx([50, 80]) and curve.get_ydata() == pytest.approx([30, 60])
    star = drawn["oracle"][0]
    assert star.get_marker() == "*" and star.get_markerfacecolor() == "none"
    across, along = (bars.get_segments()[0] for bars in drawn["PPO"][2])
    assert across[:, 0] == pytest.approx([59, 61]) and along[:, 1] == pytest.approx([96.5, 97.5])
    lopsided = drawn["all blocks"][2][1].get_segments()[0]  # [0] is along x, and nan
    assert lopsided[:, 1] == pytest.approx([97, 98.5])


def test_twelve_policies_are_told_apart():
    many = [
        entry(f"agent {letter}", 0.5 + number / 50, 0.5, accuracy_ci95=math.nan)
        for number, letter in enumerate("ABCDEFGHIJKLMN")
    ]
    figure = draw(plots.frontier(many, lowest=0.4))
    looks = {(bars[0].get_color(), bars[0].get_marker()) for bars in with_intervals(figure.axes[0])}
    assert len(looks) == len(many)
    assert figure.axes[0].get_ylim()[0] == 40 and figure.axes[0].get_ylim()[1] > 76


def test_families_are_joined_by_name_or_by_series():
    rows = [
        entry("greedy, 7 of 8", 0.9, 0.9),
        entry("greedy, 6 of 8", 0.8, 0.8),
        entry("greedy", 0.7, 0.7),
        entry("random 90% (static)", 0.2, 0.9),
        entry("x", 0.1, 0.1, series="s"),
        entry("y", 0.2, 0.2, series="s"),
    ]
    drawn = with_intervals(draw(plots.frontier(rows)).axes[0])
    found = {bars.get_label(): len(bars[0].get_xdata()) for bars in drawn}
    assert found == {"greedy": 3, "random 90% (static)": 1, "s": 2}


def test_skipped_layers():
    records = {"HRL": record(["1111", "1110", "1100", "1100", "0000"]), "one route": record(["0111"] * 3)}
    figure = draw(plots.skipped_layers(records))
    axes = figure.axes[0]
    first, second = ([bar.get_height() for bar in bars] for bars in axes.containers)
    assert first == pytest.approx([0.4, 0.4, 0.8, 0, 0.4])  # shares 1 1 2 0 1 of five, the widest 0.8
    assert second == pytest.approx([0, 0.8, 0, 0, 0])
    quartiles, median = axes.lines[:2]
    assert list(quartiles.get_xdata()) == [1, 2] and list(median.get_xdata()) == [2]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["HRL", "one route"]
    (right,) = axes.child_axes
    assert [label.get_text() for label in right.get_yticklabels()] == ["2", "1"]


def test_class_skip_rates_by_hand():
    routes = record(["1100", "1000", "1010", "1111"])
    rates = plots.class_skip_rates(routes, torch.tensor([2, 2, 0, 0]), 3)
    assert rates[0].tolist() == [0, 0.5, 0, 0.5]
    assert np.isnan(rates[1]).all()  # no images
    assert rates[2].tolist() == [0, 0.5, 1, 1]
    with pytest.raises(ValueError, match="3 labels for routes of 4 images"):
        plots.class_skip_rates(routes, [0, 1, 2], 3)


def test_skip_rate_by_class():
    routes = record(["1100", "1000", "1010", "1111"])
    figure = draw(plots.skip_rate_by_class(routes, [2, 2, 0, 0], ["cat", "dog", "ship"]))
    top, upper, lower = figure.axes[:3]
    assert [bar.get_height() for bar in top.patches] == [0, 0.5, 0.5, 0.75]
    rates, away = (axes.images[0].get_array() for axes in (upper, lower))
    assert np.ma.getmaskarray(rates).all(axis=1).tolist() == [False, True, False]
    assert rates[2].tolist() == [0, 0.5, 1, 1]
    assert away[0].tolist() == [0, 0, -0.5, -0.25] and away[2].tolist() == [0, 0, 0.5, 0.25]
    assert lower.images[0].get_clim() == (-0.5, 0.5)
    assert [label.get_text() for label in upper.get_yticklabels()] == ["cat", "dog", "ship"]
    assert list(upper.images[0].get_extent()) == [0.5, 4.5, 2.5, -0.5]


def test_a_thousand_classes_are_not_labelled():
    names = [f"class {k}" for k in range(1000)]
    figure = draw(plots.skip_rate_by_class(record(["10", "01"]), [3, 999], names))
    assert "class 3" not in [label.get_text() for label in figure.axes[1].get_yticklabels()]


ROUTES = ["1111", "0000", "1000", "0000", "1100", "1000", "1111", "1110", "1111", "1111", "1111", "1111"]
CORRECT = [True, False, True, True, True, True, False, True, True, True, True, True]


def test_which_images_are_easy_and_which_hard():
    easy, hard = plots.pick_easy_and_hard(record(ROUTES, correct=CORRECT), 4)
    assert easy.tolist() == [3, 2, 5, 4]  # image 1 skips as much as image 3 but is wrong
    assert hard.tolist() == [0, 6, 8, 9]  # right or wrong
    easy, hard = plots.pick_easy_and_hard(record(["10", "11"], correct=[False, False]), 4)
    assert easy.tolist() == [] and hard.tolist() == [1, 0]


def test_easy_and_hard(tiny_images):
    labels = tiny_images.labels.tolist()
    predictions = [label if right else 9 for label, right in zip(labels, CORRECT, strict=True)]
    figure = draw(plots.easy_and_hard(tiny_images, record(ROUTES, predictions, CORRECT), STAGES, count=4))
    shown = [axes for axes in figure.axes if axes.images]
    for axes, index in zip(shown, [3, 2, 5, 4, 0, 6, 8, 9], strict=True):
        assert np.array_equal(axes.images[0].get_array(), tiny_images.picture(index))
        filled = [cell.get_facecolor() != to_rgba("white") for cell in axes.patches]
        assert filled == [cell == "1" for cell in ROUTES[index]]
        rows = {round(cell.get_y(), 6) for cell in axes.patches}
        assert len(rows) == 2  # one for each stage
    titles = [axes.get_title() for axes in shown]
    assert titles[:2] == ["class 3\n4 of 4 skipped", "class 2\n3 of 4 skipped"]
    assert titles[5] == "class 6 → class 9\n0 of 4 skipped"
    assert shown[5].title.get_color() != shown[0].title.get_color()


def test_easy_and_hard_with_nothing_right_or_another_split(tiny_images):
    wrong = record(ROUTES, [9] * 12, [False] * 12)
    figure = draw(plots.easy_and_hard(tiny_images, wrong, STAGES, count=10))
    assert sum(bool(axes.images) for axes in figure.axes) == 10  # the hard ones, in two rows
    with pytest.raises(ValueError, match="5 images for routes of 12"):
        plots.easy_and_hard(tiny_images.first(5), wrong, STAGES)


def test_difficulty():
    skipped = np.repeat(np.arange(20), 10)
    factors = {"scale": torch.arange(200.0), "distractors": torch.arange(200) % 2}
    figure = draw(plots.difficulty(factors, skipped, seed=5))
    scale, distractors = figure.axes
    points = scale.containers[0][0]
    centres = np.arange(200).reshape(10, 20).mean(axis=1)
    assert np.asarray(points.get_xdata(), dtype=float) == pytest.approx(centres)
    means = np.arange(0.5, 20, 2)  # twenty images of k and k + 1 each
    assert np.asarray(points.get_ydata(), dtype=float) == pytest.approx(means)
    along = scale.containers[0][2][0].get_segments()[0][:, 1]
    assert np.ptp(along) == pytest.approx(2 * mean_interval([0] * 10 + [1] * 10)[1])
    assert distractors.containers[0][0].get_xdata().tolist() == [0, 1]
    assert np.asarray(distractors.containers[0][0].get_ydata(), dtype=float) == pytest.approx([9.5, 9.5])
    low, high = (rank_correlations(factors, skipped, 5)["distractors"][end] for end in (1, 2))
    expected = f"ρ = +0.00 [{low:+.2f}, {high:+.2f}]".replace("-", "−")
    assert distractors.get_title() == expected and "−0.00" not in expected
    assert scale.get_title().startswith("ρ = +1.00 [+1.00")


def test_difficulty_of_one_route_and_of_one_value():
    varied = [0.0, 1.0, 2.0]
    figure = draw(plots.difficulty({"blur": varied}, [3, 3, 3]))
    assert [axes.get_title() for axes in figure.axes] == ["no ρ: all images skip alike"]
    assert figure.axes[0].containers[0][0].get_ydata().tolist() == [3, 3, 3]
    figure = draw(plots.difficulty({"blur": [1.0] * 3}, [1, 2, 3]))
    assert figure.axes[0].get_title() == "no ρ: all images alike"


def evaluation(*rows):
    routes = torch.from_numpy(record(rows).routes)
    zeros = torch.zeros(len(rows))
    return Evaluation(routes, zeros.long(), zeros.bool(), zeros, zeros, zeros, zeros + 0.5)


@pytest.mark.parametrize("first, last", [("SP", "HRL"), ("random", "PPO"), ("no blocks", "random 50%")])
def test_the_plots_of_a_run_show_its_policy(tmp_path, monkeypatch, first, last):
    rows = {name: evaluation("1100", "1111") for name in ("all blocks", first, last)}
    save_evaluations(tmp_path / "routes.npz", rows)
    shown = {}
    for name in ("executed_blocks", "execution_rate", "skipped_layers"):
        real = getattr(plots.run, name)
        monkeypatch.setattr(
            plots.run,
            name,
            lambda given, *rest, real=real, name=name: (
                shown.update({name: [row if isinstance(row, str) else row["name"] for row in given]}),
                real(given, *rest),
            )[1],
        )
    lines = (
        []
        if first == "no blocks"
        else [{"step": 1, "stage": "train", "val/accuracy": 0.5, "val/compute_blocks": 1.0}]
    )
    run = SimpleNamespace(folder=tmp_path, metrics=lambda: lines)
    plots.write_plots(run, {"policies": [done.summary(name) for name, done in rows.items()]}, STAGES)
    wanted = [last] if first == "no blocks" else [first, last]
    assert shown == dict.fromkeys(("executed_blocks", "execution_rate", "skipped_layers"), wanted)
    files = {path.name for path in (tmp_path / "plots").iterdir()}
    trained = {"training.png"} if lines else set()
    assert files == {"executed_blocks.png", "execution_rate.png", "skipped_layers.png"} | trained


def test_training_curves_name_the_stage_where_no_point_is():
    lines = [
        {
            "step": step,
            "stage": "sp" if step < 3 else "hrl",
            "val/accuracy": 0.5 + step / 9,
            "val/compute_blocks": 1 / step,
        }
        for step in range(1, 5)
    ]
    figure = draw(plots.training_curves(lines))
    (label,) = figure.axes[0].texts
    assert label.get_text() == "HRL from here" and label.get_position()[0] == 2
    frame, text = figure.axes[0].get_window_extent(), label.get_window_extent()
    assert text.y0 >= frame.y1 and text.y1 <= figure.bbox.y1 and text.x1 <= figure.bbox.x1


def test_plots_of_a_run_without_routes(tmp_path):
    run = SimpleNamespace(folder=tmp_path, metrics=list)
    plots.write_plots(run, {"policies": [evaluation("1100", "1111").summary("PPO")]}, STAGES)
    assert not (tmp_path / "plots" / "skipped_layers.png").exists()
