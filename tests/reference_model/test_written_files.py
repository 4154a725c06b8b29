"""Files and folders are written whole or not at all, under any name, and a full disk is said in one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from reference_model import InputError
from reference_model.runtime.files import NotWritten, atomic_folder, fit_name, write_text


@pytest.mark.parametrize("name", ["n" * 255, "é" * 127 + "x", "n" * 250, "n" * 249])
def test_a_name_may_be_as_long_as_file_systems_allow(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / name, "whole")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "whole")]
    atomic_folder(tmp_path / "a" / name, lambda beside: (beside / "b").touch())
    assert (tmp_path / "a" / name / "b").exists()


def test_names_that_are_cut_stay_different() -> None:
    long = "é" * 120
    names = [fit_name(long + end, before=".", after=".part") for end in ("12345", "54321")]
    assert names[0] != names[1]
    for name in names:
        assert len(name.encode()) <= 255
        assert name.startswith(".éé")
        assert name.endswith(".part")
    assert fit_name("a", before=".", after=".part") == ".a.part"


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    folder, old = tmp_path / "a", tmp_path / ".a.old"

    def content() -> list[str]:
        return sorted(path.name for path in folder.iterdir())

    atomic_folder(folder, lambda beside: (beside / "first").touch())
    atomic_folder(folder, lambda beside: (beside / "second").touch())
    assert content() == ["second"]

    def half(beside: Path) -> None:
        (beside / "third").touch()
        raise OSError("No space left")

    with pytest.raises(NotWritten, match=f"expected to write {folder}, got: No space left"):
        atomic_folder(folder, half)
    assert content() == ["second"]

    def refuse(place: Path) -> None:
        raise InputError(f"{place.name} is not to be replaced")

    for place in (folder, old):
        old.mkdir(exist_ok=True)
        with pytest.raises(InputError, match=f"{old.name if old.exists() else place.name} is not to be replaced"):
            atomic_folder(folder, lambda beside: None, check=refuse)
        old.rmdir()
    with pytest.raises(InputError, match="a is not to be replaced"):
        atomic_folder(folder, lambda beside: None, check=refuse)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert content() == ["second"]


FULL_DISK = """
import resource, sys, warnings
import subprocess
import sys
from pathlib import Path
import numpy, soundfile, torch
from matplotlib.figure import Figure
from transformers import BertConfig, BertModel
from reference_model.data.dataset import write_csv
from reference_model.models import bert
from reference_model.runtime import files, tensors
from reference_model.training.curves import write_figure
folder = Path(sys.argv[1])
tokenizer = bert.train_tokenizer([f"word{n} a dog" for n in range(500)])
encoder = bert.tiny(tokenizer)
writers = {
    "text": lambda path: files.write_text(path, "a" * 9000),
    "json": lambda path: files.write_json(path, ["a" * 9000]),
    "csv": lambda path: write_csv(path, [["a" * 9000]]),
    "safetensors": lambda path: tensors.save_tensors(path, {"x": torch.zeros(9000)}),
    "torch": lambda path: files.atomic_write(path, lambda beside: torch.save({"x": torch.zeros(9000)}, beside)),
    "wav": lambda path: files.atomic_write(path, lambda b: soundfile.write(b, numpy.zeros(9000), 8000, format="WAV")),
    "png": lambda path: write_figure(path, Figure()),
    "saved BERT": lambda path: files.atomic_folder(path, encoder.save),
    "BERT": lambda path: files.atomic_folder(path, lambda b: bert.save_pretrained(b, encoder.model, tokenizer)),
}
limit = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
for name, write in writers.items():
    try:
        write(folder / name)
        print(name, "is written")
    except files.NotWritten as error:
        print(name, "NotWritten", str(error))
resource.setrlimit(resource.RLIMIT_FSIZE, limit)
"""


def test_a_full_disk_is_one_line_whatever_is_written(tmp_path: Path) -> None:
    """No file can grow beyond 1,000 bytes."""
    command = [sys.executable, "-W", "ignore", "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 9
    for line in lines:
        name = line.partition(" NotWritten ")[0]
        assert line.startswith(f"{name} NotWritten expected to write {tmp_path / name}, got: ")
    assert not list(tmp_path.iterdir())


FULL_LOG = """
import logging, resource, sys
from pathlib import Path
from reference_model.runtime.files import NotWritten
from reference_model.training.checkpoint import Progress
from reference_model.training.monitor import Monitor, log, log_to_folder
from types import SimpleNamespace
import torch
folder = Path(sys.argv[1])
config = SimpleNamespace(loss="nt_xent", seed=0, epochs=9, dataset="Synthetic")
monitor = Monitor(config, folder, Progress(), 1000, show_bar=True, is_main=True)
limit = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (200, limit[1]))
with log_to_folder(folder, is_main=True):
    for _ in range(20):
        log.info("a line that is longer than the room that is left")
    try:
        for step in range(1, 1000):
            monitor.progress.step += 1
            monitor.add_loss(torch.zeros(()))
            monitor.fetch_losses()
    except NotWritten as error:
        print(error)
    try:
        monitor.close()
    except NotWritten:
        pass
resource.setrlimit(resource.RLIMIT_FSIZE, limit)
"""


def test_a_log_on_a_full_disk_is_cut_and_tensorboard_refuses_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FULL_LOG, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.stdout.startswith(f"expected to write {tmp_path}/tensorboard, got: ")
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr, done.stderr
    assert (tmp_path / "log.txt").stat().st_size == 200
