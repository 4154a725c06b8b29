"""Files and folders may have names of 255 bytes, the most that file systems allow."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from reference_model.data.dataset import read_split
from reference_model.data.prepare import prepare
from reference_model.search.index import index_path
from reference_model.search.retriever import Retriever

RATE = 32_000


def write_clip(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(number).standard_normal(RATE) / 10, RATE)


@pytest.mark.parametrize("length", range(249, 256))
def test_clips_with_long_names_are_prepared(tmp_path: Path, length: int) -> None:
    """One that gets too long with .wav at its end is left out, as any clip that cannot be used."""
    wav, flac = ("é" * ((length - len(suffix)) // 2) + suffix for suffix in (".wav", "x.flac"))
    wav = "n" * (length - len(wav.encode())) + wav
    for number, split in enumerate(("train", "val", "test")):
        for clip in (wav, flac, "b.wav"):
            write_clip(tmp_path / "raw" / "waveforms" / split / clip, 3 * number + len(clip))
        (tmp_path / "raw" / "csv_files").mkdir(exist_ok=True)
        rows = "".join(f"{clip},a tone\n" for clip in (wav, flac, "b.wav"))
        (tmp_path / "raw" / "csv_files" / f"{split}.csv").write_text(f"file_name,caption\n{rows}")
    prepared = prepare(tmp_path / "raw", "Mine", tmp_path / "data", allow_missing=True, workers=0)
    fits = len(f"{flac}.wav".encode()) <= 255
    assert [(row.file_name, row.status) for row in prepared.rows if row.split == "val"] == [
        (wav, "ok"), (f"{flac}.wav", "ok" if fits else "unreadable"), ("b.wav", "ok"),
    ]  # fmt: skip
    names = [clip.path.name for clip in read_split(tmp_path / "data", "Mine", "val")]
    assert names == [wav, *([f"{flac}.wav"] if fits else []), "b.wav"]
    assert not list((tmp_path / "data").rglob(".*.part"))


@pytest.mark.parametrize("name", ["n" * 255, "é" * 127, "n" * 250])
def test_folders_with_long_names_are_searched(trained: Path, tmp_path: Path, name: str) -> None:
    for number in range(2):
        write_clip(tmp_path / name / f"{number}.wav", number)
    retriever = Retriever.from_pretrained(trained)
    for index in (None, tmp_path / "index"):
        assert len(retriever.find_audio("a low tone", tmp_path / name, index=index)) == 2
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    other = tmp_path / f"{name[:-1]}m"  # differs in its end alone
    assert index_path(tmp_path / name, "key", None) != index_path(other, "key", None)


def test_an_index_is_where_it_was(tmp_path: Path) -> None:
    assert index_path(tmp_path / "recordings", "key", None) == tmp_path / "recordings.index" / "key.safetensors"
    folder = index_path(tmp_path / "recordings", "key", tmp_path).parent.name
    assert folder.startswith("recordings-")
    assert len(folder) == len("recordings-") + 8
