"""What every exported module promises, whatever its mechanism.

A new module is covered as soon as it is listed in CASES; one that is not listed fails a test.
"""

import ast
import copy
import importlib
import inspect
import pickle
import re
import shutil
import sys
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from torch import nn

import attn_course


@dataclass(frozen=True)
class Case:
    """How to build a module for the tests, and the channels that it takes."""

    channels: int
    options: dict[str, Any] = field(default_factory=dict)
    smallest_training_batch: int = 1
    tokens: bool = False  # takes (b, n, c) instead of (b, c, h, w)
    positions_count: bool = False  # its batch norm compares positions as well as pictures
    without_effect: tuple[str, ...] = ()  # parameters whose gradient is zero by mathematics


CASES = {
    "CBAM": [
        Case(64),
        Case(16, {"reduction": 4, "kernel_size": 3, "batch_norm": False}),
        Case(8, {"reduction": 2, "order": "spatial-channel"}),
        Case(8, {"reduction": 2, "kernel_size": 1, "order": "parallel"}),
    ],
    "DualAttention": [
        # A softmax over the keys does not see what the bias of the keys adds to all scores.
        # Wider, these random weights make scores too large for the rounding of bfloat16.
        Case(32, without_effect=("position.key.bias",)),
        Case(
            16,
            {"reduction": 4, "dissimilar": False, "chunk": 5},
            without_effect=("position.key.bias",),
        ),
    ],
    "ExternalAttention": [
        Case(
            64,
            smallest_training_batch=2,
            positions_count=True,
            without_effect=("query.bias",),
        ),
        Case(
            12,
            {"memory_size": 5, "bias": False},
            smallest_training_batch=2,
            positions_count=True,
        ),
    ],
    "MultiHeadExternalAttention": [
        Case(64, tokens=True, without_effect=("query.bias", "keys.bias")),
        Case(12, {"num_heads": 3, "memory_size": 5, "expansion": 1, "bias": False}, tokens=True),
    ],
    "MultiHeadSelfAttention": [
        Case(16, tokens=True),  # wider, these random weights make scores too large for bfloat16
        Case(12, {"num_heads": 3, "bias": False, "dropout": 0.1}, tokens=True),
    ],
    "PyramidSqueezeAttention": [
        Case(64),
        Case(16, {"kernels": (1, 5), "groups": (8, 2), "reduction": 4, "reverse": False}),
    ],
    "SelectiveKernel": [
        Case(64, smallest_training_batch=2),
        Case(12, {"paths": 3, "groups": 4, "min_hidden": 5}, smallest_training_batch=2),
    ],
    "SpatialGroupEnhance": [Case(64), Case(24, {"groups": 4, "eps": 1e-3})],
    "SqueezeExcitation": [Case(64), Case(16, {"reduction": 4, "bias": False})],
}
# They take pictures and return scores: no mechanism. tests/test_networks.py is about them.
NETWORKS = {"ResNet"}
SIZES = [(7, 7), (5, 8), (1, 1), (1, 6), (16, 16)]

every_case = pytest.mark.parametrize(
    ("name", "case"),
    [(name, case) for name, cases in CASES.items() for case in cases],
    ids=lambda value: value if isinstance(value, str) else "",
)


def build(name, case):
    """A module with random weights, so that no zero hides a mistake."""
    torch.manual_seed(0)
    module = getattr(attn_course, name)(case.channels, **case.options)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def build_without_shape_checks(name, case):
    """The same, from the module's file: compilers cannot look through the checks of the tests."""
    checked = build(name, case)
    file_name = inspect.getmodule(type(checked)).__name__.rpartition(".")[2]
    # Another package with the same files: what a module imports from its own is unchecked as well.
    package = sys.modules.setdefault("plain", ModuleType("plain"))
    package.__path__ = attn_course.__path__
    plain_class = getattr(importlib.import_module(f"plain.{file_name}"), name)
    plain = plain_class(case.channels, **case.options)
    plain.load_state_dict(checked.state_dict())
    return plain.eval()


def example(case, *, b=2, h=7, w=9, dtype=torch.float32):
    """What the module takes: a feature map, or its positions as tokens."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(b, case.channels, h, w, generator=generator, dtype=torch.float64).to(dtype)
    return x.flatten(2).mT.contiguous() if case.tokens else x


def dynamic_axes(case, **limits):
    names = {0: "b", 1: "n"} if case.tokens else {0: "b", 2: "h", 3: "w"}
    return ({axis: torch.export.Dim(name, **limits) for axis, name in names.items()},)


def test_every_public_module_is_covered():
    public = {n for n in attn_course.__all__ if isinstance(getattr(attn_course, n), type)}
    assert public - NETWORKS == set(CASES), "list the module in CASES of tests/test_contract.py"


@every_case
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("b", [1, 3])
def test_any_size_and_a_batch_of_one(name, case, b, size, training):
    x = example(case, b=b, h=size[0], w=size[1])
    module = build(name, case).train(training)
    compared = b * size[0] * size[1] if case.positions_count else b
    if training and compared < case.smallest_training_batch:
        with pytest.raises(ValueError, match=rf"b={b} in training mode.*eval\(\)"):
            module(x)
        return
    y = module(x)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert y.isfinite().all()


@every_case
def test_an_empty_batch_stays_empty(name, case):
    x = example(case, b=0)
    assert build(name, case).eval()(x).shape == x.shape


@every_case
def test_a_picture_does_not_depend_on_its_batch(name, case):
    module, x = build(name, case).eval(), example(case, b=3)
    torch.testing.assert_close(module(x)[:1], module(x[:1]))


@every_case
def test_memory_layout_changes_nothing(name, case):
    module, x = build(name, case).eval(), example(case, w=10)
    expected = module(x)
    torch.testing.assert_close(module(x.movedim(1, -1).contiguous().movedim(-1, 1)), expected)
    strided = x.repeat_interleave(2, dim=-1)[..., ::2]
    assert not strided.is_contiguous()
    torch.testing.assert_close(module(strided), expected)


@every_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(name, case, dtype):
    module, x = build(name, case).eval(), example(case)
    expected = module.double()(x.double())
    y = module.to(dtype)(x.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected, rtol=0.05, atol=0.05)


@every_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(name, case, dtype):
    module, x = build(name, case).eval(), example(case)
    expected = module(x)
    with torch.autocast("cpu", dtype=dtype):
        y = module(x)
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)


@every_case
def test_copies_compute_the_same(name, case):
    module, x = build(name, case).eval(), example(case)
    fresh = getattr(attn_course, name)(case.channels, **case.options).eval()
    fresh.load_state_dict(module.state_dict(), strict=True)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), fresh):
        assert torch.equal(twin(x), module(x))


@every_case
def test_meta_device(name, case):
    with torch.device("meta"):
        module = getattr(attn_course, name)(case.channels, **case.options)
    x = example(case).to("meta")
    assert module(x).shape == x.shape


@every_case
def test_compile_in_one_graph(name, case):
    torch.compiler.reset()  # so that it does not matter what other tests have compiled
    module = build_without_shape_checks(name, case)
    # inductor needs a C++ compiler, and does not quote the path of its own libraries
    compiler = shutil.which("g++") or shutil.which("clang++")
    backend = "inductor" if compiler and " " not in sys.prefix else "aot_eager"
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    for x in (example(case), example(case, b=3, h=10, w=8)):  # the second is compiled for any size
        torch.testing.assert_close(compiled(x), module(x))


@every_case
def test_export_with_dynamic_batch_and_size(name, case):
    module, x = build_without_shape_checks(name, case), example(case)
    axes = dynamic_axes(case, min=2, max=64)
    program = torch.export.export(module, (x,), dynamic_shapes=axes)
    other = example(case, b=5, h=4, w=6)
    torch.testing.assert_close(program.module()(other), module(other))


@every_case
def test_onnx(name, case, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    module, x = build_without_shape_checks(name, case), example(case)
    path = tmp_path / "module.onnx"
    axes = dynamic_axes(case)
    torch.onnx.export(module, (x,), path, input_names=["x"], dynamic_shapes=axes, verbose=False)
    other = example(case, b=3, h=4, w=6)
    (y,) = onnxruntime.InferenceSession(path).run(None, {"x": other.numpy()})
    np.testing.assert_allclose(y, module(other).detach().numpy(), rtol=1e-4, atol=1e-5)


@every_case
def test_every_parameter_gets_a_gradient(name, case):
    module = build(name, case)
    x = example(case).requires_grad_()
    module(x).square().sum().backward()
    leaves = [("x", x), *module.named_parameters()]
    for leaf_name, leaf in leaves:
        assert leaf.grad is not None, leaf_name
        assert leaf.grad.abs().sum() > 0 or leaf_name in case.without_effect, leaf_name
    largest = max(leaf.grad.abs().max() for _, leaf in leaves)
    for leaf_name in case.without_effect:  # nothing but rounding errors
        assert module.get_parameter(leaf_name).grad.abs().max() < 1e-5 * largest, leaf_name


@every_case
def test_gradcheck(name, case):
    module = build(name, case).double().eval()
    x = example(case, b=1, h=2, w=3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(module, x, fast_mode=True)


@every_case
def test_the_input_is_left_alone(name, case):
    x = example(case)
    before = x.clone()
    module = build(name, case)
    module(x), module.attention(x)
    assert torch.equal(x, before)


@every_case
def test_nothing_is_printed_and_no_random_number_is_drawn(name, case, capfd):
    module, x = build(name, case).eval(), example(case)
    state = torch.get_rng_state()
    module(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert capfd.readouterr() == ("", "")


@every_case
def test_another_number_of_channels_is_refused(name, case):
    wrong = example(replace(case, channels=case.channels + 1))
    with pytest.raises(
        ValueError, match=rf"x has shape {re.escape(str(tuple(wrong.shape)))}; pass"
    ):
        build(name, case)(wrong)


@every_case
def test_another_number_of_dimensions_is_refused(name, case):
    with pytest.raises(ValueError, match="x has shape"):
        build_without_shape_checks(name, case)(example(case)[0])


@pytest.mark.parametrize("name", CASES)
def test_the_shape_annotations_are_checked_in_these_tests(name):
    """Without the import hook, a wrong annotation would pass unnoticed."""
    case = CASES[name][0]
    with pytest.raises(jaxtyping.TypeCheckError):
        build(name, case)(example(case)[0])


@pytest.mark.parametrize("name", CASES)
def test_the_source_has_no_shortcuts(name):
    source = inspect.getsource(inspect.getmodule(getattr(attn_course, name)))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            assert node.attr != "data", "`.data` hides a change from autograd"
        if isinstance(node, ast.Name):
            assert node.id not in ("print", "np", "numpy")


@pytest.mark.parametrize("name", CASES)
def test_the_docstring_is_complete(name):
    doc = inspect.getdoc(getattr(attn_course, name))
    for part in ("arXiv:", "Args:", "Shape:", "Raises:"):
        assert part in doc, f"{name}'s docstring lacks {part}"
    parameters = list(inspect.signature(getattr(attn_course, name)).parameters)
    for parameter in parameters:
        assert f"    {parameter}: " in doc, f"{name}'s docstring does not explain {parameter}"
