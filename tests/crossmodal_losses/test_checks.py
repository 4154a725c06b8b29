"""Arguments that are refused, with the text of the error."""

import math
import re
from fractions import Fraction
from typing import Any

import pytest
import torch
from comparisons import each_loss

import crossmodal_losses
from crossmodal_losses import LOSSES, NTXent, Sigmoid, TripletMax, cosine_similarity, diagnose, nt_xent

S = torch.eye(3)


@each_loss
@pytest.mark.parametrize(
    "error, words, S, settings",
    [
        (TypeError, "expected S to be a tensor, got list", [[1.0]], {}),
        (TypeError, "expected S to be of a floating dtype (float16, bfloat16, float32, float64), got torch.int64",
         torch.ones(2, 2, dtype=torch.int64), {}),
        (TypeError, "got torch.complex64", torch.ones(2, 2, dtype=torch.complex64), {}),
        (TypeError, "expected S to be a dense tensor of this process, got one of layout torch.sparse_coo",
         S.to_sparse(), {}),
        (TypeError, "expected ids to be a dense tensor of this process, got one of layout torch.sparse_coo", S,
         {"ids": torch.arange(3).to_sparse()}),
        (ValueError, "expected S of shape [B, B] with B >= 1, got [2, 3]", torch.ones(2, 3), {}),
        (ValueError, "expected S of shape [B, B] with B >= 1, got [0, 0]", torch.ones(0, 0), {}),
        (ValueError, "expected S of shape [B, B] with B >= 1, got [4]", torch.ones(4), {}),
        (TypeError, "expected ids to be None or an integer tensor, got list", S, {"ids": [0, 1, 2]}),
        (TypeError, "expected ids of an integer dtype (int8, uint8, int16, int32, int64), got torch.float32", S,
         {"ids": torch.ones(3)}),
        (TypeError, "got torch.bool", S, {"ids": torch.ones(3, dtype=torch.bool)}),
        (ValueError, "expected ids of shape [3], one for each row, got [2]", S, {"ids": torch.arange(2)}),
        (ValueError, "expected ids on the device of the embeddings, cpu, got meta", S,
         {"ids": torch.arange(3, device="meta")}),
        (ValueError, "expected reduction to be 'mean', 'sum' or 'none', got 'average'", S, {"reduction": "average"}),
    ],
)  # fmt: skip
def test_functions_refuse(name: str, error: type[Exception], words: str, S: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(error, match=re.escape(words)):
        getattr(crossmodal_losses, name)(S, **settings)


@each_loss
def test_the_settings_of_functions_are_named(name: str) -> None:
    loss = getattr(crossmodal_losses, name)
    loss(S)
    with pytest.raises(TypeError, match="positional"):
        loss(S, 0.2)


def functions_and_modules(*names: str) -> list[Any]:
    return [loss for name in names for loss in (getattr(crossmodal_losses, name), LOSSES[name])]


MARGIN = [*functions_and_modules("triplet_sum", "triplet_max", "triplet_weighted_mined"), diagnose]
POLYNOMIAL = functions_and_modules("triplet_weighted", "triplet_weighted_mined")
TEMPERATURE = functions_and_modules("nt_xent", "sup_con", "sigmoid")
BIAS = functions_and_modules("sigmoid")
DIRECTIONS = functions_and_modules(*(LOSSES.keys() - {"sigmoid"}))


@pytest.mark.parametrize(
    "losses, error, words, settings",
    [
        (MARGIN, TypeError, "expected margin to be a number, got str", {"margin": "0.2"}),
        (MARGIN, TypeError, "expected margin to be a number, got bool", {"margin": True}),
        (MARGIN, ValueError, "expected margin to be finite and >= 0, got -0.1", {"margin": -0.1}),
        (MARGIN, ValueError, "expected margin to be finite and >= 0, got nan", {"margin": math.nan}),
        (MARGIN, ValueError, "expected margin to be finite and >= 0, got inf", {"margin": math.inf}),
        (MARGIN, ValueError, "expected margin to be finite and >= 0, got inf", {"margin": 10**400}),
        (MARGIN, ValueError, "expected margin between 0 and 1e6, got 1e+38", {"margin": 1e38}),
        (MARGIN, ValueError, "expected margin between 0 and 1e6, got 1.18059e+21", {"margin": 2**70}),
        (TEMPERATURE, TypeError, "expected temperature to be a number, got str", {"temperature": "cold"}),
        (TEMPERATURE, ValueError, "expected temperature to be finite and > 0, got 0", {"temperature": 0}),
        (TEMPERATURE, ValueError, "expected temperature to be finite and > 0, got inf", {"temperature": math.inf}),
        (TEMPERATURE, ValueError, "expected temperature between 1e-6 and 1e6, got 1e-09", {"temperature": 1e-9}),
        (BIAS, TypeError, "expected bias to be a number, got str", {"bias": "low"}),
        (BIAS, ValueError, "expected bias to be finite, got -inf", {"bias": -math.inf}),
        (BIAS, ValueError, "expected bias between -1e6 and 1e6, got 1e+07", {"bias": 1e7}),
        (DIRECTIONS, TypeError, "expected direction_weights to be two numbers, got float", {"direction_weights": 1.0}),
        (DIRECTIONS, TypeError, "expected direction_weights to be two numbers, got str", {"direction_weights": "xy"}),
        (DIRECTIONS, ValueError, "expected direction_weights to be two numbers, got (1,)", {"direction_weights": (1,)}),
        (DIRECTIONS, ValueError, "expected direction_weights of which one is above 0, got (0, 0)",
         {"direction_weights": (0, 0)}),
        (DIRECTIONS, TypeError, "expected direction_weights[1] to be a number, got NoneType",
         {"direction_weights": [1, None]}),
        (DIRECTIONS, ValueError, "expected direction_weights[0] to be finite and >= 0, got -1",
         {"direction_weights": (-1, 1)}),
        (POLYNOMIAL, TypeError, "expected positive_coefficients to be a sequence of numbers, got float",
         {"positive_coefficients": 0.5}),
        (POLYNOMIAL, TypeError, "expected negative_coefficients to be a sequence of numbers, got str",
         {"negative_coefficients": "123"}),
        (POLYNOMIAL, ValueError, "expected negative_coefficients to hold at least the constant term, got ()",
         {"negative_coefficients": ()}),
        (POLYNOMIAL, TypeError, "expected positive_coefficients[1] to be a number, got NoneType",
         {"positive_coefficients": (1.0, None)}),
        (POLYNOMIAL, ValueError, "expected positive_coefficients[1] between -1e6 and 1e6, got -1e+39",
         {"positive_coefficients": [0.5, -1e39]}),
        (POLYNOMIAL, ValueError, "expected positive_coefficients[0] to be finite, got -inf",
         {"positive_coefficients": [Fraction(-(10**400), 3)]}),
        (POLYNOMIAL, ValueError, "expected negative_coefficients[0] to be finite, got nan",
         {"negative_coefficients": (math.nan,)}),
    ],
)  # fmt: skip
def test_settings_are_refused(losses: list[Any], error: type[Exception], words: str, settings: dict[str, Any]) -> None:
    for loss in losses:
        inputs = () if isinstance(loss, type) else (S, S) if loss is diagnose else (S,)
        with pytest.raises(error, match=re.escape(words)):
            loss(*inputs, **settings)


@pytest.mark.parametrize(
    "losses, name, least, largest",
    [
        (MARGIN, "margin", 0.0, 1e6),
        (TEMPERATURE, "temperature", 1e-6, 1e6),
        (POLYNOMIAL, "positive_coefficients", -1e6, 1e6),
    ],
)
def test_settings_range_up_to_their_limits(losses: list[Any], name: str, least: float, largest: float) -> None:
    for loss in losses:
        inputs = () if isinstance(loss, type) else (S, S) if loss is diagnose else (S,)
        for limit, beyond in ((least, -math.inf), (largest, math.inf)):
            outside = math.nextafter(limit, beyond)
            allowed, refused = ((limit,), (outside,)) if losses is POLYNOMIAL else (limit, outside)
            loss(*inputs, **{name: allowed})
            with pytest.raises(ValueError, match=f"expected {name}.* (between|to be finite)"):
                loss(*inputs, **{name: refused})


@each_loss
def test_modules_refuse_ids_of_another_length(name: str) -> None:
    x = torch.ones(3, 2)
    with pytest.raises(ValueError, match=re.escape("expected ids of shape [3], one for each row, got [2]")):
        LOSSES[name]()(x, x, torch.arange(2))


def test_temperature_tensors_are_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("expected temperature to be one number, got a tensor of shape [2]")):
        nt_xent(S, temperature=torch.ones(2))
    with pytest.raises(TypeError, match=re.escape("expected temperature to be of a floating dtype")):
        nt_xent(S, temperature=torch.tensor(1))
    with pytest.raises(TypeError, match=re.escape("got Tensor; to learn it: learn_temperature=True")):
        NTXent(temperature=torch.tensor(0.07))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=re.escape("got Tensor; to learn it: learn_bias=True")):
        Sigmoid(bias=torch.tensor(-1.0))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected learn_bias to be True or False, got int"):
        Sigmoid(learn_bias=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected learn_temperature to be True or False, got str"):
        NTXent(learn_temperature="no")  # type: ignore[arg-type]
    for start in (0.01, 1.0):
        words = f"expected a learned temperature to start strictly between 0.01 and 1, got {start}"
        with pytest.raises(ValueError, match=words):
            NTXent(temperature=start, learn_temperature=True)


@pytest.mark.parametrize("loss", [*(module() for module in LOSSES.values()), cosine_similarity, diagnose])
@pytest.mark.parametrize(
    "error, words, x, y",
    [
        (TypeError, "expected x to be a tensor, got list", [[1.0]], torch.ones(1, 1)),
        (TypeError, "expected y to be of a floating dtype (float16, bfloat16, float32, float64), got torch.int32",
         torch.ones(1, 1), torch.ones(1, 1, dtype=torch.int32)),
        (ValueError, "expected x of shape [B, D] with B >= 1 and D >= 1, got [3]", torch.ones(3), torch.ones(3)),
        (ValueError, "expected x of shape [B, D] with B >= 1 and D >= 1, got [0, 3]",
         torch.ones(0, 3), torch.ones(0, 3)),
        (ValueError, "expected y of shape [B, D] with B >= 1 and D >= 1, got [3, 0]",
         torch.ones(3, 1), torch.ones(3, 0)),
        (ValueError, "expected x and y of one D, got shapes [3, 2] and [3, 5]", torch.ones(3, 2), torch.ones(3, 5)),
        (ValueError, "expected x and y on one device, got cpu and meta",
         torch.ones(3, 2), torch.ones(3, 2, device="meta")),
    ],
)  # fmt: skip
def test_embeddings_are_refused(loss: Any, error: type[Exception], words: str, x: Any, y: Any) -> None:
    with pytest.raises(error, match=re.escape(words)):
        loss(x, y)


X = torch.eye(3)


@pytest.mark.parametrize("loss", [*(module() for module in LOSSES.values()), diagnose])
def test_pairs_are_of_one_shape(loss: Any) -> None:
    with pytest.raises(ValueError, match=re.escape("expected x and y of one shape [B, D], got [3, 3] and [2, 3]")):
        loss(X, X[:2])


@pytest.mark.parametrize("loss", [module() for module in LOSSES.values()])
@pytest.mark.parametrize("side", ["x", "y"])
@pytest.mark.parametrize(
    "error, words, negatives, ids, with_ids",
    [
        (TypeError, "expected negatives_{} to be a tensor, got list", [1.0], None, True),
        (TypeError, "expected negatives_{} to be of a floating dtype", X.long(), None, True),
        (TypeError, "expected negatives_{} to be a dense tensor", X.to_sparse(), None, True),
        (ValueError, "expected negatives_{} of shape [any, 3], got [3]", X[0], None, True),
        (ValueError, "expected negatives_{} of shape [any, 3], got [3, 2]", X[:, :2], None, True),
        (ValueError, "expected negatives_{} on the device of the pairs, cpu, got meta", X.to("meta"), None, True),
        (ValueError, "expected negative_ids_{0} with negatives_{0}, got it alone", None, torch.arange(3), True),
        (ValueError, "expected ids with negative_ids_{0}, got negative_ids_{0} alone", X, torch.arange(3), False),
        (ValueError, "expected negative_ids_{} of shape [2], one for each row, got [3]", X[:2], torch.arange(3), True),
        (TypeError, "expected negative_ids_{} of an integer dtype", X, torch.ones(3), True),
        (TypeError, "expected negative_ids_{} to be None or an integer tensor, got list", X, [0, 1, 2], True),
    ],
)  # fmt: skip
def test_candidates_without_a_partner_are_refused(
    loss: Any, side: str, error: type[Exception], words: str, negatives: Any, ids: Any, with_ids: bool
) -> None:
    given = {f"negatives_{side}": negatives, f"negative_ids_{side}": ids}
    with pytest.raises(error, match=re.escape(words.format(side))):
        loss(X, X, torch.arange(3) if with_ids else None, **given)


def test_settings_of_a_call_are_refused() -> None:
    with pytest.raises(TypeError, match="expected settings of a call of TripletMax: none; got temperature"):
        TripletMax()(X, X, temperature=torch.tensor(0.1))
    with pytest.raises(TypeError, match=r"expected settings of a call of NTXent: .*temperature.*; got .*bias"):
        NTXent()(X, X, bias=torch.tensor(0.1))
    for loss in (NTXent(), Sigmoid()):
        with pytest.raises(
            ValueError, match=re.escape("expected temperature to be one number, got a tensor of shape [2]")
        ):
            loss(X, X, temperature=torch.ones(2))
        with pytest.raises(ValueError, match="expected temperature to be finite and > 0, got 0"):
            loss(X, X, temperature=0)
    with pytest.raises(TypeError, match="expected bias to be of a floating dtype"):
        Sigmoid()(X, X, bias=torch.tensor(1))
    with pytest.raises(TypeError, match="unexpected keyword argument 'tau'"):
        NTXent(tau=1)


@each_loss
def test_modules_refuse_settings_when_made(name: str) -> None:
    module: Any = LOSSES[name]
    with pytest.raises(ValueError, match="expected reduction to be"):
        module(reduction="max")
    with pytest.raises(ValueError, match="expected tile_size to be >= 1, got 0"):
        module(tile_size=0)
    for wrong, kind in ((128.0, "float"), ("128", "str"), (True, "bool")):
        with pytest.raises(TypeError, match=f"expected tile_size to be None or a whole number, got {kind}"):
            module(tile_size=wrong)
    with pytest.raises(TypeError, match="positional"):
        module(0.2)


def test_the_copy_for_compiled_programs_describes_its_result() -> None:
    torch.library.opcheck(torch.ops.crossmodal_losses.copy.default, (torch.arange(3),))
