"""Rebuild the files of this folder from their sources.

Two commands first:

    sudo apt-get install dataset-fashion-mnist
    pip download --no-deps --dest sources scikit-image==0.26.0 rapidocr==3.10.0 mediapipe==0.10.21

then ``python data/build.py sources``. It needs numpy, Pillow, onnx, onnxruntime and
ai-edge-litert==2.3.0, and writes beside itself. mediapipe's wheel is that of Python 3.11.
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
MEDIAPIPE = "mediapipe-0.10.21-*.whl"
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts it

PHOTOGRAPHS = {"cat": "chelsea.png", "coffee": "coffee.png", "astronaut": "astronaut.png"}

# Words on scikit-image's `page`, (left, top, right, bottom) in pixels: what a network reads.
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

SEGMENTATION = "mediapipe/modules/selfie_segmentation/selfie_segmentation.tflite"
# Its layers with weights, as `attn_course.course.segmentation` calls them, in the graph's order.
SEGMENTATION_LAYERS = [
    "first",
    *(
        f"encoder.{block}.{layer}"
        for block in range(8)
        for layer in ("widen", "depthwise", "gate.reduce", "gate.expand", "narrow")
        if block not in (1, 2) or "gate" not in layer
    ),
    *("head", "head_gate"),
    *(
        f"decoder.{level}.{layer}"
        for level in range(3)
        for layer in ("fit", "gate.reduce", "gate.expand", "mix", "depthwise")
    ),
    "last",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sources", type=Path, help="the folder with the three downloaded wheels")
    sources = parser.parse_args().sources

    build_photographs(sources)
    build_text_recogniser(sources)
    build_selfie_segmentation(sources)
    build_fashion_mnist()
    copy_licences(sources)


def build_photographs(sources: Path) -> None:
    """Four PNG files become JPEG at their full size; the rocket is one already."""
    folder = DATA / "photographs"
    folder.mkdir(exist_ok=True)
    for name, file in PHOTOGRAPHS.items():
        picture = open_picture(sources, file).convert("RGB")
        picture.save(folder / f"{name}.jpg", quality=95, optimize=True)
    rocket = from_wheel(sources, SCIKIT_IMAGE, "skimage/data/rocket.jpg")
    (folder / "rocket.jpg").write_bytes(rocket)
    cameraman = open_picture(sources, "camera.png")
    cameraman.save(DATA / "cameraman.jpg", quality=90, optimize=True)


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


def build_selfie_segmentation(sources: Path) -> None:
    """Keep the weights under our names, and what LiteRT computes with them for one image."""
    from ai_edge_litert.schema_py_generated import BuiltinOperator, ModelT

    model = ModelT.InitFromPackedBuf(from_wheel(sources, MEDIAPIPE, SEGMENTATION))
    (graph,) = model.subgraphs
    kinds = [model.operatorCodes[operator.opcodeIndex] for operator in graph.operators]
    kinds = [max(kind.builtinCode, kind.deprecatedBuiltinCode) for kind in kinds]
    by_kind = list(zip(kinds, graph.operators, strict=True))
    stored = {o.outputs[0]: o.inputs[0] for k, o in by_kind if k == BuiltinOperator.DEQUANTIZE}

    def weights(tensor: int) -> np.ndarray:
        """Half precision, in the file's order: (out, h, w, in), or (1, h, w, channels)."""
        found = graph.tensors[stored[tensor]]
        return model.buffers[found.buffer].data.view(np.float16).reshape(found.shape)

    convolutions = (BuiltinOperator.CONV_2D, BuiltinOperator.DEPTHWISE_CONV_2D)
    layers = [pair for pair in by_kind if pair[0] in (*convolutions, BuiltinOperator.CUSTOM)]
    arrays = {}
    for name, (kind, operator) in zip(SEGMENTATION_LAYERS, layers, strict=True):
        order = (0, 3, 1, 2) if kind == BuiltinOperator.CONV_2D else (3, 0, 1, 2)
        weight = weights(operator.inputs[1]).transpose(order)
        arrays[f"{name}.weight"] = weight[:, :, 0, 0] if ".gate." in name else weight
        arrays[f"{name}.bias"] = weights(operator.inputs[2])

    image = open_picture(sources, "astronaut.png").resize((64, 64), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)  # (64, 64, 3)
    last = arrays["last.weight"], arrays["last.bias"]
    sigmoids = [o.outputs[0] for k, o in by_kind if k == BuiltinOperator.LOGISTIC][:-1]
    gates, mask = segment(model, pixels, sigmoids, *last)
    # No layer is called so: what the network computes, to compare with.
    arrays |= {"image": pixels, "gates": gates, "mask": mask[1::5, 1::5]}
    np.savez_compressed(DATA / "selfie_segmentation.npz", **arrays)


def segment(
    model: "ModelT",
    pixels: np.ndarray,
    gates: list[int],
    weight: np.ndarray,
    bias: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """All gates, end to end, and the mask (256, 256) for an image (64, 64, 3), each pixel 4 × 4.

    LiteRT does not know the last layer but one, a transposed convolution: it is cut off with the
    sigmoid behind it, and computed here.
    """
    import flatbuffers
    from ai_edge_litert.interpreter import Interpreter

    (graph,) = model.subgraphs
    *graph.operators, last, _ = graph.operators
    graph.outputs = [last.inputs[0], *gates]
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    interpreter = Interpreter(model_content=bytes(builder.Output()))
    interpreter.allocate_tensors()
    large = (pixels.astype(np.float32) / 255).repeat(4, 0).repeat(4, 1)
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], large[None])
    interpreter.invoke()
    features, *gates = (
        interpreter.get_tensor(output["index"])[0] for output in interpreter.get_output_details()
    )
    scores = np.einsum("hwc, cdij -> hiwj", features, weight.astype(np.float32)) + bias
    mask = 0.5 + 0.5 * np.tanh(scores.reshape(256, 256) / 2)  # the sigmoid, without overflow
    return np.concatenate([gate.ravel() for gate in gates]), mask


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
    """Copy the texts that must go with the page and the networks; fashion_mnist.txt is typed in."""
    folder = DATA / "licences"
    folder.mkdir(exist_ok=True)
    page = from_wheel(sources, SCIKIT_IMAGE, "scikit_image-0.26.0.dist-info/LICENSE.txt")
    (folder / "page.txt").write_bytes(page)
    rapidocr = "rapidocr-3.10.0.dist-info/licenses"
    network = from_wheel(sources, RAPIDOCR, f"{rapidocr}/LICENSE")
    (folder / "text_recogniser.txt").write_bytes(network)
    notice = from_wheel(sources, RAPIDOCR, f"{rapidocr}/MODEL_LICENSES.md")
    (folder / "text_recogniser_notice.md").write_bytes(notice)
    segmentation = from_wheel(sources, MEDIAPIPE, "mediapipe-0.10.21.dist-info/LICENSE")
    (folder / "selfie_segmentation.txt").write_bytes(segmentation)


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
