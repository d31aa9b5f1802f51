"""Drawn figures of a data flow: boxes for steps, dots for tensors that branch, shapes on arrows.

One unit of the drawing is one pixel of a 900 pixel wide notebook cell; y grows downwards.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from attn_course.course.palette import shade

WIDTH, ROW_HEIGHT = 900, 90
BOX_HEIGHT, RADIUS, DOT = 46, 15, 4
INK, GREY, LINE = "#222222", "#666666", "#888888"

Number = float | int  # beartype takes no int for a float
Point = tuple[Number, Number]


class Step(NamedTuple):
    """One step of a data flow.

    A text is a box, a sign of one letter a circle, and no text a dot where the flow branches.
    """

    column: Number
    row: Number
    text: str = ""
    colour: str = LINE
    width: Number = 96


class Arrow(NamedTuple):
    """From one step to another, across first and then down or up; or the other way round."""

    start: str
    end: str
    label: str = ""
    down_first: bool = False


def show_flow(steps: Mapping[str, Step], arrows: Sequence[Arrow]) -> None:
    """Draws a data flow over the width of the page.

    Args:
        steps: The steps by name. Columns and rows count from 0; fractions lie between.
        arrows: What flows from where to where; the label, a shape, stands above the first leg.
    """
    draw_flow(steps, arrows)
    plt.show()


def draw_flow(steps: Mapping[str, Step], arrows: Sequence[Arrow]) -> Figure:
    """Draws a data flow, for saving; `show_flow` shows it."""
    columns = max(step.column for step in steps.values()) + 1
    height = ROW_HEIGHT * (max(step.row for step in steps.values()) + 1)
    figure = plt.figure(figsize=(WIDTH / 120, height / 120), dpi=120, layout="none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    axes.set_axis_off()
    places = {
        name: (WIDTH * (step.column + 0.5) / columns, ROW_HEIGHT * (step.row + 0.5))
        for name, step in steps.items()
    }
    for arrow in arrows:
        start, end = places[arrow.start], places[arrow.end]
        corner = (start[0], end[1]) if arrow.down_first else (end[0], start[1])
        _draw_line(axes, [start, corner, end], margins(steps[arrow.end]))
        if arrow.label:
            from_, to = (
                start[0] + margins(steps[arrow.start])[0],
                end[0] - margins(steps[arrow.end])[0],
            )
            axes.text((from_ + to) / 2, corner[1] - 7, arrow.label, size=9, color=GREY, ha="center")
    for name, step in steps.items():
        _draw_step(axes, step, *places[name])
    return figure


def margins(step: Step) -> Point:
    """How far a step reaches from its middle, across and down."""
    if not step.text:
        return 0, 0
    return (RADIUS, RADIUS) if len(step.text) == 1 else (step.width / 2, BOX_HEIGHT / 2)


def _draw_line(axes: Axes, points: Sequence[Point], margin: Point) -> None:
    """A line with a corner, and a head where it meets the step at its end."""
    (x, y), end = points[-1], points[-1]
    before = points[-2] if points[-2] != end else points[-3]
    across, down = before[0] - x, before[1] - y
    tip = (x + margin[0] * sign(across), y + margin[1] * sign(down))
    axes.plot(*zip(*points[:-1], tip, strict=True), color=LINE, linewidth=1.4, zorder=1)
    if margin != (0, 0):
        head = {"arrowstyle": "-|>", "color": LINE, "shrinkA": 0, "shrinkB": 0}
        from_ = (tip[0] + 12 * sign(across), tip[1] + 12 * sign(down))
        axes.annotate("", tip, from_, arrowprops=head)


def sign(value: Number) -> int:
    """1, 0 or -1."""
    return (value > 0) - (value < 0)


def _draw_step(axes: Axes, step: Step, x: Number, y: Number) -> None:
    """A box, a circle or a dot."""
    across, down = margins(step)
    if not step.text:
        axes.plot(x, y, "o", color=step.colour, markersize=DOT)
        return
    rounding = RADIUS if across == down == RADIUS else 8
    axes.add_patch(
        FancyBboxPatch(
            (x - across, y - down),
            2 * across,
            2 * down,
            boxstyle=f"round,pad=0,rounding_size={rounding}",
            facecolor=shade(step.colour, 0.12),
            edgecolor=step.colour,
            linewidth=1.4,
            zorder=2,
        )
    )
    axes.text(x, y, step.text, size=10, color=INK, ha="center", va="center", zorder=3)
