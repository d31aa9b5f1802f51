"""A figure with something to move: a slider below it draws it anew.

In the stored page the figure stands as it was drawn first, and a hint where the slider was, since a
slider needs the kernel. Running the cell brings it.
"""

from collections.abc import Callable

import matplotlib.pyplot as plt
from IPython.display import display
from ipywidgets import Layout, VBox, Widget
from matplotlib.figure import Figure

from attn_course.course.outputs import WIDGET

HINT = "*Run this cell and those above it: what you can move appears here.*"  # once stored


def slide(draw: Callable[..., Figure], **sliders: Widget) -> None:
    """Shows what `draw` draws, and below it a slider for each of its arguments.

    Args:
        draw: Takes the values of the sliders by name, and returns a figure.
        sliders: Widgets of ipywidgets with a `value`, as in `gamma=FloatSlider(1.0, min=0, max=2)`.
    """

    def redraw(_: object = None) -> Figure:
        figure = draw(**{name: slider.value for name, slider in sliders.items()})
        plt.close(figure)  # or it would be shown once more at the end of the cell
        return figure

    shown = display(redraw(), display_id=True)  # type: ignore[no-untyped-call]
    for name, slider in sliders.items():
        slider.description = slider.description or name
        slider.layout = Layout(width="90%")
        slider.observe(lambda _: shown.update(redraw()), names="value")
    box = VBox(list(sliders.values()))
    view = {"version_major": 2, "version_minor": 0, "model_id": box.model_id}
    display({WIDGET: view, "text/markdown": HINT}, raw=True)  # type: ignore[no-untyped-call]
