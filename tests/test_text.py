"""Text files are UTF-8 in every locale; names of users are shown literally everywhere."""

import ast
import io
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from rich.console import Console

from agents.common import tables
from envs.rendering import Frame
from skipnet_rl import plots
from skipnet_rl.data import ImageSet
from skipnet_rl.evaluate import Record
from skipnet_rl.text import for_markdown, for_matplotlib, legible

ROOT = Path(__file__).parent.parent
ROOMS = ("skipnet_rl", "envs", "agents", "scripts", "benchmarks")
NAMES = (
    "[red]cat[/red]",
    "[/nothing]",
    "a$b$c",
    r"$\frac{",
    "_hidden",
    "x^2_i",
    "a|b",
    "**bold**",
    "<b>html</b>",
    "`code`",
    ":smile:",
    "katze\nhund",
    "\\",
    "Übermut ✓",
    "file\udcff",
    "[x](http://y)",
    "{0}",
    "%s",
    "",
)


def text_opens(source: str) -> list[int]:
    """Calls that read or write text in the locale's encoding."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        name = ast.unparse(node.func).rpartition(".")[2]
        words = [word.value for word in node.args if isinstance(word, ast.Constant)] + [*keywords.values()]
        binary = any(
            isinstance(word, str) and set(word.strip("'")) <= set("rwaxb+") and "b" in word for word in words
        )
        opens = name in ("read_text", "write_text") or (name in ("open", "fdopen") and not binary)
        # two that read no text, and that of skipnet_rl.files, which writes nothing but UTF-8
        known = ast.unparse(node.func) in ("Image.open", "os.open", "write_text")
        decodes = {"text", "universal_newlines"} & keywords.keys()
        if ((opens and not known) or decodes) and "encoding" not in keywords:
            found.append(node.lineno)
    return found


def test_the_walk_sees_every_kind_of_text():
    source = "open(a)\nopen(a, 'rb')\np.open('w')\np.read_text()\np.write_text(x, encoding='utf-8')\n"
    source += "p.open(mode='xb')\nrun(c, text=True)\nos.fdopen(h)\nopen(a, encoding='utf-8')\nImage.open(p)\n"
    assert text_opens(source) == [1, 3, 4, 7, 8]


@pytest.mark.parametrize("room", ROOMS)
def test_every_text_file_is_utf_8(room):
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    found = {str(path): lines for path in files if (lines := text_opens(path.read_text(encoding="utf-8")))}
    assert not found


IN_ANOTHER_LOCALE = """
import sys
from dataclasses import dataclass
from pathlib import Path
from agents import compare
from skipnet_rl.runs import Run

@dataclass
class Args:
    name: str = "α 猫"

run = Run(Path(sys.argv[1]), Args())
run.log(1, "α", loss=1.0)
assert run.metrics()[0]["stage"] == "α"
compare.pictures = lambda *rest: {}
compare.comparison = lambda title, rows: title
compare.write_files(run.folder, "α 猫", [{"name": "猫"}], [])
"""


@pytest.mark.slow
def test_a_run_in_another_locale(tmp_path):
    """Non-ASCII names, written and read in an ASCII locale."""
    (tmp_path / "code.py").write_text(IN_ANOTHER_LOCALE, encoding="utf-8")
    ascii = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, tmp_path / "code.py", tmp_path / "run"]
    subprocess.run(command, check=True, env={**os.environ, **ascii})
    assert (tmp_path / "run" / "comparison.md").read_text(encoding="utf-8") == "α 猫"
    assert "猫" in (tmp_path / "run" / "comparison.csv").read_text(encoding="utf-8")


def row(name: str) -> dict:
    keys = ("accuracy", "accuracy_ci95", "compute_blocks", "compute_flops", "compute_flops_std", "return")
    seeds = {f"{key}_seeds_ci95": 0.01 for key in keys}
    return {
        "name": name,
        **dict.fromkeys(keys, 0.5),
        **seeds,
        "unique_routes": 3,
        "bound": False,
        "n": 1,
        "accuracy_ci95": [0.1, 0.9],
        "executed_blocks_histogram": [1, 2],
        "executed_blocks_mean": 0.5,
        "execution_rate": [0.5],
    }


@pytest.mark.parametrize("name", NAMES)
def test_tables_of_the_terminal_show_names_as_they_are(name, monkeypatch, record_property):
    said = io.StringIO()
    monkeypatch.setattr(tables, "Console", lambda **_: Console(file=said, width=200))
    result = {"env": name, "dataset": name, "n_images": 3, "split": "test", "policies": [row(name)]}
    tables.print_table(result)
    tables.print_comparison(name, [row(name)])
    assert said.getvalue().count(legible(name).strip()) >= 4
    record_property("accepted", 1)


def test_pictures_show_names_as_they_are():
    """Figures with every name as that of a policy, or of a class."""
    names = NAMES[:7]
    record = Record(np.ones((len(names), 1), bool), np.arange(len(names)), np.ones(len(names), bool))
    pixels = torch.zeros(len(names), 3, 32, 32, dtype=torch.uint8)
    labels = torch.arange(len(names))
    images = ImageSet("x", "test", pixels, labels, names, (0.5,) * 3, (0.5,) * 3, flip=True)
    rows = [row(name) for name in names]
    figures = [
        plots.executed_blocks(rows),
        plots.execution_rate(rows, [1]),
        plots.frontier(rows),
        plots.computation_reduction(rows),
        plots.budget_curve(rows),
        plots.alpha_curve([{"alpha": 1.0, "seed": 0, "policies": [each]} for each in rows]),
        plots.skipped_layers(dict.fromkeys(names, record)),
        plots.easy_and_hard(images, record, [1], count=len(names)),
        plots.skip_rate_by_class(record, labels, names),
    ]
    for figure in figures:
        texts = [text.get_text() for text in figure.findobj(matplotlib.text.Text)]
        assert not any(matplotlib.cbook.is_math_text(text) for text in texts)
        for name in names:
            shown = legible(name).strip()
            assert any(shown in text.replace(r"\$", "$") for text in texts), (figure, name)


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("name", [r"$\frac{", "a$b$c", "katze\nhund"])
def test_an_episodes_picture_and_line(name):
    frame = Frame(np.zeros((8, 8, 3), np.uint8), [True], [0, 1], 0.0, 1, name, name, "ResNet-8")
    assert frame.picture().ndim == 3
    assert legible(name) in frame.line() and "\n" not in frame.line()


@pytest.mark.parametrize("name", NAMES)
def test_markdown_keeps_a_name_in_its_cell(name):
    for text in (tables.comparison("title", [row(name)]), tables.markdown(["name", "n"], [[name, "1"]])):
        lines = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
        bars = [line.replace(r"\\", "").replace(r"\|", "").count("|") for line in lines]
        assert len(lines) == 2 and len(set(bars)) == 1
        assert for_markdown(name) in lines[1]


def test_what_is_escaped():
    assert for_markdown("a_b __x__ *y* <z> | $") == r"a_b \_\_x\_\_ \*y\* \<z\> \| \$"
    assert (
        for_matplotlib("a$b$") == r"a\$b\$"
        and for_matplotlib("_x") == " _x"
        and for_matplotlib("a_b") == "a_b"
    )
    assert legible("a\tb\x1b[0m\udc80") == "a b [0m?"
    assert for_markdown("greedy, 7 of 8") == for_matplotlib("greedy, 7 of 8") == "greedy, 7 of 8"
