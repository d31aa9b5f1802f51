"""What a notebook's outputs were computed from, kept in the notebook's own metadata.

`make notebooks` records a fingerprint of every cell and of every file of the package that the
code imports. So a later look can tell an output that has gone stale, and an edit of the notebook
from one of its twin, without asking the clock.
"""

import ast
import json
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

import jupytext
from nbformat import NotebookNode

KEY = "attn_course"
FOLD = "jp-MarkdownHeadingCollapsed"  # how JupyterLab stores that a heading is folded


def record(content: NotebookNode, root: Path) -> None:
    """Store what the outputs of a notebook that has just run were computed from."""
    content.metadata[KEY] = {"cells": fingerprints(content), "imports": imports(content, root)}


def recorded_cells(content: NotebookNode) -> list[str]:
    """The fingerprints of all cells when they were recorded; none if they never were."""
    return list(content.metadata.get(KEY, {}).get("cells", []))


def recorded_imports(content: NotebookNode) -> dict[str, str]:
    """The digests of the imported files when they were recorded."""
    return dict(content.metadata.get(KEY, {}).get("imports", {}))


def fingerprints(content: NotebookNode) -> list[str]:
    """Kind and digest of each cell's source; where it has tags or the like, of these as well."""
    return [fingerprint(cell) for cell in text_cells(content)]


def fingerprint(cell: NotebookNode) -> str:
    """The fingerprint of one cell, as the text twin has it; to unfold a heading is no edit."""
    metadata = {key: value for key, value in cell.metadata.items() if key != FOLD}
    marks = [digest(json.dumps(metadata, sort_keys=True))] if metadata else []
    return " ".join([cell.cell_type, digest(cell.source), *marks])


def text_cells(content: NotebookNode) -> list[NotebookNode]:
    """The cells as the text twin has them: no outputs, no traces of an editor."""
    return list(jupytext.reads(jupytext.writes(content, fmt="md:myst"), fmt="md:myst").cells)


def code_of(fingerprints: Iterable[str]) -> list[str]:
    """The sources' part of the fingerprints of the code cells."""
    return [line.split()[1] for line in fingerprints if line.startswith("code ")]


def digest(text: str) -> str:
    """A short name for a text, which another text will not share."""
    return sha256(text.encode()).hexdigest()[:12]


# What a file of the package reads counts as much as its code.
READS = {"attn_course/course/speed.py": "benchmarks/results.json"}


def imports(content: NotebookNode, root: Path) -> dict[str, str]:
    """Map each file of the package that the code imports, however indirectly, to its digest."""
    sources = [cell.source for cell in content.cells if cell.cell_type == "code"]
    found: set[Path] = set()
    new = imported_files("\n".join(map(without_magics, sources)), root)
    while new:
        found |= new
        new = {
            path
            for file in new
            for path in imported_files(
                file.read_text(encoding="utf-8"), root, package_of(file, root)
            )
            if path not in found
        }
    files = {root / READS.get(path.relative_to(root).as_posix(), path) for path in found}
    found |= {path for path in files if path.exists()}
    return {
        path.relative_to(root).as_posix(): digest(path.read_text(encoding="utf-8"))
        for path in sorted(found)
    }


def without_magics(source: str) -> str:
    """The Python of a cell."""
    return "\n".join(line for line in source.splitlines() if not line.startswith(("%", "!")))


def package_of(file: Path, root: Path) -> str:
    """The dotted name of the folder that a module is in."""
    return ".".join(file.relative_to(root).parent.parts)


def imported_files(source: str, root: Path, package: str = "") -> set[Path]:
    """Files of the package that a piece of Python imports itself; a dot stands for `package`."""
    files = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            files += [file_of(*alias.name.rpartition(".")[::2], root) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = absolute(node, package)
            files += [file_of(module, alias.name, root) for alias in node.names]
    return {file for file in files if file is not None}


def absolute(node: ast.ImportFrom, package: str) -> str:
    """The module that `from .module import` or `from module import` names."""
    return ".".join(part for part in (package if node.level else "", node.module) if part)


def file_of(module: str, name: str, root: Path) -> Path | None:
    """The file of the package that defines what `from module import name` brings, if any does."""
    if module.split(".")[0] != KEY:
        return None
    folder = root.joinpath(*module.split("."))
    if not folder.is_dir():
        file = folder.with_suffix(".py")
    elif (folder / name).is_dir():
        file = folder / name / "__init__.py"
    elif (folder / f"{name}.py").exists():
        file = folder / f"{name}.py"
    else:  # the package hands on what one of its modules defines
        for node in ast.parse((folder / "__init__.py").read_text(encoding="utf-8")).body:
            names = [alias.name for alias in getattr(node, "names", [])]
            if isinstance(node, ast.ImportFrom) and name in names:
                return file_of(absolute(node, module), name, root)
        file = folder / "__init__.py"
    return file if file.exists() else None
