"""The plain epilogue: a tile of inner products becomes the states and the gradient of its part of S."""

import pytest
import torch
from comparisons import normal_pair

from crossmodal_losses.engine.aggregation import Aggregation, HardestNegative, HingeSum, LogSumExp
from crossmodal_losses.engine.epilogue import Plain, numbered
from crossmodal_losses.engine.operands import measure_norms
from crossmodal_losses.similarity import is_negative

AGGREGATIONS: list[Aggregation] = [HardestNegative(), HingeSum(0.2), LogSumExp(0.1), LogSumExp(0.01)]


def test_ids_are_numbered_without_collisions() -> None:
    ids = torch.tensor([2**60, -3, 2**60 + 1, -3])
    assert numbered(ids, torch.float32).tolist() == [1.0, 0.0, 2.0, 0.0]


@pytest.mark.parametrize("aggregation", AGGREGATIONS, ids=lambda aggregation: type(aggregation).__name__)
@pytest.mark.parametrize("with_ids", [False, True])
def test_states_of_tiles_are_those_of_the_whole(aggregation: Aggregation, with_ids: bool) -> None:
    """Over two tiles of the rows 3 to 6, one of them on the diagonal, against the definition over all of S."""
    B = 10
    x, y = (e.detach() for e in normal_pair(0, B, 5))
    ids = torch.arange(B) // 3 if with_ids else None
    operands = measure_norms(x, y, B)
    products = x @ y.T
    S = products * operands.inv_norm[0][:, None] * operands.inv_norm[1]
    epilogue = Plain(operands.inv_norm, ids, aggregation, S.diagonal().clone(), torch.float64)
    rows = slice(3, 6)
    states = []
    for columns in (slice(0, 3), rows, slice(6, B)):
        epilogue.take(products[rows, columns].clone(), rows, columns)
        states.append(epilogue.states()[0])
    state = aggregation.merge(aggregation.merge(states[0], states[1]), states[2])
    expected = aggregation.over_rows(S, is_negative(ids, S))[rows]
    torch.testing.assert_close(aggregation.finish(state, S.diagonal()[rows]), expected)


def test_a_tile_without_violations_has_no_gradient() -> None:
    inv_norm = torch.ones(2, 4)
    epilogue = Plain(inv_norm, None, HingeSum(0.2), torch.tensor([1.0, 1.0, 1.0, 0.1]), torch.float32)
    epilogue.take(torch.zeros(2, 2), slice(0, 2), slice(2, 4))
    gradient = epilogue.grad_products((), torch.ones(2, 4))
    assert gradient.tolist() == [[0.0, 1.0], [0.0, 1.0]]  # 0.2 + 0 - 0.1 of the last column
    assert epilogue.any_gradient()
    epilogue.take(torch.full((2, 2), -1.0), slice(0, 2), slice(2, 4))
    epilogue.grad_products((), torch.ones(2, 4))
    assert not epilogue.any_gradient()
