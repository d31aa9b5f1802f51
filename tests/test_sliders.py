"""What a slider draws, without a browser; tests/test_browser.py moves one."""

import matplotlib.pyplot as plt
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from ipywidgets import IntSlider

from attn_course.course.outputs import WIDGET
from attn_course.course.sliders import slide


def test_a_figure_is_drawn_at_once_and_anew_when_the_slider_moves():
    InteractiveShell.instance()
    drawn = []

    def draw(height):
        drawn.append(height)
        return plt.figure()

    slider = IntSlider(2, min=0, max=5)
    with capture_output() as captured:
        slide(draw, height=slider)
        slider.value = 3
    assert drawn == [2, 3]
    assert slider.description == "height"
    assert not plt.get_fignums()  # or the cell would show them once more
    first, box, again = captured.outputs
    assert list(box.data) == [WIDGET, "text/markdown"]
    assert "text/plain" in first.data
    assert again.update
    assert again.transient == first.transient  # the same figure's place
