"""A CUDA device that is not there: launches are counted, kernels compiled, and whatever waits for it is refused.

Tensors on it are fake: they have a shape, a dtype and a device, and no values.
"""

import importlib
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from benchmarks.gpu.launches import launches

# The largest grid of a launch, in blocks.
LARGEST_GRID = 2**31 - 1, 2**16 - 1, 2**16 - 1


@dataclass(frozen=True)
class Pointer:
    """A tensor as Triton sees it. Memory is aligned; a part of it that begins offset bytes later may not be."""

    dtype: torch.dtype
    offset: int

    def data_ptr(self) -> int:
        return self.offset

    def ptr_range(self) -> int:
        return 0


@dataclass(frozen=True)
class Launch:
    """A launch of a Triton kernel: module and name, arguments and options by name, in order."""

    module: str
    kernel: str
    arguments: tuple[tuple[str, Any], ...]

    @property
    def numbers(self) -> dict[str, Any]:
        """The arguments that are no tensors, and the options."""
        return {name: value for name, value in self.arguments if not isinstance(value, Pointer)}


@dataclass
class Launches:
    """What was launched: operators of torch by name, and Triton kernels."""

    operators: Counter[str] = field(default_factory=Counter)
    kernels: list[Launch] = field(default_factory=list)
    products: set[torch.dtype] = field(default_factory=set)  # the dtypes of what was multiplied

    @property
    def total(self) -> int:
        return self.operators.total() + len(self.kernels)


class _Counting(TorchDispatchMode):
    """Counts the operators that launch something; refuses those that have to do with another device."""

    def __init__(self, launches: Launches) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launches = launches

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = _multiplied(*args, **kwargs) if func is torch.ops.aten.addmm.dtype_out else func(*args, **kwargs)
        devices = {value.device.type for value in tree_leaves((args, kwargs, out)) if isinstance(value, Tensor)}
        if not devices <= {"cuda"}:
            raise AssertionError(f"expected tensors on cuda alone, got {func} of tensors on {sorted(devices)}")
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm"):
            self.launches.products |= {value.dtype for value in args[-3:][-2:] if isinstance(value, Tensor)}
        if launches(func):
            self.launches.operators[name] += 1
        return out


def _multiplied(total: Tensor, a: Tensor, b: Tensor, out_dtype: torch.dtype, *, out: Tensor) -> Tensor:
    """``addmm`` into another dtype. That of torch 2.11 on fake tensors takes out_dtype for the factor beta."""
    assert a.dtype == b.dtype
    assert out.dtype == total.dtype == out_dtype
    assert (a.shape[0], b.shape[1]) == out.shape == total.shape
    assert a.shape[1] == b.shape[0]
    return out


@contextmanager
def counted() -> Iterator[Launches]:
    """Count what is launched within it, on tensors of FakeTensorMode."""
    launches, guarded = Launches(), False

    @contextmanager
    def device_of(value: Tensor) -> Iterator[None]:
        nonlocal guarded
        guarded = value.is_cuda
        yield
        guarded = False

    def run(kernel: Any, *args: Any, grid: tuple[int, ...], warmup: bool, **kwargs: Any) -> None:
        assert guarded, "expected a launch on the device of its tensors, got one on the current device"
        assert all(0 < size <= largest for size, largest in zip(grid, LARGEST_GRID, strict=False)), grid
        named = (dict(zip(kernel.arg_names, args, strict=False)) | kwargs).items()
        arguments = tuple((name, _pointer(value) if isinstance(value, Tensor) else value) for name, value in named)
        launches.kernels.append(Launch(kernel.fn.__module__, kernel.fn.__name__, arguments))

    with (
        mock.patch.object(JITFunction, "run", run),
        mock.patch.object(torch.cuda, "device_of", device_of),
        _Counting(launches),
    ):
        yield launches


def _pointer(value: Tensor) -> Pointer:
    assert value.is_cuda
    assert value.is_contiguous() or (value.stride(-1) == 1 and value.dim() == 2)  # rows may lie apart from each other
    return Pointer(value.dtype, int(value.storage_offset()) * value.element_size() % 16)


def run_backward(value: Tensor) -> list[Tensor]:
    """The gradients of a value, as ``value.backward()`` finds them, which would ask the driver for a thread.

    Every node of the graph has one output, that one other node uses.
    """
    found: list[Tensor] = []
    pending: list[tuple[Any, Tensor]] = [(value.grad_fn, torch.ones_like(value))]
    with torch.no_grad():
        while pending:
            node, grad = pending.pop()
            if node.name() == "torch::autograd::AccumulateGrad":
                found.append(grad)
                continue
            grads = node.apply(grad) if hasattr(node, "apply") else node(grad)
            grads = [grad for grad in (grads if isinstance(grads, tuple) else (grads,)) if grad is not None]
            pending += zip((node for node, _ in node.next_functions if node is not None), grads, strict=True)
    return found


@dataclass(frozen=True)
class Compiled:
    """A kernel for one compute capability, as the assembler of the device has it."""

    launch: Launch
    capability: int
    registers: int  # of a thread
    operations: Counter[str]

    def _count(self, pattern: str) -> int:
        return sum(count for name, count in self.operations.items() if re.match(pattern, name))

    @property
    def spills(self) -> int:
        """Loads and stores of what has no place in registers."""
        return self._count(r"(LDL|STL)\b")

    @property
    def atomics(self) -> int:
        return self._count(r"(ATOM[GS]?|RED)\b")

    @property
    def instructions(self) -> int:
        """How many stand in the code of a thread, those of branches that few threads take too."""
        return self.operations.total() - self._count(r"NOP\b")

    @property
    def loads_of_16_bytes(self) -> int:
        return self._count(r"LDG\b.*\.128\b")

    @property
    def rounds_to(self) -> torch.dtype | None:
        """The half precision that it writes, if it does."""
        names = {torch.bfloat16: r"F2FP?\.BF16", torch.float16: r"F2FP?\.(PACK_AB|F16)"}
        return next((dtype for dtype, name in names.items() if self._count(name)), None)


class _Driver:
    """Triton's driver of a device that is not there. Its number is its compute capability."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        return GPUTarget("cuda", self.capability, 32)


def compile_launches(launches: Iterable[Launch], capabilities: Iterable[int]) -> list[Compiled]:
    """Compile kernels as they are launched, once where Triton would compile once; in a process without interpreter."""
    compiled: dict[str, Compiled] = {}
    for capability in capabilities:
        triton.runtime.driver.set_active(_Driver(capability))
        for launch in launches:
            kernel = getattr(importlib.import_module(launch.module), launch.kernel)
            found = kernel.warmup(grid=(1,), **dict(launch.arguments))
            if found.hash not in compiled:
                compiled[found.hash] = Compiled(launch, capability, *_assembled(found.asm["cubin"]))
    return list(compiled.values())


def _assembled(binary: bytes) -> tuple[int, Counter[str]]:
    """The registers of a thread, and how often each operation stands in the code."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(binary)
        registers = re.search(r"REG:(\d+)", _tool("cuobjdump", "-res-usage", str(path)))
        code = _tool("nvdisasm", "-c", str(path))
    assert registers is not None
    operations = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", code, re.MULTILINE)
    return int(registers[1]), Counter(operations)


def _tool(name: str, *arguments: str) -> str:
    """What a tool beside Triton's compiler prints."""
    path = Path(triton.__file__).parent / "backends/nvidia/bin" / name
    return subprocess.run([path, *arguments], check=True, capture_output=True, text=True).stdout
