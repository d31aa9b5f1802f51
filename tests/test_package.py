"""The wheel is all that a practitioner needs: the library alone, on torch and jaxtyping."""

import re
import subprocess
import sys
import tarfile
from importlib.metadata import distribution, requires
from pathlib import Path
from shutil import copytree, ignore_patterns
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import attn_course

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The source archive and the wheel made from it, in a copy: building leaves files behind."""
    copy = tmp_path_factory.mktemp("build") / "course"
    ignored = ignore_patterns(".*", "__pycache__", "build", "dist", "screenshots", "*.ipynb")
    copytree(ROOT, copy, ignore=ignored)
    command = [sys.executable, "-m", "build", "--no-isolation"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return copy / "dist"


@pytest.fixture(scope="module")
def wheel(dist):
    (built,) = dist.glob("*.whl")
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


LIBRARY = {
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "attn_course").iterdir()
    if path.suffix in (".py", ".typed")
}


def test_the_wheel_holds_the_library_and_nothing_else(wheel):
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == LIBRARY
    assert {"attn_course/py.typed", "attn_course/squeeze_excitation.py"} <= LIBRARY


def test_the_source_archive_holds_what_the_wheel_is_made_of(dist):
    (built,) = dist.glob("*.tar.gz")
    with tarfile.open(built) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    ours = {name for name in names if ".egg-info" not in name}
    made_by_setuptools = {"", "PKG-INFO", "setup.cfg"}
    by_hand = {"attn_course", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml"}
    assert ours == LIBRARY | by_hand | made_by_setuptools


def test_the_wheel_names_its_licence_its_python_and_its_version(wheel):
    assert "License-Expression: MIT" in metadata(wheel)
    assert "Requires-Python: >=3.11" in metadata(wheel)
    assert f"\nVersion: {attn_course.__version__}\n" in metadata(wheel)
    assert any(name.endswith("/licenses/LICENSE") for name in wheel.namelist())


def test_practitioners_get_torch_and_jaxtyping(wheel):
    assert requirements(wheel) == {"torch", "jaxtyping"}


@pytest.fixture(scope="module")
def run(dist, wheel, tmp_path_factory):
    """Runs code where the wheel is installed with what it requires, and no more.

    The environment is new. Its torch is the one here, by links: nothing is downloaded.
    """
    folder = tmp_path_factory.mktemp("clean")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    (packages,) = folder.glob("venv/lib/python*/site-packages")
    for name in with_their_own(requirements(wheel)):
        link(name, packages)
    python = folder / "venv/bin/python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps"]
    subprocess.run([*install, "--no-index", *dist.glob("*.whl")], check=True, capture_output=True)

    def run(code):
        command = [python, "-I", "-c", code]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True)

    return run


def link(name, packages):
    """Makes a distribution that is installed here importable there."""
    here = distribution(name)
    for top in {file.parts[0] for file in here.files} - {"..", "__pycache__"}:
        if not (packages / top).exists():
            (packages / top).symlink_to(here.locate_file(top))


USE = """
import torch, attn_course
from attn_course import SqueezeExcitation

out = SqueezeExcitation(channels=64, reduction=16)(torch.randn(2, 64, 7, 7))
print(attn_course.__file__.partition("site-packages/")[2])
print(tuple(out.shape))
"""


def test_the_wheel_works_in_a_clean_environment(run):
    done = run(USE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["attn_course/__init__.py", "(2, 64, 7, 7)"]


def test_every_module_of_the_wheel_imports_there(run, wheel):
    files = [name for name in wheel.namelist() if name.endswith(".py")]
    modules = [name.removesuffix(".py").replace("/", ".") for name in files]
    modules = [name.removesuffix(".__init__") for name in modules]
    assert "attn_course.networks" in modules
    done = run("import " + ", ".join(modules))
    assert done.returncode == 0, done.stderr


def test_its_import_warns_of_no_more_than_torch_does(run):
    """Torch does where numpy is missing."""
    assert run("import attn_course").stderr == run("import torch").stderr


@pytest.mark.parametrize(
    "tool", ["attn_course.course", "matplotlib", "nbdev", "IPython", "jupytext", "PIL", "numpy"]
)
def test_notebook_tools_are_out_of_reach_there(run, tool):
    assert f"No module named '{tool}'" in run(f"import {tool}").stderr
