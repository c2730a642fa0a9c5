"""Printing that never fails, whatever the encoding of the terminal and whether or not the pipe is open.

A run may have worked for hours before it prints its table. Characters that the encoding lacks are spelt out;
text that a closed pipe or a full disk rejects is dropped.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, TextIO

from tqdm import tqdm

LETTERS = {"α": "alpha", "γ": "gamma", "λ": "lambda"}
SIGNS = {"±": "+-", "×": "x", "…": "...", "→": "->", "≥": ">=", "≤": "<=", "–": "-", "█": "#"}
SPELT = str.maketrans(LETTERS | SIGNS)


class Forgiving:
    """A stream that accepts any text and never raises.

    Args:
        stream: where to write; None (as `sys.stdout` on Windows without a terminal) discards everything.

    Attributes:
        lost: error of the last write that failed, or None.
    """

    def __init__(self, stream: TextIO | Forgiving | None) -> None:
        while isinstance(stream, Forgiving):
            stream = stream._wrapped
        self._wrapped: TextIO = _nowhere() if stream is None else stream  # tqdm looks for this name
        self.lost: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        """Delegate everything else to the stream."""
        return getattr(self._wrapped, name)

    def __eq__(self, other: object) -> bool:
        """Equal to its stream, so that tqdm clears the bars of the same terminal before a line."""
        return self._wrapped is getattr(other, "_wrapped", other)

    def __hash__(self) -> int:
        """Hash of the stream."""
        return hash(self._wrapped)

    def write(self, text: str) -> int:
        """Write or drop a text; return its length."""
        try:
            self._wrapped.write(text)
        except UnicodeError:
            encoding = getattr(self._wrapped, "encoding", None) or "ascii"
            spelt = text.translate(SPELT).encode(encoding, "backslashreplace").decode(encoding)
            self._attempt("write", spelt)
        except (OSError, ValueError) as error:  # ValueError: it is closed
            self.lost = error
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        self._attempt("flush")

    def isatty(self) -> bool:
        """Whether it is a terminal; False if it is closed."""
        return bool(self._attempt("isatty"))

    def abandon(self) -> None:
        """Redirect to nowhere, so that Python does not retry, and complain, at exit."""
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
    """Standard error for a progress bar, or nowhere if it is broken: tqdm flushes the stream itself."""
    stream = Forgiving(sys.stderr)
    stream.flush()
    return stream if stream.lost is None else Forgiving(None)


def say(text: object, file: TextIO | None = None) -> None:
    """Print a line between progress bars.

    Args:
        text: one line or several.
        file: the stream (default: standard output).
    """
    stream = Forgiving(sys.stdout if file is None else file)
    tqdm.write(str(text), file=stream)
    stream.flush()


@contextmanager
def forgiving_streams() -> Iterator[None]:
    """Let no print in the block fail; warn at the end if output was lost."""
    before = sys.stdout, sys.stderr
    out, err = Forgiving(sys.stdout), Forgiving(sys.stderr)
    sys.stdout, sys.stderr = out, err
    try:
        yield
    finally:
        out.flush()
        if out.lost is not None:
            err.write(f"warning: some output could not be printed ({out.lost}); written files are complete\n")
        err.flush()
        sys.stdout, sys.stderr = before
        for stream in (out, err):
            if stream.lost is not None:
                stream.abandon()


@cache
def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")
