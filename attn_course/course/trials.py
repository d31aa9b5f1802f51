"""How the chapters train, what they compare with, and what several seeds say.

Chapter 01 explains all of it; the others use it.
"""

from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn
from torch.optim import AdamW, Optimizer

Batch = tuple[Float[Tensor, "b ..."], Int[Tensor, "b ..."]]

# Student's t: 95 % of it lies within ± this, for so many values (one degree of freedom fewer).
T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}


def batches(
    images: Float[Tensor, "n ..."], labels: Int[Tensor, "n ..."], size: int = 100
) -> Callable[[Generator], Batch]:
    """Draws batches of `size` from labelled images: what `train` asks for."""

    def draw(generator: Generator) -> Batch:
        chosen = torch.randint(len(images), (size,), generator=generator)
        return images[chosen], labels[chosen]

    return draw


def train(
    network: nn.Module,
    draw: Callable[[Generator], Batch],
    *,
    steps: int,
    seed: int,
    rate: float = 1e-2,
    groups: Iterable[dict[str, Any]] | None = None,
    optimiser: Callable[..., Optimizer] = AdamW,
    watch: Callable[[nn.Module], object] = lambda network: None,
) -> nn.Module:
    """Trains a network to classify, and returns it in evaluation mode.

    The loss is the cross-entropy; the learning rate rises to `rate` and falls to zero (one cycle).

    Args:
        network: What is trained, in place.
        draw: Takes a generator and returns a batch of images and their labels, see `batches`.
        steps: How many batches are drawn.
        seed: Of the generator: networks with the same seed see the same batches.
        rate: The highest learning rate.
        groups: Parameter groups, as PyTorch has them, where some parameters learn differently.
        optimiser: Is made with the groups: another than AdamW.
        watch: Is called with the network after each step.
    """
    parts = list(groups or [{"params": list(network.parameters())}])
    rates = [part.get("lr", rate) for part in parts]
    descent = optimiser(parts)  # which writes a learning rate of its own into the parts
    schedule = torch.optim.lr_scheduler.OneCycleLR(descent, rates, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    network.train()
    for _ in range(steps):
        images, labels = draw(generator)
        loss = F.cross_entropy(network(images), labels)
        descent.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        descent.step()
        schedule.step()
        watch(network)
    return network.eval()


@torch.no_grad()
def accuracy(
    network: nn.Module, images: Float[Tensor, "n ..."], labels: Int[Tensor, "n ..."]
) -> float:
    """How many of 100 images a network in evaluation mode classifies right."""
    return 100 * (network(images).argmax(1) == labels).float().mean().item()


class Constant(nn.Module):
    """A gate that does not look: it weights every image alike."""

    gate: Tensor

    def __init__(self, gate: Float[Tensor, "1 ..."]) -> None:
        super().__init__()
        self.register_buffer("gate", gate)

    def forward(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Weights x by the constant."""
        return x * self.gate


@torch.no_grad()
def frozen(network: nn.Module, gates: type[nn.Module], images: Float[Tensor, "n ..."]) -> nn.Module:
    """A copy of a network in which each gate is its mean over the images, whatever it is shown.

    What the copy can still do is the static part of the attention's effect.

    Args:
        network: In evaluation mode.
        gates: A class whose `forward(x)` is x times `attention(x)`.
        images: What the gates are averaged over.
    """
    means: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[Any, tuple[Tensor], Tensor], None]:
        def hook(module: Any, inputs: tuple[Tensor], _: Tensor) -> None:
            means[name] = module.attention(*inputs).mean(0, keepdim=True)

        return hook

    parts = [(name, part) for name, part in network.named_modules() if isinstance(part, gates)]
    hooks = [part.register_forward_hook(keep(name)) for name, part in parts]
    network(images)
    for hook in hooks:
        hook.remove()
    copy = deepcopy(network)
    for name, mean in means.items():
        copy.set_submodule(name, Constant(mean))
    return copy


def interval(differences: Float[Tensor, "seeds"]) -> tuple[float, float]:
    """The mean of paired differences, and the half width of its 95 % interval (Student's t).

    Args:
        differences: One for each seed, between two networks that share all but what is compared.

    Raises:
        ValueError: There are fewer than 2, or more than 10.
    """
    count = len(differences)
    if count not in T95:
        raise ValueError(f"differences must be 2 to 10 numbers, got {count}")
    return differences.mean().item(), T95[count] * differences.std().item() / count**0.5
