"""Triton kernels on a CPU, as Triton's interpreter runs them."""

from types import ModuleType

import pytest
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction


def interpret(monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
    """Have the kernels of these modules interpreted, whether Triton was imported before or not."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for module in (tl, tl.standard, *modules):
        for name, function in list(vars(module).items()):
            if isinstance(function, JITFunction):
                monkeypatch.setattr(module, name, InterpretedFunction(function.fn))
