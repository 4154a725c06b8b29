"""Files of embeddings of a split: those of a run's test set, and those that another model made."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import TypedDict

from reference_model import InputError, reason_of
from reference_model.data.dataset import Clip
from reference_model.runtime.files import require_file
from reference_model.runtime.records import check_form, parse_json
from reference_model.runtime.tensors import load_tensors

KIND = "the clips of a split"
RECORD = "record"  # the name of the record in the header of a safetensors file, and of an array in an .npz file
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGER = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class StoredClip(TypedDict):
    """A clip of the split."""

    file_name: str
    captions: Annotated[list[str], Field(min_length=1)]


class _Record(TypedDict):
    """The record beside the embeddings."""

    clips: Annotated[list[StoredClip], Field(min_length=1)]


@dataclass(frozen=True)
class EmbeddedSplit:
    """Embeddings of the N clips, ``[N, D]``, and of the M captions, ``[M, D]``, of a split."""

    audio: Tensor
    text: Tensor
    clip_of_caption: Tensor  # integers [M]
    clips: list[StoredClip] | None  # names and captions of the N clips, in their order; None: the file has none


def stored_clips(clips: list[Clip]) -> list[StoredClip]:
    """Return the names and captions of clips, as a file of embeddings holds them."""
    return [{"file_name": clip.path.name, "captions": list(clip.captions)} for clip in clips]


def read_embeddings(path: Path) -> EmbeddedSplit:
    """Read a file of embeddings: safetensors, or NumPy's ``.npz`` without pickles.

    It holds ``audio`` ``[N, D]`` and ``text`` ``[M, D]`` of any floating type, and ``clip_of_caption``, integers
    ``[M]``: the row of ``audio`` that each caption belongs to. In place of the last, or besides, it has a JSON record,
    ``{"clips": [{"file_name": ..., "captions": [...]}, ...]}``, with the clips in the order of ``audio`` and all
    captions, clip by clip, in the order of ``text``: in the header of a safetensors file under the name ``record``,
    in an ``.npz`` file as a text of this name.

    Raises:
        InputError: the file is missing, damaged, or of another form.
    """
    if not path.exists():
        raise InputError(f"expected a file of embeddings at {path}, got no file")
    tensors, record = _read_npz(path) if path.suffix.lower() == ".npz" else load_tensors(path)
    clips, clip_of_caption = None, tensors.get("clip_of_caption")
    if "clips" in record:
        check_form(record, _Record, KIND, path)
        clips = record["clips"]
        name, number = Counter(clip["file_name"] for clip in clips).most_common(1)[0]
        if number > 1:
            raise InputError(f"expected the name of each clip once in {path}, got {name!r} again")
        expected = torch.repeat_interleave(torch.tensor([len(clip["captions"]) for clip in clips]))
        if clip_of_caption is not None and clip_of_caption.tolist() != expected.tolist():
            raise InputError(f"expected clip_of_caption in {path} to be that of its record of clips, got another")
        clip_of_caption = expected
    audio, text = (tensors.get(name, torch.empty(0)) for name in ("audio", "text"))
    if clip_of_caption is None:
        raise InputError(f"expected clip_of_caption, or a record of clips and captions, in {path}, got neither")
    number = len(audio) if clips is None else len(clips)
    _check_embeddings(path, audio, text, number, len(clip_of_caption) if clip_of_caption.ndim else 0)
    _check_clips(path, clip_of_caption, number)
    dtype = torch.promote_types(torch.promote_types(audio.dtype, text.dtype), torch.float32)
    return EmbeddedSplit(audio.to(dtype), text.to(dtype), clip_of_caption.long(), clips)


def _check_embeddings(path: Path, audio: Tensor, text: Tensor, clips: int, captions: int) -> None:
    fits = audio.ndim == text.ndim == 2 and audio.shape[1] == text.shape[1] > 0
    fits = fits and (len(audio), len(text)) == (clips, captions) and {audio.dtype, text.dtype} <= set(FLOATING)
    if not fits or not (audio.isfinite().all() and text.isfinite().all()):
        got = f"{list(audio.shape)} and {list(text.shape)}, or numbers that are not finite"
        raise InputError(f"expected embeddings of {clips} clips and {captions} captions in {path}, got {got}")


def _check_clips(path: Path, clip_of_caption: Tensor, clips: int) -> None:
    """Require the row of a clip for every caption, and a caption of every clip."""
    expected = f"expected clip_of_caption in {path} to be the rows of {clips} clips"
    if clip_of_caption.ndim != 1 or clip_of_caption.dtype not in INTEGER:
        raise InputError(f"{expected}, got {clip_of_caption.dtype} {list(clip_of_caption.shape)}")
    named = set(clip_of_caption.tolist())
    if unknown := named - set(range(clips)):
        raise InputError(f"{expected}, got {min(unknown)}")
    if without := set(range(clips)) - named:
        raise InputError(f"{expected}, got none of clip {min(without)}")


def _read_npz(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the arrays of an ``.npz`` file, none of them pickled, and its record."""
    require_file(path)
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("audio", "text", "clip_of_caption", RECORD) if name in file}
        text = str(arrays.pop(RECORD, np.array("{}")))
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    except Exception as error:  # a damaged file makes NumPy and zipfile raise errors of many kinds
        raise InputError(
            f"expected an .npz file of arrays without pickles at {path}, got {reason_of(error)}"
        ) from error
    record = parse_json(text, KIND, path)
    check_form(record, dict[str, Any], KIND, path)
    return tensors, record
