"""Progress bars appear for long work only."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tqdm import tqdm

from agents import static
from agents.common import estimate, setting
from agents.common.estimate import in_words, seconds_per_image
from skipnet_rl import progress
from skipnet_rl.data import digits, load_images
from skipnet_rl.evaluate import evaluate
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.policies import AlwaysExecute, RandomSkip
from skipnet_rl.problem import Problem


@pytest.fixture
def at_once(monkeypatch):
    """Show bars immediately and update them at every step."""
    shown = {"delay": 1e-6, "mininterval": 0, "miniters": 1}
    monkeypatch.setattr(progress, "tqdm", lambda items, **options: tqdm(items, **{**options, **shown}))


def test_progress_does_not_change_an_evaluation(tiny_net, tiny_images):
    told = []

    def play(**more):
        draws = torch.Generator().manual_seed(0)
        return evaluate(
            RoutingMDP(tiny_net),
            RandomSkip(0.5),
            tiny_images,
            mode="sample",
            generator=draws,
            batch_size=5,
            **more,
        )

    aloud, silent = play(progress=lambda *now: told.append(now)), play()
    assert told == [(5, 12), (10, 12), (12, 12)]
    assert aloud.summary("") == silent.summary("") and torch.equal(aloud.routes, silent.routes)


def test_a_bar_counts_images(at_once, capsys):
    with progress.image_progress("HRL") as show:
        show(125, 300)
        show(300, 300)
    shown = capsys.readouterr().err
    assert "HRL:  42%" in shown and "125/300" in shown and "HRL: 100%" in shown and "300/300" in shown


def test_short_work_has_no_bar(capsys):
    with progress.image_progress("HRL") as show:
        show(300, 300)
    assert capsys.readouterr().err == ""


def test_a_setting_names_the_row_or_the_split(at_once, tiny_net, tiny_images, capsys):
    args = setting.CommonArgs(eval_images=4, device="cpu")
    three = [tiny_images] * 3
    noise = Problem(20, "noise", device=torch.device("cpu"))
    mine = setting.Setting(args, noise, *three, 12, tiny_net, tiny_net, None)
    mine.evaluate(mine.mdp(), AlwaysExecute(), name="HRL")
    assert "HRL: 100%" in capsys.readouterr().err
    mine.validate(mine.mdp(), AlwaysExecute())
    shown = capsys.readouterr().err
    assert f"{tiny_images.split} images: 100%" in shown and "4/4" in shown
    mine.references(0.5, mine.mdp(), "HRL")
    shown = capsys.readouterr().err
    assert all(f"{name}: 100%" in shown for name in ("all blocks", "random", "random, HRL weights"))


def test_the_greedy_choice_counts_its_passes(at_once, tiny_net, tiny_images, capsys):
    static.greedy_order(RoutingMDP(tiny_net), tiny_images.first(2))
    shown = capsys.readouterr().err
    assert "35/35" in shown and " 1/35" in shown  # 8 + 7 + … + 2: the last block is no choice


def test_drawing_digits_shows_a_bar_once(at_once, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("SKIPNET_CACHE", str(tmp_path))
    monkeypatch.setattr(digits, "SIZES", {"train": 20, "test": 10})
    monkeypatch.setattr(digits, "CHUNK", 4)
    digits._labels.cache_clear()
    try:
        drawn = progress.load_images("rendered-digits", "test")
        assert "drawing rendered-digits: 100%" in capsys.readouterr().err
        again = progress.load_images("rendered-digits", "test")
        assert capsys.readouterr().err == ""
        assert torch.equal(drawn.images, again.images)
        told = []
        load_images("rendered-digits", "val", progress=lambda *now: told.append(now))
        assert told == [(4, 20), (8, 20), (12, 20), (16, 20), (20, 20)]
        some = digits.render_digits("test", np.arange(3))[0]
        assert torch.equal(torch.from_numpy(some), drawn.images[:3])
    finally:
        digits._labels.cache_clear()


@pytest.mark.parametrize("training, evaluation, said", [
    (0.4, 2.8, "4 seconds: 1 second of training, 3 seconds of evaluation"),
    (300, 40, "6 minutes: 5 minutes of training, 1 minute of evaluation"),
    (3_600, 3_700, "2.0 hours: 1.0 hours of training, 1.0 hours of evaluation"),
])  # fmt: skip
def test_an_estimate_is_the_sum_of_its_parts(training, evaluation, said):
    assert in_words(training, evaluation) == said


def test_the_first_call_is_not_timed(monkeypatch, tiny_images):
    """A first call takes 100 s, a second one 8 s, for all images."""
    clock, durations = [0.0], [100.0, 8.0]

    def call(images, labels):
        assert len(images) == len(labels) == len(tiny_images)
        clock[0] += durations.pop(0)
        return torch.zeros((), device="cpu")

    monkeypatch.setattr(estimate.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(estimate, "SAMPLE", 1_000)
    assert seconds_per_image(call, tiny_images, 1_000) == 8 / len(tiny_images)


@pytest.mark.parametrize("batch_size, count", [(3, 3), (1_000, 5)])
def test_no_more_images_are_timed_than_a_step_has(monkeypatch, tiny_images, batch_size, count):
    """More of them may not fit into a GPU's memory."""
    monkeypatch.setattr(estimate, "SAMPLE", 5)
    seen = []

    def call(images, labels):
        seen.append(len(images))
        return torch.zeros((), device="cpu")

    seconds_per_image(call, tiny_images, batch_size)
    assert seen == [count, count]


@pytest.mark.parametrize("processes", [1, 2])
def test_the_estimate_counts_a_processs_share_of_each_batch(monkeypatch, capsys, processes):
    """200 steps of 60 images at half a second each, or of 30 in each of two processes."""
    monkeypatch.setattr(estimate, "processes", lambda: processes)
    monkeypatch.setattr(estimate, "seconds_per_image", lambda *words: 0.5)
    monkeypatch.setattr(estimate, "seconds_of_evaluation", lambda setting: 0.0)
    args = SimpleNamespace(batch_size=60, survival=1.0, eval_images=10, plan=lambda: ["hrl"] * 200)
    args.eval_every, args.images_per_validation = 100, 10
    setting = SimpleNamespace(args=args, test=range(100), val=range(100), train=None, net=torch.nn.Identity())
    estimate.print_estimate_of_pretraining(setting, 200, 100)
    estimate.print_estimate(setting, None)
    plain, gated = capsys.readouterr().out.splitlines()
    assert f"{100 // processes} minutes of training" in plain
    assert f"{80 // processes} minutes of training" in gated  # a policy's routes take part of the time
