"""Guards: twin, notebook and module say the same. (What a chapter consists of: see anatomy.)

Each check raises Drift with a message that says what to run.
"""

from pathlib import Path

import jupytext
from nbformat import NotebookNode

from attn_course.course import provenance
from attn_course.course.export import (
    ExportError,
    check_modules,
    module_sources,
)
from attn_course.course.twins import TwinsDisagree, as_twin, check_no_conflict, twin_of


class Drift(Exception):
    """Two things that must agree do not, or a chapter has another form than it should."""


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
    """The modules in the package are, byte for byte, what the notebook exports."""
    if not is_chapter(notebook):
        return
    sources = module_sources(notebook)
    try:
        check_modules(notebook.parents[1] / "attn_course", sources, notebook.name)
    except ExportError as difference:
        raise Drift(str(difference)) from None


def check_modules_have_notebooks(package: Path, notebooks: Path) -> None:
    """Every module of the package is exported, apart from those that start with an underscore."""
    chapters = [path for path in notebooks.glob("*.ipynb") if is_chapter(path)]
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


def is_chapter(notebook: Path) -> bool:
    """A chapter exports a module; 00_start_here does not."""
    return not notebook.name.startswith("00_")
