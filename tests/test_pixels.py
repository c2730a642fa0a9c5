"""Images of every mode are scaled correctly to 8-bit RGB, or refused by name."""

import io
import struct
import sys
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from agents.common.cli import main_with_named_errors
from skipnet_rl.data.pixels import open_image, read_image
from skipnet_rl.errors import DataDamagedError

SHARES = np.tile(np.linspace(0, 1, 48), (8, 1))  # a ramp from black to white
GREY = Image.fromarray(np.round(255 * SHARES).astype(np.uint8))
NEGATIVE = Image.eval(GREY, lambda value: 255 - value)
INTEGERS = np.round(65535 * SHARES).astype(np.uint16)


def tiff(
    values: np.ndarray, bits: int, photometric: int = 1, sample_format: int = 1, order: str = "<"
) -> bytes:
    """One uncompressed strip of grey values, in a byte order and a depth that Pillow does not write."""
    height, width = values.shape
    if bits == 12:
        pairs = values.reshape(-1, 2).astype(np.uint32)
        strip = b"".join(((int(a) << 12) | int(b)).to_bytes(3, "big") for a, b in pairs)
    else:
        strip = values.astype(values.dtype.newbyteorder(order)).tobytes()
    tags = {
        256: width,
        257: height,
        258: bits,
        259: 1,
        262: photometric,
        273: 8,
        277: 1,
        278: height,
        279: len(strip),
        339: sample_format,
    }
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    mark = b"II*\0" if order == "<" else b"MM\0*"
    head = mark + struct.pack(f"{order}I", 8 + len(strip))
    return head + strip + struct.pack(f"{order}H", len(tags)) + entries + b"\0\0\0\0"


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


RAMPS = {
    "16 bit, PNG": saved(Image.fromarray(INTEGERS), "PNG"),
    "16 bit, TIFF": saved(Image.fromarray(INTEGERS), "TIFF"),
    "16 bit, PGM": b"P5 %d %d 65535\n" % INTEGERS.shape[::-1] + INTEGERS.astype(">u2").tobytes(),
    "16 bit, big-endian TIFF": tiff(INTEGERS, 16, order=">"),
    "16 bit, TIFF whose white is 0": tiff(65535 - INTEGERS, 16, photometric=0),
    "12 bit, TIFF": tiff(np.round(4095 * SHARES).astype(np.uint16), 12),
    "floats, TIFF": saved(Image.fromarray(SHARES.astype(np.float32)), "TIFF"),
    "8 bit, PNG": saved(GREY, "PNG"),
    "grey and alpha, PNG": saved(GREY.convert("LA"), "PNG"),
    "RGB and alpha, WebP": saved(GREY.convert("RGBA"), "WEBP", lossless=True),
    "palette, PNG": saved(GREY.convert("P"), "PNG"),
    "palette and alpha, TIFF": saved(GREY.convert("PA"), "TIFF"),
    "CMYK, JPEG": saved(GREY.convert("CMYK"), "JPEG", quality=100),
    "CMYK, TIFF": saved(GREY.convert("CMYK"), "TIFF"),
    "Lab, TIFF": saved(GREY.convert("RGB").convert("LAB"), "TIFF"),
    "black behind alpha, PNG": saved(Image.merge("LA", (Image.new("L", GREY.size), NEGATIVE)), "PNG"),
}
if int(PIL.__version__.split(".")[0]) >= 13:  # older versions cannot read this file of their own
    RAMPS["YCbCr, TIFF"] = saved(GREY.convert("YCbCr"), "TIFF")
REFUSED = {
    "32-bit integers": saved(Image.fromarray(INTEGERS.astype(np.int32)), "TIFF"),
    "signed integers": tiff(INTEGERS.view(np.int16), 16, sample_format=2),
    "floats up to 255": saved(Image.fromarray((255 * SHARES).astype(np.float32)), "TIFF"),
    "floats from -1": saved(Image.fromarray((2 * SHARES - 1).astype(np.float32)), "TIFF"),
    "a NaN": saved(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"),
}


@pytest.mark.parametrize("kind", RAMPS)
def test_a_ramp_stays_a_ramp(tmp_path, kind, record_property):
    path = tmp_path / "image"
    path.write_bytes(RAMPS[kind])
    pixels = read_image(str(path)).numpy()
    assert pixels.shape == (3, 8, 48) and pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - np.asarray(GREY, int)).max() <= 2
    record_property("accepted", 1)


@pytest.mark.parametrize("kind", REFUSED)
def test_unknown_ranges_are_refused(tmp_path, kind, record_property):
    path = tmp_path / "image"
    path.write_bytes(REFUSED[kind])
    with pytest.raises(
        DataDamagedError, match=f"{path} has (pixels of mode 'I'|floats from .* expected 0 to 1)"
    ):
        read_image(str(path))
    record_property("refused", 1)


@pytest.mark.parametrize(
    ("image", "options", "expected"),
    [
        (Image.new("1", (4, 4), 1), {}, 255),
        (Image.new("P", (4, 4), 3), {"transparency": 3}, 0),  # all of it: the colour is what there is
        (Image.new("RGBA", (4, 4), (0, 0, 0, 51)), {}, 204),  # a fifth of black over white
        (Image.new("LA", (4, 4), (100, 255)), {}, 100),
        (Image.new("L", (4, 4), 7), {"transparency": 8}, 7),
    ],
)
def test_transparency_is_composited_on_white(tmp_path, image, options, expected):
    path = tmp_path / "x.png"
    if image.mode == "P":
        image.putpalette([0] * 768)
    image.save(path, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(read_image(str(path)).unique().tolist()) == {expected}


def test_16_bits_are_rounded_to_8(tmp_path):
    # 257 levels become one: 1000 / 257 = 3.9, 32767 / 257 = 127.498, 65000 / 257 = 252.9
    values = np.array([[0, 1000, 32767, 65000, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert read_image(str(tmp_path / "deep.png"))[:, 0].tolist() == [[0, 4, 127, 253, 255]] * 3


def test_dark_16_bit_images_are_warned_of(tmp_path):
    for most, dim in ((4095, True), (255, True), (9000, False)):
        Image.fromarray(np.full((4, 4), most, np.uint16)).save(tmp_path / "x.png")
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", UserWarning)
            read_image(str(tmp_path / "x.png"))
        assert [str(w.message).startswith(f"images in {tmp_path} use values up to {most}") for w in said] == [
            True
        ] * dim


@dataclass
class Args:
    """One image."""

    path: Path
    """file of the image"""


@pytest.mark.parametrize(
    "content", [b"", b"no image", RAMPS["8 bit, PNG"][:60], RAMPS["CMYK, JPEG"][:99], None]
)
def test_unreadable_images_are_one_line_errors(tmp_path, monkeypatch, capsys, content):
    """Content None stands for a file that is too large."""
    path = tmp_path / "x.png"
    path.write_bytes(RAMPS["8 bit, PNG"] if content is None else content)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10 if content is None else 10_000)
    monkeypatch.setattr(sys, "argv", ["read", "--path", str(path)])
    with pytest.raises(SystemExit) as stop:
        main_with_named_errors(Args, lambda args: read_image(str(args.path)))
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert said.startswith(f"error: {path} is not a readable image: ") and said.count("\n") == 1
    if content is None:
        with pytest.raises(DataDamagedError, match="could be decompression bomb"):
            open_image(str(path))


@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_images(tmp_path_factory, data):
    """Cut, changed and foreign bytes of every format: pixels or a named error, never another exception."""
    whole = data.draw(st.sampled_from([*RAMPS.values(), *REFUSED.values()]))
    at = data.draw(st.integers(0, len(whole) - 1))
    some = data.draw(st.binary(min_size=1, max_size=6))
    content = data.draw(st.sampled_from([whole[:at], whole[:at] + some + whole[at + len(some) :]]))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
        try:
            assert read_image(str(path)).shape[0] == 3
            TALLY["accepted"] += 1
        except DataDamagedError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
            TALLY["refused"] += 1


TALLY: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def tally(record_property):
    """Report counts to the summary, see conftest.py."""
    TALLY.clear()
    yield
    for kind, count in TALLY.items():
        record_property(kind, count)
