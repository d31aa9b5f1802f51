"""The networks: what the papers print, every mechanism in every place, and honest errors."""

import inspect
import itertools
import re
from functools import partial
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import cases
from attn_course import (
    MultiHeadExternalAttention,
    SelectiveKernel,
    SqueezeExcitation,
    create_attention,
    create_network,
    list_attentions,
)
from attn_course.networks import (
    MECHANISMS,
    NETWORKS,
    AttentionName,
    BasicBlock,
    Bottleneck,
    NetworkName,
    Place,
    PositionsAsTokens,
    ResNet,
)
from cases import plain

# Network, attention, options: parameters, and millions of multiply-adds at 224 × 224.
COUNTS = [
    ("resnet18", None, {}, 11_689_512, 1814.1),
    ("resnet34", None, {}, 21_797_672, 3663.8),
    ("resnet50", None, {}, 25_557_032, 4089.2),
    ("resnet50", None, {"stride_in_1x1": True}, 25_557_032, 3858.0),
    ("resnet101", None, {}, 44_549_160, 7801.4),
    ("resnext50_32x4d", None, {}, 25_028_904, 4230.5),
    ("resnext101_32x4d", None, {}, 44_177_704, 7970.0),
    ("resnet50", "se", {"stride_in_1x1": True}, 28_088_024, 3860.5),
    ("resnet50", "se", {"attention_options": {"bias": False}}, 28_071_976, None),
    ("resnet50", "cbam", {"stride_in_1x1": True}, 28_089_624, 3864.4),
    ("resnet50", "sge", {}, 25_559_080, 4094.7),
    ("resnet101", "sge", {}, 44_553_384, 7810.3),
    ("resnet50", "sk", {}, 27_479_784, 4462.7),
    ("resnet101", "sk", {}, 48_736_040, 8448.7),
    ("resnet50", "epsa", {}, 22_561_715, 3597.9),
    ("resnet101", "epsa", {}, 38_900_279, 6788.1),
    ("resnet50", "mhsa", {}, 21_631_016, None),
    ("resnet50", "da", {}, 33_787_562, None),
    ("resnet50", "ea", {}, 34_050_600, None),
]
# Wide enough for EPSA's 16 groups and the reduction of 16.
SMALL = {"num_classes": 5, "stem": "small"}
every_attention = pytest.mark.parametrize("attention", [None, *list_attentions()])


def on_meta(*arguments, **options):
    with torch.device("meta"):
        return create_network(*arguments, **options)


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def plain_networks():
    """The module from its file: compilers cannot look through the checks of the tests."""
    return plain("networks")


def without_shape_checks(*arguments, **options):
    torch.manual_seed(0)
    return plain_networks().create_network(*arguments, **options).eval()


@pytest.mark.parametrize(("name", "attention", "options", "count", "millions"), COUNTS)
def test_counts(name, attention, options, count, millions):
    net = on_meta(name, attention, **options)
    assert parameters(net) == count
    if millions is not None:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net.eval()(torch.empty(1, 3, 224, 224, device="meta"))
        assert round(counter.get_total_flops() / 2e6, 1) == millions


def test_list_of_attentions():
    assert list_attentions() == ["cbam", "da", "ea", "epsa", "mhsa", "se", "sge", "sk"]


@pytest.mark.parametrize("name", list_attentions())
def test_every_mechanism_takes_and_returns_feature_maps(name):
    x = torch.randn(2, 64, 5, 6)
    module = create_attention(name, 64)
    assert module(x).shape == x.shape
    weights = module.attention(x)
    for part in weights if isinstance(weights, tuple) else [weights]:
        assert part.shape[0] == 2
        assert part.isfinite().all()
        assert part.min() >= 0
    with pytest.raises(ValueError, match=r"x has shape \(2, 63, 5, 6\); pass .* c = channels=64"):
        module(x[:, 1:])


@every_attention
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_forward_and_backward(name, attention):
    torch.manual_seed(0)
    net = create_network(name, attention, **SMALL)
    x = torch.randn(2, 3, 32, 32, requires_grad=True)
    scores = net(x)
    assert scores.shape == (2, 5)
    scores.square().sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in net.parameters())


@every_attention
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 40)], ids=str)
@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_any_size(attention, size, stem):
    net = create_network("resnet18", attention, num_classes=5, stem=stem, in_channels=1).eval()
    x = torch.randn(1, 1, *size)
    quarter = 4 if stem == "imagenet" else 1
    first = tuple(-(-side // quarter) for side in size)
    with torch.no_grad():
        maps = net.maps(x)
        assert net(x).shape == (1, 5)
    assert tuple(maps[0].shape[2:]) == tuple(maps[1].shape[2:]) == first
    for before, after in itertools.pairwise(maps[1:]):
        assert tuple(after.shape[2:]) == tuple(-(-side // 2) for side in before.shape[2:])


@pytest.mark.parametrize("attention", list_attentions())
def test_an_attention_stands_where_its_paper_puts_it(attention):
    net = on_meta("resnet50", attention)
    with torch.device("meta"):
        kind = type(create_attention(attention, 64))
    found = {name for name, part in net.named_modules() if isinstance(part, kind)}
    blocks = [
        name for name, part in net.named_modules() if isinstance(part, BasicBlock | Bottleneck)
    ]
    if attention in ("da", "ea"):
        assert found == {"head"}
        assert net.fc.in_features == net.neck[0].out_channels == 512
    elif attention in ("se", "cbam", "sge"):
        assert found == {f"{block}.gate" for block in blocks}
    elif attention == "mhsa":
        assert found == {f"layer4.{index}.conv2" for index in range(3)}
    else:
        assert found == {f"{block}.conv2" for block in blocks}


def test_names_of_parameters():
    names = on_meta("resnet50", "se").state_dict().keys()
    expected = {"conv1.weight", "bn1.running_mean", "fc.bias", "layer1.0.conv1.weight"}
    expected |= {"layer1.0.bn3.bias", "layer1.0.downsample.0.weight", "layer4.0.downsample.1.bias"}
    assert expected | {"layer1.0.gate.reduce.weight"} <= set(names)
    assert "layer1.1.downsample.0.weight" not in names
    sk = on_meta("resnet50", "sk").state_dict().keys()
    assert "layer1.0.conv2.kernels.0.0.weight" in sk
    assert not [name for name in sk if ".bn2." in name]
    assert "layer4.0.conv2.tokens.in_proj_weight" in on_meta("resnet50", "mhsa").state_dict()
    plain = on_meta("resnet50").state_dict().keys()
    assert {name for name in names if ".gate." not in name} == set(plain)


def test_width_of_selective_kernels():
    assert on_meta("resnet50", "sk").layer1[0].conv1.out_channels == 128
    assert on_meta("resnext50_32x4d", "sk").layer1[0].conv1.out_channels == 128
    assert on_meta("wide_resnet50_2", "sk").layer1[0].conv1.out_channels == 128
    with torch.device("meta"):
        narrow = ResNet(conv=SelectiveKernel, norm_after_conv=False)
    assert narrow.layer1[0].conv1.out_channels == 64


@pytest.mark.parametrize("name", list_attentions())
def test_a_class_is_as_good_as_its_name(name):
    record = MECHANISMS[name]
    by_name = on_meta("resnet50", name).state_dict()
    by_class = on_meta("resnet50", record.tokens or record.make).state_dict()
    assert isinstance(record.tokens or record.make, type)
    assert {key: tensor.shape for key, tensor in by_class.items()} == {
        key: tensor.shape for key, tensor in by_name.items()
    }


def test_the_names_are_those_of_the_tables():
    assert sorted(get_args(AttentionName)) == sorted(MECHANISMS) == list_attentions()
    assert list(get_args(NetworkName)) == list(NETWORKS)
    assert {record.place for record in MECHANISMS.values()} == set(get_args(Place))


@pytest.mark.parametrize("name", list_attentions())
def test_the_table_knows_who_starts_as_the_identity(name):
    torch.manual_seed(0)
    x = torch.randn(2, 64, 5, 6)
    assert torch.equal(create_attention(name, 64)(x), x) == MECHANISMS[name].is_identity


@every_attention
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_no_submodule_is_named_like_a_method(name, attention):
    for part in on_meta(name, attention, **SMALL).modules():
        for child, _ in part.named_children():
            assert not hasattr(type(part), child)
            assert child != "attention", "every mechanism has a method of that name"


def test_options_may_be_functions_of_the_width():
    units = []

    def hidden(channels):
        units.append(channels)
        return channels // 4

    net = on_meta("resnet18", "se", attention_options={"reduction": hidden}, **SMALL)
    assert units == [64, 64, 128, 128, 256, 256, 512, 512]
    assert {
        block.gate.reduce.out_features for block in net.modules() if hasattr(block, "gate")
    } == {4}
    narrow = create_attention("sge", 48, groups=lambda channels: channels // 8)
    assert narrow.groups == 6
    with pytest.raises(ValueError, match="reduction=65 leaves no hidden channel for channels=64"):
        on_meta("resnet18", "se", attention_options={"reduction": lambda c: c + 1})
    # A class is no function of the width, and so it is handed on.
    options = {"gate_activation": nn.Hardsigmoid}
    net = on_meta("resnet18", "se", attention_options=options)
    assert isinstance(net.layer1[0].gate.gate_activation, nn.Hardsigmoid)
    for wrong in (lambda: nn.Sigmoid(), lambda a, b: 1):
        with pytest.raises(TypeError, match=r"attention option 'gate_activation' is a function"):
            on_meta("resnet18", "se", attention_options={"gate_activation": wrong})


def test_the_neck_of_a_head_can_be_left_out():
    assert on_meta("resnet18", "da").fc.in_features == 128
    plain, bare = on_meta("resnet18"), on_meta("resnet18", "da", head_width=None)
    assert isinstance(bare.neck, nn.Identity)
    found = bare.load_state_dict(plain.state_dict(), strict=False)
    assert found.unexpected_keys == []
    assert {key.partition(".")[0] for key in found.missing_keys} == {"head"}
    wide = on_meta("resnet50", "ea", head_width=256)
    assert wide.fc.in_features == wide.num_features == 256


@every_attention
def test_a_wider_network_by_its_name(attention):
    wide = on_meta("wide_resnet50_2", attention)
    with torch.device("meta"):
        assert parameters(plain_networks().ResNet(width_per_group=128)) == 68_883_240
    assert attention is not None or parameters(wide) == 68_883_240
    assert wide.layer1[0].conv1.out_channels == 128


# In place: nothing that a backward pass asks for may be overwritten.


class Ends(nn.Module):
    """Somebody's gate, whose last step needs its own result to go back."""

    def __init__(self, last):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.last = last

    def forward(self, x):
        return self.last(self.scale * x)


def strided(last):
    def make(channels, stride=1):
        return nn.Sequential(nn.Conv2d(channels, channels, 3, stride, 1), last())

    return make


LASTS = [nn.ReLU, nn.Sigmoid, nn.Tanh, nn.Hardsigmoid, lambda: nn.Softmax(1), nn.Identity]
LASTS += [lambda: nn.ReLU(inplace=True), nn.ELU, lambda: nn.Dropout2d(0.5)]
PLACED = [(attention, place) for attention in list_attentions() for place in ("gate", "head")]
PLACED += [(attention, "conv") for attention in ("sk", "epsa", "mhsa")]
PLACED += [(lambda channels, last=last: Ends(last()), "gate") for last in LASTS]
PLACED += [(lambda channels, last=last: Ends(last()), "head") for last in LASTS]
PLACED += [(strided(last), "conv") for last in LASTS]


def residual_out_of_place(block, x):
    out = block.conv2(block.bn1(block.conv1(x)).relu())
    if isinstance(block, plain_networks().BasicBlock):
        return block.bn2(out)
    return block.bn3(block.conv3(out if block.bn2 is None else block.bn2(out).relu()))


def scores_out_of_place(net, x):
    """The paper's formulas, step by step, each with a result of its own."""
    x = net.maxpool(net.bn1(net.conv1(x)).relu())
    for block in itertools.chain(net.layer1, net.layer2, net.layer3, net.layer4):
        out = residual_out_of_place(block, x)
        out = out if block.gate is None else block.gate(out)
        x = torch.relu(out + (x if block.downsample is None else block.downsample(x)))
    for part in net.neck if isinstance(net.neck, nn.Sequential) else ():
        x = torch.relu(x) if isinstance(part, nn.ReLU) else part(x)
    return net.fc(net.head(x).mean((2, 3)))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(("attention", "place"), [(None, None), *PLACED])
@pytest.mark.parametrize("name", ["resnet10", "resnet14"])
def test_in_place_is_the_same(name, attention, place, training):
    networks = plain_networks()
    networks.NETWORKS |= {"resnet10": cases.RESNET10, "resnet14": {"depths": (1, 1, 1, 1)}}
    torch.manual_seed(0)
    options = {} if place != "head" else {"head_width": 64}
    net = networks.create_network(
        name, attention, place=place, planes=(64,) * 4, **options, **SMALL
    )
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.3)
    net.double().train(training)
    x = torch.randn(2, 3, 12, 12, dtype=torch.float64, requires_grad=True)
    found = []
    for forward in (net, partial(scores_out_of_place, net)):
        torch.manual_seed(1)  # for dropout
        scores = forward(x)
        found.append((scores, torch.autograd.grad(scores.square().sum(), [x, *net.parameters()])))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("attention", [None, "se", "cbam", "sge", "ea", nn.Sigmoid])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_addition_is_in_place_where_it_may_be(name, attention):
    """So the largest maps of a network are written once; other gates' results are left alone."""
    gate = (lambda channels: nn.Sigmoid()) if attention is nn.Sigmoid else attention
    net = without_shape_checks(name, gate, place=gate and "gate", **SMALL)
    block = net.layer1[0]
    norm = block.bn2 if name == "resnet18" else block.bn3
    kept = []
    last = norm if gate is None else block.gate
    last.register_forward_hook(lambda module, args, out: kept.extend([out, out.clone()]))
    with torch.no_grad():
        out = block(torch.randn(2, 64, 8, 8))
    overwritten = attention in (None, "se", "cbam", "sge")
    assert (out.data_ptr() == kept[0].data_ptr()) == overwritten
    assert torch.equal(*kept) == (not overwritten)


class Peak(TorchDispatchMode):
    """The largest number of bytes that the tensors made under it take at one time."""

    def __init__(self, but):
        super().__init__()
        self.but = {tensor.untyped_storage()._cdata for tensor in but}
        self.alive, self.bytes = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        outputs = out if isinstance(out, tuple) else (out,)
        for tensor in (output for output in outputs if isinstance(output, torch.Tensor)):
            storage = tensor.untyped_storage()
            if storage._cdata not in self.but:
                self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.alive = {key: held for key, held in self.alive.items() if not held[0].expired()}
        self.bytes = max(self.bytes, sum(size for _, size in self.alive.values()))
        return out


def peak(net, forward, *, training):
    with torch.set_grad_enabled(training), Peak(but=net.state_dict().values()) as measured:
        forward(torch.ones(2, 3, 64, 64))
    return measured.bytes


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("attention", [None, "se"])
def test_memory_is_timms(timm, attention, training):
    ours = without_shape_checks("resnet50", attention).train(training)
    theirs = timm.create_model("seresnet50" if attention else "resnet50").train(training)
    assert peak(ours, ours, training=training) < 1.005 * peak(theirs, theirs, training=training)


def test_out_of_place_takes_more_memory():
    net = without_shape_checks("resnet50", stem="imagenet")
    out_of_place = partial(scores_out_of_place, net)
    assert peak(net, net, training=False) < 0.95 * peak(net, out_of_place, training=False)


# What timm's networks can do by these names.


def test_features_and_classifier_have_timms_names():
    net = create_network("resnet18", "cbam", 5, stem="small").eval()
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        features = net.forward_features(x)
        assert features.shape == (2, net.num_features, 2, 2)
        assert torch.equal(features, net.maps(x)[-1])
        assert torch.equal(net.forward_head(features), net(x))
        assert net.num_classes == 5
        net.double().reset_classifier(7)
        assert net(x.double()).shape == (2, net.num_classes) == (2, 7)
    assert net.fc.weight.dtype == torch.float64
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        net.reset_classifier(0)


def test_timms_names_are_timms(timm):
    theirs = timm.create_model("resnet18", num_classes=5).eval()
    ours = create_network("resnet18", num_classes=5).eval()
    ours.load_state_dict(theirs.state_dict())
    assert (ours.num_features, ours.num_classes) == (theirs.num_features, theirs.num_classes)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        features = theirs.forward_features(x)
        torch.testing.assert_close(ours.forward_features(x), features)
        torch.testing.assert_close(ours.forward_head(features), theirs.forward_head(features))
    for net in (ours, theirs):
        net.reset_classifier(3)
        assert net.fc.out_features == net.num_classes == 3


@pytest.mark.parametrize("name", ["se", "cbam", "sge", "ea", "da"])
def test_a_gate_for_timm_as_it_stands(timm, name):
    gate = partial(plain_networks().create_attention, name)
    net = timm.create_model("resnet50", block_args={"attn_layer": gate})
    kind = type(gate(64))
    assert sum(isinstance(part, kind) for part in net.modules()) == 16
    if name == "se":
        assert parameters(net) == 28_088_024
        half = timm.create_model("resnet18", block_args={"attn_layer": gate}, dtype=torch.bfloat16)
        assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    if name not in ("ea", "da"):  # their results are needed later, and timm adds in place
        net.train()(torch.randn(2, 3, 64, 64)).sum().backward()
        assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize("name", list_attentions())
def test_a_mechanism_on_a_device_and_of_a_type(name):
    module = create_attention(name, 64, device="meta", dtype=torch.float16)
    assert {(p.device.type, p.dtype) for p in module.parameters()} == {("meta", torch.float16)}
    usual = create_attention(name, 64)
    assert {(p.device.type, p.dtype) for p in usual.parameters()} == {("cpu", torch.float32)}
    with torch.device("meta"):
        assert all(p.is_meta for p in create_attention(name, 64).parameters())


def test_a_function_makes_a_gate():
    widths = []

    def make(channels):
        widths.append(channels)
        return nn.Identity()

    create_network("resnet18", make, **SMALL)
    assert widths == [64, 64, 128, 128, 256, 256, 512, 512]
    widths.clear()
    create_network("resnet18", make, stages=(1, 3), **SMALL)
    assert widths == [64, 64, 256, 256]
    widths.clear()
    create_network("resnet18", make, place="head", **SMALL)
    assert widths == [512]


def test_a_function_replaces_a_convolution():
    strides = []

    def make(channels, stride):
        strides.append(stride)
        return nn.Conv2d(channels, channels, 1, stride)

    net = create_network("resnet50", make, place="conv", **SMALL)
    assert net(torch.randn(2, 3, 16, 16)).shape == (2, 5)
    assert strides.count(2) == 3


@pytest.mark.parametrize("attention", ["sk", "epsa", "mhsa", "da", "ea"])
def test_other_places(attention):
    net = create_network("resnet18", attention, place="gate", **SMALL)
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 5)
    assert isinstance(net.layer1[0].gate, type(create_attention(attention, 64)))


def test_tokens_can_be_any_module_for_tokens():
    module = PositionsAsTokens(MultiHeadExternalAttention(16), stride=2)
    x = torch.randn(2, 16, 5, 7)
    assert module(x).shape == (2, 16, 3, 4)
    assert module.attention(x).shape == (2, 32, 35, 64)
    with pytest.raises(ValueError, match="stride must be at least 1, got 0"):
        PositionsAsTokens(nn.Identity(), 0)


def test_starting_values():
    torch.manual_seed(0)
    net = create_network("resnet50", "sk", num_classes=5)
    conv = net.layer1[0].conv3.weight
    assert conv.std().item() == pytest.approx((2 / conv.shape[0]) ** 0.5, rel=0.05)
    assert net.layer1[0].conv2.expand.weight.std().item() == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda n: n.create_network("resnet5"),
            "name 'resnet5' is unknown; did you mean 'resnet50'",
        ),
        (
            lambda n: n.create_network("vgg"),
            "name 'vgg' is unknown; pass one of resnet18, resnet34",
        ),
        (lambda n: n.create_network("resnet50", "SE"), "attention 'SE' .* mean 'se'.*cbam, da"),
        (lambda n: n.create_network("resnet50", steem="small"), "option 'steem' .* mean 'stem'"),
        (
            lambda n: n.create_network("resnet50", "se", reduction=8),
            r"attention_options=\{'reduction': 8\}",
        ),
        (
            lambda n: n.create_network("resnet50", "se", attention_options={"redution": 8}),
            "attention option 'redution' is unknown; did you mean 'reduction'.*bias",
        ),
        (
            lambda n: n.create_network("resnet50", place="gate"),
            "place='gate' needs attention; pass",
        ),
        (lambda n: n.create_network("resnet50", attention_options={"bias": 0}), "needs attention"),
        (lambda n: n.create_network("resnet50", stages=(1,)), r"stages=\(1,\) needs attention"),
        (lambda n: n.create_network("resnet50", head_width=64), "head_width=64 needs attention"),
        (lambda n: n.ResNet(head_width=64), "head_width=64 needs a head; pass head"),
        (lambda n: n.create_network("resnet50", "se", head_width=64), "head_width=64 needs a head"),
        (lambda n: n.create_network("resnet50", "se", groups=16), "'groups' comes with the name"),
        (
            lambda n: n.create_network("resnet50", width_per_group=128),
            r"wide_resnet50_2.*build ResNet",
        ),
        (
            lambda n: n.create_network("resnet50", "sk", groups=16),
            r"'groups' is an option of the mechanism; pass attention_options=\{'groups': 16\}",
        ),
        (lambda n: n.create_network("resnet50", "sge", groups=32), "is an option of the mechanism"),
        (
            lambda n: n.create_network("resnet50", "epsa", groups=(1, 4, 8, 8)),
            r"attention_options=\{'groups': \(1, 4, 8, 8\)\}",
        ),
        (
            lambda n: n.ResNet(bottleneck=False, norm_after_conv=False),
            "norm_after_conv=False are for",
        ),
        (
            lambda n: n.create_network("resnet50", "se", place="conv"),
            "takes a stride.*place='gate'",
        ),
        (lambda n: n.ResNet(bottleneck=False, groups=2), "groups=2.*are for bottlenecks"),
        (
            lambda n: n.create_network("resnet50", "se", stages=(0, 1)),
            r"stages\[0\] must be at least 1, got 0",
        ),
        (
            lambda n: n.create_network("resnet50", "se", stages=(4, 5)),
            r"numbers from 1 to 4, got \(4, 5\)",
        ),
        (
            lambda n: n.create_network("resnet50", planes=(64, 128)),
            "planes must have 4 numbers, got",
        ),
        (
            lambda n: n.create_network("resnet18", "da", planes=()),
            "planes must have 4 numbers, got",
        ),
        (
            lambda n: n.create_network("resnext50_32x4d", planes=(8, 16, 32, 64)),
            "planes=8 leaves no channel in a group for width_per_group=4; pass planes >= 16",
        ),
        (lambda n: n.ResNet((3, 4, 6)), "depths must have 4 numbers, got"),
        (
            lambda n: n.create_network("resnet50", num_classes=0),
            "num_classes must be at least 1, got 0",
        ),
        (
            lambda n: n.create_network("resnet50", "ea", head_width=0),
            "head_width must be at least 1, got 0",
        ),
        (
            lambda n: n.create_network("resnet50", "mhsa", attention_options={"stride": 4}),
            "attention option 'stride' is for the network to choose; leave it out",
        ),
        (
            lambda n: n.create_network("resnet50", "sk", attention_options={"out_channels": 64}),
            "attention option 'out_channels' is for the network to choose; leave it out",
        ),
        (lambda n: n.create_attention("sgee", 64), "name 'sgee' is unknown; did you mean 'sge'"),
        (
            lambda n: n.create_attention("sge", 64, group=3),
            "'group' is unknown; did you mean 'groups'",
        ),
        (lambda n: n.create_attention("mhsa", 64, heads=3), "'heads' is unknown; .*num_heads"),
        (lambda n: n.create_attention("se", 8), "reduction=16 leaves no hidden channel"),
    ],
)
def test_errors(call, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        call(plain_networks())


def test_errors_that_the_types_of_these_tests_would_forestall():
    with pytest.raises(ValueError, match=r"place 'gates' .* mean 'gate'\? pass one of gate, conv"):
        without_shape_checks("resnet50", "se", place="gates")
    with pytest.raises(ValueError, match=r"stem must be one of .*'small'.*, got 'tiny'"):
        without_shape_checks("resnet50", stem="tiny")


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((50,), {}, r"name must be a str, got 50 \(int\)"),
        ((["resnet50"],), {}, "name must be a str, got"),
        (("resnet18", SqueezeExcitation(64)), {}, "attention must be a class or a function .* got"),
        (("resnet18", 3), {}, r"attention must be a class or a function .* got 3 \(int\)"),
        (("resnet18", "se", "10"), {}, "num_classes must be an int, got '10'"),
        (("resnet18", "se"), {"place": 3}, "place must be a str, got 3"),
        (("resnet18", "se"), {"attention_options": [8]}, "attention_options must be a mapping"),
        (
            ("resnet18", "se"),
            {"attention_options": {8: 8}},
            "attention option must be a str, got 8",
        ),
        (("resnet18", "se"), {"stages": (s for s in (1, 2))}, "stages must be a sequence of ints"),
        (("resnet18", "se"), {"stages": (1, 2.0)}, r"stages\[1\] must be an int, got 2.0"),
        (("resnet18", "da"), {"planes": 64}, "planes must be a sequence of ints, got 64"),
        (("resnet18",), {"stem": 7}, "stem must be a str, got 7"),
        (("resnet50",), {"stride_in_1x1": 1}, "stride_in_1x1 must be a bool, got 1"),
    ],
)
def test_wrong_types_are_named(arguments, options, message):
    with torch.device("meta"), pytest.raises(TypeError, match=message):
        without_shape_checks(*arguments, **options)


def test_makers_that_are_no_makers():
    for place in ("gate", "conv", "head"):
        with pytest.raises(TypeError, match=f"{place} must be a class or a function that makes"):
            plain_networks().ResNet(depths=(1, 1, 1, 1), **{place: nn.Identity()})
        for makes_none in (lambda channels, stride=1: None, torch.sigmoid):
            with pytest.raises(TypeError, match=f"{place} must be a class or a function that"):
                plain_networks().ResNet(depths=(1, 1, 1, 1), **{place: makes_none})
    with pytest.raises(TypeError, match="attention must be a class or a function that makes"):
        plain_networks().create_network("resnet18", attention=torch.sigmoid)


def test_another_number_of_channels_is_refused():
    net = create_network("resnet18", **SMALL)
    with pytest.raises(ValueError, match=r"x has shape \(1, 1, 32, 32\); pass .* in_channels=3"):
        net(torch.rand(1, 1, 32, 32))


def test_the_docstring_names_every_option():
    doc = inspect.getdoc(ResNet)
    for option in list(inspect.signature(ResNet).parameters):
        assert f"    {option}: " in doc, option
    doc = inspect.getdoc(create_network)
    for option in list(inspect.signature(create_network).parameters):
        assert f"    {option}: " in doc or f"    **{option}: " in doc, option
    for name in NETWORKS:
        assert f'"{name}"' in doc, name


@every_attention
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torch_fx(name, attention):
    net = without_shape_checks(name, attention, **SMALL)
    traced = torch.fx.symbolic_trace(net)
    for size in (16, 24):
        x = torch.randn(2, 3, size, size)
        with torch.no_grad():
            torch.testing.assert_close(traced(x), net(x), rtol=1e-5, atol=1e-5)


@every_attention
def test_torchvisions_feature_extractor(timm, attention):
    from torchvision.models.feature_extraction import create_feature_extractor

    net = without_shape_checks("resnet50", attention, **SMALL)
    extract = create_feature_extractor(net, {"layer2": "middle", "layer4": "last"})
    x = torch.randn(2, 3, 16, 24)
    with torch.no_grad():
        maps, found = net.maps(x), extract(x)
    torch.testing.assert_close(found, {"middle": maps[2], "last": maps[4]}, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", list_attentions())
def test_torch_fx_traces_a_mechanism_by_itself(name):
    torch.manual_seed(0)
    module = plain_networks().create_attention(name, 64).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.1)
    x = torch.randn(2, 64, 5, 6)
    torch.testing.assert_close(torch.fx.symbolic_trace(module)(x), module(x))


def test_a_gate_of_one_changes_nothing():
    plain = create_network("resnet18", **SMALL).eval()
    gated = create_network("resnet18", SqueezeExcitation, **SMALL).eval()
    gated.load_state_dict(plain.state_dict(), strict=False)
    for name, parameter in gated.named_parameters():
        if ".gate.expand" in name:
            nn.init.constant_(parameter, 100.0 if name.endswith("bias") else 0.0)
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(gated(x), plain(x))


def test_the_calls_that_open_the_chapter_run():
    text = Path(__file__).parents[1] / "notebooks/text/09_networks.md"
    calls = re.findall(r"\| `(create_\w+\(.*?\))` \|", text.read_text(encoding="utf-8"))
    assert len(calls) == 5
    for call in calls:
        with torch.device("meta"):
            made = eval(
                call, {"create_network": create_network, "create_attention": create_attention}
            )
        assert isinstance(made, nn.Module), call
