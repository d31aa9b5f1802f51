"""Drawn figures of a data flow: boxes for steps, dots for tensors that branch, shapes on arrows.

One unit of the drawing is one pixel of a 900 pixel wide notebook cell; y grows downwards.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from attn_course.course.drawing import GREY, LINE, WIDTH, Box, Drawing, Number, Point, facing

ROW_HEIGHT, BOX_HEIGHT, RADIUS, DOT = 90, 46, 15, 3


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
    draw_flow(steps, arrows).show()


def draw_flow(steps: Mapping[str, Step], arrows: Sequence[Arrow]) -> Drawing:
    """Draws a data flow, for saving; `show_flow` shows it."""
    columns = max(step.column for step in steps.values()) + 1
    page = Drawing(ROW_HEIGHT * (max(step.row for step in steps.values()) + 1))
    places = {
        name: (WIDTH * (step.column + 0.5) / columns, ROW_HEIGHT * (step.row + 0.5))
        for name, step in steps.items()
    }
    boxes = {name: draw_step(page, step, *places[name]) for name, step in steps.items()}
    for arrow in arrows:
        start, end = places[arrow.start], places[arrow.end]
        corner = (start[0], end[1]) if arrow.down_first else (end[0], start[1])
        way = [start] if corner in (start, end) else [start, corner]
        head = bool(steps[arrow.end].text)
        page.line([*way, tip(boxes[arrow.end], way[-1]) if head else end], head=head)
        if arrow.label:
            right = facing(boxes[arrow.start].left, boxes[arrow.start].right, end[0])
            middle = (right + facing(boxes[arrow.end].left, boxes[arrow.end].right, start[0])) / 2
            page.text(middle, corner[1] - 7, arrow.label, 14, GREY, "center")
    return page


def draw_step(page: Drawing, step: Step, x: Number, y: Number) -> Box:
    """A box, a circle or a dot around a place."""
    if not step.text:
        dot = Box(x - DOT, y - DOT, x + DOT, y + DOT)
        page.frame(dot, step.colour, step.colour, rounding=DOT)
        return dot
    if len(step.text) == 1:
        return page.sign(x, y, step.text, step.colour)
    corner = (x - step.width / 2, y - BOX_HEIGHT / 2)
    return page.step(*corner, step.text, step.colour, width=step.width, size=15)


def tip(box: Box, towards: Point) -> Point:
    """Where an arrow that comes from there, straight, meets a box."""
    x, y = box.middle
    if y == towards[1]:
        return facing(box.left, box.right, towards[0]), y
    return x, facing(box.top, box.bottom, towards[1])
