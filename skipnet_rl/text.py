r"""Escape names that users give (classes, files, runs) for matplotlib and Markdown.

>>> for_matplotlib("cost in $ and $"), for_markdown("a|b*")
('cost in \\$ and \\$', 'a\\|b\\*')
"""

from __future__ import annotations

import re

# an underscore inside a word is not markup
MARKDOWN = re.compile(r"([\\`*|<>\[\]$~&]|(?<![^\W_])_|_(?![^\W_]))")


def legible(name: object) -> str:
    """One line without control characters; bytes that are not UTF-8 become question marks."""
    text = str(name).encode("utf-8", "replace").decode()
    return "".join(letter if letter.isprintable() else " " for letter in text)


def for_matplotlib(name: object) -> str:
    """Escape dollar signs (mathematics) and a leading underscore (hidden from legends)."""
    text = legible(name).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def for_markdown(name: object) -> str:
    """Escape Markdown, HTML and links, also inside table cells."""
    return MARKDOWN.sub(r"\\\1", legible(name))
