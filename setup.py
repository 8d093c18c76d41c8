"""The part of the build that pyproject.toml cannot say: config/ goes into the package."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    """Lays the shipped recipes into the built package as gptlab/config."""

    def run(self):
        super().run()
        if not self.editable_mode:
            source = Path(__file__).parent / "config"
            shutil.copytree(source, Path(self.build_lib) / "gptlab" / "config", dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithRecipes})
