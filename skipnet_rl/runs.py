"""The run folder: arguments, metrics, checkpoint and result, from which figures are rebuilt.

runs/<env>-<agent>-<seed>-<time>/
    args.json  metrics.jsonl  events.out.tfevents…  checkpoint/  result.json  plots/*.png
"""

from __future__ import annotations

import dataclasses
import json
import platform
import shlex
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from skipnet_rl.checkpoint import load_checkpoint, save_checkpoint, write_json
from skipnet_rl.errors import WeightsError
from skipnet_rl.files import as_name, move, new_folder, remove_folder, write_text

PACKAGES = ("skipnet-rl", "torch", "torchvision", "gymnasium", "stable-baselines3", "numpy")

# flags that depend on the machine and do not change results, with their number of values
MACHINE_FLAGS = {"data_dir": 1, "device": 1, "resume": 0, "no_resume": 0, "debug": 0, "no_debug": 0}
LISTS = {"teacher", "teacher_depth"}  # flags that had one value, or null, in older runs
LACKED = {"compile": False}  # flags that older runs lack, with the value that they ran with
PROVENANCE = ("words", "versions", "commit", "machine")  # beside the flags in args.json
NOT_COMPARED = {"resume", "run_dir", "data_dir", "device", "download", "debug"}  # may change on resuming


class Run:
    """One run's folder.

    Args:
        folder: the folder; created if missing. Of several processes that start a run in it, one succeeds.
        args: the resolved arguments, a dataclass.
        resume: continue the folder's run, if it holds one.

    Raises:
        FileExistsError: the folder holds a run and `resume` is False.
        ValueError: `resume` is True and an argument that shapes the result differs from before.
    """

    def __init__(self, folder: Path, args: Any, resume: bool = False) -> None:
        self.folder = folder
        self.checkpoint_folder = folder / "checkpoint"
        check_folder(folder, args, resume)
        if not (resume and (folder / "args.json").exists()):
            self._claim(args)
        self._writer: SummaryWriter | None = None  # opened with the first point, when the step is known

    def _claim(self, args: Any) -> None:
        """Create args.json atomically, so that two runs cannot share a folder."""
        path = self.folder / "args.json"
        self.folder.mkdir(parents=True, exist_ok=True)  # a file of that name is a different error
        try:
            write_json(path, {**as_stored(args), "words": sys.argv[1:], **provenance()}, new=True)
        except FileExistsError as error:
            raise _in_use(self.folder, args) from error

    def log(self, step: int, stage: str, **metrics: float) -> None:
        """Add a line to metrics.jsonl and a point to each TensorBoard curve."""
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "stage": stage, **metrics}) + "\n")
        if self._writer is None:
            # purge_step hides the points that were logged after the checkpoint
            self._writer = SummaryWriter(str(self.folder), purge_step=step)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def save(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint; it includes the number of metric lines so far."""
        save_checkpoint(self.checkpoint_folder, {**state, "metric_lines": len(self.metrics())})

    def load(self, device: Any = "cpu") -> dict[str, Any] | None:
        """Load the checkpoint, or None if there is none yet; drop the metric lines logged after it.

        A damaged checkpoint is moved aside with a warning, and the previous one is loaded.

        Raises:
            WeightsError: the only checkpoint is damaged.
        """
        previous = self.checkpoint_folder.with_name("checkpoint.previous")
        if not (self.checkpoint_folder.exists() or previous.exists()):
            (self.folder / "metrics.jsonl").unlink(missing_ok=True)
            return None
        try:
            state = load_checkpoint(self.checkpoint_folder, device)
        except WeightsError as error:
            if not (self.checkpoint_folder.exists() and previous.exists()):
                raise
            state = load_checkpoint(previous, device)
            aside = self.checkpoint_folder.with_name("checkpoint.damaged")
            remove_folder(aside)
            move(self.checkpoint_folder, aside)  # the next save would put it in place of the good one
            warnings.warn(f"{error}. Continuing from the previous one, {previous}", stacklevel=2)
        kept = self.metrics()[: state["metric_lines"]]
        write_text(self.folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))
        return state

    def metrics(self) -> list[dict[str, Any]]:
        """All metric lines so far, without a last one that an interruption cut short."""
        path = self.folder / "metrics.jsonl"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def finish(self, result: dict[str, Any]) -> None:
        """Write result.json; delete temporary files that a killed process left."""
        if self._writer is not None:
            self._writer.close()
        for left in self.folder.glob("*.new"):
            if left.is_file():
                left.unlink()
        write_json(self.folder / "result.json", {"schema": 1, **result, **provenance()})


def check_folder(folder: Path, args: Any, resume: bool = False) -> None:
    """Check that a run can start in a folder, or resume there, without writing anything.

    Raises:
        FileExistsError, ValueError: as `Run` does.
    """
    stored = folder / "args.json"
    if not stored.exists():
        return
    if not resume:
        raise _in_use(folder, args)
    check_same(_read_args(stored), as_stored(args))


def _in_use(folder: Path, args: Any) -> FileExistsError:
    remedy = "resume it, or choose" if hasattr(args, "resume") else "choose"
    return FileExistsError(f"{folder} holds a run; {remedy} another folder")


def run_folder(run_dir: Path | None, name: str, agent: str, seed: int, resume: bool = False) -> Path:
    """Return `run_dir`, or create a unique folder runs/<name>-<agent>-<seed>-<time>.

    Raises:
        FileNotFoundError: `resume` without `run_dir`.
    """
    if run_dir is not None:
        return run_dir
    if resume:
        raise FileNotFoundError("nothing to resume: name the folder of the run")
    moment = time.strftime("%Y%m%d-%H%M%S")
    return new_folder(Path("runs") / as_name(f"{name}-{agent}-{seed}-{moment}"))


def without_places(command: Sequence[str], run_dir: bool = True) -> str:
    """Strip from a command line the flags that depend on the machine and do not change results.

    Args:
        command: the words of the command line.
        run_dir: keep the run's own folder, which tells runs apart.
    """
    places = MACHINE_FLAGS if run_dir else {**MACHINE_FLAGS, "run_dir": 1}
    kept, rest = [], iter(command)
    for word in rest:
        name, equals, _ = word.removeprefix("--").partition("=")
        values = places.get(name.replace("-", "_")) if word.startswith("--") else None
        if values is None:
            kept.append(word)
        elif values and not equals:
            next(rest, None)
    return shlex.join(kept)


def provenance() -> dict[str, Any]:
    """Versions, commit and machine that produced a result."""
    return {"versions": versions(), "commit": commit(), "machine": machine()}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Commit of the source tree, with "+" if it has changes; None outside a repository."""
    here = Path(__file__).parent
    tracked = ["git", "ls-files", "--error-unmatch", Path(__file__).name]
    describe = ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    options: dict[str, Any] = {"cwd": here, "capture_output": True, "encoding": "utf-8", "timeout": 10}
    try:
        subprocess.run(tracked, check=True, **options)  # fails if this file is merely inside a repository
        head = subprocess.run(describe, check=True, **options)
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() or None


def machine() -> str:
    """Describe the GPU, if there is one, and the processor."""
    import torch

    threads = torch.get_num_threads()
    cores = f"{threads} thread{'s' * (threads > 1)} of {platform.machine()}"
    return f"{torch.cuda.get_device_name()}, {cores}" if torch.cuda.is_available() else cores


def as_stored(args: Any) -> dict[str, Any]:
    """Arguments, a dataclass, in the form of args.json."""
    return json.loads(json.dumps(dataclasses.asdict(args), default=str))  # paths as text, tuples as lists


def started_with(args: Any) -> dict[str, Any] | None:
    """Return the arguments that a resumed run started with, see `as_now`; None for a new run.

    Args:
        args: the arguments now, with `resume` and `run_dir`.
    """
    stored = _stored_args(args)
    return None if stored is None else as_now(stored)


def words_of(args: Any) -> list[str]:
    """Return the command line that started a run, without its module: a resumed run may repeat less of it.

    Args:
        args: as for `started_with`.
    """
    words = (_stored_args(args) or {}).get("words")  # older runs did not store it
    return sys.argv[1:] if words is None else words


def _stored_args(args: Any) -> dict[str, Any] | None:
    path = args.run_dir and args.run_dir / "args.json"
    return _read_args(path) if getattr(args, "resume", False) and path and path.is_file() else None


def _read_args(path: Path) -> dict[str, Any]:
    """Read args.json.

    Raises:
        ValueError: it is damaged.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(stored, dict):
        raise ValueError(f"{path} is damaged: it holds {stored!r}, expected an object")
    return stored


def as_now(stored: dict[str, Any]) -> dict[str, Any]:
    """Convert args.json of an older run: a flag with several values is a list, and no flag is lacking."""
    older = {key: stored[key] for key in LISTS & stored.keys() if not isinstance(stored[key], list)}
    if stored.get("model"):
        stored = {**stored, "shortcut": None}  # older runs name one, which only ResNets have
    return {**LACKED, **stored, **{key: [] if value is None else [value] for key, value in older.items()}}


def check_same(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Check that the arguments that affect the result are those that the run was started with.

    Raises:
        ValueError: an argument differs; the message has both values.
    """
    before = as_now(before)
    for name in sorted(set(before) & set(now) - NOT_COMPARED):
        older = name == "weights" and "auto" in (before[name], now[name])  # older runs stored "auto"
        if before[name] != now[name] and not older:
            raise ValueError(
                f"cannot resume with {name} {now[name]!r}: the run was started with {before[name]!r}; "
                "pass the same arguments, or choose another folder"
            )
