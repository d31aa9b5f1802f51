"""A stored notebook holds each picture in its smallest form, and nothing that needs a kernel."""

from base64 import b64decode, b64encode
from io import BytesIO
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_output
from PIL import Image

from attn_course.course import data, outputs

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_small_and_alive_without_a_kernel(notebook):
    assert notebook.stat().st_size <= 1.5e6
    for cell in nbformat.read(notebook, as_version=4).cells:
        assert not any(
            outputs.WIDGET in output.get("data", {}) for output in cell.get("outputs", [])
        )


def drawn(pixels):
    """A cell that shows pixels, and draws a slider."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    picture = {outputs.PNG: b64encode(buffer.getvalue()).decode(), "text/plain": "<Figure>"}
    bundles = [picture, {outputs.WIDGET: {"model_id": "1"}, "text/markdown": "a hint"}]
    return new_code_cell(outputs=[new_output("display_data", data=bundle) for bundle in bundles])


def pixels_of(picture):
    return np.asarray(Image.open(BytesIO(b64decode(picture))).convert("RGB"), float)


def photograph():
    return (data.photograph("cat", 200).permute(1, 2, 0) * 255).byte().numpy()


def chart():
    """Few colours and much noise: what a JPEG is bad at."""
    colours = np.random.default_rng(0).integers(0, 256, (40, 3), np.uint8)
    return colours[np.random.default_rng(1).integers(0, 40, (200, 300))]


@pytest.mark.parametrize(
    ("make", "kind", "error"), [(photograph, outputs.JPEG, 4), (chart, outputs.PNG, 0)]
)
def test_pictures_are_small_and_show_the_same(make, kind, error):
    cell = drawn(make())
    before = len(outputs.pictures(cell)[0])
    outputs.keep_little(cell)
    assert [set(output.data) for output in cell.outputs] == [
        {kind, "text/plain"},
        {"text/markdown"},
    ]
    (picture,) = outputs.pictures(cell)
    assert len(picture) < 0.6 * before
    assert np.abs(pixels_of(picture) - make()).mean() <= error


def test_to_store_again_changes_nothing():
    for make in (photograph, chart):
        cell = drawn(make())
        outputs.keep_little(cell)
        once = outputs.pictures(cell)
        outputs.keep_little(cell)
        assert outputs.pictures(cell) == once


def picture(pixels):
    cell = drawn(pixels)
    cell.outputs.pop()
    return cell


@pytest.mark.parametrize(("specks", "alike"), [(0, True), (4, True), (500, False)])
def test_specks_in_a_picture_are_no_change(specks, alike):
    pixels = np.zeros((400, 500, 3), dtype=np.uint8)
    other = pixels.copy()
    other[0, :specks] = 255
    assert outputs.look_alike(picture(pixels), picture(other)) == alike


def test_other_text_or_another_size_is_a_change():
    pixels = np.zeros((40, 50, 3), dtype=np.uint8)
    assert not outputs.look_alike(picture(pixels), picture(pixels[:-1]))
    printed = [new_output("stream", name="stdout", text=text) for text in ("1\n", "2\n")]
    one, two = (new_code_cell(outputs=[output]) for output in printed)
    assert outputs.look_alike(one, one)
    assert not outputs.look_alike(one, two)
