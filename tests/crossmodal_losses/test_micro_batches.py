"""What encoders may take and return in a ``GradientCache``: nested inputs of any class, named outputs."""

import dataclasses
import enum
import pathlib
import re
from collections import ChainMap, OrderedDict, UserDict, UserList, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from crossmodal_losses import GradientCache, NTXent

B, X, D = 7, 5, 3
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(X, D).double()


def items(seed: int = 0) -> Tensor:
    return torch.randn(B, X, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients_of(encode: Any, inputs: Any, **settings: Any) -> tuple[Tensor, ...]:
    """Return value and gradients of a loss whose x are encoded from these inputs; the y are always the same."""
    layer, cache = linear(), GradientCache(NTXent(), micro_batch_size=3, **settings)
    value = cache(lambda batch: encode(layer, batch), nn.Identity(), inputs, items(1)[:, :D])
    return value, *torch.autograd.grad(value, list(layer.parameters()))


def assert_is_read_as(inputs: Any, read: Callable[[Any], Tensor]) -> None:
    """Compare with the gradients for a tensor as input."""
    found = gradients_of(lambda layer, batch: layer(read(batch)), inputs)
    torch.testing.assert_close(found, gradients_of(lambda layer, batch: layer(batch), items()), **CLOSE)


class Pair(NamedTuple):
    first: Tensor
    second: Any


Seven = namedtuple("Seven", "a b c d e f g")


@dataclasses.dataclass(frozen=True)
class Frozen:
    tokens: Tensor
    kind: str
    length: int = dataclasses.field(init=False, default=3)
    unset: int = dataclasses.field(init=False)


@dataclasses.dataclass
class Recorded:
    """Not a tokenizer's, whose field of this name is left out of micro-batches."""

    tokens: Tensor
    _encodings: str


@dataclasses.dataclass
class Slotted:
    __slots__ = ("mask", "tokens")
    tokens: Tensor
    mask: Any


class Settings(UserDict[str, Any]):
    """A mapping with attributes of its own, as BatchEncoding is, and with arguments that a plain dict is not."""

    def __init__(self, data: Any, *, pad: int) -> None:
        super().__init__(data)
        self.pad = pad

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["data"][name]
        except KeyError:
            raise AttributeError(name) from None


@pytest.mark.parametrize(
    "wrap, read",
    [
        (lambda t: {"a": t, "nothing": None}, lambda i: i["a"]),
        (lambda t: UserDict(a=t, b=t[:, 0].long()), lambda i: i["a"] + 0 * i.data["b"][:, None]),
        (lambda t: Settings({"a": t}, pad=4), lambda i: i.a * (i.pad == 4)),
        (lambda t: OrderedDict(b=1, a=t), lambda i: i["a"] * (i.popitem()[0] == "a")),
        (lambda t: defaultdict(list, a=t), lambda i: i["a"] * (i["b"] == [])),
        (lambda t: MappingProxyType({"a": t}), lambda i: i["a"] * isinstance(i, MappingProxyType)),
        (lambda t: ChainMap({"a": t}, {"b": 2}), lambda i: i["a"] * (i["b"] == 2) * isinstance(i, ChainMap)),
        (lambda t: [t], lambda i: i[0]),
        (lambda t: (None, {"a": [t, t]}), lambda i: i[1]["a"][0] + 0 * i[1]["a"][1]),
        (lambda t: Pair(t, t[:, :1]), lambda i: i.first + 0 * i.second),
        (lambda t: Frozen(t, "audio"), lambda i: i.tokens * (i.kind == "audio") * (i.length == 3)),
        (lambda t: Recorded(t, "kept"), lambda i: i.tokens * (i._encodings == "kept")),
        (lambda t: Slotted(t, {"mask": t > 9}), lambda i: i.tokens + i.mask["mask"]),
    ],
    ids=lambda value: "",
)
def test_inputs_of_any_structure(wrap: Callable[[Tensor], Any], read: Callable[[Any], Tensor]) -> None:
    """They reach the encoder in their own classes, and stay as they are outside of it."""
    inputs = wrap(items())
    before = repr(inputs) if not isinstance(inputs, Frozen) else repr(vars(inputs))

    def checked(batch: Any) -> Tensor:
        assert type(batch) is type(inputs)
        return read(batch)

    assert_is_read_as(inputs, checked)
    assert (repr(inputs) if not isinstance(inputs, Frozen) else repr(vars(inputs))) == before


def test_gradients_reach_inputs() -> None:
    a = items().requires_grad_()
    cache = GradientCache(NTXent(), micro_batch_size=3)
    value = cache(lambda batch: batch["a"].sin(), nn.Identity(), {"a": a, "flag": True}, items(1))
    expected = NTXent()(a.sin(), items(1))
    torch.testing.assert_close(torch.autograd.grad(value, a), torch.autograd.grad(expected, a), **CLOSE)


class Kind(enum.Enum):
    AUDIO = "audio"


def double(x: Tensor) -> Tensor:
    return 2 * x


VALUES = [
    "a text of 7",
    "seven..",
    b"bytes",
    None,
    True,
    0,
    2.5,
    1j,
    np.float32(3),
    np.bool_(True),
    torch.float16,
    torch.device("cpu"),
    Kind.AUDIO,
    pathlib.Path("a"),
    double,
    nn.Linear(1, 1),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_that_are_no_tensors_reach_every_micro_batch(value: Any) -> None:
    seen = []

    def read(batch: Any) -> Tensor:
        seen.append(batch["nested"][0])
        return batch["a"]  # type: ignore[no-any-return]

    assert_is_read_as({"a": items(), "nested": [value]}, read)
    assert len(seen) == 2 * 3
    assert all(one is value for one in seen)


def test_containers_without_tensors_are_the_same_objects() -> None:
    class Own(list[Any]):
        def __init__(self, first: Any, second: Any) -> None:
            super().__init__([first, second])

    settings = {"layers": [1, 2], "own": Own(1, 2)}
    assert_is_read_as((items(), settings), lambda i: i[0] * (i[1] is settings))


class Point:
    def __init__(self) -> None:
        self.tensor = items()


def generator() -> Iterator[int]:
    yield 1


class NotMadeOfAList(list[Any]):
    def __init__(self, first: Any, *, second: Any) -> None:
        super().__init__([first, second])


class NotMadeOfADict(Mapping[str, Tensor]):
    def __init__(self) -> None:
        pass

    def __getitem__(self, key: str) -> Tensor:
        return items()

    def __iter__(self) -> Iterator[str]:
        return iter(["a"])

    def __len__(self) -> int:
        return 1


EXPECTED = (
    "expected inputs_x to be tensors, strings, numbers, None, or dicts, lists, tuples or dataclasses of them, got "
)


@pytest.mark.parametrize(
    "value, error, words",
    [
        (np.zeros(B), TypeError, EXPECTED + "ndarray"),
        ({1, 2}, TypeError, EXPECTED + "set"),
        (deque([1]), TypeError, EXPECTED + "deque"),
        (UserList([1]), TypeError, EXPECTED + "UserList"),
        (generator(), TypeError, EXPECTED + "generator"),
        (Point(), TypeError, EXPECTED + "Point"),
        (SimpleNamespace(tensor=items()), TypeError, EXPECTED + "SimpleNamespace"),
        (NotMadeOfAList(items(), second=1), TypeError,
         "expected inputs_x to hold a list, got NotMadeOfAList, which is not made of a list: "),
        (NotMadeOfADict(), TypeError,
         "expected inputs_x to hold a dict, got NotMadeOfADict, which is not made of a dict: "),
        (["one"] * B, ValueError, "expected inputs_x to hold what each of 7 items has in a tensor [7, ...], got a list "
         "of 7 values such as 'one', which is not split"),
        ({"deep": (list(range(B)), None)}, ValueError, "got a list of 7 values such as 0, which is not split"),
        (tuple([1, 2] for _ in range(B)), ValueError, "got a tuple of 7 values such as [1, 2], which is not split"),
        (Frozen(items(), [0.5] * B), ValueError, "got a list of 7 values such as 0.5"),  # type: ignore[arg-type]
        (torch.tensor(1.0), ValueError,
         "expected inputs_x to hold tensors [B, ...] of one B >= 1, got shapes [[7, 5], []]"),
        (items().to_sparse(), TypeError, "expected inputs_x to be a dense tensor of this process"),
    ],
)  # fmt: skip
def test_what_may_hold_something_of_each_item_is_refused(value: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)):
        gradients_of(lambda layer, batch: layer(batch["a"]), {"a": items(), "value": value})


def test_lists_of_other_lengths_and_of_tensors_are_taken() -> None:
    assert_is_read_as([items(), ["one"] * (B - 1), [1] * (B + 1)], lambda i: i[0] * (len(i[1]) == B - 1))
    assert_is_read_as([items()] * B, lambda i: i[-1])
    assert_is_read_as((items(), Seven(*range(B))), lambda i: i[0] * (i[1].g == 6))  # a record, no list of items
    # One micro-batch holds all items: the list is right as a whole.
    cache, layer = GradientCache(NTXent(), micro_batch_size=B), linear()
    cache(lambda i: layer(i[0]) * len(i[1]), nn.Identity(), [items(), ["one"] * B], items(1)[:, :D]).backward()
    with pytest.raises(ValueError, match="got a list of 7 values"):
        GradientCache(NTXent(), micro_batch_size=B - 1)(
            lambda i: layer(i[0]), nn.Identity(), [items(), ["one"] * B], items(1)[:, :D]
        )


class Output(NamedTuple):
    hidden: Tensor
    pooled: Tensor


@dataclasses.dataclass
class Named:
    hidden: Tensor
    pooled: Tensor
    attentions: Any = None


@pytest.mark.parametrize(
    "output",
    [
        lambda p: {"hidden": p.sin(), "pooled": p},
        lambda p: UserDict(hidden=p.sin(), pooled=p),
        lambda p: Output(p.sin(), p),
        lambda p: Named(p.sin(), p),
        lambda p: SimpleNamespace(hidden=p.sin(), pooled=p),
    ],
    ids=["dict", "mapping", "named tuple", "dataclass", "object"],
)
def test_embeddings_of_a_named_output(output: Callable[[Tensor], Any]) -> None:
    expected = gradients_of(lambda layer, batch: layer(batch), items())
    found = gradients_of(lambda layer, batch: output(layer(batch)), items(), embedding=("pooled", None))
    torch.testing.assert_close(found, expected, **CLOSE)


def test_one_name_for_both_encoders_or_one_for_each() -> None:
    inputs = items(), items(1)
    expected = GradientCache(NTXent(), micro_batch_size=3)(nn.Tanh(), nn.Sigmoid(), *inputs)

    def named(field: str, function: Any) -> Any:
        return lambda batch: {field: function(batch), "other": None}

    both = GradientCache(NTXent(), micro_batch_size=3, embedding="a")
    assert both(named("a", torch.tanh), named("a", torch.sigmoid), *inputs) == expected
    each = GradientCache(NTXent(), micro_batch_size=3, embedding=("a", "b"))
    assert each(named("a", torch.tanh), named("b", torch.sigmoid), *inputs) == expected
    second = GradientCache(NTXent(), micro_batch_size=3, embedding=(None, "b"))
    assert second(torch.tanh, named("b", torch.sigmoid), *inputs) == expected


@pytest.mark.parametrize(
    "embedding, output, error, words",
    [
        (None, lambda p: {"hidden": p, "pooled": p}, TypeError, "expected encode_x to return a floating tensor, got "
         "dict with the fields 'hidden', 'pooled', of which embedding= names one"),
        (None, lambda p: Output(p, p), TypeError, "got Output with the fields 'hidden', 'pooled', of which embedding="),
        (None, lambda p: [p], TypeError, "expected encode_x to return a floating tensor, got list$"),
        (None, lambda p: None, TypeError, "expected encode_x to return a floating tensor, got NoneType"),
        ("pooled", lambda p: p, TypeError,
         "expected encode_x to return an output with the field 'pooled', got a tensor"),
        ("pooler", lambda p: Named(p, p), ValueError,
         "expected encode_x to return an output with the field 'pooler', got Named with the fields 'hidden', 'pooled'"),
        ("attentions", lambda p: Named(p, p), ValueError, "got Named with the fields 'hidden', 'pooled'"),
        ("pooled", lambda p: (p, p), ValueError, "with the field 'pooled', got tuple"),
        ("pooled", lambda p: {}, ValueError, "with the field 'pooled', got dict"),
        ("pooled", lambda p: {"pooled": "text"}, TypeError, "expected encode_x to return a floating tensor, got str"),
        ("pooled", lambda p: {"pooled": p.long()}, TypeError,
         "expected encode_x to return a floating tensor, got torch.int64"),
        ("pooled", lambda p: {"pooled": p[:, None]}, ValueError, "expected encode_x to return [3, D], got [3, 1, 3]"),
    ],
)  # fmt: skip
def test_outputs_that_are_refused(embedding: Any, output: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=re.escape(words).replace(r"\$", "$")):
        gradients_of(lambda layer, batch: output(layer(batch)), items(), embedding=(embedding, None))


class Encoding(UserDict[str, Any]):
    """As a tokenizer returns it, with its record of the whole batch."""

    _encodings: Any = ("record",)


def test_a_micro_batch_has_no_record_of_the_whole_batch() -> None:
    inputs = Encoding(a=items())

    def checked(batch: Any) -> Tensor:
        assert batch._encodings is None
        tokens: Tensor = batch["a"]
        return tokens

    assert_is_read_as(inputs, checked)
    assert inputs._encodings == ("record",)
