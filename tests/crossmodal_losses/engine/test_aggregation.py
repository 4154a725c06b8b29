"""Aggregations: the states of tiles, merged and finished, are the aggregate over the rows of S."""

from functools import reduce

import pytest
import torch

from crossmodal_losses.engine.aggregation import EXCLUDED, Aggregation, HardestNegative, HingeSum, LogSumExp, Tile
from crossmodal_losses.engine.operands import blocks
from crossmodal_losses.losses.sigmoid import SoftplusSum
from crossmodal_losses.losses.sup_con import SoftmaxOfSeveral
from crossmodal_losses.similarity import is_negative

LEARNED = LogSumExp(torch.tensor(0.3, dtype=torch.float64))
AGGREGATIONS = [HardestNegative(), HingeSum(0.2), LogSumExp(0.5), LogSumExp(0.01), LEARNED]
AGGREGATIONS += [SoftmaxOfSeveral(0.3), SoftplusSum((0.2, -3.0))]


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("step", [1, 4, 11])
@pytest.mark.parametrize("with_ids", [False, True])
def test_merged_states_are_the_aggregate(aggregation: Aggregation, step: int, with_ids: bool) -> None:
    """S has ties; the tiles are merged from the last to the first."""
    S = torch.randint(-8, 9, (11, 11), generator=torch.Generator().manual_seed(0)).double() / 8
    ids = torch.arange(11) // 2 if with_ids else None
    negative, positive = is_negative(ids, S), S.diagonal()
    finished, indices = [], []
    for rows in blocks(slice(0, 11), step):
        states = []
        for columns in reversed(blocks(slice(0, 11), step)):
            same = (~negative[rows, columns]).double() if with_ids else None
            tile = aggregation.prepare(Tile(S[rows, columns].clone(), same, rows == columns))
            scratch = torch.empty_like(tile.values)
            states.append(aggregation.tile_state(tile, 1, columns.start, positive[rows], scratch))
        state = reduce(aggregation.merge, states)
        finished.append(aggregation.finish(state, positive[rows]))
        indices += state[1].tolist() if aggregation.selects else []
    torch.testing.assert_close(torch.cat(finished), aggregation.over_rows(S, negative))
    if aggregation.selects:
        assert indices == [row.index(max(row)) for row in S.masked_fill(~negative, EXCLUDED).tolist()]


@pytest.mark.parametrize("name", ["over_rows", "tile_state", "merge", "finish", "grad_tile"])
def test_an_aggregation_without_one_of_its_methods_is_not_made(name: str) -> None:
    methods = {key: value for key, value in vars(HardestNegative).items() if key != name}
    with pytest.raises(TypeError, match=f"abstract.* '?{name}'?"):
        type("Partial", (Aggregation,), methods)()
