"""The one loop that runs the encoders over clips and captions."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from tqdm import tqdm

from reference_model.data.batches import FrontEnd, data_loader, pad_tokens, read_batches
from reference_model.runtime.signals import raise_if_stop_requested

# Clips or captions; the same for every batch size of training, so that all runs share the features.
ENCODING_BATCH = 32


class Encoders(Protocol):
    """A model with an encoder of each modality, such as :class:`reference_model.models.dual_encoder.DualEncoder`."""

    audio_encoder: Any  # with a front_end and an output_size
    text_encoder: Any


@dataclass(frozen=True)
class BatchEncoder:
    """Run the encoders of a model, without gradients, on batches of 32 clips or captions; yields features in float32.

    Those of equal inputs are equal to the bit where batches, device and precision are equal.
    """

    model: Encoders  # on the device, in any mode
    device: torch.device
    autocast: Callable[[], AbstractContextManager[Any]]  # makes the context of mixed precision
    workers: int  # processes that read audio; clips of a single batch are read in this process

    def clips(self, waveforms: Dataset[Any]) -> Iterator[tuple[Tensor, list[str | None]]]:
        """Encode clips, of which the data set has the waveforms, ``[samples]``, or the reasons why there are none.

        The waveforms have the rate of the audio encoder's front-end.

        Yields for every batch the features of the clips with waveforms, ``[b, output_size]``, and for every clip the
        reason or None.
        """
        number: int = len(waveforms)  # type: ignore[arg-type]
        workers = self.workers if number > ENCODING_BATCH else 0
        inputs = _Inputs(waveforms, self.model.audio_encoder.front_end)
        loader = data_loader(inputs, workers, self.device, batch_size=ENCODING_BATCH, collate_fn=_separate)
        nothing = torch.empty(0, self.model.audio_encoder.output_size, device=self.device)
        for batch, reasons in _with_progress(read_batches(loader), len(loader), "embedding clips"):
            yield nothing if batch is None else self._run(self.model.audio_encoder, **batch), reasons

    def captions(self, token_ids: list[list[int]]) -> Iterator[Tensor]:
        """Encode captions, batch by batch; yields their features, ``[b, output_size]``."""
        starts = range(0, len(token_ids), ENCODING_BATCH)
        for start in _with_progress(starts, len(starts), "embedding captions"):
            yield self._run(self.model.text_encoder, **pad_tokens(token_ids[start : start + ENCODING_BATCH]))

    def _run(self, encoder: Callable[..., Tensor], **inputs: Tensor) -> Tensor:
        with torch.no_grad(), self.autocast():
            on_device = {name: tensor.to(self.device, non_blocking=True) for name, tensor in inputs.items()}
            return encoder(**on_device).float()


def _with_progress(batches: Iterable[Any], number: int, description: str) -> Iterator[Any]:
    """Iterate with a progress bar, and stop between batches if a signal asked for it."""
    for batch in tqdm(batches, description, number, leave=False, unit="batch", disable=number < 2):
        raise_if_stop_requested()
        yield batch


class _Inputs(Dataset[Any]):
    """Items are the inputs of the audio encoder, or the reason why a clip has none."""

    def __init__(self, waveforms: Dataset[Any], front_end: FrontEnd) -> None:
        self.waveforms, self.front_end = waveforms, front_end

    def __len__(self) -> int:
        return len(self.waveforms)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> dict[str, Tensor] | str:
        item = self.waveforms[index]
        return item if isinstance(item, str) else self.front_end(item)


def _separate(items: list[dict[str, Tensor] | str]) -> tuple[dict[str, Tensor] | None, list[str | None]]:
    """Stack the inputs, ``[b, ...]`` each, if there are any; the list has a reason, or None, for every item."""
    inputs = [item for item in items if not isinstance(item, str)]
    reasons = [item if isinstance(item, str) else None for item in items]
    return default_collate(inputs) if inputs else None, reasons


def unique(token_ids: list[list[int]]) -> tuple[list[list[int]], Tensor]:
    """Return the unique sentences in the order of their first appearance, and for every caption its row there, ``[M]``.

    Equal captions are encoded once: in batches of different padding their features would differ by rounding.
    """
    row = {sentence: k for k, sentence in enumerate(dict.fromkeys(map(tuple, token_ids)))}
    return [list(sentence) for sentence in row], torch.tensor([row[tuple(sentence)] for sentence in token_ids])
