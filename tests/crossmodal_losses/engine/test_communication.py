"""Collectives of the engine: on ranks with different numbers of rows they do what one process does with all rows."""

import pytest
import torch
import torch.distributed as dist
from processes import run
from torch import Tensor

from crossmodal_losses.engine.communication import AllGather, ColumnPass, GroupCommunicator, Ring, SingleProcess

COMMUNICATORS: list[type[GroupCommunicator]] = [AllGather, Ring]


def test_a_single_process_communicates_with_nobody() -> None:
    communicator, y = SingleProcess(), torch.randn(3, 2)
    assert communicator.all_gather(y) is y
    assert communicator.all_reduce(y) is y
    assert communicator.reduce_scatter((y,), lambda first, second: first) == (y,)
    for grad_dtype in (None, torch.float64):
        one_pass = ColumnPass(y, grad_dtype)
        ((columns, rows, grad_y),) = communicator.columns(one_pass)
        assert columns == slice(0, 3)
        assert rows is y
        assert grad_y is one_pass.grad_y
        assert (grad_y is None) == (grad_dtype is None)


def collectives() -> None:
    rank, W = dist.get_rank(), dist.get_world_size()
    assert dist.group.WORLD is not None
    for sizes in ([2, 5, 1][:W], [3] * W):
        B = sum(sizes)
        start = sum(sizes[:rank])
        local = slice(start, start + sizes[rank])
        everything = torch.arange(2.0 * B).reshape(2, B)
        for kind in COMMUNICATORS:
            communicator = kind(dist.group.WORLD, sizes)
            assert communicator.world_size == W
            assert communicator.start == start
            assert torch.equal(communicator.all_gather(everything[:, local]), everything)
            assert communicator.all_reduce(torch.tensor(rank + 1.0)) == W * (W + 1) / 2
            (merged,) = communicator.reduce_scatter(
                (everything[0] + 100 * rank,), lambda first, second: (first[0] + second[0],)
            )
            assert torch.equal(merged, W * everything[0, local] + 100 * W * (W - 1) / 2)
            passes(communicator, torch.arange(3.0 * B).reshape(B, 3), local)


def passes(communicator: GroupCommunicator, y: Tensor, local: slice) -> None:
    """Two passes over the columns, the second with what the first kept, with gradients; then one without."""
    rank, W, B = dist.get_rank(), dist.get_world_size(), len(y)
    kept: Tensor | None = None
    for _ in range(2):
        one_pass = ColumnPass(y[local], torch.float64, kept)
        seen: list[int] = []
        for columns, rows, grad_y in communicator.columns(one_pass):
            assert torch.equal(rows, y[columns])
            assert grad_y is not None
            grad_y += (rank + 1) * y[columns]
            seen += range(B)[columns]
        assert sorted(seen) == list(range(B))
        assert one_pass.grad_y is not None
        assert torch.equal(one_pass.grad_y, y[local].double() * W * (W + 1) / 2)
        kept = one_pass.kept
    without = ColumnPass(y[local], None)
    assert all(grad_y is None for _, _, grad_y in communicator.columns(without))
    assert without.grad_y is None


@pytest.mark.parametrize("W", [2, 3])
def test_collectives_on_ranks(W: int) -> None:
    run(W, collectives)
