"""Pyramid Squeeze Attention: what its notebook does not say."""

from math import e

import pytest
import torch
from torch import nn

from attn_course import PyramidSqueezeAttention
from attn_course.course import data


def released_weights(golden):
    weights = {f"convs.{i}.weight": golden[f"param/conv_{i + 1}.weight"] for i in range(4)}
    for theirs, ours in (("fc1", "reduce"), ("fc2", "expand")):
        weights[f"se.{ours}.weight"] = golden[f"param/se.{theirs}.weight"].flatten(1)
        weights[f"se.{ours}.bias"] = golden[f"param/se.{theirs}.bias"]
    return weights


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(("stride", "suffix"), [(1, ""), (2, "_stride2")])
def test_equals_the_released_computation(stride, suffix, mode):
    golden = data.golden(f"pyramid_squeeze_attention{suffix}")
    module = PyramidSqueezeAttention(64, stride=stride).train(mode == "train")
    module.load_state_dict(released_weights(golden), strict=True)
    x = golden["x"].clone().requires_grad_()
    y = module(x)
    y.backward(golden["cotangent"])
    torch.testing.assert_close(y, golden[f"y_{mode}"])
    torch.testing.assert_close(x.grad, golden[f"grad_x_{mode}"])


@pytest.mark.parametrize(
    ("c", "out", "kernels", "groups", "r"),
    [
        (64, 64, (3, 5, 7, 9), (1, 4, 8, 16), 16),
        (64, 192, (3, 5, 7, 9), (1, 4, 8, 16), 16),
        (12, 6, [1, 3], [3, 1], 2),
        (5, 7, (11,), (1,), 3),
    ],
)
def test_parameters_follow_the_formula(c, out, kernels, groups, r):
    module = PyramidSqueezeAttention(c, out, kernels=kernels, groups=groups, reduction=r)
    w = out // len(kernels)
    convs = sum(w * c * k * k // g for k, g in zip(kernels, groups, strict=True))
    expected = convs + 2 * w * (w // r) + w // r + w
    assert sum(p.numel() for p in module.parameters()) == expected


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [(1, 1), (6, 7), (1, 8)])
def test_the_size_is_divided_by_the_stride_and_rounded_up(stride, size):
    module = PyramidSqueezeAttention(16, 32, groups=(1, 2, 4, 8), reduction=4, stride=stride)
    x = torch.rand(2, 16, *size)
    h, w = (-(-side // stride) for side in size)
    assert module(x).shape == (2, 32, h, w)
    assert module.attention(x).shape == (2, 4, 8, 1, 1)


@pytest.mark.parametrize("reverse", [True, False])
def test_attention_is_what_the_scales_are_weighted_with(reverse):
    module = PyramidSqueezeAttention(16, groups=(1, 2, 4, 4), reduction=2, reverse=reverse)
    x = torch.randn(2, 16, 5, 6)
    scales = torch.stack([conv(x) for conv in module.convs], 1)
    weighted = module.attention(x) * scales  # in the order of the kernels
    expected = (weighted.flip(1) if reverse else weighted).flatten(1, 2)
    torch.testing.assert_close(module(x), expected)


def test_shares_sum_to_one_and_stay_between_floor_and_ceiling():
    module = PyramidSqueezeAttention(64)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=3.0)
    s = module.attention(10 * torch.randn(8, 64, 9, 9))
    torch.testing.assert_close(s.sum(1), torch.ones(8, 16, 1, 1))
    assert s.min() >= 1 / (1 + 3 * e) - 1e-6
    assert s.max() <= e / (e + 3) + 1e-6
    assert s.max() > 0.4  # the gates are extreme, so the test can tell


def test_without_the_sigmoid_there_is_no_ceiling():
    module = PyramidSqueezeAttention(64, gate_activation=nn.Identity)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=3.0)
    assert module.attention(10 * torch.randn(8, 64, 9, 9)).max() > 0.9


def test_channels_last_stays_channels_last():
    x = torch.rand(2, 64, 8, 8).to(memory_format=torch.channels_last)
    y = PyramidSqueezeAttention(64)(x)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_autocast_keeps_its_precision():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert PyramidSqueezeAttention(64)(torch.rand(2, 64, 8, 8)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"out_channels": 0}, "out_channels must be at least 1, got 0"),
        ({"stride": 0}, "stride must be at least 1, got 0"),
        ({"kernels": ()}, r"kernels must have at least one number, got \(\)"),
        ({"kernels": (3, 5)}, r"groups must have 2 numbers, got \(1, 4, 8, 16\)"),
        ({"kernels": (3, 5, 7, 8)}, r"kernels\[3\] must be odd, got 8; pass 7 or 9"),
        ({"kernels": (3, 5, 7, -1)}, r"kernels\[3\] must be at least 1, got -1"),
        ({"out_channels": 66}, "out_channels must be a multiple of 4, got 66; pass, say, 68"),
        (
            {"groups": (1, 4, 8, 32)},
            r"groups\[3\]=32 .* channels=64 and channels_per_scale=16; .* \[1, 2, 4, 8, 16\]",
        ),
        ({"groups": (1, 4, 8, 0)}, r"groups\[3\] must be at least 1, got 0"),
        ({"channels": 72, "out_channels": 64}, r"groups\[3\]=16 .* channels=72 .* \[1, 2, 4, 8\]"),
        ({"reduction": 17}, "reduction=17 .* channels_per_scale=16; pass reduction <= 16"),
        ({"reduction": 0}, "reduction must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        PyramidSqueezeAttention(**{"channels": 64} | options)


def test_the_gate_is_called_so_that_its_hooks_run():
    module, gates = PyramidSqueezeAttention(64), []
    module.se.register_forward_hook(lambda module, _, out: gates.append(out))
    module(torch.rand(2, 64, 5, 6))
    assert [gate.shape for gate in gates] == [(8, 16, 1, 1)]


@pytest.mark.parametrize("channels", [16, 64, 256])
def test_the_result_has_the_layout_of_x(channels):
    x = torch.rand(2, channels, 5, 6)
    module = PyramidSqueezeAttention(channels, groups=(1, 2, 4, 4), reduction=4)
    y, last = module(x), module(x.to(memory_format=torch.channels_last))
    assert y.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, y)


@pytest.mark.parametrize(("training", "strides"), [(True, [30, 1, 1, 1]), (False, [30, 30, 1, 1])])
def test_narrow_groups_get_their_channels_last_and_no_others(training, strides):
    module = PyramidSqueezeAttention(64).train(training)  # 16, 4, 2 and 1 channels per group
    found = []
    for conv in module.convs:
        conv.register_forward_hook(lambda _, args, out: found.append(args[0].stride(1)))
    module(torch.rand(2, 64, 5, 6))
    assert found == strides
