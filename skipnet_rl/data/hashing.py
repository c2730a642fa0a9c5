"""Random numbers that depend only on what they are for, not on the order in which they are drawn."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Draws:
    """Uniform random numbers for M images: pure functions of (stream, index, purpose).

    Args:
        stream: number of the split, from 1.
        indices: numbers of the images in the split, [M].
    """

    def __init__(self, stream: int, indices: NDArray[np.integer]) -> None:
        with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
            self.keys = _hash(indices.astype(np.uint64) + np.uint64(stream) * np.uint64(0xD1B54A32D192ED03))

    def bits(self, purpose: str) -> NDArray[np.uint64]:
        """64 random bits for each image, [M]."""
        name = int.from_bytes(purpose.encode()[:8].ljust(8, b"\0"), "little")
        return _hash(self.keys ^ _hash(np.array([name], np.uint64)))

    def uniform(self, purpose: str, low: float = 0.0, high: float = 1.0) -> NDArray[np.float32]:
        """One number in [low, high) for each image, [M]."""
        unit = (self.bits(purpose) >> np.uint64(40)).astype(np.float32) / np.float32(2**24)
        return np.float32(low) + unit * np.float32(high - low)

    def pixels(self, purpose: str, size: int) -> NDArray[np.float32]:
        """[M, 3, size, size] in [0, 1): 21 bits of one hash for each channel of a pixel."""
        places = np.arange(size * size, dtype=np.uint64) * np.uint64(0x9FB21C651E98DF25)
        bits = _hash(self.bits(purpose)[:, None] ^ places)
        shifts = np.array([0, 21, 42], np.uint64)[:, None]
        parts = (bits[:, None, :] >> shifts) & np.uint64(2**21 - 1)
        return (parts.astype(np.float32) / np.float32(2**21)).reshape(-1, 3, size, size)


def _hash(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
