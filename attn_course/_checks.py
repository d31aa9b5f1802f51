"""Checks of arguments, shared by all modules. This file is written by hand.

A wrong type raises a `TypeError`, a wrong value a `ValueError`. Both name the argument, what was
passed, and what would be valid. Most checks take arguments by name, so that they can say it:
`check_whole(channels=channels)`.
"""

import math
from collections.abc import Mapping, Sequence
from reprlib import repr
from typing import Any, get_args

from torch import Tensor, nn
from torch.fx import Proxy

_LARGEST_DIVISOR_LISTED = 1024


def check_whole(least: int = 1, **numbers: Any) -> None:
    """Requires whole numbers of at least `least`.

    Those of numpy are refused as well: torch.compile and torch.fx stumble over them much later.
    """
    for name, number in numbers.items():
        if not isinstance(number, int) or isinstance(number, bool):
            raise TypeError(f"{name} must be an int, got {_described(number)}")
        if number < least:
            raise ValueError(f"{name} must be at least {least}, got {number}")


def check_each_whole(length: int | None = None, least: int = 1, **sequences: Any) -> None:
    """Requires sequences of whole numbers, of a given length, or of any length but zero."""
    for name, numbers in sequences.items():
        if not isinstance(numbers, Sequence) or isinstance(numbers, str):
            raise TypeError(f"{name} must be a sequence of ints, got {_described(numbers)}")
        if not numbers or (length is not None and len(numbers) != length):
            wanted = "at least one number" if length is None else f"{length} numbers"
            raise ValueError(f"{name} must have {wanted}, got {repr(numbers)}")
        check_whole(least, **{f"{name}[{i}]": number for i, number in enumerate(numbers)})


def check_odd(**sizes: Any) -> None:
    """Requires odd sizes of kernels, which have a middle and keep the size of a padded map."""
    check_whole(**sizes)
    for name, size in sizes.items():
        if size % 2 == 0:
            raise ValueError(f"{name} must be odd, got {size}; pass {size - 1} or {size + 1}")


def check_divides(name: str, divisor: Any, **numbers: Any) -> None:
    """Requires that `divisor`, the argument called `name`, divides all numbers."""
    check_whole(**numbers, **{name: divisor})
    common = math.gcd(*numbers.values())
    if common % divisor:
        listed = range(1, min(common, _LARGEST_DIVISOR_LISTED) + 1)
        fitting = [number for number in listed if common % number == 0]
        dividends = " and ".join(f"{name}={number}" for name, number in numbers.items())
        raise ValueError(f"{name}={divisor} must divide {dividends}; pass one of {fitting}")


def check_multiple(of: int, **numbers: Any) -> None:
    """Requires positive multiples of a whole number."""
    check_whole(**numbers)
    for name, number in numbers.items():
        if number % of:
            above = number - number % of + of
            raise ValueError(f"{name} must be a multiple of {of}, got {number}; pass, say, {above}")


def check_reduction(reduction: Any, **channels: Any) -> None:
    """Requires that channels / reduction, rounded down, leaves at least one channel."""
    check_whole(**channels, reduction=reduction)
    for name, number in channels.items():
        if reduction > number:
            raise ValueError(
                f"reduction={reduction} leaves no hidden channel for {name}={number}; "
                f"pass reduction <= {number}"
            )


def check_positive(least: float = 0.0, **numbers: Any) -> None:
    """Requires finite numbers above 0, and of at least `least`."""
    for name, number in numbers.items():
        _check_real(name, number)
        if not (0 < number < math.inf and number >= least):
            wanted = f"at least {least}" if least else "above 0"
            raise ValueError(f"{name} must be finite and {wanted}, got {number}")


def check_probability(**numbers: Any) -> None:
    """Requires probabilities of dropping something: at least 0, and below 1."""
    for name, number in numbers.items():
        _check_real(name, number)
        if not 0 <= number < 1:
            raise ValueError(f"{name} must be at least 0 and below 1, got {number}")


def check_flag(**flags: Any) -> None:
    """Requires True or False: any other object would count as one of them without a word."""
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{name} must be a bool, got {_described(flag)}")


def check_one_of(literal: Any, **choices: Any) -> None:
    """Requires one of the strings of a `Literal`."""
    for name, choice in choices.items():
        if not isinstance(choice, str):
            raise TypeError(f"{name} must be a str, got {_described(choice)}")
        if choice not in get_args(literal):
            raise ValueError(f"{name} must be one of {get_args(literal)}, got {choice!r}")


def check_factory(**factories: Any) -> None:
    """Requires classes or functions that make a module, not a module made already."""
    for name, factory in factories.items():
        if isinstance(factory, nn.Module) or not callable(factory):
            raise _makes_no_module(name, factory)


def make_module(name: str, factory: Any, *args: Any, **options: Any) -> nn.Module:
    """Returns what a factory makes, the argument called `name`, and requires that to be a module.

    A module itself, or a function like `torch.sigmoid`, is the likely mistake. A complaint from
    inside the factory is passed on.
    """
    check_factory(**{name: factory})
    try:
        module = factory(*args, **options)
    except TypeError as error:
        if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
            raise
        raise _makes_no_module(name, factory) from error
    if not isinstance(module, nn.Module):
        raise _makes_no_module(name, factory)
    return module


def check_mapping(hint: str = "", **mappings: Any) -> None:
    """Requires mappings, such as dicts; a hint ends the error."""
    for name, mapping in mappings.items():
        if not isinstance(mapping, Mapping):
            raise TypeError(f"{name} must be a mapping, got {_described(mapping)}{hint}")


def check_state_dict(state_dict: Any) -> None:
    """Requires a mapping of names to tensors; a model or a whole checkpoint is none."""
    hint = "; pass what the model's state_dict() returns"
    check_mapping(hint, state_dict=state_dict)
    for key, tensor in state_dict.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise TypeError(
                f"state_dict must map names to tensors, got {_described(tensor)} for {key!r}{hint}"
            )


def check_tensor(**tensors: Any) -> None:
    """Requires tensors; what torch.fx puts in their place to trace passes."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) and not is_traced(tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {_described(tensor)}")


def check_feature_map(x: Any, **channels: int) -> None:
    """Requires a floating-point feature map (b, c, h, w) with at least one position.

    Args:
        x: What a module got. What torch.fx puts in its place to trace passes.
        channels: The number of channels, by the name of the argument that fixed it. None may be
            given; then c is any.
    """
    if is_traced(x):
        return
    _check_floating_point("x", x)
    c_fits = x.ndim == 4 and all(x.shape[1] == number for number in channels.values())
    if not c_fits or any(side < 1 for side in x.shape[1:]):
        c = "".join(f"c = {name}={number}" for name, number in channels.items()) or "c >= 1"
        raise ValueError(
            f"x has shape {tuple(x.shape)}; pass (b, c, h, w) with {c}, h >= 1 and w >= 1"
        )


def check_tokens(x: Any, channels: int, name: str = "x") -> None:
    """Requires floating-point tokens (b, n, d) with d = channels, and at least one of them.

    Args:
        x: What a module got. What torch.fx puts in its place to trace passes.
        channels: The width d.
        name: Name of the argument.
    """
    if is_traced(x):
        return
    _check_floating_point(name, x)
    if x.ndim != 3 or x.shape[2] != channels or x.shape[1] < 1:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}; pass (b, n, d) with d = channels={channels} "
            f"and n >= 1, for a feature map x: x.flatten(2).mT"
        )


def check_batch_statistics(norm: nn.Module, x: Tensor, *, over: Sequence[int]) -> None:
    """Requires two values of each channel, where a batch norm computes statistics from them.

    Args:
        norm: A batch norm, or what stands in its place.
        x: What the module got.
        over: The dimensions of x whose values the norm compares.
    """
    # a tuple: the compiler of torch 2.8 knows no union of types
    if is_traced(x) or not isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
        return
    frozen = not norm.training and norm.running_mean is not None
    if not frozen and math.prod(x.shape[dim] for dim in over) < 2:
        larger = " or a larger map," if len(over) > 1 else ""
        raise ValueError(
            f"x has b={x.shape[0]} in training mode, where batch norm needs two values of each "
            f"channel; pass b >= 2{larger} or call eval()"
        )


def is_traced(x: Any) -> bool:
    """Whether x stands for any input, while torch.fx traces, and so has no shape to look at."""
    return isinstance(x, Proxy)


def _makes_no_module(name: str, factory: Any) -> TypeError:
    return TypeError(
        f"{name} must be a class or a function that makes a module, got {_described(factory)}"
    )


def _check_floating_point(name: str, x: Any) -> None:
    check_tensor(**{name: x})
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {x.dtype}")


def _check_real(name: str, number: Any) -> None:
    if not isinstance(number, int | float) or isinstance(number, bool):
        raise TypeError(f"{name} must be a float, got {_described(number)}")


def _described(value: Any) -> str:
    return f"{repr(value)} ({type(value).__name__})"
