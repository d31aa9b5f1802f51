"""External Attention: what its notebook does not say."""

import copy

import pytest
import torch
from torch import nn

from attn_course import ExternalAttention, MultiHeadExternalAttention
from attn_course.course import data
from attn_course.external_attention import double_normalize
from cases import plain

BLOCK = {
    "conv1": "query",
    "linear_0": "keys",
    "linear_1": "values",
    "conv2.0": "output",
    "conv2.1": "norm",
}
HEADS = {"trans_dims": "query", "linear_0": "keys", "linear_1": "values", "proj": "output"}


def unchecked():
    """The module without the shape checks of these tests, which are stricter than its own."""
    return plain("external_attention")


def released_weights(golden, names):
    weights = {}
    for key, value in golden.items():
        if key.startswith("param/"):
            layer, kind = key.removeprefix("param/").rsplit(".", 1)
            weights[f"{names[layer]}.{kind}"] = value[..., None] if value.ndim == 3 else value
    return weights


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(
    ("name", "form", "names"),
    [
        ("external_attention", ExternalAttention, BLOCK),
        ("multi_head_external_attention", MultiHeadExternalAttention, HEADS),
    ],
)
def test_equals_the_released_computation(name, form, names, mode):
    golden = data.golden(name)
    module = form(64).train(mode == "train")
    module.load_state_dict(released_weights(golden, names), strict=True)
    x = golden["x"].clone().requires_grad_()
    y = module(x)
    y.backward(golden["cotangent"])
    torch.testing.assert_close(y, golden[f"y_{mode}"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(x.grad, golden[f"grad_x_{mode}"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("c", "s"), [(64, 64), (512, 64), (5, 1)])
def test_parameters_follow_the_formula(c, s, bias):
    module = ExternalAttention(c, s, bias=bias)
    expected = 2 * c**2 + 2 * s * c + 2 * c + bias * c
    assert sum(p.numel() for p in module.parameters()) == expected


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("c", "heads", "s", "f"), [(64, 8, 64, 4), (384, 6, 32, 2), (5, 5, 1, 1)])
def test_parameters_of_the_heads_follow_the_formula(c, heads, s, f, bias):
    module = MultiHeadExternalAttention(c, heads, memory_size=s, expansion=f, bias=bias)
    d = c // heads
    expected = 2 * f * c**2 + 2 * s * d + bias * (f * c + s + d + c)
    assert sum(p.numel() for p in module.parameters()) == expected


@pytest.mark.parametrize(
    ("form", "options", "message"),
    [
        (ExternalAttention, {"channels": 0}, "channels must be at least 1, got 0"),
        (
            ExternalAttention,
            {"channels": 8, "memory_size": 0},
            "memory_size must be at least 1, got 0",
        ),
        (MultiHeadExternalAttention, {"channels": 0}, "channels must be at least 1, got 0"),
        (
            MultiHeadExternalAttention,
            {"channels": 8, "num_heads": 0},
            "num_heads must be at least 1, got 0",
        ),
        (
            MultiHeadExternalAttention,
            {"channels": 12, "num_heads": 8},
            r"num_heads=8 must divide channels=12; pass one of \[1, 2, 3, 4, 6, 12\]",
        ),
        (
            MultiHeadExternalAttention,
            {"channels": 8, "memory_size": -1},
            "memory_size must be at least 1, got -1",
        ),
        (
            MultiHeadExternalAttention,
            {"channels": 8, "expansion": 0},
            "expansion must be at least 1, got 0",
        ),
    ],
)
def test_bad_arguments_are_named(form, options, message):
    with pytest.raises(ValueError, match=message):
        form(**options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ExternalAttention", {"channels": 64.0}, r"channels must be an int, got 64.0 \(float\)"),
        ("ExternalAttention", {"channels": 64, "memory_size": "8"}, "memory_size must be an int"),
        ("ExternalAttention", {"channels": 64, "bias": None}, "bias must be a bool, got None"),
        ("MultiHeadExternalAttention", {"channels": 64, "num_heads": 2.0}, "num_heads must be an"),
        ("MultiHeadExternalAttention", {"channels": 64, "expansion": 4.0}, "expansion must be an"),
    ],
)
def test_wrong_types_are_named(name, options, message):
    with pytest.raises(TypeError, match=message):
        getattr(unchecked(), name)(**options)


def test_inputs_without_a_position_are_refused():
    with pytest.raises(ValueError, match=r"x has shape \(1, 8, 0, 3\); pass .* h >= 1"):
        unchecked().ExternalAttention(8).eval()(torch.rand(1, 8, 0, 3))
    with pytest.raises(ValueError, match=r"x has shape \(1, 0, 8\); pass .* n >= 1"):
        unchecked().MultiHeadExternalAttention(8)(torch.rand(1, 0, 8))


def test_a_frozen_batch_norm_takes_a_single_value():
    module = ExternalAttention(8).train()
    module.norm.eval()
    x = torch.rand(1, 8, 1, 1)
    expected = copy.deepcopy(module).eval()(x)
    assert torch.equal(module(x), expected)
    module.norm = nn.Identity()
    assert module(x).shape == x.shape


@pytest.mark.parametrize("shape", [(1, 8, 1, 1), (0, 8, 3, 3)], ids=str)
def test_a_single_value_in_training_is_refused_and_leaves_no_trace(shape):
    module = ExternalAttention(8)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ValueError, match=rf"b={shape[0]} in training mode.* call eval\(\)"):
        module(torch.rand(shape))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module.eval()(torch.rand(shape)).shape == shape


def test_the_memories_share_nothing():
    module = ExternalAttention(64)
    twin = copy.deepcopy(module)
    for model in (module, twin):
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            optimiser.zero_grad()
            model(torch.randn(2, 64, 5, 5, generator=generator)).square().mean().backward()
            optimiser.step()
    for ours, theirs in zip(module.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    storages = {p.untyped_storage().data_ptr() for p in module.parameters()}
    assert len(storages) == len(list(module.parameters()))


def test_weights_of_a_tied_checkpoint_load_and_part():
    keys = torch.randn(4, 8, 1, 1)
    module = ExternalAttention(8, memory_size=4)
    tied = {"keys.weight": keys, "values.weight": keys.transpose(0, 1)}
    module.load_state_dict(module.state_dict() | tied)
    nn.init.zeros_(module.values.weight)
    assert torch.equal(module.keys.weight, keys)


@pytest.mark.parametrize("form", ["block", "heads"])
def test_both_sums_follow_the_definition(form):
    torch.manual_seed(0)
    if form == "block":
        module, x, positions, memory = ExternalAttention(8, 5), torch.randn(2, 8, 4, 6), (2, 3), 1
        scores = module.keys(module.query(x))
    else:
        module, x, positions, memory = MultiHeadExternalAttention(8, 2), torch.randn(2, 9, 8), 2, 3
        scores = module.keys(module.query(x).unflatten(2, (8, 4)).transpose(1, 2))
    alpha = module.attention(x)
    first = scores.exp() / scores.exp().sum(positions, keepdim=True)
    torch.testing.assert_close(alpha, first / first.sum(memory, keepdim=True))
    torch.testing.assert_close(alpha.sum(memory), torch.ones_like(alpha.sum(memory)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_scores_far_apart_give_finite_weights_and_gradients(dtype):
    scores = torch.zeros(2, 64, 4096)
    scores[:, :, 0] = 200.0
    scores = scores.to(dtype).requires_grad_()
    alpha = double_normalize(scores, 2, 1)
    assert alpha.dtype == dtype
    alpha[:, 0].sum().backward()
    assert scores.grad.isfinite().all()
    torch.testing.assert_close(alpha.float(), torch.full((2, 64, 4096), 1 / 64), rtol=0.01, atol=0)


def test_heads_share_one_memory_and_know_nothing_of_each_other():
    module = MultiHeadExternalAttention(8, 2, memory_size=5, expansion=2, bias=False)
    x = torch.randn(2, 9, 8)
    alone = MultiHeadExternalAttention(4, 1, memory_size=5, expansion=1, bias=False)
    alone.load_state_dict(
        {
            "query.weight": torch.eye(4),
            "keys.weight": module.keys.weight,
            "values.weight": module.values.weight,
            "output.weight": torch.eye(4),
        }
    )
    heads = [alone(head) for head in module.query(x).split(4, dim=2)]
    torch.testing.assert_close(module(x), module.output(torch.cat(heads, 2)))


def test_the_last_matrix_meets_each_row_of_the_memory_and_not_each_position():
    module, shapes = ExternalAttention(8, memory_size=4), []
    module.output.register_forward_hook(lambda _, args, out: shapes.append(out.shape))
    module(torch.randn(2, 8, 5, 6))
    assert shapes == [(1, 8, 4, 1)]
