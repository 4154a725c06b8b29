"""Over a thousand wrong calls of every kind of public function: each is refused in words, or is right."""

import math
import random
import re
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import crossmodal_losses
from crossmodal_losses import LOSSES, GatheredLoss, GradientCache, NTXent, RingLoss, cosine_similarity, diagnose

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
S = torch.rand(4, 4, generator=torch.Generator().manual_seed(1))


def like_distributed() -> Tensor:
    """Return a tensor with the one method by which a DTensor is known; making one takes a process group."""
    tensor = X.clone()
    tensor.full_tensor = tensor.clone  # type: ignore[attr-defined]
    return tensor


def wrong_tensors() -> list[Any]:
    return [
        X.to_sparse(), S.to_sparse(), S.to_sparse_csr(), torch.arange(4).to_sparse(), X.to_mkldnn(),
        torch.nested.nested_tensor([X[0], X[1, :2]]), torch.nested.nested_tensor([X[0], X[1, :2]], layout=torch.jagged),
        torch.quantize_per_tensor(X, 0.1, 0, torch.qint8), X.to(torch.complex64), X.to(torch.float8_e4m3fn), X.bool(),
        X.long(), X.half(), X.double(), X.to("meta"), torch.arange(4, device="meta"), X[:0], X[:, :0], X[0], X[None],
        X[:3], X.T, S, S[:1, :1], X[0, 0], torch.arange(4), torch.arange(3), torch.arange(4).bool(), torch.ones(1),
        torch.tensor(0.07), torch.tensor(1), X * math.nan, X * 0, like_distributed(), nn.Parameter(X),
        nn.parameter.UninitializedParameter(),
    ]  # fmt: skip


NUMBERS: list[Any] = [
    0, 1, -1, 0.2, -0.2, math.nan, math.inf, -math.inf, 1e-9, 1e38, -1e38, 1e39, 2**31, 2**63, 2**70, -(2**70), 10**400,
    -(10**400), 10**5000, Fraction(1, 3), Fraction(10**400, 3), True, 1j, np.float32(0.2), np.float64(0.5), np.int64(2),
    np.bool_(True), np.float16(math.inf), np.longdouble(0.2), np.array(0.2), np.array([0.2, 0.3]),
]  # fmt: skip
OTHERS: list[Any] = [None, "mean", "0.2", b"x", "", [], (), {}, [0.1, 0.2], [1, None], (math.nan,), [10**400], [[1]],
                     (0, 0), (0.0, 1e7), [1, 2, 3], np.ones((4, 3)), object(), Tensor, NTXent, range(3), {0.1},
                     iter([1])]  # fmt: skip

WEIGHTS = "direction_weights"
SETTINGS: dict[str, list[str]] = {
    "triplet_sum": ["margin", WEIGHTS],
    "triplet_max": ["margin", WEIGHTS],
    "triplet_weighted": ["positive_coefficients", "negative_coefficients", WEIGHTS],
    "triplet_weighted_mined": ["margin", "positive_coefficients", "negative_coefficients", WEIGHTS],
    "nt_xent": ["temperature", WEIGHTS],
    "sup_con": ["temperature", WEIGHTS],
    "sigmoid": ["temperature", "bias"],
}
NEGATIVES = ["negatives_x", "negatives_y", "negative_ids_x", "negative_ids_y"]


def call(kind: str, name: str, wrong: dict[str, Any]) -> Any:
    """Make a call that is right but for the arguments given."""
    settings = {key: wrong[key] for key in (*SETTINGS[name], "reduction") if key in wrong}
    x, y, ids = wrong.get("x", X), wrong.get("y", X.flip(0)), wrong.get("ids")
    negatives = {key: wrong[key] for key in NEGATIVES if key in wrong}
    if kind == "function":
        return getattr(crossmodal_losses, name)(wrong.get("S", S), ids=ids, **settings)
    if kind == "cosine_similarity":
        return cosine_similarity(x, y)
    if kind == "diagnose":
        margin = {"margin": wrong["margin"]} if "margin" in wrong else {}
        return diagnose(x, y, ids, **negatives, **margin).positive
    if "learn_temperature" in wrong and name == "nt_xent":
        settings["learn_temperature"] = wrong["learn_temperature"]
    loss: Any = LOSSES[name](tile_size=wrong.get("tile_size", 2 if kind == "tiles" else None), **settings)
    at_call = {key.removesuffix(" at the call"): value for key, value in wrong.items() if key.endswith(" at the call")}
    if kind == "gathered":
        loss = GatheredLoss(loss)
    if kind == "ring":
        loss = RingLoss(wrong.get("loss", loss))
    if kind == "cache":
        cache = GradientCache(wrong.get("loss", loss), micro_batch_size=wrong.get("micro_batch_size", 3))
        return cache(wrong.get("encode_x", nn.Identity()), nn.Identity(), x, y, ids, **negatives, **at_call)
    return loss(x, y, ids, **negatives, **at_call)


KINDS = ["function", "module", "tiles", "gathered", "ring", "cache", "cosine_similarity", "diagnose"]
ARGUMENTS = [
    "x", "y", "ids", "S", "reduction", "tile_size", "micro_batch_size", "loss", "learn_temperature", "encode_x",
    "temperature at the call", "bias at the call", *NEGATIVES,
]  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.filterwarnings("ignore:.*(nested|Sparse|sparse|quantiz)")
def test_wrong_calls_are_refused_in_words(seed: int) -> None:
    draw, values = random.Random(seed), [*wrong_tensors(), *NUMBERS, *OTHERS]
    for _ in range(100):
        kind, name = draw.choice(KINDS), draw.choice(sorted(LOSSES))
        arguments = draw.sample([*ARGUMENTS, *SETTINGS[name]], draw.choice([1, 1, 2]))
        wrong = {argument: draw.choice(values) for argument in arguments}
        try:
            value = call(kind, name, wrong)
        except (TypeError, ValueError) as error:
            if not re.search(r"expected .* got |__init__\(\) takes 1 positional", str(error), re.DOTALL):
                pytest.fail(f"{kind} of {name} with {wrong}: {error}")
        else:
            assert value.dtype in (torch.float32, torch.float64), (kind, name, wrong)
