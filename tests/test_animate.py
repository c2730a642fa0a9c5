"""The animated picture: one frame per decision, in colours near those of the pictures."""

import numpy as np
from PIL import Image

from envs.skipnet import SkipNetEnv
from scripts import animate
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.resnet import ResNet


def test_a_picture_for_each_decision_and_for_the_start(tiny_images, tmp_path):
    env = SkipNetEnv(RoutingMDP(ResNet(8).eval()), tiny_images, render_mode="rgb_array")
    episodes = [list(animate.frames(env, index, [0, 1])) for index in (0, 1)]
    assert [len(episode) for episode in episodes] == [3, 3]
    animate.write_gif(tmp_path / "a.gif", episodes, 70, 2_500)
    with Image.open(tmp_path / "a.gif") as gif:
        durations = []
        for number in range(gif.n_frames):
            gif.seek(number)
            durations.append(gif.info["duration"])
    assert durations == ([70] * 2 + [2_500]) * 2


def test_the_commonest_colours_stay_as_they_are():
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    picture = np.concatenate([noise, np.full((40, 40, 3), 255, np.uint8)])
    shown = np.asarray(animate.with_palette(picture, animate.palette_of(picture)).convert("RGB"))
    assert (shown[40:] == 255).all()
    assert np.abs(shown[:40].astype(int) - noise).mean() < 20
