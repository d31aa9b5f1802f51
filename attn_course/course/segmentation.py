"""A network in use with ten gates: MediaPipe's selfie segmentation, which finds people in images.

It was made for phones and browsers, to part a person from the background of a video call. Its
weights are in ``data/selfie_segmentation.npz``; ``data/README.md`` says whose they are.
"""

from collections.abc import Mapping

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from attn_course import SqueezeExcitation
from attn_course.course import data

SIDE = 256  # of the images that the network takes

# (channels in, inside, out, kernel, stride, hidden units of the gate or 0)
BLOCKS = [
    (16, 16, 16, 3, 2, 8),
    (16, 72, 24, 3, 2, 0),
    (24, 88, 24, 3, 1, 0),
    (24, 96, 32, 5, 2, 24),
    (32, 128, 32, 5, 1, 32),
    (32, 128, 32, 5, 1, 32),
    (32, 96, 32, 5, 1, 24),
    (32, 96, 32, 5, 1, 24),
]

# Where its gates are, in the order of the computation.
GATES = [f"encoder {k}" for k in range(1, 7)] + ["head"] + [f"decoder {k}" for k in range(1, 4)]

Photograph = Float[Tensor, "3 _ _"]
Gate = Float[Tensor, "_ _ 1 1"]  # (b, c, 1, 1), or one for all images, (1, c, 1, 1)


class SamePadding(nn.Conv2d):
    """TensorFlow's `SAME`: where the padding is uneven, the odd pixel is at the end."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d _ _"]:
        """Pads x and convolves it."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        down, across = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[2:])
        padding = (across // 2, across - across // 2, down // 2, down - down // 2)
        return super().forward(F.pad(x, padding))


class Gates:
    """Applies gates, keeps a list of them, and puts a constant in the place of some."""

    def __init__(self, constants: Mapping[int, Gate]) -> None:
        self.constants = constants
        self.used: list[Gate] = []

    def apply(self, x: Float[Tensor, "b c h w"], gate: Gate) -> Float[Tensor, "b c h w"]:
        """Weights x by a gate, or by the constant that replaces it."""
        gate = self.constants.get(len(self.used), gate)
        self.used.append(gate)
        return x * gate


class Block(nn.Module):
    """MobileNetV3's block: more channels, a convolution for each, a gate, fewer channels."""

    def __init__(
        self, channels: int, inside: int, out: int, kernel: int, stride: int, hidden: int
    ) -> None:
        super().__init__()
        self.widen = nn.Conv2d(channels, inside, 1)
        self.depthwise = SamePadding(inside, inside, kernel, stride, groups=inside)
        self.gate = SqueezeExcitation(inside, inside // hidden) if hidden else None
        self.narrow = nn.Conv2d(inside, out, 1)
        self.activation = F.hardswish if kernel == 5 else F.relu
        self.adds = stride == 1 and channels == out

    def forward(self, x: Float[Tensor, "b c h w"], gates: Gates) -> Float[Tensor, "b d _ _"]:
        """The block's result."""
        inside = self.activation(self.depthwise(self.activation(self.widen(x))))
        if self.gate is not None:
            inside = gates.apply(inside, self.gate.attention(inside))
        out = self.narrow(inside)
        return x + out if self.adds else out


class Level(nn.Module):
    """One level of the decoder: what comes from below decides how much of the encoder's map."""

    def __init__(self, below: int, channels: int) -> None:
        super().__init__()
        self.fit = nn.Conv2d(below, channels, 1)
        self.gate = SqueezeExcitation(channels, reduction=1)
        self.mix = nn.Conv2d(channels, channels, 1)
        self.depthwise = SamePadding(channels, channels, 3, groups=channels)

    def forward(
        self, x: Float[Tensor, "b d _ _"], kept: Float[Tensor, "b c h w"], gates: Gates
    ) -> Float[Tensor, "b c h w"]:
        """What is below, x, enlarged and joined with the map that was kept."""
        x = self.fit(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False))
        x = x + gates.apply(kept, self.gate.attention(kept + x))
        x = self.mix(x).relu()
        return x + self.depthwise(x).relu()


class SelfieSegmentation(nn.Module):
    """The network: an image goes in, for each pixel the probability of a person comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.first = SamePadding(3, 16, 3, stride=2)
        self.encoder = nn.ModuleList(Block(*options) for options in BLOCKS)
        self.head = nn.Conv2d(32, 128, 1)
        self.head_gate = nn.Conv2d(32, 128, 1)  # one layer on the means, and no SE block
        self.decoder = nn.ModuleList([Level(128, 24), Level(24, 16), Level(16, 16)])
        self.last = nn.ConvTranspose2d(16, 1, 2, stride=2)

    def forward(
        self, images: Float[Tensor, "b 3 256 256"], constants: Mapping[int, Gate] | None = None
    ) -> Float[Tensor, "b 1 256 256"]:
        """The mask of the person.

        Args:
            images: Red, green, blue, with values in [0, 1]; see `fit`.
            constants: By the number of a gate, what to multiply by in its place.
        """
        return self._run(images, constants or {})[0]

    def gates(self, images: Float[Tensor, "b 3 256 256"]) -> list[Gate]:
        """The ten gates, in the order of `GATES`."""
        return self._run(images, {})[1]

    def _run(self, images: Tensor, constants: Mapping[int, Gate]) -> tuple[Tensor, list[Gate]]:
        gates = Gates(constants)
        x = F.hardswish(self.first(images))
        maps = [x]  # what the decoder takes from the encoder
        for block in self.encoder:
            x = block(x, gates)
            maps.append(x)
        decision = self.head_gate(x.mean((2, 3), keepdim=True)).sigmoid()
        x = gates.apply(self.head(x).relu(), decision)
        for level, kept in zip(self.decoder, (maps[3], maps[1], maps[0]), strict=True):
            x = level(x, kept, gates)
        return self.last(x).sigmoid(), gates.used


def load() -> SelfieSegmentation:
    """The trained network, in evaluation mode."""
    network = SelfieSegmentation()
    network.load_state_dict(data.selfie_segmentation().weights)
    return network.eval().requires_grad_(False)


def fit(photograph: Photograph) -> Float[Tensor, "1 3 256 256"]:
    """A photograph as the network takes it: stretched to a square of 256 pixels."""
    return F.interpolate(
        photograph[None], (SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True
    )
