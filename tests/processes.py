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

# No collective of a test takes long, and a rank whose peers are gone must say so.
TIMEOUT = datetime.timedelta(seconds=60)


def _rank(rank: int, count: int, meeting: str, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count, timeout=TIMEOUT)
    work(*arguments)
    dist.barrier()  # nobody leaves while another still talks
    dist.destroy_process_group()


def exit_codes(count: int, work: Callable[..., None], *arguments: Any) -> list[int | None]:
    """Call ``work(*arguments)`` on every rank, whatever becomes of the others; None: it had to be stopped."""
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
    """Call ``work(*arguments)`` on every rank. The first rank that raises has its traceback shown."""
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
