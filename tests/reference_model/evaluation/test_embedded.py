"""Files of embeddings in every form; what is refused in one line that names the file."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from reference_model import InputError
from reference_model.evaluation.embedded import read_embeddings
from reference_model.evaluation.metrics import split_metrics

AUDIO, TEXT = torch.eye(2), torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
CLIPS = [{"file_name": "a.wav", "captions": ["a", "b"]}, {"file_name": "b.wav", "captions": ["c"]}]
OWNER = torch.tensor([0, 0, 1])


def write(path: Path, arrays: dict[str, Any], record: Any = None) -> Path:
    """Write a file of embeddings as somebody without this program would."""
    text: dict[str, Any] = (
        {} if record is None else {"record": record if isinstance(record, str) else json.dumps(record)}
    )
    if path.suffix == ".npz":
        of_numpy: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
        np.savez(path, **of_numpy, **text)
    else:
        save_file({name: torch.as_tensor(array).clone() for name, array in arrays.items()}, path, metadata=text or None)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".NPZ"])
@pytest.mark.parametrize("form", ["record", "clip_of_caption", "both"])
def test_every_form_says_the_same(suffix: str, form: str, tmp_path: Path) -> None:
    arrays = {"audio": AUDIO, "text": TEXT.double(), "another": torch.zeros(1)}
    if form != "record":
        arrays["clip_of_caption"] = OWNER.to(torch.uint8)
    record = None if form == "clip_of_caption" else {"clips": CLIPS}
    path = write(tmp_path / f"a{suffix.lower()}", arrays, record).rename(tmp_path / f"a{suffix}")
    found = read_embeddings(path)
    assert (found.audio.dtype, found.text.dtype, found.clip_of_caption.dtype) == (*[torch.float64] * 2, torch.int64)
    assert torch.equal(found.audio, AUDIO.double())
    assert torch.equal(found.text, TEXT.double())
    assert torch.equal(found.clip_of_caption, OWNER)
    assert found.clips == (None if record is None else CLIPS)


def test_the_file_of_a_run_gives_its_metrics(trained: Path) -> None:
    found = read_embeddings(trained / "test_embeddings.safetensors")
    metrics = split_metrics(found.audio, found.text, found.clip_of_caption)
    assert metrics == json.loads((trained / "metrics.json").read_text())["test"]
    assert found.clips is not None
    assert [len(clip["captions"]) for clip in found.clips] == [5] * 6


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
@pytest.mark.parametrize(
    "words, arrays, record",
    [
        ("expected clip_of_caption, or a record of clips and captions, in {}, got neither", {}, None),
        ("expected clip_of_caption, or a record of clips and captions, in {}, got neither", {}, {"clip": CLIPS}),
        ("expected the clips of a split in {}, got [] as clips", {}, {"clips": []}),
        ("expected the clips of a split in {}, got no entry clips.0.captions", {}, {"clips": [{"file_name": "a"}]}),
        ("expected the name of each clip once in {}, got 'a.wav' again", {}, {"clips": [CLIPS[0], CLIPS[0]]}),
        ("in {}, got [1]", {}, "[1]"),
        ("as JSON in {}, got", {}, "{"),
        ("expected clip_of_caption in {} to be that of its record of clips, got another",
         {"clip_of_caption": OWNER.flip(0)}, {"clips": CLIPS}),
        ("expected embeddings of 2 clips and 3 captions in {}, got [2, 2] and [2, 2]",
         {"text": AUDIO}, {"clips": CLIPS}),
        ("expected embeddings of 2 clips and 3 captions in {}, got [0] and [3, 2]", {"audio": None}, {"clips": CLIPS}),
        ("expected embeddings of 2 clips and 3 captions in {}, got [2, 2] and [3, 2]",
         {"audio": AUDIO.long()}, {"clips": CLIPS}),
        ("expected embeddings of 2 clips and 3 captions in {}, got [2, 2] and [3, 2]",
         {"audio": AUDIO / 0}, {"clips": CLIPS}),
        ("expected embeddings of 3 clips and 3 captions in {}, got [3] and [3, 2]",
         {"audio": torch.ones(3), "clip_of_caption": OWNER}, None),
        ("expected clip_of_caption in {} to be the rows of 2 clips, got torch.float32 [3]",
         {"clip_of_caption": OWNER.float()}, None),
        ("expected embeddings of 2 clips and 0 captions in {}, got", {"clip_of_caption": torch.tensor(0)}, None),
        ("expected clip_of_caption in {} to be the rows of 2 clips, got 2", {"clip_of_caption": OWNER + 1}, None),
        ("expected clip_of_caption in {} to be the rows of 2 clips, got -1", {"clip_of_caption": OWNER - 1}, None),
        ("expected clip_of_caption in {} to be the rows of 2 clips, got none of clip 1", {"clip_of_caption": 0 * OWNER},
         None),
    ],
)  # fmt: skip
def test_what_is_refused(suffix: str, words: str, arrays: dict[str, Any], record: Any, tmp_path: Path) -> None:
    given = {"audio": AUDIO, "text": TEXT, **arrays}
    path = write(tmp_path / f"a{suffix}", {name: array for name, array in given.items() if array is not None}, record)
    with pytest.raises(InputError, match=re.escape(words.format(path))) as refused:
        read_embeddings(path)
    assert len(str(refused.value).splitlines()) == 1


class Touches:
    """An object that makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["audio", "text", "clip_of_caption", "record"])
def test_nothing_is_unpickled(name: str, tmp_path: Path) -> None:
    arrays: dict[str, Any] = {"audio": AUDIO.numpy(), "text": TEXT.numpy(), "clip_of_caption": OWNER.numpy()}
    np.savez(path := tmp_path / "a.npz", **arrays | {name: np.array(Touches(tmp_path / "touched"), dtype=object)})
    with pytest.raises(InputError, match=r"expected an \.npz file of arrays without pickles at .*a\.npz, got Object"):
        read_embeddings(path)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_a_file_that_is_missing_or_no_such_file(suffix: str, tmp_path: Path) -> None:
    for path in (tmp_path / f"missing{suffix}", tmp_path / f"text{suffix}", tmp_path / f"folder{suffix}"):
        if path.stem == "text":
            path.write_text("audio")
        if path.stem == "folder":
            path.mkdir()
        words = f"expected a file of embeddings at {path}, got no file" if path.stem == "missing" else str(path)
        with pytest.raises(InputError, match=re.escape(words)):
            read_embeddings(path)
    np.save(tmp_path / "a.npy", AUDIO.numpy())
    path = (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    with pytest.raises(InputError, match=r"expected an \.npz file"):
        read_embeddings(path)
