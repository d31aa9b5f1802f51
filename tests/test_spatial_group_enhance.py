"""Spatial Group-wise Enhance: what its notebook does not say."""

import warnings

import pytest
import torch
from torch import nn

from attn_course import SpatialGroupEnhance
from attn_course.course import data


def with_random_weights(channels, groups):
    torch.manual_seed(0)
    module = SpatialGroupEnhance(channels, groups)
    nn.init.normal_(module.weight)
    nn.init.normal_(module.bias)
    return module


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_equals_the_released_computation(mode):
    golden = data.golden("spatial_group_enhance")
    module = SpatialGroupEnhance(64, groups=32).train(mode == "train")
    weights = {name: golden[f"param/{name}"] for name in ("weight", "bias")}
    module.load_state_dict(weights, strict=True)
    x = golden["x"].clone().requires_grad_()
    y = module(x)
    y.backward(golden["cotangent"])
    torch.testing.assert_close(y, golden[f"y_{mode}"])
    torch.testing.assert_close(x.grad, golden[f"grad_x_{mode}"])


def test_the_gradients_of_the_parameters_follow_the_equations():
    golden = data.golden("spatial_group_enhance")
    module = with_random_weights(64, 32)
    module(golden["x"]).backward(golden["cotangent"])
    weight, bias = (p.detach().clone().requires_grad_() for p in module.parameters())
    x = golden["x"].unflatten(1, (32, -1))
    t = (x * x.mean((3, 4), keepdim=True)).sum(2)
    t = (t - t.mean((2, 3), keepdim=True)) / (t.std((2, 3), keepdim=True) + 1e-5)
    y = x * (weight * t + bias).sigmoid()[:, :, None]
    y.backward(golden["cotangent"].unflatten(1, (32, -1)))
    torch.testing.assert_close(module.weight.grad, weight.grad)
    torch.testing.assert_close(module.bias.grad, bias.grad)


@pytest.mark.parametrize(("c", "g"), [(64, 64), (256, 64), (24, 4), (6, 1)])
def test_parameters_follow_the_formula(c, g):
    assert sum(p.numel() for p in SpatialGroupEnhance(c, g).parameters()) == 2 * g


def test_a_fresh_gate_is_constant():
    gate = SpatialGroupEnhance(64).attention(torch.randn(2, 64, 5, 6))
    assert torch.equal(gate, torch.tensor(1.0).sigmoid().expand(2, 64, 5, 6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"channels": 48},
            r"groups=64 must divide channels=48; pass one of \[1, 2, 3, .* 48\]",
        ),
        ({"channels": 60, "groups": 8}, r"groups=8 must divide channels=60; pass one of \[1"),
        ({"channels": 8, "groups": 0}, "groups must be at least 1, got 0"),
        ({"channels": 8, "groups": -2}, "groups must be at least 1, got -2"),
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"channels": 64, "eps": 0.0}, "eps must be finite and at least 1e-12, got 0.0"),
        ({"channels": 64, "eps": -1e-5}, "eps must be .* got -1e-05"),
        ({"channels": 64, "eps": float("nan")}, "eps must be .* got nan"),
        ({"channels": 64, "eps": float("inf")}, "eps must be .* got inf"),
        ({"channels": 64, "eps": 1e-50}, "eps must be .* got 1e-50"),
        ({"channels": 10**18, "groups": 7}, r"groups=7 must divide .* pass one of \[1, 2, 4, 5"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SpatialGroupEnhance(**options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(1, 1), (3, 5)], ids=str)
@pytest.mark.parametrize("value", [0.0, 0.5], ids=str)
def test_a_constant_map_has_a_finite_gate_and_gradient(value, size, dtype):
    module = with_random_weights(8, 4).to(dtype)
    x = torch.full((2, 8, *size), value, dtype=dtype, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gate = module.attention(x)
        (module(x).square().sum() + gate.sum()).backward()
    expected = module.bias.float().sigmoid().expand(2, 4, *size)
    torch.testing.assert_close(gate.float(), expected, rtol=0.01, atol=0.01)
    for leaf in (x, *module.parameters()):
        assert leaf.grad.isfinite().all()


def test_a_single_position_is_like_a_constant_map():
    module = with_random_weights(64, 32)
    x = torch.randn(2, 64, 1, 1)
    assert torch.equal(module.similarity(x), torch.zeros(2, 32, 1, 1))


@pytest.mark.parametrize("scale", [1e-3, 1, 300], ids=str)
@pytest.mark.parametrize("autocast", [False, True], ids=["half", "autocast"])
def test_half_precision_neither_overflows_nor_vanishes(scale, autocast):
    module = with_random_weights(64, 2)
    x = (scale * (3 + torch.randn(2, 64, 9, 9))).half()
    expected = module.attention(x.float())
    if not autocast:
        module = module.half()
    with torch.autocast("cpu", dtype=torch.float16, enabled=autocast):
        leaf = x.clone().requires_grad_()
        gate = module.attention(leaf)
    gate.float().sum().backward()
    assert leaf.grad.isfinite().all()
    torch.testing.assert_close(gate.float(), expected, rtol=0.02, atol=0.02)


def test_groups_know_nothing_of_each_other():
    module = with_random_weights(12, 3)
    x = torch.randn(1, 12, 5, 5)
    y = x.clone()
    y[:, 4:8] += 7 * torch.randn(1, 4, 5, 5)
    same = module.attention(x)[:, [0, 2]], module.attention(y)[:, [0, 2]]
    torch.testing.assert_close(*same)
    assert not torch.allclose(module.attention(x)[:, 1], module.attention(y)[:, 1])


def test_turning_the_channels_of_a_group_leaves_the_gate_alone():
    module = with_random_weights(12, 3).double()
    x = torch.randn(2, 12, 5, 5, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    turned = torch.einsum("jk, bgkhw -> bgjhw", turn, x.unflatten(1, (3, 4))).flatten(1, 2)
    torch.testing.assert_close(module.attention(turned), module.attention(x))


@pytest.mark.parametrize("size", [(3, 3), (1, 1)], ids=str)
@pytest.mark.parametrize("value", [0.0, 1.7], ids=str)
def test_a_constant_map_has_second_derivatives(value, size):
    module = with_random_weights(8, 2)
    x = torch.full((1, 8, *size), value, requires_grad=True)
    (gradient,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), x)
    assert gradient.isfinite().all()
    assert second.isfinite().all()


@pytest.mark.parametrize("value", [1e-3, 1.0, 6e4], ids=str)
def test_the_smallest_eps_is_safe_in_single_precision(value):
    module = SpatialGroupEnhance(8, 2, eps=1e-12)
    nn.init.ones_(module.weight)
    x = torch.full((1, 8, 5, 5), value, requires_grad=True)
    y = module(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
