"""Command lines as their modules read them."""

import importlib
import shlex

import pytest

from agents.common import preset_choice, situation
from agents.common.parsing import parse


def parsed(line):
    """`python -m NAME …`, text or words, as NAME reads it; a network that is not here has no header."""
    python, dash_m, name, *words = shlex.split(line) if isinstance(line, str) else line
    assert (python, dash_m) == ("python", "-m")
    module = importlib.import_module(name)
    options = getattr(module, "Options", None) or module.Args
    with pytest.MonkeyPatch.context() as patch:
        for chooser in (preset_choice, situation):
            patch.setattr(
                chooser, "header_of", lambda weights: {"alpha": 1.0} if "cifar10" in weights else {}
            )
            patch.setattr(chooser, "resolve_dataset", lambda name, *_: (name.replace("auto", "cifar10"), ""))
        own = name.startswith("agents.") and hasattr(module, "arguments")  # they depend on other flags
        default = module.arguments(words) if own else None
        return parse(options, words, default)
