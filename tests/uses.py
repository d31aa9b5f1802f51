"""The table of docs/uses.md: what the modules and networks are used for, and what does not work.

`@use` makes a test of each module and network. What LIMITS names must fail as it says there: so
the table changes as soon as the world does. `python tests/uses.py` writes the page anew.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.fx
from packaging.version import Version

from cases import HEAD, MODULES, NETWORKS, construct, example, randomise

PAGE = Path(__file__).parents[1] / "docs/uses.md"

USES = {
    "eager": "forward in evaluation, forward and backward in training: finite, with a gradient to "
    "every parameter",
    "autocast bfloat16": "`torch.autocast`, compared with float32",
    "autocast float16": "the same",
    "float64": "weights and input in float64, compared with float32",
    "bfloat16": "weights and input in bfloat16, compared with float64",
    "float16": "weights and input in float16, compared with float64",
    "channels_last": "weights and input in `torch.channels_last`: the same result, and a feature "
    "map in that format",
    "compile": "`torch.compile(fullgraph=True)` at two sizes, the second for any size: modules and "
    "ResNet-18 by inductor where a C++ compiler is, further options and networks by aot_eager",
    "export": "`torch.export` with dynamic batch and size, saved to disk and loaded, called at "
    "another size; sides of at least 9 for the networks",
    "ONNX": "`torch.onnx.export(dynamo=True)` with dynamic batch and size, in onnxruntime, at "
    "another size",
    "torch.jit.trace": "traced and called at the same size",
    "feature extraction": "torchvision's `create_feature_extractor`, that is, `torch.fx` tracing",
    "forward hooks": "a hook on each sub-module runs in each forward",
    "deepcopy": "`copy.deepcopy` computes the same",
    "pickle": "`pickle.dumps` and `loads` of the whole module",
    "torch.save": "a state dictionary, loaded with `weights_only=True` and `strict=True`",
    "safetensors": "the same by safetensors",
    "meta": "built on the meta device, `to_empty`, then the weights",
    "checkpoint": "`torch.utils.checkpoint` without re-entry: the same gradients",
    "vmap": "`torch.func`: an ensemble by `functional_call`, and gradients of each sample, in "
    "evaluation",
    "second derivatives": "`gradgradcheck` in float64, in evaluation",
    "DDP": "`DistributedDataParallel`, two processes with gloo, two steps: both get the same "
    "weights",
    "FSDP2": "`fully_shard` of each sub-module with parameters, in the same way, compared with DDP",
}


@dataclass(frozen=True)
class Limit:
    """Why a use does not work, and the error that shows it."""

    reason: str
    error: type[Exception]
    message: str


TOKENS_HAVE_NO_FORMAT = Limit(
    "It takes tokens (b, n, c); `channels_last` is a format of feature maps.",
    RuntimeError,
    "required rank 4 tensor to use channels_last format",
)
NO_SECOND_DERIVATIVE = Limit(
    "The fused attention of PyTorch has no second derivative. Under "
    "`torch.nn.attention.sdpa_kernel(SDPBackend.MATH)` it works.",
    RuntimeError,
    "derivative for aten::_scaled_dot_product.* is not implemented",
)
TRACED_WITH_GRADIENTS = Limit(
    "The maximum has another graph where gradients are wanted, and the trace's own check compares "
    "the two. Under `torch.no_grad()` it works.",
    torch.jit.TracingCheckError,
    "Graphs differed across invocations",
)
IN_CHUNKS = Limit(
    "Above 4 · chunk positions, 1024 by default, `torch.func.grad` fails: it does not support the "
    "checkpoints that save memory there. Pass a larger chunk.",
    RuntimeError,
    "don't yet support saved tensor hooks",
)
KEYS_BECOME_INPUTS = Limit(
    "torch.fx makes an input of `keys`, `values` and `mask`, too, if it traces this module by "
    "itself. Inside a network it works.",
    torch.fx.proxy.TraceError,
    "Proxy object cannot be iterated",
)
LIMITS = {
    ("feature extraction", "MultiHeadSelfAttention"): KEYS_BECOME_INPUTS,
    ("torch.jit.trace", "CBAM"): TRACED_WITH_GRADIENTS,
    ("torch.jit.trace", "cbam"): TRACED_WITH_GRADIENTS,
    ("vmap", "DualAttention"): IN_CHUNKS,
    ("second derivatives", "MultiHeadSelfAttention"): NO_SECOND_DERIVATIVE,
    ("second derivatives", "mhsa"): NO_SECOND_DERIVATIVE,
    ("channels_last", "MultiHeadExternalAttention"): TOKENS_HAVE_NO_FORMAT,
    ("channels_last", "MultiHeadSelfAttention"): TOKENS_HAVE_NO_FORMAT,
}
if OLD_TORCH := Version(torch.__version__) < Version("2.9"):  # the page is about the pinned one
    LIMITS["torch.jit.trace", "DualAttention"] = TRACED_WITH_GRADIENTS


@dataclass(frozen=True)
class Subject:
    """A module or a network, by the name of its column."""

    name: str

    def __str__(self):
        return self.name

    @property
    def cases(self):
        return (MODULES | HEAD | NETWORKS)[self.name]

    @property
    def is_network(self):
        return self.name in NETWORKS

    def construct(self, case):
        return construct(self.name, case)

    def build(self, case=None):
        """A module with random weights, a network with its own, in evaluation."""
        torch.manual_seed(0)
        module = self.construct(case or self.cases[0])
        return (warmed_up(module) if self.is_network else randomise(module)).eval()

    def example(self, case=None, **shape):
        sizes = {"h": 16, "w": 16} if self.is_network else {}
        return example(case or self.cases[0], **sizes | shape)


MODULE_COLUMNS = [Subject(name) for name in MODULES | HEAD]
NETWORK_COLUMNS = [Subject(name) for name in NETWORKS]


def warmed_up(network):
    """Scales that start at 0 get a value, and each batch norm the mean and spread of its input."""
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    norms = [part for part in network.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.randn(8, 3, 16, 16))
    for norm in norms:
        norm.momentum = 0.1
    return network


def use(name):
    """Makes of a check one test for each module and network, which knows what may fail, and how."""
    assert name in USES

    def decorate(check):
        @functools.wraps(check)
        def test(subject, **fixtures):
            limit = LIMITS.get((name, subject.name))
            if limit is None:
                check(subject, **fixtures)
            else:
                with pytest.raises(limit.error, match=limit.message):
                    check(subject, **fixtures)

        test.use, test.check = name, check
        return pytest.mark.parametrize("subject", MODULE_COLUMNS + NETWORK_COLUMNS, ids=str)(test)

    return decorate


def page():
    """The text of docs/uses.md."""
    notes = list(dict.fromkeys(limit.reason for limit in LIMITS.values()))

    def cell(use_name, subject):
        limit = LIMITS.get((use_name, subject.name))
        return "yes" if limit is None else f"[{notes.index(limit.reason) + 1}](#reasons)"

    def table(columns, heads):
        yield f"| | {' | '.join(heads)} |"
        yield "|---" * (len(columns) + 1) + "|"
        for use_name in USES:
            yield f"| {use_name} | {' | '.join(cell(use_name, column) for column in columns)} |"

    gates = {"resnet18": "ResNet-18", "resnet50": "ResNet-50"}
    lines = [
        "# What works",
        "",
        "Each cell is a test of `make test`: tests/test_uses.py and tests/test_compilers.py. A "
        "“yes” works, and gives the same result as the plain forward. A number fails at least in "
        "part, for the reason below the tables, with the error that the test expects. "
        "`python tests/uses.py` writes this page.",
        "",
        "## Modules",
        "",
        *table(MODULE_COLUMNS, [f"`{column}`" for column in MODULE_COLUMNS]),
        "",
        "## Networks",
        "",
        "Of `create_network`, small: 16 channels in each stage, and with a mechanism one basic "
        "block.",
        "",
        *table(NETWORK_COLUMNS, [gates.get(f"{c}", f'"{c}"') for c in NETWORK_COLUMNS]),
        "",
        "## Reasons",
        "",
        *(f"{number}. {reason}" for number, reason in enumerate(notes, start=1)),
        "",
        "## What was tried",
        "",
        *(f"- **{use_name}**: {tried}." for use_name, tried in USES.items()),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
