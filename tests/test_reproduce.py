"""The study: which commands it runs."""

import json
import shlex
from pathlib import Path

import pytest
from test_jobs import Instant

from agents import cascade
from agents.common.parsing import parse
from scripts import reproduce, rows


@pytest.fixture
def no_work(monkeypatch):
    """A data set of no size, and jobs that must not be run."""
    monkeypatch.setattr(reproduce, "load_images", lambda *rest: None)
    monkeypatch.setattr(reproduce.jobs, "run", lambda *rest: pytest.fail("a job was run"))


def test_an_unknown_row():
    with pytest.raises(ValueError, match="unknown row 'resnet39'; did you mean 'resnet38'"):
        reproduce.main(rows.Options(rows=("resnet39",)))


def test_the_list_runs_nothing(tmp_path, no_work, capsys):
    options = rows.Options(rows=("resnet38",), runs=tmp_path, list=True)
    done, *others = rows.jobs_of("resnet38", options)
    done.folder.mkdir(parents=True)
    (done.folder / "result.json").write_text(json.dumps({"command": shlex.join(done.line)}))
    reproduce.main(options)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{done.folder}: done"
    assert lines[1:] == [f"{job.folder}: {shlex.join(job.line)}" for job in others]


def test_the_list_of_a_row_of_chains_ends_with_the_command_that_tunes_them(tmp_path, no_work, capsys):
    options = rows.Options(rows=("chains-long",), runs=tmp_path, data_dir=Path("data"), list=True)
    reproduce.main(options)
    *backbones, last = capsys.readouterr().out.splitlines()
    place, line = last.split(": ")
    assert (
        len(backbones) == len(rows.jobs_of("chains-long", options)) and place == f"{tmp_path}/table-cifar10"
    )
    python, dash, module, *words = shlex.split(line)
    assert (python, dash, module) == ("python", "-m", "agents.cascade")
    assert parse(cascade.Options, words) == reproduce.chains_of("chains-long", options, Path(place))


def test_runs_that_wait_for_a_failed_one_are_named_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "load_images", lambda *rest: None)
    monkeypatch.setattr(reproduce, "pool_of", lambda *jobs, threads: Instant(1, *["it failed"] * 2))
    options = rows.Options(rows=("resnet38",), runs=tmp_path)
    named = ", ".join(str(job.folder) for job in rows.jobs_of("resnet38", options))
    with pytest.raises(SystemExit, match=f"failed: {named}; repeat the command to continue"):
        reproduce.main(options)


def test_a_length_of_zero(no_work):
    with pytest.raises(ValueError, match="--length is 0.0; expected more than 0"):
        reproduce.main(rows.Options(length=0.0))


def test_the_table_of_a_row_is_that_of_its_data_set(no_work):
    options = rows.Options()
    assert options.table(rows.ROWS["resnet38-cifar100"]).name == "table-cifar100"
    with pytest.raises(ValueError, match="--out holds one data set, but the rows are for cifar10, cifar100"):
        reproduce.main(rows.Options(rows=("resnet38", "resnet38-cifar100"), out=Path("docs/results-cifar10")))


def test_a_row_of_chains_ends_with_chains_of_its_backbones(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(reproduce, "load_images", lambda *rest: None)
    monkeypatch.setattr(reproduce.jobs, "run", lambda *rest: [])
    monkeypatch.setattr(reproduce.cascade, "main", made.append)
    drawn = []
    monkeypatch.setattr(reproduce.results, "draw_chains", drawn.append)
    reproduce.main(rows.Options(rows=("chains-cifar100",), runs=tmp_path))
    (options,) = made
    small, middle, large = (
        str(tmp_path / f"resnet{depth}-cifar100-0" / "backbone" / "weights.safetensors")
        for depth in (14, 38, 110)
    )
    assert options.chains == (f"{small},{middle}", f"{middle},{large}", f"{small},{middle},{large}")
    assert (options.dataset, options.out) == ("cifar100", tmp_path / "table-cifar100")
    assert drawn == [options.out]
