"""A table of relevance: further clips that people found to match a caption, besides the clip it was written for."""

from pathlib import Path

import torch
from torch import Tensor

from reference_model import InputError
from reference_model.data.dataset import Refusals, csv_rows
from reference_model.evaluation.embedded import StoredClip
from reference_model.runtime.files import require_file

HEADER = ["caption", "file_name"]


def read_relevance(table: Path, clips: list[StoredClip]) -> Tensor:
    """Return pairs of a caption and a clip that is relevant to it, integers ``[P, 2]``; rows of ``text`` and ``audio``.

    Args:
        table: CSV in UTF-8 with the columns ``caption,file_name``. Every row says that the clip is relevant to the
            caption, whichever clip the caption was written for; if several clips have a caption of this text, to each
            of these captions. A caption has as many rows as it has further clips, or none.
        clips: those of the split, with their captions.

    Raises:
        InputError: the file is missing or no such table, or names captions or clips that the split does not have.
    """
    if not table.exists():
        raise InputError(f"expected a table of relevance at {table}, got no file")
    require_file(table)
    captions: dict[str, list[int]] = {}
    for row, caption in enumerate(caption for clip in clips for caption in clip["captions"]):
        captions.setdefault(caption, []).append(row)
    clip_of_name = {clip["file_name"]: row for row, clip in enumerate(clips)}
    refusals, pairs = Refusals(), []
    numbered = csv_rows(table, refusals)
    _, header = next(numbered, (1, []))
    if header != HEADER:
        refusals.raise_all()
        raise InputError(f"expected the header {','.join(HEADER)} in {table}, got {','.join(header) or 'nothing'}")
    for line, (caption, file_name) in numbered:
        for kind, value, known in (("caption", caption, captions), ("clip", file_name, clip_of_name)):
            if value not in known:
                refusals.messages.append(f"expected a {kind} of the split in line {line} of {table}, got {value!r}")
        pairs += [(row, clip_of_name[file_name]) for row in captions.get(caption, ()) if file_name in clip_of_name]
    refusals.raise_all()
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
