"""A saved model as mteb, the Massive Text Embedding Benchmark, evaluates it: ``pip install -r requirements/mteb.txt``.

Nothing else here imports mteb, which the rest of the program does not need.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction
from torch import Tensor

from reference_model import InputError
from reference_model.models.features import checksum
from reference_model.search.retriever import Retriever


class MtebModel(AbsEncoder):
    """A saved model, or a run with a finished epoch, for tasks with audio and text.

    ::

        model = MtebModel(Retriever.from_pretrained("models/first"), "first")
        mteb.evaluate(model, mteb.get_task("ClothoT2ARetrieval.v2"))

    Clips and captions are embedded by the retriever, so that a clip is resampled, cut or padded as in training. The
    hit rate at k of mteb is our R@k, except that mteb orders candidates of equal similarity by their names.

    Args:
        retriever: the model.
        name: of the model in the results of mteb, which tells models of one name apart by a checksum of the weights.
    """

    def __init__(self, retriever: Retriever, name: str) -> None:
        self.model: Retriever = retriever
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": f"crossmodal_losses/{name}",
                "revision": checksum(retriever.model.state_dict())[:16],
                "embed_dim": retriever.embedding_size,
                "n_parameters": sum(parameter.numel() for parameter in retriever.model.parameters()),
                "framework": ["PyTorch"],
                "similarity_fn_name": ScoringFunction.COSINE,
                "modalities": ["audio", "text"],
            }
        )

    def encode(self, inputs: Any, **_: Any) -> Any:
        """Embed the clips or the captions of a DataLoader of mteb: ``[N, D]``, normalised float32, of NumPy."""
        return torch.cat([self._embed(batch) for batch in inputs]).numpy()

    def _embed(self, batch: Mapping[str, Any]) -> Tensor:
        found = [modality for modality in ("audio", "text") if modality in batch]
        if len(found) != 1:
            raise InputError(f"expected items of audio or of text, got {' and '.join(found) or 'neither'}")
        return self.model.embed_text(list(batch["text"])) if found == ["text"] else self._embed_audio(batch["audio"])

    def _embed_audio(self, clips: Sequence[Mapping[str, Any]]) -> Tensor:
        """Embed clips, each an ``array`` of ``[samples]`` or ``[channels, samples]`` and its ``sampling_rate``."""
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / f"{number}.wav" for number in range(len(clips))]
            for path, clip in zip(paths, clips, strict=True):
                samples = np.asarray(clip["array"], np.float32)
                soundfile.write(path, samples.T, clip["sampling_rate"], subtype="FLOAT")
            return self.model.embed_audio(paths)
