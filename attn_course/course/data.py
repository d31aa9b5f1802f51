"""The course's real data: photographs, Fashion-MNIST, networks in use, golden arrays.

All of it lives in the course's repository, so that no notebook needs a network. What each file is,
who made it and under which licence stands in ``data/README.md``; the golden arrays have their own
``tests/golden/README.md``.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

REPOSITORY = Path(__file__).parents[2]
DATA = REPOSITORY / "data"
GOLDEN = REPOSITORY / "tests" / "golden"


def photographs() -> list[str]:
    """The names that `photograph` knows."""
    return _names(DATA / "photographs", ".jpg")


def photograph(name: str | Path, height: int | None = None) -> Float[Tensor, "3 h w"]:
    """One of the course's photographs, or one of your own, with values in [0, 1].

    Args:
        name: One of `photographs()`, or the path of an image file: `Path("my_cat.jpg")`.
        height: Resize to this many rows, keeping the aspect ratio. The default keeps the full size.
    """
    file = name if isinstance(name, Path) else _file(DATA / "photographs", name, ".jpg")
    picture = Image.open(file).convert("RGB")
    if height is not None:
        if height < 1:
            raise ValueError(f"height={height}: it must be at least 1")
        width = max(1, round(picture.width * height / picture.height))
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)  # antialiased by Pillow
    pixels = torch.from_numpy(np.array(picture))  # (h, w, 3)
    return pixels.permute(2, 0, 1).contiguous() / 255


@dataclass(frozen=True)
class FashionMNIST:
    """A class-balanced part of Fashion-MNIST; pictures have values in [0, 1]."""

    train_images: Float[Tensor, "train 1 28 28"]
    train_labels: Int[Tensor, "train"]
    test_images: Float[Tensor, "test 1 28 28"]
    test_labels: Int[Tensor, "test"]
    class_names: tuple[str, ...] = (
        "T-shirt/top",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    )


def fashion_mnist() -> FashionMNIST:
    """600 training and 150 test pictures of each of the ten classes, in the original's order."""
    arrays = _arrays(_file(DATA, "fashion_mnist", ".npz"))
    return FashionMNIST(
        train_images=arrays["train_images"].unsqueeze(1) / 255,
        train_labels=arrays["train_labels"].long(),
        test_images=arrays["test_images"].unsqueeze(1) / 255,
        test_labels=arrays["test_labels"].long(),
    )


@dataclass(frozen=True)
class TextRecogniser:
    """The first attention block of PP-OCR's text recogniser, and what it does with one line.

    The weights are as the network stores them, for ``tokens @ qkv_weight + qkv_bias``: the columns
    are queries, keys and values, one after the other, and in each the eight heads.
    """

    image: Float[Tensor, "48 width"]  # the line of text, with values in [0, 1]
    read: tuple[str, ...]  # the letter that the network reads at each token; often none: ""
    qkv_weight: Float[Tensor, "d three_d"]
    qkv_bias: Float[Tensor, "three_d"]
    out_weight: Float[Tensor, "d d"]
    out_bias: Float[Tensor, "d"]
    tokens: Float[Tensor, "n d"]  # what the block takes: one token for each 8 columns of the image
    weights: Float[Tensor, "heads n n"]  # its attention weights, as the network computes them
    out: Float[Tensor, "n d"]  # its result


def text_recogniser() -> TextRecogniser:
    """One attention block of a network that reads text, with its input and output for one line."""
    file = _file(DATA, "text_recogniser", ".npz")
    arrays = _arrays(file)
    with np.load(file) as stored:
        read = tuple(stored["read"].tolist())
    return TextRecogniser(image=arrays.pop("pixels") / 255, read=read, **arrays)


@dataclass(frozen=True)
class SelfieSegmentation:
    """The weights of MediaPipe's network that finds people, and what it computes for one image."""

    weights: dict[str, Tensor]  # by the names of `attn_course.course.segmentation`
    image: Float[Tensor, "3 256 256"]
    gates: Float[Tensor, "744"]  # its ten gates for the image, end to end
    mask: Float[Tensor, "51 51"]  # every fifth pixel, from the second on


def selfie_segmentation() -> SelfieSegmentation:
    """A trained network with ten gates, for `attn_course.course.segmentation.load`."""
    arrays = _arrays(_file(DATA, "selfie_segmentation", ".npz"))
    pixels = arrays.pop("image").permute(2, 0, 1) / 255  # (3, 64, 64)
    image = pixels.repeat_interleave(4, 1).repeat_interleave(4, 2)
    gates, mask = arrays.pop("gates"), arrays.pop("mask")
    weights = {name: weight.float() for name, weight in arrays.items()}
    return SelfieSegmentation(weights, image, gates, mask)


def golden(name: str) -> dict[str, Tensor]:
    """What released code computes for one mechanism, as arrays to compare with.

    Whose code it is, the authors' or another's, stands in ``tests/golden/README.md``.

    Args:
        name: The file's, without ``.npz``: the mechanism, or one variant of it.

    Returns:
        The arrays by name: ``x``, ``param/...`` for each weight, ``y_...`` for outputs and
        ``grad_...`` for gradients.
    """
    return _arrays(_file(GOLDEN, name, ".npz"))


def _arrays(path: Path) -> dict[str, Tensor]:
    """The numeric arrays of an .npz file as tensors."""
    with np.load(path) as stored:
        arrays = {key: stored[key] for key in stored.files}
    return {
        key: torch.from_numpy(array) for key, array in arrays.items() if array.dtype.kind != "U"
    }


def _file(folder: Path, name: str, suffix: str) -> Path:
    """The file of that name, or an error that lists the names there are."""
    names = _names(folder, suffix)
    if name not in names:
        raise ValueError(f"name={name!r}: there is only {', '.join(names)}")
    return folder / f"{name}{suffix}"


def _names(folder: Path, suffix: str) -> list[str]:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {folder}: the data belongs to the course's repository and is not "
            "installed with the package; clone the repository and run `pip install -e .` in it"
        )
    return sorted(file.stem for file in folder.glob(f"*{suffix}"))
