"""Argument checks of the public functions, with errors of the form *expected ... got ...*.

They run before anything is computed. They look at shapes, dtypes, devices and Python numbers, never at the values of a
tensor, so no check synchronises with a device. All raise TypeError or ValueError.

A check returns its argument in the form that the package works with: a number as a plain float or int; a tensor as it
is, or, where it was made in inference mode, as a copy, since autograd does not save such a tensor.
"""

import math
import sys
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedParameter

Reduction = Literal["mean", "sum", "none"]
REDUCTIONS = get_args(Reduction)

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGER = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)

# Beyond this, float32 has no digits left for a similarity beside a setting; and sums over B x B pairs stay finite.
LARGEST = 1e6


def _names(dtypes: Sequence[torch.dtype]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def check_dense(name: str, value: Tensor) -> None:
    """Require a tensor whose numbers lie side by side in this process's memory."""
    if isinstance(value, UninitializedParameter):
        kind = "a parameter without a shape yet"
    elif value.is_nested:
        kind = "a nested tensor"
    elif value.layout is not torch.strided:
        kind = f"one of layout {value.layout}"
    elif hasattr(value, "full_tensor"):
        kind = "a DTensor, whose full_tensor() is one"
    else:
        return
    raise TypeError(f"expected {name} to be a dense tensor of this process, got {kind}")


@torch.library.custom_op("crossmodal_losses::copy", mutates_args=())
def _copy(value: Tensor) -> Tensor:
    """A copy for compiled programs: an operator that the compiler does not move into the backward pass."""
    return value.clone()


@_copy.register_fake
def _(value: Tensor) -> Tensor:
    return torch.empty_like(value)


def _usable(value: Tensor) -> Tensor:
    if not torch.is_grad_enabled() or value.requires_grad:
        return value
    if torch.compiler.is_compiling():  # which does not tell whether a tensor was made in inference mode
        copied: Tensor = _copy(value)
        return copied
    return value.clone() if value.is_inference() else value


def _check_floating(name: str, value: Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"expected {name} to be a tensor, got {type(value).__name__}")
    check_dense(name, value)
    if value.dtype not in FLOATING:
        raise TypeError(f"expected {name} to be of a floating dtype ({_names(FLOATING)}), got {value.dtype}")
    return _usable(value)


def check_embeddings(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return x and y; require x and y to be floating ``[N, D]`` and ``[M, D]`` on one device, without a size of 0."""
    x, y = _check_floating("x", x), _check_floating("y", y)
    for name, value in (("x", x), ("y", y)):
        if value.dim() != 2 or 0 in value.shape:
            raise ValueError(f"expected {name} of shape [B, D] with B >= 1 and D >= 1, got {list(value.shape)}")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"expected x and y of one D, got shapes {list(x.shape)} and {list(y.shape)}")
    if x.device != y.device:
        raise ValueError(f"expected x and y on one device, got {x.device} and {y.device}")
    return x, y


class Batch(NamedTuple):
    """The tensors of a loss: B pairs, and candidates without a partner.

    Anchor x_i sees y_j, j != i, and all of negatives_y; anchor y_j sees x_i, i != j, and all of negatives_x.
    """

    x: Tensor  # [B, D]
    y: Tensor  # [B, D]
    negatives_x: Tensor | None = None  # [M, D]
    negatives_y: Tensor | None = None  # [N, D]
    ids: Tensor | None = None  # of the pairs, [B]
    negative_ids_x: Tensor | None = None  # [M]
    negative_ids_y: Tensor | None = None  # [N]

    @property
    def embeddings(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """The first four."""
        return self[:4]

    @property
    def all_ids(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The last three."""
        return self[4:]


def check_batch(
    x: Tensor,
    y: Tensor,
    ids: Tensor | None = None,
    negatives_x: Tensor | None = None,
    negatives_y: Tensor | None = None,
    negative_ids_x: Tensor | None = None,
    negative_ids_y: Tensor | None = None,
) -> Batch:
    """Return the tensors of a loss; require what its docstring says of them."""
    x, y = check_embeddings(x, y)
    if x.shape != y.shape:
        raise ValueError(f"expected x and y of one shape [B, D], got {list(x.shape)} and {list(y.shape)}")
    ids = check_ids(ids, x)
    if negatives_x is None and negatives_y is None and negative_ids_x is None and negative_ids_y is None:
        return Batch(x, y, ids=ids)
    negatives_x, negative_ids_x = _check_negatives("x", negatives_x, negative_ids_x, x, ids)
    negatives_y, negative_ids_y = _check_negatives("y", negatives_y, negative_ids_y, x, ids)
    return Batch(x, y, negatives_x, negatives_y, ids, negative_ids_x, negative_ids_y)


def _check_negatives(
    side: str, negatives: Tensor | None, negative_ids: Tensor | None, x: Tensor, ids: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Return the negatives of one modality and their ids; x are the embeddings of the pairs, and ids theirs."""
    name, name_of_ids = f"negatives_{side}", f"negative_ids_{side}"
    if negatives is None:
        if negative_ids is not None:
            raise ValueError(f"expected {name_of_ids} with {name}, got it alone")
        return None, None
    negatives = _check_floating(name, negatives)
    if negatives.dim() != 2 or negatives.shape[1] != x.shape[1]:
        raise ValueError(f"expected {name} of shape [any, {x.shape[1]}], got {list(negatives.shape)}")
    if negatives.device != x.device:
        raise ValueError(f"expected {name} on the device of the pairs, {x.device}, got {negatives.device}")
    if negative_ids is not None and ids is None:
        raise ValueError(f"expected ids with {name_of_ids}, got {name_of_ids} alone")
    return negatives, check_ids(negative_ids, negatives, name_of_ids)


def check_similarities(S: Tensor) -> Tensor:
    """Return S; require S to be floating ``[B, B]`` with B >= 1."""
    S = _check_floating("S", S)
    if S.dim() != 2 or S.shape[0] != S.shape[1] or S.shape[0] == 0:
        raise ValueError(f"expected S of shape [B, B] with B >= 1, got {list(S.shape)}")
    return S


def check_ids(ids: Tensor | None, like: Tensor, name: str = "ids") -> Tensor | None:
    """Return ids; require None, or integers ``[B]`` on the device of ``like``, whose first dimension is B."""
    if ids is None:
        return None
    if not isinstance(ids, Tensor):
        raise TypeError(f"expected {name} to be None or an integer tensor, got {type(ids).__name__}")
    check_dense(name, ids)
    if ids.dtype not in INTEGER:  # float32 holds whole numbers exactly only up to 2^24
        raise TypeError(f"expected {name} of an integer dtype ({_names(INTEGER)}), got {ids.dtype}")
    if ids.shape != like.shape[:1]:
        raise ValueError(f"expected {name} of shape [{like.shape[0]}], one for each row, got {list(ids.shape)}")
    if ids.device != like.device:
        raise ValueError(f"expected {name} on the device of the embeddings, {like.device}, got {ids.device}")
    return _usable(ids)


def check_reduction(reduction: str) -> None:
    """Require reduction to be "mean", "sum" or "none"."""
    if not isinstance(reduction, str):
        raise TypeError(f"expected reduction to be 'mean', 'sum' or 'none', got {type(reduction).__name__}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"expected reduction to be 'mean', 'sum' or 'none', got {reduction!r}")


def _check_number(name: str, value: Any, least: float = -LARGEST, sign: str = "") -> float:
    """Return the value as a float; require a finite number of that sign (">= 0", "> 0", or any), from least to 1e6."""
    if type(value) is not float and (not isinstance(value, Real) or isinstance(value, bool)):  # the first is quick
        raise TypeError(f"expected {name} to be a number, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:  # of a large whole number or fraction
        number = math.inf if value > 0 else -math.inf  # type: ignore[operator]
    in_sign = {"": True, ">= 0": number >= 0, "> 0": number > 0}[sign]
    if not in_sign or not -math.inf < number < math.inf:
        raise ValueError(f"expected {name} to be finite{sign and ' and ' + sign}, got {number:g}")
    if not least <= number <= LARGEST:
        limits = f"{least:g} and {LARGEST:g}".replace("e+0", "e").replace("e-0", "e-")  # 1e6, 1e-6
        raise ValueError(f"expected {name} between {limits}, got {number:g}")
    return number


def check_margin(name: str, margin: float) -> float:
    """Return the margin as a float; require a number between 0 and 1e6."""
    return _check_number(name, margin, least=0, sign=">= 0")


def check_temperature(name: str, temperature: float | Tensor) -> float | Tensor:
    """Return the temperature; require a number between 1e-6 and 1e6, or one number of any value as a tensor."""
    if isinstance(temperature, Tensor):
        return check_scalar(name, temperature)
    return _check_number(name, temperature, least=1e-6, sign="> 0")


def check_bias(name: str, bias: float | Tensor) -> float | Tensor:
    """Return the bias; require a number between -1e6 and 1e6, or one number of any value as a tensor."""
    return check_scalar(name, bias) if isinstance(bias, Tensor) else _check_number(name, bias)


def check_scalar(name: str, value: Tensor) -> Tensor:
    """Return a tensor without dimensions; require a floating ``[]`` or ``[1]``."""
    value = _check_floating(name, value)
    if value.dim() > 1 or value.numel() != 1:
        raise ValueError(f"expected {name} to be one number, got a tensor of shape {list(value.shape)}")
    return value.reshape(()) if value.dim() else value


def check_direction_weights(weights: Sequence[float]) -> tuple[float, float]:
    """Return the weights of the directions x -> y and y -> x; require two numbers from 0 to 1e6, not both 0."""
    if type(weights) is not tuple and (isinstance(weights, str) or not isinstance(weights, Sequence)):
        raise TypeError(f"expected direction_weights to be two numbers, got {type(weights).__name__}")
    if len(weights) != 2:
        raise ValueError(f"expected direction_weights to be two numbers, got {weights!r}")
    of_x, of_y = (_check_number(f"direction_weights[{k}]", w, least=0, sign=">= 0") for k, w in enumerate(weights))
    if of_x == of_y == 0:
        raise ValueError("expected direction_weights of which one is above 0, got (0, 0)")
    return of_x, of_y


def check_coefficients(name: str, coefficients: Sequence[float]) -> tuple[float, ...]:
    """Return coefficients as floats; require at least one number between -1e6 and 1e6, the constant term first."""
    if isinstance(coefficients, str) or not isinstance(coefficients, Sequence):
        raise TypeError(f"expected {name} to be a sequence of numbers, got {type(coefficients).__name__}")
    if len(coefficients) == 0:
        raise ValueError(f"expected {name} to hold at least the constant term, got {coefficients!r}")
    return tuple(_check_number(f"{name}[{power}]", value) for power, value in enumerate(coefficients))


def _check_size(name: str, size: int, kind: str = "a whole number") -> int:
    """Return a size as an int; require a whole number >= 1 of any integer type."""
    if not isinstance(size, Integral) or isinstance(size, bool):
        raise TypeError(f"expected {name} to be {kind}, got {type(size).__name__}")
    if size < 1:
        raise ValueError(f"expected {name} to be >= 1, got {max(int(size), -sys.maxsize)}")
    return min(int(size), sys.maxsize)


def check_tile_size(tile_size: int | None) -> int | None:
    """Return the tile size as an int, or None; require None or a whole number >= 1."""
    return None if tile_size is None else _check_size("tile_size", tile_size, "None or a whole number")


def check_micro_batch_size(size: int) -> int:
    """Return the size as an int; require a whole number >= 1."""
    return _check_size("micro_batch_size", size)


def check_retrieval(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return x and y; require floating ``[N, D]`` and ``[M, D]`` on one device."""
    x, y = _check_floating("x", x), _check_floating("y", y)
    for name, value in (("x", x), ("y", y)):
        if value.dim() != 2 or 0 in value.shape:
            raise ValueError(f"expected {name} of shape [rows, D] with rows >= 1 and D >= 1, got {list(value.shape)}")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"expected x and y of one D, got {list(x.shape)} and {list(y.shape)}")
    if x.device != y.device:
        raise ValueError(f"expected x and y on one device, got {x.device} and {y.device}")
    return x, y


def check_retrieval_ids(x: Tensor, y: Tensor, x_ids: Tensor | None, y_ids: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the ids of x and y as int64, the row numbers in place of None; require both or, where N = M, neither."""
    if (x_ids is None) != (y_ids is None):
        got = "y_ids" if x_ids is None else "x_ids"
        raise ValueError(f"expected both x_ids and y_ids, or neither, got {got} alone")
    if x_ids is None or y_ids is None:
        if len(x) != len(y):
            raise ValueError(
                f"expected x_ids and y_ids, since x and y differ in length, got {len(x)} and {len(y)} rows"
            )
        pairs = torch.arange(len(x), device=x.device)
        return pairs, pairs
    return _check_ids_of_rows("x", x_ids, x), _check_ids_of_rows("y", y_ids, y)


def check_relevant_pairs(x: Tensor, y: Tensor, x_ids: Tensor | None, y_ids: Tensor | None, pairs: Tensor) -> Tensor:
    """Return pairs of a row of x and a row of y as int64 ``[P, 2]``; require rows that there are, and no ids."""
    if x_ids is not None or y_ids is not None:
        raise ValueError("expected ids or relevant, got both")
    if not isinstance(pairs, Tensor):
        raise TypeError(f"expected relevant to be an integer tensor [pairs, 2], got {type(pairs).__name__}")
    check_dense("relevant", pairs)
    if pairs.dtype not in INTEGER:
        raise TypeError(f"expected relevant of an integer dtype ({_names(INTEGER)}), got {pairs.dtype}")
    if pairs.dim() != 2 or pairs.shape[1] != 2 or len(pairs) == 0:
        raise ValueError(f"expected relevant of shape [pairs, 2] with pairs >= 1, got {list(pairs.shape)}")
    if pairs.device != x.device:
        raise ValueError(f"expected relevant on the device of x, {x.device}, got {pairs.device}")
    least, largest = torch.stack([pairs.long().amin(0), pairs.long().amax(0)]).tolist()
    for name, rows, low, high in zip("xy", (x, y), least, largest, strict=True):
        if wrong := [row for row in (low, high) if not 0 <= row < len(rows)]:
            raise ValueError(f"expected relevant to hold rows of {name} from 0 to {len(rows) - 1}, got {wrong[0]}")
    return pairs.long()


def _check_ids_of_rows(side: str, ids: Tensor, rows: Tensor) -> Tensor:
    """Return the ids of x or y as int64; require an integer for each row, on the device of the rows."""
    name = f"{side}_ids"
    if not isinstance(ids, Tensor):
        raise TypeError(f"expected {name} to be an integer tensor [rows], got {type(ids).__name__}")
    check_dense(name, ids)
    if ids.dtype not in INTEGER:
        raise TypeError(f"expected {name} of an integer dtype ({_names(INTEGER)}), got {ids.dtype}")
    if ids.shape != rows.shape[:1]:
        raise ValueError(f"expected {name} of shape [{len(rows)}], one for each row of {side}, got {list(ids.shape)}")
    if ids.device != rows.device:
        raise ValueError(f"expected {name} on the device of {side}, {rows.device}, got {ids.device}")
    return ids.long()


def check_ks(ks: Iterable[int]) -> tuple[int, ...]:
    """Return the numbers of ranks as ints; require at least one whole number >= 1."""
    if isinstance(ks, str) or not isinstance(ks, Iterable):
        raise TypeError(f"expected ks to be whole numbers such as (1, 5, 10), got {type(ks).__name__}")
    checked = tuple(_check_size(f"ks[{place}]", k) for place, k in enumerate(ks))
    if not checked:
        raise ValueError("expected ks to hold at least one whole number, got none")
    return checked


def check_embedding_fields(fields: str | Sequence[str | None] | None) -> tuple[str | None, str | None]:
    """Return the fields of the two encoders' outputs; require None or a name for both, or a pair of these."""
    pair = (fields, fields) if fields is None or isinstance(fields, str) else fields
    if isinstance(pair, Sequence) and len(pair) == 2:
        of_x, of_y = pair
        if (of_x is None or isinstance(of_x, str)) and (of_y is None or isinstance(of_y, str)):
            return of_x, of_y
    raise TypeError(f"expected embedding to be None, the name of a field, or a pair of these, got {fields!r}")
