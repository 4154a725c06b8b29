"""Count what a process sends to the others, from its calls of torch.distributed.

The count is what an operation needs at least, for a message of n entries and W processes:

* a send: n; a broadcast from this process: (W - 1) n;
* gathering, with n of each: (W - 1) n; its reverse, scattering sums so that each gets n: (W - 1) n;
* a sum that all get: 2 (W - 1) / W n, which is a scatter of sums, then a gathering;
* all to all: everything but the part that stays at this process.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


def _to_others(parts: list[int], rank: int) -> tuple[int, float]:
    """Return the largest of the parts for one process each, and the sum of those for other processes."""
    return max(parts), sum(parts) - parts[rank]


def transfer(name: str, args: tuple[Any, ...], rank: int, count: int) -> tuple[Tensor, int, float]:
    """Return what an operation sends: a tensor of the dtype, the entries of one message, and of all messages.

    Args:
        name: name of the operation in ``torch.ops.c10d``.
        args: arguments of the operation.
        rank, count: number of this process, and number of processes.

    Raises:
        NotImplementedError: the operation is not counted here.
    """
    others, first = count - 1, args[0] if isinstance(args[0], Tensor) else args[0][0]
    match name:
        case "recv_" | "barrier":
            return first, 0, 0
        case "send":
            return first, first.numel(), first.numel()
        case "broadcast_":
            return first, first.numel(), others * first.numel() * (args[2] == rank)
        case "reduce_":
            return first, first.numel(), first.numel() * (args[3] != rank)
        case "allreduce_":
            return first, first.numel() // count, 2 * others / count * first.numel()
        case "allgather_" | "_allgather_base_":
            local = args[1] if isinstance(args[1], Tensor) else args[1][0]
            return local, local.numel(), others * local.numel()
        case "reduce_scatter_" | "_reduce_scatter_base_":
            return first, first.numel(), others * first.numel()
        case "scatter_":
            return first, first.numel(), others * first.numel() * (args[3] == rank)
        case "alltoall_":
            return args[1][0], *_to_others([part.numel() for part in args[1]], rank)
        case "alltoall_base_":
            splits, entries = args[4], args[1].numel()
            rows = splits or [1] * count
            return args[1], *_to_others([entries * row // max(sum(rows), 1) for row in rows], rank)
    raise NotImplementedError(f"expected a transfer that is counted here, got c10d.{name}")


class Traffic(TorchDispatchMode):
    """Count the bytes that this process sends to the others of the default group.

    Args:
        block: least number of entries of a message of embeddings or of their gradients.

    Attributes:
        bytes: bytes sent in messages of at least ``block`` entries.
        other_bytes: bytes sent in smaller messages.
    """

    def __init__(self, block: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.block, self.bytes, self.other_bytes = block, 0.0, 0.0
        self.rank, self.count = dist.get_rank(), dist.get_world_size()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count an operation, then run it."""
        if isinstance(func, torch._ops.OpOverload) and func.namespace == "c10d":
            what, message, sent = transfer(func._schema.name.split("::")[1], args, self.rank, self.count)
            if message >= self.block:
                self.bytes += sent * what.element_size()
            else:
                self.other_bytes += sent * what.element_size()
        return func(*args, **(kwargs or {}))
