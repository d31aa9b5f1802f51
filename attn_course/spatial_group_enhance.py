import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class SpatialGroupEnhance(nn.Module):
    """Gates each position of a group of channels by its likeness to the group's mean.

    arXiv:1905.09646:

    Args:
        channels: Number
        groups: Number
        eps: Num

    Shape:
        x: (b, c, h, w), any h and w. The result has the same shape.

    Raises:
        ValueError: The groups
    """

    def __init__(self, channels: int, groups: int = 64, *, eps: float = 1e-5) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels={channels} is no number of channels; pass channels >= 1")
        if groups < 1 or channels % groups:
            fitting = [g for g in range(1, channels + 1) if channels % g == 0]
            raise ValueError(
                f"groups={groups} does not divide channels={channels}; pass one of {fitting}"
            )
        if eps <= 0:
            raise ValueError(f"eps={eps} does not keep a constant map from 0 / 0; pass eps > 0")
        self.channels, self.groups, self.eps = channels, groups, eps
        self.weight = nn.Parameter(torch.zeros(1, groups, 1, 1))  # γ
        self.bias = nn.Parameter(torch.ones(1, groups, 1, 1))  # β

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        s = self.attention(x)[:, :, None]  # (b, g, 1, h, w)
        return (x.unflatten(1, (self.groups, -1)) * s).flatten(1, 2)  # (b, c, h, w)

    def attention(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b g h w"]:
        gate = (self.weight * self.similarity(x) + self.bias).sigmoid()  # (b, g, h, w)
        return gate.to(x.dtype)  # (b, g, h, w)

    def similarity(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b g h w"]:
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; pass (b, c, h, w) with c = channels={self.channels}"
            )
        n = x.shape[2] * x.shape[3]
        wide = torch.promote_types(x.dtype, torch.float32)
        grouped = x.unflatten(1, (self.groups, -1))  # (b, g, c / g, h, w)
        m = grouped.sum((3, 4), dtype=wide) / n  # (b, g, c / g)
        length = torch.linalg.vector_norm(m, dim=2)[:, :, None, None]  # (b, g, 1, 1)
        direction = F.normalize(m, dim=2).to(x.dtype)  # (b, g, c / g)
        t = torch.einsum("bgk, bgkhw -> bghw", direction, grouped).to(wide)  # (b, g, h, w)
        t = t - t.mean((2, 3), keepdim=True)  # (b, g, h, w)
        std = torch.linalg.vector_norm(t, dim=(2, 3), keepdim=True) / max(n - 1, 1) ** 0.5
        return t * (length / (length * std + self.eps))  # (b, g, h, w)
