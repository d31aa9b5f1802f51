"""What the course draws with: tensors as blocks of cells, steps as boxes, arrows between them.

One unit of a drawing is one pixel of a 900 pixel wide notebook cell; y grows downwards.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import matplotlib.pyplot as plt
import torch
from jaxtyping import Float
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from torch import Tensor

from attn_course.course.palette import shade

WIDTH, PIXELS_PER_INCH = 900, 75
INK, GREY, LINE = "#222222", "#666666", "#888888"

Number = float | int  # beartype takes no int for a float
Point = tuple[Number, Number]
Colour = str | tuple[float, float, float]
Values = Float[Tensor, "rows columns"]


class Box(NamedTuple):
    """The place that a part of a drawing takes up; arrows run from one to another."""

    left: Number
    top: Number
    right: Number
    bottom: Number

    @property
    def middle(self) -> Point:
        """Its centre."""
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2


class Drawing:
    """A page 900 wide. Each method draws one part and, where arrows may start, returns its box."""

    def __init__(self, height: Number) -> None:
        size = (WIDTH / PIXELS_PER_INCH, height / PIXELS_PER_INCH)
        self.figure: Figure = plt.figure(figsize=size, dpi=150, layout="none")
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, WIDTH), ylim=(height, 0))
        self.axes.set_axis_off()

    def show(self) -> None:
        """Shows the drawing below the cell."""
        plt.show()

    def text(
        self,
        x: Number,
        y: Number,
        text: str,
        size: Number = 13,
        colour: str = INK,
        align: Literal["left", "center", "right"] = "left",
        bold: bool = False,
    ) -> "Drawing":
        """Words whose baseline starts at (x, y), or is centred or ends there; size in pixels."""
        weight = "bold" if bold else "normal"
        size *= 72 / PIXELS_PER_INCH
        self.axes.text(x, y, text, size=size, color=colour, ha=align, weight=weight)
        return self

    def cells(
        self,
        left: Number,
        top: Number,
        values: Values,
        colour: str = LINE,
        *,
        cell: Number = 34,
        numbers: str = "",
        limits: Point | None = None,
        name: str = "",
        shape: str = "",
    ) -> Box:
        """A matrix as a block of square cells, the darker the larger the value.

        Args:
            left: Where its left edge is.
            top: Where its upper edge is.
            values: One for each cell; NaN leaves the cell empty.
            colour: Of the largest value.
            cell: Side of a cell.
            numbers: How a cell's number is written, ".1f" say; nothing writes none.
            limits: The values that are white and `colour`; by default 0, or the smallest value
                if that is negative, and the largest.
            name: Stands above the block.
            shape: Stands below it, in grey.
        """
        low, high = limits or (min(0.0, nan_min(values)), -nan_min(-values))
        tints = (values - low) / max(high - low, 1e-9)
        self.grid((left, top), tints.clamp(0, 1), colour, across=(cell, 0), down=(0, cell))
        rows, columns = values.shape
        for row in range(rows if numbers else 0):
            for column, value in enumerate(values[row].tolist()):
                ink = "white" if tints[row, column] > 0.75 else INK
                middle = (left + (column + 0.5) * cell, top + (row + 0.5) * cell)
                if value == value:
                    self._centred(*middle, minus(f"{value:{numbers}}"), 0.38 * cell, ink)
        box = Box(left, top, left + columns * cell, top + rows * cell)
        self._label(box, name, shape)
        return box

    def channels(
        self,
        left: Number,
        top: Number,
        values: Float[Tensor, "c h w"],
        colour: str = LINE,
        *,
        cell: Number = 34,
        gap: Number = 8,
        numbers: str = "",
        limits: Point | None = None,
        name: str = "",
        shape: str = "",
    ) -> Box:
        """A feature map, channel below channel, all on one scale; for the rest see `cells`."""
        limits = limits or (min(0.0, nan_min(values)), -nan_min(-values))
        for channel in values:
            box = self.cells(left, top, channel, colour, cell=cell, numbers=numbers, limits=limits)
            top = box.bottom + gap
        first = box.bottom - len(values) * (box.bottom - box.top) - (len(values) - 1) * gap
        whole = Box(left, first, box.right, box.bottom)
        self._label(whole, name, shape)
        return whole

    def stack(
        self,
        left: Number,
        top: Number,
        channels: Sequence[Values],
        colour: str = LINE,
        *,
        gap: Number = 22,
        side: Point = (25, 50),
        name: str = "",
        shape: str = "",
    ) -> Box:
        """A feature map as sheets seen from the side, one for each channel.

        Args:
            left: Where its left edge is.
            top: Where its upper edge is.
            channels: Values between 0 and 1 for each sheet.
            colour: Of the value 1.
            gap: From one sheet to the next.
            side: Width and height of a sheet; a third of its height is slant.
            name: Stands above the block.
            shape: Stands below it, in grey.
        """
        slant = 0.32 * side[1]
        for index, channel in enumerate(channels):
            rows, columns = channel.shape
            self.grid(
                (left + gap * index, top + slant),
                channel,
                colour,
                across=(side[0] / columns, -slant / columns),
                down=(0, side[1] / rows),
            )
        right = left + gap * (len(channels) - 1) + side[0]
        box = Box(left, top, right, top + slant + side[1])
        self._label(box, name, shape)
        return box

    def step(
        self,
        left: Number,
        top: Number,
        text: str,
        colour: str = LINE,
        *,
        width: Number = 96,
        height: Number = 46,
        size: Number = 14,
    ) -> Box:
        """An operation: words in a rounded box."""
        box = Box(left, top, left + width, top + height)
        self.frame(box, shade(colour, 0.12), colour, rounding=15 if width == height == 30 else 8)
        self._centred(*box.middle, text, size, INK)
        return box

    def sign(self, x: Number, y: Number, text: str, colour: str = LINE) -> Box:
        """A sign, "×" say, in a circle around (x, y)."""
        return self.step(x - 15, y - 15, text, colour, width=30, height=30, size=16)

    def arrow(self, start: Box, end: Box, label: str = "") -> "Drawing":
        """From one part to another: straight where they face each other, else with a corner.

        The label stands above the middle of the arrow, or right of it where the arrow runs down.
        """
        (x, y), (u, v) = start.middle, end.middle
        beside = start.right <= end.left or end.right <= start.left
        if beside and (start.top <= v <= start.bottom or end.top <= y <= end.bottom):
            level = y if end.top <= y <= end.bottom else v
            points = [(facing(start.left, start.right, u), level)]
            points += [(facing(end.left, end.right, x), level)]
        elif not beside:
            across = u if start.left <= u <= start.right else x
            points = [(across, facing(start.top, start.bottom, v))]
            points += [(across, facing(end.top, end.bottom, y))]
        else:
            points = [(facing(start.left, start.right, u), y), (u, y)]
            points += [(u, facing(end.top, end.bottom, y))]
        return self.line(points, label)

    def line(
        self, points: Sequence[Point], label: str = "", *, head: bool = True, colour: str = LINE
    ) -> "Drawing":
        """A line with corners and, at its end, a head."""
        self.axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.6, zorder=0.5)
        (x, y), (u, v) = points[-2:]
        if head:
            arrow = {"arrowstyle": "-|>", "color": colour, "shrinkA": 0, "shrinkB": 0}
            from_ = (u - 12 * direction(u - x), v - 12 * direction(v - y))
            self.axes.annotate("", (u, v), from_, arrowprops=arrow)
        (x, y), (u, v) = points[:2]
        if y == v:
            self.text((x + u) / 2, y - 7, label, 12, GREY, "center")
        else:
            self.text(x + 8, (y + v) / 2 + 4, label, 12, GREY)
        return self

    def grid(
        self, corner: Point, values: Values, colour: str, across: Point, down: Point
    ) -> "Drawing":
        """A table of cells, tinted from 0 to 1; `across` and `down` are the sides of a cell.

        A NaN is drawn as an empty cell.
        """
        a, d = torch.tensor(across), torch.tensor(down)
        cell = torch.stack([0 * a, a, a + d, d])
        cells = [
            (torch.tensor(corner) + row * d + column * a + cell).numpy()
            for row in range(values.shape[0])
            for column in range(values.shape[1])
        ]
        colours = [
            to_rgb("white") if value != value else shade(colour, 0.06 + 0.94 * value)
            for value in values.flatten().tolist()
        ]
        self.axes.add_collection(
            PolyCollection(cells, facecolors=colours, edgecolors=LINE, linewidths=0.6)
        )
        return self

    def bars(self, x: Number, foot: Number, heights: Float[Tensor, "c"], colour: str) -> "Drawing":
        """A gate between 0 and 1 for each channel, as bars."""
        for index, height in enumerate(heights.tolist()):
            self._rectangle(x + 14 * index, foot, 10, -58 * height, shade(colour, height))
        self.axes.plot([x - 4, x + 14 * len(heights)], [foot] * 2, color=LINE, linewidth=1)
        return self

    def shares(
        self,
        x: Number,
        y: Number,
        shares: Float[Tensor, "c paths"],
        colours: Sequence[Colour],
    ) -> "Drawing":
        """For each channel a bar of full height, divided among the paths."""
        for index, parts in enumerate(shares.tolist()):
            top = y
            for part, colour in zip(parts, colours, strict=True):
                self._rectangle(x + 14 * index, top, 10, 55 * part, colour)
                top += 55 * part
        return self

    def link(self, start: Point, end: Point, weight: Number) -> "Drawing":
        """A bow from who asks to who answers, the thicker the larger the weight."""
        self.axes.add_patch(
            FancyArrowPatch(
                start,
                end,
                arrowstyle="-",
                connectionstyle="arc3,rad=-0.25",
                linewidth=0.6 + 5 * weight,
                color=INK,
                alpha=0.7,
            )
        )
        return self

    def frame(
        self, box: Box, ground: Colour, edge: Colour = LINE, *, rounding: Number = 8
    ) -> "Drawing":
        """A rounded box, filled."""
        left, top, right, bottom = box
        corner, size = (left, top), (right - left, bottom - top)
        style = f"round,pad=0,rounding_size={rounding}"
        self.axes.add_patch(
            FancyBboxPatch(
                corner, *size, boxstyle=style, facecolor=ground, edgecolor=edge, linewidth=1.4
            )
        )
        return self

    def outline(self, box: Box) -> "Drawing":
        """A frame around a part of the drawing."""
        left, top, right, bottom = box
        corner, size = (left, top), (right - left, bottom - top)
        self.axes.add_patch(
            Rectangle(corner, *size, fill=False, edgecolor=INK, linewidth=1.8, zorder=3)
        )
        return self

    def _rectangle(
        self,
        x: Number,
        y: Number,
        width: Number,
        height: Number,
        colour: Colour,
    ) -> None:
        rectangle = Rectangle((x, y), width, height, facecolor=colour)
        rectangle.set(edgecolor=LINE, linewidth=0.6)
        self.axes.add_patch(rectangle)

    def _centred(self, x: Number, y: Number, text: str, size: Number, colour: str) -> None:
        size *= 72 / PIXELS_PER_INCH
        self.axes.text(x, y, text, size=size, color=colour, ha="center", va="center", zorder=4)

    def _label(self, box: Box, name: str, shape: str) -> None:
        """The name above a block and the shape below it."""
        self.text(box.middle[0], box.top - 9, name, 14, INK, "center")
        self.text(box.middle[0], box.bottom + 18, shape, 12, GREY, "center")


def facing(low: Number, high: Number, towards: Number) -> Number:
    """The edge of a part that faces a place."""
    return high if towards > (low + high) / 2 else low


def direction(value: Number) -> int:
    """1, 0 or -1."""
    return (value > 0) - (value < 0)


def nan_min(values: Tensor) -> float:
    """The smallest number that is one; 0 if there is none."""
    numbers = values[~values.isnan()]
    return numbers.min().item() if len(numbers) else 0.0


def minus(number: str) -> str:
    """A number with the sign that typography has for less than zero."""
    return number.replace("-", "−")
