"""Full disks, folders that cannot be written, and code that could execute what it reads."""

import ast
import contextlib
import importlib
import json
import shlex
import sys
from pathlib import Path

import pytest
from forked import forked
from toys import load_first

from agents import hybrid_reinforce
from agents.common import setting
from agents.common.cli import main_with_named_errors

ROOT = Path(__file__).parent.parent
FLAGS = shlex.split(
    "--env SkipResNet20-v0 --dataset rendered-digits --sp-iterations 1 --iterations 2 --tune-iterations 0 "
    "--batch-size 16 --precision fp32"
)


def child(said: Path, flags: list[str], largest_file: int | None) -> None:
    """Run the command with its output in a file."""
    setting.load_images = load_first(16)
    sys.argv = ["hybrid_reinforce", *FLAGS, *flags]
    with said.open("w") as file, contextlib.redirect_stderr(file), contextlib.redirect_stdout(file):
        if largest_file is not None:
            import resource  # Windows has none

            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
        main_with_named_errors(hybrid_reinforce.Args, hybrid_reinforce.train)


def run(tmp_path: Path, folder: Path, *flags: str, largest_file: int | None = None) -> tuple[int | None, str]:
    """Exit code and output of a short run in a process of its own, which may not write larger files."""
    said, flags = tmp_path / "said.txt", ["--run-dir", str(folder), *flags]
    code = forked(child, said, flags, largest_file)
    return code, said.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="needs limits on the size of a file")
def test_a_full_disk_is_a_one_line_error_without_partial_files(tmp_path):
    """The kernel limits files to 200 kB; without the limit the run resumes."""
    folder = tmp_path / "run"
    code, said = run(tmp_path, folder, largest_file=200_000)
    assert code == 2, said
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "File too large" in lines[0]
    assert "Traceback" not in said
    assert not (folder / "checkpoint").exists() and not (folder / "sp.safetensors").exists()
    assert json.loads((folder / "args.json").read_text())["env"] == "SkipResNet20-v0"
    code, said = run(tmp_path, folder, "--resume")
    assert code == 0, said
    assert (folder / "result.json").is_file()


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="needs a folder that refuses even root")
def test_a_folder_that_cannot_be_written(tmp_path):
    code, said = run(tmp_path, Path("/proc/skipnet"))
    assert code == 2
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "/proc/skipnet" in line


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """Every call in a file, with the dotted name of what is called."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            found.append((ast.unparse(node.func), node))
    return found


def sources() -> list[Path]:
    return [
        path
        for room in ("skipnet_rl", "envs", "agents", "benchmarks")
        for path in (ROOT / room).rglob("*.py")
    ]


def test_nothing_read_can_execute_code():
    """Pickles are read as weights only; stable-baselines3's files in one place, behind a flag.

    What is executed is the code that torch.fx writes for a model in memory.
    """
    places, executed = [], []
    for path in sources():
        for name, call in calls(path):
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            if name == "torch.load":
                assert keywords.get("weights_only") == "True", path
            if name.endswith((".load", "np.load")) and name.startswith(("np.", "numpy.")):
                assert keywords.get("allow_pickle") == "False", path
            if name == "exec":
                executed.append(path.relative_to(ROOT).as_posix())
            assert name not in ("eval", "pickle.load", "pickle.loads", "joblib.load"), path
            assert name not in ("os.system", "tarfile.open", "zipfile.ZipFile", "shutil.unpack_archive"), path
            if name.startswith("ALGORITHMS["):
                places.append(path.relative_to(ROOT).as_posix())
    assert places == ["agents/common/sb3_policies.py"]
    assert executed == ["skipnet_rl/tracing.py"]
    assert "trust_sb3 is None" in (ROOT / "agents" / "common" / "subjects.py").read_text()


def test_files_of_the_index_stay_in_their_folder():
    from skipnet_rl.catalogue import FOLDER, index

    for entry in index():
        assert (FOLDER / entry["file"]).resolve().parent == FOLDER.resolve()
        assert len(entry["sha256"]) == 64


COMMANDS = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for room in ("agents", "benchmarks", "scripts")
    for path in sorted((ROOT / room).glob("*.py"))
    if "main_with_named_errors(" in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_show_the_traceback_of_an_error(name):
    module = importlib.import_module(name)
    flags = getattr(module, "Options", None) or module.Args
    assert flags.__dataclass_fields__["debug"].default is False
