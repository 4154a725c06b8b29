"""Aggregations: the states of tiles, merged and finished, are the aggregate over the rows of S."""

import pytest
import torch
from torch import Tensor

from crossmodal_losses.engine.aggregation import EXCLUDED, Aggregation, HardestNegative, HingeSum, LogSumExp, State
from crossmodal_losses.engine.operands import blocks
from crossmodal_losses.similarity import is_negative

B = 11
AGGREGATIONS = {
    "hardest": HardestNegative(),
    "hinges": HingeSum(0.2),
    "t = 0.5": LogSumExp(0.5),
    "t = 0.01": LogSumExp(0.01),
    "learned t": LogSumExp(torch.tensor(0.3, dtype=torch.float64)),
}
each_aggregation = pytest.mark.parametrize("name", AGGREGATIONS)


def similarities() -> tuple[Tensor, Tensor]:
    """S with ties, and which pairs are negatives."""
    generator = torch.Generator().manual_seed(0)
    S = (torch.rand(B, B, generator=generator, dtype=torch.float64) * 16).round() / 8 - 1
    return S, is_negative(torch.arange(B) // 2, S)


def state_of_rows(aggregation: Aggregation, S: Tensor, negative: Tensor, step: int) -> State:
    """The states of tiles of that many columns, merged from the last to the first."""
    states = []
    for block in blocks(slice(0, B), step):
        tile = aggregation.prepare(S.masked_fill(~negative, EXCLUDED)[:, block].clone())
        states.append(aggregation.tile_state(tile, 1, block.start, S.diagonal(), torch.empty_like(tile)))
    state = states.pop()
    while states:
        state = aggregation.merge(state, states.pop())
    return state


@each_aggregation
@pytest.mark.parametrize("step", [1, 4, B])
def test_merged_states_are_the_aggregate(name: str, step: int) -> None:
    aggregation = AGGREGATIONS[name]
    S, negative = similarities()
    state = state_of_rows(aggregation, S, negative, step)
    torch.testing.assert_close(aggregation.finish(state, S.diagonal()), aggregation.over_rows(S, negative))


@each_aggregation
def test_gradients_of_a_tile_and_of_positives(name: str) -> None:
    """The gradients are those of the definition, by autograd; along the columns too."""
    aggregation = AGGREGATIONS[name]
    S, negative = similarities()
    S.requires_grad_()
    upstream = torch.linspace(0.5, 2, B, dtype=torch.float64)
    (expected,) = torch.autograd.grad((aggregation.over_rows(S, negative) * upstream).sum(), S)
    S.requires_grad_(False)
    state = state_of_rows(aggregation, S, negative, 4)
    factors = aggregation.anchor_factors(state, upstream)
    tile = aggregation.prepare(S.masked_fill(~negative, EXCLUDED))
    for dim, oriented in ((1, tile), (0, tile.T.contiguous())):
        grad = torch.empty_like(oriented)
        aggregation.grad_tile(oriented, dim, 0, state, S.diagonal(), factors, grad)
        grad = grad if dim == 1 else grad.T
        through = aggregation.grad_positive(state, upstream)
        if through is not None:
            grad = grad + through.diag()
        torch.testing.assert_close(grad, expected)


def test_gradient_of_the_temperature() -> None:
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    aggregation = LogSumExp(temperature)
    S, negative = similarities()
    upstream = torch.linspace(0.5, 2, B, dtype=torch.float64)
    (expected,) = torch.autograd.grad((aggregation.over_rows(S, negative) * upstream).sum(), temperature)
    with torch.no_grad():
        state = state_of_rows(aggregation, S, negative, 4)
        tile = aggregation.prepare(S.masked_fill(~negative, EXCLUDED))
        grad = torch.empty_like(tile)
        aggregation.grad_tile(tile, 1, 0, state, S.diagonal(), aggregation.anchor_factors(state, upstream), grad)
        found = aggregation.grad_parameter(tile, grad, torch.empty_like(tile))
        found = found + aggregation.grad_parameter_of_positives(S.diagonal(), upstream)
    torch.testing.assert_close(found, expected)
    assert HingeSum(0.2).parameter is None
