"""What every exported module promises, whatever its mechanism, and what its source looks like.

The uses that it is put to, from autocast to two processes, are in test_uses.py.
"""

import ast
import inspect
import re
from dataclasses import replace

import jaxtyping
import pytest
import torch

import attn_course
from cases import MODULES, construct, example, randomise

# They take images and return scores: no mechanism. tests/test_networks.py is about them.
OF_IMAGES = {"ResNet"}
SIZES = [(7, 7), (5, 8), (1, 1), (1, 6), (16, 16)]

every_case = pytest.mark.parametrize(
    ("name", "case"),
    [(name, case) for name, cases in MODULES.items() for case in cases],
    ids=lambda value: value if isinstance(value, str) else "",
)


def build(name, case):
    """A module with random weights, and with the shape checks of these tests."""
    torch.manual_seed(0)
    return randomise(getattr(attn_course, name)(case.channels, **case.options))


def test_every_public_module_is_covered():
    public = {n for n in attn_course.__all__ if isinstance(getattr(attn_course, n), type)}
    assert public - OF_IMAGES == set(MODULES), "list the module in MODULES of tests/cases.py"


@every_case
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("b", [1, 3])
def test_any_size_and_a_batch_of_one(name, case, b, size, training):
    x = example(case, b=b, h=size[0], w=size[1])
    module = build(name, case).train(training)
    compared = b * size[0] * size[1] if case.positions_count else b
    if training and compared < case.smallest_training_batch:
        with pytest.raises(ValueError, match=rf"b={b} in training mode.*eval\(\)"):
            module(x)
        return
    y = module(x)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert y.isfinite().all()


@every_case
def test_an_empty_batch_stays_empty(name, case):
    x = example(case, b=0)
    assert build(name, case).eval()(x).shape == x.shape


@every_case
def test_an_image_does_not_depend_on_its_batch(name, case):
    module, x = build(name, case).eval(), example(case, b=3)
    torch.testing.assert_close(module(x)[:1], module(x[:1]))


@every_case
def test_memory_layout_changes_nothing(name, case):
    module, x = build(name, case).eval(), example(case, w=10)
    expected = module(x)
    strided = x.repeat_interleave(2, dim=-1)[..., ::2]
    assert not strided.is_contiguous()
    torch.testing.assert_close(module(strided), expected)


@every_case
def test_every_parameter_gets_a_gradient(name, case):
    module = build(name, case)
    x = example(case).requires_grad_()
    module(x).square().sum().backward()
    leaves = [("x", x), *module.named_parameters()]
    for leaf_name, leaf in leaves:
        assert leaf.grad is not None, leaf_name
        assert leaf.grad.abs().sum() > 0 or leaf_name in case.without_effect, leaf_name
    largest = max(leaf.grad.abs().max() for _, leaf in leaves)
    for leaf_name in case.without_effect:  # nothing but rounding errors
        assert module.get_parameter(leaf_name).grad.abs().max() < 1e-5 * largest, leaf_name


@every_case
def test_gradcheck(name, case):
    module = build(name, case).double().eval()
    x = example(case, b=1, h=2, w=3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(module, x, fast_mode=True)


@every_case
def test_attention_is_one_weight_for_each_image_and_depends_on_it(name, case):
    module, x = build(name, case).eval(), example(case, b=3)
    together = attended(module, x)
    for image in range(3):
        for weights, of_one in zip(together, attended(module, x[image, None]), strict=True):
            assert weights.isfinite().all()
            assert weights.shape == (3, *of_one.shape[1:])
            torch.testing.assert_close(weights[image, None], of_one)
    for weights in together:
        assert weights.min() >= 0
        assert weights.max() <= 1
        assert not torch.equal(weights[0], weights[1])


def attended(module, x):
    """What the module attends with, as a list also where it is one tensor."""
    weights = module.attention(x)
    return [weights] if isinstance(weights, torch.Tensor) else list(weights)


@every_case
def test_the_input_is_left_alone(name, case):
    x = example(case)
    before = x.clone()
    module = build(name, case)
    module(x), module.attention(x)
    assert torch.equal(x, before)


@every_case
def test_nothing_is_printed_and_no_random_number_is_drawn(name, case, capfd):
    module, x = build(name, case).eval(), example(case)
    state = torch.get_rng_state()
    module(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert capfd.readouterr() == ("", "")


@every_case
def test_another_number_of_channels_is_refused(name, case):
    wrong = example(replace(case, channels=case.channels + 1))
    with pytest.raises(
        ValueError, match=rf"x has shape {re.escape(str(tuple(wrong.shape)))}; pass"
    ):
        build(name, case)(wrong)


@every_case
def test_another_number_of_dimensions_is_refused(name, case):
    with pytest.raises(ValueError, match="x has shape"):
        construct(name, case)(example(case)[0])


@pytest.mark.parametrize("name", MODULES)
def test_the_shape_annotations_are_checked_in_these_tests(name):
    """Without the import hook, a wrong annotation would pass unnoticed."""
    case = MODULES[name][0]
    with pytest.raises(jaxtyping.TypeCheckError):
        build(name, case)(example(case)[0])


@pytest.mark.parametrize("name", MODULES)
def test_the_source_has_no_shortcuts(name):
    source = inspect.getsource(inspect.getmodule(getattr(attn_course, name)))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            assert node.attr != "data", "`.data` hides a change from autograd"
        if isinstance(node, ast.Name):
            assert node.id not in ("print", "np", "numpy")


@pytest.mark.parametrize("name", MODULES)
def test_the_docstring_is_complete(name):
    doc = inspect.getdoc(getattr(attn_course, name))
    for part in ("arXiv:", "Args:", "Shape:", "Raises:"):
        assert part in doc, f"{name}'s docstring lacks {part}"
    parameters = list(inspect.signature(getattr(attn_course, name)).parameters)
    for parameter in parameters:
        assert f"    {parameter}: " in doc, f"{name}'s docstring does not explain {parameter}"
