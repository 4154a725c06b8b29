"""Lengths of rows, and the derivative of their normalisation, on CUDA: in one launch each (rows_triton.py)."""

import torch
import triton
from torch import Tensor

from crossmodal_losses.engine import rows_triton as kernels


def _block(D: int) -> int:
    return min(1024, max(16, int(triton.next_power_of_2(D))))


def measure(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse norms of the scaled rows, and the scales, each ``[n]``, as :class:`Statistics` has them."""
    n, D = rows.shape
    inv_norm, scale = rows.new_empty(2, n, dtype=torch.float32).unbind()
    if n:
        with torch.cuda.device_of(rows):  # triton goes by the current device
            kernels.measure[n,](rows, *rows.stride(), inv_norm, scale, D=D, BLOCK=_block(D), num_warps=4)
    return inv_norm, scale


def normalisation_backward(grad: Tensor, rows: Tensor, inv_norm: Tensor, scale: Tensor) -> None:
    """As :meth:`Operand.normalisation_backward`, of all rows that are given."""
    n, D = rows.shape
    if grad.stride(1) != 1:
        raise ValueError(f"expected contiguous rows of a gradient, got strides {grad.stride()}")
    if n:
        with torch.cuda.device_of(rows):
            strides = grad.stride(0), rows, *rows.stride()
            kernels.differentiate[n,](grad, *strides, inv_norm, scale, D=D, BLOCK=_block(D), num_warps=4)
