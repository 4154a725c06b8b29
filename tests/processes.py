"""Run a function in several processes at once, as the ranks of a gloo group."""

import datetime
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing import get_context
from torch.multiprocessing.spawn import start_processes

# No collective of a test takes longer, and a rank must raise an error when other ranks are gone.
TIMEOUT = datetime.timedelta(seconds=60)


def _rank(rank: int, count: int, meeting: str, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count, timeout=TIMEOUT)
    work(*arguments)
    dist.barrier()  # no rank leaves while another still sends
    dist.destroy_process_group()


def exit_codes(count: int, work: Callable[..., None], *arguments: Any) -> list[int | None]:
    """Call ``work(*arguments)`` on every rank, and return the exit codes.

    Other ranks go on when one fails. The exit code of a rank that had to be stopped is None.
    """
    with tempfile.TemporaryDirectory() as folder:
        meeting = str(Path(folder) / "meeting")
        context = get_context("spawn")
        ranks = [
            context.Process(target=_rank, args=(rank, count, meeting, work, arguments), daemon=True)
            for rank in range(count)
        ]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(2 * TIMEOUT.total_seconds())
        codes = [rank.exitcode for rank in ranks]
        for rank in ranks:
            rank.kill()
        return codes


def run(count: int, work: Callable[..., None], *arguments: Any) -> None:
    """Call ``work(*arguments)`` on every rank; show the traceback of the first rank that raises."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        meeting = str(Path(folder) / "meeting")
        context = start_processes(_rank, (count, meeting, work, arguments), count, join=False)
        try:
            while not context.join(timeout=1):
                assert time.monotonic() - started < 300, f"{work.__name__} on {count} ranks does not come to an end"
        finally:
            for process in context.processes:
                process.kill()
