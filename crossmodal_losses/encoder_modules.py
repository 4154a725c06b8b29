"""The modules that an encoder may call, found by looking at it: nothing is called, and no module is changed for it."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

# A list, tuple, set or dict with more entries holds data rather than modules.
LARGEST_CONTAINER = 1000

# A function may refer to an object that refers to another that holds the module: a trainer and its model, say.
NESTED_OBJECTS = 2


def modules_of(encode: Callable[..., Any], further: Iterable[nn.Module]) -> tuple[list[nn.Module], set[int]]:
    """Return the modules that an encoder refers to, parts included, and the ids of all parameters that it refers to."""
    found = [*_references(encode), *further]
    wrong = next((value for value in found if not isinstance(value, (nn.Module, Tensor))), None)
    if wrong is not None:
        raise TypeError(f"expected modules to be modules, got {type(wrong).__name__}")
    modules = list(dict.fromkeys(part for value in found if isinstance(value, nn.Module) for part in value.modules()))
    tensors = [value for value in found if isinstance(value, Tensor)]
    parameters = [parameter for module in modules for parameter in module.parameters(recurse=False)]
    return modules, {id(parameter) for parameter in (*parameters, *tensors)}


def check_parameters(name: str, rows: Tensor, known: set[int], inputs: Iterable[Tensor]) -> None:
    """Require that an encoder, called ``name`` in an error, computed its rows with known parameters alone.

    What its inputs were computed with is no part of it.
    """
    waiting, seen = [rows.grad_fn], {tensor.grad_fn for tensor in inputs}
    known = known | {id(tensor) for tensor in inputs}
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [next_node for next_node, _ in node.next_functions]
        leaf = getattr(node, "variable", None)
        if type(leaf) is nn.Parameter and id(leaf) not in known:
            raise ValueError(
                f"expected {name} to refer to the modules that it calls, got a function that hides the module of a "
                f"parameter {list(leaf.shape)}: pass the module itself, or modules=[module]"
            )


def _references(encode: Any) -> Iterator[nn.Module | Tensor]:
    """Iterate over the modules and tensors that an encoder refers to.

    Of a function these are values in its closure, its defaults, the globals that its code names, and what further
    functions of the same file refer to; of a method, its object; of functools.partial, its arguments.
    """
    waiting, seen = [(encode, NESTED_OBJECTS)], set()
    while waiting:
        value, objects = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, (nn.Module, Tensor)):
            yield value
        elif isinstance(value, (functools.partial, MethodType, FunctionType, list, tuple, set, frozenset, Mapping)):
            waiting += [(part, objects) for part in _parts(value)]
        elif objects and hasattr(value, "__dict__") and not isinstance(value, (type, ModuleType)):
            waiting += [(part, objects - 1) for part in vars(value).values()]


def _parts(value: Any) -> list[Any]:
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        defaults = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        return [*cells, *defaults, *_globals(value)]
    if len(value) > LARGEST_CONTAINER:
        return []
    return list(value.values() if isinstance(value, Mapping) else value)


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # the variable has no value yet
        return False


def _globals(function: FunctionType) -> Iterator[Any]:
    """Iterate over the globals that a function's code names, but for functions of other files."""
    names = set(_names(function.__code__))
    spaces = [function.__globals__]
    for space in spaces:
        for value in [space[name] for name in names if name in space]:
            if isinstance(value, ModuleType):  # as in models.audio(x)
                if not any(vars(value) is known for known in spaces):
                    spaces.append(vars(value))
            elif isinstance(value, nn.Module) or (space is function.__globals__ and _is_of(space, value)):
                yield value


def _is_of(file: dict[str, Any], value: Any) -> bool:
    return not isinstance(value, FunctionType) or value.__globals__ is file


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
