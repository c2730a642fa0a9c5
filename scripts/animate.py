"""Animate a few episodes: trained gates decide for each image which blocks to run.

python -m scripts.animate                                  # docs/episode.gif
python -m scripts.animate --images 3 17 --out episode.gif  # other test images
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from agents.common.cli import main_with_named_errors
from envs.skipnet import SkipNetEnv
from skipnet_rl.files import whole_file
from skipnet_rl.normalisation import normalised, stated
from skipnet_rl.progress import load_images
from skipnet_rl.rollout import rollout
from skipnet_rl.terminal import say
from skipnet_rl.weights import open_weights

KEPT = 96  # colours of the palette that are taken from the pictures unchanged


@dataclass(frozen=True)
class Options:
    """Draw episodes as an animated GIF."""

    weights: str = "resnet110-rendered-digits-hrl"
    """network with gates: a file or the name of a shipped network"""
    images: tuple[int, ...] = (104, 119)
    """numbers of the test images"""
    data_dir: Path | None = None
    """folder of the data set's official files (else $SKIPNET_DATA, else ./data)"""
    out: Path = Path("docs/episode.gif")
    """file to write"""
    frame_ms: int = 70
    """duration of a decision in milliseconds"""
    pause_ms: int = 2_500
    """duration of the last frame of an episode in milliseconds"""
    debug: bool = False
    """traceback of an error"""


def frames(env: SkipNetEnv, index: int, route: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
    """Yield the pictures [H, W, 3] of an episode: one before each decision and one at the end."""
    env.reset(options={"index": index})
    yield env.render()
    for action in route:
        env.step(action)
        yield env.render()


def palette_of(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return 256 colours [256, 3] for pictures [..., 3]: the commonest unchanged, the others averaged."""
    colours, counts = np.unique(pictures.reshape(-1, 3), axis=0, return_counts=True)
    order = counts.argsort()[::-1]
    averaged = Image.fromarray(colours[order[KEPT:]][None]).quantize(256 - KEPT).getpalette()
    others = np.array(averaged, np.uint8).reshape(-1, 3)[: 256 - KEPT]  # older Pillow adds unused ones
    return np.concatenate([colours[order[:KEPT]], others])


def with_palette(picture: NDArray[np.uint8], palette: NDArray[np.uint8]) -> Image.Image:
    """Map each pixel of a picture [H, W, 3] to the nearest colour of the palette.

    `Image.quantize` only approximates the nearest colour, which would turn the white background grey.
    """
    colours, place = np.unique(picture.reshape(-1, 3), axis=0, return_inverse=True)
    distance = ((colours[:, None].astype(int) - palette.astype(int)) ** 2).sum(axis=2)
    nearest = distance.argmin(axis=1).astype(np.uint8)[place.ravel()]
    image = Image.fromarray(nearest.reshape(picture.shape[:2]))
    image.putpalette(palette.tobytes())
    return image


def write_gif(path: Path, episodes: Sequence[Sequence[NDArray]], frame_ms: int, pause_ms: int) -> None:
    """Write the episodes one after the other as a GIF that loops forever."""
    palette = palette_of(np.stack([episode[place] for episode in episodes for place in (0, -1)]))
    pictures, durations = [], []
    for episode in episodes:
        pictures += [with_palette(picture, palette) for picture in episode]
        durations += [frame_ms] * (len(episode) - 1) + [pause_ms]
    with whole_file(path) as beside, beside.open("wb") as file:
        pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)


@torch.no_grad()
def main(options: Options) -> None:
    """Play each image with the gates and write the animation."""
    opened = open_weights(options.weights)
    mdp, images = opened.mdp(), load_images(opened.header["dataset"], "test", options.data_dir)
    images = normalised(images, *(stated(opened.header) or ())).sized(mdp.net.image_size)
    batch = images.batch(torch.tensor(options.images, device="cpu"))
    routes = rollout(mdp, opened.policy, *batch).actions.int().tolist()
    env = SkipNetEnv(mdp, images, render_mode="rgb_array")
    episodes = [list(frames(env, index, route)) for index, route in zip(options.images, routes, strict=True)]
    write_gif(options.out, episodes, options.frame_ms, options.pause_ms)
    say(f"wrote {options.out} ({options.out.stat().st_size / 2**10:.0f} kB)")


if __name__ == "__main__":
    main_with_named_errors(Options, main)
