"""The road from a notebook to its modules: cut by nbdev, compared with what ran, written once."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jupytext
import torch
from nbdev.export import nb_export
from nbdev.maker import ModuleMaker
from torch import Tensor, nn

from attn_course.course import kernel

ROOT = Path(__file__).resolve().parents[2]
CELL_ID = re.compile(r"^(# %% .*) #\w+$", re.MULTILINE)  # new when a notebook is made from its twin
IMPORT = ast.Import | ast.ImportFrom
DRAFT = "ATTN_COURSE_DRAFT"  # where `make notebooks` keeps the notebook that it is running


class ExportError(RuntimeError):
    """The notebook cannot become a module as it stands."""


def export(notebook: str, cls: type[nn.Module], *inputs: Tensor, **options: Any) -> None:
    """Write a notebook's exported cells to `attn_course/`, once they are shown to be what ran.

    The module is loaded from a temporary file first. It takes the package's place only if it
    holds what this kernel ran, and if the class in it, given the weights of the notebook's class,
    returns the same outputs bit for bit in training and in evaluation mode. Under pytest nothing
    is written: the module must be there. A copy of a notebook, elsewhere, leaves the module alone.

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
    name = next(iter(sources))  # of the module with the class
    with tempfile.TemporaryDirectory() as folder:
        candidate = Path(folder, f"{name}.py")
        candidate.write_text(sources[name], encoding="utf-8")
        exported = getattr(load_module(candidate, f"attn_course.{name}"), cls.__name__)
        assert_same_outputs(cls(**options), exported(**options), inputs)
    package = path.parents[1] / "attn_course"
    if path.parent.name != "notebooks" or not package.is_dir():
        print(f"this notebook is a copy: its {cls.__name__} would export, and nothing was written")
        return
    if not draft and "PYTEST_VERSION" in os.environ:
        check_modules(package, sources, notebook)
    elif not draft:
        write_modules(package, sources)
    print(f"attn_course/{name}.py holds this notebook's {cls.__name__}: equal outputs")


def check_modules(package: Path, sources: Mapping[str, str], notebook: str) -> None:
    """The modules in the package are, byte for byte, what the notebook exports."""
    for name, source in sources.items():
        module = package / f"{name}.py"
        if not module.exists() or module.read_text(encoding="utf-8") != source:
            raise ExportError(
                f"attn_course/{module.name} is not what {notebook} exports; "
                "edit the notebook, never the module, and run `make notebooks`"
            )


def write_modules(package: Path, sources: Mapping[str, str]) -> None:
    """Write the modules of a notebook, by name, where they have changed."""
    for name, source in sources.items():
        write_if_changed(package / f"{name}.py", source)


def module_sources(notebook: Path) -> dict[str, str]:
    """Cut the exported cells of a saved notebook into modules: the formatted text of each, by name.

    The first is that of `#| default_exp`, with the cells marked `#| export`. Cells marked
    `#| export name` make another module. What that uses of the first, it imports from there: in
    the notebook all are one, and such an import would bring the module as it was before.
    """
    with tempfile.TemporaryDirectory() as folder:
        # The module names its notebook by a relative path: keep the layout of the project.
        copy = Path(folder, "notebooks", notebook.name)
        package = Path(folder, "attn_course")
        copy.parent.mkdir()
        package.mkdir()
        shutil.copy(notebook, copy)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nbdev warns where we raise, below
            nb_export(str(copy), lib_path=str(package), mod_maker=new_module)
        texts = {path.stem: path.read_text(encoding="utf-8") for path in package.glob("*.py")}
    cells = [cell.source for cell in jupytext.read(notebook).cells if cell.cell_type == "code"]
    first = "".join(re.findall(r"(?m)^#\| *default_exp +(\w+)", "\n".join(cells)))
    if first not in texts:
        raise ExportError(
            f"{notebook.name} exports nothing: one cell needs `#| default_exp name`, "
            "and the cells of the module need `#| export`"
        )
    for name in texts.keys() - {first}:
        texts[name] = with_docstring(with_imports(texts[name], first, texts[first]))
    return {name: formatted(texts[name]) for name in sorted(texts, key=lambda n: (n != first, n))}


def new_module(**options: Any) -> ModuleMaker:
    """nbdev's maker of modules, which makes a second one, too, even where there is none yet."""
    return ModuleMaker(**options | {"is_new": True})


def with_imports(text: str, first: str, first_text: str) -> str:
    """Let a module import what it uses of what the notebook's first module defines."""
    used = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
    names = (used & set(defined_names(first_text))) - set(top_level_names(text))
    if not names:
        return text
    in_order = sorted(names, key=lambda n: (not n.isupper(), not n[0].isupper(), n))  # as ruff's
    lines = text.splitlines()
    last = max(node.end_lineno or 0 for node in ast.parse(text).body if isinstance(node, IMPORT))
    lines.insert(last, f"from attn_course.{first} import {', '.join(in_order)}")
    return "\n".join(lines)


def with_docstring(text: str) -> str:
    """Bring the string that a module's first cell begins with to the top, as a docstring."""
    lines = text.splitlines()
    for node in ast.parse(text).body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            start, end = node.lineno - 1, node.end_lineno
            return "\n".join([*lines[start:end], "", *lines[:start], *lines[end:]])
    return text


def formatted(text: str) -> str:
    """What nbdev cut out, as the package has it."""
    text = CELL_ID.sub(r"\1", text)
    # nbdev makes imports from the package relative where they take one line; so do we the rest
    return format_source(re.sub(r"(?m)^from attn_course\.", "from .", text))


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
        if isinstance(statement, IMPORT):
            names += [alias.asname or alias.name for alias in statement.names]
        elif isinstance(statement, ast.FunctionDef | ast.ClassDef):
            names.append(statement.name)
        else:
            stored = (node for node in ast.walk(statement) if isinstance(node, ast.Name))
            names += [node.id for node in stored if isinstance(node.ctx, ast.Store)]
    return names


def defined_names(source: str) -> list[str]:
    """Names that a piece of Python binds at its top level, other than by import."""
    body = [node for node in ast.parse(source).body if not isinstance(node, IMPORT)]
    return top_level_names(ast.unparse(ast.Module(body, [])))


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
