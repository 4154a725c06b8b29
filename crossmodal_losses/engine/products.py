"""The matrix products, which are the platform's own."""

import torch
from torch import Tensor

from crossmodal_losses.similarity import HALF


def can_widen(x: Tensor, y: Tensor) -> bool:
    """Whether bfloat16 rows can be multiplied as they are, into float32: on CUDA, from torch 2.8 on."""
    return x.is_cuda and x.dtype == y.dtype == torch.bfloat16 and "dtype_out" in torch.ops.aten.addmm.overloads()


def multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """``out = a @ b``; half precision is accumulated, and returned, in float32."""
    if a.dtype in HALF:
        torch.mm(a, b, out_dtype=out.dtype, out=out)
    else:
        torch.mm(a, b, out=out)


def accumulate(total: Tensor, a: Tensor, b: Tensor) -> None:
    """``total += a @ b``, likewise."""
    if a.dtype in HALF:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        torch.addmm(total, a, b, out=total)  # in place, but an operator that the counters of torch know
