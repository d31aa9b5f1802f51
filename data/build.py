"""Rebuild the files of this folder from their sources.

Two commands first:

    sudo apt-get install dataset-fashion-mnist
    pip download --no-deps --dest sources scikit-image==0.26.0 rapidocr==3.10.0

then ``python data/build.py sources``. It needs numpy and Pillow, and writes beside itself.
"""

import argparse
import gzip
import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

DATA = Path(__file__).parent
SCIKIT_IMAGE = "scikit_image-0.26.0-*.whl"
RAPIDOCR = "rapidocr-3.10.0-*.whl"
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts it

PHOTOGRAPHS = {"cat": "chelsea.png", "coffee": "coffee.png", "astronaut": "astronaut.png"}

# Groups of words on scikit-image's `page`: (left, top, right, bottom) in pixels. Each is at least
# four times as wide as high: it fills the classifier's 48 × 192 input and needs no padding.
TEXT_LINES = {
    "Region-based": (3, 10, 146, 34),
    "segmentation": (147, 10, 296, 34),
    "Let us first": (3, 47, 84, 64),
    "determine markers": (87, 48, 225, 66),
    "of the coins and the": (228, 48, 379, 66),
    "background.": (3, 65, 84, 83),
    "These markers": (86, 67, 189, 84),
    "are pixels that": (191, 67, 294, 85),
    "we can label": (295, 65, 379, 84),
    "unambiguously": (3, 83, 103, 101),
    "as either object": (107, 85, 226, 103),
    "or background.": (228, 85, 338, 103),
    "the markers": (3, 99, 86, 117),
    "are found at": (87, 101, 175, 119),
    "the two extreme": (177, 103, 298, 121),
    "parts of the": (300, 100, 379, 119),
    "histogram of": (3, 116, 86, 135),
    "grey values:": (88, 120, 173, 138),
    ">>> markers": (15, 167, 89, 184),
    "np.zeros_like(coins)": (103, 173, 244, 190),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sources", type=Path, help="the folder with the two downloaded wheels")
    sources = parser.parse_args().sources

    build_photographs(sources)
    build_text_lines(sources)
    build_angle_classifier(sources)
    build_fashion_mnist()
    copy_licences(sources)


def build_photographs(sources: Path) -> None:
    """Three PNG files become JPEG at their full size; the rocket is one already."""
    folder = DATA / "photographs"
    folder.mkdir(exist_ok=True)
    for name, file in PHOTOGRAPHS.items():
        picture = open_picture(sources, file).convert("RGB")
        picture.save(folder / f"{name}.jpg", quality=95, optimize=True)
    rocket = from_wheel(sources, SCIKIT_IMAGE, "skimage/data/rocket.jpg")
    (folder / "rocket.jpg").write_bytes(rocket)


def build_text_lines(sources: Path) -> None:
    """Cut the lines out of the scanned page and resize each to 48 × 192."""
    page = open_picture(sources, "page.png").convert("L")
    lines = [
        page.resize((192, 48), Image.Resampling.BILINEAR, box=box) for box in TEXT_LINES.values()
    ]
    np.savez_compressed(
        DATA / "text_lines.npz", pixels=np.stack(lines), texts=np.array(list(TEXT_LINES))
    )


def build_angle_classifier(sources: Path) -> None:
    member = "rapidocr/models/ch_ppocr_mobile_v2.0_cls_mobile.onnx"
    (DATA / "angle_classifier.onnx").write_bytes(from_wheel(sources, RAPIDOCR, member))


def build_fashion_mnist() -> None:
    """Keep the first 600 training and 150 test pictures of each class, in their order."""
    arrays = {}
    for part, file, per_class in [("train", "train", 600), ("test", "t10k", 150)]:
        images = read_idx(FASHION_MNIST / f"{file}-images-idx3-ubyte.gz", header=16)
        labels = read_idx(FASHION_MNIST / f"{file}-labels-idx1-ubyte.gz", header=8)
        chosen = np.sort(
            np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in range(10)])
        )
        arrays[f"{part}_images"] = images.reshape(-1, 28, 28)[chosen]
        arrays[f"{part}_labels"] = labels[chosen]
    np.savez_compressed(DATA / "fashion_mnist.npz", **arrays)


def copy_licences(sources: Path) -> None:
    """Copy the texts that must go with the page and the network; fashion_mnist.txt is typed in."""
    folder = DATA / "licences"
    folder.mkdir(exist_ok=True)
    page = from_wheel(sources, SCIKIT_IMAGE, "scikit_image-0.26.0.dist-info/LICENSE.txt")
    (folder / "text_lines.txt").write_bytes(page)
    rapidocr = "rapidocr-3.10.0.dist-info/licenses"
    network = from_wheel(sources, RAPIDOCR, f"{rapidocr}/LICENSE")
    (folder / "angle_classifier.txt").write_bytes(network)
    notice = from_wheel(sources, RAPIDOCR, f"{rapidocr}/MODEL_LICENSES.md")
    (folder / "angle_classifier_notice.md").write_bytes(notice)


def read_idx(path: Path, header: int) -> np.ndarray:
    """The bytes of an IDX file, without the header that says its shape."""
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


def open_picture(sources: Path, file: str) -> Image.Image:
    return Image.open(io.BytesIO(from_wheel(sources, SCIKIT_IMAGE, f"skimage/data/{file}")))


def from_wheel(sources: Path, wheel: str, member: str) -> bytes:
    found = sorted(sources.glob(wheel))
    if not found:
        raise FileNotFoundError(
            f"no {wheel} in {sources}: see the commands at the top of {__file__}"
        )
    return zipfile.ZipFile(found[0]).read(member)


if __name__ == "__main__":
    main()
