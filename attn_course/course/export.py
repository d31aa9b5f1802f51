"""The road from a notebook to its module: cut by nbdev, compared with what ran, written once."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jupytext
import nbformat
import torch
from nbdev.export import nb_export
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from torch import Tensor, nn

from attn_course.course import kernel

ROOT = Path(__file__).resolve().parents[2]
CELL_ID = re.compile(r"^(# %% .*) #\w+$", re.MULTILINE)  # new when a notebook is made from its twin
SECOND_MODULE = re.compile(r"#\| export (\w+)$", re.MULTILINE)
DRAFT = "ATTN_COURSE_DRAFT"  # where `make notebooks` keeps the notebook that it is running


class ExportError(RuntimeError):
    """The notebook cannot become a module as it stands."""


def export(notebook: str, cls: type[nn.Module], *inputs: Tensor, **options: Any) -> None:
    """Write a notebook's exported cells to `attn_course/`, once they are shown to be what ran.

    The module of the class is loaded from a temporary file first. It takes the package's place only
    if it holds what this kernel ran, and if the class in it, given the weights of the notebook's
    class, returns the same outputs bit for bit in training and in evaluation mode; a second module
    comes with it. Under pytest nothing is written: the modules must be there. A copy of a notebook,
    elsewhere, leaves them alone.

    Args:
        notebook: File name of the notebook that calls this, in the kernel's folder.
        cls: The notebook's own class, as defined in the kernel.
        *inputs: What both classes are applied to.
        **options: Arguments of the constructor.

    Raises:
        ExportError: The saved notebook is not what the kernel ran, or not in the kernel's folder;
            under pytest also if the module is not what the notebook exports.
        AssertionError: The exported class computes something else.
    """
    path = Path(notebook).resolve()
    draft = os.environ.get(DRAFT)  # `make notebooks` replaces the notebook when all of it has run
    saved = Path(draft) if draft else path
    if not saved.exists():
        raise ExportError(f"there is no {notebook} in {path.parent}: run it in notebooks/")
    changed = changed_since_saved(saved, kernel.ran)
    if changed:
        raise ExportError(
            f"{notebook} on disk is not what this kernel ran: {', '.join(changed)} differ. "
            "Save the notebook, then restart the kernel and run all cells"
        )
    sources = module_sources(saved)
    name = next(iter(sources))
    with tempfile.TemporaryDirectory() as folder:
        candidate = Path(folder, f"{name}.py")
        candidate.write_text(sources[name], encoding="utf-8")
        exported = getattr(load_module(candidate, f"attn_course.{name}"), cls.__name__)
        assert_same_outputs(cls(**options), exported(**options), inputs)
    package = path.parents[1] / "attn_course"
    if path.parent.name != "notebooks" or not package.is_dir():
        print(f"this notebook is a copy: its {cls.__name__} would export, and nothing was written")
        return
    for stem, source in sources.items():
        if not draft and "PYTEST_VERSION" in os.environ:
            check_module(package / f"{stem}.py", source, notebook)
        elif not draft:
            write_if_changed(package / f"{stem}.py", source)
    print(f"attn_course/{name}.py holds this notebook's {cls.__name__}: equal outputs")


def check_module(module: Path, source: str, notebook: str) -> None:
    """The module in the package is, byte for byte, what the notebook exports."""
    if not module.exists() or module.read_text(encoding="utf-8") != source:
        raise ExportError(
            f"attn_course/{module.name} is not what {notebook} exports; "
            "edit the notebook, never the module, and run `make notebooks`"
        )


def module_sources(notebook: Path) -> dict[str, str]:
    """Cut the exported cells of a saved notebook into modules: their names and formatted texts.

    The notebook's own comes first: the cells that begin with `#| export`, in the module that
    `#| default_exp` names. Cells that begin with `#| export other` make a second module, `other`.
    """
    cells = jupytext.read(notebook).cells
    names = dict.fromkeys(filter(None, map(second_module, cells)))
    own = [cell for cell in cells if second_module(cell) is None]
    sources = dict([cut(notebook.name, own)])
    for name in names:
        sources |= dict([cut(notebook.name, as_own_cells(cells, name))])
    return sources


def second_module(cell: NotebookNode) -> str | None:
    """The module that a cell names in `#| export other`."""
    found = SECOND_MODULE.match(cell.source) if cell.cell_type == "code" else None
    return found[1] if found else None


def as_own_cells(cells: Sequence[NotebookNode], name: str) -> list[NotebookNode]:
    """The cells of a second module as a notebook of its own would have them.

    Its docstring is the last line `> ...` above the first of them.
    """
    chosen = [index for index, cell in enumerate(cells) if second_module(cell) == name]
    texts = [cell.source for cell in cells[: chosen[0]] if cell.cell_type == "markdown"]
    summary = re.findall(r"^> .*", "\n".join(texts), re.MULTILINE)[-1:]
    return [
        new_markdown_cell("\n\n".join([f"# {name}", *summary])),
        new_code_cell(f"#| default_exp {name}"),
        *(new_code_cell(SECOND_MODULE.sub("#| export", cells[index].source)) for index in chosen),
    ]


def cut(notebook: str, cells: Sequence[NotebookNode]) -> tuple[str, str]:
    """Cut the cells of one module out of a notebook's: its name and its formatted text."""
    with tempfile.TemporaryDirectory() as folder:
        # The module names its notebook by a relative path: keep the layout of the project.
        copy = Path(folder, "notebooks", notebook)
        package = Path(folder, "attn_course")
        copy.parent.mkdir()
        package.mkdir()
        nbformat.write(new_notebook(cells=cells), copy)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nbdev warns where we raise, below
            nb_export(str(copy), lib_path=str(package))
        modules = list(package.glob("*.py"))
        if not modules:
            raise ExportError(
                f"{notebook} exports nothing: one cell needs `#| default_exp name`, "
                "and the cells of the module need `#| export`"
            )
        text = CELL_ID.sub(r"\1", modules[0].read_text(encoding="utf-8"))
        # nbdev makes imports from the package relative where they take one line; so do we the rest
        return modules[0].stem, format_source(re.sub(r"(?m)^from attn_course\.", "from .", text))


def format_source(source: str) -> str:
    """Format Python text with the project's ruff settings."""
    command = [sys.executable, "-m", "ruff", "format", "--config", f"{ROOT}/pyproject.toml", "-"]
    done = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ExportError(f"the exported cells are no valid Python: {done.stderr.strip()}")
    return done.stdout


def changed_since_saved(notebook: Path, ran: Sequence[str]) -> list[str]:
    """Names whose exported definition in the saved notebook is not the one that ran last.

    If there are none: the cells of the saved notebook that did not run as they stand.

    The last cell calls `export` and is still running; one that raises never runs to its end.
    """
    cells = [cell for cell in jupytext.read(notebook).cells if cell.cell_type == "code"]
    saved = exported_definitions([cell.source for cell in cells])
    live = exported_definitions(ran)
    names = sorted(name for name in saved | live if saved.get(name) != live.get(name))
    finished = {source.strip() for source in ran}
    return names or [
        f"`{cell.source.splitlines()[0]}`"
        for cell in cells[:-1]
        if cell.source.strip()
        and cell.source.strip() not in finished
        and "raises-exception" not in cell.metadata.get("tags", [])
    ]


def exported_definitions(cells: Sequence[str]) -> dict[str, str]:
    """Map each name that `#| export` cells define to the cell that defines it last."""
    exported = [cell for cell in cells if cell.lstrip().startswith("#| export")]
    return {name: cell.strip() for cell in exported for name in top_level_names(cell)}


def top_level_names(source: str) -> list[str]:
    """Names that a piece of Python binds by import, assignment, `def` or `class`."""
    names = []
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            names += [alias.asname or alias.name for alias in statement.names]
        elif isinstance(statement, ast.FunctionDef | ast.ClassDef):
            names.append(statement.name)
        else:
            stored = (node for node in ast.walk(statement) if isinstance(node, ast.Name))
            names += [node.id for node in stored if isinstance(node.ctx, ast.Store)]
    return names


def load_module(path: Path, name: str) -> ModuleType:
    """Load a Python file as a module of the given name, without making it importable."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_same_outputs(ours: nn.Module, exported: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Give both modules the same random weights and require equal outputs, bit for bit."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in ours.parameters():
            nn.init.normal_(parameter, std=0.1)  # no scale may stay at 0 and hide a difference
        exported.load_state_dict(ours.state_dict())
        for training in (True, False):
            outputs = []
            for module in (ours, exported):
                torch.manual_seed(1)  # dropout must drop the same elements
                outputs.append(module.train(training)(*inputs))
            torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=0)


def write_if_changed(path: Path, text: str) -> None:
    """Replace a file in one step, and leave it alone if it holds the text already."""
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    draft = path.with_name(f".{path.name}.draft")
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
