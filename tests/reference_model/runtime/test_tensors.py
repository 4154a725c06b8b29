"""Arrays and records in safetensors files."""

from pathlib import Path

import pytest
import torch

from reference_model import InputError
from reference_model.runtime.tensors import load_record, load_tensors, load_weights, save_tensors


def test_arrays_and_record_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {"x": torch.randn(2, 3), "columns": torch.arange(6).reshape(2, 3).T}
    save_tensors(path, tensors, {"epoch": 2, "names": ["a", None]})
    loaded, record = load_tensors(path)
    assert record == load_record(path) == {"epoch": 2, "names": ["a", None]}
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], value) for name, value in tensors.items())
    save_tensors(path, tensors)
    assert load_record(path) == {}


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"x": torch.ones(2, 3)})
    weights = {"x": torch.zeros(2, 3)}
    load_weights(path, weights)
    assert torch.equal(weights["x"], torch.ones(2, 3))
    for other in ({"x": torch.zeros(3, 2)}, {"y": torch.zeros(2, 3)}):
        with pytest.raises(InputError, match=r"expected the 1 arrays of this run's model in .* such as x"):
            load_weights(path, other)


@pytest.mark.parametrize("content", [None, b"", b"nothing", b"\x10" + bytes(7) + b"no JSON at all.."])
def test_a_damaged_or_missing_file_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.safetensors"
    if content is not None:
        path.write_bytes(content)
    for load in (load_tensors, load_record):
        with pytest.raises(InputError, match=r"expected a safetensors file at .*a\.safetensors, got"):
            load(path)


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    save_tensors(tmp_path / "weights.safetensors", {"x": torch.zeros(1)})  # safetensors would hide it from the group
    assert (tmp_path / "weights.safetensors").stat().st_mode == (tmp_path / "new").stat().st_mode
