"""The checks of arguments that the modules share."""

import re
import time
from collections import OrderedDict
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

from attn_course import _checks
from attn_course._precision import mean_over, wide_dtype

MODULES = {  # and their files
    "SqueezeExcitation": "squeeze_excitation",
    "SelectiveKernel": "selective_kernel",
    "CBAM": "cbam",
    "SpatialGroupEnhance": "spatial_group_enhance",
    "PyramidSqueezeAttention": "pyramid_squeeze_attention",
}


@pytest.mark.parametrize("number", [1, 7, 10**18])
def test_whole_numbers_pass(number):
    _checks.check_whole(channels=number)


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (2.0, "2.0 (float)"),
        ("8", "'8' (str)"),
        (True, "True (bool)"),
        (None, "None (NoneType)"),
        (np.int64(8), "np.int64(8) (int64)"),
        (torch.tensor(8), "tensor(8) (Tensor)"),
    ],
)
def test_what_is_no_int_is_shown(number, shown):
    with pytest.raises(TypeError, match=re.escape(f"channels must be an int, got {shown}")):
        _checks.check_whole(channels=number)


def test_numbers_too_small_are_named():
    with pytest.raises(ValueError, match="channels must be at least 1, got 0"):
        _checks.check_whole(stride=1, channels=0)
    with pytest.raises(ValueError, match="paths must be at least 2, got 1"):
        _checks.check_whole(2, paths=1)


def test_sequences():
    _checks.check_each_whole(kernels=(3, 5), groups=[1, 2], sizes=range(1, 4))
    _checks.check_each_whole(2, 0, kernels=(3, 0))
    for wrong in ({1, 2}, (i for i in (1, 2)), "12", 3, None, np.array([1, 2])):
        with pytest.raises(TypeError, match="kernels must be a sequence of ints, got "):
            _checks.check_each_whole(kernels=wrong)
    with pytest.raises(TypeError, match=r"kernels\[1\] must be an int, got 5\.0 \(float\)"):
        _checks.check_each_whole(kernels=(3, 5.0))
    with pytest.raises(ValueError, match=r"kernels\[0\] must be at least 1, got 0"):
        _checks.check_each_whole(kernels=(0, 5))
    with pytest.raises(ValueError, match=r"kernels must have at least one number, got \(\)"):
        _checks.check_each_whole(kernels=())
    with pytest.raises(ValueError, match=r"planes must have 4 numbers, got \(8, 16\)"):
        _checks.check_each_whole(4, planes=(8, 16))


def test_odd_sizes():
    _checks.check_odd(kernel_size=7)
    with pytest.raises(ValueError, match="kernel_size must be odd, got 4; pass 3 or 5"):
        _checks.check_odd(kernel_size=4)
    with pytest.raises(ValueError, match="kernel_size must be at least 1, got -3"):
        _checks.check_odd(kernel_size=-3)


def test_divisors():
    _checks.check_divides("groups", 8, channels=64, out_channels=24)
    message = "groups=16 must divide channels=64 and out_channels=24; pass one of [1, 2, 4, 8]"
    with pytest.raises(ValueError, match=re.escape(message)):
        _checks.check_divides("groups", 16, channels=64, out_channels=24)
    with pytest.raises(ValueError, match="groups must be at least 1, got 0"):
        _checks.check_divides("groups", 0, channels=64)
    with pytest.raises(TypeError, match="channels must be an int"):
        _checks.check_divides("groups", 1, channels=64.0)


def test_large_numbers_are_refused_at_once():
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"pass one of \[1, 2, 4, 5, .*, 1000, 1024\]"):
        _checks.check_divides("groups", 7, channels=10**18)
    assert time.perf_counter() - start < 0.5


def test_multiples():
    _checks.check_multiple(4, out_channels=64)
    with pytest.raises(ValueError, match=r"out_channels must be a multiple of 4, got 30; .* 32"):
        _checks.check_multiple(4, out_channels=30)


def test_reductions():
    _checks.check_reduction(16, channels=16)
    message = "reduction=16 leaves no hidden channel for width=8; pass reduction <= 8"
    with pytest.raises(ValueError, match=message):
        _checks.check_reduction(16, width=8)
    with pytest.raises(ValueError, match="reduction must be at least 1, got 0"):
        _checks.check_reduction(0, width=8)


@pytest.mark.parametrize("number", [0, -1.0, float("nan"), float("inf")])
def test_positive_numbers(number):
    _checks.check_positive(eps=1e-300)
    with pytest.raises(ValueError, match=f"eps must be finite and above 0, got {number}"):
        _checks.check_positive(eps=number)
    with pytest.raises(ValueError, match=r"eps must be finite and at least 0\.1, got 0\.01"):
        _checks.check_positive(0.1, eps=0.01)


@pytest.mark.parametrize("number", [1, 1.5, -0.1, float("nan")])
def test_probabilities(number):
    _checks.check_probability(dropout=0, drop=0.999)
    with pytest.raises(ValueError, match=f"dropout must be at least 0 and below 1, got {number}"):
        _checks.check_probability(dropout=number)


@pytest.mark.parametrize("check", [_checks.check_positive, _checks.check_probability])
@pytest.mark.parametrize("wrong", ["0.1", None, False, 1j], ids=str)
def test_what_is_no_float_is_named(check, wrong):
    with pytest.raises(TypeError, match="dropout must be a float, got "):
        check(dropout=wrong)


def test_flags_and_choices():
    order = Literal["first", "last"]
    _checks.check_flag(bias=True)
    _checks.check_one_of(order, order="last")
    with pytest.raises(TypeError, match="bias must be a bool, got 'no'"):
        _checks.check_flag(bias="no")
    with pytest.raises(ValueError, match=r"order must be one of \('first', 'last'\), got 'both'"):
        _checks.check_one_of(order, order="both")
    with pytest.raises(TypeError, match="order must be a str, got None"):
        _checks.check_one_of(order, order=None)


def test_factories():
    assert isinstance(_checks.make_module("gate", nn.Linear, 3, 4), nn.Linear)
    for wrong in (nn.Sigmoid(), torch.sigmoid, lambda: None, "sigmoid", None):
        with pytest.raises(TypeError, match="gate must be a class or a function that makes"):
            _checks.make_module("gate", wrong)


def test_what_a_factory_complains_of_is_passed_on(unchecked):
    gate = unchecked("squeeze_excitation").SqueezeExcitation
    with pytest.raises(TypeError, match="reduction must be an int, got 'all'"):
        _checks.make_module("gate", gate, 64, reduction="all")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.complex64], ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_images_without_floating_point_are_refused_by_name(name, dtype, unchecked):
    module = getattr(unchecked(MODULES[name]), name)(64)
    with pytest.raises(TypeError, match=f"x must be floating point, got {dtype}"):
        module(torch.ones(2, 64, 4, 4, dtype=dtype))
    with pytest.raises(TypeError, match=r"x must be a torch\.Tensor, got array.* \(ndarray\)"):
        module(np.ones((2, 64, 4, 4), np.float32))


@pytest.mark.parametrize("size", [(0, 4), (4, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_maps_without_a_position_are_refused(name, size, unchecked):
    module = getattr(unchecked(MODULES[name]), name)(64)
    with pytest.raises(ValueError, match=r"x has shape .*; pass .* h >= 1 and w >= 1"):
        module(torch.ones(2, 64, *size))


def test_a_map_needs_a_channel():
    _checks.check_feature_map(torch.ones(0, 3, 1, 1), channels=3)
    with pytest.raises(ValueError, match="with c >= 1, h >= 1"):
        _checks.check_feature_map(torch.ones(1, 0, 2, 2))
    with pytest.raises(ValueError, match="with c = in_channels=3, h >= 1"):
        _checks.check_feature_map(torch.ones(1, 4, 2, 2), in_channels=3)


@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 5), (2, 0, 4), (1, 2, 4, 4)], ids=str)
def test_tokens(shape):
    _checks.check_tokens(torch.ones(0, 3, 4), 4)
    with pytest.raises(
        ValueError, match=r"keys has shape .*; pass \(b, n, d\) with d = channels=4"
    ):
        _checks.check_tokens(torch.ones(shape), 4, "keys")
    with pytest.raises(TypeError, match=r"keys must be floating point, got torch\.int64"):
        _checks.check_tokens(torch.ones(2, 3, 4).long(), 4, "keys")


def test_batch_statistics():
    one = torch.ones(1, 8, 1, 1)
    norm = nn.BatchNorm2d(8)
    message = r"x has b=1 in training mode.*; pass b >= 2 or a larger map, or call eval\(\)"
    with pytest.raises(ValueError, match=message):
        _checks.check_batch_statistics(norm, one, over=(0, 2, 3))
    _checks.check_batch_statistics(norm, torch.ones(1, 8, 1, 2), over=(0, 2, 3))
    with pytest.raises(ValueError, match=r"pass b >= 2 or call eval"):
        _checks.check_batch_statistics(norm, torch.ones(1, 8, 1, 2), over=(0,))
    for other in (norm.eval(), nn.GroupNorm(2, 8), nn.Identity()):
        _checks.check_batch_statistics(other, one, over=(0, 2, 3))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("SqueezeExcitation", {"channels": 64 / 1}, "channels must be an int, got 64.0"),
        ("SqueezeExcitation", {"channels": 64, "reduction": "16"}, "reduction must be an int"),
        ("SqueezeExcitation", {"channels": 64, "bias": 1}, "bias must be a bool, got 1"),
        (
            "SqueezeExcitation",
            {"channels": 64, "gate_activation": torch.sigmoid},
            "gate_activation must be a class or a function",
        ),
        ("SelectiveKernel", {"channels": 64, "paths": 2.0}, "paths must be an int, got 2.0"),
        ("SelectiveKernel", {"channels": 64, "groups": None}, "groups must be an int, got None"),
        ("CBAM", {"channels": None}, "channels must be an int, got None"),
        ("CBAM", {"channels": 64, "kernel_size": (7, 7)}, "kernel_size must be an int"),
        ("CBAM", {"channels": 64, "batch_norm": None}, "batch_norm must be a bool"),
        ("CBAM", {"channels": 64, "order": 0}, "order must be a str, got 0"),
        ("SpatialGroupEnhance", {"channels": 64, "eps": "1e-5"}, "eps must be a float, got '1e-5'"),
        ("PyramidSqueezeAttention", {"channels": "64"}, "^channels must be an int, got '64'"),
        ("PyramidSqueezeAttention", {"channels": 64, "kernels": 3}, "kernels must be a sequence"),
        (
            "PyramidSqueezeAttention",
            {"channels": 64, "groups": (1, 4, 8, 16.0)},
            r"groups\[3\] must be an int, got 16.0",
        ),
        ("PyramidSqueezeAttention", {"channels": 64, "reverse": 0}, "reverse must be a bool"),
    ],
)
def test_wrong_types_are_named_by_the_modules(name, options, message, unchecked):
    with pytest.raises(TypeError, match=message):
        getattr(unchecked(MODULES[name]), name)(**options)


def test_the_wide_dtype():
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert wide_dtype(torch.ones(1, dtype=dtype)) == torch.float32
    assert wide_dtype(torch.ones(1, dtype=torch.float64)) == torch.float64


@pytest.mark.parametrize("dims", [(1,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_mean_is_that_of_torch(dtype, dims):
    x = (600 * torch.rand(2, 20, 30, 40)).to(dtype).requires_grad_()
    mean, expected = mean_over(x, *dims), x.mean(dims)
    torch.testing.assert_close(mean, expected)
    weights = torch.rand_like(mean)
    gradients = [torch.autograd.grad((m * weights).sum(), x)[0] for m in (mean, expected)]
    torch.testing.assert_close(*gradients)


def test_the_mean_of_many_numbers_stays_finite_in_half_precision():
    x = torch.full((1, 1, 30, 30), 1000.0).half()
    assert x.sum(dtype=torch.float32).half().isinf()
    assert mean_over(x, 2, 3) == 1000


def test_the_gradient_of_a_mean_is_not_written_out():
    x, strides = torch.rand(2, 3, 40, 50, requires_grad=True) + 1, []
    x.register_hook(lambda gradient: strides.append(gradient.stride()))
    mean_over(x, 2, 3).sum().backward()
    assert strides[0][2:] == (0, 0)  # one number per channel, repeated


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", MODULES)
def test_torch_fx_traces(name, training, unchecked):
    torch.manual_seed(0)
    module = getattr(unchecked(MODULES[name]), name)(64).train(training)
    state = {key: value.clone() for key, value in module.state_dict().items()}
    graph = torch.fx.symbolic_trace(module)
    for x in (torch.randn(2, 64, 5, 6), torch.randn(2, 64, 3, 3).double()):
        expected = module.to(x.dtype)(x)
        module.load_state_dict(state)
        torch.testing.assert_close(graph.to(x.dtype)(x), expected)
        module.load_state_dict(state)


def test_torchvision_extracts_features(timm, unchecked):
    from torchvision.models.feature_extraction import create_feature_extractor

    modules = {name: getattr(unchecked(file), name)(64) for name, file in MODULES.items()}
    model, x = nn.Sequential(OrderedDict(modules)).eval(), torch.randn(2, 64, 5, 6)
    extract = create_feature_extractor(model, {"CBAM": "early", "SpatialGroupEnhance": "late"})
    features = extract(x)
    torch.testing.assert_close(features["early"], model[:3](x))
    torch.testing.assert_close(features["late"], model[:4](x))
