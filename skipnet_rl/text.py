r"""Names that users give (classes, files, runs) as text for what would read some characters as markup.

>>> for_matplotlib("cost in $ and $"), for_markdown("a|b*")
('cost in \\$ and \\$', 'a\\|b\\*')
"""

from __future__ import annotations

import re

MARKDOWN = re.compile(r"([\\`*|<>\[\]$~&]|(?<![^\W_])_|_(?![^\W_]))")  # an underscore inside a word is none


def legible(name: object) -> str:
    """One line without control characters; bytes of a file's name that are no UTF-8 as question marks."""
    text = str(name).encode("utf-8", "replace").decode()
    return "".join(letter if letter.isprintable() else " " for letter in text)


def for_matplotlib(name: object) -> str:
    """Without mathematics between dollar signs; legends leave out what begins with an underscore."""
    text = legible(name).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def for_markdown(name: object) -> str:
    """Every character as itself, in a cell of a table, too; HTML and links are none."""
    return MARKDOWN.sub(r"\\\1", legible(name))
