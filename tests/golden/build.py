"""Rebuild the arrays of this folder from the code that they came from.

    python tests/golden/build.py --clones DIR              # compare with what is stored
    python tests/golden/build.py --clones DIR --out DIR    # write them instead
    python tests/golden/build.py --clones DIR cbam         # one, or some, by name

The folder of clones holds each repository of `README.md` under its own name; what is missing is
named together with the command that brings it. The files are read at the commits below, whatever
is checked out. This runs other people's code, but none of it stands here.
"""

import argparse
import ast
import copy
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

FOLDER = Path(__file__).parent
FIRST_SEED = 100
THREADS = 2  # one thread adds in another order
ROUNDING = 1e-4  # batch norm over two descriptors magnifies it
FEATURE_MAP = (2, 64, 7, 7)
TOKENS = (2, 49, 64)


# --- What was run ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Repository:
    """A repository on GitHub at one commit."""

    name: str
    commit: str


INSIGHT = Repository("implus/PytorchInsight", "2864528f8b83f52c3df76f7c3804aa468b91e5cf")
SKNET = Repository("implus/SKNet", "17dd7086d4959be0c8c6ccce52e4fd8187836770")
CBAM = Repository("Jongchan/attention-module", "459efad0e05ee7dde50c41ca10a3d0800bc3792a")
EANET = Repository("MenghaoGuo/EANet", "59c03cb0a286d3a29a797f8ea07fb89d7af56b60")
ANNOTATED = Repository(
    "harvardnlp/annotated-transformer", "debc9fd747bb2123160a98046ad1c2d4da44a567"
)
DANET = Repository("junfu1115/DANet", "b0a0fa008148f102321cdaa7ca38fb0ddd0239d1")
EPSANET = Repository("murufeng/EPSANet", "9955041a1db4591fae080d2e6edb25e2a2914d47")


@dataclass(frozen=True)
class Recipe:
    """How one file of arrays is made.

    Args:
        number: Added to the first seed.
        repository: Where the code is.
        meta: What the file says about itself.
        build: Makes the module from the definitions that `files` names.
        files: Path in the repository → the definitions wanted from it. Empty for a transcription.
        shape: The input's.
        apply: Calls the module, where a plain call will not do.
        extra: Further arrays to store.
    """

    number: int
    repository: Repository
    meta: dict[str, Any]
    build: Callable[[dict[str, Any]], nn.Module]
    files: dict[str, tuple[str, ...]] = field(default_factory=dict)
    shape: tuple[int, ...] = FEATURE_MAP
    apply: Callable[[nn.Module, Tensor], Tensor] = lambda module, x: module(x)
    extra: dict[str, Tensor] = field(default_factory=dict)


class SelectiveKernelUnit(nn.Module):
    """Layers conv2_1/3x3g32 to conv2_1/B_axpy of SKNet's models/sknet50.prototxt, in PyTorch.

    The repository holds models for Caffe alone. The stride belongs to both grouped convolutions,
    as in conv3_1.
    """

    def __init__(self, channels: int, hidden: int, groups: int, stride: int = 1) -> None:
        super().__init__()
        grouped = {"stride": stride, "groups": groups, "bias": False}
        self.conv3 = nn.Conv2d(channels, channels, 3, padding=1, **grouped)  # 3x3g32
        self.bn3 = nn.BatchNorm2d(channels)
        self.conv5 = nn.Conv2d(channels, channels, 3, padding=2, dilation=2, **grouped)  # 3x3g32d2
        self.bn5 = nn.BatchNorm2d(channels)
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=False)  # B_fc1
        self.bnf = nn.BatchNorm2d(hidden)
        self.fc2 = nn.Conv2d(hidden, 2 * channels, 1, bias=False)  # B_fc2

    def forward(self, x: Tensor) -> Tensor:
        near = self.bn3(self.conv3(x)).relu()  # (b, c, h, w)
        far = self.bn5(self.conv5(x)).relu()  # (b, c, h, w)
        pooled = (near + far).mean((2, 3), keepdim=True)  # (b, c, 1, 1)
        scores = self.fc2(self.bnf(self.fc1(pooled)).relu())  # (b, 2c, 1, 1)
        for_near, for_far = scores.unflatten(1, (2, -1)).softmax(1).unbind(1)  # (b, c, 1, 1) each
        return for_near * near + for_far * far


MASK = (torch.rand(2, 49, 49, generator=torch.Generator().manual_seed(FIRST_SEED)) > 0.3).int()

SE_FILE = {"classification/models/imagenet/resnet_se.py": ("SELayer",)}
SGE_FILE = {"classification/models/imagenet/resnet_sge.py": ("SpatialGroupEnhance",)}
CBAM_FILE = {
    "MODELS/cbam.py": (
        "BasicConv",
        "Flatten",
        "ChannelGate",
        "ChannelPool",
        "SpatialGate",
        "CBAM",
    )
}
EA_FILE = {"model_torch.py": ("External_attention",)}
HEADS_FILE = {"multi_head_attention_torch.py": ("Attention",)}
ANNOTATED_FILE = {"the_annotated_transformer.py": ("clones", "attention", "MultiHeadedAttention")}
DA_FILE = {"encoding/nn/da_att.py": ("PAM_Module", "CAM_Module")}
DA_FILES = DA_FILE | {"encoding/models/sseg/danet.py": ("DANetHead",)}
PSA_FILES = {
    "models/SE_weight_module.py": ("SEWeightModule",),
    "models/epsanet.py": ("conv", "PSAModule"),
}

RECIPES = {
    "squeeze_excitation": Recipe(
        1,
        INSIGHT,
        {"channels": 64, "reduction": 16, "bias": True},
        lambda code: code["SELayer"](64, reduction=16),
        SE_FILE,
    ),
    "selective_kernel": Recipe(
        2,
        SKNET,
        {
            "channels": 64,
            "groups": 32,
            "reduction": 16,
            "min_hidden": 32,
            "kernels": [3, "3 dilated 2"],
        },
        lambda _: SelectiveKernelUnit(64, hidden=32, groups=32),
    ),
    "selective_kernel_stride2": Recipe(
        3,
        SKNET,
        {"channels": 64, "stride": 2, "groups": 32, "reduction": 16, "min_hidden": 32},
        lambda _: SelectiveKernelUnit(64, hidden=32, groups=32, stride=2),
    ),
    "spatial_group_enhance": Recipe(
        4,
        INSIGHT,
        {"channels": 64, "groups": 32},
        lambda code: code["SpatialGroupEnhance"](groups=32),
        SGE_FILE,
    ),
    "cbam": Recipe(
        5,
        CBAM,
        {"channels": 64, "reduction": 16, "kernel_size": 7},
        lambda code: code["CBAM"](64, reduction_ratio=16),
        CBAM_FILE,
    ),
    "external_attention": Recipe(
        6,
        EANET,
        {"channels": 64, "memory_size": 64},
        lambda code: code["External_attention"](64),
        EA_FILE,
    ),
    "multi_head_external_attention": Recipe(
        7,
        EANET,
        {"dim": 64, "heads": 8},
        lambda code: code["Attention"](64, num_heads=8),
        HEADS_FILE,
        TOKENS,
    ),
    "multi_head_self_attention": Recipe(
        8,
        ANNOTATED,
        {"dim": 64, "heads": 8},
        lambda code: code["MultiHeadedAttention"](8, 64),
        ANNOTATED_FILE,
        TOKENS,
        lambda module, x: module(x, x, x),
    ),
    "multi_head_self_attention_masked": Recipe(
        9,
        ANNOTATED,
        {"dim": 64, "heads": 8, "mask": "1 = may attend"},
        lambda code: code["MultiHeadedAttention"](8, 64),
        ANNOTATED_FILE,
        TOKENS,
        lambda module, x: module(x, x, x, mask=MASK),
        {"mask": MASK},
    ),
    "dual_attention_position": Recipe(
        10,
        DANET,
        {"channels": 64},
        lambda code: code["PAM_Module"](64),
        DA_FILE,
    ),
    "dual_attention_channel": Recipe(
        11,
        DANET,
        {"channels": 64},
        lambda code: code["CAM_Module"](64),
        DA_FILE,
    ),
    "dual_attention_head": Recipe(
        12,
        DANET,
        {"in_channels": 64, "out_channels": 11, "output": "the fused (first) of the three"},
        lambda code: code["DANetHead"](64, 11, nn.BatchNorm2d),
        DA_FILES,
        apply=lambda module, x: module(x)[0],
    ),
    "pyramid_squeeze_attention": Recipe(
        13,
        EPSANET,
        {
            "channels": 64,
            "kernels": [3, 5, 7, 9],
            "groups": [1, 4, 8, 16],
            "order": "the authors concatenate the four scales in reverse order",
        },
        lambda code: code["PSAModule"](64, 64),
        PSA_FILES,
    ),
    "pyramid_squeeze_attention_stride2": Recipe(
        14,
        EPSANET,
        {"channels": 64, "stride": 2},
        lambda code: code["PSAModule"](64, 64, stride=2),
        PSA_FILES,
    ),
}


# --- Reading the code -----------------------------------------------------------------------------


def source(clones: Path, repository: Repository, path: str) -> str:
    """A file's text at the commit, or one line that says which command is missing."""
    clone = clones / repository.name.partition("/")[2]
    if not clone.is_dir():
        sys.exit(f"{clone} is missing: git clone https://github.com/{repository.name} {clone}")
    command = ["git", "-C", str(clone), "show", f"{repository.commit}:{path}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        fetch = f"git -C {clone} fetch origin {repository.commit}"
        sys.exit(f"{clone} lacks {path} at commit {repository.commit}: {fetch}")
    return done.stdout


def definitions(clones: Path, recipe: Recipe) -> dict[str, Any]:
    """The classes and functions that a recipe names.

    The files' own imports are left out: they ask for the authors' whole training environment. What
    the definitions take from there is given, with PyTorch's batch norm for a synchronised one.
    """
    code = vars(nn) | {
        "torch": torch,
        "nn": nn,
        "F": F,
        "copy": copy,
        "math": math,
        "norm_layer": nn.BatchNorm2d,
        "_BatchNorm": nn.modules.batchnorm._BatchNorm,
    }
    for path, names in recipe.files.items():
        tree = ast.parse(source(clones, recipe.repository, path))
        tree.body = [node for node in tree.body if getattr(node, "name", None) in names]
        exec(compile(tree, path, "exec"), code)
    return code


# --- Drawing and running --------------------------------------------------------------------------


def random_state(shapes: dict[str, tuple[int, ...]], rng: torch.Generator) -> dict[str, Tensor]:
    """Weights and statistics for a state dict of these shapes; no default such as γ = 0 hides."""
    means = [name for name in shapes if name.endswith("running_mean")]
    variances = [name for name in shapes if name.endswith("running_var")]
    counts = [name for name in shapes if name.endswith("num_batches_tracked")]
    parameters = [name for name in shapes if name not in {*means, *variances, *counts}]
    state = {name: random_parameter(shapes[name], rng) for name in parameters}
    for mean, variance in zip(means, variances, strict=True):
        state[mean] = 0.3 * torch.randn(shapes[mean], generator=rng)
        state[variance] = torch.rand(shapes[variance], generator=rng) + 0.5
    state |= {name: torch.tensor(0) for name in counts}
    return {name: state[name] for name in shapes}


def random_parameter(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Matrices and filters keep the size of what passes through; the rest is near one half."""
    values = torch.randn(shape, generator=rng)
    inputs = math.prod(shape[1:])
    return values * (2 / inputs) ** 0.5 if inputs > 1 else values * 0.5 + 0.5


def arrays(recipe: Recipe, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and values, in the order of the stored file."""
    for dropout in (m for m in module.modules() if isinstance(m, nn.modules.dropout._DropoutNd)):
        dropout.p = 0.0
    rng = torch.Generator().manual_seed(FIRST_SEED + recipe.number)
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    state = random_state(shapes, rng)
    module.load_state_dict({name: value.clone() for name, value in state.items()}, assign=True)
    x = torch.randn(recipe.shape, generator=rng)
    with torch.no_grad():
        cotangent = torch.randn(recipe.apply(module.eval(), x).shape, generator=rng)
    yield from ((f"param/{name}", value) for name, value in state.items())
    yield from (("x", x), ("cotangent", cotangent))
    for mode in ("eval", "train"):
        leaf = x.clone().requires_grad_()
        y = recipe.apply(module.train(mode == "train"), leaf)
        y.backward(cotangent)
        yield from ((f"y_{mode}", y.detach()), (f"grad_x_{mode}", leaf.grad))
    yield from recipe.extra.items()


def rebuild(name: str, clones: Path) -> dict[str, np.ndarray]:
    """All that the file of this name holds, computed anew."""
    recipe = RECIPES[name]
    module = recipe.build(definitions(clones, recipe))
    made = {key: value.numpy() for key, value in arrays(recipe, module)}
    return made | {"meta": np.array(json.dumps(recipe.meta))}


# --- Comparing ------------------------------------------------------------------------------------


def same_bits(made: dict[str, np.ndarray], stored: dict[str, np.ndarray]) -> bool:
    """Whether two files hold the same arrays under the same names, in the same order."""
    bits = [{key: (a.dtype, a.shape, a.tobytes()) for key, a in f.items()} for f in (made, stored)]
    return list(made) == list(stored) and bits[0] == bits[1]


def difference(made: dict[str, np.ndarray], stored: dict[str, np.ndarray]) -> float:
    """The largest difference between numbers, infinite where more than numbers differ."""
    kinds = [{key: (a.dtype, a.shape) for key, a in file.items()} for file in (made, stored)]
    if kinds[0] != kinds[1] or made["meta"] != stored["meta"]:
        return math.inf
    return max(float(np.abs(made[key] - stored[key]).max()) for key in made if key != "meta")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clones", type=Path, required=True, help="folder of the repositories")
    parser.add_argument("--out", type=Path, help="write the arrays there; do not compare")
    parser.add_argument("names", nargs="*", metavar="NAME", help="which arrays; all by default")
    options = parser.parse_args()
    if unknown := set(options.names) - set(RECIPES):
        parser.error(f"no recipe for {', '.join(sorted(unknown))}; there are {', '.join(RECIPES)}")
    torch.set_num_threads(THREADS)
    differing = []
    for name in options.names or RECIPES:
        made = rebuild(name, options.clones)
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(options.out / f"{name}.npz", **made)
            print(f"{name}: written")
            continue
        with np.load(FOLDER / f"{name}.npz") as file:
            stored = dict(file)
        gap = difference(made, stored)
        equal = same_bits(made, stored)
        print(f"{name}: {'equal, bit for bit' if equal else f'differs by up to {gap:.1e}'}")
        if gap > ROUNDING:
            differing.append(name)
    if differing:
        sys.exit(f"more than rounding: {', '.join(differing)}")


if __name__ == "__main__":
    main()
