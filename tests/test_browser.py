"""Read every notebook as a reader does: in JupyterLab, in a browser, without a network.

At two window widths and in wide fonts of the test's own, with a twentieth of the width to spare,
so that a page which fits here fits on machines with other fonts. What does not fit is what gives
the reader a scroll bar.

`THEME=dark pytest tests/test_browser.py` looks at the dark theme, THEME=light at the light one,
and both save what they see in screenshots/<notebook>/<theme>/, top to bottom.
"""

import ast
import os
import re
import shutil
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from attn_course.course.anatomy import (
    FOLD,
    names_used,
    python,
    read_parts,
    source_hidden,
    title,
    titles,
)
from attn_course.course.chapter import create_chapter
from attn_course.course.export import top_level_names
from attn_course.course.outputs import pictures
from conftest import WINDOWS

ROOT = Path(__file__).parents[1]
RUN_IN_BROWSER = "00_start_here.ipynb"

# What is folded away takes part: it is open while the page is measured, then as it was.
LOOK_AT_CELLS = r"""
() => {
  const closed = [...document.querySelectorAll("details:not([open])")];
  const hidden = [...document.querySelectorAll(".jp-Notebook-cell.lm-mod-hidden")];
  const fold = folded => {
    closed.forEach(node => node.open = !folded);
    hidden.forEach(cell => cell.classList.toggle("lm-mod-hidden", folded));
  };
  const cells = [...document.querySelectorAll(".jp-Notebook-cell")];
  const scrolls = node => getComputedStyle(node).overflowX !== "visible"
    && node.clientWidth && node.scrollWidth > node.clientWidth + 1;
  const tooWide = share => {  // all at once, so that the page is laid out anew but once
    cells.forEach(cell => cell.style.maxWidth = share);
    return cells.filter(cell => [...cell.querySelectorAll(
      ".jp-MarkdownOutput, .jp-MarkdownOutput :not(mjx-container *)")].some(scrolls));
  };
  const lookAt = cell => {
    const all = selector => [...cell.querySelectorAll(selector)];
    const prose = new DOMParser().parseFromString(  // a copy that loads no pictures
      all(".jp-MarkdownOutput").map(node => node.innerHTML).join(), "text/html").body;
    prose.querySelectorAll("code, pre, mjx-container").forEach(node => node.remove());
    return {
      prose: prose.textContent,
      badMath: all("mjx-assistive-mml :is(merror, mtext[mathcolor=red])").map(n => n.textContent),
      diagrams: all(".jp-RenderedMermaid img").filter(img => img.naturalWidth).length,
      figures: all("[data-mime-type^='image/'] img").filter(img => img.naturalWidth).length,
      broken: all(".jp-MarkdownOutput img").some(img => img.complete && !img.naturalWidth),
      complaints: all("[data-mime-type='application/vnd.jupyter.stderr']").length,
      tooWide: wide.has(cell),
      folded: all(".jp-InputPlaceholder").length > 0 || hidden.includes(cell),
    };
  };
  fold(false);
  // a formula may hit the edge at one of them only
  const shares = ["100%", "99%", "98%", "97%", "96%", "95%"];
  const wide = new Set(shares.flatMap(tooWide));
  tooWide("");
  const seen = cells.map(lookAt);
  fold(true);
  return seen;
}
"""

# JupyterLab follows the window a moment later; right of the notebook is a side bar.
NOTEBOOK_FILLS_WINDOW = """
() => {
  const { right } = document.querySelector(".jp-NotebookPanel").getBoundingClientRect();
  return innerWidth - 100 < right && right < innerWidth;
}
"""


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return met


def stumbles(reading, expected=()):
    """What a reader would stumble over, once the page shows what is `expected` or had 20 s."""
    wait_until(lambda: look(reading) == list(expected), seconds=20)
    time.sleep(0.5)  # late fonts and errors
    found = set()
    for window in WINDOWS:
        reading.page.set_viewport_size(window)
        reading.page.wait_for_function(NOTEBOOK_FILLS_WINDOW)
        found |= set(look(reading))
    return sorted(found)


def look(reading):
    if dialogs := reading.page.locator(".jp-Dialog").all_inner_texts():
        return [f"{reading.notebook.name}, dialog {dialog!r}" for dialog in dialogs]
    cells = nbformat.read(reading.notebook, as_version=4).cells
    shown = reading.page.evaluate(LOOK_AT_CELLS)
    found = [] if len(shown) == len(cells) else [f"{len(shown)} of {len(cells)} cells shown"]
    folded = folded_away(cells)
    for number, (cell, seen) in enumerate(zip(cells, shown, strict=False)):
        found += [f"cell {number}: {fault}" for fault in cell_faults(cell, seen)]
        if seen["folded"] != folded[number]:
            found.append(f"cell {number}: folded in only one of page and file")
    entries = reading.page.locator(".jp-tocItem-content:visible").all_inner_texts()
    found += [*contents_faults(cells, entries), *reading.heard]
    return sorted(f"{reading.notebook.name}, {fault}" for fault in found)


def cell_faults(cell, seen):
    markdown = cell.source if cell.cell_type == "markdown" else ""
    diagrams = markdown.count("```mermaid")
    figures = len(pictures(cell))
    if raw := raw_latex(seen["prose"]):
        yield f"raw LaTeX {raw!r}"
    for source in seen["badMath"]:
        yield f"MathJax cannot read {source!r}"
    if seen["diagrams"] != diagrams:
        yield f"{seen['diagrams']} of {diagrams} mermaid diagrams drawn"
    if seen["figures"] != figures:
        yield f"{seen['figures']} of {figures} figures shown"
    if seen["broken"]:
        yield "a broken picture"
    if seen["complaints"] > ("raises-exception" in cell.metadata.get("tags", [])):
        yield "shows an error or a warning"
    if seen["tooWide"]:
        yield "wider than the page"


def folded_away(cells):
    """Of each cell: is its source folded, or does it stand under a folded heading?"""
    folded, section = [], False
    for cell in cells:
        section = section and not title(cell)
        folded.append(section or source_hidden(cell))
        section = cell.metadata.get(FOLD, section)
    return folded


def contents_faults(cells, entries):
    markdown = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    prose = re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^## +(.+)", prose, flags=re.MULTILINE):
        if re.sub("[`*]", "", heading) not in entries:
            yield f"the table of contents lacks {heading!r}"
    for entry in filter(raw_latex, entries):
        yield f"raw LaTeX in the table of contents: {entry!r}"


def raw_latex(text):
    """The first dollar or LaTeX command and what follows it; empty when there is none."""
    found = re.search(r"(\$|\\[A-Za-z]).{0,20}", text)
    return found[0] if found else ""


def save_screenshots(reading):
    folder = ROOT / "screenshots" / reading.notebook.stem / reading.theme
    shutil.rmtree(folder, ignore_errors=True)
    reading.page.screenshot(path=folder / "00.png")
    notebook = reading.page.locator(".jp-NotebookPanel-notebook")
    scroller = notebook.locator(".jp-WindowedPanel-outer")
    height, screen = scroller.evaluate("node => [node.scrollHeight, node.clientHeight]")
    for number, top in enumerate(range(0, height, screen - 40), start=1):
        scroller.evaluate("(node, top) => node.scrollTop = top", top)
        reading.page.screenshot(path=folder / f"{number:02}.png", clip=notebook.bounding_box())


@pytest.mark.parametrize("name", sorted(path.name for path in ROOT.glob("notebooks/*.ipynb")))
def test_reads_well(read, name):
    reading = read(name)
    found = stumbles(reading)
    if "THEME" in os.environ:
        save_screenshots(reading)
    assert not found, "\n".join(found)


def test_runs_from_the_menu_and_saves_both_files(read):
    reading = read(RUN_IN_BROWSER)
    page, notebook = reading.page, reading.notebook
    idle = page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]")

    def counts():  # of the cells that are not folded
        return set(page.locator(".jp-CodeCell .jp-InputArea-prompt").all_inner_texts())

    assert stumbles(reading) == []  # it is loaded
    assert wait_until(idle.count, seconds=60)
    choose(page, "Edit", "Clear Outputs of All Cells")
    assert wait_until(lambda: counts() == {"[ ]:"}, seconds=10)
    choose(page, "Run", "Run All Cells")
    assert wait_until(lambda: counts() != {"[ ]:"}, seconds=10)
    assert wait_until(lambda: "[*]:" not in counts() and idle.count(), seconds=120)
    assert stumbles(reading) == []

    page.click(".jp-MarkdownOutput h1")
    page.keyboard.press("Enter")
    page.wait_for_selector(".jp-MarkdownCell .cm-focused")
    page.keyboard.press("Control+End")
    page.keyboard.type(" Written in a browser.")
    page.keyboard.press("Control+s")
    twin = notebook.parent / "text" / f"{notebook.stem}.md"
    assert wait_until(lambda: "Written in a browser." in twin.read_text(), seconds=10)
    code = [c for c in nbformat.read(notebook, as_version=4).cells if c.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))


def choose(page, menu, item):
    page.click(f".lm-MenuBar-itemLabel:text-is('{menu}')")
    page.click(f".lm-Menu-itemLabel:text-is('{item}')")


def with_a_slider():
    """The chapters with something to move, and the cell where that is."""
    for notebook in sorted(ROOT.glob("notebooks/*.ipynb")):
        cells = [cell for cell in read_parts(notebook).spine if cell.cell_type == "code"]
        for number, cell in enumerate(cells):
            if "slide" in names_used(python(cell)):
                yield pytest.param(cells[: number + 1], id=notebook.stem)


def what_the_last_needs(cells):
    """The last of some code cells, and those above it that define what it uses."""
    needed, names = [], set()
    for cell in reversed(cells):
        source = python(cell)
        if not needed or names & set(top_level_names(source)):
            needed.append(new_code_cell(cell.source))
            names = names - set(top_level_names(source)) | names_asked_for(source)
    return needed[::-1]


def names_asked_for(source):
    """The names that a cell takes from those above it."""
    asked, known = set(), set()
    for statement in map(ast.unparse, ast.parse(source).body):
        asked |= names_used(statement) - known
        known |= set(top_level_names(statement))
    return asked


def test_chapters_have_something_to_move():
    assert len({parameter.id for parameter in with_a_slider()}) >= 5


@pytest.mark.parametrize("cells", list(with_a_slider()))
def test_a_slider_draws_its_figure_anew(read, course_copy, cells):
    page = open_new(read, course_copy, "slider.ipynb", what_the_last_needs(cells)).page
    choose(page, "Run", "Run All Cells")
    page.wait_for_selector(".noUi-handle", timeout=60_000)
    figures = page.locator(".jp-CodeCell").last.locator("[data-mime-type='image/png'] img")
    before = figures.evaluate_all("images => images.map(image => image.src)")

    for slider in page.locator(".noUi-handle").all():
        value = slider.get_attribute("aria-valuenow")
        slider.press("ArrowRight")
        if slider.get_attribute("aria-valuenow") == value:  # it stands at its right end
            slider.press("ArrowLeft")

    def moved():
        return figures.evaluate_all("images => images.map(image => image.src)") != before

    assert wait_until(moved, seconds=20)
    assert figures.count() == len(before) == 1


def open_new(read, course_copy, name, cells):
    """A notebook of these cells, open in the browser, and its kernel at rest."""
    python3 = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(
        new_notebook(cells=cells, metadata={"kernelspec": python3}),
        course_copy / "notebooks" / name,
    )
    reading = read(name)
    reading.page.wait_for_selector(".jp-Toolbar-kernelName:has-text('Python 3')", timeout=60_000)
    reading.page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]")
    return reading


def ran(kind, **output):
    return new_code_cell("pass", outputs=[new_output(kind, **output)])


WIDE = "$$" + "+".join(f"x_{{{number}}}" for number in range(60)) + "$$"
WITHOUT_ROOM_TO_SPARE = r"$\rule{700px}{1em}$"  # in the narrow window
IN_THE_WIDE_WINDOW_ONLY = r"$\rule{760px}{1em}$"
IN_NARROW_FONTS_ONLY = "m" * 51
WITH_A_WIDE_UNSEEN_COPY = "$" + "+".join(["[x]"] * 15) + "$"
SOUND = r"""## Sound `code`, *stress*
$x$, `$x$` and

$$\frac{1}{2}$$

```mermaid
flowchart LR
  a --> b
```"""
FOLDED = {"jupyter": {"source_hidden": True}}
CELLS = [
    ("", new_markdown_cell(SOUND)),
    ("raw LaTeX '$x is raw'", new_markdown_cell("A dollar $x is raw")),
    ("raw LaTeX '\\\\frac{1}{2}'", new_markdown_cell("A half \\frac{1}{2}")),
    ("MathJax cannot read '\\\\frac{1}'", new_markdown_cell("$\\frac{1}$")),
    ("MathJax cannot read '\\\\nonsense'", new_markdown_cell("$\\nonsense$")),
    ("0 of 1 mermaid diagrams drawn", new_markdown_cell("```mermaid\nflowchart --> LR\n```")),
    ("a broken picture", new_markdown_cell("![gone](gone.png)")),
    ("wider than the page", new_markdown_cell(WIDE)),
    ("wider than the page", new_markdown_cell(f"<details>\n\n{WIDE}\n\n</details>")),
    ("wider than the page", new_markdown_cell("|a_long_word" * 30 + "\n" + "|---" * 30)),
    ("wider than the page", new_markdown_cell(WITHOUT_ROOM_TO_SPARE)),
    ("wider than the page", new_markdown_cell(IN_THE_WIDE_WINDOW_ONLY)),
    ("wider than the page", new_markdown_cell(IN_NARROW_FONTS_ONLY)),
    ("wider than the page", new_markdown_cell(WITH_A_WIDE_UNSEEN_COPY)),
    ("shows an error or a warning", ran("stream", name="stderr", text="Warning")),
    ("shows an error or a warning", ran("error", ename="E", evalue="", traceback=["E"])),
    ("0 of 1 figures shown", ran("display_data", data={"image/png": "bm90IGEgcGljdHVyZQ=="})),
    ("folded in only one of page and file", new_code_cell("pass", metadata=FOLDED)),
    ("", new_code_cell("pass", metadata=FOLDED)),
    ("", new_markdown_cell("## Opened", metadata={FOLD: True})),
    ("folded in only one of page and file", new_markdown_cell("Text.")),
    ("", new_markdown_cell("## Folded away", metadata={FOLD: True})),
    ("", new_markdown_cell(SOUND.replace("## ", "### "))),
    ("wider than the page", new_markdown_cell(WIDE)),
]
BESIDE_CELLS = [
    f"{len(CELLS)} of {len(CELLS) + 1} cells shown",
    "the table of contents lacks 'Lost'",
    "raw LaTeX in the table of contents: '$y$'",
    "asked the network for http://example.com/",
    "console: Failed to load resource: net::ERR_NAME_NOT_RESOLVED /",
    "console: Failed to load resource: the server responded with a status of 404 (Not Found)"
    " /files/notebooks/gone.png",
    "page error: bang",
]


def test_every_stumble_is_noticed(read, course_copy):
    cells = [*(cell for _, cell in CELLS), new_markdown_cell("## Lost\n## $y$")]
    in_cells = [f"cell {number}: {fault}" for number, (fault, _) in enumerate(CELLS) if fault]
    expected = sorted(f"faulty.ipynb, {fault}" for fault in in_cells + BESIDE_CELLS)
    reading = open_new(read, course_copy, "faulty.ipynb", cells)
    reading.page.evaluate("setTimeout(() => { throw Error('bang') })")
    reading.page.evaluate("new Image().src = 'http://example.com/'")
    reading.page.locator(".jp-tocItem-content >> text=Lost").evaluate("node => node.append('!')")
    reading.page.click(".jp-InputPlaceholder >> nth=0")
    reading.page.click(".jp-showHiddenCellsButton >> nth=0")
    reading.page.locator(".jp-Notebook-cell").last.evaluate("cell => cell.remove()")
    assert stumbles(reading, expected) == expected
    folded_away = ".jp-MarkdownOutput > details:not([open]), .jp-Notebook-cell.lm-mod-hidden"
    assert reading.page.locator(folded_away).count() == 3  # as it was


def test_a_chapter_opens_with_its_workshop_folded(read, course_copy):
    create_chapter("99_some_mechanism", course_copy)
    reading = read("99_some_mechanism.ipynb")
    assert stumbles(reading) == []
    page, workshop = reading.page, read_parts(reading.notebook).workshop
    assert page.locator(".jp-showHiddenCellsButton:visible").count() == len(titles(workshop))
    headings = page.locator(".jp-MarkdownOutput h2:visible").all_inner_texts()
    assert [heading.rstrip("¶") for heading in headings[-len(titles(workshop)) :]] == titles(
        workshop
    )
    hidden = len(workshop) - len(titles(workshop))
    assert page.locator(".jp-Notebook-cell.lm-mod-hidden").count() == hidden > 0
    page.click(".jp-showHiddenCellsButton >> nth=0")
    assert page.locator(".jp-Notebook-cell.lm-mod-hidden").count() < hidden


def test_a_torn_notebook_is_noticed(read, course_copy):
    (course_copy / "notebooks/torn.ipynb").write_text("{")
    reading = read("torn.ipynb")
    reading.page.wait_for_selector(".jp-Dialog")  # on a busy machine after an empty notebook
    (found,) = look(reading)
    assert "File Load Error for torn" in found
