"""Drawings: blocks hold their numbers, arrows end where parts begin, and words have room."""

from itertools import combinations

import matplotlib.pyplot as plt
import pytest
import torch

from attn_course.course.drawing import Box, Drawing
from attn_course.course.palette import GATING, shade


@pytest.fixture(autouse=True)
def no_windows():
    plt.switch_backend("agg")
    yield
    plt.close("all")


def assert_words_have_room(figure):
    """No words of a drawing touch each other, or leave the page."""
    figure.canvas.draw()
    words = [text for text in figure.axes[0].texts if text.get_text()]
    boxes = {text: text.get_window_extent() for text in words}
    for (one, box), (other, other_box) in combinations(boxes.items(), 2):
        assert not box.overlaps(other_box), f"{one.get_text()!r} touches {other.get_text()!r}"
    for text, box in boxes.items():
        assert figure.bbox.x0 <= box.x0, f"{text.get_text()!r} leaves the page"
        assert box.x1 <= figure.bbox.x1, f"{text.get_text()!r} leaves the page"


def words(page):
    return [text.get_text() for text in page.axes.texts if text.get_text()]


def colours(page):
    return [tuple(colour[:3]) for c in page.axes.collections for colour in c.get_facecolor()]


def test_a_block_says_its_numbers_name_and_shape():
    page = Drawing(200)
    values = torch.tensor([[-1.0, 0.25], [torch.nan, 3.0]])
    box = page.cells(40, 50, values, GATING, numbers=".1f", name="x", shape="(2, 2)")
    assert box == (40, 50, 40 + 2 * 34, 50 + 2 * 34)
    assert words(page) == ["−1.0", "0.2", "3.0", "x", "(2, 2)"]  # the empty cell has none
    drawn = colours(page)
    assert drawn[0] == pytest.approx(shade(GATING, 0.06))  # the smallest
    assert drawn[3] == pytest.approx(shade(GATING, 1))  # the largest
    assert drawn[2] == (1, 1, 1)
    assert_words_have_room(page.figure)


def test_the_scale_may_be_given():
    page = Drawing(200)
    page.cells(40, 50, torch.tensor([[0.5, 5.0]]), GATING, limits=(0, 1))
    assert colours(page) == [pytest.approx(shade(GATING, 0.06 + 0.94 * v)) for v in (0.5, 1)]


def test_channels_stand_one_below_the_other_on_one_scale():
    page = Drawing(300)
    values = torch.tensor([[[1.0, 1.0]], [[2.0, 2.0]], [[4.0, 4.0]]])  # (3, 1, 2)
    box = page.channels(10, 30, values, GATING, cell=20, gap=5)
    assert box == (10, 30, 50, 30 + 3 * 20 + 2 * 5)
    assert colours(page)[-1] == pytest.approx(shade(GATING, 1))
    assert colours(page)[0] == pytest.approx(shade(GATING, 0.06 + 0.94 / 4))


def test_a_stack_has_a_sheet_for_each_channel():
    page = Drawing(200)
    box = page.stack(10, 20, [torch.zeros(5, 5)] * 4, gap=20, side=(25, 50))
    assert len(page.axes.collections) == 4
    corners = torch.cat(
        [torch.tensor(path.vertices) for c in page.axes.collections for path in c.get_paths()]
    )
    assert corners.min(0).values.tolist() == pytest.approx([box.left, box.top])
    assert corners.max(0).values.tolist() == pytest.approx([box.right, box.bottom])


BOX = Box(100, 100, 200, 140)


@pytest.mark.parametrize(
    ("end", "way"),
    [
        (Box(300, 110, 340, 130), [(200, 120), (300, 120)]),  # beside it
        (Box(300, 0, 400, 300), [(200, 120), (300, 120)]),  # beside it, and larger
        (Box(0, 110, 40, 118), [(100, 114), (40, 114)]),  # on its left
        (Box(120, 200, 160, 240), [(140, 140), (140, 200)]),  # below it
        (Box(300, 200, 340, 240), [(200, 120), (320, 120), (320, 200)]),  # round a corner
    ],
)
def test_arrows_run_from_edge_to_edge(end, way):
    page = Drawing(300).arrow(BOX, end, "W")
    assert [tuple(point) for point in page.axes.lines[0].get_xydata()] == way
    (head,) = [text for text in page.axes.texts if getattr(text, "arrow_patch", None)]
    assert head.xy == way[-1]
    assert "W" in words(page)
