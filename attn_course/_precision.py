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
