"""Random options and inputs: the documented result, or an error that names the argument.

50 of each module here; 1000 by `pytest tests/test_fuzz.py --hypothesis-profile=thorough`.
Not tried: sizes that no memory holds, and weights of another floating-point type than the input's,
of which PyTorch's own layers speak.
"""

import math
import re
import traceback
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st
from torch import nn

import attn_course
from cases import MODULES, NETWORKS, create_network, plain, plain_class, randomise

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SIDES = st.integers(1, 9)
LARGEST_BUILT = 4096  # wider modules are built on the meta device, and get no input
activations = st.sampled_from([nn.Sigmoid, nn.Hardsigmoid, nn.Tanh])

strange_values = st.one_of(
    st.integers(-2, 70),
    st.sampled_from([None, True, False, 2.0, 2.5, -1.0, math.nan, math.inf, 1e-50]),
    st.sampled_from(["", "8", "sigmoid", b"8", (), (3, 5), [4], {4}, {"a": 1}, 1j, int, object()]),
    st.sampled_from([(2.0, 3.0), (0, 0, 0, 0), ("1", "4"), (None,), [math.nan] * 4, ("a",) * 4]),
    st.builds(lambda: (number for number in (3, 5))),
    st.builds(lambda: iter([1, 2, 3, 4])),
    st.builds(lambda: torch.tensor(4)),
    st.builds(lambda: torch.ones(2)),
    st.builds(lambda: np.int64(4)),
    st.builds(lambda: np.float32(0.5)),
    st.builds(nn.Sigmoid),
    st.sampled_from([torch.sigmoid, nn.Linear, len, lambda: 3, lambda channels: None]),
)


def divisors(number):
    return st.sampled_from([n for n in range(1, number + 1) if number % n == 0])


# Options that fit each other, by argument. `draw` draws one of what the strategy can give.


def cbam(draw, c):
    orders = ["channel-spatial", "spatial-channel", "parallel"]
    return {
        "reduction": draw(st.integers(1, c)),
        "kernel_size": draw(st.sampled_from([1, 3, 7, 11])),
        "batch_norm": draw(st.booleans()),
        "order": draw(st.sampled_from(orders)),
    }


def dual_attention(draw, c):
    return {
        "reduction": draw(st.integers(1, c)),
        "dissimilar": draw(st.booleans()),
        "chunk": draw(st.integers(1, 30)),
    }


def dual_attention_head(draw, c):
    width = draw(st.integers(1, 12))
    return {
        "num_classes": draw(st.integers(1, 7)),
        "width": width,
        "dropout": draw(st.floats(0, 0.9)),
        **dual_attention(draw, width),
    }


def external_attention(draw, c):
    return {"memory_size": draw(st.integers(1, 70)), "bias": draw(st.booleans())}


def multi_head_external_attention(draw, c):
    return {
        "num_heads": draw(divisors(c)),
        "memory_size": draw(st.integers(1, 70)),
        "expansion": draw(st.integers(1, 5)),
        "bias": draw(st.booleans()),
    }


def multi_head_self_attention(draw, c):
    return {
        "num_heads": draw(divisors(c)),
        "bias": draw(st.booleans()),
        "dropout": draw(st.floats(0, 0.9)),
    }


def pyramid_squeeze_attention(draw, c):
    scales = draw(st.integers(1, 5))
    width = draw(st.integers(1, 8))
    common = math.gcd(c, width)
    return {
        "out_channels": scales * width,
        "kernels": tuple(draw(st.sampled_from([1, 3, 5, 9])) for _ in range(scales)),
        "groups": [draw(divisors(common)) for _ in range(scales)],
        "stride": draw(st.integers(1, 3)),
        "reduction": draw(st.integers(1, width)),
        "reverse": draw(st.booleans()),
        "gate_activation": draw(activations),
    }


def selective_kernel(draw, c):
    out_channels = draw(st.integers(1, 24))
    return {
        "out_channels": out_channels,
        "paths": draw(st.integers(2, 4)),
        "stride": draw(st.integers(1, 3)),
        "groups": draw(divisors(math.gcd(c, out_channels))),
        "reduction": draw(st.integers(1, 40)),
        "min_hidden": draw(st.integers(1, 40)),
    }


def spatial_group_enhance(draw, c):
    return {"groups": draw(divisors(c)), "eps": draw(st.floats(1e-5, 10))}


def squeeze_excitation(draw, c):
    return {
        "reduction": draw(st.integers(1, c)),
        "bias": draw(st.booleans()),
        "gate_activation": draw(activations),
    }


def resnet(draw, c):
    bottleneck = draw(st.booleans())
    gate = partial(plain_class("SqueezeExcitation"), reduction=2)
    head = draw(st.sampled_from([None, gate]))
    return {
        "depths": draw(st.sampled_from([(1, 1, 1, 1), [2, 1, 1, 2]])),
        "num_classes": draw(st.integers(1, 7)),
        "in_channels": c,
        "planes": draw(st.sampled_from([(4, 4, 4, 4), [2, 4, 6, 8]])),
        "stem": draw(st.sampled_from(["imagenet", "small"])),
        "gate": draw(st.sampled_from([None, gate])),
        "stages": draw(st.sampled_from([(1,), [2, 4], (1, 2, 3, 4)])),
        "head": head,
        "head_width": draw(st.sampled_from([None, 6])) if head else None,
        "bottleneck": bottleneck,
        **({"width_per_group": 64, "groups": 2, "stride_in_1x1": True} if bottleneck else {}),
    }


def network(draw, c):
    name = draw(st.sampled_from(sorted(NETWORKS)))
    attention = name.partition("resnet")[0] or None
    return NETWORKS[name][0].options | {"attention": attention, "in_channels": c}


OPTIONS = {
    "CBAM": cbam,
    "DualAttention": dual_attention,
    "DualAttentionHead": dual_attention_head,
    "ExternalAttention": external_attention,
    "MultiHeadExternalAttention": multi_head_external_attention,
    "MultiHeadSelfAttention": multi_head_self_attention,
    "PyramidSqueezeAttention": pyramid_squeeze_attention,
    "ResNet": resnet,
    "SelectiveKernel": selective_kernel,
    "SpatialGroupEnhance": spatial_group_enhance,
    "SqueezeExcitation": squeeze_excitation,
    "create_network": network,
}
NETWORK_MAKERS = ("ResNet", "create_network")
every_module = pytest.mark.parametrize("name", OPTIONS)


def maker(name):
    if name == "create_network":
        return create_network
    return getattr(plain("networks"), name) if name in NETWORK_MAKERS else plain_class(name)


def fitting_options(draw, name):
    """The number of channels, and all arguments."""
    channels = draw(st.integers(1, 24))
    own = {} if name in NETWORK_MAKERS else {"channels": channels}
    return channels, own | OPTIONS[name](draw, channels)


def map_shape(name, channels, draw):
    b, h, w = draw(st.integers(0, 3)), draw(SIDES), draw(SIDES)
    tokens = name in MODULES and MODULES[name][0].tokens
    return (b, h * w, channels) if tokens else (b, channels, h, w)


def values(shape, dtype, draw):
    """Random numbers, of any size and memory layout."""
    scale = draw(st.sampled_from([1.0, 0.0, 1e-30, 100.0]))
    seed = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    x = (scale * torch.randn(shape, generator=seed, dtype=torch.float64)).to(dtype)
    layout = draw(st.sampled_from(["contiguous", "last", "strided", "expanded"]))
    if layout == "last":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "strided":
        return x.repeat_interleave(2, dim=-1)[..., ::2]
    return x[..., :1].expand(shape) if layout == "expanded" else x


def expected_shape(name, options, x):
    b, *_ = x.shape
    if "num_classes" in options:
        return (b, options["num_classes"], *(x.shape[2:] if name not in NETWORK_MAKERS else ()))
    if x.ndim == 3:
        return tuple(x.shape)
    stride, out_channels = options.get("stride", 1), options.get("out_channels", x.shape[1])
    return (b, out_channels, *(-(-side // stride) for side in x.shape[2:]))


def is_documented(error, arguments):
    """Whether the package itself raised it, and it names an argument."""
    raised_by = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    names = "|".join([*arguments, "x", "keys", "values", "mask", "option", "gate", "conv", "head"])
    return (
        isinstance(error, ValueError | TypeError)
        and raised_by.parent == Path(attn_course.__file__).parent
        and re.search(rf"\b({names})\b", str(error)) is not None
    )


def result_or_documented_error(call, arguments):
    """What the call returns, or None where it refuses in the documented way."""
    try:
        return call()
    except Exception as error:
        event(type(error).__name__)
        if not is_documented(error, arguments):
            raise
        return None


@every_module
@given(data=st.data())
def test_fitting_options_and_inputs_give_what_is_documented(name, data):
    channels, options = fitting_options(data.draw, name)
    module = randomise_modestly(maker(name)(**options))
    dtype = data.draw(st.sampled_from(DTYPES))
    x = values(map_shape(name, channels, data.draw), dtype, data.draw)
    before = x.clone()
    module = module.to(dtype).eval()
    y = module(x)
    assert y.shape == expected_shape(name, options, x)
    assert y.dtype == dtype
    assert y.isfinite().all()
    assert torch.equal(module(x), y)
    if name in MODULES:
        for part in flattened(module.attention(x)):
            assert part.isfinite().all()
            assert part.dtype == dtype
            assert len(part) == len(x)
    if len(x):
        one_image_does_not_reach_another(module, x, data.draw)
    assert torch.equal(x, before)
    if name in NETWORK_MAKERS and len(x) == 1:
        return  # batch norm itself refuses the single value of a small map, by PyTorch's words
    training = result_or_documented_error(lambda: module.train()(x), options)
    if training is None:
        assert len(x) < 2, "refused, but large enough for batch norm"
    else:
        for part in flattened(training):
            assert part.shape == y.shape
            assert part.dtype == dtype
            assert part.isfinite().all()
    assert torch.equal(x, before)


def randomise_modestly(module):
    """Random weights, so that no zero hides a mistake; a network keeps the size of its own."""
    if isinstance(module, plain("networks").ResNet):
        return module
    return randomise(module)


def flattened(attended):
    return [attended] if isinstance(attended, torch.Tensor) else list(attended)


def one_image_does_not_reach_another(module, x, draw):
    """Spoils one image, in part or wholly, and looks at the others."""
    ill = draw(st.integers(0, len(x) - 1))
    well = [index for index in range(len(x)) if index != ill]
    spoilt = x.clone(memory_format=torch.contiguous_format)
    expected = module(spoilt)[well]  # in the same layout, so that it is rounded alike
    numbers = spoilt[ill].view(-1)
    number = draw(st.sampled_from([math.nan, math.inf, -math.inf, torch.finfo(x.dtype).max]))
    numbers[draw(st.sampled_from([slice(None), 0, len(numbers) - 1]))] = number
    torch.testing.assert_close(module(spoilt)[well], expected)


@every_module
@given(data=st.data())
def test_strange_options_are_refused_by_name(name, data):
    channels, options = fitting_options(data.draw, name)
    strange = data.draw(st.lists(st.sampled_from(sorted(options)), min_size=1, max_size=2))
    for argument in strange:
        many_layers = argument in ("paths", "depths", "expansion")
        wide = st.nothing() if many_layers else st.sampled_from([10**6, 10**8])
        options[argument] = data.draw(strange_values | wide)
    wide = any(isinstance(v, int) and v > LARGEST_BUILT for v in options.values())
    # In a network a mechanism may complain, of an argument of its own.
    arguments = [*options, "reduction", "groups"] if name in NETWORK_MAKERS else options
    with torch.device("meta" if wide else "cpu"):
        module = result_or_documented_error(lambda: maker(name)(**options), arguments)
    if module is not None and not wide:
        channels = options.get("channels", options.get("in_channels", channels))
        x = values(map_shape(name, int(channels), data.draw), torch.float32, data.draw)
        y = result_or_documented_error(lambda: module.eval()(x), options)
        assert y is not None, "accepted at first, and refused later"
        assert y.dtype == x.dtype
        assert len(y) == len(x)


strange_inputs = st.one_of(
    st.sampled_from([None, 3, 2.5, "x", [[[[1.0]]]], np.ones((1, 4, 2, 2), np.float32), object()]),
    st.builds(lambda: (row for row in [torch.ones(4, 2, 2)])),
)


@every_module
@given(data=st.data())
def test_strange_inputs_are_refused_by_name(name, data):
    channels, options = fitting_options(data.draw, name)
    module = maker(name)(**options).train(data.draw(st.booleans()))
    integers = st.sampled_from([torch.uint8, torch.int64, torch.bool, torch.complex64])
    shape = list(map_shape(name, channels, data.draw))
    kind = data.draw(st.sampled_from(["object", "dtype", "channels", "dimensions", "no position"]))
    if kind == "object":
        x = data.draw(strange_inputs)
    elif kind == "dtype":
        x = torch.ones(shape, dtype=data.draw(integers))
    else:
        if kind == "channels":
            shape[1 if len(shape) == 4 else 2] += data.draw(st.sampled_from([-1, 1, 100]))
        elif kind == "dimensions":
            shape = shape[: data.draw(st.integers(0, len(shape) - 1))] or [*shape, 1]
        else:
            shape[data.draw(st.integers(2, 3)) if len(shape) == 4 else 1] = 0
        x = torch.ones(shape)
    looks = [module, module.attention] if name in MODULES else [module]
    for look in looks:
        result = result_or_documented_error(lambda look=look: look(x), ["x"])
        assert result is None, f"{kind}: accepted"


@given(data=st.data())
def test_strange_keys_values_and_masks(data):
    draw = data.draw
    channels, options = fitting_options(draw, "MultiHeadSelfAttention")
    module = randomise(plain_class("MultiHeadSelfAttention")(**options)).eval()
    b, n, m = draw(st.integers(1, 3)), draw(SIDES), draw(SIDES)
    x, keys = torch.randn(b, n, channels), torch.randn(b, m, channels)
    heads = options["num_heads"]
    others = st.one_of(
        st.none(),
        st.just(keys),
        strange_inputs,
        st.sampled_from([torch.ones(b, m + 1, channels), torch.ones(b + 1, m, channels)]),
        st.sampled_from([torch.ones(b, m, channels, dtype=torch.int64), torch.ones(m, channels)]),
    )
    sides = [draw(st.sampled_from([1, whole, whole + 1])) for whole in (b, heads, n, m)]
    shape = sides[draw(st.integers(0, 4)) :]
    masks = st.one_of(
        st.none(),
        strange_inputs,
        st.builds(lambda: torch.rand(shape) > 0.5),
        st.builds(lambda: torch.zeros(shape).masked_fill(torch.rand(shape) > 0.5, -math.inf)),
        st.builds(lambda: torch.ones(shape, dtype=torch.int64)),
    )
    arguments = (x, draw(others), draw(others))
    mask = draw(masks)
    y = result_or_documented_error(lambda: module(*arguments, mask=mask), ["x"])
    if y is not None:
        assert y.shape == x.shape
        assert y.isfinite().all()


@given(data=st.data())
def test_create_attention(data):
    networks = plain("networks")
    name = data.draw(st.sampled_from(attn_course.list_attentions()))
    names = st.one_of(st.just(name), strange_values)
    options = data.draw(st.dictionaries(st.sampled_from(["reduction", "groups", "x"]), st.just(1)))
    channels = data.draw(st.just(64) | strange_values)
    module = result_or_documented_error(
        lambda: networks.create_attention(data.draw(names), channels, **options),
        ["name", "channels", *options],
    )
    if module is not None:
        shape = (2, int(channels), data.draw(SIDES), data.draw(SIDES))
        assert module.eval()(torch.ones(shape)).shape == shape


def test_every_module_is_covered():
    public = {name for name in attn_course.__all__ if isinstance(getattr(attn_course, name), type)}
    assert public <= set(OPTIONS), "add its options to OPTIONS of tests/test_fuzz.py"
