"""The drawn map of the course: what each of the eight mechanisms weights, on one page.

One unit of the drawing is one pixel of a 900 pixel wide notebook cell; y grows downwards.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from torch import Tensor

from attn_course.course.drawing import Drawing
from attn_course.course.palette import GATING, MIXING, SELECTION, shade

WIDTH, HEIGHT = 900, 884
MARGIN, GAP = 8, 14
CARD_WIDTH, CARD_HEIGHT = 285, 226
CHIP_WIDTH = 96
ROW_HEIGHT = 298

INK, GREY, LINE = "#222222", "#666666", "#888888"

Number = float | int  # beartype takes no int for a float
Point = tuple[Number, Number]
Values = Float[Tensor, "rows columns"]


class Mechanism(NamedTuple):
    """One card of the map."""

    chapter: str
    short: str
    name: str
    over: str
    squeezes: str
    compares: str
    weights: str
    draw: Callable[[Axes, Number, Number], None]


class Family(NamedTuple):
    """One row of the map."""

    name: str
    question: str
    formula: str
    colour: str
    mechanisms: tuple[Mechanism, ...]


def course_map(here: str | None = None) -> None:
    """Shows the map of the course, with the mechanism `here` (such as "SE") highlighted."""
    draw_course_map(here)
    plt.show()


def where(here: str) -> None:
    """Shows the course as one line of names, with the mechanism `here` (such as "SE") marked."""
    draw_where(here)
    plt.show()


def draw_where(here: str) -> Figure:
    """Draws the line that `where` shows."""
    names = [mechanism.short for family in FAMILIES for mechanism in family.mechanisms]
    if here not in names:
        raise ValueError(
            f"here is {here!r}: give one of {', '.join(names)}, which have a card in FAMILIES of "
            "attn_course/course/course_map.py"
        )
    drawing, left = Drawing(height=72), MARGIN
    for family in FAMILIES:
        drawing.text(left, 20, family.name, 14, family.colour, bold=True)
        drawing.text(left + 88, 20, family.question, 12, GREY)
        for mechanism in family.mechanisms:
            marked = mechanism.short == here
            box = drawing.step(
                left,
                32,
                f"{mechanism.chapter} {mechanism.short}",
                family.colour if marked else "#CCCCCC",
                width=CHIP_WIDTH,
                height=32,
                size=13,
            )
            if marked:
                drawing.outline(box)
            left += CHIP_WIDTH + 8
        left += 24
    return drawing.figure


def draw_course_map(here: str | None = None) -> Figure:
    """Draws the map of the course, for saving; `course_map` shows it."""
    names = [mechanism.short for family in FAMILIES for mechanism in family.mechanisms]
    if here is not None and here not in names:
        raise ValueError(
            f"here is {here!r}: give one of {', '.join(names)}, which have a card in FAMILIES of "
            "attn_course/course/course_map.py, or nothing"
        )

    figure = plt.figure(figsize=(WIDTH / 75, HEIGHT / 75), dpi=150, layout="none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(HEIGHT, 0))
    axes.set_axis_off()
    for row, family in enumerate(FAMILIES):
        _draw_family(axes, family, top=row * ROW_HEIGHT, here=here)
    _draw_key(axes, _column(2), ROW_HEIGHT + 56)
    return figure


def _column(index: int) -> Number:
    """The left edge of a card."""
    return MARGIN + index * (CARD_WIDTH + GAP)


def _draw_family(axes: Axes, family: Family, top: Number, here: str | None) -> None:
    """One row: the heading of a family, then a card for each of its mechanisms."""
    _text(axes, MARGIN, top + 26, family.name, 19, family.colour, weight="bold")
    _text(axes, MARGIN + 130, top + 26, family.question, 15, INK)
    _text(axes, WIDTH - MARGIN, top + 26, family.formula, 15, INK, ha="right")
    axes.plot([MARGIN, WIDTH - MARGIN], [top + 38] * 2, color=family.colour, linewidth=2)
    for index, mechanism in enumerate(family.mechanisms):
        _draw_card(
            axes, mechanism, family.colour, _column(index), top + 56, mechanism.short == here
        )


def _draw_card(
    axes: Axes, mechanism: Mechanism, colour: str, x: Number, y: Number, highlighted: bool
) -> None:
    """A mechanism: its chapter, its names, its pictogram and its three lines."""
    axes.add_patch(
        FancyBboxPatch(
            (x, y),
            CARD_WIDTH,
            CARD_HEIGHT,
            boxstyle="round,pad=0,rounding_size=8",
            facecolor=shade(colour, 0.08) if highlighted else "white",
            edgecolor=colour if highlighted else "#CCCCCC",
            linewidth=2.5 if highlighted else 1.2,
        )
    )
    _text(axes, x + 14, y + 26, mechanism.chapter, 13, GREY)
    _text(axes, x + 40, y + 26, mechanism.short, 16, colour, weight="bold")
    _text(axes, x + 14, y + 47, mechanism.name, 12, INK)
    _pill(axes, x + CARD_WIDTH - 20, y + 25, mechanism.over, colour)
    mechanism.draw(axes, x, y + 40)
    for line, verb in enumerate(("squeezes", "compares", "weights")):
        baseline = y + 176 + 19 * line
        _text(axes, x + 14, baseline, verb, 12, colour, weight="bold" if line == 2 else "normal")
        _text(axes, x + 80, baseline, getattr(mechanism, verb), 12, INK)


def _draw_key(axes: Axes, x: Number, y: Number) -> None:
    """How to read the pictograms."""
    _text(axes, x + 14, y + 26, "How to read the drawings", 13, INK, weight="bold")
    _stack(axes, x + 40, y + 56, [torch.zeros(5, 5)] * 4, LINE)
    _text(axes, x + 78, y + 146, "$c$ channels", 12, GREY, ha="center")
    _text(axes, x + 34, y + 101, "$h$", 12, GREY, ha="right")
    _text(axes, x + 122, y + 126, "$w$", 12, GREY)
    _text(axes, x + 168, y + 74, "a feature map:", 12, INK)
    _text(axes, x + 168, y + 92, "$n = h·w$", 12, INK)
    _text(axes, x + 168, y + 110, "positions", 12, INK)
    _grid(
        axes, (x + 14, y + 164), torch.linspace(0, 1, 6)[None], LINE, across=(16, 0), down=(0, 16)
    )
    _text(axes, x + 122, y + 176, "little … much weight", 12, INK)
    _text(axes, x + 14, y + 214, "01 … 08: the chapters of the course", 12, INK)


# The pictograms. Each draws into the 285 x 120 pixels right of x and below y.


def _draw_se(axes: Axes, x: Number, y: Number) -> None:
    gates = torch.tensor([0.9, 0.3, 0.6, 0.1, 0.75])
    _bars(axes, x + 34, y + 90, gates, GATING)
    _caption(axes, x + 69, y, "$c$ gates")
    _times(axes, x + 128, y)
    _stack(axes, x + 152, y + 32, [gate.expand(5, 5) for gate in gates], GATING)
    _caption(axes, x + 208, y, "weighted channels")


def _draw_cbam(axes: Axes, x: Number, y: Number) -> None:
    gates = torch.tensor([0.9, 0.35, 0.7])
    spot = _spot(5, 2.2, 1.6)
    _bars(axes, x + 18, y + 90, gates, GATING)
    _caption(axes, x + 39, y, "$c$ gates")
    _times(axes, x + 76, y)
    _grid(axes, (x + 92, y + 40), spot, GATING, across=(10, 0), down=(0, 10))
    _caption(axes, x + 117, y, "$h × w$ gates")
    _times(axes, x + 160, y)
    _stack(axes, x + 184, y + 32, [gate * spot for gate in gates], GATING)
    _caption(axes, x + 220, y, "weighted twice")


def _draw_sge(axes: Axes, x: Number, y: Number) -> None:
    spots = [_spot(5, 1, 1), _spot(5, 2, 3), _spot(5, 4, 2)]
    for group, spot in enumerate(spots):
        _grid(axes, (x + 16 + 38 * group, y + 47), spot, GATING, across=(6.5, 0), down=(0, 6.5))
        _stack(axes, x + 160 + 38 * group, y + 32, [spot, spot], GATING, gap=9)
    _caption(axes, x + 70, y, "a map per group")
    _times(axes, x + 143, y)
    _caption(axes, x + 214, y, "weighted groups")


def _draw_sk(axes: Axes, x: Number, y: Number) -> None:
    near, far = torch.full((5, 5), torch.nan), torch.full((5, 5), torch.nan)
    near[1:4, 1:4] = 0.35
    far[::2, ::2] = 1.0
    _grid(axes, (x + 16, y + 35), near, SELECTION, across=(11, 0), down=(0, 11))
    _grid(axes, (x + 84, y + 35), far, SELECTION, across=(11, 0), down=(0, 11))
    _caption(axes, x + 77, y, "kernels of two sizes")
    _times(axes, x + 157, y)
    shares = torch.tensor([[0.8, 0.2], [0.35, 0.65], [0.5, 0.5], [0.15, 0.85], [0.6, 0.4]])
    _shares(axes, x + 176, y + 35, shares, [0.35, 1.0])
    _caption(axes, x + 211, y, "shares per channel")


def _draw_epsa(axes: Axes, x: Number, y: Number) -> None:
    tints = [0.15, 0.4, 0.7, 1.0]
    left = x + 16
    for size, tint in zip((3, 5, 7, 9), tints, strict=True):
        corner = (left, y + 62 - 2.5 * size)
        _grid(axes, corner, torch.full((size, size), tint), SELECTION, across=(5, 0), down=(0, 5))
        left += 5 * size + 8
    _caption(axes, x + 88, y, "kernels of four sizes")
    _times(axes, x + 172, y)
    shares = torch.tensor(
        [[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4], [0.25] * 4, [0.15, 0.45, 0.25, 0.15]]
    )
    _shares(axes, x + 190, y + 35, shares, tints)
    _caption(axes, x + 216, y, "shares per channel")


def _draw_mhsa(axes: Axes, x: Number, y: Number) -> None:
    weights = _token_weights()
    _tokens(axes, x + 36, y + 28, weights[0])
    _caption(axes, x + 73, y, "one token asks all")
    _grid(axes, (x + 176, y + 28), weights, MIXING, across=(7.6, 0), down=(0, 7.6))
    _outline(axes, x + 176, y + 28, 68.4, 7.6)
    _caption(axes, x + 210, y, "$n × n$ weights")


def _draw_da(axes: Axes, x: Number, y: Number) -> None:
    positions = _token_weights()
    _tokens(axes, x + 14, y + 28, positions[0])
    _grid(axes, (x + 102, y + 38), positions, MIXING, across=(5.5, 0), down=(0, 5.5))
    _outline(axes, x + 102, y + 38, 49.5, 5.5)
    _caption(axes, x + 80, y, "$n × n$")
    _text(axes, x + 165, y + 64, "+", 16, GREY, ha="center")
    channels = torch.softmax(3 * torch.eye(4) + torch.tensor([0.0, 1.5, 0.0, 0.8]), dim=1)
    _stack(axes, x + 178, y + 29, [weight.expand(5, 5) for weight in channels[0]], MIXING, gap=9)
    _grid(axes, (x + 237, y + 44), channels, MIXING, across=(9, 0), down=(0, 9))
    _outline(axes, x + 237, y + 44, 36, 9)
    _caption(axes, x + 226, y, "$c × c$")


def _draw_ea(axes: Axes, x: Number, y: Number) -> None:
    weights = torch.softmax(2 * torch.randn(9, 5, generator=torch.Generator().manual_seed(3)), 1)
    _tokens(axes, x + 20, y + 28, torch.zeros(9))
    _caption(axes, x + 57, y, "$n$ tokens")
    for slot, weight in enumerate(weights[0].tolist()):
        _link(axes, (x + 29.5, y + 37.5), (x + 124, y + 34 + 14 * slot), weight)
        _grid(
            axes,
            (x + 124, y + 29 + 14 * slot),
            torch.full((1, 5), weight),
            MIXING,
            across=(10, 0),
            down=(0, 10),
        )
    _caption(axes, x + 149, y, "memory")
    _grid(axes, (x + 214, y + 28), weights, MIXING, across=(7.6, 0), down=(0, 7.6))
    _outline(axes, x + 214, y + 28, 38, 7.6)
    _caption(axes, x + 234, y, "$n × 64$")


# What the pictograms are made of.


def _grid(
    axes: Axes, corner: Point, values: Values, colour: str, across: Point, down: Point
) -> None:
    """A table of cells, the darker the larger the value; `across` and `down` are the cell's sides.

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
    axes.add_collection(PolyCollection(cells, facecolors=colours, edgecolors=LINE, linewidths=0.6))


def _stack(
    axes: Axes, x: Number, y: Number, channels: Sequence[Values], colour: str, gap: Number = 22
) -> None:
    """A feature map: its channels as sheets seen from the side."""
    for index, channel in enumerate(channels):
        _grid(axes, (x + gap * index, y + 16), channel, colour, across=(5, -3.2), down=(0, 10))


def _bars(axes: Axes, x: Number, foot: Number, heights: Float[Tensor, "c"], colour: str) -> None:
    """A gate for each channel, as bars."""
    for index, height in enumerate(heights.tolist()):
        axes.add_patch(
            Rectangle(
                (x + 14 * index, foot),
                10,
                -58 * height,
                facecolor=shade(colour, height),
                edgecolor=LINE,
                linewidth=0.6,
            )
        )
    axes.plot([x - 4, x + 14 * len(heights)], [foot] * 2, color=LINE, linewidth=1)


def _shares(
    axes: Axes, x: Number, y: Number, shares: Float[Tensor, "c paths"], tints: Sequence[float]
) -> None:
    """For each channel a bar of full height, divided among the paths."""
    for index, parts in enumerate(shares.tolist()):
        top = y
        for part, tint in zip(parts, tints, strict=True):
            axes.add_patch(
                Rectangle(
                    (x + 14 * index, top),
                    10,
                    55 * part,
                    facecolor=shade(SELECTION, tint),
                    edgecolor=LINE,
                    linewidth=0.6,
                )
            )
            top += 55 * part


def _tokens(axes: Axes, x: Number, y: Number, weights: Float[Tensor, "9"]) -> None:
    """Nine tokens; the first asks, and is linked to those it listens to."""
    for index, weight in enumerate(weights.tolist()):
        left, top = x + 25 * (index % 3), y + 25 * (index // 3)
        _grid(axes, (left, top), torch.tensor([[weight]]), MIXING, across=(19, 0), down=(0, 19))
        if index > 0 and weight > 0.05:
            _link(axes, (x + 9.5, y + 9.5), (left + 9.5, top + 9.5), weight)
    _outline(axes, x, y, 19, 19)


def _link(axes: Axes, start: Point, end: Point, weight: Number) -> None:
    """A line between who asks and who answers, the thicker the larger the weight."""
    axes.add_patch(
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


def _outline(axes: Axes, x: Number, y: Number, width: Number, height: Number) -> None:
    """Marks one part of a pictogram."""
    axes.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=INK, linewidth=1.6))


def _caption(axes: Axes, x: Number, y: Number, text: str) -> None:
    """The words under a part of a pictogram."""
    _text(axes, x, y + 112, text, 11.5, GREY, ha="center")


def _times(axes: Axes, x: Number, y: Number) -> None:
    """The sign between the weights and what they weight."""
    _text(axes, x, y + 68, "×", 16, GREY, ha="center")


def _pill(axes: Axes, x: Number, y: Number, text: str, colour: str) -> None:
    """A word on a tinted ground, ending at x."""
    ground = {"boxstyle": "round,pad=0.4", "facecolor": shade(colour, 0.14), "edgecolor": "none"}
    axes.text(x, y, text, size=12 * 72 / 75, color=INK, ha="right", bbox=ground)


def _text(
    axes: Axes,
    x: Number,
    y: Number,
    text: str,
    size: Number,
    colour: str,
    ha: str = "left",
    weight: str = "normal",
) -> None:
    """Words whose baseline starts (ends, is centred) at x, y; size in pixels."""
    axes.text(x, y, text, size=size * 72 / 75, color=colour, ha=ha, weight=weight)


def _spot(size: int, row: Number, column: Number) -> Values:
    """A map that is 1 at one place and falls off around it."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return torch.exp(-((y - row) ** 2 + (x - column) ** 2) / 3)


def _token_weights() -> Values:
    """Attention among nine tokens: row i holds what token i takes from each; it sums to 1."""
    generator = torch.Generator().manual_seed(0)
    return torch.softmax(2 * torch.randn(9, 9, generator=generator), dim=1)


FAMILIES = (
    Family(
        "Gates",
        "how much of each?",
        "out = gate · $x$",
        GATING,
        (
            Mechanism(
                "01",
                "SE",
                "Squeeze-and-Excitation",
                "channels",
                "each channel to its mean",
                "all channels, in two layers",
                "the channels",
                _draw_se,
            ),
            Mechanism(
                "03",
                "CBAM",
                "Convolutional Block Attention",
                "channels, space",
                "positions, then channels",
                "channels, then neighbours",
                "channels, then positions",
                _draw_cbam,
            ),
            Mechanism(
                "04",
                "SGE",
                "Spatial Group-wise Enhance",
                "groups",
                "each group to its mean vector",
                "positions with that vector",
                "positions, group by group",
                _draw_sge,
            ),
        ),
    ),
    Family(
        "Selection",
        "which of several?",
        "out = share$_1$ · $x_1$ + share$_2$ · $x_2$ + …",
        SELECTION,
        (
            Mechanism(
                "02",
                "SK",
                "Selective Kernel",
                "kernels",
                "the sum of the paths to means",
                "the paths, channel by channel",
                "the kernels",
                _draw_sk,
            ),
            Mechanism(
                "05",
                "EPSA",
                "Pyramid Squeeze Attention",
                "scales",
                "each scale to its channel means",
                "the scales, channel by channel",
                "the scales",
                _draw_epsa,
            ),
        ),
    ),
    Family(
        "Mixing",
        "how much from each?",
        "out$_i$ = sum of weight$_{ij}$ · value$_j$",
        MIXING,
        (
            Mechanism(
                "06",
                "MHSA",
                "Multi-Head Self-Attention",
                "tokens",
                "nothing",
                "every token with every token",
                "the tokens, once per head",
                _draw_mhsa,
            ),
            Mechanism(
                "07",
                "DA",
                "Dual Attention",
                "tokens, channels",
                "nothing",
                "all positions; all channels",
                "positions and channels",
                _draw_da,
            ),
            Mechanism(
                "08",
                "EA",
                "External Attention",
                "tokens",
                "nothing: 64 rows are learned",
                "every token with those rows",
                "the rows all pictures share",
                _draw_ea,
            ),
        ),
    ),
)
