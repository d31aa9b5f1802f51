"""Every chapter has its parts, a spine that is read in one sitting, and a workshop folded away."""

import re
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output

from attn_course.course import anatomy
from attn_course.course.chapter import create_chapter
from attn_course.course.drift import Drift

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_chapter_has_its_parts(notebook):
    anatomy.check_anatomy(notebook)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_chapter_is_a_spine_and_a_workshop(notebook):
    anatomy.check_form(notebook)


def test_every_chapter_is_in_the_table():
    lines = anatomy.report(NOTEBOOKS).splitlines()
    assert [line.split()[0] for line in lines[1:]] == [notebook.stem for notebook in NOTEBOOKS]
    assert "minutes" in lines[0]


def minutes_of(name):
    """What the card of a chapter says."""
    (notebook,) = (path for path in NOTEBOOKS if path.stem.startswith(name))
    return anatomy.counts(anatomy.read_parts(notebook))["minutes"]


def test_the_evening_is_as_long_as_00_says():
    text = (ROOT / "notebooks/text/00_start_here.md").read_text()
    assert "about two and a half hours" in text
    assert 135 <= sum(minutes_of(name) for name in ("00", "01", "03", "06")) <= 165


# -- What counts --------------------------------------------------------------------------------


def reading(*cells):
    return anatomy.measure(cells)


def test_words_are_counted_as_they_are_written():
    text = (
        "## Two words\n\nA [link here](far/away.md) — and $x + y$.\n\n| a | b |\n|---|---|\n| 1 | |"
    )
    assert reading(new_markdown_cell(text)).words == 3 + 8 + 10  # as they stand between spaces


def test_a_diagram_is_a_figure_and_no_words():
    found = reading(new_markdown_cell("One\n\n```mermaid\nflowchart LR\n  a --> b\n```\n\ntwo"))
    assert (found.words, found.figures) == (2, 1)


PICTURE = new_output("display_data", data={"image/png": "", "text/plain": "a figure"})
FUNCTION = '''def double(x):
    """Doubles a number.

    Any number will do.
    """

    return 2 * x  # twice
'''


@pytest.mark.parametrize(("folded", "lines", "words"), [(False, 3, 7), (True, 0, 0)])
def test_of_a_folded_cell_only_the_figure_is_read(folded, lines, words):
    cell = new_code_cell("%xmode Minimal\n" + FUNCTION, outputs=[PICTURE])
    cell.metadata["jupyter"] = {"source_hidden": folded}
    found = reading(cell)
    assert (found.cells, found.code_cells, found.figures) == (1, 1, 1)
    assert (found.code_lines, found.docstring_words) == (lines, words)


def test_the_reading_time_adds_words_code_and_figures():
    text, code = new_markdown_cell("word " * 1000), new_code_cell("1\n\n" * 120)
    figures = [new_code_cell("", outputs=[PICTURE] * 3)] * 2
    assert reading(text).minutes == 5
    assert reading(code).minutes == 10
    assert reading(*figures).minutes == 3
    assert reading(text, code, *figures).minutes == 18


# -- The guards, each seen to catch what it is there for ------------------------------------------


@pytest.fixture
def notebook(tmp_path):
    """A new chapter, to be broken."""
    (tmp_path / "notebooks" / "text").mkdir(parents=True)
    create_chapter("99_some_mechanism", tmp_path)
    notebook = tmp_path / "notebooks" / "99_some_mechanism.ipynb"
    time_the_reading(notebook)
    anatomy.check_anatomy(notebook)
    anatomy.check_form(notebook)
    return notebook


def edit(notebook, change):
    """Change the cells of a notebook on disk."""
    content = jupytext.read(notebook)
    change(content.cells)
    nbformat.write(content, notebook)


def replace(notebook, old, new):
    """Change the text of the one cell that has it."""
    content = jupytext.read(notebook)
    (cell,) = (cell for cell in content.cells if old in cell.source)
    cell.source = cell.source.replace(old, new)
    nbformat.write(content, notebook)


def time_the_reading(notebook):
    """Put the time that the reading takes on the card."""
    minutes = anatomy.measure(anatomy.read_parts(notebook).spine).minutes
    pattern = re.compile(r"\d+ minutes")
    edit(
        notebook,
        lambda cells: cells[0].update(source=pattern.sub(f"{minutes} minutes", cells[0].source)),
    )


def position(cells, heading):
    return next(index for index, cell in enumerate(cells) if cell.source.startswith(heading))


def add(notebook, heading, *new):
    """Add cells behind the one that starts with the heading."""

    def change(cells):
        at = position(cells, heading) + 1
        cells[at:at] = new

    edit(notebook, change)


@pytest.mark.parametrize("part", ["arxiv.org/abs/", "**Authors**", *anatomy.CARD])
def test_a_gap_in_the_paper_card_is_caught(notebook, part):
    replace(notebook, part, "")
    with pytest.raises(Drift, match="the paper card lacks"):
        anatomy.check_anatomy(notebook)


@pytest.mark.parametrize("part", ["Self-test", "Solution"])
def test_a_folded_cell_that_gives_itself_away_is_caught(notebook, part):
    replace(notebook, f"# {part} of exercise 2\n", f"# {part} of exercise 2: it is four\n")
    with pytest.raises(Drift, match=f"begin with `# {part} of exercise 2`"):
        anatomy.check_anatomy(notebook)


def test_a_chapter_about_no_paper_needs_no_authors(notebook):
    for part in ("**Paper**", "arxiv.org/abs/", "**Authors**"):
        replace(notebook, part, "")
    anatomy.check_anatomy(notebook)


@pytest.mark.parametrize(
    ("old", "message"),
    [("\n> ", "one sentence"), ("# 99.", "one sentence"), ("question?", "its question")],
)
def test_an_opening_with_a_part_missing_is_caught(notebook, old, message):
    replace(notebook, old, "\n")
    with pytest.raises(Drift, match=message):
        anatomy.check_anatomy(notebook)


@pytest.mark.parametrize("name", ["Summary", "Exercises", "Export"])
def test_a_missing_section_is_caught(notebook, name):
    replace(notebook, f"## {name}\n" if name != "Export" else "## Export", "#### Gone\n")
    with pytest.raises(Drift, match=f"`## {name}`"):
        anatomy.check_form(notebook)


def move(notebook, name, before):
    """Move a section in front of another."""

    def change(cells):
        start = position(cells, f"## {name}")
        later = range(start + 1, len(cells))
        end = next((i for i in later if anatomy.title(cells[i])), len(cells))
        section = cells[start:end]
        del cells[start:end]
        at = position(cells, f"## {before}")
        cells[at:at] = section

    edit(notebook, change)


@pytest.mark.parametrize(
    ("name", "before", "message"),
    [
        ("Does it match?", "What it looks at", "`## Does it match.` belongs below the exercises"),
        ("References", "Summary", "`## References` belongs below the exercises"),
        ("Export", "References", "must end in `## Export`"),
        ("What it costs", "References", "`## What it costs` belongs above the exercises"),
        ("Summary", "Export", "write `## Summary` above the exercises"),
    ],
)
def test_a_section_out_of_place_is_caught(notebook, name, before, message):
    move(notebook, name, before)
    with pytest.raises(Drift, match=message):
        anatomy.check_order(notebook)


def test_sections_of_other_names_are_free(notebook):
    replace(notebook, "## What it costs", "## Where it goes")
    replace(notebook, "## What goes wrong in copies", "## Other layouts")
    anatomy.check_order(notebook)


def test_a_last_cell_that_does_not_export_is_caught(notebook):
    edit(notebook, lambda cells: cells.append(new_code_cell("print()")))
    with pytest.raises(Drift, match="that in a call of `export`"):
        anatomy.check_order(notebook)


def test_a_section_in_the_middle_of_a_cell_is_caught(notebook):
    replace(notebook, "- Three to five lines.", "- Three to five lines.\n\n## More\n\nText.")
    with pytest.raises(Drift, match="`## More` must begin a cell"):
        anatomy.check_order(notebook)


def test_text_that_would_stay_open_is_caught(notebook):
    replace(notebook, "## References", "## References\n\nThe paper.")
    with pytest.raises(Drift, match="`## References` needs a cell of its own"):
        anatomy.check_order(notebook)


@pytest.mark.parametrize(
    ("heading", "state"),
    [("## Export", "open"), ("## The module", "folded"), ("### Exercise 1", "folded")],
)
def test_a_heading_folded_wrongly_is_caught_and_set_right(notebook, heading, state):
    content = jupytext.read(notebook)
    cell = content.cells[position(content.cells, heading)]
    cell.metadata = {} if state == "open" else {anatomy.FOLD: True}
    nbformat.write(content, notebook)
    with pytest.raises(Drift, match=f"`{heading}.*` is {state}; run `make notebooks`"):
        anatomy.check_folds(notebook)
    anatomy.fold(content)
    nbformat.write(content, notebook)
    anatomy.check_folds(notebook)


@pytest.mark.parametrize("heading", ["## The problem", "## Exercises"])
@pytest.mark.parametrize("use", ["later(1)", "def f(x):\n    return [later for _ in x]"])
def test_a_spine_that_needs_the_workshop_is_caught(notebook, heading, use):
    add(notebook, "## References", new_code_cell("def later(x):\n    return x"))
    anatomy.check_spine_stands_alone(notebook)
    add(notebook, heading, new_code_cell(use))
    with pytest.raises(Drift, match="needs later, which only the workshop defines"):
        anatomy.check_spine_stands_alone(notebook)


def test_a_name_that_both_define_or_that_is_local_needs_no_workshop(notebook):
    workshop = "import torch\n\nlocal = 1\nprint = print"
    add(notebook, "## References", new_code_cell(workshop))
    use = "def f(local):\n    return torch.ones(local)\n\n\nprint([local for local in range(2)])"
    add(notebook, "## The problem", new_code_cell(use))
    anatomy.check_spine_stands_alone(notebook)


def too_much(what):
    """Cells that exceed one budget."""
    budget = anatomy.BUDGET[what]
    return {
        "words": [new_markdown_cell("word " * budget)],
        "code cells": [new_code_cell("1") for _ in range(budget)],
        "cells": [new_markdown_cell("one") for _ in range(budget)],
        "minutes": [new_code_cell("1\n" * anatomy.LINES_A_MINUTE * budget)],
        "exercises": [new_markdown_cell("### Exercise") for _ in range(budget)],
    }[what]


@pytest.mark.parametrize("what", anatomy.BUDGET)
def test_too_much_is_caught(notebook, what):
    add(notebook, "## Exercises" if what == "exercises" else "## Summary", *too_much(what))
    with pytest.raises(Drift, match=rf"\d+ {what}, and the budget is {anatomy.BUDGET[what]}"):
        anatomy.check_budget(notebook)


@pytest.mark.parametrize("what", ["words", "code cells", "cells", "minutes"])
def test_the_workshop_may_be_long(notebook, what):
    add(notebook, "## References", *too_much(what))
    anatomy.check_form(notebook)


def test_a_wrong_reading_time_is_caught(notebook):
    add(notebook, "## Summary", new_markdown_cell("word " * 2 * anatomy.WORDS_A_MINUTE))
    with pytest.raises(Drift, match=r"the card must say `.*Reading time.* \d+ minutes without"):
        anatomy.check_reading_time(notebook)
    time_the_reading(notebook)
    anatomy.check_reading_time(notebook)


@pytest.mark.parametrize("tag", ["self-test", "solution"])
def test_an_unfolded_part_of_an_exercise_is_caught(notebook, tag):
    def unfold(cells):
        cell = next(cell for cell in cells if tag in cell.metadata.get("tags", []))
        cell.metadata.pop("jupyter")

    edit(notebook, unfold)
    with pytest.raises(Drift, match=f"`### Exercise 1.*` lacks a folded {tag}"):
        anatomy.check_anatomy(notebook)


def test_a_self_test_that_needs_its_solution_is_caught(notebook):
    replace(notebook, "# Solution of exercise 1", "# Solution of exercise 1\nexpected = 4")
    replace(notebook, "def test_1(answer):", "def test_1(answer):\n    assert answer == expected")
    with pytest.raises(Drift, match="needs expected, which only a solution defines"):
        anatomy.check_anatomy(notebook)


def test_too_few_exercises_are_caught(notebook):
    replace(notebook, "### Exercise 4", "### Question 4")
    with pytest.raises(Drift, match="3 exercises; write at least 4"):
        anatomy.check_anatomy(notebook)
