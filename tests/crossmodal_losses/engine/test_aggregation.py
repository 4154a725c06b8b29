"""Aggregations: the states of tiles, merged and finished, are the aggregate over the rows of S."""

from functools import reduce

import pytest
import torch

from crossmodal_losses.engine.aggregation import EXCLUDED, Aggregation, HardestNegative, HingeSum, LogSumExp
from crossmodal_losses.engine.operands import blocks
from crossmodal_losses.similarity import is_negative

LEARNED = LogSumExp(torch.tensor(0.3, dtype=torch.float64))
AGGREGATIONS = [HardestNegative(), HingeSum(0.2), LogSumExp(0.5), LogSumExp(0.01), LEARNED]


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("step", [1, 4, 11])
def test_merged_states_are_the_aggregate(aggregation: Aggregation, step: int) -> None:
    """S has ties; the tiles are merged from the last to the first."""
    S = torch.randint(-8, 9, (11, 11), generator=torch.Generator().manual_seed(0)).double() / 8
    negative = is_negative(torch.arange(11) // 2, S)
    without_others = S.masked_fill(~negative, EXCLUDED)
    states = []
    for block in reversed(blocks(slice(0, 11), step)):
        tile = aggregation.prepare(without_others[:, block].clone())
        states.append(aggregation.tile_state(tile, 1, block.start, S.diagonal(), torch.empty_like(tile)))
    state = reduce(aggregation.merge, states)
    torch.testing.assert_close(aggregation.finish(state, S.diagonal()), aggregation.over_rows(S, negative))
    if aggregation.selects:
        assert state[1].tolist() == [row.index(max(row)) for row in without_others.tolist()]


@pytest.mark.parametrize("name", ["over_rows", "tile_state", "merge", "finish", "grad_tile"])
def test_an_aggregation_without_one_of_its_methods_is_not_made(name: str) -> None:
    methods = {key: value for key, value in vars(HardestNegative).items() if key != name}
    with pytest.raises(TypeError, match=f"abstract.* '?{name}'?"):
        type("Partial", (Aggregation,), methods)()
