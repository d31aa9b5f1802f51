"""The course's data: complete, small, licensed, and read as promised."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from attn_course.course import data

FILES = sorted(file for file in data.DATA.rglob("*") if file.is_file())
LICENCES = ("CC0", "public domain", "MIT", "BSD-3-Clause", "Apache-2.0")


# --- The folder ---------------------------------------------------------------------------------


def test_everything_together_is_at_most_5_mb() -> None:
    assert sum(file.stat().st_size for file in FILES) <= 5_000_000


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_file_is_accounted_for(file: Path) -> None:
    """A data file has a row with a licence; a licence text is linked; the rest is named."""
    readme = (data.DATA / "README.md").read_text()
    path = file.relative_to(data.DATA).as_posix()
    if path.startswith("licences/"):
        assert f"]({path})" in readme, f"{path}: no row of data/README.md links to this text"
    elif path == "build.py":
        assert "`build.py`" in readme
    elif path != "README.md":
        rows = [line for line in readme.splitlines() if line.startswith(f"| `{path}`")]
        assert len(rows) == 1, f"{path}: data/README.md needs one row for it, found {len(rows)}"
        licence = rows[0].split("|")[5]
        assert any(known in licence for known in LICENCES), f"{path}: no known licence: {licence}"


def test_readme_names_no_file_that_is_missing() -> None:
    readme = (data.DATA / "README.md").read_text()
    named = re.findall(r"^\| `([^`]+)`", readme, re.MULTILINE)
    named += re.findall(r"\]\((licences/[^)]+)\)", readme)
    assert named
    assert [path for path in named if not (data.DATA / path).is_file()] == []


# --- Photographs --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", data.photographs())
def test_photograph_has_useful_size_and_range(name: str) -> None:
    picture = data.photograph(name)
    assert picture.dtype == torch.float32
    assert picture.shape[0] == 3
    assert 450 <= max(picture.shape) <= 640
    assert 0 <= picture.min() < 0.1
    assert 0.8 < picture.max() <= 1


def test_photograph_is_red_green_blue() -> None:
    red, green, blue = data.photograph("coffee").mean((1, 2))  # a red cup on brown wood
    assert red > green > blue


def test_photograph_resized_keeps_aspect_ratio_and_brightness() -> None:
    full, small = data.photograph("coffee"), data.photograph("coffee", height=100)
    assert small.shape == (3, 100, 150)
    assert torch.allclose(full.mean((1, 2)), small.mean((1, 2)), atol=5e-3)
    by_area = torch.nn.functional.interpolate(full[None], (100, 150), mode="area")[0]
    assert (small - by_area).abs().mean() < 0.009  # 0.005; without antialiasing 0.013


def test_a_photograph_of_ones_own(tmp_path):
    mine = tmp_path / "mine.png"
    Image.new("RGB", (6, 4), (255, 0, 51)).save(mine)
    assert torch.equal(
        data.photograph(mine), torch.tensor([1, 0, 0.2]).view(3, 1, 1).expand(3, 4, 6)
    )
    assert data.photograph(mine, height=2).shape == (3, 2, 3)


def test_the_cameraman_is_small_and_grey():
    picture = data.photograph(data.DATA / "cameraman.jpg", height=64)
    assert picture.shape == (3, 64, 64)
    assert torch.equal(picture[0], picture[2])


def test_unknown_photograph_is_told_what_there_is() -> None:
    with pytest.raises(ValueError, match="name='dog': there is only astronaut, cat, coffee"):
        data.photograph("dog")


def test_photograph_without_height_is_refused() -> None:
    with pytest.raises(ValueError, match="height=0: it must be at least 1"):
        data.photograph("cat", height=0)


# --- Fashion-MNIST ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fashion() -> data.FashionMNIST:
    return data.fashion_mnist()


def test_fashion_mnist_is_class_balanced(fashion: data.FashionMNIST) -> None:
    assert len(fashion.class_names) == 10
    assert torch.bincount(fashion.train_labels).tolist() == [600] * 10
    assert torch.bincount(fashion.test_labels).tolist() == [150] * 10


def test_fashion_mnist_is_not_sorted_by_class(fashion: data.FashionMNIST) -> None:
    """The first batch of an unshuffled loader already holds every class."""
    assert len(fashion.train_labels[:64].unique()) == 10
    assert len(fashion.test_labels[:64].unique()) == 10


def test_fashion_mnist_values(fashion: data.FashionMNIST) -> None:
    for images in (fashion.train_images, fashion.test_images):
        assert images.dtype == torch.float32
        assert images.min() == 0
        assert images.max() == 1
        assert 0.27 < images.mean() < 0.30  # 0.286 over the whole of Fashion-MNIST


def test_fashion_mnist_labels_fit_the_pictures(fashion: data.FashionMNIST) -> None:
    """The nearest class mean is right far more often than one time in ten."""
    means = torch.stack(
        [fashion.train_images[fashion.train_labels == c].mean(0).flatten() for c in range(10)]
    )
    nearest = torch.cdist(fashion.test_images.flatten(1), means).argmin(1)
    assert (nearest == fashion.test_labels).float().mean() > 0.6


def test_fashion_mnist_has_no_test_picture_among_the_training_pictures(
    fashion: data.FashionMNIST,
) -> None:
    train = {image.numpy().tobytes() for image in fashion.train_images}
    test = {image.numpy().tobytes() for image in fashion.test_images}
    assert train & test == set()


# --- Networks in use ------------------------------------------------------------------------------


def test_text_recogniser_reads_the_line() -> None:
    line = data.text_recogniser()
    repeats = zip(line.read, ("", *line.read), strict=False)
    assert "".join(now for now, before in repeats if now != before) == "of the coins and the"
    n, d = line.tokens.shape
    assert line.image.shape == (48, 8 * n)
    assert 0 <= line.image.min() < 0.3  # ink
    assert 0.7 < line.image.max() <= 1  # paper
    assert len(line.read) == n
    assert line.qkv_weight.shape == (d, 3 * d)
    assert line.weights.shape == (8, n, n)
    assert torch.allclose(line.weights.sum(-1), torch.ones(8, n))
    assert line.out.shape == (n, d)


# --- Golden arrays ------------------------------------------------------------------------------


def test_golden_arrays_are_tensors_by_name() -> None:
    golden = data.golden("squeeze_excitation")
    assert {"x", "cotangent", "y_eval", "grad_x_eval", "param/fc.0.weight"} <= golden.keys()
    assert "meta" not in golden
    assert golden["param/fc.0.weight"].shape == (4, 64)
    assert golden["y_eval"].shape == golden["x"].shape
    assert golden["x"].dtype == torch.float32


def test_unknown_golden_arrays_are_told_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"name='se': there is only .*squeeze_excitation"):
        data.golden("se")


# --- Installed without the repository -----------------------------------------------------------


def test_without_the_repository_the_error_says_to_clone_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(data, "DATA", tmp_path / "data")
    monkeypatch.setattr(data, "GOLDEN", tmp_path / "tests" / "golden")
    with pytest.raises(FileNotFoundError, match="clone the repository"):
        data.photograph("cat")
    with pytest.raises(FileNotFoundError, match="clone the repository"):
        data.fashion_mnist()
    with pytest.raises(FileNotFoundError, match="clone the repository"):
        data.golden("squeeze_excitation")
