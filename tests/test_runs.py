"""Run folders: what they hold, what a resumed run drops, and what they refuse."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from skipnet_rl import checkpoint, files
from skipnet_rl.errors import WeightsError
from skipnet_rl.runs import Run, as_now, check_same, commit, run_folder, versions


@dataclass(frozen=True)
class Args:
    depth: int = 20
    data_dir: Path | None = None
    alpha: float = 0.1


@dataclass(frozen=True)
class Resumable(Args):
    resume: bool = False


def test_folder_records_the_arguments(tmp_path):
    Run(tmp_path / "deep" / "run", Args(alpha=0.7, data_dir=Path("some/data")))
    recorded = json.loads((tmp_path / "deep" / "run" / "args.json").read_text())
    assert recorded["alpha"] == 0.7
    assert recorded["depth"] == 20
    assert recorded["data_dir"] == "some/data"
    assert recorded["versions"] == versions()
    assert torch.__version__.startswith(recorded["versions"]["torch"])
    assert recorded["commit"] == commit()


def test_a_run_is_not_overwritten(tmp_path):
    Run(tmp_path, Args())
    with pytest.raises(FileExistsError, match="holds a run; choose another folder"):
        Run(tmp_path, Args(alpha=0.5))
    with pytest.raises(FileExistsError, match="holds a run; resume it, or choose another folder"):
        Run(tmp_path, Resumable())
    assert json.loads((tmp_path / "args.json").read_text())["alpha"] == 0.1


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({"teacher": None, "teacher_depth": None}, {"teacher": [], "teacher_depth": []}),
        ({"teacher": "auto", "teacher_depth": 38}, {"teacher": ["auto"], "teacher_depth": [38]}),
    ],
)
def test_older_runs_had_one_teacher_or_none_and_compiled_nothing(before, now):
    assert as_now(before) == as_now(now) == {**now, "compile": False}
    assert as_now({"compile": True}) == {"compile": True}
    check_same(before, now)
    with pytest.raises(ValueError, match="cannot resume with teacher"):
        check_same(before, {**now, "teacher": ["other"]})


def test_resume_starts_anew_where_there_is_nothing_to_continue(tmp_path):
    """A job that may be restarted at any time has the flag from the start on."""
    run = Run(tmp_path / "new", Args(), resume=True)
    assert run.load() is None and json.loads((tmp_path / "new" / "args.json").read_text())["alpha"] == 0.1
    with pytest.raises(ValueError, match="cannot resume with alpha"):
        Run(tmp_path / "new", Args(alpha=0.5), resume=True)


def test_metrics_are_one_line_each(tmp_path):
    run = Run(tmp_path, Args())
    run.log(10, "sp", loss=0.5)
    run.log(20, "hrl", loss=0.25, accuracy=1.0)
    expected = [
        {"step": 10, "stage": "sp", "loss": 0.5},
        {"step": 20, "stage": "hrl", "loss": 0.25, "accuracy": 1.0},
    ]
    assert run.metrics() == expected
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_resume_drops_what_came_after_the_checkpoint(tmp_path):
    run = Run(tmp_path, Args())
    run.log(1, "sp", loss=1.0)
    run.log(2, "sp", loss=0.5)
    run.save({"step": 2, "weights": torch.ones(2)})
    run.log(3, "sp", loss=0.25)
    resumed = Run(tmp_path, Args(), resume=True)
    state = resumed.load()
    assert state["step"] == 2
    assert state["weights"].tolist() == [1, 1]
    resumed.log(3, "sp", loss=0.125)
    assert [line["loss"] for line in resumed.metrics()] == [1.0, 0.5, 0.125]


def test_resume_before_the_first_checkpoint_starts_afresh(tmp_path):
    run = Run(tmp_path, Args())
    run.log(1, "sp", loss=1.0)
    resumed = Run(tmp_path, Args(), resume=True)
    assert resumed.load() is None
    assert resumed.metrics() == []


def test_half_written_line_is_left_out_and_not_continued(tmp_path):
    run = Run(tmp_path, Args())
    run.log(1, "sp", loss=1.0)
    run.save({"step": 1})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "sta')
    assert [line["step"] for line in run.metrics()] == [1]
    resumed = Run(tmp_path, Args(), resume=True)
    resumed.load()
    resumed.log(2, "sp", loss=0.5)
    assert [line["step"] for line in resumed.metrics()] == [1, 2]


def interrupt_save(monkeypatch, run: Run, from_name: str) -> None:
    """Save, but stop short of renaming the folder called `from_name`."""

    def moved(source, target):
        if source.name == from_name:
            raise KeyboardInterrupt
        return files.move(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "move", moved)
        with pytest.raises(KeyboardInterrupt):
            run.save({"step": 2})


def test_resume_after_an_interrupted_second_save(tmp_path, monkeypatch):
    run = Run(tmp_path, Args())
    run.log(1, "sp", loss=1.0)
    run.save({"step": 1})
    run.log(2, "sp", loss=0.5)
    interrupt_save(monkeypatch, run, "checkpoint.new")  # neither old nor new is in its place
    resumed = Run(tmp_path, Args(), resume=True)
    assert resumed.load()["step"] == 1
    assert [line["step"] for line in resumed.metrics()] == [1]


def test_resume_after_an_interrupted_first_save(tmp_path, monkeypatch):
    run = Run(tmp_path, Args())
    run.log(2, "sp", loss=0.5)
    interrupt_save(monkeypatch, run, "checkpoint.new")
    resumed = Run(tmp_path, Args(), resume=True)
    assert resumed.load() is None  # there was no whole checkpoint yet
    assert resumed.metrics() == []


def test_result_has_its_provenance(tmp_path):
    run = Run(tmp_path, Args())
    run.finish({"env": "SkipResNet20-v0", "policies": []})
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["schema"] == 1
    assert result["env"] == "SkipResNet20-v0"
    assert result["versions"] == versions()
    assert result["commit"] == commit()
    assert "thread" in result["machine"]


def test_tensorboard_holds_the_same_points(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = Run(tmp_path, Args())
    run.log(10, "sp", loss=0.5)
    run.log(20, "sp", loss=0.25)
    run.finish({})
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(point.step, point.value) for point in events.Scalars("loss")] == [(10, 0.5), (20, 0.25)]


def test_run_folder_names():
    assert run_folder(Path("here"), "SkipResNet20-v0", "ppo", 3) == Path("here")
    named = run_folder(None, "SkipResNet20-v0", "ppo", 3)
    assert named.parent == Path("runs")
    assert named.name.startswith("SkipResNet20-v0-ppo-3-20")


def test_a_damaged_checkpoint_falls_back_to_the_previous_one(tmp_path):
    run = Run(tmp_path, Args())
    for step in (1, 2):
        run.log(step, "sp", loss=1.0)
        run.save({"step": step, "weights": torch.ones(3)})
    (tmp_path / "checkpoint" / "state.json").write_text("{")
    resumed = Run(tmp_path, Args(), resume=True)
    with pytest.warns(UserWarning, match="is damaged.*Continuing from the previous one"):
        assert resumed.load()["step"] == 1
    assert [line["step"] for line in resumed.metrics()] == [1]
    resumed.save({"step": 2})
    assert Run(tmp_path, Args(), resume=True).load()["step"] == 2
    for folder in ("checkpoint", "checkpoint.previous"):
        (tmp_path / folder / "state.json").write_text("{")
    with pytest.raises(WeightsError, match="damaged"):
        Run(tmp_path, Args(), resume=True).load()
    assert (tmp_path / "checkpoint").is_dir()  # nothing is moved where nothing can be read
