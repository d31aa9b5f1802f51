"""What is measured: each mechanism beside other people's, in networks, and growing with its input.

A contest is a list of entries that do the same work, or whose times are to be compared; they take
turns. Those of others come from timm, torchvision, torch, and as `released` from the repositories
that tests/golden/README.md lists. A `textbook` writes the equation down as it stands.
"""

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attn_course
from attn_course import create_network
from attn_course.dual_attention import PositionAttention

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from golden import build

Make = Callable[[], nn.Module]
Shape = tuple[int, ...]
FLOAT, BFLOAT = "float32", "bfloat16"
CONTIGUOUS, LAST = "contiguous", "channels_last"
FORWARD, BOTH = "forward", "forward and backward"
NETWORKS = {
    "ResNet-50": None,
    "SE-ResNet-50": "se",
    "CBAM-ResNet-50": "cbam",
    "SGE-ResNet-50": "sge",
    "SK-ResNet-50": "sk",
    "EPSA-ResNet-50": "epsa",
}
COMPILED = ("ResNet-50", "SE-ResNet-50", "CBAM-ResNet-50")


@dataclass(frozen=True)
class Entry:
    """One row of the results: who does what, and how.

    Args:
        what: The mechanism, network or sweep.
        rival: Whose code it is.
        shape: The input's.
        make: Makes the module. Entries that share it share the module.
        run: FORWARD in evaluation mode, or BOTH in training mode.
        dtype: FLOAT, or BFLOAT by autocast.
        layout: CONTIGUOUS or LAST, in memory.
        compiled: Whether by `torch.compile`.
        memory: Whether the peak is measured, too.
    """

    what: str
    rival: str
    shape: Shape
    make: Make
    run: str = FORWARD
    dtype: str = FLOAT
    layout: str = CONTIGUOUS
    compiled: bool = False
    memory: bool = False


Contest = list[Entry]


@dataclass(frozen=True)
class Scale:
    """How large everything is: as it is used, or as small as a rehearsal wants it."""

    side: int = 1000  # no feature map has a larger one
    image: int = 224
    batch: int = 4
    network: str = "resnet50"
    networks: tuple[str, ...] = tuple(NETWORKS)

    def maps(self, b: int, c: int, side: int) -> Shape:
        return (min(b, self.batch), c, min(side, self.side), min(side, self.side))

    def tokens(self, b: int, side: int, c: int) -> Shape:
        return (min(b, self.batch), min(side, self.side) ** 2, c)


REHEARSAL = Scale(8, 32, 2, "resnet18", ("ResNet-50", "EPSA-ResNet-50"))


# --- Other people's code --------------------------------------------------------------------------


OPERATORS = torch.library.Library("torchvision", "FRAGMENT")


@cache
def import_timm() -> Any:
    """timm, or nothing where it is not installed."""
    if not (find_spec("timm") and find_spec("torchvision")):
        return None
    try:
        import torchvision  # noqa: F401
    except RuntimeError:  # built for CUDA, on a torch without: its import asks for two operators
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        for name in ("nms", "qnms"):
            OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm

    return timm


class Sum(nn.Module):
    """Adds what the two released halves of dual attention give, each with its input in it."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.parts[0](x) + self.parts[1](x)


class OnItself(nn.Module):
    """Attention with queries, keys and values from the same tokens."""

    def __init__(self, attention: nn.Module, **options: Any) -> None:
        super().__init__()
        self.attention, self.options = attention, options

    def forward(self, x: Tensor) -> Tensor:
        out = self.attention(x, x, x, **self.options)
        return out[0] if isinstance(out, tuple) else out


def released(
    clones: Path, repository: Any, files: dict[str, tuple[str, ...]], make: Callable[..., nn.Module]
) -> nn.Module:
    """A module made from the definitions of a clone."""
    recipe = build.Recipe(0, repository, {}, make, files)
    return recipe.build(build.definitions(clones, recipe))


SGE_NETWORK = {
    "classification/models/imagenet/resnet_sge.py": (
        "SpatialGroupEnhance",
        "conv3x3",
        "conv1x1",
        "BasicBlock",
        "Bottleneck",
        "ResNet",
    )
}
EPSA_NETWORK = {
    "models/SE_weight_module.py": ("SEWeightModule",),
    "models/epsanet.py": ("conv", "conv1x1", "PSAModule", "EPSABlock", "EPSANet"),
}


# --- Textbook forms -------------------------------------------------------------------------------


class Textbook(nn.Module):
    """The equation as it stands, with the parameters of our module."""

    def __init__(self, ours: nn.Module) -> None:
        super().__init__()
        self.ours = ours


class WeightedCopy(Textbook):
    """SGE: multiplies x by its mean, then adds up the channels."""

    def forward(self, x: Tensor) -> Tensor:
        grouped = x.unflatten(1, (self.ours.groups, -1))  # (b, g, c / g, h, w)
        t = (grouped * grouped.mean((3, 4), keepdim=True)).sum(2)  # (b, g, h, w)
        t = t - t.mean((2, 3), keepdim=True)
        t = t / (t.std((2, 3), keepdim=True) + self.ours.eps)
        s = torch.sigmoid(self.ours.weight * t + self.ours.bias)
        return (grouped * s[:, :, None]).flatten(1, 2)  # (b, c, h, w)


class Materialised(Textbook):
    """Multi-head self-attention: scores, softmax and mixture, each for all pairs of tokens."""

    def forward(self, x: Tensor) -> Tensor:
        parts = F.linear(x, self.ours.in_proj_weight, self.ours.in_proj_bias)  # (b, n, 3 d)
        q, k, v = parts.unflatten(2, (3, self.ours.num_heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q / math.sqrt(q.shape[3]) @ k.mT).softmax(3)  # (b, heads, n, n)
        return self.ours.out_proj((weights @ v).transpose(1, 2).flatten(2))  # (b, n, d)


class WholeMatrix(Textbook):
    """Position attention: all positions ask at once."""

    def parts(self, x: Tensor) -> list[Tensor]:
        layers = (self.ours.query, self.ours.key, self.ours.value)
        return [layer(x).flatten(2) for layer in layers]  # (b, d, n), (b, d, n), (b, c, n)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.parts(x)
        mixed = v @ (q.mT @ k).softmax(2).mT  # (b, c, n)
        return x + self.ours.alpha * mixed.view_as(x)


class Padded(WholeMatrix):
    """Position attention by the fused kernel: zeros make queries and keys as wide as values."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.parts(x)
        zeros = (0, 0, 0, v.shape[1] - q.shape[1])
        q, k, v = (part.mT[:, None] for part in (F.pad(q, zeros), F.pad(k, zeros), v))
        mixed = F.scaled_dot_product_attention(q, k, v, scale=1.0)[:, 0].mT  # (b, c, n)
        return x + self.ours.alpha * mixed.reshape(x.shape)


class SharedQueries(WholeMatrix):
    """The same with values cut into heads of 128, and queries and keys filled up to that."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.parts(x)
        zeros = (0, 0, 0, 128 - q.shape[1])
        v = v.unflatten(1, (-1, 128)).mT  # (b, heads, n, 128)
        q, k = (F.pad(part, zeros).mT[:, None].expand(v.shape) for part in (q, k))
        mixed = F.scaled_dot_product_attention(q, k, v, scale=1.0).mT  # (b, heads, 128, n)
        return x + self.ours.alpha * mixed.reshape(x.shape)


class SelfAttention(nn.Module):
    """Self-attention of a feature map with one head and without biases, by the fused kernel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.output = nn.Linear(channels, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.flatten(2).mT[:, None]).chunk(3, dim=-1)  # (b, 1, n, c) each
        mixed = F.scaled_dot_product_attention(q, k, v)  # (b, 1, n, c)
        return self.output(mixed).squeeze(1).mT.view_as(x)


class ConvolvedTokens(nn.Module):
    """A 3 × 3 convolution of tokens (b, n, c), as the feature map that they come from."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.mT.unflatten(2, (math.isqrt(x.shape[1]), -1))).flatten(2).mT


class Maximum(nn.Module):
    """The maximum over the channels, by one of PyTorch's two functions."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return x.amax(1) if self.name == "amax" else x.max(1).values


# --- Modules --------------------------------------------------------------------------------------


def modules(clones: Path | None, scale: Scale) -> Iterator[Contest]:
    """Our modules and those of others, at the shapes where networks have them."""
    for name, shapes in MODULES.items():
        for b, *sizes in shapes:
            tokens = name.startswith("MultiHead")
            shape = (scale.tokens if tokens else scale.maps)(b, *sizes)
            c = shape[2 if tokens else 1]
            rivals = {"ours": partial(getattr(attn_course, name), c), **others(name, c, clones)}
            made = {rival: cache(make) for rival, make in rivals.items()}
            yield [
                Entry(name, rival, shape, make, run, memory=run == BOTH)
                for run in (FORWARD, BOTH)
                for rival, make in made.items()
            ]


# Batch, channels and side of feature maps, or batch, side and width of tokens. Gates stand at the
# ends of ResNet-50's stages, convolutions within.
GATED = [(4, 256, 56), (4, 1024, 14), (4, 2048, 7)]
MODULES = {
    "SqueezeExcitation": GATED,
    "CBAM": GATED,
    "SpatialGroupEnhance": GATED,
    "SelectiveKernel": [(4, 128, 56), (4, 512, 14)],
    "PyramidSqueezeAttention": [(4, 64, 56), (4, 256, 14), (4, 512, 7)],
    "DualAttention": [(1, 512, 32), (1, 512, 64)],
    "ExternalAttention": [(1, 512, 32), (1, 512, 64)],
    "MultiHeadSelfAttention": [(4, 14, 384), (1, 32, 512)],
    "MultiHeadExternalAttention": [(4, 14, 384), (1, 32, 512)],
}


def others(name: str, c: int, clones: Path | None) -> dict[str, Make]:
    """Those who have this mechanism, too, for c channels."""
    found: dict[str, Make] = {}
    if name == "SpatialGroupEnhance":
        found["textbook"] = lambda: WeightedCopy(attn_course.SpatialGroupEnhance(c))
    elif name == "MultiHeadSelfAttention":
        found["torch"] = lambda: OnItself(
            nn.MultiheadAttention(c, 8, batch_first=True), need_weights=False
        )
        found["textbook"] = lambda: Materialised(attn_course.MultiHeadSelfAttention(c))
    elif name == "SelectiveKernel":  # its authors released no PyTorch: this is a transcription
        found["released"] = lambda: build.SelectiveKernelUnit(c, max(c // 16, 32), 32)
    if timm := import_timm():
        found |= of_timm(name, c, timm)
    if clones and name in RELEASED:
        repository, files, make = RELEASED[name]
        found["released"] = partial(released, clones, repository, files, lambda code: make(code, c))
    return found


def of_timm(name: str, c: int, timm: Any) -> dict[str, Make]:
    """timm's module, and torchvision's."""
    if name == "SqueezeExcitation":
        import torchvision

        return {
            "timm": lambda: timm.layers.create_attn("se", c),
            "torchvision": lambda: torchvision.ops.SqueezeExcitation(c, c // 16),
        }
    if name == "CBAM":
        return {"timm": lambda: timm.layers.create_attn("cbam", c)}
    if name == "SelectiveKernel":
        options = {"groups": 32, "rd_divisor": 32, "split_input": False}
        return {"timm": lambda: timm.layers.SelectiveKernel(c, **options)}
    if name == "MultiHeadSelfAttention":
        from timm.models.vision_transformer import Attention

        return {"timm": lambda: Attention(c, num_heads=8, qkv_bias=True)}
    return {}


RELEASED: dict[str, tuple[Any, dict[str, tuple[str, ...]], Callable[..., nn.Module]]] = {
    "SqueezeExcitation": (
        build.INSIGHT,
        build.SE_FILE,
        lambda code, c: code["SELayer"](c, reduction=16),
    ),
    "CBAM": (build.CBAM, build.CBAM_FILE, lambda code, c: code["CBAM"](c, reduction_ratio=16)),
    "SpatialGroupEnhance": (
        build.INSIGHT,
        build.SGE_FILE,
        lambda code, c: code["SpatialGroupEnhance"](groups=64),
    ),
    "PyramidSqueezeAttention": (
        build.EPSANET,
        build.PSA_FILES,
        lambda code, c: code["PSAModule"](c, c),
    ),
    "DualAttention": (
        build.DANET,
        build.DA_FILE,
        lambda code, c: Sum(code["PAM_Module"](c), code["CAM_Module"](c)),
    ),
    "ExternalAttention": (
        build.EANET,
        build.EA_FILE,
        lambda code, c: code["External_attention"](c),
    ),
    "MultiHeadSelfAttention": (
        build.ANNOTATED,
        build.ANNOTATED_FILE,
        lambda code, c: OnItself(code["MultiHeadedAttention"](8, c, dropout=0.0)),
    ),
    "MultiHeadExternalAttention": (
        build.EANET,
        build.HEADS_FILE,
        lambda code, c: code["Attention"](c, num_heads=8),
    ),
}


# --- Sweeps ---------------------------------------------------------------------------------------


def sweeps(clones: Path | None, scale: Scale) -> Iterator[Contest]:
    """What the chapters draw: how time, and sometimes memory, grows."""
    conv = partial(nn.Conv2d, kernel_size=3, padding=1)
    gates = {
        "3 × 3 convolution": lambda: conv(64, 64),
        "SE": lambda: attn_course.SqueezeExcitation(64),
        "CBAM": lambda: attn_course.CBAM(64),
    }
    selection = {
        "dense 3 × 3": lambda: conv(128, 128),
        "3 × 3 in 32 groups": lambda: conv(128, 128, groups=32),
        "SK, 2 paths in 32 groups": lambda: attn_course.SelectiveKernel(128),
    }
    enhance = {
        "weighted copy": lambda: WeightedCopy(attn_course.SpatialGroupEnhance(256)),
        "one contraction": lambda: attn_course.SpatialGroupEnhance(256),
    }
    pairs = {
        "self-attention": lambda: SelfAttention(64),
        "external attention": lambda: attn_course.ExternalAttention(64),
    }
    yield from sweep("gates", [scale.maps(1, 64, side) for side in (7, 14, 28, 56, 112)], gates)
    yield from sweep("selection", [scale.maps(1, 128, side) for side in (7, 14, 28, 56)], selection)
    yield from sweep("enhance", [scale.maps(4, 256, side) for side in (7, 14, 28, 56)], enhance)
    yield from sweep("pairs", [scale.maps(1, 64, side) for side in (8, 16, 32, 64, 96)], pairs)
    tokens = {
        "as the equation stands": lambda: Materialised(attn_course.MultiHeadSelfAttention(64, 4)),
        "fused": lambda: attn_course.MultiHeadSelfAttention(64, 4),
        "3 × 3 convolution": lambda: ConvolvedTokens(64),
    }
    shapes = [scale.tokens(1, side, 64) for side in (8, 16, 32, 64)]
    yield from sweep("tokens", shapes, tokens, memory=True)
    positions = {
        "whole matrix": lambda: WholeMatrix(PositionAttention(512)),
        "chunks": lambda: PositionAttention(512),
    }
    shapes = [scale.maps(1, 512, side) for side in (32, 64, 96)]
    yield from sweep("positions", shapes, positions, (FORWARD, BOTH), memory=True)
    fused = {
        "whole matrix": positions["whole matrix"],
        "fused, padded": lambda: Padded(PositionAttention(512)),
        "fused, heads of 128": lambda: SharedQueries(PositionAttention(512)),
    }
    yield from sweep("fused positions", [scale.maps(1, 512, 96)], fused)
    maxima: dict[str, Make] = {name: partial(Maximum, name) for name in ("amax", "max")}
    yield from sweep("maximum", [scale.maps(4, 256, 56)], maxima, (FORWARD, BOTH))
    yield kernels(scale.maps(1, 64, 56))


def sweep(
    what: str,
    shapes: list[Shape],
    rivals: dict[str, Make],
    runs: tuple[str, ...] = (FORWARD,),
    memory: bool = False,
) -> Iterator[Contest]:
    """The rivals at each shape; a rehearsal has made some shapes the same, which counts once."""
    for shape in dict.fromkeys(shapes):
        made = {rival: cache(make) for rival, make in rivals.items()}
        yield [
            Entry(what, rival, shape, make, run, memory=memory)
            for run in runs
            for rival, make in made.items()
        ]


def kernels(shape: Shape) -> Contest:
    """EPSA's four convolutions, and the one that they replace."""
    conv = partial(nn.Conv2d, 64, bias=False)
    found = [Entry("kernels", "one 3 × 3", shape, lambda: conv(64, 3, padding=1))]
    for k, g in zip((3, 5, 7, 9), (1, 4, 8, 16), strict=True):
        grouped = partial(conv, 16, k, padding=k // 2, groups=g)
        found += [
            Entry("kernels", f"{k} × {k}, groups", shape, grouped),
            Entry("kernels", f"{k} × {k}, groups", shape, grouped, layout=LAST),
            Entry("kernels", f"{k} × {k}", shape, partial(conv, 16, k, padding=k // 2)),
        ]
    return found


# --- Networks -------------------------------------------------------------------------------------


def networks(clones: Path | None, scale: Scale) -> Iterator[Contest]:
    """ResNet-50 with each mechanism that stands in its blocks; all networks take turns."""
    shape = (scale.batch, 3, scale.image, scale.image)
    yield [
        Entry(what, rival, shape, make, run, dtype, layout, memory=run == BOTH)
        for layout in (CONTIGUOUS, LAST)
        for what, makes in competitors(clones, scale).items()
        for dtype in (FLOAT, BFLOAT)
        for run in (FORWARD, BOTH)
        for rival, make in makes.items()
        if (layout, what, rival) != (LAST, "SGE-ResNet-50", "released")  # it has a `view` there
    ]


def compiled(clones: Path | None, scale: Scale) -> Iterator[Contest]:
    """Some of our networks, compiled, beside the same as they are."""
    shape = (scale.batch, 3, scale.image, scale.image)
    for what in (what for what in COMPILED if what in scale.networks):
        make = partial(create_network, scale.network, NETWORKS[what])
        yield [
            Entry(what, "ours", shape, make),
            Entry(what, "ours", shape, make, compiled=True),
            Entry(what, "ours", shape, make, dtype=BFLOAT, layout=LAST, compiled=True),
        ]


def competitors(clones: Path | None, scale: Scale) -> dict[str, dict[str, Make]]:
    """Each network, and how those who have it make it."""
    timm = import_timm()
    found = {}
    for what in scale.networks:
        attention = NETWORKS[what]
        makes: dict[str, Make] = {"ours": partial(create_network, scale.network, attention)}
        if timm and attention in OF_TIMM:
            name, options = OF_TIMM[attention]
            name = name.replace("resnet50", scale.network)
            makes["timm"] = partial(timm.create_model, name, **options)
        if clones and attention in RELEASED_NETWORKS:
            makes["released"] = partial(released, clones, *RELEASED_NETWORKS[attention])
        found[what] = {rival: cache(make) for rival, make in makes.items()}
    return found


OF_TIMM: dict[str | None, tuple[str, dict[str, Any]]] = {
    None: ("resnet50", {}),
    "se": ("seresnet50", {}),
    "cbam": ("resnet50", {"block_args": {"attn_layer": "cbam"}}),
    "sk": ("skresnext50_32x4d", {}),  # both are the paper's SKNet-50
}
RELEASED_NETWORKS: dict[str | None, tuple[Any, dict[str, tuple[str, ...]], Any]] = {
    "sge": (
        build.INSIGHT,
        SGE_NETWORK,
        lambda code: code["ResNet"](code["Bottleneck"], (3, 4, 6, 3)),
    ),
    "epsa": (
        build.EPSANET,
        EPSA_NETWORK,
        lambda code: code["EPSANet"](code["EPSABlock"], (3, 4, 6, 3)),
    ),
}

PARTS = {"modules": modules, "sweeps": sweeps, "networks": networks, "compiled": compiled}
