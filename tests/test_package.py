"""The wheel is all that a practitioner needs: torch, jaxtyping and nothing of the notebooks."""

import re
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy of the project, since building leaves files beside the sources."""
    copy = tmp_path_factory.mktemp("build") / "course"
    ignored = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "screenshots")
    shutil.copytree(ROOT, copy, ignore=ignored)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (copy / "dist").glob("*.whl")
    with ZipFile(built) as archive:
        yield archive


def metadata(wheel):
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return wheel.read(name).decode()


def requirements(wheel):
    """What `pip install .` brings besides the package itself."""
    lines = re.findall(r"^Requires-Dist: (.+)", metadata(wheel), re.MULTILINE)
    return needed(lines)


def needed(lines):
    """The names of those requirements that hold here when no extra is asked for."""
    wanted = map(Requirement, lines)
    return {
        canonicalize_name(requirement.name)
        for requirement in wanted
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    }


def with_their_own(names):
    """Distributions, those that they need, those that these need..."""
    found, new = set(), set(names)
    while new:
        found |= new
        new = set().union(*(needed(requires(name) or ()) for name in new)) - found
    return found


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    sources = (path for path in (ROOT / "attn_course").rglob("*") if path.is_file())
    package = {path.relative_to(ROOT).as_posix() for path in sources if path.suffix != ".pyc"}
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == package
    assert package >= {"attn_course/py.typed", "attn_course/squeeze_excitation.py"}


def test_the_wheel_names_its_licence_and_its_python(wheel):
    assert "License-Expression: MIT" in metadata(wheel)
    assert "Requires-Python: >=3.11" in metadata(wheel)
    assert any(name.endswith("/licenses/LICENSE") for name in wheel.namelist())


def test_practitioners_get_torch_and_jaxtyping(wheel):
    assert requirements(wheel) == {"torch", "jaxtyping"}


# Hides what is installed here, and would not be beside the wheel.
HIDE = """
from importlib.machinery import PathFinder

find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *where: None if name in {names!r} else find(name, *where)
"""

USE = """
import torch, attn_course
from attn_course import SqueezeExcitation

out = SqueezeExcitation(channels=64, reduction=16)(torch.randn(2, 64, 7, 7))
print(attn_course.__file__)
print(tuple(out.shape))
"""


@pytest.fixture
def run(wheel, tmp_path):
    """Runs code in a folder that holds the unpacked wheel, with what it requires and no more."""
    wheel.extractall(tmp_path)
    allowed = with_their_own(requirements(wheel)) | {"attn-course"}
    hidden = {
        module
        for module, owners in packages_distributions().items()
        if not allowed & set(map(canonicalize_name, owners))
    }

    def run(code):
        command = [sys.executable, "-c", HIDE.format(names=hidden) + code]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    return run


def test_the_wheel_works_in_another_folder(run, tmp_path):
    done = run(USE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(tmp_path / "attn_course/__init__.py"), "(2, 64, 7, 7)"]


@pytest.mark.parametrize("tool", ["matplotlib", "nbdev", "IPython", "jupytext", "PIL", "numpy"])
def test_notebook_tools_are_out_of_reach_there(run, tool):
    assert f"No module named '{tool}'" in run(f"import {tool}").stderr
