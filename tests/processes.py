"""Run a function in several processes at once, as the ranks of a gloo group."""

import datetime
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing import get_context

# No collective of a test takes longer, and a rank must raise an error when other ranks are gone.
TIMEOUT = datetime.timedelta(seconds=60)

# No test takes longer, in seconds.
LONGEST = 300

DONE = "done"


def _rank(rank: int, count: int, folder: Path, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=count, timeout=TIMEOUT)
    try:
        work(*arguments)
    except BaseException:
        _report(folder, rank, traceback.format_exc())
        raise
    _report(folder, rank, DONE)
    dist.barrier()  # no rank leaves while another still sends
    dist.destroy_process_group()


def _report(folder: Path, rank: int, text: str) -> None:
    """Say how the work of a rank ended, before its end, which is torch's and decides nothing."""
    (folder / f"{rank}.part").write_text(text, encoding="utf-8")
    (folder / f"{rank}.part").replace(folder / f"{rank}.report")


def _start(count: int, folder: str, work: Callable[..., None], arguments: tuple[Any, ...]) -> list[ForkServerProcess]:
    # Forked from a process that has imported torch and the tests, and has done nothing else.
    context = get_context("forkserver")
    context.set_forkserver_preload([work.__module__])
    ranks = [
        context.Process(target=_rank, args=(rank, count, Path(folder), work, arguments), daemon=True)
        for rank in range(count)
    ]
    for rank in ranks:
        rank.start()
    return ranks


def _end(ranks: list[ForkServerProcess], patience: float) -> list[int | None]:
    """Wait for the ranks to end, stop those that do not, and return the exit codes."""
    for rank in ranks:
        rank.join(patience)
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
    return codes


def exit_codes(count: int, work: Callable[..., None], *arguments: Any) -> list[int | None]:
    """Call ``work(*arguments)`` on every rank, and return the exit codes.

    Other ranks go on when one fails. The exit code of a rank that had to be stopped is None.
    """
    with tempfile.TemporaryDirectory() as folder:
        return _end(_start(count, folder, work, arguments), 2 * TIMEOUT.total_seconds())


def run(count: int, work: Callable[..., None], *arguments: Any) -> None:
    """Call ``work(*arguments)`` on every rank; fail with the traceback of the first rank that raises."""
    with tempfile.TemporaryDirectory() as folder:
        ranks, started = _start(count, folder, work, arguments), time.monotonic()
        while True:
            # First: a rank reports before it ends.
            ended = {rank for rank in range(count) if not ranks[rank].is_alive()}
            paths = {rank: Path(folder, f"{rank}.report") for rank in range(count)}
            reports = {rank: path.read_text(encoding="utf-8") for rank, path in paths.items() if path.exists()}
            failed = ended - reports.keys() or set(reports.values()) - {DONE}
            if failed or len(reports) == count or time.monotonic() - started > LONGEST:
                break
            time.sleep(0.05)
        done = len(reports) == count and set(reports.values()) == {DONE}
        codes = _end(ranks, patience=30 if done else 0)
        for rank in range(count):
            report = reports.get(
                rank, f"rank {rank} of {work.__name__} did not report, and has the exit code {codes[rank]}"
            )
            assert report == DONE, report
