"""Install `agents` and `envs` without an `__init__.py`, which pyproject.toml cannot express.

Other distributions have packages of these names (openai-agents, envs), and an `__init__.py` would overwrite
theirs. `agents` does not need one: it becomes a namespace package. `envs` registers ids when imported: its
`__init__.py` is installed as `envs.py` beside the folder, which Python imports if the folder has no
`__init__.py`.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHARED = ("agents", "envs")  # names that other distributions use
BESIDE = ("", "envs", str(Path("envs", "__init__.py")))  # package, module, file


class BuildPy(build_py):
    """`build_py` with that layout; an editable install keeps the layout of the source."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """List (package, module, file) of a package, without `__init__` if the name is shared."""
        found = super().find_package_modules(package, package_dir)
        if package not in SHARED or self.editable_mode:
            return found
        return [each for each in found if each[1] != "__init__"]

    def find_all_modules(self) -> list[tuple[str, str, str]]:
        """List (package, module, file) of all packages, and `envs.py`."""
        found = super().find_all_modules()
        return found if self.editable_mode else [*found, BESIDE]

    def build_packages(self) -> None:
        """Copy the modules."""
        super().build_packages()
        package, module, file = BESIDE
        self.build_module(module, file, package)


if __name__ == "__main__":
    setup(cmdclass={"build_py": BuildPy})
