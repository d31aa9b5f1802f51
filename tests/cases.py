"""What the tests build: every module with options of its own, and small networks.

A new module is covered by the contract, the table of uses and the random tests as soon as it is
listed in MODULES; one that is not listed fails a test.
"""

import importlib
import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

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
    positions_count: bool = False  # its batch norm compares positions as well as images
    without_effect: tuple[str, ...] = ()  # parameters whose gradient is zero by mathematics


MODULES = {
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

# It returns scores of classes, and so is no mechanism; the contract is not about it.
HEAD = {"DualAttentionHead": [Case(16, {"num_classes": 5, "width": 8, "reduction": 2})]}


RESNET10 = {"depths": (1, 1, 1, 1), "bottleneck": False}


def _network(attention=None, name="resnet10", **options):
    sizes = {"num_classes": 5, "stem": "small", "planes": (16, 16, 16, 16)}
    attention_options = {"attention_options": options} if attention else {}
    return [Case(3, {"name": name, "attention": attention} | sizes | attention_options)]


NETWORKS = {
    "resnet18": _network(name="resnet18"),
    "resnet50": _network(name="resnet50"),
    "cbam": _network("cbam", reduction=4),
    "da": _network("da", reduction=2),
    "ea": _network("ea", memory_size=8),
    "epsa": _network("epsa", groups=(1, 1, 2, 4), reduction=4),
    "mhsa": _network("mhsa", num_heads=4),
    "se": _network("se", reduction=4),
    "sge": _network("sge", groups=4),
    "sk": _network("sk", groups=4, min_hidden=4),
}


def plain(file_name):
    """A module's file, imported once more without the shape checks of these tests.

    Compilers cannot look through those checks, and they would answer before the module's own.
    """
    # Another package with the same files: what a module imports from its own is unchecked as well.
    package = sys.modules.setdefault("plain", ModuleType("plain"))
    package.__path__ = attn_course.__path__
    return importlib.import_module(f"plain.{file_name}")


def plain_class(name):
    """The public class of that name, without the shape checks of these tests."""
    if name in HEAD:
        return getattr(plain("dual_attention"), name)
    return getattr(plain(getattr(attn_course, name).__module__.rpartition(".")[2]), name)


def construct(name, case):
    """A module or a network as a user gets it."""
    if name in NETWORKS:
        return create_network(**case.options)
    return plain_class(name)(case.channels, **case.options)


def create_network(**options):
    """The package's, which here knows a network with one block in each stage, too."""
    networks = plain("networks")
    networks.NETWORKS["resnet10"] = RESNET10
    return networks.create_network(**options)


def randomise(module):
    """Gives every parameter random values, so that no zero hides a mistake."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def example(case, *, b=2, h=7, w=9, dtype=torch.float32):
    """What the module takes: a feature map, or its positions as tokens."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(b, case.channels, h, w, generator=generator, dtype=torch.float64).to(dtype)
    return x.flatten(2).mT.contiguous() if case.tokens else x
