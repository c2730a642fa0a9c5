"""Printing never ends a run."""

import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from agents import compare
from agents.common import outcome, tables
from agents.common.cli import main_with_named_errors
from agents.common.loop import progress_bar
from agents.hybrid_reinforce import Args
from skipnet_rl.evaluate import Evaluation
from skipnet_rl.runs import Run
from skipnet_rl.terminal import Forgiving, say


def closed_pipe() -> io.TextIOWrapper:
    reading, writing = os.pipe()
    os.close(reading)
    return open(writing, "w", encoding="utf-8", buffering=1)


def closed() -> io.TextIOWrapper:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    stream.close()
    return stream


def in_encoding(name: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=name)


STREAMS = {
    "closed pipe": closed_pipe,
    "full disk": lambda: open("/dev/full", "w", encoding="utf-8"),  # noqa: SIM115
    "closed": closed,
    "none": lambda: None,
    **{
        name: lambda name=name: in_encoding(name)
        for name in ("ascii", "latin-1", "cp1252", "koi8-r", "utf-8")
    },
}
TEXTS = ("plain", "80.0 % ± 1.2, α = 0.5 …", "runs/\udcff", "数字 🙂", "")


@pytest.fixture(params=STREAMS)
def stream(request):
    if request.param == "full disk" and not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    return STREAMS[request.param]()


def let_go(stream) -> None:
    """Close without an error for unwritten text."""
    if stream is not None and not stream.closed:
        Forgiving(stream).abandon()
        try:
            stream.close()
        except OSError:
            pytest.fail("what was abandoned was tried again")


def rows() -> dict[str, Evaluation]:
    yes, numbers = torch.ones(3, dtype=torch.bool), torch.zeros(3)
    return {"HRL, α = 1": Evaluation(yes.expand(4, 3).T, torch.zeros(3).long(), yes, *[numbers] * 4)}


def result() -> dict:
    summaries = [done.summary(name) for name, done in rows().items()]
    return {"env": "x", "dataset": "x", "split": "test", "n_images": 3, "policies": summaries}


def test_lines_tables_and_bars(stream, monkeypatch):
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    for text in TEXTS:
        say(text)
        say(text, sys.stderr)
    tables.print_table(result())
    assert list(progress_bar(range(3), desc="α")) == [0, 1, 2]
    if stream is not None and not stream.closed and isinstance(stream.buffer, io.BytesIO):
        said = stream.buffer.getvalue().decode(stream.encoding, "replace")
        assert "plain" in said and "HRL" in said
    let_go(stream)


@pytest.mark.parametrize(
    "encoding, expected",
    [
        ("ascii", "80 % +- 1, alpha ..."),
        ("latin-1", "80 % +- 1, alpha ..."),
        ("utf-8", "80 % ± 1, α …"),
    ],
)
def test_missing_characters_are_spelt_out(encoding, expected):
    stream = in_encoding(encoding)
    say("80 % ± 1, α …", stream)
    assert stream.buffer.getvalue().decode(encoding) == expected + "\n"


def test_a_command_with_a_closed_pipe_succeeds(stream, monkeypatch, capfd):
    done = []

    def run(args):
        print("a line ± of a table")
        say("wrote it")
        done.append(args)

    monkeypatch.setattr(sys, "argv", ["command"])
    monkeypatch.setattr(sys, "stdout", stream)
    lost = stream is not None and (stream.closed or not isinstance(stream.buffer, io.BytesIO))
    main_with_named_errors(Args, run)
    assert done and sys.stdout is stream  # as it was before
    let_go(stream)
    assert ("some output could not be printed" in capfd.readouterr().err) == lost


def test_an_error_is_still_one_line_and_exit_code_2(stream, monkeypatch, capsys):
    def run(args):
        print("something")
        raise ValueError("no such ± thing")

    monkeypatch.setattr(sys, "argv", ["command"])
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(SystemExit) as stop:
        main_with_named_errors(Args, run)
    assert stop.value.code == 2
    assert "error: no such ± thing" in capsys.readouterr().err
    let_go(stream)


class Lost(Exception):
    """Any error of printing or drawing."""


def lose(*_args, **_kwargs):
    raise Lost


@pytest.fixture
def finish(tmp_path):
    """`outcome.finish` of a run in `tmp_path`."""
    args = Args(run_dir=tmp_path)
    run = Run(tmp_path, args)
    made = SimpleNamespace(
        args=args,
        dataset="x",
        plain_name=None,
        test=range(3),
        learned_on="train",
        split_images=3,
        precision="fp32",
        net=SimpleNamespace(stages=[0] * 4),
    )
    return lambda **more: outcome.finish(made, run, "gumbel", rows(), 1.0, **more)


@pytest.mark.parametrize("broken", ["write_plots", "print_table", "say"])
def test_results_are_written_before_printing(finish, tmp_path, monkeypatch, broken):
    monkeypatch.setattr(outcome, broken, lose)
    with pytest.raises(Lost):
        finish()
    assert (tmp_path / "result.json").is_file() and (tmp_path / "routes.npz").is_file()


def test_notes_are_stored_and_printed(finish, tmp_path, capsys):
    notes = ["the target is missed", "another"]
    assert finish(notes=notes)["notes"] == notes
    assert compare.json.loads((tmp_path / "result.json").read_text())["notes"] == notes
    said = capsys.readouterr().out
    assert said.index("HRL") < said.index("wrote") < said.index(notes[0]) < said.index(notes[1])
    assert finish()["notes"] == []


def test_tables_of_scripts(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "say", lose)
    with pytest.raises(Lost):
        tables.publish("scripts.x", tmp_path / "deep" / "x.json", {"notes": ["a"]}, "| α |")
    assert (tmp_path / "deep" / "x.json").is_file()
