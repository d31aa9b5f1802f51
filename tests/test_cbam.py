"""CBAM: what its notebook does not say."""

import warnings

import pytest
import torch
from torch import nn

from attn_course import CBAM
from attn_course.cbam import Gates, SpatialAttention
from attn_course.course import data

ORDERS = ("channel-spatial", "spatial-channel", "parallel")
NAMES = {
    "ChannelGate.mlp.1": "channel.reduce",
    "ChannelGate.mlp.3": "channel.expand",
    "SpatialGate.spatial.conv": "spatial.conv",
    "SpatialGate.spatial.bn": "spatial.norm",
}


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_equals_the_released_computation(mode):
    golden = data.golden("cbam")
    weights = {
        key.removeprefix("param/").replace(theirs, ours): value
        for theirs, ours in NAMES.items()
        for key, value in golden.items()
        if key.startswith(f"param/{theirs}.")
    }
    module = CBAM(64).train(mode == "train")
    module.load_state_dict(weights, strict=True)
    x = golden["x"].clone().requires_grad_()
    y = module(x)
    y.backward(golden["cotangent"])
    torch.testing.assert_close(y, golden[f"y_{mode}"])
    torch.testing.assert_close(x.grad, golden[f"grad_x_{mode}"])


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize(("c", "r", "k"), [(64, 16, 7), (40, 16, 3), (8, 8, 1), (6, 1, 9)])
def test_parameters_follow_the_formula(c, r, k, batch_norm):
    module = CBAM(c, r, k, batch_norm=batch_norm)
    d = c // r
    expected = 2 * c * d + d + c + 2 * k * k + (2 if batch_norm else 1)
    assert sum(p.numel() for p in module.parameters()) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 8}, r"reduction=16 leaves no hidden channel for channels=8; pass .* <= 8"),
        ({"channels": 8, "reduction": 0}, "reduction must be at least 1, got 0"),
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"channels": 64, "kernel_size": 4}, "kernel_size must be odd, got 4; pass 3 or 5"),
        ({"channels": 64, "kernel_size": 0}, "kernel_size must be at least 1, got 0"),
        ({"channels": 64, "kernel_size": -7}, "kernel_size must be at least 1, got -7"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        CBAM(**options)


def test_an_unknown_order_is_refused(unchecked):
    with pytest.raises(ValueError, match=r"order must be one of .*'parallel'\), got 'both'"):
        unchecked("cbam").CBAM(64, order="both")


@pytest.mark.parametrize("order", ORDERS)
def test_both_gates_are_called_so_that_their_hooks_run(order):
    module, called = CBAM(8, 2, order=order), []
    for part in (module.channel, module.spatial):
        part.register_forward_hook(lambda part, _, out: called.append((part, out)))
    y = module(torch.randn(2, 8, 5, 6))
    assert {part for part, _ in called} == {module.channel, module.spatial}
    assert torch.equal(called[-1][1], y)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_the_gates_weight_x(order, training):
    torch.manual_seed(0)
    module = CBAM(8, 2, order=order).train(training)
    x = torch.randn(2, 8, 5, 6)
    gates = module.attention(x)
    assert isinstance(gates, Gates)
    torch.testing.assert_close(module(x), x * gates.channel * gates.spatial)


def test_the_orders_differ():
    torch.manual_seed(0)
    x = 3 * torch.randn(2, 8, 5, 6)
    modules = [CBAM(8, 2, order=order) for order in ORDERS]
    for module in modules[1:]:
        module.load_state_dict(modules[0].state_dict())
    outputs = [module(x) for module in modules]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not torch.allclose(outputs[a], outputs[b], atol=1e-4)


def test_a_single_number_in_training_uses_the_running_statistics():
    module = SpatialAttention()
    nn.init.constant_(module.norm.running_mean, 0.3)
    x = torch.rand(1, 4, 1, 1)
    trained, running = module.attention(x), module.norm.running_mean.clone()
    assert torch.equal(trained, module.eval().attention(x))
    assert torch.equal(running, torch.tensor([0.3]))


def test_without_batch_norm_no_statistics_are_kept():
    assert {name for name, _ in SpatialAttention(3, batch_norm=False).named_buffers()} == set()


@pytest.mark.parametrize("k", [1, 3, 5, 7, 11])
@pytest.mark.parametrize("size", [(1, 1), (3, 3), (5, 5), (7, 7), (7, 1), (14, 9)], ids=str)
def test_the_spatial_gate_is_a_map_at_every_size(k, size):
    torch.manual_seed(0)
    gate = SpatialAttention(k).attention(torch.rand(2, 4, *size))
    assert gate.shape == (2, 1, *size)
    assert gate[0].unique().numel() == size[0] * size[1]


@pytest.mark.parametrize("order", ORDERS)
def test_attention_compiles_and_exports(order, unchecked):
    torch.manual_seed(0)
    cbam = unchecked("cbam")
    module = cbam.CBAM(8, 2, order=order).eval()
    x, other = torch.randn(2, 8, 7, 7), torch.randn(3, 8, 5, 6)
    compiled = torch.compile(module.attention, fullgraph=True, backend="aot_eager")(x)
    assert isinstance(compiled, cbam.Gates)
    torch.testing.assert_close(compiled, module.attention(x))

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = module

        def forward(self, x):
            return self.block.attention(x)

    b, h, w = (torch.export.Dim(axis, min=2, max=64) for axis in "bhw")
    program = torch.export.export(Attention(), (x,), dynamic_shapes=({0: b, 2: h, 3: w},))
    torch.testing.assert_close(tuple(program.module()(other)), tuple(module.attention(other)))


def test_training_compiles_in_one_graph(unchecked):
    torch.manual_seed(0)
    module = unchecked("cbam").CBAM(8, 2)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for size in ((2, 8, 7, 7), (1, 8, 1, 1)):
        x = torch.randn(size)
        torch.testing.assert_close(compiled(x), module(x), rtol=1e-4, atol=1e-5)


def test_torchscript_traces_without_gradients(unchecked):
    """With them it fails: its own check runs without, where the module finds maxima faster."""
    module = unchecked("cbam").CBAM(8, 2).eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the checked shape is that of the example
        traced = torch.jit.trace(module, torch.randn(2, 8, 5, 6))
    x = torch.randn(1, 8, 7, 4)
    torch.testing.assert_close(traced(x), module(x))
