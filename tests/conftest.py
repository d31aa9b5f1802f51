"""What several tests need: JupyterLab and a browser, timm, and the package as a user has it."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import matplotlib
import pytest
import torch
from hypothesis import HealthCheck, Phase, configuration, settings

# Nothing is written into the checkout, and no slow machine fails a test.
configuration.set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "attn_course_hypothesis")
always = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}
always |= {"phases": (Phase.explicit, Phase.generate, Phase.shrink)}
settings.register_profile("always the same", max_examples=50, derandomize=True, **always)
settings.register_profile("thorough", max_examples=1000, print_blob=True, **always)
settings.load_profile("always the same")

SETTINGS = {
    "apputils-extension/themes": {"adaptive-theme": True},  # JupyterLab follows the browser
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none", "scrollPastEnd": False},
}
CHECKOUT = pytest.StashKey[list[str]]()
# A small laptop's window, and one with more room; notebook and contents stand side by side.
WINDOWS = [{"width": 1152, "height": 864}, {"width": 1280, "height": 1120}]


def wide_fonts():
    """CSS that shows all text in DejaVu, which matplotlib brings: no machine's own font counts.

    Its letters are about the widest and tallest of all fonts for the screen, and MathJax scales
    formulas to the letters around them: what fits here fits elsewhere. Beside each formula MathJax
    lays out an unseen copy for screen readers, in the machine's font for mathematics: where that
    does not fit, the reader has a scroll bar all the same.
    """
    folder = Path(matplotlib.get_data_path(), "fonts/ttf")
    faces = [("Wide", "Sans", "normal"), ("Wide", "Sans-Bold", "bold")]
    faces += [("WideMono", "SansMono", "normal"), ("WideMath", "Serif", "normal")]
    css = ":root, body"
    css += " { --jp-ui-font-family: Wide !important; --jp-content-font-family: Wide !important;"
    css += " --jp-code-font-family: WideMono !important }"
    css += "math { font-family: Wide, WideMath }"  # the second has the letters of formulas
    for family, variant, weight in faces:
        font = base64.b64encode((folder / f"DejaVu{variant}.ttf").read_bytes()).decode()
        css += f"@font-face {{ font-family: {family}; font-weight: {weight};"
        css += f" src: url(data:font/ttf;base64,{font}) }}"
    return css


def install_originals():
    """The command of .ci/run that installs the networks to compare with."""
    script = (Path(__file__).parents[1] / ".ci/run").read_text()
    return re.search(r"^\S+ -m pip install .*timm.*$", script, re.MULTILINE)[0]


def checkout():
    """What git sees: which files differ from the last commit, or are new, and how."""
    if not shutil.which("git"):
        return ["", ""]
    commands = (["git", "status", "--porcelain"], ["git", "diff", "HEAD"])
    return [
        subprocess.run(
            command, cwd=Path(__file__).parents[1], capture_output=True, text=True
        ).stdout
        for command in commands
    ]


def pytest_sessionstart(session):
    session.config.stash[CHECKOUT] = checkout()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    """A test run that has written into the checkout fails; workers leave that to their head."""
    if (
        hasattr(session.config, "workerinput")
        or (now := checkout()) == session.config.stash[CHECKOUT]
    ):
        return
    files = ", ".join(line.strip() for line in now[0].splitlines())
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    reporter.line(
        f"\nthe checkout is not as it was: {files} (by a test, or by an editor?)", red=True
    )
    session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)  # without pytest-xdist all runs in one process
def pytest_xdist_make_scheduler(config, log):
    """What is in one file runs in one process, in order; the slow ones wherever there is room.

    Those are the pages, one by one, and what compiles, subject by subject.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file, _, test = nodeid.partition("::")
            if file.endswith("test_browser.py"):
                return nodeid
            return test.partition("[")[2] if file.endswith("test_compilers.py") else file

    return ByFile(config, log)


@dataclass
class Reading:
    """A notebook open in the browser, and what the browser complained of meanwhile."""

    page: Any
    notebook: Path
    theme: str
    heard: list[str]


@pytest.fixture(scope="module")
def course_copy(tmp_path_factory):
    """A copy of the project, since JupyterLab writes where it is opened."""
    ignored = shutil.ignore_patterns(".*", "*.egg-info", "build", "dist", "screenshots")
    copy = tmp_path_factory.mktemp("jupyterlab") / "course"
    return shutil.copytree(Path(__file__).parents[1], copy, ignore=ignored)


@pytest.fixture(scope="module")
def lab(course_copy):
    """The address of a JupyterLab on the copy, with settings of its own."""
    home = course_copy.parent
    for name, values in SETTINGS.items():
        path = home / f"jupyterlab_settings_dir/@jupyterlab/{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    own = ["JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR"]
    own += ["JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"]
    env = os.environ | {name: str(home / name.lower()) for name in own}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--ServerApp.root_dir={course_copy}", "--IdentityProvider.token=reader"]
    log = home / "log"
    with log.open("w") as stream:
        server = subprocess.Popen(command, cwd=course_copy, env=env, stdout=stream, stderr=stream)
    try:
        while not (address := re.search(r"http://127\.0\.0\.1:\d+", log.read_text())):
            assert server.poll() is None, log.read_text()
            time.sleep(0.2)
        yield address[0]
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium that can look up no other host; the first of the windows."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install -r requirements.txt"
    )
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium: apt install chromium fonts-noto-cjk, or install Google Chrome")
    offline = "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"
    with playwright.sync_playwright() as driver:
        # a profile of its own keeps JupyterLab's scripts compiled, from one page to the next
        profile = tmp_path_factory.mktemp("chromium")
        context = driver.chromium.launch_persistent_context(
            profile, executable_path=chromium, args=[offline], viewport=WINDOWS[0]
        )
        yield context
        context.close()


@pytest.fixture
def read(browser, lab, course_copy):
    """Opens a notebook of the copy, its table of contents beside it."""
    page = browser.new_page()
    theme = os.environ.get("THEME", "light")
    page.emulate_media(color_scheme=theme)

    def open_notebook(name):
        reading = Reading(page, course_copy / "notebooks" / name, theme, heard=[])
        listen(page, reading.heard)
        page.goto(f"{lab}/lab/tree/notebooks/{name}?token=reader&reset")
        page.add_style_tag(content=wide_fonts())
        page.evaluate(
            "Promise.all(['', 'bold'].map(weight => document.fonts.load(`${weight} 1em Wide`)))"
        )
        page.wait_for_selector(".jp-Notebook-cell, .jp-Dialog", timeout=60_000)
        if not page.locator(".jp-Dialog").count():  # which would be in the way
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


@pytest.fixture(scope="session")
def timm():
    """timm, which skips the test where it is not installed; installed but broken is an error."""
    for name in ("timm", "torchvision"):
        if find_spec(name) is None:
            pytest.skip(f"{name} is not installed: {install_originals()}")
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        # On a torch without CUDA torchvision lacks its operators, and its import asks for two.
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        operators = torch.library.Library("torchvision", "DEF")
        operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    else:
        operators = None
    import timm

    yield timm
    del operators  # until here, since they vanish with the library


@pytest.fixture(scope="session")
def unchecked():
    """Imports a module of the package as a user does, without the type checks of the tests."""
    from cases import plain  # not before the import hook that checks the types is there

    return plain


def pytest_terminal_summary(terminalreporter):
    """What was skipped and why, so that no machine passes in silence for want of a program."""
    reports = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[-1].removeprefix("Skipped: ") for report in reports)
    if reasons:
        terminalreporter.section("skipped, and what would run it")
    for reason, number in reasons.most_common():
        terminalreporter.line(f"{number} skipped: {reason}")
