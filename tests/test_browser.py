"""Read every notebook as a reader does: in JupyterLab, in a browser, without a network.

What was seen is saved in screenshots/<notebook>/<theme>/, top to bottom;
`THEME=dark pytest tests/test_browser.py` looks at the dark theme.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

playwright = pytest.importorskip("playwright.sync_api", reason="no browser: pip install playwright")

ROOT = Path(__file__).parents[1]
RUN_IN_BROWSER = "00_start_here.ipynb"
THEME = os.environ.get("THEME", "light")

SETTINGS = {
    "apputils-extension/themes": {"adaptive-theme": True},  # JupyterLab follows the browser
    "apputils-extension/notification": {"fetchNews": "false"},  # else it asks about news
    "notebook-extension/tracker": {"windowingMode": "none", "scrollPastEnd": False},
}

LOOK_AT_CELLS = r"""
() => [...document.querySelectorAll(".jp-Notebook-cell")].map(cell => {
  const all = selector => [...cell.querySelectorAll(selector)];
  const drawn = selector => all(selector).filter(img => img.naturalWidth).length;
  const prose = html => {
    const { body } = new DOMParser().parseFromString(html, "text/html");  // loads no pictures
    body.querySelectorAll("code, pre, mjx-container").forEach(node => node.remove());
    return body.textContent;
  };
  return {
    prose: all(".jp-MarkdownOutput").map(node => prose(node.innerHTML)).join("\n"),
    badMath: all("mjx-assistive-mml :is(merror, mtext[mathcolor=red])").map(n => n.textContent),
    diagrams: drawn(".jp-RenderedMermaid img"),
    figures: drawn("[data-mime-type='image/png'] img"),
    broken: all(".jp-MarkdownOutput img").some(img => img.complete && !img.naturalWidth),
    complaints: all("[data-mime-type='application/vnd.jupyter.stderr']").length,
    tooWide: all(".jp-MarkdownOutput, .jp-MarkdownOutput *").some(node =>
      !node.closest("mjx-math, mjx-assistive-mml") &&
      node.clientWidth && node.scrollWidth > node.clientWidth + 1),
    folded: all(".jp-InputPlaceholder").length > 0,
  };
})
"""


@dataclass
class Reading:
    """A notebook open in the browser, and what the browser complained of meanwhile."""

    page: "playwright.Page"
    notebook: Path
    heard: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A copy of the project, since JupyterLab writes where it is opened."""
    ignored = shutil.ignore_patterns(".*", "*.egg-info", "build", "dist", "screenshots")
    return shutil.copytree(ROOT, tmp_path_factory.mktemp("lab") / "course", ignore=ignored)


@pytest.fixture(scope="module")
def lab(root):
    """The address of a JupyterLab on the copy, with settings of its own."""
    home = root.parent
    for name, values in SETTINGS.items():
        path = home / f"config/lab/user-settings/@jupyterlab/{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    own = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "IPYTHONDIR": "ipython"}
    env = os.environ | {name: str(home / folder) for name, folder in own.items()}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--ServerApp.root_dir={root}", "--IdentityProvider.token=reader"]
    log = home / "log"
    with log.open("w") as stream:
        server = subprocess.Popen(command, cwd=root, env=env, stdout=stream, stderr=stream)
    try:
        wait_until(lambda: "is running at" in log.read_text() or server.poll(), seconds=60)
        yield re.search(r"http://127\.0\.0\.1:\d+", log.read_text())[0]
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium that can look up no other host."""
    found = filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"]))
    chromium = next(found, None)
    if chromium is None:
        pytest.skip("no Chromium found: install Debian's chromium, or Google Chrome")
    offline = "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=[offline])
        yield browser.new_context(viewport={"width": 1280, "height": 1120}, color_scheme=THEME)
        browser.close()


@pytest.fixture
def read(root, lab, browser):
    """Opens a notebook of the copy, its table of contents beside it."""
    page = browser.new_page()

    def open_notebook(name):
        reading = Reading(page, root / "notebooks" / name)
        listen(page, reading.heard)
        page.goto(f"{lab}/lab/workspaces/{name[:2]}/tree/notebooks/{name}?token=reader")
        page.wait_for_selector(".jp-Notebook-cell, .jp-Dialog", timeout=60_000)
        dialogs = page.locator(".jp-Dialog").all_inner_texts()
        assert not dialogs, f"{name}: {dialogs}"
        page.click("[data-id=table-of-contents]")
        return reading

    yield open_notebook
    page.close()


def listen(page, heard):
    def console(message):
        if message.type == "error":
            heard.append(f"console: {message.text} {urlsplit(message.location['url']).path}")

    def request(request):
        if urlsplit(request.url).hostname not in (None, "127.0.0.1"):
            heard.append(f"asked the network for {request.url}")

    page.on("console", console)
    page.on("request", request)
    page.on("pageerror", lambda error: heard.append(f"page error: {error.message}"))


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return met


def stumbles(reading, expected=()):
    """What a reader would stumble over, once the page shows what is `expected` or had 20 s."""
    wait_until(lambda: look(reading) == list(expected), seconds=20)
    time.sleep(0.5)  # late fonts and errors
    return look(reading)


def look(reading):
    cells = json.loads(reading.notebook.read_text())["cells"]
    seen = reading.page.evaluate(LOOK_AT_CELLS)
    found = [] if len(seen) == len(cells) else [f"{len(seen)} of {len(cells)} cells shown"]
    for number, (cell, shown) in enumerate(zip(cells, seen, strict=False)):
        found += [f"cell {number}: {fault}" for fault in cell_faults(cell, shown)]
    found += contents_faults(cells, reading.page.locator(".jp-tocItem-content").all_inner_texts())
    return sorted(f"{reading.notebook.name}, {what}" for what in found + reading.heard)


def cell_faults(cell, shown):
    metadata = cell["metadata"]
    may_fail = "raises-exception" in metadata.get("tags", [])
    figures = sum("image/png" in output.get("data", {}) for output in cell.get("outputs", []))
    markdown = "".join(cell["source"]) if cell["cell_type"] == "markdown" else ""
    diagrams = markdown.count("```mermaid")
    if raw := raw_latex(shown["prose"]):
        yield f"raw LaTeX {raw!r}"
    for source in shown["badMath"]:
        yield f"MathJax cannot read {source!r}"
    if shown["diagrams"] != diagrams:
        yield f"{shown['diagrams']} of {diagrams} mermaid diagrams drawn"
    if shown["figures"] != figures:
        yield f"{shown['figures']} of {figures} figures shown"
    if shown["broken"]:
        yield "a broken picture"
    if shown["complaints"] > may_fail:
        yield "shows an error or a warning"
    if shown["tooWide"]:
        yield "wider than the page"
    if shown["folded"] != metadata.get("jupyter", {}).get("source_hidden", False):
        yield "folded" if shown["folded"] else "not folded"


def contents_faults(cells, entries):
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    prose = re.sub(r"^```.*?^```", "", "\n".join(sources), flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^## +(.+)", prose, flags=re.MULTILINE):
        if heading.replace("`", "") not in entries:
            yield f"the table of contents lacks {heading!r}"
    for entry in filter(raw_latex, entries):
        yield f"raw LaTeX in the table of contents: {entry!r}"


def raw_latex(text):
    """The first dollar or LaTeX command and what follows it; empty when there is none."""
    found = re.search(r"(\$|\\[A-Za-z]).{0,20}", text)
    return found[0] if found else ""


def save_screenshots(reading):
    folder = ROOT / "screenshots" / reading.notebook.stem / THEME
    shutil.rmtree(folder, ignore_errors=True)
    reading.page.screenshot(path=folder / "00.png")
    notebook = reading.page.locator(".jp-NotebookPanel-notebook")
    scroller = notebook.locator(".jp-WindowedPanel-outer")
    height, screen = scroller.evaluate("node => [node.scrollHeight, node.clientHeight]")
    for number, top in enumerate(range(0, height, screen - 40), start=1):
        scroller.evaluate("(node, top) => node.scrollTop = top", top)
        notebook.screenshot(path=folder / f"{number:02}.png")


@pytest.mark.parametrize("name", sorted(path.name for path in ROOT.glob("notebooks/*.ipynb")))
def test_reads_well(read, name):
    reading = read(name)
    found = stumbles(reading)
    save_screenshots(reading)
    assert not found, "\n".join(found)


def choose(page, menu, item):
    page.click(f".lm-MenuBar-itemLabel:text-is('{menu}')")
    page.click(f".lm-Menu-itemLabel:text-is('{item}')")


def test_runs_from_the_menu_and_saves_both_files(read):
    reading = read(RUN_IN_BROWSER)
    page, notebook = reading.page, reading.notebook
    counts = page.locator(".jp-CodeCell .jp-InputArea-prompt")  # a folded cell shows none
    idle = page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]")

    choose(page, "Edit", "Clear Outputs of All Cells")
    assert wait_until(lambda: set(counts.all_inner_texts()) == {"[ ]:"}, seconds=10)
    choose(page, "Run", "Run All Cells")
    done = re.compile(r"(\[\d+\]:)+")
    wait_until(lambda: done.fullmatch("".join(counts.all_inner_texts())) and idle.count(), 120)
    assert stumbles(reading) == []

    page.click(".jp-MarkdownOutput h1")
    page.keyboard.press("Enter")
    page.wait_for_selector(".jp-MarkdownCell .cm-focused")
    page.keyboard.press("Control+End")
    page.keyboard.type(" Written in a browser.")
    page.keyboard.press("Control+s")
    twin = notebook.parent / "text" / f"{notebook.stem}.md"
    assert wait_until(lambda: "Written in a browser." in twin.read_text(), seconds=10)
    cells = [cell for cell in nbformat.read(notebook, 4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


def ran(kind, **output):
    return new_code_cell("pass", outputs=[new_output(kind, **output)])


SOUND = "## Sound\n$x$ `$x$`\n\n$$\\frac{1}{2}$$\n\n```mermaid\nflowchart LR\n  a --> b\n```"
WIDE = "$$" + "+".join(f"x_{{{number}}}" for number in range(60)) + "$$"
FAULTY = [
    ("raw LaTeX '$x is raw'", new_markdown_cell("A dollar $x is raw")),
    ("raw LaTeX '\\\\frac{1}{2}'", new_markdown_cell("A half \\frac{1}{2}")),
    ("MathJax cannot read '\\\\frac{1}'", new_markdown_cell("$\\frac{1}$")),
    ("MathJax cannot read '\\\\nonsense'", new_markdown_cell("$\\nonsense$")),
    ("0 of 1 mermaid diagrams drawn", new_markdown_cell("```mermaid\nflowchart --> LR\n```")),
    ("a broken picture", new_markdown_cell("![gone](gone.png)")),
    ("wider than the page", new_markdown_cell(WIDE)),
    ("wider than the page", new_markdown_cell(f"<details>\n\n{WIDE}\n\n</details>")),
    ("wider than the page", new_markdown_cell("|a_long_word" * 30 + "\n" + "|---" * 30)),
    ("shows an error or a warning", ran("stream", name="stderr", text="Warning")),
    ("shows an error or a warning", ran("error", ename="E", evalue="", traceback=["E"])),
    ("0 of 1 figures shown", ran("display_data", data={"image/png": "bm90IGEgcGljdHVyZQ=="})),
]


def test_every_stumble_is_noticed(read, root):
    cells = [new_markdown_cell(SOUND), *(cell for _, cell in FAULTY), new_markdown_cell("## $y$")]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), root / "notebooks/faulty.ipynb")
    expected = [f"cell {number}: {fault}" for number, (fault, _) in enumerate(FAULTY, start=1)]
    expected += [
        "raw LaTeX in the table of contents: '$y$'",
        "the table of contents lacks 'Sound'",
        "asked the network for http://example.com/",
        "console: Failed to load resource: net::ERR_NAME_NOT_RESOLVED /",
        "console: Failed to load resource: the server responded with a status of 404 (Not Found)"
        " /files/notebooks/gone.png",
        "page error: bang",
    ]
    expected = sorted(f"faulty.ipynb, {what}" for what in expected)
    reading = read("faulty.ipynb")
    reading.page.evaluate("setTimeout(() => { throw Error('bang') })")
    reading.page.evaluate("new Image().src = 'http://example.com/'")
    reading.page.locator(".jp-tocItem-content >> nth=0").evaluate("e => e.textContent = 'Lost'")
    assert stumbles(reading, expected) == expected


def test_a_torn_notebook_is_noticed(read, root):
    (root / "notebooks/torn.ipynb").write_text("{")
    with pytest.raises(AssertionError, match="File Load Error for torn"):
        read("torn.ipynb")
