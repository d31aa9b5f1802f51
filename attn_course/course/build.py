"""`make notebooks`: bring twins, notebooks and modules together, and run what has changed.

A chapter runs if one of its code cells, or a file of the package that it imports, is not what its
outputs were computed from; `make notebooks NAME=03_cbam` runs that chapter in any case. Nothing of
a chapter is written before all of it has run.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import jupytext
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat import NotebookNode

from attn_course.course import provenance
from attn_course.course.anatomy import fold
from attn_course.course.drift import Drift, check_export, check_outputs, is_chapter
from attn_course.course.export import (
    DRAFT,
    ExportError,
    module_sources,
    write_if_changed,
    write_modules,
)
from attn_course.course.outputs import keep_little, look_alike
from attn_course.course.twins import TwinsDisagree, as_notebook, as_twin, read_both, twin_of


class BuildError(RuntimeError):
    """A chapter cannot be built; the message says what to do."""


def build(root: Path, only: str = "") -> None:
    """Build the chapters of a project, or the one that is named.

    Args:
        root: The folder that holds `notebooks/` and `attn_course/`.
        only: Name of a chapter, as in `03_cbam`; it runs even if nothing has changed.

    Raises:
        BuildError: There is no such chapter, or a cell of one fails.
        TwinsDisagree: A notebook and its twin cannot be brought together.
        OSError: Something cannot be written.
    """
    folder = root / "notebooks"
    names = {path.stem for path in (*folder.glob("*.ipynb"), *folder.glob("text/*.md"))}
    if only and only not in names:
        raise BuildError(f"NAME={only} is no chapter; give one of {', '.join(sorted(names))}")
    for place in (folder, folder / "text", root / "attn_course"):
        if not os.access(place, os.W_OK):
            raise BuildError(f"{place} cannot be written to: nothing was done")
    # All of them are read before the first runs, so that a slip in the last one shows at once.
    wanted = {name: read_formatted(folder / f"{name}.ipynb") for name in [only or n for n in names]}
    # First those that write another module, since others import it; 00 makes none.
    first = {n for n in wanted if edited(wanted[n]) or not exported(folder / f"{n}.ipynb")}
    for name in sorted(wanted, key=lambda n: (n not in first, n.startswith("00_"), n)):
        build_chapter(folder / f"{name}.ipynb", always=bool(only))


def build_chapter(notebook: Path, always: bool) -> None:
    """Run a chapter if it must be, then write its modules, its twin and the notebook."""
    root = notebook.parents[1]
    content = read_formatted(notebook)
    read = provenance.fingerprints(content)
    reason = "named" if always else why_run(notebook.name, content, root)
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder, notebook.name)
        draft.write_text(as_notebook(content), encoding="utf-8")
        if reason:
            print(f"{notebook.stem}: running, since {reason}", flush=True)
            start = time.monotonic()
            stored = deepcopy(content)
            run(content, notebook, draft)
            for cell in code_cells(content):
                keep_little(cell)
            keep_settled(content, stored)
            print(f"{notebook.stem}: {time.monotonic() - start:.0f} s", flush=True)
        if provenance.fingerprints(read_formatted(notebook)) != read:
            raise BuildError(
                f"{notebook.stem} was edited while it was built and stays as it is; "
                "run `make notebooks` again"
            )
        if is_chapter(notebook):
            write_modules(root / "attn_course", module_sources(draft))
    provenance.record(content, root)
    write_if_changed(twin_of(notebook), as_twin(content))
    write_if_changed(notebook, as_notebook(content))


def read_formatted(notebook: Path) -> NotebookNode:
    """Read notebook and twin as one: code formatted as `make lint` wants it, workshop folded."""
    content = read_both(notebook)
    bare = deepcopy(content)
    for cell in bare.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    command = [sys.executable, "-m", "ruff", "format", "--stdin-filename", notebook.name, "-"]
    command += ["--config", str(notebook.parents[1] / "pyproject.toml")]
    done = subprocess.run(command, input=as_notebook(bare), capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"{notebook.name} is no valid Python; nothing was run. {done.stderr}")
    formatted = jupytext.reads(done.stdout, fmt="ipynb").cells
    for cell, other in zip(content.cells, formatted, strict=True):
        cell.source = other.source
    fold(content)
    return content


def edited(content: NotebookNode) -> bool:
    """Is the code another than the one that its outputs were computed from?"""
    ran = provenance.code_of(provenance.recorded_cells(content))
    return ran != provenance.code_of(provenance.fingerprints(content))


def exported(notebook: Path) -> bool:
    """Is the module in the package, if the stored notebook has one, what it exports?"""
    try:
        check_export(notebook)
    except (Drift, FileNotFoundError):
        return False
    return True


def why_run(name: str, content: NotebookNode, root: Path) -> str:
    """Why the outputs cannot stay, or nothing if they can."""
    if not provenance.recorded_cells(content):
        return "it is new"
    try:
        check_outputs(name, content, root)
    except Drift as reason:
        return str(reason).partition("; ")[0]
    return ""


def run(content: NotebookNode, notebook: Path, draft: Path) -> None:
    """Execute all cells in the notebook's folder; `export` looks at the draft."""
    client = NotebookClient(
        content,
        timeout=None,
        record_timing=False,
        coalesce_streams=True,
        kernel_name="python3",
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(notebook.parent)}},
    )
    about_python = content.metadata.get("language_info")
    try:
        client.execute(env=os.environ | {DRAFT: str(draft)})
    except (CellExecutionError, DeadKernelError) as error:
        raise BuildError(f"{error}\n{notebook.name} stays as it was") from None
    if about_python:  # names the Python that ran: no reason for another file
        content.metadata.language_info = about_python


def keep_settled(content: NotebookNode, stored: NotebookNode) -> None:
    """Put a stored output back where the new one shows the same.

    That is where no reader sees a difference, and, in a cell tagged as one whose output differs
    each time, where no code down to it has changed.
    """
    ran = provenance.code_of(provenance.recorded_cells(content))
    now = provenance.code_of(provenance.fingerprints(content))
    pairs = zip(code_cells(content), code_cells(stored), strict=True)
    for count, (new, old) in enumerate(pairs, start=1):
        varies = "nbval-ignore-output" in new.metadata.get("tags", [])
        if (varies and old.outputs and ran[:count] == now[:count]) or look_alike(old, new):
            new.outputs = old.outputs
        for output in new.outputs:
            if "execution_count" in output:  # cells above may have come or gone
                output.execution_count = new.execution_count


def code_cells(content: NotebookNode) -> list[NotebookNode]:
    """The code cells of a notebook, in order."""
    return [cell for cell in content.cells if cell.cell_type == "code"]


def main(arguments: Sequence[str]) -> None:
    """Build what the command line names, or all; every complaint is one message."""
    try:
        build(Path.cwd(), *arguments)
    except (BuildError, ExportError, TwinsDisagree, OSError) as error:
        sys.exit(f"make notebooks: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
