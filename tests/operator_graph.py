"""Stand-ins for CUDA's graphs and streams, on machines without a GPU."""

from contextlib import nullcontext
from typing import Any, ClassVar
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class OperatorGraph(TorchDispatchMode):
    """Stands for a CUDA graph, on a CPU: the same operators run again, on the same memory and with the same numbers.

    While they are recorded they change nothing, and what they return is not computed yet. It may be read all the same:
    on a CPU, and not on a GPU, the losses look at the longest row of a small batch and at the shortest.
    """

    made: ClassVar[list["OperatorGraph"]] = []

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made.append(self)
        self.calls: list[tuple[Any, Any, Any, list[Any]]] = []
        self.changed: list[tuple[Tensor, Tensor]] = []
        self.replays = 0
        self.generator = torch.get_rng_state()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        named = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
        writes = [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        written = [tensor for name in writes for tensor in tree_leaves(named.get(name)) if tensor is not None]
        self.changed += [(tensor, tensor.clone()) for tensor in written]
        result = func(*args, **kwargs)
        if not func.is_view:
            made = [] if written else [value for value in tree_leaves(result) if isinstance(value, Tensor)]
            self.calls.append((func, args, kwargs, made))
        return result

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        torch.set_rng_state(self.generator)
        with torch.no_grad():
            for tensor in (tensor for *_, made in self.calls for tensor in made if tensor.is_floating_point()):
                tensor.fill_(torch.nan)
            for tensor, before in reversed(self.changed):
                tensor.copy_(before)

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, made in self.calls:
            results = [value for value in tree_leaves(func(*args, **kwargs)) if isinstance(value, Tensor)]
            for memory, value in zip(made, results, strict=False):
                memory.copy_(value)


def use_operator_graphs(monkeypatch: pytest.MonkeyPatch) -> list[OperatorGraph]:
    """Put the stand-in in the place of CUDA's graphs and streams, and return the graphs that are captured."""
    monkeypatch.setattr(OperatorGraph, "made", [])
    monkeypatch.setattr(torch.cuda, "CUDAGraph", OperatorGraph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream=None: graph)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    for name in ("Stream", "current_stream", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    return OperatorGraph.made
