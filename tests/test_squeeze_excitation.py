"""Squeeze-and-Excitation: what its notebook does not say."""

import pytest
import torch
from torch import nn

from attn_course import SqueezeExcitation
from attn_course.course import data


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_equals_the_computation_of_pytorch_insight(mode):
    golden = data.golden("squeeze_excitation")
    names = {"fc.0": "reduce", "fc.2": "expand"}
    weights = {
        key.removeprefix("param/").replace(theirs, ours): value
        for theirs, ours in names.items()
        for key, value in golden.items()
        if key.startswith(f"param/{theirs}")
    }
    module = SqueezeExcitation(64).train(mode == "train")
    module.load_state_dict(weights, strict=True)
    x = golden["x"].clone().requires_grad_()
    y = module(x)
    y.backward(golden["cotangent"])
    torch.testing.assert_close(y, golden[f"y_{mode}"])
    torch.testing.assert_close(x.grad, golden[f"grad_x_{mode}"])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("c", "r"), [(64, 16), (256, 16), (40, 16), (8, 8), (6, 1)])
def test_parameters_follow_the_formula(c, r, bias):
    module = SqueezeExcitation(c, r, bias=bias)
    hidden = c // r
    expected = 2 * c * hidden + (hidden + c if bias else 0)
    assert sum(p.numel() for p in module.parameters()) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"channels": 8},
            r"reduction=16 leaves no hidden channel for channels=8; pass reduction <= 8",
        ),
        ({"channels": 8, "reduction": 0}, "reduction must be at least 1, got 0"),
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"channels": -4}, "channels must be at least 1, got -4"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SqueezeExcitation(**options)


def test_the_smallest_hidden_layer_works():
    assert SqueezeExcitation(16, 16).attention(torch.rand(1, 16, 3, 3)).shape == (1, 16, 1, 1)


def test_another_gate_activation_is_used():
    module = SqueezeExcitation(8, 2, gate_activation=nn.Hardsigmoid)
    nn.init.zeros_(module.expand.weight)
    nn.init.constant_(module.expand.bias, 3.0)  # the hard sigmoid is exactly 1 from 3 on
    assert (module.attention(torch.rand(2, 8, 4, 4)) == 1).all()


def test_weights_with_biases_do_not_load_without_them():
    with pytest.raises(RuntimeError, match="bias"):
        SqueezeExcitation(64, bias=False).load_state_dict(SqueezeExcitation(64).state_dict())
