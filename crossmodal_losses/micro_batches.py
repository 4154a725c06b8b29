"""What encoders take and return: nested inputs, whose tensors are split into micro-batches, and named outputs."""

import copy
import dataclasses
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from crossmodal_losses.checks import check_dense


class MicroBatches:
    """Nested inputs of an encoder: tensors ``[B, ...]``, which are split, and values that every micro-batch has.

    Args:
        name: that of the inputs in an error.
        inputs: tensors ``[B, ...]``, or dicts, lists, tuples or dataclasses of them and of other values.
        size: number of items in a micro-batch; the last one may be smaller.
    """

    def __init__(self, name: str, inputs: Any, size: int) -> None:
        self.name, self.inputs, self.size = name, inputs, size
        self.tensors = _tensors(name, inputs)
        for tensor in self.tensors:
            check_dense(name, tensor)
        shapes = [list(tensor.shape) for tensor in self.tensors]
        if not shapes or any(not shape or shape[:1] != shapes[0][:1] or shape[0] == 0 for shape in shapes):
            raise ValueError(f"expected {name} to hold tensors [B, ...] of one B >= 1, got shapes {shapes}")
        self.B = B = shapes[0][0]
        if size < B:
            _check_lists(name, inputs, B)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Iterate over the micro-batches' tensors, in a fixed order."""
        yield from zip(*(tensor.split(self.size) for tensor in self.tensors), strict=True)

    def nested(self, tensors: Sequence[Tensor]) -> Any:
        """Return the inputs with the tensors of a micro-batch in place of all."""
        remaining = iter(tensors)
        return _map_tensors(self.name, self.inputs, lambda _: next(remaining))


def _map_tensors(name: str, inputs: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Replace every tensor by ``function(tensor)``; a container is copied in its own class if it holds another then."""
    if isinstance(inputs, Tensor):
        return function(inputs)
    parts = _parts(inputs)
    if parts is None:
        if not _is_one_value(inputs):
            raise TypeError(
                f"expected {name} to be tensors, strings, numbers, None, or dicts, lists, tuples or dataclasses of "
                f"them, got {type(inputs).__name__}"
            )
        return inputs
    mapped = {key: _map_tensors(name, part, function) for key, part in parts.items()}
    unchanged = all(mapped[key] is part for key, part in parts.items())
    return inputs if unchanged else _with_parts(name, inputs, mapped)


def _tensors(name: str, inputs: Any) -> list[Tensor]:
    tensors: list[Tensor] = []

    def append(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor

    _map_tensors(name, inputs, append)
    return tensors


def _parts(inputs: Any) -> dict[Any, Any] | None:
    """Return what a container holds, by key, index or field; None for anything that is no container."""
    if isinstance(inputs, Mapping):
        return dict(inputs.items())
    if isinstance(inputs, (list, tuple)):
        return dict(enumerate(inputs))
    if dataclasses.is_dataclass(inputs) and not isinstance(inputs, type):
        names = [field.name for field in dataclasses.fields(inputs) if hasattr(inputs, field.name)]
        return {name: getattr(inputs, name) for name in names}
    return None


def _with_parts(name: str, inputs: Any, parts: dict[Any, Any]) -> Any:
    """Return a copy of a container, in its own class, with these parts."""
    is_mapping = isinstance(inputs, Mapping)
    if isinstance(inputs, (dict, UserDict)) or (not is_mapping and dataclasses.is_dataclass(inputs)):
        changed: Any = copy.copy(inputs)
        for key, part in parts.items():
            if is_mapping:
                changed[key] = part
            else:
                object.__setattr__(changed, key, part)  # it may be frozen
        if isinstance(inputs, UserDict) and hasattr(changed, "_encodings"):
            # transformers.BatchEncoding: a tokenizer's record of the whole batch, whose first item is not that of the
            # micro-batch. Without it, tokens(0) and the like are refused by transformers.
            changed._encodings = None
        return changed
    kind = "dict" if is_mapping else "list"
    try:
        make: Callable[[Any], Any] = getattr(inputs, "_make", type(inputs))  # _make: a named tuple
        return make(parts if is_mapping else list(parts.values()))
    except TypeError as error:
        got = f"{type(inputs).__name__}, which is not made of a {kind}: {error}"
        raise TypeError(f"expected {name} to hold a {kind}, got {got}") from error


def _is_one_value(value: Any) -> bool:
    """Whether a value is one for the whole batch: a string, or anything that holds neither items nor tensors."""
    if value is None or isinstance(value, (str, bytes)):
        return True
    holds_items = hasattr(value, "__iter__") or hasattr(value, "__len__")
    return not holds_items and not any(isinstance(part, Tensor) for part in getattr(value, "__dict__", {}).values())


def _check_lists(name: str, inputs: Any, B: int) -> None:
    """Refuse a list of B values that are no tensors: most likely one for each item.

    Every micro-batch would get all of them, and take those of the first items for its own.
    """
    is_list = isinstance(inputs, (list, tuple)) and not hasattr(inputs, "_fields")
    if is_list and len(inputs) == B and not _tensors(name, inputs):
        raise ValueError(
            f"expected {name} to hold what each of {B} items has in a tensor [{B}, ...], got a "
            f"{type(inputs).__name__} of {B} values such as {inputs[0]!r:.40}, which is not split"
        )
    for part in (_parts(inputs) or {}).values():
        _check_lists(name, part, B)


def select_embedding(name: str, output: Any, field: str | None) -> Any:
    """Return the field of an encoder's output, or the output itself if the field is None.

    ``name`` is that of the encoder in an error, which says what fields there are.
    """
    if isinstance(output, Tensor):
        if field is not None:
            raise TypeError(f"expected {name} to return an output with the field {field!r}, got a tensor")
        return output
    fields = {key: value for key, value in _fields(output).items() if value is not None}
    got = f"{type(output).__name__} with the fields {', '.join(map(repr, fields))}" if fields else type(output).__name__
    if field is None:
        hint = ", of which embedding= names one" if fields else ""
        raise TypeError(f"expected {name} to return a floating tensor, got {got}{hint}")
    if field not in fields:
        raise ValueError(f"expected {name} to return an output with the field {field!r}, got {got}")
    return fields[field]


def _fields(output: Any) -> dict[Any, Any]:
    """Return what an encoder's output holds, by key or attribute."""
    if hasattr(output, "_asdict"):  # a named tuple
        return dict(output._asdict())
    if isinstance(output, (list, tuple)):
        return {}
    return _parts(output) or dict(getattr(output, "__dict__", {}))
