"""The installation coexists with other distributions' packages `agents` and `envs`."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("setuptools", minversion="77")  # older ones cannot read the licence in pyproject.toml
ROOT = Path(__file__).parent.parent
DATA = ("index.json", "chain38gx38-cifar10.json", "resnet20-rendered-digits.safetensors")  # of each kind


@pytest.fixture(scope="module")
def layout(tmp_path_factory) -> dict[str, Path]:
    """Source of each installed module by its path in the installation; nothing is built."""
    from setuptools.dist import Distribution

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.syspath_prepend(str(ROOT))
        import setup

        distribution = Distribution({"script_name": "setup.py"})
        distribution.parse_config_files()
        command = setup.BuildPy(distribution)
        command.build_lib = str(tmp_path_factory.mktemp("build"))
        command.finalize_options()
        modules = command.find_all_modules()
    places = {
        "/".join([*filter(None, package.split(".")), f"{module}.py"]): ROOT / file
        for package, module, file in modules
    }
    assert len(places) == len(modules)
    return places


@pytest.fixture(params=["alone", "theirs first", "theirs last"])
def site(request, layout, tmp_path) -> tuple[Path, bool]:
    """An installation, and whether other distributions' `agents` and `envs` are in it."""
    theirs = {
        "agents/__init__.py": "from agents.run import Agent",
        "agents/run.py": "class Agent: pass",
        "envs/__init__.py": "env = 'theirs'",
        "envs/util.py": "",
    }
    copies = [{place: file.read_text(encoding="utf-8") for place, file in layout.items()}]
    if request.param != "alone":
        copies.insert(0 if request.param == "theirs first" else 1, theirs)
    for copy in copies:
        for place, text in copy.items():
            (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / place).write_text(text, encoding="utf-8")  # over what is there, as pip does
    return tmp_path, request.param != "alone"


def python(site: Path, program: str) -> str:
    """Output of a program that imports from the installation first."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=site.parent,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(site)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_file_belongs_to_another_distribution(layout):
    assert not {"agents/__init__.py", "envs/__init__.py"} & set(layout)
    sources = {
        path.relative_to(ROOT).as_posix()
        for room in ("agents", "envs", "skipnet_rl")
        for path in (ROOT / room).rglob("*.py")
    }
    assert set(layout) == sources - {"agents/__init__.py", "envs/__init__.py"} | {"envs.py"}
    text = (ROOT / "agents" / "__init__.py").read_text(encoding="utf-8")
    assert text.strip().startswith('"""') and text.strip().endswith('"""')  # nothing that would be missed


def test_both_can_be_imported(site):
    folder, shared = site
    said = python(
        folder,
        "import gymnasium as gym, envs, agents, importlib.util as util\n"
        "print('SkipResNet20-v0' in gym.registry, getattr(envs, 'env', None), hasattr(agents, 'Agent'))\n"
        "import envs.ids\n"
        "print(gym.spec('SkipResNet20-v0').entry_point, envs.ids.depth_of('SkipResNet110-v0'))\n"
        "print(all(util.find_spec(name) for name in ('envs.factory', 'agents.ppo', 'agents.common.cli')))\n",
    )
    first, *rest = said.splitlines()
    assert first == ("False theirs True" if shared else "True None False")
    assert rest == ["envs.factory:make_env 110", "True"]


@pytest.mark.slow
def test_the_wheel_and_the_real_envs(tmp_path):
    """Builds and installs; needs a package index."""
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    source = tmp_path / "source"
    for name in tracked.splitlines():  # building leaves files in the source
        if name.endswith((".py", "py.typed", *DATA)) or "/" not in name:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*wheel, "--wheel-dir", tmp_path, source], check=True)
    (built,) = tmp_path.glob("skipnet_rl-*.whl")
    names = set(zipfile.ZipFile(built).namelist())
    assert "envs.py" in names and not {"agents/__init__.py", "envs/__init__.py"} & names
    assert {"skipnet_rl/py.typed", *(f"skipnet_rl/pretrained/{name}" for name in DATA)} <= names
    site = tmp_path / "site"
    if subprocess.run([*install, "--target", site, "envs"], check=False).returncode:
        pytest.skip("no package index")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(site)
    program = (
        "import gymnasium as gym, envs\nprint(envs.env('HOME') is not None)\n"
        "print(gym.make('envs.ids:SkipResNet14-v0', dataset='rendered-digits', weights=None).spec.id)\n"
    )
    assert python(site, program).split() == ["True", "SkipResNet14-v0"]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_lets_python_keep_the_bytecode_that_its_installation_lacks():
    """Else each of several processes compiles PyTorch again, in ten seconds."""
    show = ["make", "--silent", "--eval", "show: ; @env", "show"]
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "KEPT": "1"}
    shown = subprocess.run(show, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout
    assert "KEPT=1" in shown and "PYTHONDONTWRITEBYTECODE" not in shown
