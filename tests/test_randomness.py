"""Random numbers are pure functions of (seed, step, stream) and shared by no two purposes."""

import torch
from toys import Elsewhere

from skipnet_rl.randomness import Stream, on_cpu, seed_dropout, step_generator


def test_random_streams_are_apart():
    """No two of (seed, step, stream) give the same numbers."""
    draws = {
        tuple(torch.rand(2, generator=step_generator(seed, step, "cpu", stream)).tolist())
        for seed in range(4)
        for step in range(50)
        for stream in Stream
    }
    assert len(draws) == 4 * 50 * len(Stream)


def test_dropout_depends_on_seed_step_and_process():
    def mask(*words):
        seed_dropout(*words)
        return tuple(torch.nn.functional.dropout(torch.ones(64)).tolist())

    with torch.random.fork_rng(devices=[]):
        masks = [mask(seed, step, part) for seed in (0, 1) for step in (0, 1) for part in (0, 1)]
        assert len(set(masks)) == 8 and mask(1, 0, 1) == masks[5]


def test_numbers_for_another_device_are_drawn_on_the_cpu():
    own = step_generator(0, 1, "cpu")
    assert on_cpu(own) is own
    expected = torch.rand(4, generator=step_generator(0, 1, "cpu"))
    other = Elsewhere("cpu").manual_seed(own.initial_seed())
    first, second = (torch.rand(4, generator=on_cpu(other)) for _ in range(2))
    assert torch.equal(first, expected) and not torch.equal(second, first)
    again = Elsewhere("cpu").manual_seed(own.initial_seed())
    assert torch.equal(torch.rand(4, generator=on_cpu(again)), first)
    assert torch.equal(torch.rand(4, generator=on_cpu(again)), second)


def test_streams_keep_their_values():
    """Results of stored runs depend on them."""
    assert {stream.name: stream.value for stream in Stream} == {
        "AUGMENTATION": 0,
        "ORDER": 1,
        "ROUTES": 2,
        "EVALUATION": 3,
        "NORM_ORDER": 4,
        "NORM_AUGMENTATION": 5,
        "ORACLE": 6,
        "EXCHANGE": 7,
        "TOLERANCE": 8,
        "HELD_OUT_ORDER": 9,
        "HELD_OUT_AUGMENTATION": 10,
        "HELD_OUT_ROUTES": 11,
        "DROPOUT": 12,
    }
    assert step_generator(1, 2, "cpu", Stream.ROUTES).initial_seed() == 5785337264483813029
