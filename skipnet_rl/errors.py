"""Named errors, and helpers for messages that say what came, what was expected and what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class DataNotFoundError(FileNotFoundError):
    """A data set's files are missing."""


class DataDamagedError(ValueError):
    """A data set's files exist but cannot be read."""


class WeightsError(ValueError):
    """Weights cannot be read or do not fit the network; the message is one printable line."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class CompilationError(ValueError):
    """PyTorch cannot compile a network's blocks on this machine."""


def one_line(text: str) -> str:
    """Text from a file or another library without line breaks and terminal control sequences.

    >>> one_line("red: \\x1b[31mstop\\x1b[0m\\nnow")
    'red: stop now'
    """
    text = re.sub(r"\x1b\[[0-9;?]*[ -/]*[@-~]", "", text)
    printable = "".join(c if c.isprintable() else "\n" for c in text)
    return re.sub(r"\s*\n\s*", " ", printable).strip()


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class if it has none.

    >>> first_line(ValueError("no size\\nin detail")), first_line(AssertionError())
    ('no size', 'AssertionError')
    """
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip()


def in_short(value: object) -> str:
    """Describe a value of the wrong type: text as it is, anything else by its class.

    >>> in_short("resnet18"), in_short([1, 2])
    ("'resnet18'", 'a list')
    """
    return repr(value) if isinstance(value, str) else f"a {type(value).__name__}"


def check_count(name: str, value: object, expected: str) -> None:
    """Raise a ValueError for anything but a whole number above zero.

    >>> check_count("image_size", 64.0, "a number of pixels, such as 224")
    Traceback (most recent call last):
    ValueError: image_size is 64.0; expected a number of pixels, such as 224
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; expected {expected}")


def unknown_name(kind: str, name: object, known: Iterable[object]) -> ValueError:
    """A ValueError that lists the known names and suggests the nearest one.

    >>> raise unknown_name("gate", "rrn", ["rnn", "ff1"])
    Traceback (most recent call last):
    ValueError: unknown gate 'rrn'; did you mean 'rnn'? Known: rnn, ff1
    """
    names = [str(item) for item in known]
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return ValueError(f"unknown {kind} {name!r}; {hint}Known: {', '.join(names)}")
