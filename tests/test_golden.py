"""The golden arrays come from where their README says, as far as it can be told without clones."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from golden import build

STORED = sorted(path.stem for path in build.FOLDER.glob("*.npz"))
TRANSCRIBED = [name for name, recipe in build.RECIPES.items() if not recipe.files]
RESULTS = ("y_", "grad_x_")

needs_git = pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")


def stored(name):
    with np.load(build.FOLDER / f"{name}.npz") as file:
        return dict(file)


def run(*arguments):
    command = [sys.executable, build.__file__, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def rows():
    """The README's table: the array's name → the rest of its row."""
    lines = (build.FOLDER / "README.md").read_text().splitlines()
    return dict(re.match(r"\| `(\w+)` \| (.*)", line).groups() for line in lines if "| `" in line)


def test_readme_and_recipes_name_every_array(rows):
    assert sorted(rows) == sorted(build.RECIPES) == STORED


@pytest.mark.parametrize("name", STORED)
def test_readme_says_what_the_recipe_does(rows, name):
    recipe = build.RECIPES[name]
    repository = recipe.repository
    assert f"[{repository.name}](https://github.com/{repository.name})" in rows[name]
    assert re.fullmatch("[0-9a-f]{40}", repository.commit)
    assert f" {repository.commit} |" in rows[name]
    assert rows[name].endswith(f"| {build.FIRST_SEED + recipe.number} |")
    if recipe.files and "the same" not in rows[name]:
        path, names = list(recipe.files.items())[-1]
        assert re.search(rf"{re.escape(path)}: ({'|'.join(names)})\b", rows[name])


@pytest.mark.parametrize("name", STORED)
def test_the_seed_draws_the_stored_weights_input_and_cotangent(name):
    """Names and shapes are enough: no clone is needed."""
    recipe, arrays = build.RECIPES[name], stored(name)
    rng = torch.Generator().manual_seed(build.FIRST_SEED + recipe.number)
    shapes = {key[6:]: a.shape for key, a in arrays.items() if key.startswith("param/")}
    drawn = {f"param/{key}": value for key, value in build.random_state(shapes, rng).items()}
    drawn["x"] = torch.randn(recipe.shape, generator=rng)
    drawn["cotangent"] = torch.randn(arrays["cotangent"].shape, generator=rng)
    drawn |= recipe.extra
    assert drawn.keys() == {key for key in arrays if not key.startswith((*RESULTS, "meta"))}
    for key, value in drawn.items():
        torch.testing.assert_close(value, torch.from_numpy(arrays[key]))


@pytest.mark.parametrize("name", TRANSCRIBED)
def test_a_transcription_rebuilds_without_clones(name, tmp_path):
    assert build.difference(build.rebuild(name, tmp_path), stored(name)) <= build.ROUNDING


def test_the_transcription_is_that_of_selective_kernel():
    assert TRANSCRIBED == ["selective_kernel", "selective_kernel_stride2"]


def test_a_difference_is_seen():
    arrays = stored("selective_kernel")
    assert build.same_bits(arrays, dict(arrays))
    moved = arrays | {"x": arrays["x"] + 1}
    assert not build.same_bits(moved, arrays)
    assert build.difference(moved, arrays) == pytest.approx(1)
    for other in ({"meta": np.array("{}")}, {"x": arrays["x"][:1]}, {"y": arrays["x"]}):
        assert build.difference(arrays | other, arrays) == float("inf")


def test_a_missing_clone_is_one_line_with_the_command(tmp_path):
    done = run("--clones", tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    clone = tmp_path / "PytorchInsight"
    command = f"git clone https://github.com/implus/PytorchInsight {clone}"
    assert line == f"{clone} is missing: {command}"


def test_one_array_asks_for_its_own_repository_alone(tmp_path):
    done = run("--clones", tmp_path, "--out", tmp_path / "out", "selective_kernel")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "selective_kernel: written\n"
    assert "no recipe for some" in run("--clones", tmp_path, "some").stderr


@needs_git
def test_a_clone_without_the_commit_is_one_line_with_the_command(tmp_path):
    clone = tmp_path / "PytorchInsight"
    subprocess.run(["git", "init", "--quiet", clone], check=True)
    done = run("--clones", tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.endswith(f": git -C {clone} fetch origin {build.INSIGHT.commit}")


@needs_git
def test_a_named_definition_is_taken_without_its_files_imports(tmp_path):
    """A repository made here: a file whose imports cannot be had, and a later commit on top."""
    clone = tmp_path / "code"
    git = ["git", "-C", clone, "-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run(["git", "init", "--quiet", clone], check=True)
    for text in ("import gone\n\nclass Twice(nn.Module):\n    factor = 2\n", "changed since"):
        (clone / "file.py").write_text(text)
        subprocess.run([*git, "add", "file.py"], check=True)
        subprocess.run([*git, "commit", "--quiet", "--message", "m"], check=True)
    shown = subprocess.run([*git, "rev-parse", "HEAD~"], capture_output=True, text=True, check=True)
    repository = build.Repository("somebody/code", shown.stdout.strip())
    recipe = build.Recipe(0, repository, {}, None, {"file.py": ("Twice",)})
    assert build.definitions(tmp_path, recipe)["Twice"].factor == 2


def test_all_arrays_rebuild_from_the_clones():
    clones = os.environ.get("GOLDEN_CLONES")
    if not clones:
        pytest.skip("GOLDEN_CLONES names no folder of clones: see tests/golden/README.md")
    done = run("--clones", Path(clones).resolve())
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == len(STORED)
