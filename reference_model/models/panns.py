"""Published checkpoints of PANNs (Kong et al. 2020): read without running their code, and loaded into the networks."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from reference_model import InputError
from reference_model.models.convolutional import PannsEncoder
from reference_model.runtime.files import require_file

Network = TypeVar("Network", bound=PannsEncoder)

# Constructors of arrays and of numbers in a pickle that NumPy wrote.
_CONSTRUCTORS: list[Any] = [np.empty(0).__reduce__()[0], np.float64().__reduce__()[0]]
# Published checkpoints hold the state of a sampler beside the model: NumPy objects, by their names in NumPy 1 and 2.
_ALLOWED: list[Any] = [
    bytes,
    np.ndarray,
    np.dtype,
    *{type(np.dtype(code)) for code in np.typecodes["All"] if code not in "OV"},
    *((make, f"numpy.{core}.multiarray.{make.__name__}") for make in _CONSTRUCTORS for core in ("core", "_core")),
]
# First words of the names of arrays that belong to the front-end and the classifier, which are not loaded.
_DROPPED = ("fc", "spectrogram_extractor", "logmel_extractor")


def from_panns(encoder: Network, path: str | Path) -> Network:
    """Load the weights of a PANNs checkpoint, such as ``ResNet38_mAP=0.434.pth``, into a network, and return it.

    The files are on Zenodo, record 3987831. They are pickles; only tensors, containers and NumPy arrays are read, and a
    file that holds anything else is refused before any of its code runs.
    """
    weights = read_panns(path)
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as error:
        expected = encoder.state_dict()
        wrong = sorted(expected.keys() ^ weights.keys()) or [
            f"{name} {list(weights[name].shape)} for {list(expected[name].shape)}"
            for name in expected
            if weights[name].shape != expected[name].shape
        ]
        raise InputError(
            f"expected the {len(expected)} arrays of {type(encoder).__name__} in {path}, got {len(weights)}; "
            f"{len(wrong)} do not fit, such as {wrong[0]}"
        ) from error
    return encoder


def read_panns(path: str | Path) -> dict[str, Tensor]:
    """Read the encoder's arrays of a PANNs checkpoint, ``{"iteration", "model", "sampler"}``; none of its code runs."""
    require_file(Path(path))
    if not Path(path).exists():
        raise InputError(f"expected a PANNs checkpoint at {path}, got no file; it is on Zenodo, record 3987831")
    try:
        with torch.serialization.safe_globals(_ALLOWED):
            checkpoint: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make torch raise errors of all kinds
        asked = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"one that asks for {asked[1]}" if asked else "a file that is truncated or of another format"
        size = Path(path).stat().st_size
        raise InputError(
            f"expected a PANNs checkpoint of tensors and NumPy arrays at {path}, got {reason} ({size:,} bytes); "
            "the published one is on Zenodo, record 3987831"
        ) from error
    if not isinstance(checkpoint, Mapping) or not isinstance(checkpoint.get("model"), Mapping):
        keys = list(checkpoint)[:4] if isinstance(checkpoint, Mapping) else type(checkpoint).__name__
        raise InputError(f"expected a PANNs checkpoint with the entry 'model' at {path}, got {keys}")
    for name, array in checkpoint["model"].items():
        if not isinstance(name, str) or not isinstance(array, Tensor) or not _is_plain(array):
            raise InputError(f"expected finite arrays with names in {path}, got {name!r}, which is something else")
    return {name: array for name, array in checkpoint["model"].items() if not name.startswith(_DROPPED)}


def _is_plain(array: Tensor) -> bool:
    """Return whether an array is dense, of real numbers, all finite."""
    return (
        array.layout == torch.strided
        and not (array.is_complex() or array.is_quantized)
        and bool(array.isfinite().all())
    )
