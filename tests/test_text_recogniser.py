"""Multi-Head Self-Attention computes what a network in use computes.

The network, PP-OCR's text recogniser, is too large for the repository: these tests fetch it.
"""

import importlib.util
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch

from attn_course import MultiHeadSelfAttention
from attn_course.course import data

WHEEL = "rapidocr==3.10.0"
# Of both attention blocks: weights, and what is computed on the way.
BLOCKS = {
    "first": (
        ("linear_0.w_0", "linear_0.b_0", "linear_1.w_0", "linear_1.b_0"),
        ("p2o.pd_op.layer_norm.0.0", "p2o.pd_op.softmax.0.0", "p2o.pd_op.add.67.0"),
    ),
    "second": (
        ("linear_4.w_0", "linear_4.b_0", "linear_5.w_0", "linear_5.b_0"),
        ("p2o.pd_op.layer_norm.2.0", "p2o.pd_op.softmax.1.0", "p2o.pd_op.add.73.0"),
    ),
}


@pytest.fixture(scope="module")
def build():
    """data/build.py, which knows where things are in the wheel."""
    spec = importlib.util.spec_from_file_location("build", data.DATA / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def network(build, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    command += ["--disable-pip-version-check", "--timeout=15", "--retries=1"]
    try:
        done = subprocess.run(
            [*command, f"--dest={folder}", WHEEL], capture_output=True, text=True, timeout=300
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"no network good enough: `pip download {WHEEL}` took more than five minutes")
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        pytest.skip(f"no network: `pip download {WHEEL}` failed: {reason}")
    return onnx.load_from_string(build.from_wheel(folder, build.RAPIDOCR, build.RECOGNISER))


def lines():
    """The chapter's line; upside down, as a negative, its first half, and at half the contrast."""
    line = data.text_recogniser().image
    yield from (line, line.flip(0, 1), 1 - line, line[:, :200], 0.5 + 0.5 * line)


def run(build, network, image, block):
    """The block's tokens, weights and result for a line with values in [0, 1]."""
    build.ATTENTION_VALUES = dict(zip(build.ATTENTION_VALUES, BLOCKS[block][1], strict=True))
    pixels = (255 * image.numpy()).round().astype(np.uint8)
    return [torch.from_numpy(value) for value in build.recognise(network, pixels)[1:]]


def load(network, block):
    arrays = {i.name: onnx.numpy_helper.to_array(i) for i in network.graph.initializer}
    weights = [torch.from_numpy(arrays[name].copy()) for name in BLOCKS[block][0]]
    module = MultiHeadSelfAttention(120, num_heads=8).eval()
    names = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
    weights = [w.mT if w.ndim == 2 else w for w in weights]
    module.load_state_dict(dict(zip(names, weights, strict=True)))
    return module


@pytest.mark.parametrize("block", BLOCKS)
def test_attention_is_that_of_the_network(build, network, block):
    module = load(network, block)
    for image in lines():
        tokens, weights, out = run(build, network, image, block)
        with torch.no_grad():
            torch.testing.assert_close(
                module.attention(tokens[None])[0], weights, rtol=0, atol=1e-5
            )
            torch.testing.assert_close(module(tokens[None])[0], out, rtol=0, atol=1e-5)


def test_the_stored_block_is_that_of_the_network(build, network):
    stored = data.text_recogniser()
    module = load(network, "first")
    assert torch.equal(module.in_proj_weight, stored.qkv_weight.T)
    assert torch.equal(module.in_proj_bias, stored.qkv_bias)
    assert torch.equal(module.out_proj.weight, stored.out_weight.T)
    assert torch.equal(module.out_proj.bias, stored.out_bias)
    tokens, weights, out = run(build, network, stored.image, "first")
    torch.testing.assert_close(tokens, stored.tokens, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(weights, stored.weights, rtol=0, atol=1e-4)
    torch.testing.assert_close(out, stored.out, rtol=1e-4, atol=1e-4)


def test_the_network_reads_the_line(build, network):
    stored = data.text_recogniser()
    pixels = (255 * stored.image.numpy()).round().astype(np.uint8)
    probabilities = build.recognise(network, pixels)[0]
    assert tuple(build.read_letters(network, probabilities)) == stored.read
