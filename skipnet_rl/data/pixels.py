"""A file of any kind of image as 8-bit RGB: scaled rightly, or refused with the file named.

Pillow's own conversion clips what is not 8-bit: a 16-bit grayscale image becomes white, one of floats black.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from skipnet_rl.errors import DataDamagedError

PLAIN = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")  # what Pillow converts rightly
SEE_THROUGH = ("LA", "La", "PA", "RGBA", "RGBa")
SCALED_TO_16_BIT = ("PNG", "PPM")  # formats that Pillow, by its version, hands out as 32-bit integers
DIM = 16  # an image this many times darker than its bits allow keeps 16 of the 256 levels
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # of TIFF


def open_image(path: str) -> Image.Image:
    """A file whose size is known and whose pixels are not read yet.

    Raises:
        DataDamagedError: it is no image, or too large a one; it names the file.
    """
    try:
        return Image.open(path)
    except Exception as error:  # beside OSError Pillow has a bomb's, and whatever damaged bytes bring about
        raise _unreadable(path, error) from error


def read_image(path: str) -> Tensor:
    """The pixels, [3, H, W] uint8; see-through ones lie on white.

    Raises:
        DataDamagedError: it is no image, or of a kind whose range of values nobody knows; it names the file.
    """
    with open_image(path) as image:
        try:
            pixels = np.array(_rgb(image, path))  # a copy: Pillow's own cannot be written to
        except DataDamagedError:
            raise
        except Exception as error:
            raise _unreadable(path, error) from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _unreadable(path: str, error: Exception) -> DataDamagedError:
    reason = (str(error).splitlines() or [""])[0] or type(error).__name__
    return DataDamagedError(f"{path} is not a readable image: {reason}; replace or remove it")


def _rgb(image: Image.Image, path: str) -> Image.Image:
    """As 8-bit RGB, by its mode."""
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and image.format in SCALED_TO_16_BIT):
        return _from_integers(image, path)
    if mode == "F":
        return _from_floats(image, path)
    if mode in SEE_THROUGH or "transparency" in image.info:
        return _on_white(image)
    if mode in PLAIN:
        return image.convert("RGB")
    raise DataDamagedError(
        f"{path} has pixels of mode {mode!r}, whose range of values nobody knows; expected 8 or 16 bits, or "
        "floats between 0 and 1: save it as one of these"
    )


def _on_white(image: Image.Image) -> Image.Image:
    """Over a white ground; where nothing can be seen at all, the colours without their transparency."""
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
            "all but black; rescale the files",
            stacklevel=2,
        )
    return _grey(image, values / most)


def _from_floats(image: Image.Image, path: str) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 1):  # nor where there is a NaN
        raise DataDamagedError(f"{path} has floats from {low:g} to {high:g}; expected 0 to 1: rescale it")
    return _grey(image, values)


def _grey(image: Image.Image, shares: NDArray[np.float64]) -> Image.Image:
    """Shares of white, [H, W] in 0 … 1, as RGB."""
    if _tag(image, PHOTOMETRIC, 1) == WHITE_IS_ZERO:
        shares = 1 - shares
    return Image.fromarray(np.round(255 * shares).astype(np.uint8)).convert("RGB")


def _tag(image: Image.Image, number: int, usual: int) -> int:
    """A TIFF's tag; what is usual where there is none."""
    value = getattr(image, "tag_v2", {}).get(number, usual)
    return value[0] if isinstance(value, tuple) else value
