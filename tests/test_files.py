"""Atomic file writes by the rules of every platform; Windows' are emulated."""

import ast
import errno
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier

import pytest
import torch
from matplotlib.figure import Figure

from skipnet_rl import files, runs
from skipnet_rl.checkpoint import load_checkpoint, load_weights, save_checkpoint, save_weights, write_json
from skipnet_rl.evaluate import Evaluation, save_evaluations
from skipnet_rl.files import as_name, move, new_folder, sync, whole_file, write_text
from skipnet_rl.plots import save_figure
from skipnet_rl.runs import Run, run_folder

fcntl = pytest.importorskip("fcntl", reason="Windows needs no emulation of itself")
ROOT = Path(__file__).parent.parent


class Windows:
    """The module `os` by Windows' rules for what `skipnet_rl.files` does with it.

    Attributes:
        held: how often a rename onto a file is refused before whoever has it open lets go.
    """

    def __init__(self) -> None:
        self.held = 0

    def __getattr__(self, name):
        return getattr(os, name)

    def open(self, path, flags, *rest, **more):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return os.open(path, flags, *rest, **more)

    def fsync(self, descriptor):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        os.fsync(descriptor)

    def replace(self, source, target):
        onto_folder, self.held = os.path.isdir(target), self.held - 1
        if onto_folder or (os.path.isfile(target) and self.held >= 0):
            raise PermissionError(errno.EACCES, "Access is denied", str(source))
        os.replace(source, target)


@pytest.fixture
def windows(monkeypatch):
    system = Windows()
    monkeypatch.setattr(files, "os", system)
    monkeypatch.setattr(files, "PAUSES", (0.0,) * 4)
    return system


def evaluation() -> Evaluation:
    yes, numbers = torch.ones(3, dtype=torch.bool), torch.zeros(3)
    return Evaluation(torch.ones(3, 4, dtype=torch.bool), torch.zeros(3).long(), yes, *[numbers] * 4)


@dataclass(frozen=True)
class Args:
    seed: int = 0


def a_run(folder: Path) -> None:
    """A run with a resumption, from args.json to result.json."""
    run = Run(folder, Args())
    for step in (1, 2, 3):
        run.log(step, "sp", loss=1.0)
        run.save({"step": step})
    run.finish({"resumed": Run(folder, Args(), resume=True).load()["step"]})


WRITERS = {
    "JSON": lambda place: write_json(place / "a.json", {"a": 1}),
    "text": lambda place: write_text(place / "a.md", "± α"),
    "weights": lambda place: save_weights(place / "a.safetensors", torch.nn.Linear(2, 2), {}),
    "checkpoint": lambda place: save_checkpoint(place / "a", {"x": torch.ones(2)}),
    "routes": lambda place: save_evaluations(place / "a.npz", {"x": evaluation()}),
    "picture": lambda place: save_figure(Figure(), place / "a.png"),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_writer_writes_and_replaces_on_windows(windows, tmp_path, kind):
    place = tmp_path / "made" / "for it"
    for _ in range(3):
        windows.held = 2  # whoever looks at the file lets go of it
        WRITERS[kind](place)
    assert {path.name for path in place.iterdir()} <= {path.name for path in place.glob("a*")}
    assert not list(tmp_path.rglob("*.new"))


def test_a_run_on_windows(windows, tmp_path):
    a_run(tmp_path / "run")
    assert '"resumed": 3' in (tmp_path / "run" / "result.json").read_text(encoding="utf-8")


def test_a_locked_file_is_an_error_and_unchanged(windows, tmp_path):
    write_text(tmp_path / "a", "before")
    windows.held = 100
    with pytest.raises(PermissionError, match="Access is denied"):
        write_text(tmp_path / "a", "after")
    assert (tmp_path / "a").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EIO])
def test_folders_that_cannot_be_synced(monkeypatch, tmp_path, number):
    """Some file systems cannot sync folders; a broken disk, or a file, is an error."""

    def fsync(descriptor):
        raise OSError(number, "no")

    monkeypatch.setattr(files.os, "fsync", fsync)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="no"):
        sync(tmp_path / "file")
    if number == errno.EIO:
        with pytest.raises(OSError, match="no"):
            sync(tmp_path)
    else:
        sync(tmp_path)


def test_what_is_read_can_be_replaced(tmp_path):
    """On Windows a mapped file could not be, and its changes would show in the tensors."""
    path, layer = tmp_path / "w.safetensors", torch.nn.Linear(2, 2)
    save_weights(path, layer, {})
    save_checkpoint(tmp_path / "c", {"x": torch.ones(2)})
    load_weights(path, layer)
    state = load_checkpoint(tmp_path / "c")
    for file in (path, tmp_path / "c" / "state.safetensors"):
        file.write_bytes(b"\0" * file.stat().st_size)
    assert state["x"].tolist() == [1, 1] and layer.weight.abs().sum() > 0


@pytest.mark.parametrize("shared", [False, True])
def test_an_error_leaves_no_trace(tmp_path, shared):
    kept = tmp_path / "kept"
    kept.write_text("before")
    for path in (kept, tmp_path / "new", tmp_path / "one" / "two" / "three"):
        with pytest.raises(KeyboardInterrupt), whole_file(path, shared=shared) as beside:
            beside.write_text("half")
            raise KeyboardInterrupt
    assert kept.read_text() == "before"
    assert [path.name for path in tmp_path.rglob("*")] == ["kept"]


def test_invalid_places(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "file" / "in it", Path(".")):
        with pytest.raises(OSError), whole_file(path):
            pytest.fail("the work began")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("SkipResNet20-v0-ppo-0-20260101-120000", "SkipResNet20-v0-ppo-0-20260101-120000"),
        ("envs:SkipResNet20-v0", "envs-SkipResNet20-v0"),
        ("12:30:59", "12-30-59"),
        ("own/Net-v0", "own-Net-v0"),
        ('a<b>"c"|d?*\\e', "a-b--c--d---e"),
        ("ends with a dot. ", "ends with a dot"),
    ],
)
def test_names_that_every_platform_takes(text, expected):
    assert as_name(text) == expected


def side_by_side(call) -> list:
    """Call from eight threads at once; the results or errors."""
    barrier = Barrier(8)

    def attempt(number):
        barrier.wait()
        try:
            return call(number)
        except FileExistsError as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(attempt, range(8)))


def test_folders_made_in_the_same_second_are_different(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs.time, "strftime", lambda form: "20260101-120000")
    found = side_by_side(lambda number: run_folder(None, "envs:SkipResNet20-v0", "ppo", 3))
    first = Path("runs/envs-SkipResNet20-v0-ppo-3-20260101-120000")
    assert sorted(found) == sorted([first, *(Path(f"{first}-{number}") for number in range(2, 9))])
    assert all(folder.is_dir() for folder in found)
    assert new_folder(first).name.endswith("-9")


@pytest.mark.parametrize("links", ["hard links", "none on this file system", "none on this platform"])
def test_one_of_several_runs_claims_a_folder(monkeypatch, tmp_path, links):
    def refuse(source, target):
        raise PermissionError(errno.EPERM, "Operation not permitted", str(source))

    if links == "none on this file system":
        monkeypatch.setattr(files.os, "link", refuse)
    elif links == "none on this platform":
        monkeypatch.delattr(files.os, "link")
    monkeypatch.setattr(runs, "provenance", dict)
    folder = tmp_path / "run"
    found = side_by_side(lambda seed: (Run(folder, Args(seed)), seed)[1])
    (winner,) = [each for each in found if isinstance(each, int)]
    assert all("holds a run; choose another" in str(each) for each in found if each != winner)
    assert runs.json.loads((folder / "args.json").read_text())["seed"] == winner
    assert [path.name for path in folder.iterdir()] == ["args.json"]


def test_a_claim_without_links_is_atomic(monkeypatch, tmp_path):
    monkeypatch.delattr(files.os, "link")
    monkeypatch.setattr(runs, "provenance", dict)
    calls, fsync = [], os.fsync

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 2:  # the first is that of the file beside it
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        Run(tmp_path / "run", Args())
    assert not (tmp_path / "run" / "args.json").exists()
    Run(tmp_path / "run", Args())


def test_a_folder_does_not_replace_another(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    with pytest.raises(OSError):
        move(tmp_path / "a", tmp_path / "b")
    move(tmp_path / "a", tmp_path / "c")
    assert (tmp_path / "c" / "file").exists()


ONLY_THERE = {"os.replace", "os.rename", "os.fsync", "os.link", "shutil.move", "shutil.rmtree"}


def faults_of(path: Path) -> list[str]:
    """Calls in a file that bypass `skipnet_rl.files`, or use the locale's encoding."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        last, keywords = name.rpartition(".")[2], {keyword.arg for keyword in node.keywords}
        modes = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
        text = last in ("read_text", "write_text") and name != "write_text"
        text |= last == "open" and bool(modes) and isinstance(modes[-1], str) and "b" not in modes[-1]
        if name in ONLY_THERE or name.endswith(".rename") or (text and "encoding" not in keywords):
            found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {name}")
    return found


def test_all_writes_use_this_module():
    rooms = ("skipnet_rl", "envs", "agents", "scripts", "benchmarks")
    paths = [path for room in rooms for path in (ROOT / room).rglob("*.py") if path.name != "files.py"]
    found = [fault for path in paths for fault in faults_of(path)]
    assert not found
