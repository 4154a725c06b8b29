"""A cache finds the modules that an encoder calls, wherever a function refers to them, or says that it cannot."""

import functools
import threading
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crossmodal_losses import GradientCache, NTXent
from crossmodal_losses.encoder_modules import modules_of

GLOBAL = nn.Linear(4, 4)
FILE = ModuleType("models")
FILE.encoder = GLOBAL  # type: ignore[attr-defined]


def by_global(x: Tensor) -> Any:
    return GLOBAL(x)


def by_another_function(x: Tensor) -> Any:
    return [by_global(part) for part in x]


def by_another_file(x: Tensor) -> Any:
    return FILE.encoder(x)


class Trainer:
    def __init__(self) -> None:
        self.state = SimpleNamespace(models={"x": GLOBAL})

    def encode(self, x: Tensor) -> Any:
        return self.state.models["x"](x)

    def encoder(self) -> Callable[[Tensor], Any]:
        return lambda x: self.encode(x)


def by_default(x: Tensor, *, encode: nn.Module = GLOBAL) -> Any:
    return encode(x)


def apply(encode: nn.Module, x: Tensor) -> Any:
    return encode(x)


def with_an_empty_cell() -> Callable[[Tensor], Any]:
    def encode(x: Tensor) -> Any:
        return later if x is None else GLOBAL(x)

    if GLOBAL is None:
        later = 0
    return encode


FUNCTIONS: dict[str, Any] = {
    "module": GLOBAL,
    "compiled": torch.compile(GLOBAL, backend="eager"),
    "compiled function": torch.compile(by_global, backend="eager"),
    "global": by_global,
    "another function": by_another_function,
    "another file": by_another_file,
    "method": Trainer().encode,
    "object in a closure": Trainer().encoder(),
    "default": by_default,
    "partial": functools.partial(apply, GLOBAL),
    "list in a closure": (lambda models: lambda x: models[0](x))([GLOBAL]),
    "empty cell": with_an_empty_cell(),
}


@pytest.mark.parametrize("encode", FUNCTIONS.values(), ids=FUNCTIONS)
def test_the_modules_of_a_function(encode: Any) -> None:
    modules, parameters = modules_of(encode, ())
    assert modules.count(GLOBAL) == 1
    assert {id(GLOBAL.weight), id(GLOBAL.bias)} <= parameters


HIDDEN = [nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for _ in range(1001)]


def by_large_list(x: Tensor) -> Any:
    return HIDDEN[0](x)


def test_a_function_that_hides_a_module_is_refused_in_words() -> None:
    cache, inputs = GradientCache(NTXent(), micro_batch_size=2), torch.randn(4, 4)
    words = r"expected encode_y to refer to the modules that it calls, got a function that hides .* parameter \[4"
    for rows in (inputs, inputs[:2]):  # of two micro-batches, and of one
        with pytest.raises(ValueError, match=words):
            cache(GLOBAL, by_large_list, rows, rows)
    HIDDEN[0][1].reset_running_stats()  # type: ignore[operator]
    cache(GLOBAL, by_large_list, inputs, inputs, modules=HIDDEN[:1]).backward()
    assert HIDDEN[0][1].num_batches_tracked == 2
    with pytest.raises(TypeError, match="expected modules to be modules, got function"):
        cache(GLOBAL, GLOBAL, inputs, inputs, modules=[by_global])


def test_objects_are_followed_to_the_second() -> None:
    """An encoder may refer to half of a program: the search ends, and what it does not find is refused."""
    second = SimpleNamespace(models=SimpleNamespace(x=GLOBAL))
    third = SimpleNamespace(trainer=second)
    assert modules_of(lambda x: second.models.x(x), ())[0] == [GLOBAL]
    assert modules_of(lambda x: third.trainer.models.x(x), ()) == ([], set())


def test_parameters_that_need_no_module() -> None:
    """An encoder may use a parameter by itself, and a parameter may be an input."""
    weight = nn.Parameter(torch.randn(4, 4))
    table = nn.Parameter(torch.randn(6, 4))
    GradientCache(NTXent(), micro_batch_size=2)(lambda x: x @ weight, lambda x: x * 2, table, table).backward()
    assert weight.grad is not None
    assert table.grad is not None


def test_a_cache_leaves_other_threads_alone() -> None:
    """A module that another thread calls meanwhile is not the encoder's, and torch's classes stay as they are."""
    norm = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    inside, done = threading.Event(), threading.Event()
    call = nn.Module.__call__

    class Other(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            inside.set()
            assert done.wait(60)
            return x

    other = threading.Thread(target=Other(), args=(torch.ones(1),))

    def encode(x: Tensor) -> Any:
        if other.ident is None:
            other.start()
            assert inside.wait(60)
        assert nn.Module.__call__ is call
        return norm(x)

    inputs = torch.randn(4, 4)
    GradientCache(NTXent(), micro_batch_size=2)(encode, GLOBAL, inputs, inputs).backward()
    done.set()
    other.join()
    assert norm[1].num_batches_tracked == 2


def test_modules_that_computed_the_inputs_are_no_part_of_the_encoder() -> None:
    """Embeddings of a backbone go through heads in micro-batches; gradients reach the backbone."""
    backbone, head = nn.Linear(4, 4), nn.Linear(4, 4)
    hidden, other = backbone(torch.randn(6, 4)).tanh(), torch.randn(6, 4)
    value = GradientCache(NTXent(), micro_batch_size=2)(lambda x: head(x), nn.Identity(), hidden, other)
    parameters = [*backbone.parameters(), *head.parameters()]
    expected = torch.autograd.grad(NTXent()(head(hidden), other), parameters, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(value, parameters), expected)
