"""What pyproject.toml cannot say: `agents` and `envs` are installed without a file that is another's, too.

Other distributions have packages of these names (openai-agents, envs), and of two `__init__.py` in one place
the one that is installed last stays. So neither is installed. `agents` needs none: without the other
distribution it is a namespace package. `envs` registers ids when it is imported: its `__init__.py` is
installed as `envs.py` beside the folder, which Python takes where the folder has no `__init__.py`.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHARED = ("agents", "envs")  # names that others have, too
BESIDE = ("", "envs", str(Path("envs", "__init__.py")))  # package, module, file


class BuildPy(build_py):
    """`build_py` with that layout; an editable install keeps the source's."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """Package, module and file of each module of a package."""
        found = super().find_package_modules(package, package_dir)
        if package not in SHARED or self.editable_mode:
            return found
        return [each for each in found if each[1] != "__init__"]

    def find_all_modules(self) -> list[tuple[str, str, str]]:
        """The same of all packages."""
        found = super().find_all_modules()
        return found if self.editable_mode else [*found, BESIDE]

    def build_packages(self) -> None:
        """Copy them."""
        super().build_packages()
        package, module, file = BESIDE
        self.build_module(module, file, package)


if __name__ == "__main__":
    setup(cmdclass={"build_py": BuildPy})
