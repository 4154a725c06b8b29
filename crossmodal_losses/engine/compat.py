"""Every use that the package makes of a private or version-dependent torch API, with the torch versions it is for.

Each is tested in tests/crossmodal_losses/engine/test_compat.py, on the reference torch and on the newest.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from importlib.util import find_spec
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.autograd import forward_ad
from torch.nn.modules.batchnorm import _NormBase

from crossmodal_losses.similarity import HALF

Function = TypeVar("Function", bound=Callable[..., Any])

# Looked for once: looking takes as long as a small loss.
HAS_TRITON = find_spec("triton") is not None

# The base class of torch's batch and instance normalisation layers; private, in torch 2.4 to 2.15.
NormalisationLayer = _NormBase


def is_transformed(*inputs: Tensor | None) -> bool:
    """Return whether this runs under a transformation of torch.func, or an input has a tangent of forward mode.

    torch 2.4 to 2.15 have no public way to ask for either.
    """
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    if forward_ad._current_level < 0:
        return False
    return any(value is not None and forward_ad.unpack_dual(value).tangent is not None for value in inputs)


def is_batched(value: Tensor | None) -> bool:
    """Return whether a tensor is under vmap or another transformation of torch.func, or a batch of gradients.

    torch 2.4 to 2.15 have no public way to ask.
    """
    functorch = torch._C._functorch
    return value is not None and (
        functorch.is_functorch_wrapped_tensor(value) or functorch.is_legacy_batchedtensor(value)
    )


def can_look(values: Tensor) -> bool:
    """Return whether numbers can be read without waiting: on a CPU, and not where there are none.

    There are none in FakeTensorMode, and while torch compiles.
    """
    return values.is_cpu and type(values) is Tensor and not torch.compiler.is_compiling()


def multiplies_into_float32(rows: Sequence[Tensor | None]) -> bool:
    """Return whether rows in half precision can be multiplied as they are, into float32.

    On CUDA, from torch 2.8 on, if they have one dtype.
    """
    kinds = {(part.device.type, part.dtype) for part in rows if part is not None}
    possible = kinds in ({("cuda", dtype)} for dtype in HALF)
    return possible and "dtype_out" in torch.ops.aten.addmm.overloads()


def not_compiled(function: Function) -> Function:
    """Return the function as one that torch.compile leaves alone, with a graph break.

    Where nothing is compiled the compiler is not imported for that, as torch.compiler.disable does in torch 2.4 to
    2.15: imported within a process group, it would keep the group alive beyond its end.
    """
    disabled = _disable_dynamo(function)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        in_use = torch.compiler.is_compiling() or "torch._dynamo" in sys.modules
        return (disabled if in_use else function)(*args, **kwargs)

    return call  # type: ignore[return-value]


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Disable autocast on this device. Autocast does not know the device type meta, in torch 2.4 to 2.15."""
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
