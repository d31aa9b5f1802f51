"""The network that finds people: equal to the released graph, and its gates can be replaced."""

from pathlib import Path

import pytest
import torch

from attn_course import SqueezeExcitation
from attn_course.course import data, segmentation


@pytest.fixture(scope="module")
def network():
    return segmentation.load()


@pytest.fixture(scope="module")
def people():
    files = ("astronaut", data.DATA / "cameraman.jpg")
    return torch.cat([segmentation.fit(data.photograph(file)) for file in files])


def test_computes_what_litert_computes(network):
    """LiteRT ran the released file; see `data/build.py`."""
    stored = data.selfie_segmentation()
    mask, gates = network(stored.image[None]), network.gates(stored.image[None])
    torch.testing.assert_close(mask[0, 0, 1::5, 1::5], stored.mask, rtol=0, atol=1e-3)
    ours = torch.cat([gate.flatten() for gate in gates])
    torch.testing.assert_close(ours, stored.gates, rtol=0, atol=1e-4)
    assert stored.mask.max() > 0.9
    assert stored.mask.min() < 0.1


def test_has_nine_blocks_of_the_chapter_and_one_gate_of_one_layer(network):
    blocks = [part for part in network.modules() if isinstance(part, SqueezeExcitation)]
    hidden = [(part.channels, part.reduce.out_features) for part in blocks]
    encoder = [(16, 8), (96, 24), (128, 32), (128, 32), (96, 24), (96, 24)]
    assert hidden == [*encoder, (24, 24), (16, 16), (16, 16)]
    assert network.head_gate.weight.shape == (128, 32, 1, 1)


def test_finds_the_people(network, people):
    """Points inside and outside of them, (row, column) of 256."""
    astronaut, cameraman = network(people)[:, 0]
    assert min(astronaut[60, 110], astronaut[200, 60]) > 0.9
    assert max(astronaut[20, 20], astronaut[20, 180]) < 0.1
    assert cameraman[120, 60] > 0.9
    assert max(cameraman[30, 220], cameraman[200, 200]) < 0.1


def test_its_own_gates_as_constants_change_nothing(network, people):
    gates = network.gates(people)
    assert [gate.shape[1] for gate in gates] == [16, 96, 128, 128, 96, 96, 128, 24, 16, 16]
    assert len(gates) == len(segmentation.GATES)
    constants = dict(enumerate(gates))
    assert torch.equal(network(people, constants), network(people))


@pytest.mark.parametrize("number", range(10))
def test_each_gate_can_be_replaced_alone(network, people, number):
    closed = torch.zeros_like(network.gates(people[:1])[number])
    assert not torch.allclose(network(people, {number: closed}), network(people), atol=1e-3)


def test_takes_a_photograph_of_ones_own(network, tmp_path: Path):
    picture = data.photograph("astronaut", 90)[:, :80]
    image = segmentation.fit(picture)
    assert image.shape == (1, 3, 256, 256)
    assert network(image).shape == (1, 1, 256, 256)


def test_padding_is_tensorflows():
    """An even side and stride 2: nothing before, the odd pixel after."""
    conv = segmentation.SamePadding(1, 1, 3, stride=2, bias=False)
    torch.nn.init.ones_(conv.weight)
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert conv(x)[0, 0].tolist() == [[45, 39], [66, 50]]
