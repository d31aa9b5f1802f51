"""Rebuild the files of this folder from their sources.

Two commands first:

    sudo apt-get install dataset-fashion-mnist
    pip download --no-deps --dest sources scikit-image==0.26.0 rapidocr==3.10.0

then ``python data/build.py sources``. It needs numpy, Pillow, onnx and onnxruntime, and writes
beside itself.
"""

import argparse
import gzip
import io
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
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

# One more line of the page, for the network that reads text, in its own width.
RECOGNISED_LINE = (228, 48, 379, 66)
RECOGNISER = "rapidocr/models/PP-OCRv6_rec_small.onnx"
# The first of its two attention blocks: names of weights, and of what is computed on the way.
ATTENTION_WEIGHTS = {
    "qkv_weight": "linear_0.w_0",
    "qkv_bias": "linear_0.b_0",
    "out_weight": "linear_1.w_0",
    "out_bias": "linear_1.b_0",
}
ATTENTION_VALUES = {
    "tokens": "p2o.pd_op.layer_norm.0.0",
    "weights": "p2o.pd_op.softmax.0.0",
    "out": "p2o.pd_op.add.67.0",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sources", type=Path, help="the folder with the two downloaded wheels")
    sources = parser.parse_args().sources

    build_photographs(sources)
    build_text_lines(sources)
    build_angle_classifier(sources)
    build_text_recogniser(sources)
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


def build_text_recogniser(sources: Path) -> None:
    """Keep one attention block of the network that reads text, and what it does with one line."""
    page = open_picture(sources, "page.png").convert("L")
    left, top, right, bottom = RECOGNISED_LINE
    width = round(48 * (right - left) / (bottom - top) / 8) * 8
    line = page.resize((width, 48), Image.Resampling.BILINEAR, box=RECOGNISED_LINE)
    pixels = np.asarray(line)
    model = onnx.load_from_string(from_wheel(sources, RAPIDOCR, RECOGNISER))
    constants = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    arrays = {name: constants[theirs] for name, theirs in ATTENTION_WEIGHTS.items()}
    probabilities, *values = recognise(model, pixels)
    arrays |= dict(zip(ATTENTION_VALUES, values, strict=True))
    np.savez_compressed(
        DATA / "text_recogniser.npz",
        pixels=pixels,
        read=np.array(read_letters(model, probabilities)),
        **arrays,
    )


def recognise(model: onnx.ModelProto, pixels: np.ndarray) -> list[np.ndarray]:
    """What the network computes for a grey line (48, w): its answer, then ATTENTION_VALUES."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    for name in ATTENTION_VALUES.values():
        value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        exposed.graph.output.append(value)
    session = onnxruntime.InferenceSession(exposed.SerializeToString())
    picture = ((pixels / 255 - 0.5) / 0.5).astype(np.float32)
    outputs = session.run(None, {"x": np.broadcast_to(picture, (1, 3, *picture.shape))})
    return [output[0] for output in outputs]


def read_letters(model: onnx.ModelProto, probabilities: np.ndarray) -> list[str]:
    """The letter that the network reads at each token; empty where it reads none."""
    (letters,) = (p.value.split("\n") for p in model.metadata_props if p.key == "character")
    return [["", *letters, " "][k] for k in probabilities.argmax(1)]


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
    (folder / "angle_classifier.txt").write_bytes(network)  # and of text_recogniser.npz
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
