"""Multi-Head Self-Attention: what its notebook does not say."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from attn_course import MultiHeadSelfAttention
from attn_course.course import data
from cases import plain


def unchecked(*args, **options):
    """The module without the shape checks of these tests, which are stricter than its own."""
    return plain("multi_head_self_attention").MultiHeadSelfAttention(*args, **options)


def with_random_weights(channels=16, num_heads=4, **options):
    torch.manual_seed(0)
    module = MultiHeadSelfAttention(channels, num_heads, **options)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.eval()


def explicit(module, x, keys, values, mask=None):
    """The equation with explicit weights; −∞ hides."""
    c, h = module.channels, module.num_heads
    packed = zip(module.in_proj_weight.split(c), module.in_proj_bias.split(c), strict=True)
    q, k, v = (
        F.linear(t, w, b).unflatten(2, (h, -1)).transpose(1, 2)
        for t, (w, b) in zip((x, keys, values), packed, strict=True)
    )
    scores = q @ k.mT / (c // h) ** 0.5
    if mask is not None:
        scores = scores + mask
    weights = scores.softmax(3).nan_to_num(0.0)
    return module.out_proj((weights @ v).transpose(1, 2).flatten(2)), weights


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_annotated_transformer(masked, mode):
    golden = data.golden("multi_head_self_attention" + masked * "_masked")
    weights, biases = (
        [golden[f"param/linears.{i}.{kind}"] for i in range(4)] for kind in ("weight", "bias")
    )
    module = MultiHeadSelfAttention(64, num_heads=8).train(mode == "train")
    state = {"in_proj_weight": torch.cat(weights[:3]), "in_proj_bias": torch.cat(biases[:3])}
    state |= {"out_proj.weight": weights[3], "out_proj.bias": biases[3]}
    module.load_state_dict(state, strict=True)
    mask = golden["mask"].bool()[:, None] if masked else None
    x = golden["x"].clone().requires_grad_()
    y = module(x, mask=mask)
    y.backward(golden["cotangent"])
    torch.testing.assert_close(y, golden[f"y_{mode}"])
    torch.testing.assert_close(x.grad, golden[f"grad_x_{mode}"])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_equals_torch_with_masks_dropout_and_other_keys(training, bias):
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(16, 4, bias=bias, dropout=0.3, batch_first=True).train(training)
    ours = MultiHeadSelfAttention(16, 4, bias=bias, dropout=0.3).train(training)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x, keys, values = torch.randn(2, 5, 16), torch.randn(2, 7, 16), torch.randn(2, 7, 16)
    mask = (torch.rand(5, 7) > 0.3).logical_or(torch.eye(5, 7).bool())
    results = []
    for module in (ours, theirs):
        leaves = [t.clone().requires_grad_() for t in (x, keys, values)]
        torch.manual_seed(1)
        if module is ours:
            y = module(*leaves, mask=mask)
        else:
            y, _ = module(*leaves, attn_mask=~mask, need_weights=False)
        wanted = [*leaves, *module.parameters()]
        results.append([y, *torch.autograd.grad(y.square().sum(), wanted)])
    torch.testing.assert_close(*results)


def test_starts_as_torch_does():
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(32, 4).state_dict()
    torch.manual_seed(0)
    ours = MultiHeadSelfAttention(32, 4).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(("c", "h"), [(512, 8), (16, 1), (12, 12)])
@pytest.mark.parametrize("bias", [True, False])
def test_parameters_follow_the_formula(c, h, bias):
    module = MultiHeadSelfAttention(c, h, bias=bias)
    assert sum(p.numel() for p in module.parameters()) == 4 * c**2 + bias * 4 * c


@pytest.mark.parametrize(
    "shape", [(5, 7), (1, 7), (5, 1), (1, 1), (2, 4, 5, 7), (2, 1, 1, 7), (1, 4, 5, 1)], ids=str
)
@pytest.mark.parametrize("boolean", [True, False])
def test_masks_broadcast(shape, boolean):
    module = with_random_weights()
    x, keys = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    mask = torch.rand(shape) > 0.5 if boolean else torch.randn(shape)
    additive = torch.zeros(shape).masked_fill(~mask, -torch.inf) if boolean else mask
    y, weights = explicit(module, x, keys, keys, additive)
    torch.testing.assert_close(module(x, keys, mask=mask), y)
    torch.testing.assert_close(module.attention(x, keys, mask=mask), weights)


@pytest.mark.parametrize("boolean", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("hidden", [[2], [0, 4], range(5)], ids=str)
def test_a_row_that_hides_all_gets_weights_of_zero(hidden, dtype, boolean):
    module = with_random_weights().to(dtype)
    mask = torch.ones(5, 5, dtype=torch.bool)
    mask[list(hidden)] = False
    if not boolean:
        mask = torch.zeros(5, 5).masked_fill(~mask, -torch.inf)
    x = torch.randn(2, 5, 16, dtype=dtype, requires_grad=True)
    y, weights = module(x, mask=mask), module.attention(x, mask=mask)
    for row in hidden:
        torch.testing.assert_close(y[:, row], module.out_proj.bias.expand(2, 16))
        assert (weights[:, :, row] == 0).all()
    for result in (y, weights):
        assert result.isfinite().all()
        gradients = torch.autograd.grad(
            result.float().square().sum(), [x, module.in_proj_weight, module.in_proj_bias]
        )
        assert all(gradient.isfinite().all() for gradient in gradients)


def test_a_row_that_hides_all_passes_no_gradient_and_spoils_no_other():
    module = with_random_weights().double()
    mask = torch.ones(5, 7, dtype=torch.bool)
    mask[3] = False
    x = torch.randn(1, 5, 16, dtype=torch.float64, requires_grad=True)
    keys = torch.randn(1, 7, 16, dtype=torch.float64, requires_grad=True)
    y = module(x, keys, mask=mask)
    torch.testing.assert_close(y[:, [0, 1, 2, 4]], module(x, keys)[:, [0, 1, 2, 4]])
    for gradient in torch.autograd.grad(y[:, 3].sum(), [x, keys]):
        assert torch.equal(gradient, torch.zeros_like(gradient))
    assert torch.autograd.gradcheck(lambda x, k: module(x, k, mask=mask), (x, keys), fast_mode=True)
    assert torch.autograd.gradcheck(
        lambda x, k: module.attention(x, k, mask=mask), (x, keys), fast_mode=True
    )


def test_a_learned_mask_gets_its_gradient():
    """As in networks that learn a score for each relative position."""
    module = with_random_weights().double()
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    learned = torch.randn(1, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda mask: module(x, mask=mask), learned, fast_mode=True)


def test_a_mask_is_left_alone():
    mask = torch.zeros(5, 5).masked_fill(torch.eye(5).bool(), -torch.inf)
    before = mask.clone()
    with_random_weights()(torch.randn(1, 5, 16), mask=mask)
    assert torch.equal(mask, before)


def test_a_mask_under_autocast():
    module, x = with_random_weights(), torch.randn(2, 5, 16)
    mask = torch.rand(5, 5) > 0.4
    mask[1] = False
    for kind in (mask, torch.zeros(5, 5).masked_fill(~mask, torch.finfo(torch.float32).min)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, weights = module(x, mask=kind), module.attention(x, mask=kind)
        torch.testing.assert_close(
            y.float()[:, 2:], module(x, mask=mask)[:, 2:], rtol=0.05, atol=0.05
        )
        assert weights.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_as_good_as_torch(dtype):
    ours = with_random_weights(64, 8)
    theirs = nn.MultiheadAttention(64, 8, batch_first=True).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 49, 64)
    expected = ours(x)
    ours, theirs, x = ours.to(dtype), theirs.to(dtype), x.to(dtype)
    our_error = (ours(x).float() - expected).square().mean()
    their_error = (theirs(x, x, x)[0].float() - expected).square().mean()
    assert our_error <= 1.5 * their_error


def test_values_default_to_the_keys():
    module = with_random_weights()
    x, keys = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    torch.testing.assert_close(module(x, keys), module(x, keys, keys))
    torch.testing.assert_close(module(x, x), module(x))
    values = torch.randn(2, 7, 16)
    torch.testing.assert_close(module(x, keys, values), explicit(module, x, keys, values)[0])


def test_the_kernel_is_the_fused_one(capfd):
    module = with_random_weights()
    x = torch.randn(2, 32, 16, requires_grad=True)
    for mask in (None, torch.rand(32, 32) > 0.5, torch.rand(2, 1, 1, 32) > 0.5):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            module(x, mask=mask).sum().backward()
        names = {event.key for event in profile.key_averages()}
        assert "aten::_scaled_dot_product_flash_attention_for_cpu" in names
        assert "aten::_scaled_dot_product_attention_math" not in names


def test_dropout_drops_weights_in_training_only():
    module = with_random_weights(dropout=0.5)
    x = torch.randn(1, 5, 16)
    torch.testing.assert_close(module(x), module(x))
    module.train()
    torch.manual_seed(0)
    many = torch.stack([module(x) for _ in range(4000)])
    assert many.std(0).min() > 0.01
    torch.testing.assert_close(many.mean(0), module.eval()(x), rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "channels must be at least 1, got 0"),
        (
            {"channels": 60},
            r"num_heads=8 must divide channels=60; pass one of \[1, 2, 3, .* 60\]",
        ),
        ({"channels": 8, "num_heads": 0}, "num_heads must be at least 1, got 0"),
        ({"channels": 8, "num_heads": -2}, "num_heads must be at least 1, got -2"),
        ({"channels": 8, "dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"channels": 8, "dropout": -0.1}, "dropout must be at least 0 and below 1, got -0.1"),
        ({"channels": 8, "dropout": float("nan")}, "dropout must be .* got nan"),
        # Not by trying ten thousand million divisors.
        ({"channels": 10**10 + 1, "num_heads": 10**9}, "num_heads=1000000000 must divide"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        MultiHeadSelfAttention(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 64 / 16}, r"channels must be an int, got 4.0 \(float\)"),
        ({"channels": "64"}, "channels must be an int, got '64'"),
        ({"channels": 64, "num_heads": 8.0}, "num_heads must be an int, got 8.0"),
        ({"channels": 64, "num_heads": None}, "num_heads must be an int, got None"),
        ({"channels": 64, "bias": "yes"}, "bias must be a bool, got 'yes'"),
        ({"channels": 64, "dropout": "0.1"}, "dropout must be a float, got '0.1'"),
    ],
)
def test_wrong_types_are_named(options, message):
    with pytest.raises(TypeError, match=message):
        unchecked(**options)


@pytest.mark.parametrize("mask", [None, torch.ones(5, 5, dtype=torch.bool)], ids=["", "mask"])
def test_large_scores_in_half_precision_leave_weights(mask):
    module, x = with_random_weights(), 100 * torch.randn(2, 5, 16)
    weights = module.half().attention(x.half(), mask=mask)
    assert weights.dtype == torch.float16
    torch.testing.assert_close(weights.float().sum(3), torch.ones(2, 4, 5), rtol=0, atol=2e-3)


def test_tokens_that_are_none():
    with pytest.raises(TypeError, match=r"x must be a torch.Tensor, got \[\] \(list\)"):
        unchecked(16)([])
    with pytest.raises(TypeError, match=r"x must be a torch.Tensor, got None"):
        unchecked(16)(None)
    with pytest.raises(TypeError, match=r"mask must be a torch.Tensor, got \[1\] \(list\)"):
        unchecked(16)(torch.zeros(1, 5, 16), mask=[1])
    with pytest.raises(TypeError, match=r"keys must be floating point, got torch.int64"):
        unchecked(16)(torch.zeros(1, 5, 16), torch.zeros(1, 5, 16, dtype=torch.long))


X, KEYS = torch.zeros(2, 5, 16), torch.zeros(2, 7, 16)


@pytest.mark.parametrize(
    ("tokens", "mask", "message"),
    [
        ([torch.zeros(2, 16, 3, 3)], None, r"x has shape \(2, 16, 3, 3\); pass \(b, n, d\) .*mT"),
        ([X, KEYS[..., :8]], None, r"keys has shape \(2, 7, 8\); pass .* d = channels=16"),
        ([X, KEYS, KEYS[..., :8]], None, r"values has shape \(2, 7, 8\); pass"),
        ([X, KEYS[:1]], None, r"keys has shape \(1, 7, 16\); pass as many images as x, 2"),
        ([X, KEYS, KEYS[:, :6]], None, "keys have m=7 tokens and values m=6; pass one"),
        ([X[:, :0]], None, r"x has shape \(2, 0, 16\); pass \(b, n, d\) .* n >= 1"),
        ([X, None, KEYS], None, "values are passed without keys; pass both"),
        (
            [X],
            torch.ones(2, 5, 5).bool(),
            r"mask has shape \(2, 5, 5\); pass \(b, h, n, m\) = \(2, 4, 5, 5\)",
        ),
        ([X, KEYS], torch.ones(5, 5).bool(), r"mask has shape \(5, 5\); pass .* = \(2, 4, 5, 7\)"),
        ([X], torch.ones(3, 1, 5, 5).bool(), r"\(b, h, n, m\) = \(2, 4, 5, 5\)"),
        ([X], torch.ones(5, 5).int(), r"mask has dtype torch.int32; pass torch.bool or floating"),
    ],
)
def test_bad_tokens_and_masks_are_named(tokens, mask, message):
    with pytest.raises(ValueError, match=message):
        unchecked(16, num_heads=4)(*tokens, mask=mask)


def test_a_feature_map_goes_there_and_back():
    x = torch.randn(2, 16, 3, 5)
    module = with_random_weights()
    y = module(x.flatten(2).mT).mT.unflatten(2, (3, 5))
    assert y.shape == x.shape
    assert torch.equal(x.flatten(2).mT.mT.unflatten(2, (3, 5)), x)
    turned = module(x.mT.flatten(2).mT).mT.unflatten(2, (5, 3)).mT
    torch.testing.assert_close(turned, y)


def test_second_derivatives_need_the_kernel_of_plain_operations():
    module = with_random_weights().double()
    x = torch.randn(1, 3, 16, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"derivative for .* is not implemented"):
        first.sum().backward()
    with sdpa_kernel(SDPBackend.MATH):
        assert torch.autograd.gradgradcheck(module, x, fast_mode=True)


def test_tracing_with_fx_needs_the_arguments_that_are_left_out():
    module = unchecked(16, num_heads=4).eval()
    left_out = {"keys": None, "values": None, "mask": None}
    traced = torch.fx.symbolic_trace(module, concrete_args=left_out)
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(traced(x), module(x))
