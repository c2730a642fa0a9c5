"""Read any image file as 8-bit RGB, scaled correctly, or raise an error that names the file.

Pillow's own conversion clips other depths: a 16-bit grayscale image becomes white, one of floats black.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from skipnet_rl.errors import DataDamagedError, first_line

PLAIN = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")  # modes that Pillow converts correctly
TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")
SCALED_TO_16_BIT = ("PNG", "PPM")  # formats that some versions of Pillow read as 32-bit integers
DIM = 16  # an image this many times darker than its bits allow keeps 16 of 256 levels
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF


def open_image(path: str) -> Image.Image:
    """Open an image and read its size, but not its pixels.

    Raises:
        DataDamagedError: not an image, or too large.
    """
    try:
        return Image.open(path)
    except Exception as error:  # OSError, Pillow's own for huge images, or anything from damaged bytes
        raise _unreadable(path, error) from error


def read_image(path: str) -> Tensor:
    """Read the pixels, [3, H, W] uint8; transparent ones are placed on white.

    Raises:
        DataDamagedError: not an image, or one whose range of values is unknown.
    """
    with open_image(path) as image:
        try:
            pixels = np.array(_rgb(image, path))  # a copy: Pillow's array is read-only
        except DataDamagedError:
            raise
        except Exception as error:
            raise _unreadable(path, error) from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _unreadable(path: str, error: Exception) -> DataDamagedError:
    reason = first_line(error)
    return DataDamagedError(f"{path} is not a readable image: {reason}; replace or remove it")


def _rgb(image: Image.Image, path: str) -> Image.Image:
    """Convert to 8-bit RGB, depending on the mode."""
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and image.format in SCALED_TO_16_BIT):
        return _from_integers(image, path)
    if mode == "F":
        return _from_floats(image, path)
    if mode in TRANSPARENT or "transparency" in image.info:
        return _on_white(image)
    if mode in PLAIN:
        return image.convert("RGB")
    raise DataDamagedError(
        f"{path} has pixels of mode {mode!r}, whose range of values is unknown; expected 8 or 16 bits, or "
        "floats between 0 and 1: save it as one of these"
    )


def _on_white(image: Image.Image) -> Image.Image:
    """Composite over white; a fully transparent image keeps its colours."""
    layered = image.convert({"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)).convert("RGBA")
    if layered.getchannel("A").getextrema() == (0, 0):
        return layered.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), layered).convert("RGB")


def _from_integers(image: Image.Image, path: str) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    most = 2.0 ** int(_tag(image, BITS_PER_SAMPLE, 16)) - 1
    if 0 < values.max() <= most / DIM:
        warnings.warn(
            f"images in {Path(path).parent} use values up to {values.max():.0f} of {most:.0f}: "
            "nearly black; rescale the files",
            stacklevel=2,
        )
    return _grey(image, values / most)


def _from_floats(image: Image.Image, path: str) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 1):  # False also for NaN
        raise DataDamagedError(f"{path} has floats from {low:g} to {high:g}; expected 0 to 1: rescale it")
    return _grey(image, values)


def _grey(image: Image.Image, shares: NDArray[np.float64]) -> Image.Image:
    """Greyscale values, [H, W] in 0 … 1, as RGB."""
    if _tag(image, PHOTOMETRIC, 1) == WHITE_IS_ZERO:
        shares = 1 - shares
    return Image.fromarray(np.round(255 * shares).astype(np.uint8)).convert("RGB")


def _tag(image: Image.Image, number: int, usual: int) -> int:
    """Value of a TIFF tag, or the default."""
    value = getattr(image, "tag_v2", {}).get(number, usual)
    return value[0] if isinstance(value, tuple) else value
