"""The drawn map of the course: what each of the eight mechanisms weights, on one page.

One unit of the drawing is one pixel of a 900 pixel wide notebook cell; y grows downwards.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from attn_course.course.drawing import GREY, LINE, WIDTH, Box, Drawing, Number, Values
from attn_course.course.palette import GATING, MIXING, SELECTION, shade

HEIGHT = 884
MARGIN, GAP = 8, 14
CARD_WIDTH, CARD_HEIGHT = 285, 226
CHIP_WIDTH = 96
PALE = "#CCCCCC"
ROW_HEIGHT = 298


class Mechanism(NamedTuple):
    """One card of the map."""

    chapter: str
    short: str
    name: str
    over: str
    squeezes: str
    compares: str
    weights: str
    draw: Callable[[Drawing, Number, Number], object]


class Family(NamedTuple):
    """One row of the map."""

    name: str
    question: str
    formula: str
    colour: str
    mechanisms: tuple[Mechanism, ...]


def course_map() -> None:
    """Shows the map of the course: a card for each mechanism."""
    draw_course_map().show()


def draw_course_map() -> Drawing:
    """Draws the map of the course, for saving; `course_map` shows it."""
    page = Drawing(HEIGHT)
    for row, family in enumerate(FAMILIES):
        _draw_family(page, family, top=row * ROW_HEIGHT)
    _draw_key(page, _column(2), ROW_HEIGHT + 56)
    return page


def where(here: str | None = None) -> None:
    """Shows the course as one line of names, with the mechanism `here` (such as "SE") marked."""
    draw_where(here).show()


def draw_where(here: str | None = None) -> Drawing:
    """Draws the line that `where` shows."""
    names = [mechanism.short for family in FAMILIES for mechanism in family.mechanisms]
    if here is not None and here not in names:
        raise ValueError(
            f"here is {here!r}: give one of {', '.join(names)}, which have a card in FAMILIES of "
            "attn_course/course/course_map.py, or nothing"
        )
    page, x = Drawing(height=72), MARGIN
    for family in FAMILIES:
        page.text(x, 20, family.name, 14, family.colour, bold=True)
        page.text(x + 88, 20, family.question, 12, GREY)
        for mechanism in family.mechanisms:
            marked = mechanism.short == here
            ground = shade(family.colour, 0.3) if marked else "white"
            box = Box(x, 32, x + CHIP_WIDTH, 64)
            page.frame(box, ground, family.colour if marked else PALE)
            name = f"{mechanism.chapter} {mechanism.short}"
            page.text(box.middle[0], 53, name, 13, align="center", bold=marked)
            x += CHIP_WIDTH + 8
        x += 24
    return page


def _column(index: int) -> Number:
    """The left edge of a card."""
    return MARGIN + index * (CARD_WIDTH + GAP)


def _draw_family(page: Drawing, family: Family, top: Number) -> None:
    """One row: the heading of a family, then a card for each of its mechanisms."""
    page.text(MARGIN, top + 26, family.name, 19, family.colour, bold=True)
    page.text(MARGIN + 130, top + 26, family.question, 15)
    page.text(WIDTH - MARGIN, top + 26, family.formula, 15, align="right")
    ends = [(MARGIN, top + 38), (WIDTH - MARGIN, top + 38)]
    page.line(ends, head=False, colour=family.colour)
    for index, mechanism in enumerate(family.mechanisms):
        _draw_card(page, mechanism, family.colour, _column(index), top + 56)


def _draw_card(page: Drawing, mechanism: Mechanism, colour: str, x: Number, y: Number) -> None:
    """A mechanism: its chapter, its names, its pictogram and its three lines."""
    page.frame(Box(x, y, x + CARD_WIDTH, y + CARD_HEIGHT), "white", PALE)
    page.text(x + 14, y + 26, mechanism.chapter, 13, GREY)
    page.text(x + 40, y + 26, mechanism.short, 16, colour, bold=True)
    page.text(x + 14, y + 47, mechanism.name, 12)
    page.text(x + CARD_WIDTH - 14, y + 26, mechanism.over, 12, colour, "right")
    mechanism.draw(page, x, y + 40)
    for line, verb in enumerate(("squeezes", "compares", "weights")):
        baseline = y + 176 + 19 * line
        page.text(x + 14, baseline, verb, 12, colour, bold=line == 2)
        page.text(x + 80, baseline, getattr(mechanism, verb), 12)


def _draw_key(page: Drawing, x: Number, y: Number) -> None:
    """How to read the pictograms."""
    page.text(x + 14, y + 26, "How to read the drawings", 13, bold=True)
    page.stack(x + 40, y + 56, [torch.zeros(5, 5)] * 4, LINE)
    page.text(x + 78, y + 146, "$c$ channels", 12, GREY, "center")
    page.text(x + 34, y + 101, "$h$", 12, GREY, "right")
    page.text(x + 122, y + 126, "$w$", 12, GREY)
    page.text(x + 168, y + 74, "a feature map:", 12)
    page.text(x + 168, y + 92, "$n = h·w$", 12)
    page.text(x + 168, y + 110, "positions", 12)
    _cells(page, x + 14, y + 164, torch.linspace(0, 1, 6)[None], LINE, 16)
    page.text(x + 122, y + 176, "little … much weight", 12)
    page.text(x + 14, y + 214, "01 … 08: the chapters of the course", 12)


# The pictograms. Each draws into the 285 x 120 pixels right of x and below y.


def _draw_se(page: Drawing, x: Number, y: Number) -> None:
    gates = torch.tensor([0.9, 0.3, 0.6, 0.1, 0.75])
    page.bars(x + 34, y + 90, gates, GATING)
    _caption(page, x + 69, y, "$c$ gates")
    _times(page, x + 128, y)
    page.stack(x + 152, y + 32, [gate.expand(5, 5) for gate in gates], GATING)
    _caption(page, x + 208, y, "weighted channels")


def _draw_cbam(page: Drawing, x: Number, y: Number) -> None:
    gates = torch.tensor([0.9, 0.35, 0.7])
    spot = _spot(5, 2.2, 1.6)
    page.bars(x + 18, y + 90, gates, GATING)
    _caption(page, x + 39, y, "$c$ gates")
    _times(page, x + 76, y)
    _cells(page, x + 92, y + 40, spot, GATING, 10)
    _caption(page, x + 117, y, "$h × w$ gates")
    _times(page, x + 160, y)
    page.stack(x + 184, y + 32, [gate * spot for gate in gates], GATING)
    _caption(page, x + 220, y, "weighted twice")


def _draw_sge(page: Drawing, x: Number, y: Number) -> None:
    spots = [_spot(5, 1, 1), _spot(5, 2, 3), _spot(5, 4, 2)]
    for group, spot in enumerate(spots):
        _cells(page, x + 16 + 38 * group, y + 47, spot, GATING, 6.5)
        page.stack(x + 160 + 38 * group, y + 32, [spot, spot], GATING, gap=9)
    _caption(page, x + 70, y, "a map per group")
    _times(page, x + 143, y)
    _caption(page, x + 214, y, "weighted groups")


def _draw_sk(page: Drawing, x: Number, y: Number) -> None:
    near, far = torch.full((5, 5), torch.nan), torch.full((5, 5), torch.nan)
    near[1:4, 1:4] = 0.35
    far[::2, ::2] = 1.0
    _cells(page, x + 16, y + 35, near, SELECTION, 11)
    _cells(page, x + 84, y + 35, far, SELECTION, 11)
    _caption(page, x + 77, y, "kernels of two sizes")
    _times(page, x + 157, y)
    shares = torch.tensor([[0.8, 0.2], [0.35, 0.65], [0.5, 0.5], [0.15, 0.85], [0.6, 0.4]])
    page.shares(x + 176, y + 35, shares, [shade(SELECTION, tint) for tint in (0.35, 1)])
    _caption(page, x + 211, y, "shares per channel")


def _draw_epsa(page: Drawing, x: Number, y: Number) -> None:
    tints = [0.15, 0.4, 0.7, 1.0]
    left = x + 16
    for size, tint in zip((3, 5, 7, 9), tints, strict=True):
        kernel = torch.full((size, size), tint)
        _cells(page, left, y + 62 - 2.5 * size, kernel, SELECTION, 5)
        left += 5 * size + 8
    _caption(page, x + 88, y, "kernels of four sizes")
    _times(page, x + 172, y)
    shares = torch.tensor(
        [[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4], [0.25] * 4, [0.15, 0.45, 0.25, 0.15]]
    )
    page.shares(x + 190, y + 35, shares, [shade(SELECTION, tint) for tint in tints])
    _caption(page, x + 216, y, "shares per channel")


def _draw_mhsa(page: Drawing, x: Number, y: Number) -> None:
    weights = _token_weights()
    _tokens(page, x + 36, y + 28, weights[0])
    _caption(page, x + 73, y, "one token asks all")
    _cells(page, x + 176, y + 28, weights, MIXING, 7.6)
    _first_row(page, x + 176, y + 28, 68.4, 7.6)
    _caption(page, x + 210, y, "$n × n$ weights")


def _draw_da(page: Drawing, x: Number, y: Number) -> None:
    positions = _token_weights()
    _tokens(page, x + 14, y + 28, positions[0])
    _cells(page, x + 102, y + 38, positions, MIXING, 5.5)
    _first_row(page, x + 102, y + 38, 49.5, 5.5)
    _caption(page, x + 80, y, "$n × n$")
    page.text(x + 165, y + 64, "+", 16, GREY, "center")
    channels = torch.softmax(3 * torch.eye(4) + torch.tensor([0.0, 1.5, 0.0, 0.8]), dim=1)
    page.stack(x + 178, y + 29, [weight.expand(5, 5) for weight in channels[0]], MIXING, gap=9)
    _cells(page, x + 237, y + 44, channels, MIXING, 9)
    _first_row(page, x + 237, y + 44, 36, 9)
    _caption(page, x + 226, y, "$c × c$")


def _draw_ea(page: Drawing, x: Number, y: Number) -> None:
    weights = torch.softmax(2 * torch.randn(9, 5, generator=torch.Generator().manual_seed(3)), 1)
    _tokens(page, x + 20, y + 28, torch.zeros(9))
    _caption(page, x + 57, y, "$n$ tokens")
    for slot, weight in enumerate(weights[0].tolist()):
        page.link((x + 29.5, y + 37.5), (x + 124, y + 34 + 14 * slot), weight)
        _cells(page, x + 124, y + 29 + 14 * slot, torch.full((1, 5), weight), MIXING, 10)
    _caption(page, x + 149, y, "memory")
    _cells(page, x + 214, y + 28, weights, MIXING, 7.6)
    _first_row(page, x + 214, y + 28, 38, 7.6)
    _caption(page, x + 234, y, "$n × 64$")


# What the pictograms are made of.


def _tokens(page: Drawing, x: Number, y: Number, weights: Float[Tensor, "9"]) -> None:
    """Nine tokens; the first asks, and is linked to those it listens to."""
    for index, weight in enumerate(weights.tolist()):
        left, top = x + 25 * (index % 3), y + 25 * (index // 3)
        _cells(page, left, top, torch.tensor([[weight]]), MIXING, 19)
        if index > 0 and weight > 0.05:
            page.link((x + 9.5, y + 9.5), (left + 9.5, top + 9.5), weight)
    page.outline(Box(x, y, x + 19, y + 19))


def _cells(page: Drawing, x: Number, y: Number, values: Values, colour: str, side: Number) -> None:
    """A table of weights between 0 and 1."""
    page.grid((x, y), values, colour, across=(side, 0), down=(0, side))


def _first_row(page: Drawing, x: Number, y: Number, width: Number, height: Number) -> None:
    """Marks the row of weights of whoever asks."""
    page.outline(Box(x, y, x + width, y + height))


def _caption(page: Drawing, x: Number, y: Number, text: str) -> None:
    """The words under a part of a pictogram."""
    page.text(x, y + 112, text, 11.5, GREY, "center")


def _times(page: Drawing, x: Number, y: Number) -> None:
    """The sign between the weights and what they weight."""
    page.text(x, y + 68, "×", 16, GREY, "center")


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
