"""From a command line to a dataclass of flags, parsed by tyro, which also prints the help."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Sequence
from dataclasses import MISSING, field, fields, make_dataclass, replace
from functools import cache
from itertools import pairwise, takewhile
from textwrap import dedent
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import tyro

from agents.common.flag_rules import choices_of
from agents.common.flags import DATA, METHOD, RUN, SCHEDULE, Heading
from skipnet_rl.errors import unknown_name

ArgsT = TypeVar("ArgsT")
UNSET = ("None", "False", "True", "", "''", "()")  # defaults that the help does not show


def headings(args_type: type) -> dict[str, Heading]:
    """Return the heading of each flag of a dataclass; its other fields are left out."""
    hints = get_type_hints(args_type, include_extras=True)
    found = {each.name: get_args(hints[each.name])[-1:] for each in fields(args_type)}
    return {name: marks[0] for name, marks in found.items() if marks and isinstance(marks[0], Heading)}


def parse(
    args_type: type[ArgsT],
    words: Sequence[str] | None = None,
    default: ArgsT | None = None,
    command: str | None = None,
) -> ArgsT:
    """Read a command line into a dataclass of flags.

    Args:
        args_type: a dataclass whose flags are marked as in `CommonArgs`, or one without any marks, whose
            documented fields are all flags, under one heading.
        words: the command line (default: that of this process).
        default: values of the flags that are not given, or are "auto" as usual, and of all fields that are
            not flags.
        command: the module whose flags they are (default: that of this process).

    Raises:
        ValueError: a value that is not one of a flag's choices.
    """
    words = sys.argv[1:] if words is None else list(words)
    _check_choices(args_type, words)
    if not headings(args_type):
        flat = _flat(args_type)  # type: ignore[arg-type]
        given = _read(flat, args_type, words, default and flat(**vars(default)), command)
        return args_type(**vars(given))
    start = args_type() if default is None else default
    form, parts = _form(args_type)  # type: ignore[arg-type]
    values = {
        name: part(**{flag.name: getattr(start, flag.name) for flag in fields(part)})
        for name, part in parts.items()
    }
    found = _read(form, args_type, words, form(**values), command)
    given = {name: value for part in vars(found).values() for name, value in vars(part).items()}
    if default is not None:
        automatic = (each.name for each in fields(args_type) if each.default == "auto")  # type: ignore[arg-type]
        given |= {name: getattr(default, name) for name in automatic if given.get(name) == "auto"}
    return replace(start, **given)  # type: ignore[type-var]


def _read(form: type, args_type: type, words: Sequence[str], default: Any, command: str | None) -> Any:
    """Parse the words into a form, whose help begins with the docstring of `args_type`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    command = command or (spec and spec.name)
    return tyro.cli(
        form,
        prog=command and f"python -m {command}",  # as a user types it
        args=words,
        default=tyro.MISSING_NONPROP if default is None else default,
        description=inspect.getdoc(args_type),
        config=(tyro.conf.DisallowNone, tyro.conf.FlagCreatePairsOff),
    )


@cache
def _form(args_type: Any) -> tuple[type, dict[str, type]]:
    """A dataclass with one nested dataclass per heading, of which tyro makes the parser and its help."""
    marks, flags = headings(args_type), _flags(args_type)
    parts = {}
    for heading in (DATA, METHOD, SCHEDULE, RUN):
        chosen = [flags[name] for name in marks if marks[name] is heading]
        if chosen:
            parts[heading.name] = make_dataclass(heading.name, chosen, frozen=True)
            parts[heading.name].__doc__ = heading.line
    return make_dataclass(args_type.__name__, parts.items(), frozen=True), parts


@cache
def _flat(args_type: Any) -> Any:
    """A dataclass of the same fields, with their help texts."""
    return make_dataclass(args_type.__name__, _flags(args_type).values(), frozen=True)


def _flags(args_type: Any) -> dict[str, tuple[str, Any, Any]]:
    """Name, annotated type and default of each field that is a flag."""
    hints, texts = get_type_hints(args_type, include_extras=True), _helps(args_type)
    return {
        flag.name: (
            flag.name,
            Annotated[hints[flag.name], _flag(texts[flag.name])],
            field() if flag.default is MISSING else field(default=flag.default),
        )
        for flag in fields(args_type)
        if flag.name in texts
    }


def _check_choices(args_type: type, words: Sequence[str]) -> None:
    """Name the nearest choice in one line, which tyro's own message does not."""
    kinds = get_type_hints(args_type)
    own = takewhile(lambda word: word != "--", words)  # the rest is for another command
    for word, following in pairwise([*own, "--"]):
        flag, _, joined = word.partition("=")
        value, name = joined or following, flag.removeprefix("--")
        choices = choices_of(kinds.get(name.replace("-", "_"))) if flag.startswith("--") else ()
        if choices and not value.startswith("--") and value not in choices:
            raise unknown_name(name.replace("-", " "), value, choices)


def _flag(text: str) -> object:
    """A flag with a help text; a default at its end is shown only while the flag has no value."""
    parts = re.fullmatch(r"(.*) (\(default: .*\))", text)
    text, described = parts.groups() if parts else (text, "")
    return tyro.conf.arg(
        help=text,
        help_behavior_hint=lambda value: described if value in UNSET else f"(default: {value})",
        prefix_name=False,
    )


def _helps(args_type: type) -> dict[str, str]:
    """The docstring below each field, of the class and of those that it inherits from."""
    found: dict[str, str] = {}
    for kind in reversed(args_type.__mro__[:-1]):
        (tree,) = ast.parse(dedent(inspect.getsource(kind))).body
        for line, below in pairwise(tree.body if isinstance(tree, ast.ClassDef) else []):
            if isinstance(line, ast.AnnAssign) and isinstance(below, ast.Expr):
                text = inspect.cleandoc(ast.literal_eval(below.value))
                found[ast.unparse(line.target)] = text.replace("\n", " ")
    return found
