"""Mechanisms in networks that other people wrote: the same outputs at first, then all learn."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import nn

from attn_course import insert_attention, list_attentions
from inserted import CANCELLED, OPTIONS, ChannelsLast, Classifier, Tokens, UNet, pictures


class Network(NamedTuple):
    """What builds it, given timm, the size of its pictures, and the layers to try."""

    build: Callable
    size: tuple[int, int]
    after: tuple[str, ...]
    beside: tuple[str, ...] = ()


def resnet18(timm):
    import torchvision

    return torchvision.models.resnet18(num_classes=5)


def mobilenet_v2(timm):
    import torchvision

    return torchvision.models.mobilenet_v2(width_mult=0.5, num_classes=5)


def convnext(timm):
    sizes = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}
    return timm.create_model("convnext_atto", num_classes=5, **sizes)


def vit(timm):
    sizes = {"img_size": (64, 96), "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}
    # the class token alone would not see what is done to the patches after the last block
    return timm.create_model("vit_tiny_patch16_224", num_classes=5, global_pool="avg", **sizes)


def swin(timm):
    sizes = {
        "img_size": (64, 96),
        "patch_size": 8,
        "window_size": 4,
        "embed_dim": 40,
        "depths": (1, 1),
    }
    return timm.create_model(
        "swin_tiny_patch4_window7_224", num_classes=5, num_heads=(2, 2), **sizes
    )


SMALL, LARGE = (16, 24), (64, 96)  # no side of a map is then as long as another or as the width
OWN = {
    "ours": Network(Classifier, SMALL, ("stages.*.*.bn2", "stem"), ("stages.*.1.conv*",)),
    "channels last": Network(ChannelsLast, SMALL, ("norm", "mlp")),
    "tokens": Network(Tokens, SMALL, ("mlp",)),
    "U-Net": Network(UNet, SMALL, ("encoder.*", "bottom", "decoder.*"), ("*coder.*.3",)),
}
OF_OTHERS = {
    "ResNet-18": Network(resnet18, LARGE, ("layer*.1.bn2", "layer*"), ("layer*.1.conv2",)),
    "MobileNetV2": Network(
        mobilenet_v2, LARGE, ("features.1*.conv",), ("features.2.conv.1.0", "features.3.conv.1.0")
    ),
    "ConvNeXt": Network(
        convnext,
        LARGE,
        ("stages.*.blocks.*.mlp", "stages.*.blocks.*"),
        ("stages.*.blocks.*.conv_dw",),
    ),
    "ViT": Network(vit, LARGE, ("blocks.*.mlp", "blocks.*")),
    "Swin": Network(swin, LARGE, ("layers.*.blocks.*.mlp", "layers.*.blocks.*")),
}
NETWORKS = OWN | OF_OTHERS
# A gate has nothing to say beside a convolution; what replaces one has.
PLACES = [
    pytest.param(name, {kind: pattern}, mechanism, id=f"{name} {kind} {pattern} {mechanism}")
    for name, network in NETWORKS.items()
    for kind, mechanisms in (("after", list_attentions()), ("beside", ["epsa", "mhsa", "sk"]))
    for pattern in getattr(network, kind)
    for mechanism in mechanisms
]


@pytest.fixture
def built(request):
    """Builds one of the networks, if what it comes from is there."""

    def build(name):
        torch.manual_seed(0)
        network = NETWORKS[name].build
        return network() if name in OWN else network(request.getfixturevalue("timm"))

    return build


def outputs(network, x, training):
    torch.manual_seed(3)  # of dropout
    return network.train(training)(x)


@pytest.mark.parametrize(("name", "place", "mechanism"), PLACES)
def test_identity_at_first_and_then_all_learn(built, name, place, mechanism):
    network = built(name)
    x = pictures(*NETWORKS[name].size)
    before = copy.deepcopy(network)
    inserted = insert_attention(network, mechanism, example=x, **place, **OPTIONS[mechanism])
    for key, parameter in network.named_parameters():
        if ".inserted." in key and key.endswith("reduce.bias"):
            nn.init.ones_(parameter)  # a ReLU over a few units may cut off all of them
    for training in (False, True):
        expected = outputs(before, x, training)
        assert torch.equal(outputs(network, x, training), expected)

    new = [f"{row.layer}.inserted." for row in inserted]
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    for _ in range(2):
        optimizer.zero_grad()
        weighted = outputs(network, x, True)
        (weighted * torch.linspace(-1, 1, weighted.numel()).view_as(weighted)).sum().backward()
        optimizer.step()
    dead = {
        key
        for key, parameter in network.named_parameters()
        if key.startswith(tuple(new)) and (parameter.grad is None or not parameter.grad.any())
    }
    assert not {key for key in dead if not key.endswith(tuple(CANCELLED.get(mechanism, ["-"])))}


def test_the_backbone_of_a_detector(request):
    request.getfixturevalue("timm")  # which brings torchvision, with its operators
    tasks = pytest.importorskip(
        "ultralytics.nn.tasks", reason="ultralytics is not installed: pip install ultralytics"
    )
    torch.manual_seed(0)
    detector = tasks.DetectionModel("yolov8n.yaml", verbose=False)
    before, x = copy.deepcopy(detector), pictures(64, 96)
    place = {"after": ["model.4", "model.6", "model.9"], "example": x}
    insert_attention(detector, "cbam", **place, **OPTIONS["cbam"])
    for training in (False, True):
        expected = tensors(outputs(before, x, training))
        assert all(map(torch.equal, tensors(outputs(detector, x, training)), expected))
    sum(y.square().mean() for y in tensors(detector(x))).backward()
    assert all(
        p.grad.any() for key, p in detector.named_parameters() if key.endswith("inserted.alpha")
    )


def tensors(out):
    """All tensors in what a detector returns."""
    if isinstance(out, torch.Tensor):
        return [out]
    parts = out.values() if isinstance(out, dict) else out
    return [tensor for part in parts for tensor in tensors(part)]
