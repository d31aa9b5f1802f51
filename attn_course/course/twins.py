"""A notebook and its text twin: the same cells, and no edit of either is lost.

What the two last agreed on stands in the notebook's metadata (see provenance). A cell that differs
from it was edited, on whichever side; file times say nothing after a clone or a merge.
"""

import re
from copy import deepcopy
from difflib import SequenceMatcher
from itertools import pairwise
from pathlib import Path

import jupytext
from jupytext.combine import combine_inputs_with_outputs
from nbformat import NotebookNode

from attn_course.course.provenance import fingerprint, recorded_cells, text_cells

CONFLICT_MARKER = re.compile(r"^[ \"]*(<{7}|>{7}) ", re.MULTILINE)  # a notebook indents and quotes

Edit = tuple[int, int, tuple[str, ...]]  # the cells from start to end give way to these


class TwinsDisagree(RuntimeError):
    """Notebook and twin cannot be brought together without losing an edit."""


def twin_of(notebook: Path) -> Path:
    """Where the text twin of a notebook is."""
    return notebook.parent / "text" / f"{notebook.stem}.md"


def as_twin(content: NotebookNode) -> str:
    """The text that belongs to a notebook."""
    return str(jupytext.writes(content, fmt="md:myst"))


def as_notebook(content: NotebookNode) -> str:
    """The text of a notebook's file."""
    return str(jupytext.writes(content, fmt="ipynb"))


def read_both(notebook: Path) -> NotebookNode:
    """Read a notebook and its twin as one: the edits of both, the outputs of the notebook.

    Raises:
        TwinsDisagree: Both were edited in the same place, or git left a conflict in one.
    """
    twin = twin_of(notebook)
    for path in (notebook, twin):
        check_no_conflict(path)
    stored: NotebookNode = (
        jupytext.read(notebook) if notebook.exists() else jupytext.reads("", fmt="md:myst")
    )
    if not twin.exists():
        return stored
    text = jupytext.read(twin)
    if notebook.exists():
        text.cells = merged_cells(notebook, stored, text)
    together: NotebookNode = combine_inputs_with_outputs(text, stored, fmt="md:myst")
    return together


def check_no_conflict(path: Path) -> None:
    """Git has left no conflict in a file, if there is one."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if marker := CONFLICT_MARKER.search(text):
        line = text[: marker.start(1)].count("\n") + 1
        raise TwinsDisagree(
            f"{path.name}, line {line}, holds a conflict of git (`{marker[1]}`): "
            "decide it, delete the markers, and run `make notebooks`"
        )


def merged_cells(notebook: Path, stored: NotebookNode, text: NotebookNode) -> list[NotebookNode]:
    """The cells of a chapter with the edits made in its notebook and those made in its twin."""
    ours, theirs = text_cells(stored), text.cells
    cells = {fingerprint(cell): cell for cell in (*ours, *theirs)}
    both = ([fingerprint(cell) for cell in side] for side in (ours, theirs))
    try:
        return [deepcopy(cells[line]) for line in merge(recorded_cells(stored), *both)]
    except EditedTwice as conflict:
        first_lines = [cells[line].source.partition("\n")[0] for line in conflict.args]
        places = ", ".join(f"`{line}`" for line in dict.fromkeys(first_lines))
        raise TwinsDisagree(
            f"{notebook.name} and text/{notebook.stem}.md were both edited in one place since they "
            f"last agreed: {places}. Let them say the same there, or delete the one that may go, "
            "and run `make notebooks`"
        ) from None


class EditedTwice(Exception):
    """Two edits meet; its arguments are the cells that they leave."""


def merge(base: list[str], one: list[str], other: list[str]) -> list[str]:
    """Apply to `base` what leads from it to `one` and what leads from it to `other`."""
    if one == other:
        return one
    changes = sorted({*edits(base, one), *edits(base, other)})
    for (start, end, cells), (next_start, _, next_cells) in pairwise(changes):
        if next_start < end or next_start == start:
            raise EditedTwice(*dict.fromkeys(cells + next_cells))
    merged = list(base)
    for start, end, cells in reversed(changes):
        merged[start:end] = cells
    return merged


def edits(base: list[str], edited: list[str]) -> list[Edit]:
    """The smallest pieces of `base` that were replaced, and what stands in their place."""
    matcher = SequenceMatcher(None, base, edited, autojunk=False)
    return [
        (start, end, tuple(edited[new_start:new_end]))
        for kind, start, end, new_start, new_end in matcher.get_opcodes()
        if kind != "equal"
    ]
