"""Selective Kernel: what its notebook does not say."""

import pytest
import torch

from attn_course import SelectiveKernel
from attn_course.course import data

NAMES = {
    "conv3": "kernels.0.0",
    "bn3": "kernels.0.1",
    "conv5": "kernels.1.0",
    "bn5": "kernels.1.1",
    "fc1": "reduce",
    "bnf": "norm",
    "fc2": "expand",
}


def released_weights(golden):
    weights = {}
    for key, value in golden.items():
        if key.startswith("param/"):
            layer, kind = key.removeprefix("param/").split(".")
            weights[f"{NAMES[layer]}.{kind}"] = value.flatten(1) if "fc" in layer else value
    return weights


# Batch norm over two descriptors magnifies rounding: hence the wider tolerance in training.
@pytest.mark.parametrize(("mode", "atol"), [("train", 1e-4), ("eval", 1e-5)])
@pytest.mark.parametrize(
    ("name", "stride"), [("selective_kernel", 1), ("selective_kernel_stride2", 2)]
)
def test_equals_the_transcribed_caffe_network(name, stride, mode, atol):
    golden = data.golden(name)
    module = SelectiveKernel(64, stride=stride).train(mode == "train")
    module.load_state_dict(released_weights(golden), strict=True)
    x = golden["x"].clone().requires_grad_()
    y = module(x)
    y.backward(golden["cotangent"])
    torch.testing.assert_close(y, golden[f"y_{mode}"], rtol=0, atol=atol)
    torch.testing.assert_close(x.grad, golden[f"grad_x_{mode}"], rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("c_in", "c", "paths", "g", "r", "least"),
    [
        (64, 64, 2, 32, 16, 32),
        (1024, 1024, 2, 32, 16, 32),
        (48, 96, 3, 16, 2, 1),
        (1, 5, 4, 1, 16, 3),
    ],
)
def test_parameters_follow_the_formula(c_in, c, paths, g, r, least):
    module = SelectiveKernel(c_in, c, paths=paths, groups=g, reduction=r, min_hidden=least)
    d = max(c // r, least)
    expected = paths * (9 * c_in * c // g + 2 * c) + (paths + 1) * c * d + 2 * d
    assert sum(p.numel() for p in module.parameters()) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"channels": 64, "out_channels": 0}, "out_channels must be at least 1, got 0"),
        ({"channels": 64, "stride": 0}, "stride must be at least 1, got 0"),
        ({"channels": 64, "groups": 0}, "groups must be at least 1, got 0"),
        ({"channels": 64, "reduction": 0}, "reduction must be at least 1, got 0"),
        ({"channels": 64, "min_hidden": 0}, "min_hidden must be at least 1, got 0"),
        ({"channels": 64, "paths": 1}, "paths must be at least 2, got 1"),
        ({"channels": 48}, r"groups=32 must divide channels=48 .* \[1, 2, .* 48\]"),
        (
            {"channels": 64, "out_channels": 24},
            r"groups=32 .* channels=64 and out_channels=24; pass one of \[1, 2, 4, 8\]",
        ),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SelectiveKernel(**options)


@pytest.mark.parametrize("b", [0, 1])
@pytest.mark.parametrize("method", ["forward", "attention"])
def test_a_training_batch_too_small_is_refused_and_leaves_no_trace(b, method):
    module = SelectiveKernel(32)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ValueError, match=rf"b={b} in training mode.* pass b >= 2 or call eval"):
        getattr(module, method)(torch.rand(b, 32, 5, 5))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_with_frozen_statistics_a_single_image_trains_the_rest():
    module = SelectiveKernel(32)
    module.norm.eval()
    module(torch.rand(1, 32, 5, 5)).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_statistics_of_the_batch_need_two_images_in_evaluation_as_well():
    module = SelectiveKernel(32).eval()
    module.norm = torch.nn.BatchNorm1d(32, track_running_stats=False).eval()
    with pytest.raises(ValueError, match="pass b >= 2"):
        module(torch.rand(1, 32, 5, 5))


@pytest.mark.parametrize("paths", [2, 3, 5])
def test_a_fresh_module_gives_nearly_the_mean_of_its_paths(paths):
    module = SelectiveKernel(64, paths=paths).eval()
    shares = module.attention(torch.randn(4, 64, 9, 9))
    assert shares.shape == (4, paths, 64, 1, 1)
    torch.testing.assert_close(shares, torch.full_like(shares, 1 / paths), rtol=0, atol=0.05)


def test_the_order_of_the_paths_is_the_order_of_the_rows():
    """Paths with equal dilation would hide a mix-up: scores of path 3 must weight path 3."""
    module = SelectiveKernel(8, paths=3, groups=2, min_hidden=4).eval()
    torch.nn.init.zeros_(module.expand.weight)
    torch.nn.init.constant_(module.norm.bias, 100.0)
    torch.nn.init.ones_(module.expand.weight[16:])
    x = torch.randn(2, 8, 9, 9)
    assert torch.equal(module(x), module.split(x)[2])


@pytest.mark.parametrize(("stride", "side"), [(1, 9), (2, 5), (3, 3)])
def test_stride_and_out_channels(stride, side):
    module = SelectiveKernel(8, 12, stride=stride, groups=4)
    assert module(torch.rand(2, 8, 9, 9)).shape == (2, 12, side, side)


def test_autocast_keeps_the_dtype_of_the_convolutions():
    module = SelectiveKernel(32).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module(torch.rand(2, 32, 5, 5)).dtype == torch.bfloat16
