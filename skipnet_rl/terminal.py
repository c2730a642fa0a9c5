"""Printing that cannot end a program: whatever the terminal's encoding is, and whether anybody reads.

By the time a run prints its table it may have worked for hours. Text that an encoding lacks is spelt out, and
what a closed pipe or a full disk does not take is lost, but nothing else is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, TextIO

from tqdm import tqdm

SPELT = str.maketrans({
    "±": "+-", "α": "alpha", "γ": "gamma", "λ": "lambda", "×": "x", "…": "...", "→": "->", "≥": ">=",
    "≤": "<=", "–": "-", "█": "#",
})  # fmt: skip


class Forgiving:
    """A stream that takes any text and raises nothing.

    Args:
        stream: where to write; None, which `sys.stdout` is without a terminal on Windows, for nowhere.

    Attributes:
        lost: why something could not be written; None as long as all was.
    """

    def __init__(self, stream: TextIO | Forgiving | None) -> None:
        while isinstance(stream, Forgiving):
            stream = stream._wrapped
        self._wrapped: TextIO = _nowhere() if stream is None else stream  # under this name tqdm looks for it
        self.lost: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        """Everything else is the stream's own."""
        return getattr(self._wrapped, name)

    def __eq__(self, other: object) -> bool:
        """Equal to its stream, so that a line clears the progress bars on the same terminal."""
        return self._wrapped is getattr(other, "_wrapped", other)

    def __hash__(self) -> int:
        """The stream's."""
        return hash(self._wrapped)

    def write(self, text: str) -> int:
        """Write, or lose, a text; returns its length."""
        try:
            self._wrapped.write(text)
        except UnicodeError:
            encoding = getattr(self._wrapped, "encoding", None) or "ascii"
            spelt = text.translate(SPELT).encode(encoding, "backslashreplace").decode(encoding)
            self._attempt("write", spelt)
        except (OSError, ValueError) as error:  # the second where it is closed
            self.lost = error
        return len(text)

    def flush(self) -> None:
        """Hand on what is kept back."""
        self._attempt("flush")

    def isatty(self) -> bool:
        """Whether it is a terminal; what is closed is none."""
        return bool(self._attempt("isatty"))

    def abandon(self) -> None:
        """Let go of what could not be written, or Python would try again, and complain, when it ends."""
        with suppress(OSError, ValueError, AttributeError):
            number = self._wrapped.fileno()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)

    def _attempt(self, name: str, *args: str) -> Any:
        try:
            return getattr(self._wrapped, name)(*args)
        except (OSError, ValueError) as error:
            self.lost = error
            return None


def bar_stream() -> Forgiving:
    """Standard error for a progress bar; nowhere, if it is broken already: tqdm flushes it by itself."""
    stream = Forgiving(sys.stderr)
    stream.flush()
    return stream if stream.lost is None else Forgiving(None)


def say(text: object, file: TextIO | None = None) -> None:
    """Print a line between progress bars.

    Args:
        text: the line, or several.
        file: where to (default: standard output).
    """
    stream = Forgiving(sys.stdout if file is None else file)
    tqdm.write(str(text), file=stream)
    stream.flush()


@contextmanager
def forgiving_streams() -> Iterator[None]:
    """Let nothing in the block fail for what it prints; what was lost on the way is said at the end."""
    before = sys.stdout, sys.stderr
    out, err = Forgiving(sys.stdout), Forgiving(sys.stderr)
    sys.stdout, sys.stderr = out, err
    try:
        yield
    finally:
        out.flush()
        if out.lost is not None:
            err.write(f"warning: not all could be printed ({out.lost}); files that were written are whole\n")
        err.flush()
        sys.stdout, sys.stderr = before
        for stream in (out, err):
            if stream.lost is not None:
                stream.abandon()


@cache
def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")
