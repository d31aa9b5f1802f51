"""Dual Attention: what its notebook does not say."""

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import attn_course
from attn_course import DualAttention
from attn_course.course import data
from attn_course.dual_attention import ChannelAttention, DualAttentionHead, PositionAttention
from cases import plain
from two_processes import two_processes

PROJECTIONS = {"query_conv": "query", "key_conv": "key", "value_conv": "value"}
HEAD = {
    "sa.gamma": "position.alpha",
    "sc.gamma": "channel.beta",
    "sa.": "position.",
    "conv5a": "position_in",
    "conv5c": "channel_in",
    "conv51": "position_out",
    "conv52": "channel_out",
    "conv6.1": "position_classifier",
    "conv7.1": "channel_classifier",
    "conv8.1": "classifier",
}


def released_weights(golden, names):
    state = {}
    for theirs in golden:
        if theirs.startswith("param/"):
            ours = theirs.removeprefix("param/")
            for old, new in names.items():
                ours = ours.replace(old, new)
            state[ours] = golden[theirs]
    return state


def with_random_weights(module):
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def as_released(module, x):
    """Position attention as the released code computes it."""
    q, k, v = (layer(x).flatten(2) for layer in (module.query, module.key, module.value))
    weights = torch.softmax(q.mT @ k, 2)
    return module.alpha * (v @ weights.mT).view_as(x) + x


class FusedScores(DualAttentionHead):
    """The head with the three classifiers of the released weights, and the first of its scores."""

    def __init__(self):
        super().__init__(64, 11, dropout=0.0, auxiliary=True)

    def forward(self, x):
        return super().forward(x)[0]


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(
    ("name", "module", "names"),
    [
        ("position", lambda: PositionAttention(64), {**PROJECTIONS, "gamma": "alpha"}),
        ("position", lambda: PositionAttention(64, chunk=9), {**PROJECTIONS, "gamma": "alpha"}),
        ("channel", lambda: ChannelAttention(64), {"gamma": "beta"}),
        ("head", FusedScores, {**HEAD, **PROJECTIONS}),
    ],
    ids=["position", "position in chunks", "channel", "head"],
)
def test_equals_the_released_computation(name, module, names, mode):
    golden = data.golden(f"dual_attention_{name}")
    module = module().train(mode == "train")
    module.load_state_dict(released_weights(golden, names), strict=True)
    x = golden["x"].clone().requires_grad_()
    y = module(x)
    y.backward(golden["cotangent"])
    torch.testing.assert_close(y, golden[f"y_{mode}"])
    torch.testing.assert_close(x.grad, golden[f"grad_x_{mode}"])


class Largest(TorchDispatchMode):
    """Remembers the largest number of numbers in a tensor that any operation makes."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.numbers = max([self.numbers, *(tensor.numel() for tensor in tensors)])
        return result


@pytest.mark.parametrize("training", [True, False], ids=["forward and backward", "forward"])
def test_the_matrix_of_all_weights_is_never_made(training):
    module = with_random_weights(DualAttention(16))
    x = torch.randn(1, 16, 40, 40, requires_grad=training)
    with Largest() as mode, torch.set_grad_enabled(training):
        y = module(x)
        if training:
            y.sum().backward()
    assert mode.numbers == 256 * 1600  # the rows of one chunk, and nothing larger
    with Largest() as mode, torch.no_grad():
        as_released(module.position, x)
    assert mode.numbers == 1600**2  # the ruler measures


def test_no_row_of_weights_waits_for_the_backward_pass():
    module = with_random_weights(PositionAttention(16, chunk=10))
    x = torch.randn(1, 16, 20, 20, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, Tensor):
        module(x)
    assert max(kept) <= 16 * 400


@pytest.mark.parametrize("chunk", [1, 7, 16, 256])
def test_chunks_change_neither_values_nor_gradients(chunk):
    torch.manual_seed(0)
    module = with_random_weights(PositionAttention(16, 4, chunk=chunk)).double()
    x = torch.randn(2, 16, 9, 13, dtype=torch.float64)
    cotangent = torch.randn_like(x)
    results = []
    for function in (module, lambda x: as_released(module, x)):
        module.zero_grad()
        leaf = x.clone().requires_grad_()
        y = function(leaf)
        y.backward(cotangent)
        results.append([y, leaf.grad, *(p.grad.clone() for p in module.parameters())])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


def test_second_derivatives_pass_through_the_chunks():
    module = with_random_weights(PositionAttention(4, 2, chunk=1)).double()
    x = torch.randn(1, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(module, x)


def test_chosen_queries_get_their_rows():
    module = with_random_weights(PositionAttention(16, 4))
    x = torch.randn(2, 16, 5, 6)
    chosen = torch.tensor([29, 0, 7])
    torch.testing.assert_close(module.attention(x, chosen), module.attention(x)[:, chosen])


@pytest.mark.parametrize(("c", "r"), [(512, 8), (64, 8), (30, 7), (5, 5)])
def test_parameters_follow_the_formula(c, r):
    d = c // r
    expected = 2 * (c * d + d) + c * c + c + 2
    assert sum(p.numel() for p in DualAttention(c, r).parameters()) == expected


@pytest.mark.parametrize("auxiliary", [True, False])
@pytest.mark.parametrize(("c", "k"), [(64, 11), (256, 19)])
def test_parameters_of_the_head_follow_the_formula(c, k, auxiliary):
    w = c // 4
    halves = 2 * (9 * c * w + 2 * w) + 2 * (9 * w * w + 2 * w)
    attention = 2 * (w * (w // 8) + w // 8) + w * w + w + 2
    expected = halves + attention + (3 if auxiliary else 1) * (w * k + k)
    head = DualAttentionHead(c, k, auxiliary=auxiliary)
    assert sum(p.numel() for p in head.parameters()) == expected


def test_a_fresh_block_is_the_identity_and_only_the_scales_learn():
    module = DualAttention(16)
    x = torch.randn(2, 16, 5, 6)
    y = module(x)
    assert torch.equal(y, x)
    y.square().sum().backward()
    moved = {name for name, p in module.named_parameters() if p.grad.abs().sum() > 0}
    assert moved == {"position.alpha", "channel.beta"}


def test_the_block_is_the_sum_of_its_halves_with_x_once():
    module = with_random_weights(DualAttention(16))
    x = torch.randn(2, 16, 5, 6)
    torch.testing.assert_close(module(x), module.position(x) + module.channel(x) - x)


@pytest.mark.parametrize("dissimilar", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("autocast", [False, True], ids=["half", "autocast"])
def test_large_scores_do_not_overflow_in_half_precision(autocast, dtype, dissimilar):
    """Sums of 400 squares of 100 are beyond the largest number of float16."""
    torch.manual_seed(0)
    module = with_random_weights(DualAttention(16, dissimilar=dissimilar))
    x = (100 * torch.randn(1, 16, 20, 20)).to(dtype)
    module = module if autocast else module.to(dtype)
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        leaf = x.clone().requires_grad_()
        y = module(leaf)
    y.float().sum().backward()
    assert y.isfinite().all()
    assert leaf.grad.isfinite().all()
    weights = module.channel.attention(x)
    expected = module.channel.attention(x.double()).to(dtype)
    torch.testing.assert_close(weights, expected)


def test_three_scores_of_the_head():
    torch.manual_seed(0)
    head = DualAttentionHead(32, 5, width=8, auxiliary=True).eval()
    alone = DualAttentionHead(32, 5, width=8).eval()
    rest = alone.load_state_dict(head.state_dict(), strict=False)
    assert not rest.missing_keys
    x = torch.randn(2, 32, 6, 7)
    fused, positions, channels = head(x)
    torch.testing.assert_close(fused, alone(x))
    half = head.position_out(head.position(head.position_in(x)))
    torch.testing.assert_close(positions, head.position_classifier(half))
    half = head.channel_out(head.channel(head.channel_in(x)))
    torch.testing.assert_close(channels, head.channel_classifier(half))


def two_steps(rank, folder, auxiliary):
    """One of two processes that train the head; its picture is not the other's."""
    with two_processes(rank, folder):
        torch.manual_seed(0)
        head = DistributedDataParallel(DualAttentionHead(32, 5, width=8, auxiliary=auxiliary))
        optimiser = torch.optim.SGD(head.parameters(), lr=0.1)
        start = [parameter.detach().clone() for parameter in head.parameters()]
        x = torch.randn(2, 32, 6, 7, generator=torch.Generator().manual_seed(rank))
        for _ in range(2):
            optimiser.zero_grad()
            scores = head(x) if auxiliary else [head(x)]
            sum(score.square().sum() for score in scores).backward()
            optimiser.step()
        for after in head.parameters():
            both = [torch.empty_like(after) for _ in range(2)]
            torch.distributed.all_gather(both, after.detach())
            assert torch.equal(*both)
        names = ("classifier", "position_classifier", "channel_classifier")
        for name, before, after in zip(
            dict(head.module.named_parameters()), start, head.parameters(), strict=True
        ):
            if name.startswith(names):
                assert not torch.equal(before, after), name


@pytest.mark.parametrize("auxiliary", [True, False])
def test_the_head_trains_in_two_processes(auxiliary, tmp_path):
    torch.multiprocessing.spawn(two_steps, (tmp_path, auxiliary), nprocs=2)


def test_a_head_in_training_refuses_a_single_value():
    head, x = (
        plain("dual_attention").DualAttentionHead(16, 5, reduction=2),
        torch.randn(1, 16, 1, 1),
    )
    assert head.eval()(x).shape == (1, 5, 1, 1)
    with pytest.raises(ValueError, match=r"x has b=1 in training mode.* call eval\(\)"):
        head.train()(x)


def test_the_halves_are_called():
    """So that hooks on them run, and whatever else hangs on a call, such as FSDP."""
    module, called = DualAttention(16), []
    for half in (module.position, module.channel):
        half.register_forward_hook(lambda half, args, out: called.append((half, out)))
    x = torch.randn(1, 16, 3, 4)
    y = with_random_weights(module)(x)
    assert [half for half, _ in called] == [module.position, module.channel]
    assert torch.equal(called[-1][1], y)


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "no_grad"])
def test_chunks_are_checkpointed_only_for_a_backward_pass(frozen, monkeypatch):
    def forbidden(*args, **options):
        raise AssertionError("nothing will be computed again")

    module = with_random_weights(PositionAttention(16, chunk=10)).requires_grad_(not frozen)
    monkeypatch.setattr(attn_course.dual_attention, "checkpoint", forbidden)
    x = torch.randn(1, 16, 9, 9)
    with torch.set_grad_enabled(frozen):
        y = module(x)
    torch.testing.assert_close(y, as_released(module, x))
    with pytest.raises(AssertionError, match="computed again"):
        module(x.requires_grad_())


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non-strict"])
@pytest.mark.parametrize("traced", [6, 33])
def test_an_export_takes_sizes_below_and_above_the_limit(traced, strict):
    module = with_random_weights(plain("dual_attention").DualAttention(16)).eval()
    axes = ({0: Dim("b", max=64), 2: Dim("h", max=128), 3: Dim("w", max=128)},)
    example = (torch.randn(2, 16, traced, traced + 1),)
    program = torch.export.export(module, example, dynamic_shapes=axes, strict=strict)
    for h, w in ((5, 7), (32, 32), (33, 33), (40, 37)):
        x = torch.randn(3, 16, h, w)
        torch.testing.assert_close(program.module()(x), module(x), rtol=1e-4, atol=1e-4)


def test_one_compilation_serves_all_sizes():
    torch.compiler.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    module = with_random_weights(plain("dual_attention").PositionAttention(8, chunk=4))
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    for side in range(3, 18):
        x = torch.randn(1, 8, side, side + 1)
        torch.testing.assert_close(compiled(x), module(x), rtol=1e-4, atol=1e-4)
    assert len(graphs) <= 2  # the second one for any size


def test_transforms_of_functions():
    """Recomputation is not for torch.func's gradients, as the docstring says."""
    module = with_random_weights(PositionAttention(4, 2, chunk=3))
    x = torch.randn(2, 4, 4, 5)
    torch.testing.assert_close(torch.vmap(module)(x[:, None])[:, 0], module(x))
    derivative = torch.func.grad(lambda x: module(x).square().sum())
    with pytest.raises(RuntimeError, match="saved tensor hooks"):
        derivative(x)
    module.chunk = 5  # 20 positions, which ask at once
    leaf = x.clone().requires_grad_()
    module(leaf).square().sum().backward()
    torch.testing.assert_close(derivative(x), leaf.grad)


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (DualAttention, {"channels": 6}, r"reduction=8 leaves .* channels=6; pass reduction <= 6"),
        (DualAttention, {"channels": 0}, "channels must be at least 1, got 0"),
        (DualAttention, {"channels": 8, "reduction": 0}, "reduction must be at least 1, got 0"),
        (DualAttention, {"channels": 8, "chunk": 0}, "chunk must be at least 1, got 0"),
        (ChannelAttention, {"channels": 0}, "channels must be at least 1, got 0"),
        (
            DualAttentionHead,
            {"channels": 64, "num_classes": 0},
            "num_classes must be at least 1, got 0",
        ),
        (
            DualAttentionHead,
            {"channels": 3, "num_classes": 2},
            "channels must be at least 4, got 3",
        ),
        (
            DualAttentionHead,
            {"channels": 0, "num_classes": 2, "width": 8},
            "channels must be at least 1, got 0",
        ),
        (
            DualAttentionHead,
            {"channels": 16, "num_classes": 2},
            "reduction=8 leaves no hidden channel for width=4; pass reduction <= 4",
        ),
        (
            DualAttentionHead,
            {"channels": 64, "num_classes": 2, "dropout": float("nan")},
            "dropout must be at least 0 and below 1, got nan",
        ),
    ],
)
def test_bad_arguments_are_named(cls, arguments, message):
    with pytest.raises(ValueError, match=message):
        cls(**arguments)


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        ("DualAttention", {"channels": 64.0}, r"channels must be an int, got 64.0 \(float\)"),
        ("DualAttention", {"channels": 64, "reduction": "8"}, "reduction must be an int, got '8'"),
        ("PositionAttention", {"channels": 64, "chunk": 2.5}, "chunk must be an int, got 2.5"),
        ("ChannelAttention", {"channels": None}, "channels must be an int, got None"),
        ("ChannelAttention", {"channels": 8, "dissimilar": "no"}, "dissimilar must be a bool"),
        ("DualAttentionHead", {"channels": 64, "num_classes": [2]}, "num_classes must be an int"),
        (
            "DualAttentionHead",
            {"channels": 64, "num_classes": 2, "dropout": "0.1"},
            "dropout must be a float, got '0.1'",
        ),
        (
            "DualAttentionHead",
            {"channels": 64, "num_classes": 2, "auxiliary": 1},
            "auxiliary must be a bool, got 1",
        ),
    ],
)
def test_wrong_types_are_named(cls, arguments, message):
    with pytest.raises(TypeError, match=message):
        getattr(plain("dual_attention"), cls)(**arguments)


@pytest.mark.parametrize("shape", [(1, 8, 0, 3), (1, 8, 3, 0)], ids=str)
@pytest.mark.parametrize("cls", ["PositionAttention", "ChannelAttention", "DualAttention"])
def test_a_map_without_positions_is_refused(cls, shape):
    with pytest.raises(ValueError, match=r"x has shape .*; pass .* h >= 1 and w >= 1"):
        getattr(plain("dual_attention"), cls)(8)(torch.rand(shape))


@pytest.mark.parametrize(
    "module", [PositionAttention(8), ChannelAttention(8), DualAttentionHead(8, 2, reduction=1)]
)
def test_parts_refuse_another_number_of_channels(module):
    with pytest.raises(ValueError, match=r"x has shape \(1, 7, 2, 2\); pass .* channels=8"):
        module.eval()(torch.randn(1, 7, 2, 2))
