"""What the page "I want ... I write ..." promises, row by row, on the networks that it names."""

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from attn_course import attention_maps, create_network, insert_attention, remove_attention

ROOT = Path(__file__).parents[1]
FUNCTIONS = {
    "attention_maps": attention_maps,
    "create_network": create_network,
    "insert_attention": insert_attention,
    "remove_attention": remove_attention,
}


def table(text):
    """What a reader wants, and what they write: the first piece of code of each row."""
    lines = (ROOT / text).read_text(encoding="utf-8").partition("| I want")[2].splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines[2:]]
    return {
        want: re.findall(r"`([^`]+)`", write[0])[0] for want, *write in rows[: rows.index([""])]
    }


ROWS = table("README.md")


class MyGate(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(channels, 1, 1))

    def forward(self, x):
        return self.scale * x


def resnet50(timm):
    import torchvision

    return torchvision.models.resnet50(num_classes=5)


def convnext(timm):
    return timm.create_model("convnext_tiny", num_classes=5)


def vit(timm):
    return timm.create_model("vit_small_patch16_224", num_classes=5, img_size=64)


class UNet(nn.Module):
    def __init__(self, timm):
        super().__init__()
        self.encoder = nn.Conv2d(3, 16, 3, padding=1)
        self.decoder = nn.ModuleList([nn.Sequential(nn.Conv2d(16, 16, 1), nn.ReLU())])

    def forward(self, x):
        return self.decoder[0](self.encoder(x))


# The network that a row is about, and how many places it has there.
INSERTED_INTO = {
    "a gate at the end of each bottleneck of torchvision's ResNet-50": (resnet50, 16),
    "a gate in each block of timm's ConvNeXt": (convnext, 18),
    "CBAM in the decoder of a U-Net": (UNet, 1),
    "an option that depends on the width": (resnet50, 16),
    "selective kernels beside the 3 × 3 convolutions of ResNet-50": (resnet50, 16),
    "a gate on the patches of timm's ViT": (vit, 12),
    "a module of my own": (resnet50, 16),
}


def test_readme_and_chapter_have_one_table():
    assert table("notebooks/text/10_your_network.md") == ROWS
    assert 8 <= len(ROWS) <= 12


def test_every_row_that_inserts_is_tried():
    assert [want for want, call in ROWS.items() if "insert_" in call] == list(INSERTED_INTO)


@pytest.mark.parametrize("want", INSERTED_INTO)
def test_insertion(timm, want):
    make, places = INSERTED_INTO[want]
    network, images = make(timm).eval(), torch.rand(2, 3, 64, 64)
    before = network(images)
    call = ROWS[want].replace("…", 'after="layer*.*.bn3", example=images')
    names = {"network": network, "images": images, "MyGate": MyGate}
    inserted = eval(call, FUNCTIONS | names)
    assert len(inserted) == places
    assert torch.equal(network(images), before)


def test_the_other_rows():
    wanted = list(ROWS)[list(ROWS).index("to read my checkpoint") :]
    load, only_new, look, undo, new = (ROWS[want] for want in wanted)
    network, images = create_network("resnet18", num_classes=5).eval(), torch.rand(2, 3, 64, 64)
    before, plain = copy.deepcopy(network), network.state_dict().keys()
    insert_attention(network, "se", after="layer*.*.bn2", example=images)
    names = FUNCTIONS | {"network": network, "images": images}
    for state in (before.state_dict(), network.state_dict()):
        eval(load, names | {"state": state})
    for name, parameter in network.named_parameters():
        exec(only_new, {"name": name, "parameter": parameter})
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in network.named_parameters()} - plain
    assert len(eval(look, names)) == 8
    eval(undo, names)
    assert network.state_dict().keys() == before.state_dict().keys()
    assert torch.equal(network(images), before(images))
    assert len(attention_maps(eval(new, names), images)) == 16
