"""What a stored notebook keeps of its outputs: small pictures, and nothing that needs a kernel.

Readers clone the notebooks and browse them. A picture is stored in the smallest form that shows the
same: as it was drawn, with a palette, or, if it is a photograph, as a JPEG.
"""

from base64 import b64decode, b64encode
from copy import deepcopy
from io import BytesIO
from typing import Any

import numpy as np
from nbformat import NotebookNode
from PIL import Image

PNG, JPEG = "image/png", "image/jpeg"
WIDGET = "application/vnd.jupyter.widget-view+json"

PALETTE_ERROR = 0.5  # of 255 levels, on average: more would show as bands
QUALITY = 88  # of a JPEG, with full colour resolution, so that its letters stay clear
INVISIBLE = 1e-4  # share of a picture's pixels that may differ from one run to the next


def pictures(cell: NotebookNode) -> list[str]:
    """The pictures that a cell stores, in base64."""
    bundles = (output.get("data", {}) for output in cell.get("outputs", []))
    return [bundle[kind] for bundle in bundles for kind in (PNG, JPEG) if kind in bundle]


def keep_little(cell: NotebookNode) -> None:
    """Stores the pictures of a cell that has run in their smallest form, and no widgets."""
    for output in cell.outputs:
        output.get("data", {}).pop(WIDGET, None)  # what stands in its place is shown instead
        if PNG in output.get("data", {}):
            output.data |= smallest(output.data.pop(PNG))


def smallest(drawn: str) -> dict[str, str]:
    """The smallest form of a PNG that shows the same, by its kind; both in base64."""
    picture = Image.open(BytesIO(b64decode(drawn))).convert("RGB")
    palette = picture.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    error = np.abs(np.asarray(palette.convert("RGB"), float) - np.asarray(picture)).mean()
    forms = [(PNG, drawn)]
    forms += [(JPEG, written(picture, "JPEG", quality=QUALITY, subsampling=0))]
    if error <= PALETTE_ERROR:
        forms += [(PNG, written(palette, "PNG", optimize=True))]
    return dict([min(forms, key=lambda form: len(form[1]))])


def written(picture: Image.Image, form: str, **options: Any) -> str:
    """A picture as a file of that form, in base64."""
    file = BytesIO()
    picture.save(file, form, **options)
    return b64encode(file.getvalue()).decode() + "\n"  # as Jupyter writes it


def look_alike(old: NotebookNode, new: NotebookNode) -> bool:
    """Do two cells show the same, apart from specks in their pictures?"""
    return without_pictures(old) == without_pictures(new) and all(
        map(same_picture, pictures(old), pictures(new))
    )


def without_pictures(cell: NotebookNode) -> list[NotebookNode]:
    """The outputs of a cell, each picture without its content and each count left out."""
    outputs = deepcopy(cell.outputs)
    for output in outputs:
        output.pop("execution_count", None)
        for kind in {PNG, JPEG} & set(output.get("data", {})):
            output.data[kind] = ""
    return list(outputs)


def same_picture(old: str, new: str) -> bool:
    """Are two pictures the same, apart from specks?"""
    one, other = (
        np.asarray(Image.open(BytesIO(b64decode(text))).convert("RGB")) for text in (old, new)
    )
    return one.shape == other.shape and bool((one != other).any(axis=-1).mean() <= INVISIBLE)
