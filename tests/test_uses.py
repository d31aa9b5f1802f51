"""The table of uses, but for what compiles or exports: see uses.py for what may fail, and how."""

import copy
import io
import itertools
import pickle

import pytest
import torch
import torch.multiprocessing
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import test_compilers
import two_processes
from inserted import INSERTED
from uses import LIMITS, MODULE_COLUMNS, NETWORK_COLUMNS, OLD_TORCH, PAGE, USES, Subject, page, use

# torch.jit is on its way out and says so; and it cannot see that a check of shapes is one.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning"
)

# The error of half precision: of a module, and of a network, where it adds up over the layers.
ROUNDING = {False: 0.05, True: 0.2}


def assert_near(actual, expected, share):
    """No number is further off than a share of the largest."""
    error = (actual.double() - expected.double()).abs().max()
    assert error <= share * expected.abs().max(), f"{error / expected.abs().max():.2g}"


def gradients(module, x):
    """The result, and the gradients of a loss in training mode, x's first."""
    leaf = x.clone().requires_grad_()
    torch.manual_seed(0)  # for dropout
    y = module.train()(leaf)
    return y, torch.autograd.grad(y.square().sum(), [leaf, *module.parameters()], allow_unused=True)


@use("eager")
def test_eager(subject):
    for case in subject.cases:
        module, x = subject.build(case), subject.example(case)
        assert module(x).isfinite().all()
        y, found = gradients(module, x)
        assert y.isfinite().all()
        for name, gradient in zip(["x", *dict(module.named_parameters())], found, strict=True):
            assert gradient is not None, f"{name} has no gradient"
            assert gradient.isfinite().all(), name


@use("autocast bfloat16")
def test_autocast_bfloat16(subject):
    autocast(subject, torch.bfloat16)


@use("autocast float16")
def test_autocast_float16(subject):
    autocast(subject, torch.float16)


def autocast(subject, dtype):
    for case in subject.cases:
        module, x = subject.build(case), subject.example(case)
        with torch.autocast("cpu", dtype=dtype):
            y = module(x)
        assert_near(y, module(x), ROUNDING[subject.is_network])
        with torch.autocast("cpu", dtype=dtype):
            _, found = gradients(module, x)
        assert all(gradient.isfinite().all() for gradient in found if gradient is not None)


@use("float64")
def test_float64(subject):
    other_weights(subject, torch.float64, 1e-4)


@use("bfloat16")
def test_bfloat16(subject):
    other_weights(subject, torch.bfloat16, ROUNDING[subject.is_network])


@use("float16")
def test_float16(subject):
    other_weights(subject, torch.float16, ROUNDING[subject.is_network])


def other_weights(subject, dtype, share):
    for case in subject.cases:
        module, x = subject.build(case), subject.example(case)
        reference = torch.float32 if dtype == torch.float64 else torch.float64
        expected = copy.deepcopy(module).to(reference)(x.to(reference))
        y = module.to(dtype)(x.to(dtype))
        assert y.dtype == dtype
        assert_near(y, expected, share)


@use("channels_last")
def test_channels_last(subject):
    for case in subject.cases:
        module, x = subject.build(case), subject.example(case, w=10)
        expected = module(x)
        last = []  # the module's result, or the network's last feature map
        hooked = module.layer4 if subject.is_network else module
        hooked.register_forward_hook(lambda _part, _x, y, last=last: last.append(y))
        y = module.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        assert_near(y, expected, 1e-4)
        assert last[0].is_contiguous(memory_format=torch.channels_last)


@use("feature extraction")
def test_feature_extraction(subject, timm):
    from torchvision.models.feature_extraction import (
        create_feature_extractor,
        get_graph_node_names,
    )

    for case in subject.cases:
        module, x = subject.build(case), subject.example(case)
        names, _ = get_graph_node_names(module)
        wanted = ["layer2", "layer4"] if subject.is_network else names[-2:]
        found = create_feature_extractor(module, [*wanted, names[-1]])(x)
        assert_near(found[names[-1]], module(x), 1e-5)
        if subject.is_network:
            assert found["layer2"].shape == (2, found["layer4"].shape[1], 8, 8)


@use("torch.jit.trace")
def test_jit_trace(subject):
    for case in subject.cases:
        module, x = subject.build(case), subject.example(case)
        traced = torch.jit.trace(module, x)
        other = -x
        assert_near(traced(other), module(other), 1e-5)


@use("forward hooks")
def test_forward_hooks(subject):
    for case in subject.cases:
        module, x = subject.build(case), subject.example(case)
        silent = {name for name, part in module.named_modules() if type(part) is not nn.ModuleList}
        for name, part in module.named_modules():
            part.register_forward_hook(lambda *_, name=name, silent=silent: silent.discard(name))
        module(x)
        assert not silent, f"no hook ran on {sorted(silent)}"


@use("deepcopy")
def test_deepcopy(subject):
    for case in subject.cases:
        module, x = subject.build(case), subject.example(case)
        module(x)  # nothing that a forward leaves behind is in the way
        assert torch.equal(copy.deepcopy(module)(x), module(x))


@use("pickle")
def test_pickle(subject):
    for case in subject.cases:
        module, x = subject.build(case), subject.example(case)
        assert torch.equal(pickle.loads(pickle.dumps(module))(x), module(x))


@use("torch.save")
def test_torch_save(subject):
    for case in subject.cases:
        module, x = subject.build(case), subject.example(case)
        file = io.BytesIO()
        torch.save(module.state_dict(), file)
        file.seek(0)
        loaded_gives_the_same(subject, case, torch.load(file, weights_only=True), module(x))


@use("safetensors")
def test_safetensors(subject, tmp_path):
    from safetensors.torch import load_file, save_file

    for case in subject.cases:
        module, x = subject.build(case), subject.example(case)
        save_file(module.state_dict(), tmp_path / "weights.safetensors")
        weights = load_file(tmp_path / "weights.safetensors")
        loaded_gives_the_same(subject, case, weights, module(x))


def loaded_gives_the_same(subject, case, state, expected):
    torch.manual_seed(1)
    other = subject.construct(case).eval()
    other.load_state_dict(state, strict=True)
    assert torch.equal(other(subject.example(case)), expected)


@use("meta")
def test_meta(subject):
    for case in subject.cases:
        module, x = subject.build(case), subject.example(case)
        with torch.device("meta"):
            other = subject.construct(case).eval()
        assert other(x.to("meta")).shape == module(x).shape
        other.to_empty(device="cpu").load_state_dict(module.state_dict(), strict=True)
        assert torch.equal(other(x), module(x))


@use("checkpoint")
def test_checkpoint(subject):
    for case in subject.cases:
        module, x = subject.build(case), subject.example(case)
        expected = gradients(copy.deepcopy(module), x)
        forward = module.forward
        module.forward = lambda x, forward=forward: checkpoint(forward, x, use_reentrant=False)
        torch.testing.assert_close(gradients(module, x), expected)


@use("vmap")
def test_vmap(subject):
    for case in subject.cases:
        assert_vmap_works(subject, case)


def assert_vmap_works(subject, case):
    module = subject.build(case).double()
    x = subject.example(case, dtype=torch.float64)
    other = copy.deepcopy(module)
    for parameter in other.parameters():
        parameter.detach().mul_(0.9)
    state = stack_module_state([module, other])

    def apply(parameters, buffers, x):
        return functional_call(module, (parameters, buffers), (x,))

    both = vmap(apply, in_dims=(0, 0, None))(*state, x)  # (2, b, …)
    assert_near(both, torch.stack([module(x), other(x)]), 1e-4)

    def loss(parameters, image):
        return functional_call(module, parameters, (image[None],)).square().sum()

    parameters = {name: p.detach() for name, p in module.named_parameters()}
    of_each = vmap(grad(loss), in_dims=(None, 0), randomness="error")(parameters, x)
    of_last = grad(loss)(parameters, x[-1])
    for name, gradient in of_last.items():
        torch.testing.assert_close(of_each[name][-1], gradient, rtol=1e-5, atol=1e-8)


@use("second derivatives")
def test_second_derivatives(subject):
    for case in subject.cases:
        module = subject.build(case).double()
        x = subject.example(case, b=1, h=4, w=4, dtype=torch.float64).requires_grad_()
        assert torch.autograd.gradgradcheck(module, x, fast_mode=True)


@pytest.mark.parametrize("name", ["MultiHeadSelfAttention", "mhsa"])
def test_second_derivatives_without_the_fused_kernel(name):
    with sdpa_kernel(SDPBackend.MATH):
        test_second_derivatives.check(Subject(name))


@pytest.mark.parametrize("name", ["CBAM", "cbam"])
def test_a_trace_without_gradients(name):
    with torch.no_grad():
        test_jit_trace.check(Subject(name))


def test_gradients_of_each_sample_with_large_chunks():
    subject = Subject("DualAttention")
    assert_vmap_works(subject, subject.cases[0])


@pytest.fixture(scope="module")
def side_by_side(tmp_path_factory):
    """What two processes report of every module and network: an error, or nothing."""
    folder = tmp_path_factory.mktemp("two_processes")
    torch.multiprocessing.spawn(two_processes.run, args=(folder,), nprocs=2)
    return two_processes.reports(folder)


@use("DDP")
def test_ddp(subject, side_by_side):
    if error := side_by_side["DDP"][subject.name]:
        raise RuntimeError(error)


@use("FSDP2")
def test_fsdp2(subject, side_by_side):
    if error := side_by_side["FSDP2"][subject.name]:
        raise RuntimeError(error)


@pytest.mark.parametrize("subject", INSERTED, ids=lambda subject: subject.name)
def test_what_is_inserted_trains_side_by_side(subject, side_by_side):
    for errors in side_by_side.values():
        assert errors[subject.name] == ""


def test_every_use_has_a_test():
    tests = [*globals().items(), *vars(test_compilers).items()]
    assert {test.use for _, test in tests if hasattr(test, "check")} == set(USES)
    columns = {subject.name for subject in MODULE_COLUMNS + NETWORK_COLUMNS}
    assert set(LIMITS) <= set(itertools.product(USES, columns))


@pytest.mark.skipif(OLD_TORCH, reason="docs/uses.md is about the torch of requirements.txt")
def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page(), "run `.venv/bin/python tests/uses.py`"
