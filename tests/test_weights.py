"""Other people's weights: a converted network gives the scores of the original."""

from typing import get_args

import pytest
import torch
from torch import nn

from attn_course import CBAM, PyramidSqueezeAttention, SpatialGroupEnhance, SqueezeExcitation
from attn_course.course import data
from attn_course.networks import NetworkName, create_network
from attn_course.weights import convert_authors, convert_timm
from cases import plain

# timm's name and options: our name, mechanism and options
TIMM = {
    "resnet18": ("resnet18", None, {}),
    "resnet34": ("resnet34", None, {}),
    "resnet50": ("resnet50", None, {}),
    "resnet101": ("resnet101", None, {}),
    "wide_resnet50_2": ("wide_resnet50_2", None, {}),
    "wide_resnet101_2": ("wide_resnet101_2", None, {}),
    "resnext50_32x4d": ("resnext50_32x4d", None, {}),
    "resnext101_32x4d": ("resnext101_32x4d", None, {}),
    "seresnet50": ("resnet50", "se", {}),
    "seresnet101": ("resnet101", "se", {}),
    "seresnext50_32x4d": ("resnext50_32x4d", "se", {}),
    "seresnext101_32x4d": ("resnext101_32x4d", "se", {}),
    "legacy_seresnet50": ("resnet50", "se", {"stride_in_1x1": True}),
    "legacy_seresnet101": ("resnet101", "se", {"stride_in_1x1": True}),
    "legacy_seresnext50_32x4d": ("resnext50_32x4d", "se", {}),
    "legacy_seresnext101_32x4d": ("resnext101_32x4d", "se", {}),
    "resnet18 cbam": ("resnet18", "cbam", {}),
    "resnet50 cbam": ("resnet50", "cbam", {}),
    "skresnext50_32x4d": ("resnet50", "sk", {}),
}
# The same names and shapes, another computation: no conversion can tell.
DECEPTIVE = {
    "resnetaa50": ("resnet50", None, {}),
    "resnetblur18": ("resnet18", None, {}),
    "resnetblur50": ("resnet50", None, {}),
    "legacy_seresnet18": ("resnet18", "se", {}),
    "legacy_seresnet34": ("resnet34", "se", {}),
}


def with_random_weights(network):
    """The network in double precision; no weight and no batch norm statistic is left a constant."""
    if next(network.parameters()).is_meta:
        network = network.to_empty(device="cpu")
    torch.manual_seed(0)
    for name, tensor in network.double().state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(7)
        elif name.endswith(("running_var", "weight")) and tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5)
        elif tensor.ndim == 1 or "sge" in name:
            tensor.normal_(std=0.1)
        else:
            tensor.normal_(std=tensor[0].numel() ** -0.5)
    return network


def of_timm(timm, name, **options):
    name, _, gate = name.partition(" ")
    if gate:
        options["block_args"] = {"attn_layer": gate}
    return timm.create_model(name, num_classes=10, drop_rate=0.0, **options)


def ours(timm_name, names):
    name, attention, options = names[timm_name]
    with torch.device("meta"):  # which spares the start values
        network = create_network(name, attention=attention, num_classes=10, **options).double()
    network = network.to_empty(device="cpu")
    if timm_name.startswith("legacy_"):
        network.maxpool = nn.MaxPool2d(3, 2, ceil_mode=True)
    return network


def pictures(h=49, w=65):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, h, w, generator=generator, dtype=torch.float64)


def assert_same_scores(original, network):
    x = pictures()
    for mode in (False, True):  # training comes last: it changes the batch norm statistics
        original.train(mode)
        network.train(mode)
        with torch.no_grad():
            torch.testing.assert_close(network(x), original(x), rtol=1e-8, atol=1e-9)


DEEP = [name for name in TIMM if "101" in name]  # whose blocks are those of a sibling


@pytest.mark.parametrize("name", [name for name in TIMM if name not in DEEP])
def test_timm(timm, name):
    with torch.device("meta"):
        original = of_timm(timm, name)
    original = with_random_weights(original)
    network = ours(name, TIMM)
    network.load_state_dict(convert_timm(original.state_dict()), strict=True)
    assert_same_scores(original, network)


@pytest.mark.parametrize("name", DEEP)
def test_timm_has_the_same_names_and_shapes(timm, name):
    with torch.device("meta"):
        state_dict = convert_timm(of_timm(timm, name).double().state_dict())
    network = ours(name, TIMM)
    network.load_state_dict(state_dict, strict=True, assign=True)


# What ours are called there.
TIMMS_CBAM = {
    "gate.channel.reduce": "se.channel.fc1",
    "gate.channel.expand": "se.channel.fc2",
    "gate.spatial.conv": "se.spatial.conv.conv",
    "gate.spatial.norm": "se.spatial.conv.bn",
}
AUTHORS = {
    "se": {"gate.reduce": "se.fc.0", "gate.expand": "se.fc.2"},
    "cbam": {
        "gate.channel.reduce": "cbam.ChannelGate.mlp.1",
        "gate.channel.expand": "cbam.ChannelGate.mlp.3",
        "gate.spatial.conv": "cbam.SpatialGate.spatial.conv",
        "gate.spatial.norm": "cbam.SpatialGate.spatial.bn",
    },
    "sge": {"gate": "sge"},
    "epsa": {
        **{f"conv2.convs.{i}": f"conv2.conv_{i + 1}" for i in range(4)},
        "conv2.se.reduce": "conv2.se.fc1",
        "conv2.se.expand": "conv2.se.fc2",
    },
}


def renamed(name, attention, theirs):
    """The shapes of one of our networks, under other names."""
    with torch.device("meta"):
        state_dict = create_network(name, attention, num_classes=10).state_dict()
    result = {}
    for key, tensor in state_dict.items():
        for ours, others in theirs.items():
            key = key.replace(f".{ours}.", f".{others}.")
        result[key] = tensor
    return result


def timms_cbam_resnet18():
    state_dict = renamed("resnet18", "cbam", TIMMS_CBAM)
    return {
        key: tensor
        for key, tensor in state_dict.items()
        if not key.endswith((".fc1.bias", ".fc2.bias"))
    }


def test_timm_is_left_as_it_is():
    gate = {
        "layer1.0.se.channel.fc1.weight": torch.randn(4, 64, 1, 1),
        "layer1.0.se.channel.fc2.weight": torch.randn(64, 4, 1, 1),
        "layer1.0.se.spatial.conv.conv.weight": torch.randn(1, 2, 7, 7),
    }
    before = {key: tensor.clone() for key, tensor in gate.items()}
    theirs = timms_cbam_resnet18() | gate
    keys = set(theirs)
    converted = convert_timm(theirs)
    assert theirs.keys() == keys
    assert all(torch.equal(theirs[key], before[key]) for key in gate)
    spatial = converted["layer1.0.gate.spatial.conv.weight"]
    assert torch.equal(spatial[:, 0], gate["layer1.0.se.spatial.conv.conv.weight"][:, 1])
    for layer, units in (("reduce", 4), ("expand", 64)):
        bias = converted[f"layer1.0.gate.channel.{layer}.bias"]
        assert torch.equal(bias, torch.zeros(units))


def test_biases_of_timms_cbam_are_kept(timm):
    layer = with_random_weights(timm.layers.create_attn("cbam", 64, mlp_bias=True)).eval()
    state_dict = {f"layer1.0.se.{key}": tensor for key, tensor in layer.state_dict().items()}
    converted = convert_timm(timms_cbam_resnet18() | state_dict)
    cbam = CBAM(64).double().eval()
    cbam.load_state_dict(part(converted, "layer1.0.gate."))
    x = torch.randn(2, 64, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(cbam(x), layer(x))


def part(state_dict, prefix):
    """The state dictionary of the module with that prefix."""
    return {
        key.removeprefix(prefix): tensor
        for key, tensor in state_dict.items()
        if key.startswith(prefix)
    }


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_torchvisions_names_are_ours(timm, name):
    from torchvision import models

    original = with_random_weights(models.get_model(name, num_classes=10))
    network = ours(name, TIMM)
    network.load_state_dict(original.state_dict(), strict=True)
    assert_same_scores(original, network)


@pytest.mark.parametrize("name", DECEPTIVE)
def test_what_no_name_shows(timm, name):
    original = with_random_weights(of_timm(timm, name)).eval()
    network = ours(name, DECEPTIVE).eval()
    network.load_state_dict(convert_timm(original.state_dict()), strict=True)
    x = pictures(64, 64)  # blurring rounds odd sizes down
    with torch.no_grad():
        assert not torch.allclose(network(x), original(x), rtol=1e-2)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("resnet50c", "conv1.0.weight"),
        ("resnet50d", "conv1.0.weight"),
        ("resnet50s", "conv1.0.weight"),
        ("resnet50t", "conv1.0.weight"),
        ("ecaresnet50d", "conv1.0.weight"),
        ("ecaresnetlight", "layer1.0.se.conv.weight"),
        ("senet154", "conv1.0.weight"),
        ("legacy_senet154", "layer0.conv2.weight"),
        ("skresnet18", "layer1.0.conv1.paths.0.conv.weight"),
        ("skresnet34", "layer1.0.conv1.paths.0.conv.weight"),
        ("skresnet50", "layer1.0.conv2.paths.0.conv.weight"),
        ("skresnet50d", "layer1.0.conv2.paths.0.conv.weight"),
        ("resnetv2_50", "stem.conv.weight"),
    ],
)
def test_timms_networks_that_have_no_place(timm, name, key):
    with torch.device("meta"):
        state_dict = timm.create_model(name).state_dict()
    with pytest.raises(ValueError, match=f"'{key}'"):
        convert_timm(state_dict)


@pytest.mark.parametrize("name", ["seresnet18", "seresnet34"])
def test_timms_hidden_layer_is_wider(timm, name):
    with torch.device("meta"):
        state_dict = timm.create_model(name, num_classes=10).state_dict()
        network = create_network(name.removeprefix("se"), attention="se", num_classes=10)
        with pytest.raises(RuntimeError, match=r"layer1.0.gate.reduce.weight: .*\[8, 64\]"):
            network.load_state_dict(convert_timm(state_dict), strict=True)


# The released networks as we retell them, with the authors' names. Nothing of the authors' code
# runs here: what these classes show is that names and layout convert, and what the authors' code
# computes stands in the golden arrays.


class ReleasedSE(nn.Module):
    """The gate of PytorchInsight's se_resnet50, retold."""

    def __init__(self, channels):
        super().__init__()
        hidden = channels // 16
        self.fc = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Sigmoid()
        )

    def forward(self, x):
        return x * self.fc(x.mean((2, 3)))[:, :, None, None]


class ReleasedSGE(nn.Module):
    """The gate of PytorchInsight's sge_resnet50, retold."""

    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 64, 1, 1))
        self.bias = nn.Parameter(torch.ones(1, 64, 1, 1))

    def forward(self, x):
        grouped = x.unflatten(1, (64, -1))
        t = (grouped * grouped.mean((3, 4), keepdim=True)).sum(2)
        t = (t - t.mean((2, 3), keepdim=True)) / (t.std((2, 3), keepdim=True) + 1e-5)
        gate = (t * self.weight + self.bias).sigmoid()
        return (grouped * gate[:, :, None]).flatten(1, 2)


class ReleasedCBAM(nn.Module):
    """The gate of attention-module's CBAM networks, retold."""

    def __init__(self, channels):
        super().__init__()
        first, last = nn.Linear(channels, channels // 16), nn.Linear(channels // 16, channels)
        self.ChannelGate = nn.ModuleDict(
            {"mlp": nn.Sequential(nn.Flatten(), first, nn.ReLU(), last)}
        )
        self.SpatialGate = nn.ModuleDict({"spatial": nn.Module()})
        self.SpatialGate["spatial"].conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.SpatialGate["spatial"].bn = nn.BatchNorm2d(1, momentum=0.01)

    def forward(self, x):
        mlp, spatial = self.ChannelGate["mlp"], self.SpatialGate["spatial"]
        scores = mlp(x.mean((2, 3), keepdim=True)) + mlp(x.amax((2, 3), keepdim=True))
        x = x * scores.sigmoid()[:, :, None, None]
        planes = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)
        return x * spatial.bn(spatial.conv(planes)).sigmoid()


class ReleasedPSA(nn.Module):
    """What EPSANet puts in place of a 3 × 3, retold."""

    def __init__(self, channels, stride):
        super().__init__()
        part = channels // 4
        for i, (k, groups) in enumerate(((3, 1), (5, 4), (7, 8), (9, 16)), start=1):
            conv = nn.Conv2d(channels, part, k, stride, k // 2, groups=groups, bias=False)
            self.add_module(f"conv_{i}", conv)
        self.se = nn.Module()
        self.se.fc1 = nn.Conv2d(part, part // 16, 1)
        self.se.fc2 = nn.Conv2d(part // 16, part, 1)

    def forward(self, x):
        scales = [self.get_submodule(f"conv_{i}")(x) for i in (1, 2, 3, 4)]
        gates = [
            self.se.fc2(self.se.fc1(scale.mean((2, 3), keepdim=True)).relu()).sigmoid()
            for scale in scales
        ]
        shares = torch.stack(gates).softmax(0)
        return torch.cat([shares[i] * scales[i] for i in (3, 2, 1, 0)], 1)


class ReleasedBlock(nn.Module):
    """A residual block with the authors' names, retold."""

    def __init__(self, channels, planes, stride, expansion, attention):
        super().__init__()
        bottleneck, out_channels = expansion == 4, expansion * planes
        k, early, late = (1, 1, stride) if bottleneck else (3, stride, 1)
        self.conv1 = nn.Conv2d(channels, planes, k, early, k // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, late, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        if bottleneck:
            self.conv3 = nn.Conv2d(planes, out_channels, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(out_channels)
        self.gate = None
        if attention == "epsa":
            self.conv2 = ReleasedPSA(planes, stride)
        else:
            gates = {"se": ReleasedSE, "sge": ReleasedSGE, "cbam": ReleasedCBAM}
            self.gate = attention
            self.add_module(attention, gates[attention](out_channels))
        self.downsample = None
        if stride > 1 or channels != out_channels:
            shortcut = nn.Conv2d(channels, out_channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(out_channels))

    def forward(self, x):
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if hasattr(self, "conv3"):
            out = self.bn3(self.conv3(out.relu()))
        if self.gate:
            out = self.get_submodule(self.gate)(out)
        return (out + (x if self.downsample is None else self.downsample(x))).relu()


class Released(nn.Module):
    """A network with the authors' names, retold."""

    def __init__(self, depths, expansion, attention):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels = 64
        for stage, depth in enumerate(depths):
            planes, blocks = 64 * 2**stage, []
            for index in range(depth):
                stride = 2 if stage and not index else 1
                blocks.append(ReleasedBlock(channels, planes, stride, expansion, attention))
                channels = expansion * planes
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, 10)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(
    ("name", "attention"),
    [
        *((name, gate) for name in ("resnet18", "resnet50") for gate in ("se", "sge", "cbam")),
        ("resnet50", "epsa"),
    ],
)
def test_authors(name, attention, prefix):
    depths, expansion = {"resnet18": ((2, 2, 2, 2), 1), "resnet50": ((3, 4, 6, 3), 4)}[name]
    original = with_random_weights(Released(depths, expansion, attention))
    state_dict = {prefix + key: tensor for key, tensor in original.state_dict().items()}
    network = ours(name, {name: (name, attention, {})})
    network.load_state_dict(convert_authors(state_dict), strict=True)
    assert all(key.startswith(prefix) for key in state_dict)
    assert_same_scores(original, network)


@pytest.mark.parametrize(
    ("golden", "attention", "released", "here", "module"),
    [
        ("squeeze_excitation", "se", "se", "gate", lambda: SqueezeExcitation(64)),
        ("cbam", "cbam", "cbam", "gate", lambda: CBAM(64)),
        ("spatial_group_enhance", "sge", "sge", "gate", lambda: SpatialGroupEnhance(64, groups=32)),
        (
            "pyramid_squeeze_attention",
            "epsa",
            "conv2",
            "conv2",
            lambda: PyramidSqueezeAttention(64),
        ),
    ],
)
def test_golden_arrays_by_their_names_in_a_network(golden, attention, released, here, module):
    arrays = data.golden(golden)
    block = {
        key.replace("param/", f"layer3.5.{released}."): array
        for key, array in arrays.items()
        if key.startswith("param/")
    }
    theirs = renamed("resnet50", attention, AUTHORS[attention])
    assert block.keys() <= theirs.keys()
    loaded = module().eval()
    converted = convert_authors(theirs | block)
    loaded.load_state_dict(part(converted, f"layer3.5.{here}."), strict=True)
    torch.testing.assert_close(loaded(arrays["x"]), arrays["y_eval"])


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        *((name, attention) for name in get_args(NetworkName) for attention in (None, "se")),
        *(("resnet101", attention) for attention in ("cbam", "sge", "epsa")),
    ],
)
def test_a_part_that_is_missing_or_too_many_is_named(name, attention):
    theirs = renamed(name, attention, AUTHORS.get(attention, {}))
    assert convert_authors(theirs).keys() == renamed(name, attention, {}).keys()
    for key in ("layer4.1.bn2.weight", "layer4.1.bn2.bias", "layer4.1.bn2.running_mean", "fc.bias"):
        del theirs[key]
    theirs["layer1.0.extra.weight"] = torch.zeros(3)
    network = f"{name} with '{attention}'" if attention else name
    message = (
        rf"state_dict looks like {network}, but lacks 'layer4.1.bn2.weight', 'layer4.1.bn2.bias', "
        r"'layer4.1.bn2.running_mean' and 1 other; has 'layer1.0.extra.weight', for which "
    )
    with pytest.raises(ValueError, match=message):
        convert_authors(theirs)


def test_old_checkpoints_have_no_counters():
    """PyTorch 0.4 had none; `load_state_dict` of batch norm knows that."""
    theirs = renamed("resnet50", "sge", AUTHORS["sge"])
    old = {key: tensor for key, tensor in theirs.items() if not key.endswith("_tracked")}
    assert len(convert_authors(old)) == len(old) < len(theirs)


def test_half_of_a_network_is_told_from_another():
    theirs = renamed("resnet50", None, {})
    first = {key: tensor for key, tensor in theirs.items() if not key.startswith("layer4")}
    message = r"looks like resnet50, but lacks 'layer4.0.conv1.weight', .* and \d+ others; pass"
    with pytest.raises(ValueError, match=message):
        convert_timm(first)
    with pytest.raises(ValueError, match=r"like resnet18, but has 'layer1.2.conv1.weight', for"):
        convert_timm(renamed("resnet18", None, {}) | {"layer1.2.conv1.weight": torch.zeros(1)})


@pytest.mark.parametrize("convert", [convert_timm, convert_authors])
def test_what_holds_no_network_resembles_none(convert):
    with pytest.raises(ValueError, match="state_dict is empty; pass the whole state dictionary"):
        convert({})
    with pytest.raises(ValueError, match=r"state_dict has 'stages.0.weight', for which"):
        convert({"stages.0.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    "key",
    [
        "layer1.0.conv2g.weight",  # the later SK of the authors, in PyTorch
        "layer1.0.conv_fc1.weight",
        "bam1.channel_att.gate_c.gate_c_fc_0.weight",  # BAM, from the authors of CBAM
        "module.layer1.0.eca.conv.weight",
        "layer5.0.conv1.weight",
        "layer1.0.conv2.conv_5.weight",
        "pretrained.conv1.0.weight",  # DANet's backbone
        "epoch",  # a checkpoint, whose "state_dict" was meant
    ],
)
def test_authors_keys_that_have_no_place(key):
    with pytest.raises(ValueError, match=f"'{key}'.*no place"):
        convert_authors({"conv1.weight": torch.zeros(64, 3, 7, 7), key: torch.zeros(1)})


@pytest.mark.parametrize("convert", [convert_timm, convert_authors])
def test_what_is_no_state_dict(convert):
    convert = getattr(plain("weights"), convert.__name__)
    for wrong in (nn.Conv2d(3, 64, 7), "resnet50.pth", None, ["conv1.weight"]):
        with pytest.raises(TypeError, match=r"state_dict must be a mapping, got .*state_dict"):
            convert(wrong)
    with pytest.raises(TypeError, match=r"state_dict must map names to tensors, got 3 .*'epoch'"):
        convert({"epoch": 3, "state_dict": {}})


def test_keys_that_name_the_same_part():
    weight = torch.zeros(10, 512)
    message = "state_dict has 'last_linear.weight' and another name for 'fc.weight'; pass one"
    with pytest.raises(ValueError, match=message):
        convert_timm({"fc.weight": weight, "last_linear.weight": weight})
    with pytest.raises(ValueError, match=r"another name for .fc.weight.; pass one"):
        convert_authors({"fc.weight": weight, "module.fc.weight": weight})
