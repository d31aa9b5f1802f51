"""What a chapter consists of: a spine to read, exercises, and a workshop to open.

The spine is all that stands above `## Exercises`: it is read from top to bottom in one sitting. The
workshop is all that follows the exercises, for those who check, port or extend: `make notebooks`
folds its headings away. `python -m attn_course.course.anatomy` prints what each chapter asks of its
reader, not counting exercises and workshop:

- words: whatever stands between spaces in Markdown, so that tables and formulas count as they are
  written. A diagram's source does not.
- lines of code: those that are not empty. None of a cell whose source is folded away, and none of
  a docstring: its words are read as words are.
- figures: pictures that a cell has drawn, and diagrams.

Each check raises Drift with a message that says what to do.
"""

import ast
import builtins
import re
import sys
from collections.abc import Iterable, Sequence
from itertools import pairwise, takewhile
from pathlib import Path
from symtable import SymbolTable, symtable
from typing import NamedTuple

import jupytext
from nbformat import NotebookNode

from attn_course.course.drift import Drift, is_chapter
from attn_course.course.export import top_level_names
from attn_course.course.outputs import pictures
from attn_course.course.provenance import FOLD, without_magics

# Where these sections stand if a chapter has them. Only the summary and the export are demanded.
IN_SPINE = (
    "The problem",
    "Theory",
    "Step by step",
    "The module",
    "What it looks at",
    "What it costs",
    "Summary",
)
IN_WORKSHOP = (
    "Does it match?",
    "What goes wrong in copies",
    "Paper and released code",
    "References",
    "Export",
)
CARD = ("**Before you start**", "**Reading time**")
PAPER = ("arxiv.org/abs/", "**Authors**")  # on the card of a chapter about a paper
MIN_EXERCISES = 4
BUDGET = {"words": 2800, "code cells": 45, "cells": 90, "minutes": 45, "exercises": 5}
WORDS_A_MINUTE = 200
LINES_A_MINUTE = 12
FIGURES_A_MINUTE = 2


class Parts(NamedTuple):
    """The cells of a chapter, part by part."""

    spine: list[NotebookNode]
    exercises: list[NotebookNode]
    workshop: list[NotebookNode]


def read_parts(notebook: Path) -> Parts:
    """Take a chapter apart at its exercises."""
    cells = jupytext.read(notebook).cells
    starts = [index for index, cell in enumerate(cells) if title(cell)] + [len(cells)]
    for start, end in pairwise(starts):
        if title(cells[start]) == "Exercises":
            return Parts(cells[:start], cells[start:end], cells[end:])
    raise Drift(f"{notebook.name} lacks a section: write `## Exercises`")


def title(cell: NotebookNode) -> str:
    """The text of a section's H2 heading; empty for any other cell."""
    found = re.match(r"## +(.*)", cell.source) if cell.cell_type == "markdown" else None
    return found[1].strip() if found else ""


def titles(cells: Iterable[NotebookNode]) -> list[str]:
    """The headings of the sections."""
    return list(filter(None, map(title, cells)))


def fold(content: NotebookNode) -> None:
    """Fold the headings of the workshop and no others, whatever a reader has left open."""
    in_workshop = False
    for cell in content.cells:
        cell.metadata.pop(FOLD, None)
        if title(cell) and in_workshop:
            cell.metadata[FOLD] = True
        in_workshop = in_workshop or title(cell) == "Exercises"


# -- What a reader reads ------------------------------------------------------------------------


class Reading(NamedTuple):
    """What some cells ask of their reader."""

    cells: int
    code_cells: int
    words: int
    docstring_words: int
    code_lines: int
    figures: int

    @property
    def minutes(self) -> int:
        """The time that it takes to read them."""
        words = (self.words + self.docstring_words) / WORDS_A_MINUTE
        return round(words + self.code_lines / LINES_A_MINUTE + self.figures / FIGURES_A_MINUTE)


def measure(cells: Sequence[NotebookNode]) -> Reading:
    """Count what there is to read."""
    markdown = [cell.source for cell in cells if cell.cell_type == "markdown"]
    code = [cell for cell in cells if cell.cell_type == "code"]
    shown = [without_magics(cell.source) for cell in code if not source_hidden(cell)]
    documented = [text for source in shown for text in docstrings(source)]
    return Reading(
        cells=len(cells),
        code_cells=len(code),
        words=sum(len(without_fences(text).split()) for text in markdown),
        docstring_words=sum(len(text.split()) for text in documented),
        code_lines=sum(map(count_lines, shown)) - sum(map(count_lines, documented)),
        figures=sum(len(pictures(cell)) for cell in code) + sum(map(count_diagrams, markdown)),
    )


def source_hidden(cell: NotebookNode) -> bool:
    """Is the source of a code cell folded away?"""
    return bool(cell.metadata.get("jupyter", {}).get("source_hidden", False))


def without_fences(markdown: str) -> str:
    """The text without what is fenced."""
    return re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL)


def count_lines(text: str) -> int:
    """How many lines are not empty."""
    return sum(bool(line.strip()) for line in text.splitlines())


def docstrings(source: str) -> list[str]:
    """The docstrings in a piece of Python."""
    documented = (ast.FunctionDef, ast.ClassDef)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, documented)]
    return [text for node in nodes if (text := ast.get_docstring(node))]


def count_diagrams(markdown: str) -> int:
    """How many diagrams and pictures a text has."""
    return markdown.count("```mermaid") + markdown.count("![")


# -- Checks -------------------------------------------------------------------------------------


def check_opening(notebook: Path) -> None:
    """A chapter opens with its title, its sentence, its question and its card."""
    opening = takewhile(lambda cell: not title(cell), jupytext.read(notebook).cells)
    text = "\n".join(cell.source for cell in opening)
    if not text.startswith("# ") or "\n> " not in text:
        raise Drift(f"{notebook.name} must open with `# Title` and a line `> one sentence`")
    if not re.search(r"\*\*.+\?\*\*", text):
        raise Drift(f"{notebook.name} must open with its question, **in bold?**")
    for part in CARD + PAPER * ("**Paper**" in text):
        if part not in text:
            raise Drift(f"{notebook.name}: the paper card lacks {part}; see the template")


def check_order(notebook: Path) -> None:
    """The spine ends in its summary, then come the exercises and the workshop; it ends in Export.

    Each section begins a cell. In the workshop its heading has a cell of its own: the rest of the
    cell would not be folded away.
    """
    spine, _, workshop = read_parts(notebook)
    for cell in jupytext.read(notebook).cells:
        if cell.cell_type == "markdown" and "\n## " in without_fences(cell.source):
            heading = without_fences(cell.source).partition("\n## ")[2].partition("\n")[0]
            raise Drift(
                f"{notebook.name}: `## {heading}` must begin a cell; in the twin, write `+++`"
            )
    if "Summary" not in titles(spine):
        raise Drift(f"{notebook.name}: write `## Summary` above the exercises")
    if misplaced := [name for name in titles(spine) if name in IN_WORKSHOP]:
        raise Drift(f"{notebook.name}: `## {misplaced[0]}` belongs below the exercises")
    if misplaced := [name for name in titles(workshop) if name in IN_SPINE]:
        raise Drift(f"{notebook.name}: `## {misplaced[0]}` belongs above the exercises")
    exports = titles(workshop)[-1:] == ["Export"] and "export(" in workshop[-1].source
    if is_chapter(notebook) and not exports:
        raise Drift(f"{notebook.name} must end in `## Export`, and that in a call of `export`")
    for cell in workshop:
        if title(cell) and "\n" in cell.source.strip():
            raise Drift(f"{notebook.name}: `## {title(cell)}` needs a cell of its own")


def check_folds(notebook: Path) -> None:
    """The headings of the workshop are folded, and no others."""
    content = jupytext.read(notebook)
    stored = [cell.metadata.get(FOLD, False) for cell in content.cells]
    fold(content)
    for cell, before in zip(content.cells, stored, strict=True):
        if before != cell.metadata.get(FOLD, False):
            heading = cell.source.partition("\n")[0]
            state = "folded" if before else "open"
            raise Drift(f"{notebook.name}: `{heading}` is {state}; run `make notebooks`")


def check_spine_stands_alone(notebook: Path) -> None:
    """No cell of spine or exercises uses a name that only the workshop defines."""
    spine, exercises, workshop = ([python(cell) for cell in part] for part in read_parts(notebook))
    known = {name for source in spine + exercises for name in top_level_names(source)}
    later = {name for source in workshop for name in top_level_names(source)} - known
    for source in spine + exercises:
        if needed := sorted((names_used(source) & later) - set(dir(builtins))):
            first = source.strip().partition("\n")[0]
            raise Drift(
                f"{notebook.name}: `{first}` needs {', '.join(needed)}, which only the workshop "
                "defines"
            )


def python(cell: NotebookNode) -> str:
    """The Python of a cell."""
    return without_magics(cell.source) if cell.cell_type == "code" else ""


def names_used(source: str) -> set[str]:
    """The names that a piece of Python takes from outside its functions and classes."""
    return {
        symbol.get_name()
        for table in all_tables(symtable(source, "cell", "exec"))
        for symbol in table.get_symbols()
        if symbol.is_referenced() and (symbol.is_global() or table.get_type() == "module")
    }


def all_tables(table: SymbolTable) -> list[SymbolTable]:
    """A scope and those within it."""
    return [table, *(inner for child in table.get_children() for inner in all_tables(child))]


def check_exercises(notebook: Path) -> None:
    """Each exercise has a folded self-test, an open cell to answer in, and a folded solution."""
    cells = read_parts(notebook).exercises
    starts = exercise_starts(cells)
    if len(starts) < MIN_EXERCISES:
        raise Drift(
            f"{notebook.name}: {len(starts)} exercises; write at least {MIN_EXERCISES}, "
            "each under a heading `### Exercise ...`"
        )
    ends = [*starts[1:], len(cells)]
    for number, (start, end) in enumerate(zip(starts, ends, strict=True), start=1):
        exercise = cells[start:end]
        check_first_lines(notebook, exercise, number)
        for part, folded in (("self-test", True), ("attempt", False), ("solution", True)):
            if not any(is_part(cell, part, folded) for cell in exercise):
                kind = "a folded" if folded else "an open"
                heading = exercise[0].source.partition("\n")[0]
                raise Drift(
                    f"{notebook.name}: `{heading}` lacks {kind} {part} cell; "
                    "see the template for its tag and metadata"
                )


def check_first_lines(notebook: Path, exercise: Sequence[NotebookNode], number: int) -> None:
    """The first line of a folded cell, which shows on its bar, gives nothing away."""
    for part in ("self-test", "solution"):
        first = f"# {part.capitalize()} of exercise {number}"
        for cell in exercise:
            if is_part(cell, part, folded=True) and cell.source.partition("\n")[0] != first:
                raise Drift(
                    f"{notebook.name}: a folded cell shows its first line, which must give "
                    f"nothing away: begin with `{first}`"
                )


def exercise_starts(cells: Sequence[NotebookNode]) -> list[int]:
    """Where the exercises begin."""
    return [index for index, cell in enumerate(cells) if cell.source.startswith("### Exercise")]


def is_part(cell: NotebookNode, part: str, folded: bool) -> bool:
    """Is this cell the given part of an exercise, and folded as it should be?"""
    marked = part in cell.metadata.get("tags", []) if folded else f"{part}(" in cell.source
    return cell.cell_type == "code" and source_hidden(cell) == folded and marked


def check_self_tests(notebook: Path) -> None:
    """No self-test needs a name that only a solution defines: a reader has not unfolded it yet."""
    code = [cell for cell in jupytext.read(notebook).cells if cell.cell_type == "code"]
    solutions = [cell for cell in code if is_part(cell, "solution", folded=True)]
    secret = {name for cell in solutions for name in top_level_names(python(cell))}
    known: set[str] = set()
    for source, cell in ((python(cell), cell) for cell in code if cell not in solutions):
        known.update(top_level_names(source))
        leaked = sorted(names_used(source) & secret - known)
        if is_part(cell, "self-test", folded=True) and leaked:
            raise Drift(
                f"{notebook.name}: `{source.partition(chr(10))[0]}` needs {', '.join(leaked)}, "
                "which only a solution defines; define it in the self-test"
            )


def check_budget(notebook: Path) -> None:
    """The spine can be read in one sitting, and the exercises be done in another."""
    parts = read_parts(notebook)
    for what, most in BUDGET.items():
        if (number := counts(parts)[what]) > most:
            raise Drift(
                f"{notebook.name}: {number} {what}, and the budget is {most}; what checks, ports "
                "or extends belongs in the workshop"
            )


def counts(parts: Parts) -> dict[str, int]:
    """What a chapter asks of its reader, by name."""
    reading = measure(parts.spine)
    return {
        **{name.replace("_", " "): number for name, number in reading._asdict().items()},
        "minutes": reading.minutes,
        "exercises": len(exercise_starts(parts.exercises)),
        "cells in the workshop": len(parts.workshop),
    }


def check_reading_time(notebook: Path) -> None:
    """The card says how long the reading takes."""
    spine = read_parts(notebook).spine
    line = f"**Reading time** | {measure(spine).minutes} minutes without exercises and workshop"
    if not any(line in cell.source for cell in spine):
        raise Drift(f"{notebook.name}: the card must say `{line}`, which is what it takes")


def check_anatomy(notebook: Path) -> None:
    """A chapter has its opening and its exercises, each whole."""
    if is_chapter(notebook):
        for check in (check_opening, check_exercises, check_self_tests):
            check(notebook)


def check_form(notebook: Path) -> None:
    """A chapter has a spine that can be read in one sitting, and a workshop folded away."""
    for check in FORM:
        check(notebook)


FORM = (
    check_order,
    check_folds,
    check_spine_stands_alone,
    check_budget,
    check_reading_time,
)


def report(notebooks: Iterable[Path]) -> str:
    """A table of what chapters ask of their readers, with a star at what is over the budget."""
    rows = {notebook.stem: counts(read_parts(notebook)) for notebook in notebooks}
    head = list(next(iter(rows.values())))
    lines = [f"{'':27}" + "".join(f"  {what} " for what in head)]
    for name, row in rows.items():
        stars = ("*" if row[what] > BUDGET.get(what, row[what]) else " " for what in head)
        cells = (
            f"{row[what]:{len(what) + 2}}{star}" for what, star in zip(head, stars, strict=True)
        )
        lines.append(f"{name:27}" + "".join(cells))
    return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
    sys.stdout.write(report(sorted(Path("notebooks").glob("*.ipynb"))) + "\n")
