"""The colours of the course."""

from matplotlib.colors import to_rgb

# Colour maps.
GATES = "viridis"  # what lies between "nothing" and "all": gates, weights, attention maps
DIFFERENCES = "RdBu_r"  # what has a zero in the middle: differences, signed features

# One colour for each family of attention, the same in every figure.
GATING = "#0072B2"
SELECTION = "#D55E00"
MIXING = "#009E73"


def shade(colour: str, amount: float | int) -> tuple[float, float, float]:
    """A tint of the colour, from white (amount 0) to the colour itself (amount 1)."""
    red, green, blue = (1 - amount * (1 - part) for part in to_rgb(colour))
    return red, green, blue
