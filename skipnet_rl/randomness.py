"""Random numbers as pure functions of (seed, step, stream), so that a resumed run needs no stored state."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

import torch
from torch import Tensor


class Stream(IntEnum):
    """Every purpose that random numbers are drawn for; two purposes never share a stream.

    The values seed the generators: changing one changes the results of every run.
    """

    AUGMENTATION = 0  # shifts and flips of training images
    ORDER = 1  # the order of training images in an epoch
    ROUTES = 2  # routes sampled in training, dropped blocks included
    EVALUATION = 3  # routes sampled in an evaluation
    NORM_ORDER = 4  # which images the batch norms' statistics are estimated on
    NORM_AUGMENTATION = 5  # shifts and flips of these images
    ORACLE = 6  # the oracle's search
    EXCHANGE = 7  # routes dealt out to other images, a control
    TOLERANCE = 8  # skips of the look at a network before training
    HELD_OUT_ORDER = 9  # the order of the images that a chain's gate learns on
    HELD_OUT_AUGMENTATION = 10  # shifts and flips of these images
    HELD_OUT_ROUTES = 11  # routes sampled on these images
    DROPOUT = 12  # masks of a network's own dropout


class SharedGenerator(torch.Generator):
    """A generator of one of several processes that share each batch, see `for_images`."""

    part, parts = 0, 1


def step_generator(
    seed: int,
    step: int,
    device: torch.device | str,
    stream: Stream = Stream.AUGMENTATION,
    share: tuple[int, int] = (0, 1),
) -> torch.Generator:
    """A generator for one step of a stream: a pure function of (seed, step, stream).

    Args:
        seed, step, stream: what the numbers depend on.
        device: device of the generator.
        share: number of the process and number of processes that share the batch.
    """
    mixed = _mixed(seed, step, stream)
    if share[1] == 1:
        return torch.Generator(device).manual_seed(mixed)
    generator = SharedGenerator(device)
    generator.part, generator.parts = share
    return generator.manual_seed(mixed)


def seed_dropout(seed: int, step: int, part: int = 0) -> None:
    """Seed PyTorch's global generators for a training step: dropout layers take no other.

    Args:
        seed, step: what the masks depend on.
        part: number of the process; each draws masks of its own for its share of the batch.
    """
    torch.manual_seed((_mixed(seed, step, Stream.DROPOUT) + part) % 2**63)


def _mixed(seed: int, step: int, stream: Stream) -> int:
    """One seed of the three: odd 64-bit constants spread neighbouring triples over a generator's seeds."""
    return (seed * 0x9E3779B97F4A7C15 + step * 0xC2B2AE3D27D4EB4F + stream * 0x165667B19E3779F9) % 2**63


def on_cpu(generator: torch.Generator) -> torch.Generator:
    """A generator on the CPU to draw from in place of another device's, without waiting for that device.

    A generator on the CPU is returned as it is. For another one, the result has its seed, so that a step
    draws the same numbers on every device; the given generator gets a new seed, so that it draws other
    numbers afterwards.
    """
    if generator.device.type == "cpu":
        return generator
    seed = generator.initial_seed()
    numbers = torch.Generator("cpu").manual_seed(seed)
    generator.manual_seed(int(torch.randint(2**62, (), generator=numbers, device="cpu")))
    return numbers.manual_seed(seed)


def for_images(
    draw: Callable[[int], Tensor], count: int, generator: torch.Generator | None, dim: int = 0
) -> Tensor:
    """Random numbers for `count` images; with a `SharedGenerator`, its share of the whole batch's.

    Args:
        draw: function that draws for a number of images, with the generator.
        count: number of images in this process.
        generator: the generator that `draw` uses.
        dim: dimension of the images.
    """
    if not isinstance(generator, SharedGenerator):
        return draw(count)
    return draw(count * generator.parts).narrow(dim, count * generator.part, count)
