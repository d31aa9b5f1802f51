"""The road from twin to notebook to module, and each accident on it that must do no harm."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jupytext
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from torch import nn

from attn_course.course import anatomy, build, drift, export, provenance, twins
from attn_course.course.build import BuildError
from attn_course.course.chapter import create_chapter
from attn_course.course.drift import Drift
from attn_course.course.export import ExportError
from attn_course.course.twins import TwinsDisagree

ROOT = Path(__file__).parents[1]
NAME = "99_some_mechanism"

# A cell whose output differs each time, one whose output comes in pieces, and one with a result.
RESTLESS = """```{code-cell} ipython3
:tags: [nbval-ignore-output]

import time

print(time.time_ns())
```

```{code-cell} ipython3
for piece in "one", "two":
    print(piece, flush=True)
    time.sleep(0.1)
```

```{code-cell} ipython3
1 + 1
```

## Summary
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A project with one chapter, fresh from the template and built."""
    root = tmp_path_factory.mktemp("road") / "project"
    shutil.copytree(ROOT / "attn_course", root / "attn_course", ignore=lambda *_: ["__pycache__"])
    (root / "notebooks" / "text").mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", root)
    twin = create_chapter(NAME, root)
    replace(twin, "## Summary\n", RESTLESS)
    build.build(root)
    return root


@pytest.fixture
def project(built, tmp_path):
    """A copy of it, to be broken."""
    return shutil.copytree(built, tmp_path / "project")


@pytest.fixture
def notebook(project):
    return project / "notebooks" / f"{NAME}.ipynb"


@pytest.fixture
def twin(notebook):
    return twins.twin_of(notebook)


@pytest.fixture
def module(project):
    return project / "attn_course" / "some_mechanism.py"


def replace(path, old, new):
    text = path.read_text()
    assert old in text, f"{path.name} has no {old!r} to break: adapt this test"
    path.write_text(text.replace(old, new, 1))


def files(root):
    """Every file of a folder and what is in it, but for what Python keeps of its imports."""
    paths = (path for path in root.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {path: path.read_bytes() for path in paths}


def ran(capsys):
    """Did the last build run a chapter?"""
    return "running" in capsys.readouterr().out


def test_a_new_chapter_passes_every_check(notebook):
    for check in (
        drift.check_twin,
        drift.check_export,
        drift.check_executed,
        anatomy.check_anatomy,
        anatomy.check_form,
    ):
        check(notebook)


def test_twin_and_module_are_as_clean_as_ever(twin, module):
    assert provenance.KEY + ":" not in twin.read_text()
    assert re.findall("^# %%.*#.*", module.read_text(), re.MULTILINE) == []


# -- A stale output is caught -------------------------------------------------------------------


def test_an_edit_that_was_only_synced_is_caught(notebook, twin):
    replace(twin, '["red"]', '["something else"]')
    notebook.write_text(twins.as_notebook(twins.read_both(notebook)))
    drift.check_twin(notebook)  # which is all that the two can say about each other
    with pytest.raises(Drift, match=r"`redder.*has changed since `make notebooks`"):
        drift.check_executed(notebook)


def test_a_lost_code_cell_is_caught(notebook):
    content = jupytext.read(notebook)
    content.cells = content.cells[:-1]
    notebook.write_text(twins.as_notebook(content))
    with pytest.raises(Drift, match=r"lost a code cell.*run `make notebooks`"):
        drift.check_executed(notebook)


@pytest.mark.parametrize("name", ["pictures", "palette"])  # the second through the first
def test_a_changed_import_is_caught(project, notebook, name):
    with (project / "attn_course" / "course" / f"{name}.py").open("a") as file:
        file.write("CHANGED = True\n")
    with pytest.raises(Drift, match=rf"imports attn_course/course/{name}\.py, changed"):
        drift.check_executed(notebook)


def test_a_file_that_is_not_imported_may_change(project, notebook):
    with (project / "attn_course" / "networks.py").open("a") as file:
        file.write("CHANGED = True\n")
    drift.check_executed(notebook)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch\nfrom torch import nn", set()),
        ("from attn_course import CBAM", {"cbam.py"}),
        ("from attn_course.networks import ResNet", {"networks.py"}),
        ("import attn_course.cbam as cbam", {"cbam.py"}),
        ("from attn_course.course import data", {"course/data.py"}),
        ("def later():\n    from attn_course import ResNet, CBAM", {"networks.py", "cbam.py"}),
        ("from attn_course import nothing_there", {"__init__.py"}),
    ],
)
def test_imports_are_followed_to_their_files(source, expected):
    found = provenance.imported_files(source, ROOT)
    assert {path.relative_to(ROOT / "attn_course").as_posix() for path in found} == expected


def test_relative_imports_are_followed(tmp_path):
    package = tmp_path / "attn_course"
    package.mkdir()
    (package / "__init__.py").write_text("from .one import One")
    (package / "one.py").write_text("from .two import Two\nfrom . import three")
    (package / "two.py").write_text("")
    (package / "three.py").write_text("")
    content = new_notebook(cells=[new_code_cell("%xmode Minimal\nfrom attn_course import One")])
    found = provenance.imports(content, tmp_path)
    assert sorted(found) == [f"attn_course/{name}.py" for name in ("one", "three", "two")]


def test_measurements_are_imported_with_what_reads_them(tmp_path):
    """A new run of the benchmarks makes the chapters stale that cite it, and no others."""
    shutil.copytree(ROOT / "attn_course", tmp_path / "attn_course")
    results = tmp_path / "benchmarks/results.json"
    results.parent.mkdir()
    citing = new_notebook(cells=[new_code_cell("from attn_course.course import pictures, speed")])
    other = new_notebook(cells=[new_code_cell("from attn_course.course import pictures")])
    found = []
    for text in ("{}", '{"networks": {}}'):
        results.write_text(text)
        found.append([provenance.imports(content, tmp_path) for content in (citing, other)])
    assert {key for key in found[0][0] if found[0][0][key] != found[1][0][key]} == {
        "benchmarks/results.json"
    }
    assert found[0][1] == found[1][1]
    results.unlink()  # which is a change like any other
    assert "benchmarks/results.json" not in provenance.imports(citing, tmp_path)


def test_what_an_editor_leaves_in_a_cell_is_no_change(notebook):
    content = jupytext.read(notebook)
    for cell in content.cells:
        cell.metadata.update(scrolled=True, collapsed=False, trusted=True, ExecuteTime={})
    notebook.write_text(twins.as_notebook(content))
    drift.check_twin(notebook)
    drift.check_executed(notebook)


# -- Tests write nothing ------------------------------------------------------------------------


def test_tests_repair_nothing(project, module):
    replace(module, "x * self.attention(x)", "x + self.attention(x)")
    before = files(project)
    command = [sys.executable, "-m", "pytest", "--nbval", "-p", "no:cacheprovider", "notebooks"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert "some_mechanism.py is not what 99_some_mechanism.ipynb exports" in done.stdout
    assert re.search(r"1 failed, \d+ passed", done.stdout), done.stdout
    assert files(project) == before


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_a_test_run_that_writes_fails(tmp_path):
    (tmp_path / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path / "tests")
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "tests" / "test_it.py").write_text(
        "from pathlib import Path\n\ndef test_it():\n    Path('a.txt').write_text('two')\n"
    )
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init"], ["add", "."], ["commit", "-m", "start"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True, capture_output=True)
    command = [sys.executable, "-B", "-m", "pytest", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "1 passed" in done.stdout
    assert "the checkout is not as it was: M a.txt" in done.stdout
    assert done.returncode == 1
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0  # what was changed before the tests began is nobody's fault


# -- No edit is lost ----------------------------------------------------------------------------


def edit_notebook(notebook, old, new):
    content = jupytext.read(notebook)
    (cell,) = (cell for cell in content.cells if old in cell.source)
    cell.source = cell.source.replace(old, new)
    notebook.write_text(twins.as_notebook(content))


@pytest.mark.parametrize("newer", ["notebook", "twin"])
def test_edits_of_both_sides_come_together(project, notebook, twin, newer, capsys):
    replace(twin, "Three to five lines.", "Edited in the twin.")
    edit_notebook(notebook, "A toy with numbers", "Edited in the notebook: a toy with numbers")
    os.utime(twin if newer == "twin" else notebook, (2e9, 2e9))
    build.build(project)
    assert not ran(capsys)  # no code was edited
    drift.check_twin(notebook)
    assert "Edited in the twin." in twin.read_text()
    assert "Edited in the notebook" in twin.read_text()


@pytest.mark.parametrize("newer", ["notebook", "twin"])
def test_an_edit_of_one_side_survives_a_clone(project, notebook, twin, newer):
    edit_notebook(notebook, "Three to five lines.", "Committed in the notebook alone.")
    os.utime(twin if newer == "twin" else notebook, (2e9, 2e9))  # a clone's times mean nothing
    build.build(project)
    assert "Committed in the notebook alone." in twin.read_text()


@pytest.mark.parametrize("sides", ["notebook", "both"])  # an editor without jupytext, and with it
def test_a_workshop_that_a_reader_has_opened_is_folded_again(
    project, notebook, twin, sides, capsys
):
    before = files(project)
    content = jupytext.read(notebook)
    for cell in content.cells:
        cell.metadata.pop(provenance.FOLD, None)
    notebook.write_text(twins.as_notebook(content))
    if sides == "both":
        twin.write_text(twins.as_twin(content))
    with pytest.raises(Drift, match=r"`## Does it match\?` is open; run `make notebooks`"):
        anatomy.check_form(notebook)
    build.build(project)
    assert not ran(capsys)
    assert files(project) == before


def test_a_new_section_of_the_workshop_is_folded(project, notebook, twin):
    replace(twin, "## References\n", "## Other layouts\n\n+++\n\nText.\n\n+++\n\n## References\n")
    build.build(project)
    drift.check_twin(notebook)
    anatomy.check_folds(notebook)
    assert f'+++ {{"{provenance.FOLD}": true}}\n\n## Other layouts\n' in twin.read_text()


def test_an_edit_in_the_same_place_is_refused(project, notebook, twin):
    replace(twin, "Three to five lines.", "The twin's.")
    edit_notebook(notebook, "Three to five lines.", "The notebook's.")
    before = files(project)
    with pytest.raises(TwinsDisagree, match=r"both edited in one place.*: `## Summary`\. Let"):
        build.build(project)
    assert files(project) == before
    notebook.unlink()  # as the message advises
    assert any("The twin's." in cell.source for cell in twins.read_both(notebook).cells)


def test_a_removed_and_an_added_cell_come_together(notebook, twin):
    replace(twin, "- Three to five lines.\n\n+++\n", "")
    content = jupytext.read(notebook)
    content.cells.insert(3, new_code_cell("added = 1"))
    notebook.write_text(twins.as_notebook(content))
    sources = [cell.source for cell in twins.read_both(notebook).cells]
    assert sources[3] == "added = 1"
    assert "- Three to five lines." not in sources
    assert len(sources) == len(content.cells) - 1


def test_an_edit_made_while_the_chapter_runs_survives(project, notebook, twin):
    late = "from pathlib import Path\n\npath = Path('text/99_some_mechanism.md')\n"
    late += "path.write_text(path.read_text().replace('Three to five lines', 'A late thought'))\n"
    replace(twin, "import time\n", late + "import time\n")
    before = notebook.read_text()
    with pytest.raises(BuildError, match="was edited while it was built"):
        build.build(project)
    assert "- A late thought" in twin.read_text()
    assert notebook.read_text() == before


def test_conflict_markers_are_refused(project, notebook, twin):
    clean = twin.read_text()
    conflict = "<<<<<<< HEAD\n- Ours.\n=======\n- Theirs.\n>>>>>>> branch"
    replace(twin, "- Three to five lines.", conflict)
    line = twin.read_text().splitlines().index("<<<<<<< HEAD") + 1
    for check in (drift.check_twin, lambda _: build.build(project)):
        with pytest.raises(
            (Drift, TwinsDisagree), match=rf"some_mechanism\.md, line {line}, holds"
        ):
            check(notebook)
    twin.write_text(clean)
    edit_notebook(notebook, "- Three to five lines.", conflict)
    with pytest.raises(TwinsDisagree, match=r"some_mechanism\.ipynb, line \d+, holds a conflict"):
        build.build(project)


@pytest.mark.parametrize(
    ("one", "other", "merged"),
    [
        ("abc", "abc", "abc"),
        ("aXc", "abc", "aXc"),
        ("Xbc", "abY", "XbY"),
        ("bc", "abcY", "bcY"),
        ("aXc", "aXc", "aXc"),
        ("aXbc", "abYc", "aXbYc"),
        ("aXc", "aYc", None),
        ("ac", "aXc", None),
        ("aXbc", "aYbc", None),
    ],
)
def test_merge(one, other, merged):
    for pair in ((one, other), (other, one)):
        if merged is None:
            with pytest.raises(twins.EditedTwice):
                twins.merge(list("abc"), *map(list, pair))
        else:
            assert twins.merge(list("abc"), *map(list, pair)) == list(merged)


# -- The twin determines the module -------------------------------------------------------------


def test_a_lost_notebook_comes_back_from_its_twin(project, notebook, twin, module):
    before = twin.read_bytes(), module.read_bytes()
    notebook.unlink()
    build.build(project)
    assert (twin.read_bytes(), module.read_bytes()) == before
    drift.check_executed(notebook)


def test_a_lost_twin_comes_back_from_its_notebook(project, notebook, twin):
    before = files(project)
    twin.unlink()
    build.build(project)
    assert files(project) == before


# -- Running again ------------------------------------------------------------------------------


def test_an_unchanged_chapter_stays_unchanged(project, capsys):
    before = files(project)
    build.build(project)
    assert not ran(capsys)
    build.build(project, NAME)
    assert ran(capsys)
    after = files(project)
    assert [name for name in before | after if before.get(name) != after.get(name)] == []


def outputs_of(notebook, start):
    """What the cell that starts with these words stores."""
    (cell,) = (c for c in jupytext.read(notebook).cells if c.source.startswith(start))
    return cell.outputs


def test_an_edit_renews_what_comes_after_it_and_reaches_the_module(
    project, notebook, twin, module, capsys
):
    printed = outputs_of(notebook, "import time")
    replace(twin, "It becomes the docstring of the module.", "It opens the module.")
    build.build(project)
    assert not ran(capsys)  # a sentence is no code
    assert "It opens the module." in module.read_text()
    replace(twin, "pictures.where()", "assert True")
    replace(twin, "return x * self", "return 1 * x * self")
    build.build(project)
    assert ran(capsys)
    assert outputs_of(notebook, "import time") != printed
    assert "1 * x * self" in module.read_text()
    drift.check_executed(notebook)


def test_a_result_has_the_number_of_its_cell(project, notebook, twin):
    replace(
        twin,
        "```{code-cell} ipython3\n1 + 1",
        "```{code-cell} ipython3\n0\n```\n\n```{code-cell} ipython3\n1 + 1",
    )
    build.build(project)
    (cell,) = (c for c in jupytext.read(notebook).cells if c.source == "1 + 1")
    assert cell.outputs[0].execution_count == cell.execution_count


# -- Accidents ----------------------------------------------------------------------------------


def test_a_slip_in_the_last_chapter_shows_before_anything_runs(project, twin, capsys):
    replace(twin, "x = data.photograph", "x = = data.photograph")
    (twin.with_name("98_first.md")).write_text("```{code-cell} ipython3\n1\n```\n")
    with pytest.raises(
        BuildError, match=r"99_some_mechanism.ipynb is no valid Python; nothing was"
    ):
        build.build(project)
    assert not ran(capsys)


def test_a_module_edited_by_hand_is_put_right_before_others_import_it(project, module, monkeypatch):
    create_chapter("98_other_mechanism", project)
    build.build(project)
    replace(module, "self.scale", "self.scales")
    built = []
    monkeypatch.setattr(build, "build_chapter", lambda path, always: built.append(path.stem))
    build.build(project)
    assert built == ["99_some_mechanism", "98_other_mechanism"]


def test_a_name_that_is_no_chapter_is_refused(project):
    with pytest.raises(BuildError, match="NAME=98_other is no chapter; give one of 99_some"):
        build.build(project, "98_other")


def test_a_cell_that_fails_leaves_everything_as_it_was(project, twin):
    replace(twin, "pictures.where()", "raise RuntimeError('on purpose')")
    before = files(project)
    with pytest.raises(BuildError, match=r"on purpose(.|\n)*some_mechanism.ipynb stays as it was"):
        build.build(project)
    assert files(project) == before


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    resource = pytest.importorskip("resource", reason="Windows cannot limit the size of a file")
    path = tmp_path / "module.py"
    path.write_text("x = 1\n")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            export.write_if_changed(path, "x = 2\n" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files(tmp_path) == {path: b"x = 1\n"}


def test_a_folder_that_cannot_be_written_to_is_named_at_once(project, monkeypatch, capsys):
    # Root may write anywhere, so the answer of the system is given here.
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != "notebooks")
    monkeypatch.chdir(project)
    with pytest.raises(SystemExit, match=r"^make notebooks: \S+/notebooks cannot be written to.*$"):
        build.main([])
    assert not ran(capsys)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to catch")
def test_a_terminated_build_stops_its_kernel_and_writes_nothing(project, twin):
    pid = project.parent / "pid"
    cell = f"import os, time\n\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)"
    replace(twin, "pictures.where()", cell)
    before = files(project)
    process = subprocess.Popen([sys.executable, "-m", build.__name__], cwd=project)
    wait_until(lambda: pid.exists() and pid.read_text())
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) != 0
    wait_until(lambda: not is_alive(int(pid.read_text())))
    assert files(project) == before


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(holds, seconds=60):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


# -- Copies and other folders -------------------------------------------------------------------


def test_a_copy_runs_and_leaves_the_module_alone(project, notebook, module):
    folder = project / "my_course"
    folder.mkdir()
    copy = Path(shutil.copy(notebook, folder))
    edit_notebook(copy, "return x * self.attention(x)", "return x * self.attention(x).square()")
    before = module.read_bytes()
    content = jupytext.read(copy)
    NotebookClient(content, resources={"metadata": {"path": str(folder)}}).execute()
    assert "this notebook is a copy" in content.cells[-1].outputs[0].text
    assert module.read_bytes() == before
    assert list(folder.iterdir()) == [copy]


def test_a_notebook_of_another_folder_is_not_exported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match=rf"no {NAME}.ipynb in {tmp_path}: run it in notebooks/"):
        export.export(f"{NAME}.ipynb", nn.Module)


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_make_copy_keeps_answers(project, notebook):
    shutil.copy(ROOT / "Makefile", project)
    make = ["make", "copy"]
    subprocess.run(make, cwd=project, check=True, capture_output=True)
    copy = project / "my_course" / notebook.name
    assert copy.read_bytes() == notebook.read_bytes()
    copy.write_text("answers")
    shutil.copy(notebook, notebook.with_name("98_new.ipynb"))
    subprocess.run(make, cwd=project, check=True, capture_output=True)
    assert copy.read_text() == "answers"
    assert (project / "my_course" / "98_new.ipynb").exists()


# -- A new chapter ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["cbam", "3_cbam", "03-cbam", "03_CBAM", "03_cbam.ipynb", "../03_a"]
)
def test_a_chapter_with_another_kind_of_name_is_refused(project, name):
    with pytest.raises(ValueError, match="give one like 04_spatial_group_enhance"):
        create_chapter(name, project)


def test_a_number_or_a_mechanism_is_given_once(project):
    with pytest.raises(ValueError, match="number 99 is taken by 99_some_mechanism; 01 is free"):
        create_chapter("99_other", project)
    with pytest.raises(ValueError, match="99_some_mechanism is about some_mechanism already"):
        create_chapter("98_some_mechanism", project)
