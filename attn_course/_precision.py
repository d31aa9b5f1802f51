"""The precision in which sums are taken, shared by all modules. This file is written by hand."""

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary


def wide_dtype(x: Tensor) -> torch.dtype:
    """Returns single precision, or x's own where that is higher: for sums of half precision.

    While torch.fx traces, x has no dtype yet: the call becomes a node of the graph.
    """
    if has_torch_function_unary(x):
        return handle_torch_function(wide_dtype, (x,), x)
    return torch.promote_types(x.dtype, torch.float32)


def mean_over(x: Tensor, *dims: int) -> Tensor:
    """Returns the mean of x over some of its dimensions, like `x.mean(dims)`, but trains faster.

    The gradient of `mean` is written out, as large as x. Here autograd divides the gradient of the
    few means, and repeats it over x without storing it.
    """
    count = 1
    for dim in dims:
        count *= x.shape[dim]
    return (x.sum(dims, dtype=wide_dtype(x)) / count).to(x.dtype)
