"""Models that were not trained here, judged by the protocol of section 3.3.

Pools, ties and metrics are those of our own runs: all clips and all captions of a split, each clip embedded once.
"""

from pathlib import Path

import torch

from reference_model import InputError
from reference_model.data.audio import LONGEST, SAMPLE_RATE, SHORTEST, check_audio
from reference_model.data.dataset import clip_of_caption, read_split
from reference_model.evaluation.embedded import EmbeddedSplit, StoredClip, read_embeddings, stored_clips
from reference_model.evaluation.metrics import Metrics, NotFinite, split_metrics
from reference_model.evaluation.relevance import read_relevance
from reference_model.models.clap import Clap


def embeddings_of_split(path: Path, data: str, dataset: str | None, split: str) -> EmbeddedSplit:
    """Read a file of embeddings; with a data set, refuse one of other clips or captions than those of the split.

    With names and captions in the file, its clips may be in any order. Without, clips and captions have to be in the
    order of the split's table, as far as the numbers of captions show it.
    """
    embedded = read_embeddings(path)
    if dataset is None:
        return embedded
    clips = stored_clips(read_split(data, dataset, split))
    expected = f"expected the clips and captions of {dataset}, {split}, in {path}"
    if embedded.clips is None:
        if embedded.clip_of_caption.tolist() != [row for row, clip in enumerate(clips) for _ in clip["captions"]]:
            captions = sum(len(clip["captions"]) for clip in clips)
            got = f"{len(embedded.audio)} and {len(embedded.text)}, or captions in another order"
            raise InputError(f"{expected}, {len(clips)} and {captions}, got {got}")
        return EmbeddedSplit(embedded.audio, embedded.text, embedded.clip_of_caption, clips)
    ours, theirs = _captions_by_name(clips), _captions_by_name(embedded.clips)
    for name in [*ours, *theirs]:
        if ours.get(name) != theirs.get(name):
            got = "without" if name not in theirs else "with" if name not in ours else "with other captions of"
            raise InputError(f"{expected}, got a file {got} the clip {name!r}")
    return embedded


def judge_clap(
    name: str, data: str, dataset: str, split: str, *, seconds: float, workers: int, relevance: Path | None
) -> Metrics:
    """Embed a split with a ClapModel, by name or folder, and compute its metrics; clips are cut to a length.

    Raises:
        InputError: the model, the data or the table of relevance is not as expected.
    """
    if not SHORTEST / SAMPLE_RATE <= seconds <= LONGEST:
        raise InputError(f"expected clip_seconds from {SHORTEST / SAMPLE_RATE} to {LONGEST}, got {seconds}")
    clips = read_split(data, dataset, split)
    if relevance is not None:
        read_relevance(relevance, stored_clips(clips))  # a wrong one is refused before anything is computed
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = Clap(name, device)
    check_audio(clip.path for clip in clips)
    audio, text = model.embed(clips, seconds=seconds, device=device, workers=workers)
    return judge(EmbeddedSplit(audio, text, clip_of_caption(clips), stored_clips(clips)), relevance)


def _captions_by_name(clips: list[StoredClip]) -> dict[str, list[str]]:
    return {clip["file_name"]: sorted(clip["captions"]) for clip in clips}


def judge(embedded: EmbeddedSplit, relevance: Path | None) -> Metrics:
    """Compute the metrics of embeddings; the table ``relevance`` gives captions further clips.

    Raises:
        InputError: an embedding is not finite, the table is not as expected, or the embeddings have no names and
            captions that it could refer to.
    """
    further = None
    if relevance is not None:
        if embedded.clips is None:
            remedy = "--dataset says which they are"
            raise InputError(f"expected names and captions of the clips for --relevance, got none; {remedy}")
        further = read_relevance(relevance, embedded.clips)
    try:
        return split_metrics(embedded.audio, embedded.text, embedded.clip_of_caption, further)
    except NotFinite as error:
        raise InputError(str(error)) from error
