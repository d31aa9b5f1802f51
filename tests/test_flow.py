"""Drawn data flows: what stands in a box fits into it, and arrows end where steps begin."""

from itertools import combinations

import matplotlib.pyplot as plt
import pytest

from attn_course.course import pictures
from attn_course.course.flow import RADIUS, Arrow, Step, draw_flow

STEPS = {
    "layer": Step(0, 0, "bn2"),
    "x": Step(1, 0),
    "m": Step(2, 1, "m", pictures.GATING),
    "plus": Step(3, 0, "+", pictures.GATING),
    "rest": Step(4, 0, "+ shortcut,\nReLU"),
}
ARROWS = [
    Arrow("layer", "x"),
    Arrow("x", "m", down_first=True),
    Arrow("x", "plus", "(b, c, h, w)"),
    Arrow("m", "plus"),
    Arrow("plus", "rest", "out"),
]


@pytest.fixture(autouse=True)
def no_windows():
    plt.switch_backend("agg")
    yield
    plt.close("all")


def test_words_fit_and_are_apart():
    figure = draw_flow(STEPS, ARROWS).figure
    figure.canvas.draw()
    axes = figure.axes[0]
    words = {text.get_text(): text.get_window_extent() for text in axes.texts if text.get_text()}
    assert set(words) == {"bn2", "m", "+", "+ shortcut,\nReLU", "(b, c, h, w)", "out"}
    for one, other in combinations(words, 2):
        assert not words[one].overlaps(words[other]), f"{one!r} touches {other!r}"
    boxes = [patch.get_window_extent() for patch in axes.patches if hasattr(patch, "get_boxstyle")]
    for word in ("bn2", "m", "+", "+ shortcut,\nReLU"):
        inside = [box.x0 <= words[word].x0 and words[word].x1 <= box.x1 for box in boxes]
        assert any(inside), f"{word!r} is wider than its box"
    for label in ("(b, c, h, w)", "out"):
        assert not any(words[label].overlaps(box) for box in boxes), f"{label!r} is in a box"


def test_lines_end_at_the_edge_of_a_step():
    axes = draw_flow(STEPS, ARROWS).axes
    ends = [tuple(line.get_xydata()[-1]) for line in axes.lines if len(line.get_xydata()) > 1]
    x, y = 900 * 3.5 / 5, 45
    assert (x - RADIUS, y) in ends  # along the row
    assert (x, y + RADIUS) in ends  # from below
    assert (900 * 1.5 / 5, y) in ends  # in the middle of a dot
