"""The look of the course: its style, its colours, rows of pictures and the map of the course."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from jaxtyping import Float
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from torch import Tensor

from attn_course.course.course_map import course_map, where
from attn_course.course.palette import DIFFERENCES, GATES, GATING, MIXING, SELECTION

__all__ = [
    "DIFFERENCES",
    "GATES",
    "GATING",
    "MIXING",
    "SELECTION",
    "course_map",
    "show_attention",
    "show_images",
    "use_style",
    "where",
]

Photograph = Float[Tensor, "3 _ _"]
Map = Float[Tensor, "_ _"]

OVERLAY = 0.65  # of a map over an image; the rest is the image's grey


def use_style() -> None:
    """Makes every figure drawn from here on look like the course."""
    plt.style.use(Path(__file__).with_name("course.mplstyle"))


def show_images(
    images: Sequence[Photograph | Map],
    titles: Sequence[str] = (),
    *,
    columns: int = 4,
    cmap: str = GATES,
    limits: tuple[float | int, float | int] | None = None,
    colour_bar: str = "",
) -> None:
    """Shows photographs and maps side by side, all maps on one colour scale.

    Args:
        images: photographs (3, h, w) with values in [0, 1], maps (h, w), or a mixture.
        titles: one for each image, or none at all.
        columns: how many images stand in a row before the next row begins.
        cmap: `GATES` or `DIFFERENCES`; the latter is centred on zero.
        limits: the values at the two ends of the scale; by default the extremes of the maps.
        colour_bar: what the maps' values mean; without it no bar is drawn.
    """
    if not images:
        raise ValueError("images is empty: give at least one photograph (3, h, w) or map (h, w)")
    if titles and len(titles) != len(images):
        raise ValueError(f"titles has {len(titles)} entries for {len(images)} images: give as many")

    maps = [image for image in images if image.ndim == 2]
    scale = Normalize(*(limits or _limits(maps, cmap)))
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    height_over_width = max(image.shape[-2] / image.shape[-1] for image in images)
    width = plt.rcParams["figure.figsize"][0]
    column_width = width * (0.86 if colour_bar else 1) / columns
    row_height = column_width * height_over_width + (0.35 if titles else 0.1)
    figure, grid = plt.subplots(rows, columns, figsize=(width, rows * row_height), squeeze=False)

    for axes in grid.flat:
        axes.set_axis_off()
    for axes, image in zip(grid.flat, images, strict=False):
        pixels = image.permute(1, 2, 0) if image.ndim == 3 else image
        axes.imshow(pixels.detach().numpy(), cmap=cmap, norm=scale)
    for axes, title in zip(grid.flat, titles, strict=False):
        axes.set_title(title)
    if colour_bar:
        figure.colorbar(
            ScalarMappable(scale, cmap), ax=grid, label=colour_bar, shrink=0.8, pad=0.02
        )
    plt.show()


def show_attention(
    images: Float[Tensor, "b _ h w"] | Sequence[Photograph],
    maps: Mapping[str, Tensor],
    *,
    limits: tuple[float | int, float | int] | None = None,
    colour_bar: str = "weight of a position",
) -> None:
    """Shows images, and below them one row for each entry of `maps`, laid over the images in grey.

    The squares of a map are its positions, drawn as large as they are in the image. All rows have
    one colour scale.

    Args:
        images: b photographs (3, h, w) with values in [0, 1]; or a tensor of b images, which may
            be grey (b, 1, h, w).
        maps: One weight for each position, (b, 1, h, w), under the name of its row: the spatial
            gate of CBAM, say, from `attn_course.insertion.attention_maps`.
        limits: the values at the two ends of the scale; by default the extremes of all maps.
        colour_bar: what the maps' values mean.
    """
    if not len(images) or not maps:
        raise ValueError("images or maps is empty: give at least one of each")
    for name, map_ in maps.items():
        if map_.ndim != 4 or map_.shape[:2] != (len(images), 1) or map_[0].numel() == 1:
            raise ValueError(
                f"maps[{name!r}] has the shape {tuple(map_.shape)}, which is not one weight for "
                f"each position: give ({len(images)}, 1, h, w), with h and w of the map"
            )

    scale = Normalize(*(limits or _limits([m.flatten(1) for m in maps.values()], GATES)))
    height, width = images[0].shape[-2:]
    rows, columns = len(maps) + 1, len(images)
    page = plt.rcParams["figure.figsize"][0]
    row_height = 0.8 * page / columns * height / width + 0.1
    size = (page, rows * row_height)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for column, image in enumerate(images):
        grid[0, column].imshow(image.permute(1, 2, 0).detach().numpy(), cmap="gray")
        grid[0, column].set_axis_off()
        for axes, (name, map_) in zip(grid[1:, column], maps.items(), strict=True):
            axes.imshow(image.mean(0).detach().numpy(), cmap="gray", vmin=0, vmax=1)
            axes.imshow(
                map_[column, 0].detach().numpy(),
                cmap=GATES,
                norm=scale,
                alpha=OVERLAY,
                extent=(-0.5, width - 0.5, height - 0.5, -0.5),
            )
            axes.set(xticks=[], yticks=[], ylabel="" if column else name)
            axes.spines[:].set_visible(False)
    mappable = ScalarMappable(scale, GATES)
    figure.colorbar(mappable, ax=grid[1:], label=colour_bar, alpha=OVERLAY, shrink=0.8, pad=0.02)
    plt.show()


def _limits(maps: Sequence[Map], cmap: str) -> tuple[float, float]:
    """The ends of the colour scale that all maps share."""
    if not maps:
        return 0.0, 1.0
    lowest = min(map_.min().item() for map_ in maps)
    highest = max(map_.max().item() for map_ in maps)
    if cmap == DIFFERENCES:
        highest = max(abs(lowest), abs(highest))
        lowest = -highest
    return lowest, highest
