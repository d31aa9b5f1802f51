"""Every file that names a version says the same, and `make` sets up once, or says why it cannot."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
FILES = (
    "Makefile",
    "README.md",
    "CONTRIBUTING.md",
    "environment.yml",
    "pyproject.toml",
    "requirements.txt",
)


@pytest.fixture
def copy(tmp_path):
    """A copy of the files that take part, to break."""
    for name in FILES:
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def project(root):
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


def pins(root):
    """The exact version of each package in requirements.txt."""
    lines = (root / "requirements.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): exact for name, exact in pairs}


def replace(path, old, new):
    text = path.read_text()
    assert old in text, f"{path.name} has no {old!r} to break: adapt this test"
    path.write_text(text.replace(old, new))


# -- versions -----------------------------------------------------------------------------------


def check_ranges(root):
    """Each range of pyproject.toml, extras included, holds the exact version of the course."""
    extras = project(root)["optional-dependencies"].values()
    for line in sum(extras, project(root)["dependencies"]):
        wanted = Requirement(line)
        exact = pins(root).get(canonicalize_name(wanted.name))
        assert exact, f"requirements.txt lacks {wanted.name}: add {wanted.name}==<version>"
        assert exact in wanted.specifier, (
            f"requirements.txt has {wanted.name}=={exact}, pyproject.toml has {line}: edit one"
        )


def check_conda(root):
    """environment.yml installs requirements.txt and the package, on a Python that will do."""
    *packages, by_pip = yaml.safe_load((root / "environment.yml").read_text())["dependencies"]
    assert by_pip == {"pip": ["-r requirements.txt", "-e ."]}, (
        "environment.yml must take its versions from requirements.txt: "
        "let its last entry be pip with `-r requirements.txt` and `-e .`"
    )
    python = dict(package.split("=") for package in packages if "=" in package)["python"]
    assert python in SpecifierSet(project(root)["requires-python"]), (
        f"environment.yml has python={python}, "
        f"pyproject.toml has {project(root)['requires-python']}: edit one"
    )


def check_makefile_python(root):
    """The Makefile turns down what pyproject.toml does."""
    (oldest,) = SpecifierSet(project(root)["requires-python"])
    major, minor = oldest.version.split(".")
    makefile = (root / "Makefile").read_text()
    for needed in (f"v < ({major}, {minor}) and", f"Python {major}.{minor} or newer"):
        assert needed in makefile, f"pyproject.toml wants Python {oldest}: write {needed!r} there"


def check_installed(root, installed=version):
    """What runs here is what is pinned; a local suffix such as +cpu may differ."""
    for name, exact in pins(root).items():
        try:
            here = Version(installed(name)).public
        except PackageNotFoundError:
            here = "nothing"
        assert here == exact, (
            f"{name}: {here} is installed, requirements.txt has {exact}; "
            "run `pip install -r requirements.txt` with the Python of this environment"
        )


def check_commands(root):
    """Each `make` command in the prose is a target of the Makefile."""
    targets = re.findall(r"^(\w+):", (root / "Makefile").read_text(), re.MULTILINE)
    for name in ("README.md", "CONTRIBUTING.md", "Makefile"):
        text = (root / name).read_text()
        for target in re.findall(r"(?:^# |^    |`)make (\w+)", text, re.MULTILINE):
            assert target in targets, f"{name} says `make {target}`: Makefile has no such target"


def check_links(root):
    """Each link of the prose to a file of the project finds it."""
    for name in ("README.md", "CONTRIBUTING.md"):
        links = re.findall(r"\]\(([^):]+)\)", (root / name).read_text())
        missing = [link for link in links if not (root / link).exists()]
        assert not missing, f"{name} links to {missing}: no such files"


@pytest.mark.parametrize(
    "check",
    [
        check_ranges,
        check_conda,
        check_makefile_python,
        check_installed,
        check_commands,
        check_links,
    ],
)
def test_set_up_agrees(check):
    check(ROOT)


@pytest.mark.parametrize(
    ("file", "old", "new", "check", "message"),
    [
        ("requirements.txt", "torch==2.", "torch==1.", check_ranges, "torch==1.*edit one"),
        ("requirements.txt", "pytest==", "pytest2==", check_ranges, "lacks pytest: add"),
        ("pyproject.toml", "torch>=2", "torch>=9", check_ranges, "has torch>=9.*edit one"),
        ("environment.yml", "-r requirements.txt", "torch", check_conda, "must take its versions"),
        ("environment.yml", "python=3.11", "python=3.9", check_conda, "python=3.9.*edit one"),
        ("pyproject.toml", '">=3.11"', '">=3.12"', check_conda, "python=3.11.*edit one"),
        ("pyproject.toml", '">=3.11"', '">=3.12"', check_makefile_python, "write 'v < .3, 12"),
        ("requirements.txt", "torch==2.", "torch==2.0.", check_installed, "is installed.*run"),
        ("requirements.txt", "torch==", "torch-gone==", check_installed, "nothing is installed"),
        ("README.md", "    make test", "    make tests", check_commands, "says `make tests`"),
        ("CONTRIBUTING.md", "`make lint`", "`make lin`", check_commands, "says `make lin`"),
        ("README.md", "(LICENSE)", "(LICENCE)", check_links, "LICENCE.*no such files"),
    ],
)
def test_a_difference_is_caught(copy, file, old, new, check, message):
    replace(copy / file, old, new)
    with pytest.raises(AssertionError, match=message):
        check(copy)


def test_a_local_suffix_is_no_difference():
    check_installed(ROOT, installed=lambda name: pins(ROOT)[name] + "+cpu")


# -- make ---------------------------------------------------------------------------------------

needs_make = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")

# What `make` sees instead of the real python3: a liar that answers the Makefile's question.
LIAR = """#!/bin/sh
exec "{python}" -c "import sys; sys.{lie}; exec(sys.argv[1])" "$2"
"""

# A python3 that passes, whose environment holds tools that only write down their calls.
STAND_IN = """#!/bin/sh
if [ "$1 $2" = "-m venv" ]; then
    mkdir -p $3/bin
    for tool in python jupyter pytest; do cp tool $3/bin/$tool; done
fi
"""
TOOL = """#!/bin/sh
echo "$(basename "$0") $*" >> calls
"""


def script(path, text):
    path.write_text(text)
    path.chmod(0o755)


def make(root, target, **variables):
    """Runs make in a folder whose own python3 comes first; with no screen or network."""
    ours = ("MAKE", "MFLAGS", "DISPLAY", "WAYLAND_DISPLAY")  # the suite may run under make
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    env |= {"PATH": f"{root}{os.pathsep}{env['PATH']}", "PIP_NO_INDEX": "1"} | variables
    return subprocess.run(["make", target], cwd=root, env=env, capture_output=True, text=True)


@needs_make
@pytest.mark.parametrize(
    ("lie", "complaint"),
    [
        ("version_info = (3, 8, 20)", "python3 is Python 3.8. The course needs Python 3.11"),
        ("modules['ensurepip'] = None", "python3 lacks venv (Debian: apt install python3-venv)"),
    ],
)
@pytest.mark.parametrize("target", ["lab", "test"])
def test_make_refuses_in_one_line(copy, target, lie, complaint):
    script(copy / "python3", LIAR.format(python=sys.executable, lie=lie))
    done = make(copy, target)
    assert done.returncode != 0
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert complaint in done.stderr
    assert not (copy / ".venv").exists()


@needs_make
def test_make_installs_once(copy):
    script(copy / "python3", STAND_IN)
    script(copy / "tool", TOOL)

    def calls_of_make_test():
        (copy / "calls").write_text("")
        assert make(copy, "test").returncode == 0
        return (copy / "calls").read_text().splitlines()

    installs = "python -m pip install -r requirements.txt"
    assert installs in calls_of_make_test()
    assert calls_of_make_test() == ["pytest --nbval --numprocesses 2"]
    os.utime(copy / ".venv/ready", (0, 0))  # now requirements.txt is newer
    assert installs in calls_of_make_test()


@needs_make
def test_make_versions_takes_the_lowest_that_users_may_have(copy):
    """And each other package as pinned."""
    script(copy / "python3", STAND_IN)
    script(copy / "tool", TOOL)
    done = make(copy, "versions")
    assert done.returncode == 0, done.stderr
    assert "python -m pip install -r .venv-lowest/lowest" in (copy / "calls").read_text()
    (copy / "requirements.txt").write_text((copy / ".venv-lowest/lowest").read_text())
    package = [Requirement(line) for line in project(ROOT)["dependencies"]]
    lowest = {
        requirement.name: next(s.version for s in requirement.specifier if s.operator == ">=")
        for requirement in package
    }
    assert pins(copy) == pins(ROOT) | lowest


@needs_make
def test_make_lab_opens_the_first_notebook(copy):
    script(copy / "python3", STAND_IN)
    script(copy / "tool", TOOL)
    make(copy, "lab")
    without_screen = (copy / "calls").read_text().splitlines()[-1]
    assert "--no-browser" in without_screen
    make(copy, "lab", DISPLAY=":0")
    with_screen = (copy / "calls").read_text().splitlines()[-1]
    assert "--no-browser" not in with_screen
    opened = re.search(r"default_url=/lab/tree/(\S+)", with_screen)[1]
    assert (ROOT / opened).exists()


# -- what a machine lacks -----------------------------------------------------------------------


def test_the_closing_lines_say_what_was_skipped_and_what_would_run_it(tmp_path):
    """Once for each reason, also where several processes ran the tests."""
    (tmp_path / "without_timm.py").write_text("import sys\n\nsys.modules['timm'] = None\n")
    for path in ("tests/conftest.py", ".ci/run"):  # the latter says how to install timm
        (tmp_path / path).parent.mkdir()
        shutil.copy(ROOT / path, tmp_path / path)
    for number in (1, 2):  # one for each process
        (tmp_path / "tests" / f"test_{number}.py").write_text(
            "def test_timm(timm):\n    pass\n\n\ndef test_browser(browser):\n    pass\n"
        )
    # no browser is on this PATH
    env = os.environ | {"PATH": str(tmp_path), "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "pytest", "-p", "without_timm", "-p", "no:cacheprovider"]
    command += ["--numprocesses=2"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    closing_lines = done.stdout.partition("= skipped, and what would run it =")[2]
    skipped = re.findall(r"^(\d+) skipped: (.*)$", closing_lines, re.MULTILINE)
    no_chromium, no_timm = sorted(reason for _, reason in skipped)
    assert "apt install chromium" in no_chromium
    assert re.fullmatch(r"timm is not installed: .* pip install .*timm==.*", no_timm)
    total = re.search(r"(\d+) skipped.* in ", closing_lines)[1]
    assert [int(number) for number, _ in skipped] == [2, 2]
    assert int(total) == 4
