"""Imports go only downward: agents → envs → skipnet_rl."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "skipnet_rl": {"gymnasium", "stable_baselines3", "envs", "agents"},
    "envs": {"agents"},
}


def imported_packages(source: str) -> set[str]:
    """Top-level names of every import in a file, those inside functions included."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").partition(".")[0])
    return found


def test_the_walk_sees_every_kind_of_import():
    source = "import a.b as c\nfrom d.e import f\nfrom . import g\ndef h():\n    import i, j\n"
    assert imported_packages(source) == {"a", "d", "i", "j"}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_upward_import(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"no source files in {ROOT / package}"
    upward = {
        str(path.relative_to(ROOT)): found
        for path in files
        if (found := imported_packages(path.read_text()) & FORBIDDEN[package])
    }
    assert not upward
