"""The table of uses, where something compiles or exports: see uses.py."""

import shutil
import sys
from functools import cache

import numpy as np
import pytest
import torch

from uses import Subject, use


def axes(subject, case):
    """The axes that may have any size; a network's last map is 2 × 2 at least."""
    names = {0: "b", 1: "n"} if case.tokens else {0: "b", 2: "h", 3: "w"}
    least = {"h": 9, "w": 9} if subject.is_network else {}
    return ({axis: torch.export.Dim(n, min=least.get(n, 2), max=64) for axis, n in names.items()},)


def of_another_size(subject, case):
    sides = {"h": 20, "w": 12} if subject.is_network else {"h": 4, "w": 6}
    return subject.example(case, b=3, **sides)


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@use("compile")
def test_compile(subject):
    # inductor needs a C++ compiler, and does not quote the path of its own libraries
    compiler = shutil.which("g++") or shutil.which("clang++")
    can = compiler and " " not in sys.prefix
    for index, case in enumerate(subject.cases):
        torch.compiler.reset()  # so that it does not matter what other tests have compiled
        often = not subject.is_network or subject.name == "resnet18"
        backend = "inductor" if can and often and index == 0 else "aot_eager"
        module = subject.build(case)
        compiled = torch.compile(module, fullgraph=True, backend=backend)
        with torch.no_grad():
            # The second is compiled for any size.
            for x in (subject.example(case), of_another_size(subject, case)):
                assert_close(compiled(x), module(x))


@cache
def exported(name, index):
    """One of the cases of a subject as a program, for any size."""
    subject = Subject(name)
    case = subject.cases[index]
    module, x = subject.build(case), subject.example(case)
    return torch.export.export(module, (x,), dynamic_shapes=axes(subject, case))


@use("export")
def test_export(subject, tmp_path):
    for index, case in enumerate(subject.cases):
        module = subject.build(case)
        torch.export.save(exported(subject.name, index), tmp_path / "module.pt2")
        other = of_another_size(subject, case)
        assert_close(torch.export.load(tmp_path / "module.pt2").module()(other), module(other))


@use("ONNX")
def test_onnx(subject, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    for index, case in enumerate(subject.cases):
        module, path = subject.build(case), tmp_path / "module.onnx"
        program = exported(subject.name, index)
        torch.onnx.export(program, (), path, dynamo=True, input_names=["x"], verbose=False)
        other = of_another_size(subject, case)
        (y,) = onnxruntime.InferenceSession(path).run(None, {"x": other.numpy()})
        np.testing.assert_allclose(y, module(other).detach().numpy(), rtol=1e-3, atol=1e-4)
