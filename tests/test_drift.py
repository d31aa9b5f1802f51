"""Notebook, twin and module say the same, and the guards notice if not."""

import re
import shutil
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_output

from attn_course.course import drift, export
from attn_course.course.drift import Drift

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MODULES = sorted((ROOT / "attn_course").glob("[!_]*.py"))
CHAPTER = "01_squeeze_excitation"

every_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


@every_notebook
@pytest.mark.parametrize(
    "check",
    [drift.check_twin, drift.check_export, drift.check_executed],
    ids=lambda check: check.__name__,
)
def test_nothing_has_drifted(check, notebook):
    check(notebook)


def test_every_module_has_a_notebook():
    drift.check_modules_have_notebooks(ROOT / "attn_course", ROOT / "notebooks")


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_every_module_is_handed_on_and_tested(module):
    names = (ROOT / "attn_course/__init__.py").read_text(encoding="utf-8")
    line = f"\nfrom attn_course.{module.stem} import "
    assert line in names, f"import the class of {module.name} in attn_course/__init__.py"
    assert (ROOT / f"tests/test_{module.name}").exists(), f"write tests/test_{module.name}"


@every_notebook
def test_no_output_tells_where_it_was_run(notebook):
    assert "site-packages" not in notebook.read_text(encoding="utf-8")


TEXTS = [*ROOT.glob("*.md"), *ROOT.glob("data/*.md"), *sorted(ROOT.glob("notebooks/text/*.md"))]


def links(text):
    """The files that a text links to; what stands in a twin is read in its notebook's folder."""
    folder = text.parent.parent if text.parent.name == "text" else text.parent
    targets = re.findall(r"\]\(([\w./-]+\.(?:ipynb|md|png))\b", text.read_text(encoding="utf-8"))
    return {folder / target for target in targets}


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.stem)
def test_every_link_leads_to_a_file(text):
    assert [str(target) for target in links(text) if not target.exists()] == []


@pytest.mark.parametrize("text", ["README.md", "notebooks/text/00_start_here.md"])
def test_every_chapter_is_linked(text):
    linked = {path.name for path in links(ROOT / text)} | {"00_start_here.ipynb"}
    missing = [path.name for path in NOTEBOOKS if path.name not in linked]
    assert not missing, f"{text} links to every chapter: add {', '.join(missing)} to its table"


# The guards, each seen to catch what it is there for.


@pytest.fixture
def notebook(tmp_path):
    """A copy of a chapter, with its twin and its module, to be broken."""
    (tmp_path / "notebooks" / "text").mkdir(parents=True)
    (tmp_path / "attn_course").mkdir()
    for path in (f"notebooks/{CHAPTER}.ipynb", f"notebooks/text/{CHAPTER}.md"):
        shutil.copy(ROOT / path, tmp_path / path)
    shutil.copy(ROOT / "attn_course" / "squeeze_excitation.py", tmp_path / "attn_course")
    return tmp_path / "notebooks" / f"{CHAPTER}.ipynb"


def edit(notebook, change):
    """Change the cells of a notebook on disk."""
    content = jupytext.read(notebook)
    change(content.cells)
    nbformat.write(content, notebook)


def first_code_cell(cells):
    return next(cell for cell in cells if cell.cell_type == "code")


def test_an_edited_module_is_caught(notebook):
    module = notebook.parents[1] / "attn_course" / "squeeze_excitation.py"
    module.write_text(module.read_text().replace("mean_over(x, 2, 3)", "x.amax((2, 3))"))
    with pytest.raises(Drift, match=r"squeeze_excitation.py is not what .* run `make notebooks`"):
        drift.check_export(notebook)


def test_a_missing_module_is_caught(notebook):
    (notebook.parents[1] / "attn_course" / "squeeze_excitation.py").unlink()
    with pytest.raises(Drift, match="run `make notebooks`"):
        drift.check_export(notebook)


def test_a_module_without_notebook_is_caught(notebook):
    (notebook.parents[1] / "attn_course" / "by_hand.py").write_text("")
    with pytest.raises(Drift, match=r"by_hand\.py comes from no notebook"):
        drift.check_modules_have_notebooks(notebook.parents[1] / "attn_course", notebook.parent)


def test_a_module_with_an_underscore_is_written_by_hand(notebook):
    (notebook.parents[1] / "attn_course" / "_by_hand.py").write_text("")
    drift.check_modules_have_notebooks(notebook.parents[1] / "attn_course", notebook.parent)


def test_an_edited_twin_is_caught(notebook):
    twin = notebook.parent / "text" / f"{CHAPTER}.md"
    twin.write_text(twin.read_text().replace("## The module", "## A module"))
    with pytest.raises(Drift, match="differ; run `make notebooks`"):
        drift.check_twin(notebook)


def test_an_edited_notebook_is_caught(notebook):
    edit(notebook, lambda cells: cells[0].update(source="# Another title"))
    with pytest.raises(Drift, match="differ; run `make notebooks`"):
        drift.check_twin(notebook)


def test_a_missing_twin_is_caught(notebook):
    (notebook.parent / "text" / f"{CHAPTER}.md").unlink()
    with pytest.raises(Drift, match="has no twin"):
        drift.check_twin(notebook)


def test_an_unexecuted_cell_is_caught(notebook):
    edit(notebook, lambda cells: first_code_cell(cells).update(execution_count=None, outputs=[]))
    with pytest.raises(Drift, match=r"code cell 1 .* was not executed in order; run `make"):
        drift.check_executed(notebook)


def test_a_cell_executed_twice_is_caught(notebook):
    edit(notebook, lambda cells: first_code_cell(cells).update(execution_count=2))
    with pytest.raises(Drift, match="was not executed in order"):
        drift.check_executed(notebook)


def test_a_stored_error_is_caught(notebook):
    error = new_output("error", ename="NameError", evalue="nothing", traceback=[])
    edit(notebook, lambda cells: first_code_cell(cells).outputs.append(error))
    with pytest.raises(Drift, match="stores an error"):
        drift.check_executed(notebook)


def test_a_stored_warning_is_caught(notebook):
    warning = new_output("stream", name="stderr", text="UserWarning")
    edit(notebook, lambda cells: first_code_cell(cells).outputs.append(warning))
    with pytest.raises(Drift, match="stores a warning"):
        drift.check_executed(notebook)


def test_a_notebook_that_exports_nothing_is_refused(notebook):
    def forget(cells):
        for cell in cells:
            cell.source = cell.source.replace("#| default_exp squeeze_excitation", "")

    edit(notebook, forget)
    with pytest.raises(export.ExportError, match=r"`#\| default_exp name`"):
        export.module_sources(notebook)


def add_second_module(notebook):
    """A cell that makes a module `seconds`, which uses the chapter's class; both are written."""

    def add(cells):
        source = (
            '#| export seconds\n"""What comes second."""\n\nimport torch\n\n\n'
            "def second(x: torch.Tensor) -> torch.nn.Module:\n"
            "    return SqueezeExcitation(len(x))"
        )
        cells.append(new_code_cell(source))

    edit(notebook, add)
    sources = export.module_sources(notebook)
    export.write_modules(notebook.parents[1] / "attn_course", sources)
    return sources


def test_a_notebook_can_export_a_second_module(notebook):
    (name, alone), *_ = export.module_sources(notebook).items()
    assert (
        list(add_second_module(notebook)) == [name, "seconds"] == ["squeeze_excitation", "seconds"]
    )
    package = notebook.parents[1] / "attn_course"
    assert (package / f"{name}.py").read_text(encoding="utf-8") == alone
    second = (package / "seconds.py").read_text(encoding="utf-8")
    assert second.startswith('"""What comes second."""\n\n# AUTOGENERATED')
    assert "\nimport torch\nfrom .squeeze_excitation import SqueezeExcitation\n" in second
    loaded = export.load_module(package / "seconds.py", "attn_course.seconds")
    assert loaded.__doc__ == "What comes second."
    assert loaded.second([0] * 64).channels == 64
    drift.check_export(notebook)
    drift.check_modules_have_notebooks(package, notebook.parent)


def test_an_edited_second_module_is_caught(notebook):
    add_second_module(notebook)
    module = notebook.parents[1] / "attn_course" / "seconds.py"
    module.write_text(module.read_text().replace("len(x)", "len(x) + 1"))
    with pytest.raises(Drift, match=r"seconds.py is not what .* run `make notebooks`"):
        drift.check_export(notebook)
    module.unlink()
    with pytest.raises(Drift, match=r"seconds.py is not what"):
        drift.check_export(notebook)


def test_an_export_of_what_did_not_run_is_noticed(notebook):
    saved = [cell.source for cell in jupytext.read(notebook).cells if cell.cell_type == "code"]
    assert export.changed_since_saved(notebook, saved) == []
    edited = [source.replace("mean_over(x, 2, 3)", "x.amax((2, 3))") for source in saved]
    assert export.changed_since_saved(notebook, saved + edited) == ["SqueezeExcitation"]
    added = ["#| export\nclass Another: ..."]
    assert export.changed_since_saved(notebook, saved + added) == ["Another"]
    assert "SqueezeExcitation" in export.changed_since_saved(notebook, [])


@pytest.mark.parametrize("start", ["#| default_exp", "flat = "])
def test_any_cell_that_did_not_run_is_noticed(notebook, start):
    saved = [cell.source for cell in jupytext.read(notebook).cells if cell.cell_type == "code"]
    (cell,) = (source for source in saved if source.startswith(start))
    ran = [source.replace(cell, f"{cell}  # edited") for source in saved]
    assert export.changed_since_saved(notebook, ran) == [f"`{cell.splitlines()[0]}`"]


def test_an_export_that_computes_something_else_is_refused():
    torch = pytest.importorskip("torch")
    ours, other = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    inputs = [torch.rand(2, 3)]
    export.assert_same_outputs(ours, other, inputs)
    other.register_forward_hook(lambda module, args, out: out + 1)
    with pytest.raises(AssertionError):
        export.assert_same_outputs(ours, other, inputs)
