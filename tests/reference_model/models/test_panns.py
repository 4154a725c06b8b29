"""Checkpoints in the layout of PANNs: good, wrong and hostile ones."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published import panns

from reference_model import InputError
from reference_model.models.panns import from_panns
from reference_model.models.resnet38 import ResNet38

SAMPLER = {
    "indexes": np.arange(20, dtype=np.int64),
    "indexes_per_class": [np.arange(3), np.array([], dtype=np.int64)],
    "queue": [3, np.int64(4)],
    "pointers_of_classes": [0, 1],
    "random_state": np.random.RandomState(0).get_state(),
    "pointer": 7,
}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[ResNet38, Path]:
    """A full-size encoder with random weights, and its checkpoint in the old file format, as NumPy 1 wrote it."""
    torch.manual_seed(1)
    encoder = ResNet38()
    path = tmp_path_factory.mktemp("panns") / "ResNet38_mAP=0.434.pth"
    torch.save(panns(encoder, SAMPLER), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    return encoder, path


def test_from_panns(published: tuple[ResNet38, Path]) -> None:
    encoder, path = published
    torch.testing.assert_close(from_panns(ResNet38(), path).state_dict(), encoder.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("zipped", [False, True])
def test_a_sampler_of_this_numpy_and_either_file_format(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "x.pth"
    torch.save({"iteration": 1, "model": {}, "sampler": SAMPLER}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"expected the 239 arrays of ResNet38 in .* got 0; 239 do not fit"):
        from_panns(ResNet38(), path)


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_hostile_checkpoints_are_refused_unrun(tmp_path: Path) -> None:
    sentinel, path = tmp_path / "was run", tmp_path / "x.pth"
    attack = Hostile(f"touch '{sentinel}'")
    for hostile in ({"iteration": 1, "model": {}, "sampler": attack}, attack):
        torch.save(hostile, path)
        with pytest.raises(InputError, match=r"NumPy arrays at .*x\.pth, got one that asks for posix\.system"):
            from_panns(ResNet38(), path)
        path.write_bytes(pickle.dumps(hostile))
        with pytest.raises(InputError, match=r"truncated or of another format|one that asks for posix"):
            from_panns(ResNet38(), path)
    assert not sentinel.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_wrong_checkpoints_are_refused(published: tuple[ResNet38, Path], tmp_path: Path) -> None:
    _, good = published
    path = tmp_path / "x.pth"
    with pytest.raises(InputError, match=r"got no file; it is on Zenodo, record 3987831"):
        from_panns(ResNet38(), path)
    for content in (b"", b"this is no checkpoint", good.read_bytes()[:1_000_000]):
        path.write_bytes(content)
        with pytest.raises(InputError, match="got a file that is truncated or of another format"):
            from_panns(ResNet38(), path)
    for value, words in (
        ([1, 2], "with the entry 'model' .* got list"),
        ({"weights": 1}, r"with the entry 'model' .* got \['weights'\]"),
        ({"model": {"bn0.weight": torch.zeros(64)}}, "got 1; 238 do not fit, such as bn0.bias"),
        ({"model": ResNet38(width=1 / 8).state_dict()}, r"got 239; .* such as conv_block1.conv1.weight \[8, 1, 3, 3\]"),
    ):
        torch.save(value, path)
        with pytest.raises(InputError, match=words):
            from_panns(ResNet38(), path)
