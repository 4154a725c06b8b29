"""Run examples in turn, in processes forked from one that has imported their frameworks: imports take most of the time.

``python tests/fork_examples.py FOLDER with_queue.py:1 with_fsdp.py:2 ...``: each example in so many
processes. What each prints goes to FOLDER/EXAMPLE:PROCESSES.RANK. Processes find each other by the variables that
torchrun sets.
"""

import os
import runpy
import socket
import sys
import traceback
from pathlib import Path

import lightning_fabric
import open_clip_train.train
import pytorch_lightning
import torch
import torch._dynamo  # the first optimizer imports it
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer
from transformers import ClapModel, CLIPModel, Trainer

import crossmodal_losses

EXAMPLES = Path(__file__).parents[1] / "examples"
IMPORTED = (lightning_fabric, open_clip_train, pytorch_lightning, torch, crossmodal_losses)
IMPORTED_LATE = (ClapModel, CLIPModel, Dataset, SentenceTransformerTrainer, Trainer)


def run(example: str, output: Path, **variables: object) -> None:
    """Run an example as the program of this process, and end the process."""
    os.environ.update({name: str(value) for name, value in variables.items()})
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    try:
        sys.argv = [str(EXAMPLES / example)]
        runpy.run_path(sys.argv[0], run_name="__main__")
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def main(folder: Path, wanted: list[str]) -> None:
    """Run each example and wait for its processes."""
    for name in wanted:
        example, processes = name.split(":")
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        children = []
        variables = {"WORLD_SIZE": processes, "LT_DEVICES": processes, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        for rank in range(int(processes)):
            if not (child := os.fork()):
                run(example, folder / f"{name}.{rank}", RANK=rank, LOCAL_RANK=rank, **variables)
            children.append(child)
        for child in children:
            os.waitpid(child, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
