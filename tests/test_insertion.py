"""Insertion: what it computes, that it leaves a network whole, what it refuses, and the maps."""

import copy
import fnmatch
import io
import math
import pickle
import re
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from attn_course import (
    CBAM,
    DualAttention,
    MultiHeadExternalAttention,
    MultiHeadSelfAttention,
    SqueezeExcitation,
    attention_maps,
    create_network,
    insert_attention,
    insertion,
    list_attentions,
    remove_attention,
)
from attn_course.insertion import Inserted, _layers, _layout, _patches
from attn_course.networks import PositionsAsTokens
from cases import plain
from inserted import OPTIONS, ChannelsLast, Classifier, Residual, Tokens, pictures

BN2 = "stages.*.*.bn2"
X = pictures(16, 24)


def classifier(training=False):
    torch.manual_seed(0)
    return Classifier().train(training)


def with_se(network=None, after=BN2, example=X, module=insertion, **options):
    network = classifier() if network is None else network
    options |= OPTIONS["se"] | {"after": after, "example": example}
    module.insert_attention(network, "se", **options)
    return network


def moved(network):
    """The network with every α at a value of its own, as after some training."""
    alphas = [p for key, p in network.named_parameters() if key.endswith("inserted.alpha")]
    for index, alpha in enumerate(alphas):
        nn.init.constant_(alpha, 0.3 + 0.1 * index)
    return network


def state(network):
    return {key: tensor.clone() for key, tensor in network.state_dict().items()}


def assert_same_state(network, before):
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


# What it computes, and where


def run_of(network, name):
    """What is inserted at a layer, what the layer took and returned, and what the network got."""
    layer, seen = network.get_submodule(name), []
    handles = [
        layer.inserted.register_forward_pre_hook(
            lambda _, given: seen.extend((given[1].clone(), given[0].clone()))
        ),
        layer.register_forward_hook(lambda _, given, out: seen.append(out.clone())),
    ]
    with torch.no_grad():
        network(X)
    for handle in handles:
        handle.remove()
    return layer.inserted, *seen


@pytest.mark.parametrize("identity", [True, False])
def test_after_maps(identity):
    network = moved(with_se(identity=identity))
    inserted, _, y, out = run_of(network, "stages.1.0.bn2")
    m = inserted.mechanism(y)
    expected = y + inserted.alpha * (m - y) if identity else m
    torch.testing.assert_close(out, expected)
    assert (inserted.alpha is None) != identity


@pytest.mark.parametrize("identity", [True, False])
def test_beside_a_convolution(identity):
    network = classifier()
    options = OPTIONS["sk"]
    beside = "stages.*.*.conv1"
    insert_attention(network, "sk", beside=beside, example=X, identity=identity, **options)
    inserted, x, y, out = run_of(moved(network), "stages.1.0.conv1")
    assert (x.shape[1], y.shape[1], x.shape[2] / y.shape[2]) == (8, 16, 2)
    m = inserted.mechanism(x)
    torch.testing.assert_close(out, y + inserted.alpha * m if identity else y + m)


def test_after_channels_last_maps():
    network = with_se(ChannelsLast().eval(), after="mlp")
    inserted, _, y, out = run_of(moved(network), "mlp")
    assert inserted.layout == "NHWC"
    m = inserted.mechanism(y.movedim(3, 1)).movedim(1, 3)
    torch.testing.assert_close(out, y + inserted.alpha * (m - y))


@pytest.mark.parametrize("first", [0, 1, 3])
def test_after_tokens_the_patches_are_a_map_and_the_others_pass(first):
    network = with_se(Tokens(first=first).eval(), after="mlp")
    inserted, _, y, out = run_of(moved(network), "mlp")
    assert (inserted.layout, inserted.grid, inserted.first) == ("tokens", (2, 3), first)
    assert torch.equal(out[:, :first], y[:, :first])
    maps = y[:, first:].mT.reshape(2, 8, 4, 6)  # as patches(x).flatten(2).mT made the tokens
    m = inserted.mechanism(maps).flatten(2).mT
    patches = y[:, first:]
    torch.testing.assert_close(out[:, first:], patches + inserted.alpha * (m - patches))


def test_tokens_of_another_size_of_the_same_shape():
    network = moved(with_se(Tokens().eval(), after="mlp"))
    assert network(pictures(32, 48)).shape == (2, 97, 8)
    message = "30 patches do not lie in a grid of 2 : 3, .* insert with an example of the shape"
    with pytest.raises(ValueError, match=message):
        network(pictures(20, 24))


@pytest.mark.parametrize(
    "attention",
    [
        "mhsa",
        MultiHeadSelfAttention,
        lambda c: MultiHeadSelfAttention(c, 8),
        MultiHeadExternalAttention,
        lambda c: PositionsAsTokens(MultiHeadSelfAttention(c, 8)),
    ],
)
def test_what_mixes_tokens_sees_all_of_them(attention):
    network = Tokens().eval()
    (row,) = insert_attention(network, attention, after="mlp", example=X)
    inserted, _, y, out = run_of(moved(network), "mlp")
    assert type(inserted.mechanism) in (MultiHeadSelfAttention, MultiHeadExternalAttention)
    assert row.mechanism in ("mhsa", type(inserted.mechanism).__name__)
    torch.testing.assert_close(out, y + inserted.alpha * (inserted.mechanism(y) - y))


def test_what_mixes_tokens_takes_a_map_too():
    network = classifier()
    insert_attention(network, MultiHeadExternalAttention, after="stages.0.0.bn2", example=X)
    inserted, _, y, out = run_of(moved(network), "stages.0.0.bn2")
    mixed = inserted.mechanism.tokens(y.flatten(2).mT).mT.reshape(y.shape)
    torch.testing.assert_close(out, y + inserted.alpha * (mixed - y))


def test_what_starts_as_the_identity_has_no_alpha():
    for attention in ("da", DualAttention):
        network = classifier()
        insert_attention(network, attention, after=BN2, example=X)
        assert not any(key.endswith("inserted.alpha") for key in network.state_dict())
        assert torch.equal(network(X), classifier()(X))


def test_two_alphas_would_keep_each_other_at_zero():
    network = classifier()
    attention = partial(DualAttention, reduction=4)
    message = "layer 'stem.0': the mechanism starts as the identity .* pass identity=False"
    with pytest.raises(ValueError, match=message):
        insert_attention(network, attention, after="stem.0", example=X)
    insert_attention(network, attention, after="stem.0", example=X, identity=False)
    assert torch.equal(network(X), classifier()(X))


def test_without_identity_the_network_changes():
    assert not torch.allclose(with_se(identity=False)(X), classifier()(X))


def test_what_was_put_where():
    network = classifier()
    rows = insert_attention(network, "se", after=BN2, example=X, reduction=lambda c: c // 4)
    assert [row.layer for row in rows] == [f"stages.{i}.{j}.bn2" for i in (0, 1) for j in (0, 1)]
    assert rows[2] == ("stages.1.0.bn2", (2, 16, 4, 6), "se", 16 * 4 + 4 + 4 * 16 + 16 + 1)
    assert str(rows).splitlines()[::4] == [
        "layer           shape          mechanism  parameters",
        "stages.1.1.bn2  (2, 16, 4, 6)  se                149",
    ]
    assert str(rows).endswith("\n4 places, 452 parameters")
    assert repr(rows) == str(rows)


def test_nothing_prints_by_itself(capsys):
    remove_attention(with_se())
    assert capsys.readouterr() == ("", "")


def test_a_sequential_gets_it_after_its_last_layer():
    network = classifier()
    shared = nn.ReLU()
    network.stem = nn.Sequential(
        shared, nn.Conv2d(3, 8, 1), nn.Sequential(nn.BatchNorm2d(8), shared)
    )
    network.stem[2][1] = nn.ReLU()
    layers = ["stem", "stages", "stages.0"]
    rows = insert_attention(network, "se", after=layers, example=X, **OPTIONS["se"])
    assert [row.layer for row in rows] == ["stem.2.1", "stages.1.1", "stages.0.1"]
    assert len(network.stem) == 3


def test_a_layer_named_twice_gets_it_once():
    after = ["stages.0", "stages.0.1", "stages.*.1"]
    rows = insert_attention(classifier(), "se", after=after, example=X, **OPTIONS["se"])
    assert [row.layer for row in rows] == ["stages.0.1", "stages.1.1"]


# Patterns


def tree(depth=3):
    """A module with modules in it, which have modules in them."""
    module = nn.Module()
    for name in ("a", "ab", "b1", "conv2", "2") if depth else ():
        module.add_module(name, tree(depth - 1))
    return module


TREE = tree()
PARTS = st.text("ab12conv*", min_size=1, max_size=4)


@given(st.lists(PARTS, min_size=1, max_size=4).map(".".join))
def test_a_star_stands_for_text_within_one_part(pattern):
    matching = {
        name
        for name, _ in TREE.named_modules()
        if name.count(".") == pattern.count(".")
        and all(map(fnmatch.fnmatchcase, name.split("."), pattern.split(".")))
    } - {""}
    if matching:
        assert set(_layers(TREE, [pattern])) == matching
    else:
        with pytest.raises(ValueError, match=rf"^{re.escape(repr(pattern))} matches no layer; "):
            _layers(TREE, [pattern])


@given(st.sampled_from([name for name, _ in TREE.named_modules() if name]))
def test_a_name_stands_for_itself(name):
    assert list(_layers(TREE, [name])) == [name]


# Layouts

SIDES = st.integers(1, 512)


@given(SIDES, SIDES, st.integers(1, 64), st.integers(1, 2048), st.data())
def test_layouts_are_recognised_or_asked_for(height, width, stride, channels, data):
    """Whichever way the sides of a map were rounded."""
    h, w = (
        data.draw(st.sampled_from([max(side // stride, 1), -(-side // stride)]))
        for side in (height, width)
    )
    # a width about as long for one side as the picture for the other could be that side
    like_a_row = abs(channels * width - h * height) < height + width
    like_a_column = abs(w * width - channels * height) < height + width
    for layout, shape, doubt in (
        ("NCHW", (2, channels, h, w), like_a_row),
        ("NHWC", (2, h, w, channels), like_a_column),
    ):
        if doubt:
            with pytest.raises(ValueError, match="may be both of"):
                _layout(shape, (height, width))
        else:
            assert _layout(shape, (height, width)) == layout


@given(st.integers(1, 16), st.integers(1, 16), st.sampled_from([4, 8, 14, 16]), st.integers(0, 5))
def test_patches_are_found_behind_a_few_other_tokens(rows, columns, side, first):
    patches = rows * columns
    common = math.gcd(rows, columns)
    size = (rows * side, columns * side)
    if first < patches:
        grid = (rows // common, columns // common)
        assert _patches(patches + first, size) == (grid, first)


def test_patches_are_squares_of_whole_pixels():
    assert _patches(9 + 7, (42, 42)) == ((1, 1), 7)  # not 4 × 4 patches of 10.5 × 10.5


def test_tokens_that_hold_no_patches():
    with pytest.raises(ValueError, match=r"13 tokens hold no grid .* 32 × 48; .*'mhsa'"):
        _patches(13, (32, 48))


@pytest.mark.parametrize(
    ("shape", "size", "fit"),
    [
        ((2, 64, 64, 64), (256, 256), "both"),
        ((2, 8, 12, 16), (64, 96), "both"),
        ((2, 8, 5, 40), (64, 64), "neither"),
    ],
)
def test_a_layout_that_cannot_be_told(shape, size, fit):
    message = f"{re.escape(str(shape))} may be {fit} of .* pass layout='NCHW' or 'NHWC', or an exam"
    with pytest.raises(ValueError, match=message):
        _layout(shape, size)


def test_a_layout_can_be_said():
    square = pictures(8, 8)
    with pytest.raises(ValueError, match=r"layer 'mlp': .* may be both of"):
        with_se(ChannelsLast(), after="mlp", example=square)
    assert (
        with_se(ChannelsLast(), after="mlp", example=square, layout="NHWC").mlp.inserted.layout
        == "NHWC"
    )
    with pytest.raises(ValueError, match=r"returns \(2, 25, 8\) .* cannot have layout='NCHW'"):
        with_se(Tokens(), after="mlp", layout="NCHW")
    with pytest.raises(ValueError, match="layout='NCHW' is for after; leave it out"):
        insert_attention(classifier(), "sk", beside="stem.0", example=X, layout="NCHW")


# A network stays whole


def everything(network):
    """All of a network that a dry run must leave as it is, apart from the values of tensors."""
    modules = list(network.modules())
    return {
        "modes": [module.training for module in modules],
        "hooks": [list(module._forward_hooks.items()) for module in modules],
        "pre-hooks": [list(module._forward_pre_hooks.items()) for module in modules],
        "buffers": [{name: id(b) for name, b in module._buffers.items()} for module in modules],
        "parameters": [(id(p), p._version, p.grad) for p in network.parameters()],
        "children": [list(module._modules) for module in modules],
        "random": torch.get_rng_state().tolist(),
    }


class Restless(nn.Module):
    """Moves what it can, in evaluation mode as well; and may fail at the end."""

    def __init__(self, fails=False):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.gate = SqueezeExcitation(8, reduction=2)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("noise", torch.zeros(()))
        self.register_buffer("cache", None)
        self.fails = fails
        self.conv.register_forward_hook(print_nothing)

    def train(self, mode=True):
        """Merges weights for evaluation, as some do."""
        with torch.no_grad():
            self.conv.weight.mul_(0.5 if mode else 2.0)
        return super().train(mode)

    def forward(self, x):
        self.count += 1
        self.noise = torch.randn(())
        self.cache = torch.rand(3)
        if "late" not in self._buffers:
            self.register_buffer("late", torch.zeros(2))
        y = self.gate(self.norm(self.conv(x) + self.noise))
        if self.fails:
            raise RuntimeError("at the end")
        return y


def print_nothing(module, inputs, y):
    """A hook that was there before."""


DRY_RUNS = {
    "insert": lambda network: insert_attention(
        network, "se", after="conv", example=X, reduction=99
    ),
    "look": lambda network: attention_maps(network, X),
}


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("run", DRY_RUNS)
def test_a_dry_run_leaves_no_trace(run, fails):
    network = Restless(fails).train()
    network.norm.eval()  # frozen, as one does: the modes differ
    before, values = everything(network), state(network)
    statistics = network.norm.running_mean._version
    if run == "look" and not fails:
        DRY_RUNS[run](network)
    else:
        with pytest.raises((RuntimeError, ValueError), match=r"at the end|reduction=99"):
            DRY_RUNS[run](network)
    assert everything(network) == before
    assert_same_state(network, values)
    assert network.norm.running_mean._version == statistics  # a backward pass may still need it


def test_insertion_moves_random_numbers_only_by_new_weights():
    network = Restless()
    torch.manual_seed(0)
    SqueezeExcitation(8, 2)
    expected = torch.get_rng_state()
    torch.manual_seed(0)
    insert_attention(network, "se", after="conv", example=X, reduction=2)
    assert torch.equal(torch.get_rng_state(), expected)


def test_insertion_leaves_modes_and_takes_those_of_the_layers():
    network = classifier(training=True)
    network.stages[0].eval()
    with_se(network)
    assert [m.training for m in network.modules() if isinstance(m, CBAM | Inserted)] == [
        *(False, False),
        *(True, True),
    ]
    assert not network.stages[0][0].bn2.inserted.mechanism.reduce.training
    assert network.training


def test_a_backward_pass_survives_a_look_in_between():
    network = with_se(classifier(training=True))
    loss = network(X).square().mean()
    attention_maps(network, X)
    loss.backward()
    assert network.stem[0].weight.grad is not None


@pytest.mark.parametrize(
    ("after", "options"),
    [
        (["stem.0", "stems"], {"groups": 4}),
        (["stem.0", "head"], {"groups": 4}),
        (BN2, {"groups": lambda c: 8 if c == 8 else 7}),
    ],
    ids=["no such layer", "no map", "no option for the last"],
)
def test_a_failure_changes_nothing(after, options):
    network = classifier(training=True)
    before, values = everything(network), state(network)
    with pytest.raises(ValueError, match="layer"):
        insert_attention(network, "sge", after=after, example=X, **options)
    assert everything(network) == before
    assert_same_state(network, values)


# Weights


def test_names_and_weights_stay():
    before = classifier().state_dict()
    after = with_se().state_dict()
    assert [key for key in after if ".inserted." not in key] == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("assign", [False, True])
def test_a_checkpoint_from_before_loads_and_keeps_what_was_inserted(assign):
    torch.manual_seed(1)
    other = Classifier().eval()
    network = with_se()
    inserted = {key: t for key, t in state(network).items() if ".inserted." in key}
    network.load_state_dict(other.state_dict(), strict=True, assign=assign)
    assert_same_state(network, {**state(network), **other.state_dict(), **inserted})
    assert torch.equal(network(X), other(X))


def test_a_checkpoint_from_before_some_of_the_insertions_loads():
    early = moved(with_se(after="stages.0.*.bn2"))
    network = with_se()
    network.load_state_dict(early.state_dict(), strict=True)
    assert torch.equal(network(X), early(X))
    assert network.stages[0][1].bn2.inserted.alpha == 0.4
    assert network.stages[1][1].bn2.inserted.alpha == 0


def test_a_checkpoint_from_after_loads():
    trained = moved(with_se())
    file = io.BytesIO()
    torch.save(trained.state_dict(), file)
    file.seek(0)
    network = with_se()
    assert not torch.equal(network(X), trained(X))
    network.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert torch.equal(network(X), trained(X))


@pytest.mark.parametrize("lost", ["alpha", "mechanism.expand.bias"])
def test_a_part_of_an_insertion_is_missed(lost):
    network = with_se()
    weights = network.state_dict()
    del weights[f"stages.0.0.bn2.inserted.{lost}"]
    with pytest.raises(RuntimeError, match=rf'Missing key.*"stages.0.0.bn2.inserted.{lost}"'):
        network.load_state_dict(weights, strict=True)


def test_a_checkpoint_from_after_does_not_load_into_the_bare_network():
    with pytest.raises(RuntimeError, match=r"Unexpected key.*inserted.alpha"):
        classifier().load_state_dict(with_se().state_dict(), strict=True)


def test_removal_restores_the_network():
    network = classifier(training=True)
    network.stages[0][0].bn2.register_forward_hook(print_nothing)
    before, values = everything(network), state(network)
    rows = with_se(network, after=[BN2, "stem"])
    assert rows is network
    moved(network)
    insert_attention(network, "sk", beside="stages.0.0.conv1", example=X, **OPTIONS["sk"])
    remove_attention(network)
    assert everything(network) | {"random": 0} == before | {"random": 0}
    assert_same_state(network, values)
    assert torch.equal(network.eval()(X), classifier()(X))
    with pytest.raises(ValueError, match="network has nothing inserted"):
        remove_attention(network)
    with_se(network)


def test_it_goes_where_the_network_goes():
    network = with_se(classifier().double(), example=X.double())
    kinds = {p.dtype for p in network.parameters()}
    assert kinds == {torch.float64}
    assert torch.equal(network(X.double()), classifier().double()(X.double()))
    with torch.device("meta"):
        network = with_se(Classifier(), example=X.to("meta"))
    assert all(p.is_meta for p in network.parameters())
    bfloat = with_se(classifier().bfloat16(), example=X.bfloat16())
    assert torch.equal(bfloat(X.bfloat16()), classifier().bfloat16()(X.bfloat16()))


# In place


@pytest.mark.parametrize("identity", [True, False])
@pytest.mark.parametrize("mechanism", list_attentions())
def test_the_network_may_change_the_result_in_place(mechanism, identity):
    """Residual adds to it, and ReLU overwrites it; ExternalAttention needs its own result."""
    network = classifier(training=True)
    options = OPTIONS[mechanism]
    after = [BN2, "stages.*.*.bn1", "stages.*.1"]
    insert_attention(network, mechanism, after=after, example=X, identity=identity, **options)
    network(X).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


class Doubled(nn.Module):
    """A place that is kept free, and what stands before it changed in place thereafter."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.place = nn.Identity()

    def forward(self, x):
        y = self.conv(x)
        y += self.place(y)
        return y


def test_what_a_layer_passes_on_may_change_as_well():
    network = with_se(Doubled(), after="place")
    network(X).square().mean().backward()
    assert network.place.inserted.alpha.grad.any()


# Errors: those of the module itself, which the type checks of these tests would come before

plain_insertion = plain("insertion")


class Pair(nn.Module):
    """Layers that return something else than one map, run twice, or not at all."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.strip = nn.Conv2d(8, 8, 3, stride=(1, 2), padding=1)
        self.relu = nn.ReLU()
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.index = nn.MaxPool2d(2, return_indices=True)
        self.spare = nn.Conv2d(8, 8, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flat = nn.Flatten()
        self.list = nn.ModuleList([nn.Conv2d(8, 8, 1)])
        self.by_name = nn.ModuleDict({"a": nn.Conv2d(8, 8, 1)})
        self.late = Late(nn.Conv2d(8, 8, 1))
        self.whole = Whole()

    def forward(self, x):
        y = self.relu(self.relu(self.conv(x)))
        self.strip(y)
        self.lstm(y.flatten(2).mT)
        self.index(y)
        self.whole(y)
        for layer in (*self.list, *self.by_name.values()):
            y = layer(y)
        return self.flat(self.pool(self.late(y)))


class Late(nn.Sequential):
    """Runs its layers in a way of its own."""

    def forward(self, x):
        return x + super().forward(x)


class Whole(nn.Module):
    def forward(self, x):
        return x.long()


class Gate(nn.Module):
    """Returns the gate instead of what it has gated."""

    def __init__(self, channels):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x):
        return self.scale.sigmoid().expand(len(x), -1, -1, -1)


def insert(attention="se", network=None, **options):
    """Inserts after a convolution, if the options do not say otherwise."""
    if not {"after", "beside"} & set(options):
        options["after"] = "conv"
    options.setdefault("example", X)
    network = Pair() if network is None else network
    return plain_insertion.insert_attention(network, attention, **options)


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "'bn' matches no layer; the network has conv, strip, relu,", {"after": "bn"}),
        (ValueError, "'convs' matches no layer; did you mean 'conv'", {"after": "convs"}),
        (ValueError, "'lis*.*.x' matches no layer; did you mean 'list.*'", {"after": "lis*.*.x"}),
        (ValueError, "layer 'relu': it runs 2 times for one example; pass a la", {"after": "relu"}),
        (
            ValueError,
            "layer 'spare': it does not run for this example; pass a l",
            {"after": "spare"},
        ),
        (ValueError, "layer 'lstm': it returns a tuple; pass a layer that ret", {"after": "lstm"}),
        (ValueError, "layer 'flat': it returns (2, 8) of torch.float32; pass a", {"after": "flat"}),
        (ValueError, "layer 'whole': it returns (2, 8, 16, 24) of torch.int64", {"after": "whole"}),
        (
            ValueError,
            "layer 'list' is a ModuleList, which would run whatever is r",
            {"after": "list"},
        ),
        (ValueError, "layer 'by_name' is a ModuleDict, which wou", {"after": "by_name"}),
        (
            ValueError,
            "layer 'late' is a Late, which would run whatever is registered with it; name "
            "a layer inside it: late.0",
            {"after": "late"},
        ),
        (
            ValueError,
            "layer 'lstm': it is LSTM(8, 8, batch_first=True); pass an",
            {"beside": "lstm"},
        ),
        (ValueError, "layer 'strip': it is Conv2d(8, 8,", {"beside": "strip"}),
        (
            ValueError,
            "pass either after or beside, got after='conv', beside='conv'",
            {"after": "conv", "beside": "conv"},
        ),
        (ValueError, "pass either after or beside, got after=None, beside=None", {"after": None}),
        (TypeError, "after must be a name of a layer, or a sequence of them, got 3", {"after": 3}),
        (
            TypeError,
            "after must be a name of a layer, or a sequence of them, got []",
            {"after": []},
        ),
        (TypeError, "beside must be a name of a layer, or a sequence of t", {"beside": [None]}),
        (TypeError, "identity must be a bool, got 1", {"identity": 1}),
        (TypeError, "layout must be a str, got 4", {"layout": 4}),
        (
            ValueError,
            "layout must be one of ('NCHW', 'NHWC', 'tokens'), got 'bchw'",
            {"layout": "bchw"},
        ),
        (
            ValueError,
            "layer 'conv': with 8 channels, reduction=16 leaves no hidden channel for "
            "channels=8; pass reduction <= 8; reduction may be a function of the width: ",
            {},
        ),
        (
            ValueError,
            "attention option 'reductoin' is unknown; did you mean 'reduction'?",
            {"reductoin": 2},
        ),
        (
            TypeError,
            "layer 'conv': with 8 channels, reduction must be an int, got 2.0",
            {"reduction": 2.0},
        ),
        (
            TypeError,
            "attention option 'reduction' is a function, which must take the",
            {"reduction": lambda: 2},
        ),
        (ValueError, "attention 'sse' is unknown; did you mean 'se'?", {"attention": "sse"}),
        (
            TypeError,
            "attention must be a class or a function that makes a module",
            {"attention": nn.Identity()},
        ),
        (
            TypeError,
            "layer 'conv': with 8 channels, attention must be a class or a function that",
            {"attention": lambda c: c},
        ),
        (
            ValueError,
            "layer 'conv': the mechanism returns (2, 8, 1, 1) for (2, 8, 16, 24), and "
            "(2, 8, 16, 24) is wanted",
            {"attention": Gate},
        ),
        (
            ValueError,
            "layer 'conv': the mechanism returns (2, 4, 16, 24) for (2, 8, 16, 24)",
            {"attention": lambda c: nn.Conv2d(c, 4, 1)},
        ),
        (
            ValueError,
            "layer 'conv': the mechanism returns a tuple for (2, 8, 16, 24)",
            {"attention": lambda c: nn.MaxPool2d(1, return_indices=True)},
        ),
        (
            ValueError,
            "layer 'conv': Given groups=1, weight of size [4, 9, 1, 1]",
            {"attention": lambda c: nn.Conv2d(9, 4, 1)},
        ),
        (
            ValueError,
            "attention option 'stride' is for the network to choose; leave it out",
            {"attention": "sk", "stride": 2},
        ),
        (
            ValueError,
            "layer 'conv': it has out_channels=8 for 3 channels, and the mechanism takes no "
            "out_channels; name convolutions that keep the shape",
            {"attention": "mhsa", "beside": "conv", "after": None},
        ),
        (
            ValueError,
            "example holds no pictures (b, c, h, w); pass some, to the part of the network",
            {"example": torch.zeros(3, 8, 8)},
        ),
        (TypeError, "network must be an nn.Module, got 'resnet18'", {"network": "resnet18"}),
        (
            ValueError,
            "network is a DataParallel, which has looked at its layers already; insert i",
            {"network": nn.DataParallel(Pair())},
        ),
        (ValueError, "network is a OptimizedModule, which has", {"network": torch.compile(Pair())}),
    ],
)
def test_errors(error, message, options):
    with pytest.raises(error, match=re.escape(message)):
        insert(**options)


def test_an_error_of_the_network_is_its_own():
    with pytest.raises(RuntimeError, match=r"expected input.* to have 3 channels"):
        insert(example=torch.zeros(2, 4, 8, 8))


def test_a_place_holds_one_insertion():
    network = Pair()
    insert(network=network, reduction=2)
    for kind in ("after", "beside"):
        with pytest.raises(ValueError, match=r"conv holds something inserted; call remove_att"):
            insert("sk", network, **{kind: "conv"})
    both = insert(lambda c: nn.Sequential(CBAM(c, 2), SqueezeExcitation(c, 2)), Pair())
    assert both[0].mechanism == "Sequential"


def test_what_was_inserted_is_no_layer_of_the_network():
    network = Pair()
    insert(network=network, reduction=2)
    with pytest.raises(ValueError, match=r"'conv\.\*' matches no layer"):
        insert("sge", network, after="conv.*")


def test_all_that_a_network_has_is_listed_as_patterns():
    message = (
        "'x' matches no layer; the network has stem, stem.*, stages, stages.*, stages.*.*, sta"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        insert("se", classifier(), after="x")


def test_arguments_of_a_network():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 1)

        def forward(self, factor, x):
            return factor * self.conv(x)

    network = Two()
    insert("se", network, example=(2.0, X), reduction=2)
    assert attention_maps(network, (2.0, X))["conv.inserted.mechanism"].shape == (2, 8, 1, 1)


# Maps


def test_maps_of_what_was_inserted():
    network = moved(classifier())
    insert_attention(network, "cbam", after="stages.*.*.bn2", example=X, reduction=2)
    maps = attention_maps(moved(network), X)
    assert list(maps) == [f"stages.{i}.{j}.bn2.inserted.mechanism" for i in (0, 1) for j in (0, 1)]
    inserted, _, y, _ = run_of(network, "stages.1.0.bn2")
    gates = maps["stages.1.0.bn2.inserted.mechanism"]
    assert all(map(torch.equal, gates, inserted.mechanism.attention(y)))
    assert not gates.spatial.requires_grad


def test_maps_in_a_network_of_ours():
    network = create_network(
        "resnet18", "cbam", planes=(16, 16, 16, 16), attention_options={"reduction": 2}
    )
    maps = attention_maps(network.train(), pictures(32, 32))
    assert len(maps) == 8
    assert network.training
    assert {type(gates).__name__ for gates in maps.values()} == {"Gates"}


def test_maps_of_what_was_inserted_into_a_mechanism():
    network = nn.Sequential(nn.Conv2d(3, 16, 3), SqueezeExcitation(16, 4))
    insert_attention(network, "cbam", after="1", example=torch.randn(2, 3, 12, 16), reduction=2)
    assert list(attention_maps(network, torch.randn(2, 3, 12, 16))) == ["1", "1.inserted.mechanism"]


def test_maps_of_the_arguments_that_a_module_was_called_with():
    class Cross(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = MultiHeadSelfAttention(8, 2)

        def forward(self, x, y):
            return self.mix(self.mix(x, y, values=y + 1), mask=torch.eye(6, dtype=torch.bool))

    network, x, y = Cross(), torch.randn(1, 6, 8), torch.randn(1, 5, 8)
    maps = attention_maps(network, (x, y))
    torch.testing.assert_close(maps["mix"], network.mix.attention(x, y))
    assert list(maps) == ["mix", "mix (2)"]
    torch.testing.assert_close(maps["mix (2)"], torch.eye(6).expand(1, 2, 6, 6))


def test_maps_of_what_a_module_sees_before_it_changes_it():
    class Careless(SqueezeExcitation):
        def forward(self, x):
            return x.mul_(self.attention(x))

    network = Careless(8, 2)
    x = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(attention_maps(network, x.clone())[""], network.attention(x))


def test_no_maps():
    with pytest.raises(ValueError, match="network runs no module with a method `attention`"):
        attention_maps(classifier(), X)


# Uses


def block():
    torch.manual_seed(0)
    return nn.Sequential(Residual(3, 8)).eval()


def build():
    """A block with a gate and a replaced convolution, without the type checks of these tests."""
    network = block()
    insert = partial(plain_insertion.insert_attention, network, example=X)
    insert("cbam", after="0.bn2", **OPTIONS["cbam"])
    insert("sk", beside="0.conv1", **OPTIONS["sk"])
    for inserted in (network[0].bn2.inserted, network[0].conv1.inserted):
        nn.init.constant_(inserted.alpha, 0.5)
    return network


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))]
)
def test_copies_are_whole_and_their_own(copied):
    network = build()
    twin = copied(network)
    assert torch.equal(twin(X), network(X))
    before = network(X)
    plain_insertion.remove_attention(twin)
    assert torch.equal(twin(X), block()(X))
    assert list(twin.state_dict()) == list(block().state_dict())
    assert torch.equal(network(X), before)


def test_a_whole_network_is_saved(tmp_path):
    network = moved(with_se())
    torch.save(network, tmp_path / "network.pt")
    loaded = torch.load(tmp_path / "network.pt", weights_only=False)
    assert torch.equal(loaded(X), network(X))


def test_compile():
    torch.compiler.reset()
    network = build()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for x in (X, pictures(20, 32)):
            torch.testing.assert_close(compiled(x), network(x), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(compiled(X), block()(X))


def test_export():
    network, other = build(), pictures(20, 32)
    sides = {2: torch.export.Dim("h", min=8, max=64), 3: torch.export.Dim("w", min=8, max=64)}
    program = torch.export.export(network, (X,), dynamic_shapes=(sides,))
    torch.testing.assert_close(program.module()(other), network(other))
    assert not torch.allclose(network(other), block()(other))


def test_export_of_tokens():
    network = moved(with_se(Tokens().eval(), after="mlp", module=plain_insertion))
    program = torch.export.export(network, (X,))
    torch.testing.assert_close(program.module()(X), network(X))


def test_onnx(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network = build()
    torch.onnx.export(network, (X,), tmp_path / "n.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "n.onnx")
    (out,) = session.run(None, {session.get_inputs()[0].name: X.numpy()})
    torch.testing.assert_close(torch.from_numpy(out), network(X), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mechanism", list_attentions())
def test_autocast_keeps_the_dtypes_of_the_network(mechanism):
    def dtypes(network):
        seen = {}
        for name, layer in network.named_modules():
            if ".inserted" not in name:
                layer.register_forward_hook(
                    lambda _, given, y, name=name: seen.update({name: y.dtype})
                )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = network.train()(X)
        y.float().square().mean().backward()
        return seen

    network = classifier()
    insert_attention(network, mechanism, after=BN2, example=X, **OPTIONS[mechanism])
    assert dtypes(network) == dtypes(classifier())


def test_under_autocast_the_network_stays_the_same():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        network = with_se()
        assert torch.equal(network(X), classifier()(X))
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_gradients_of_a_network_as_torch_func_has_them():
    network = build()
    parameters = dict(network.named_parameters())
    buffers = dict(network.named_buffers())

    def loss(parameters, x):
        out = torch.func.functional_call(network, (parameters, buffers), (x[None],))
        return out.square().mean()

    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, X)
    assert all(gradient.any() for key, gradient in gradients.items() if "inserted" in key)


# What drops hooks, and so what was inserted, without a word: the chapter says so


def test_what_replaces_a_layer_drops_its_hooks():
    network = nn.SyncBatchNorm.convert_sync_batchnorm(moved(with_se())).eval()
    assert "stages.0.0.bn2.inserted.alpha" in network.state_dict()
    assert torch.equal(network(X), classifier()(X))  # not what the insertion makes of it
    remove_attention(network)
