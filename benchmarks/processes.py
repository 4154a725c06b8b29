"""Start processes that work together on this machine; when one of them dies, stop the others."""

import logging
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import click
import torch
import torch.distributed as dist

# Imported before there is a process group: its functions hold the default group of that time, whose threads would
# outlive it and may abort the process at its end.
import torch.distributed.nn
from torch.multiprocessing.spawn import ProcessException, spawn


def launch(function: Callable[..., object], count: int, *arguments: object, timeout: float) -> None:
    """Call ``function(rank, *arguments)`` in ``count`` new processes and wait for all of them.

    Raises:
        click.ClickException: one of them died, or they took longer than ``timeout`` seconds; none is left running.
    """
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # it would warn that it stops the others
    until = time.monotonic() + timeout
    processes = spawn(function, arguments, nprocs=count, join=False)
    try:
        while not processes.join(max(0.0, until - time.monotonic())):
            if time.monotonic() >= until:
                raise click.ClickException(f"expected all {count} ranks to be done in {timeout:g} s, got no end")
    except ProcessException as error:
        why = str(error).strip().splitlines()[-1]  # of a traceback: the error
        index = error.error_index
        raise click.ClickException(f"expected all {count} ranks to end well, got from rank {index}: {why}") from None
    finally:
        for process in processes.processes:
            if process.is_alive():
                process.kill()
            process.join()


def join_group(rank: int, count: int, meeting: Path, device: str, timeout: float) -> None:
    """Add this process to the default group, and divide the threads among the processes.

    Args:
        rank, count: number of this process, and number of processes.
        meeting: path of a file that does not exist yet, in a folder that does.
        device: "cpu", for gloo; or "cuda", for NCCL, where every rank takes the GPU of its number.
        timeout: seconds after which a collective fails.
    """
    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    if device == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        init_method=meeting.as_uri(),
        rank=rank,
        world_size=count,
        timeout=timedelta(seconds=timeout),
    )
