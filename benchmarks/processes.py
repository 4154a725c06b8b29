"""Processes that work together on this machine, and what becomes of the others when one of them dies."""

import logging
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import click
import torch
import torch.distributed as dist

# Functions of it hold the default group of the time when it was imported: there must be none, or that group's threads
# outlive it and may abort the process at its end.
import torch.distributed.nn
from torch.multiprocessing.spawn import ProcessException, spawn


def launch(function: Callable[..., object], count: int, *arguments: object, timeout: float) -> None:
    """Call ``function(rank, *arguments)`` in ``count`` new processes and wait for all of them.

    Raises:
        click.ClickException: one of them died, or they took longer than ``timeout`` seconds; none is left running.
    """
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # ending the others is what it should do
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
    """Make this process one of the default group; it takes its share of the cores.

    Args:
        meeting: a file that is not there yet, in a folder that is.
        device: "cpu", for gloo; or "cuda", for NCCL, where every rank takes the GPU of its number.
    """
    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    if device == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo", init_method=meeting.as_uri(), rank=rank, world_size=count,
        timeout=timedelta(seconds=timeout),
    )  # fmt: skip
