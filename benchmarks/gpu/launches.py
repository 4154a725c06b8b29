"""The launches of forward and backward: how many there are. Tests count them without a GPU, ``make gpu`` on one."""

from collections.abc import Callable
from typing import Any

import torch

from crossmodal_losses import LOSSES, NTXent, PairLoss, Sigmoid

# Operators that launch nothing, beside views.
ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "lift_fresh")

MAKE: dict[str, Callable[..., PairLoss]] = {
    **LOSSES,
    "nt_xent, learned": lambda **settings: NTXent(learn_temperature=True, **settings),
    "sigmoid, learned": lambda **settings: Sigmoid(learn_temperature=True, learn_bias=True, **settings),
}

# All of S, and 2 x 2 tiles. The length of a row is a multiple of 16 in two of them, and is none in the other two.
D, DENSE, TILED, TILE = 1024, 32, 4096 + 999, 4096
DTYPES = torch.float32, torch.bfloat16

# The launches at these sizes: operators that are no views and allocate nothing, and Triton kernels. An improvement
# lowers them. Without and with ids: dense in float32, in bfloat16; in tiles in float32, in bfloat16.
LAUNCHES = {
    "triplet_sum": ((64, 71), (68, 75), (66, 72), (70, 76)),
    "triplet_max": ((56, 65), (60, 69), (93, 101), (99, 107)),
    "triplet_weighted": ((69, 78), (73, 82), (106, 114), (112, 120)),
    "triplet_weighted_mined": ((91, 100), (95, 104), (128, 136), (134, 142)),
    "nt_xent": ((54, 61), (58, 65), (89, 95), (93, 99)),
    "sup_con": ((54, 95), (58, 99), (89, 112), (93, 116)),
    "sigmoid": ((46, 55), (50, 59), (65, 71), (69, 75)),
    "nt_xent, learned": ((79, 86), (83, 90), (107, 113), (111, 117)),
    "sigmoid, learned": ((68, 77), (72, 81), (108, 114), (112, 118)),
}

# Beside these, a small batch that learns multiplies the derivative in the temperature by the upstream gradient; and has
# what makes a temperature from what is learned, a sigmoid, a factor and an exponential, and as many back. A bias is put
# beside it.
OF_PARAMETERS = {"nt_xent, learned": 1 + 6, "sigmoid, learned": 1 + 7}


def of_small_batch(name: str, reduction: str = "mean") -> int:
    """Return the launches of up to 128 pairs: the upstream gradient of 1, five of the loss, and what it learns."""
    return 1 + 5 + (reduction == "none") + OF_PARAMETERS.get(name, 0)


def launches(operator: Any) -> bool:
    """Return whether an operator of torch launches something: it is no view, and does not only allocate."""
    name, namespace = operator.overloadpacket.__name__, operator.namespace
    return not operator.is_view and name not in ALLOCATIONS and namespace != "prim"
