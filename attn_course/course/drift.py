"""Guards: twin, notebook and module say the same, and every chapter has every part.

Each check raises Drift with a message that says what to run.
"""

import ast
from pathlib import Path

import jupytext
from nbformat import NotebookNode

from attn_course.course import provenance
from attn_course.course.export import (
    ExportError,
    check_module,
    module_sources,
    top_level_names,
)
from attn_course.course.provenance import without_magics
from attn_course.course.twins import TwinsDisagree, as_twin, check_no_conflict, twin_of

# The H2 headings of a chapter, in this order.
SECTIONS = (
    "The problem",
    "Data flow",
    "Theory",
    "Step by step",
    "The module",
    "Does it match?",
    "What goes wrong in copies",
    "Paper and released code",
    "What it looks at",
    "What it costs",
    "Summary",
    "Exercises",
    "References",
    "Export",
)
SECTIONS_WITH_FIGURE = ("The problem", "What it looks at", "What it costs")
CARD = ("arxiv.org/abs/", "**Authors**", "**Before you start**", "**Reading time**")
MIN_EXERCISES = 4


class Drift(Exception):
    """Two things that must agree do not, or a part of a chapter is missing."""


def check_twin(notebook: Path) -> None:
    """The text twin is, word for word, what jupytext makes of the notebook."""
    twin = twin_of(notebook)
    if not twin.exists():
        raise Drift(f"{notebook.name} has no twin {twin.name}; run `make notebooks`")
    try:
        check_no_conflict(twin)
        check_no_conflict(notebook)
    except TwinsDisagree as conflict:
        raise Drift(str(conflict)) from None
    from_twin = [(cell.cell_type, cell.source) for cell in jupytext.read(twin).cells]
    content = jupytext.read(notebook)
    from_notebook = [(cell.cell_type, cell.source) for cell in content.cells]
    if from_twin != from_notebook or twin.read_text(encoding="utf-8") != as_twin(content):
        raise Drift(
            f"text/{twin.name} and {notebook.name} differ; run `make notebooks`: "
            "it takes over the edits of both"
        )


def check_export(notebook: Path) -> None:
    """Each module in the package is, byte for byte, what the notebook exports."""
    if not is_chapter(notebook):
        return
    package = notebook.parents[1] / "attn_course"
    try:
        for name, source in module_sources(notebook).items():
            check_module(package / f"{name}.py", source, notebook.name)
    except ExportError as difference:
        raise Drift(str(difference)) from None


def check_modules_have_notebooks(package: Path, notebooks: Path) -> None:
    """Every module of the package is exported, apart from those that start with an underscore."""
    chapters = filter(is_chapter, notebooks.glob("*.ipynb"))
    exported = {name for path in chapters for name in module_sources(path)}
    for module in sorted(package.glob("[!_]*.py")):
        if module.stem not in exported:
            raise Drift(
                f"attn_course/{module.name} comes from no notebook; what is written by hand "
                "belongs in attn_course/course/, or starts with an underscore"
            )


def check_executed(notebook: Path) -> None:
    """What the notebook stores is what its code printed and drew."""
    check_outputs(notebook.name, jupytext.read(notebook), notebook.parents[1])


def check_outputs(name: str, content: NotebookNode, root: Path) -> None:
    """Every code cell ran as it stands, once, in order, without a warning or unexpected error.

    And nothing that they import from the package has changed since.
    """
    code = [cell for cell in content.cells if cell.cell_type == "code"]
    ran = provenance.code_of(provenance.recorded_cells(content))
    count = 0
    for index, cell in enumerate(code):
        if not cell.source:
            continue
        count += 1
        where = f"{name}, code cell {count} (`{cell.source.splitlines()[0]}`)"
        if cell.execution_count != count:
            raise Drift(f"{where} was not executed in order; run `make notebooks`")
        if ran[index : index + 1] != [provenance.digest(cell.source)]:
            raise Drift(
                f"{where} has changed since `make notebooks` stored its output; run it again. "
                "To keep answers to exercises, work in a copy: `make copy`"
            )
        kinds = {output.output_type for output in cell.outputs}
        if "error" in kinds and "raises-exception" not in cell.metadata.get("tags", []):
            raise Drift(f"{where} stores an error; repair the cell and run `make notebooks`")
        if any(output.get("name") == "stderr" for output in cell.outputs):
            raise Drift(f"{where} stores a warning; repair the cell and run `make notebooks`")
    if len(ran) > len(code):
        raise Drift(f"{name} lost a code cell since its outputs were stored; run `make notebooks`")
    now, before = provenance.imports(content, root), provenance.recorded_imports(content)
    if changed := sorted(path for path in now | before if now.get(path) != before.get(path)):
        raise Drift(
            f"{name} imports {', '.join(changed)}, changed since its outputs were stored; "
            "run `make notebooks`"
        )


def check_anatomy(notebook: Path) -> None:
    """A chapter opens with its paper card, and has every section, in order, with its pictures."""
    if not is_chapter(notebook):
        return
    opening, *sections = split_sections(notebook)
    if not opening[0].source.startswith("# ") or "\n> " not in opening[0].source:
        raise Drift(f"{notebook.name} must open with `# Title` and a line `> one sentence`")
    card = "\n".join(cell.source for cell in opening)
    for part in CARD:
        if part not in card:
            raise Drift(f"{notebook.name}: the paper card lacks {part}; see the template")
    titles = tuple(title(section) for section in sections)
    if titles != SECTIONS:
        missing = [name for name in SECTIONS if name not in titles]
        raise Drift(
            f"{notebook.name}: missing sections {missing}, found {list(titles)}; "
            f"write `## {missing[0]}`"
            if missing
            else f"{notebook.name}: sections {list(titles)} are not in the order {list(SECTIONS)}"
        )
    by_title = dict(zip(titles, sections, strict=True))
    if "```mermaid" not in "".join(cell.source for cell in by_title["Data flow"]):
        raise Drift(f"{notebook.name}: `## Data flow` needs a ```mermaid diagram")
    for name in SECTIONS_WITH_FIGURE:
        if not any(has_figure(cell) for cell in by_title[name]):
            raise Drift(f"{notebook.name}: `## {name}` needs a figure that a cell draws")
    check_exercises(notebook.name, by_title["Exercises"])
    check_self_tests(notebook.name, sum(sections, start=opening))
    if "export(" not in by_title["Export"][-1].source:
        raise Drift(f"{notebook.name}: the last cell must call `export(...)`")


def check_exercises(name: str, cells: list[NotebookNode]) -> None:
    """Each exercise has a folded self-test, an open cell to answer in, and a folded solution."""
    starts = [index for index, cell in enumerate(cells) if cell.source.startswith("### Exercise")]
    if len(starts) < MIN_EXERCISES:
        raise Drift(f"{name}: {len(starts)} exercises; write at least {MIN_EXERCISES}")
    for start, end in zip(starts, [*starts[1:], len(cells)], strict=True):
        exercise = cells[start:end]
        for part, folded in (("self-test", True), ("attempt", False), ("solution", True)):
            if not any(is_part(cell, part, folded) for cell in exercise):
                kind = "a folded" if folded else "an open"
                raise Drift(
                    f"{name}: `{exercise[0].source.splitlines()[0]}` lacks {kind} {part} cell; "
                    "see the template for its tag and metadata"
                )


def check_self_tests(name: str, cells: list[NotebookNode]) -> None:
    """No self-test needs a name that only a solution defines: a reader has not unfolded it yet."""
    code = [cell for cell in cells if cell.cell_type == "code"]
    solutions = [cell for cell in code if is_part(cell, "solution", folded=True)]
    secret = {top for cell in solutions for top in top_level_names(without_magics(cell.source))}
    known: set[str] = set()
    for cell in (cell for cell in code if cell not in solutions):
        source = without_magics(cell.source)
        known.update(top_level_names(source))
        if not is_part(cell, "self-test", folded=True):
            continue
        nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)]
        own = {node.id for node in nodes if isinstance(node.ctx, ast.Store)}
        if leaked := sorted({node.id for node in nodes} & secret - known - own):
            raise Drift(
                f"{name}: `{source.splitlines()[0]}` needs {', '.join(leaked)}, which only a "
                "solution defines; define it in the self-test"
            )


def is_part(cell: NotebookNode, part: str, folded: bool) -> bool:
    """Is this cell the given part of an exercise, and folded as it should be?"""
    hidden = cell.metadata.get("jupyter", {}).get("source_hidden", False)
    marked = part in cell.metadata.get("tags", []) if folded else f"{part}(" in cell.source
    return cell.cell_type == "code" and hidden == folded and marked


def is_chapter(notebook: Path) -> bool:
    """A chapter exports a module; 00_start_here does not."""
    return not notebook.name.startswith("00_")


def split_sections(notebook: Path) -> list[list[NotebookNode]]:
    """The cells before the first H2 heading, then those of each H2 section."""
    sections: list[list[NotebookNode]] = [[]]
    for cell in jupytext.read(notebook).cells:
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            sections.append([])
        sections[-1].append(cell)
    return sections


def title(section: list[NotebookNode]) -> str:
    """The text of the section's H2 heading."""
    return str(section[0].source.splitlines()[0].removeprefix("## ").strip())


def has_figure(cell: NotebookNode) -> bool:
    """Does the cell store a picture?"""
    return any("image/png" in output.get("data", {}) for output in cell.get("outputs", []))
