"""Batches of clips and captions as tensors, read from files by worker processes."""

import atexit
import itertools
import multiprocessing.util  # registers a function at exit, which _kill_workers has to precede
import signal
import traceback
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler, default_collate

from reference_model import InputError
from reference_model.data.audio import SAMPLE_RATE, load_waveform
from reference_model.data.dataset import Clip, clip_of_caption


class FrontEnd:
    """Makes the inputs of an audio encoder of a waveform, in the processes that read audio; this one changes nothing.

    ``rate`` is that of the waveform, in Hz. The inputs are tensors by the names that the encoder has for them, without
    the dimension of the batch.
    """

    rate = SAMPLE_RATE

    def __call__(self, waveform: Tensor) -> dict[str, Tensor]:
        """Return the inputs for a waveform, ``[samples]``."""
        return {"waveforms": waveform}


class Waveforms(Dataset[Tensor]):
    """Each clip once: ``[samples]``, cut or zero-padded to a fixed length in seconds."""

    def __init__(self, clips: list[Clip], seconds: float, rate: int = SAMPLE_RATE) -> None:
        self.clips, self.seconds, self.rate = clips, seconds, rate

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Tensor:
        return load_waveform(self.clips[index].path, self.seconds, self.rate)


class Pairs(Dataset[dict[str, Any]]):
    """Every caption with its clip, for training; ``token_ids`` are those of ``captions_of(clips)``.

    The audio or the text of a pair is left out where its features are ``known``.
    """

    def __init__(
        self,
        clips: list[Clip],
        token_ids: list[list[int]],
        seconds: float,
        front_end: FrontEnd | None = None,
        *,
        known: Collection[str] = (),
    ) -> None:
        self.front_end = front_end or FrontEnd()
        self.waveforms = Waveforms(clips, seconds, self.front_end.rate)
        self.token_ids, self.known = token_ids, known
        self.clip_of_caption = clip_of_caption(clips).tolist()

    def __len__(self) -> int:
        return len(self.token_ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        clip = self.clip_of_caption[index]
        pair: dict[str, Any] = {"id": clip, "caption": index}
        if "audio" not in self.known:
            pair["audio"] = self.front_end(self.waveforms[clip])
        if "text" not in self.known:
            pair["text"] = self.token_ids[index]
        return pair


def pad_tokens(token_ids: list[list[int]]) -> dict[str, Tensor]:
    """Return token ids and attention mask, ``[B, T]`` each, padded with 0 to the longest sentence."""
    ids = [torch.tensor(sentence) for sentence in token_ids]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(sentence) for sentence in ids], batch_first=True),
    }


def collate(pairs: list[dict[str, Any]], *, each_clip_once: bool = False) -> dict[str, Any]:
    """Stack pairs into the inputs of the encoders, by modality, and the ids of their captions and clips, ``[B]``.

    With ``each_clip_once``, a clip with several captions in the batch has one row of the audio inputs, and
    ``audio_rows`` says the row of each pair.
    """
    batch: dict[str, Any] = {name: torch.tensor([pair[name] for pair in pairs]) for name in ("caption", "id")}
    if "audio" in pairs[0]:
        clips = {pair["id"]: pair["audio"] for pair in pairs} if each_clip_once else {}
        batch["audio"] = {"audio": default_collate(list(clips.values()) or [pair["audio"] for pair in pairs])}
        if each_clip_once:
            row = {clip: number for number, clip in enumerate(clips)}
            batch["audio"]["audio_rows"] = torch.tensor([row[pair["id"]] for pair in pairs])
    if "text" in pairs[0]:
        batch["text"] = {"text": pad_tokens([pair["text"] for pair in pairs])}
    return {"captions": batch.pop("caption"), "ids": batch.pop("id"), **batch}


class CaptionsOfClips(Sampler[int]):
    """The captions of one clip after those of another, by their numbers in ``captions_of(clips)``."""

    def __init__(self, clips: list[Clip], order: Iterable[int]) -> None:
        self.order, self.starts = order, [0, *itertools.accumulate(len(clip.captions) for clip in clips)]

    def __len__(self) -> int:
        return self.starts[-1]

    def __iter__(self) -> Iterator[int]:
        for clip in self.order:
            yield from range(self.starts[clip], self.starts[clip + 1])


class DistributedBatchSampler(Sampler[list[int]]):
    """Split every batch, the same in every process, over them; sizes of the parts differ by one pair at most."""

    def __init__(self, batches: BatchSampler, process: int, processes: int) -> None:
        self.batches, self.process, self.processes = batches, process, processes
        self.first = 0  # index of the batch that the next iteration begins with

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in itertools.islice(self.batches, self.first, None):
            start, stop = (len(batch) * part // self.processes for part in (self.process, self.process + 1))
            yield batch[start:stop]


def data_loader(dataset: Dataset[Any], workers: int, device: torch.device, **settings: Any) -> DataLoader[Any]:
    """Build a loader whose worker processes ignore SIGINT and SIGTERM; batches for CUDA are pinned.

    Ctrl-C and cluster schedulers signal all processes; the main process alone decides when to stop.
    """
    return DataLoader(
        dataset, num_workers=workers, worker_init_fn=_ignore_signals, pin_memory=device.type == "cuda", **settings
    )


def _ignore_signals(_worker: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def _kill_workers() -> None:
    """Kill the worker processes that are left at exit, for instance after an error that one of them raised.

    multiprocessing sends them SIGTERM, which they ignore, and then waits for them: this process would never end.
    """
    if workers := [child for child in multiprocessing.active_children() if child.daemon]:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would report them as lost
        for worker in workers:
            worker.kill()


def read_batches(loader: Iterable[Any]) -> Iterator[Any]:
    """Iterate over a loader, and reduce an InputError of a worker process to its message, without the traceback."""
    try:
        yield from loader
    except InputError as error:
        # The error and frames of its traceback refer to each other, and to the iterator, which ends its workers when
        # nothing refers to it any more.
        traceback.clear_frames(error.__traceback__)
        raise InputError(str(error).strip().splitlines()[-1].split("InputError: ")[-1]) from error


class WaveformBatches:
    """Batches of pairs on the device, read and decoded by worker processes; see :func:`collate`."""

    def __init__(
        self,
        pairs: Pairs,
        sampler: DistributedBatchSampler,
        workers: int,
        device: torch.device,
        *,
        each_clip_once: bool = False,
    ) -> None:
        self.sampler, self.device = sampler, device
        stack = partial(collate, each_clip_once=each_clip_once)
        self.loader = data_loader(
            pairs, workers, device, batch_sampler=sampler, collate_fn=stack, persistent_workers=workers > 0
        )

    def from_step(self, step: int) -> Iterator[dict[str, Any]]:
        """Yield the batches of an epoch without the first ``step``."""
        self.sampler.first = step
        for batch in read_batches(self.loader):
            yield send_to_device(batch, self.device, non_blocking=True)
