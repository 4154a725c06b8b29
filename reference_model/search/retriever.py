"""A trained model in use: embeddings of clips and captions, search in both directions, export to one folder."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from reference_model import InputError, reason_of
from reference_model.config import Config
from reference_model.data.audio import check_audio, find_fault, load_waveform
from reference_model.data.dataset import read_captions
from reference_model.models.dual_encoder import DualEncoder, saved_model
from reference_model.models.encode import BatchEncoder, unique
from reference_model.models.encoders import FILES_OF_ENCODERS, encoder_files
from reference_model.models.features import cache_key, checksum
from reference_model.run_folder import BEST_WEIGHTS, CONFIG, METRICS, MODEL_WEIGHTS, stored_metrics
from reference_model.runtime.files import atomic_folder, require_file, write_json, write_text
from reference_model.runtime.tensors import save_tensors
from reference_model.search.hub import OnHub, local_folder
from reference_model.search.index import (
    Index,
    ItemEmbeddings,
    SearchResult,
    index_path,
    load_or_update,
    log,
    printable,
    versions_of_audio,
)
from reference_model.search.model_card import model_card

README = "README.md"
Device = str | torch.device | None


class Retriever(OnHub):
    """A trained model that embeds clips and captions and searches among them.

    ::

        retriever = Retriever.from_pretrained("runs/first")
        for rank, score, clip in retriever.find_audio("a dog barks twice", "recordings"):
            print(rank, score, clip)

    Embeddings equal those that ``evaluate`` ranks to the bit for the same clips and captions in the same order on the
    same device; in other batches the last bits differ. Their precision is the run's; float32 for fp16 on a CPU.

    Args:
        model: the model of a run, with its settings, ``config``.
        metrics: those of the finished run, for the model card.
        device: where to compute; None: on the GPU if there is one.
    """

    def __init__(
        self, model: DualEncoder, config: Config, *, metrics: dict[str, Any] | None = None, device: Device = None
    ) -> None:
        self.config = config
        self._metrics: dict[str, Any] | Path | None = metrics  # or the folder that has them
        try:
            self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            self.model = model.to(self.device).eval()
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"expected a device of this machine, got {device}: {reason_of(error)}") from error
        self.precision = "no" if config.precision == "fp16" and self.device.type == "cpu" else config.precision
        self.embedding_size: int = model.heads.audio[-1].out_features  # type: ignore[assignment]
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)  # Accelerate allows one per process
        self._autocast = partial(torch.autocast, self.device.type, dtype) if dtype else nullcontext
        self._encoder = BatchEncoder(self.model, self.device, self._autocast, config.workers)

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, download: bool = False, device: Device = None) -> "Retriever":
        """Load a folder of :meth:`save_pretrained` or of a run, or a model of the hub: see :func:`local_folder`.

        Raises:
            InputError: the folder is neither, or this machine has no such device.
        """
        config = _read_config(folder := local_folder(folder, download=download))
        retriever = cls(saved_model(config, folder), config, device=device)
        retriever._metrics = folder if (folder / METRICS).exists() else None
        return retriever

    @cached_property
    def metrics(self) -> dict[str, Any] | None:
        """The metrics of the run, None if it is not finished; an InputError if its ``metrics.json`` is damaged."""
        return stored_metrics(self._metrics) if isinstance(self._metrics, Path) else self._metrics

    def save_pretrained(self, folder: str | Path) -> None:
        """Save everything that :meth:`from_pretrained` reads, and a model card, in a folder, completely or not at all.

        Raises:
            InputError: the folder holds something other than a saved model, or cannot be written.
        """

        def write(beside: Path) -> None:
            save_tensors(beside / MODEL_WEIGHTS, self.model.state_dict())
            write_json(beside / CONFIG, self.config.as_dict())
            self.model.save_encoders(beside)
            if self.metrics is not None:
                write_json(beside / METRICS, self.metrics)
            write_text(beside / README, _model_card(self))

        atomic_folder(Path(folder), write, check=_refuse_what_is_no_saved_model)

    def embed_audio(self, paths: Sequence[str | Path]) -> Tensor:
        """Embed audio files of any length, rate and channel count: ``[N, D]``, normalised float32 on the CPU.

        A clip is cut or zero-padded at its end to the length that the model was trained with, ``config.clip_seconds``.
        Memory grows with the features of all clips; that of :meth:`audio_index` grows with their embeddings only.

        Raises:
            InputError: files cannot be read; the message names every one that is missing, empty, truncated or no audio.
        """
        if isinstance(paths, (str, Path)):
            raise InputError(f"expected a list of audio files, got one: {paths}")
        files = [Path(path) for path in paths]
        if len(files) > 1:
            check_audio(files)
        batches, remaining = [], iter(files)
        for features, reasons in self._encoder.clips(self._waveforms(files)):
            for reason, path in zip(reasons, remaining, strict=False):
                if reason:
                    raise InputError(f"expected readable audio, got {printable(str(path))}: {reason}")
            batches.append(features)
        if not batches:
            return torch.empty(0, self.embedding_size)
        embeddings = self._apply_head(audio=torch.cat(batches))
        bad = [path for path, finite in zip(files, embeddings.isfinite().all(1).tolist(), strict=True) if not finite]
        if bad:
            raise InputError(f"expected finite embeddings, got NaN or inf for {bad[0]}")
        return embeddings

    def embed_text(self, captions: Sequence[str]) -> Tensor:
        """Embed captions: ``[N, D]``, normalised float32 on the CPU.

        Raises:
            InputError: a caption holds no text.
        """
        if isinstance(captions, str):
            raise InputError(f"expected a list of captions, got one: {printable(captions)}")
        _check_captions(captions)
        if not captions:
            return torch.empty(0, self.embedding_size)
        sentences, text_of_caption = unique(self.model.text_encoder.tokenize(list(captions)))
        return self._apply_head(text=torch.cat(list(self._encoder.captions(sentences))))[text_of_caption]

    def find_audio(
        self, caption: str, folder: str | Path, top: int = 10, *, index: str | Path | None = None
    ) -> list[SearchResult]:
        """Find the clips in a folder and its subfolders that are most similar to a caption; see :meth:`audio_index`."""
        query = self.embed_text([caption])[0]
        return self.audio_index(folder, index).nearest(query, top)

    def find_captions(
        self, clip: str | Path, captions: str | Path, top: int = 10, *, index: str | Path | None = None
    ) -> list[SearchResult]:
        """Find the captions in a file that are most similar to a clip; see :meth:`caption_index`."""
        query = self.embed_audio([clip])[0]
        return self.caption_index(captions, index).nearest(query, top)

    def audio_index(self, folder: str | Path, index: str | Path | None = None) -> Index:
        """Load or update the index of a folder of audio and its subfolders: only new and changed clips are embedded.

        Files that cannot be read are skipped, each with a warning. ``index`` is a folder for the embeddings, of this
        folder and of others; None: FOLDER.index beside it.

        Raises:
            InputError: no clip can be read, or the index cannot be written.
            Stopped: a signal asked for it; everything computed so far is saved.
        """
        folder = Path(folder)
        versions, unopened = versions_of_audio(folder)
        for name, reason in unopened.items():
            log.warning("%s is left out: %s", printable(name), reason)

        def embed(names: list[str]) -> Iterator[ItemEmbeddings]:
            remaining = iter(names)
            files = [folder / name for name in names]
            for features, reasons in self._encoder.clips(self._waveforms(files)):
                embeddings = self._apply_head(audio=features)
                rows = (row if row.isfinite().all() else "its embedding is not finite" for row in embeddings)
                yield [(name, reason or next(rows)) for reason, name in zip(reasons, remaining, strict=False)]

        found = load_or_update(index_path(folder, self._audio_key, index), versions, embed)
        skipped = {**unopened, **found.skipped}
        if not found.items:
            name, reason = next(iter(skipped.items()))
            raise InputError(
                f"expected a clip that can be read in {folder}, got {len(skipped)} that cannot, "
                f"such as {printable(name)}: {printable(reason)}"
            )
        return Index(found.items, found.embeddings, skipped)

    def caption_index(self, captions: str | Path, index: str | Path | None = None) -> Index:
        """Load or update the index of the unique captions in a file: only new ones are embedded.

        The file is text in UTF-8, one caption per line; or a table file_name,caption,... whose name ends in .csv.
        ``index`` is a folder for the embeddings, of this file and of others; None: FILE.index beside it.

        Raises:
            InputError: the file is something else, or the index cannot be written.
            Stopped: a signal asked for it; everything computed so far is saved.
        """
        file = Path(captions)
        versions: dict[str, list[int]] = {caption: [] for caption in read_captions(file)}

        def embed(names: list[str]) -> Iterator[ItemEmbeddings]:
            remaining = iter(names)
            for features in self._encoder.captions(self.model.text_encoder.tokenize(names)):
                yield [(name, row) for row, name in zip(self._apply_head(text=features), remaining, strict=False)]

        return load_or_update(index_path(file, self._text_key, index), versions, embed)

    @cached_property
    def _audio_key(self) -> str:
        settings = [self.model.audio_encoder.settings, self.config.clip_seconds, self.precision, self.device.type]
        return f"audio-{_index_key(self.model.audio_encoder, self.model.heads.audio, settings)}"

    @cached_property
    def _text_key(self) -> str:
        encoder, head = self.model.text_encoder, self.model.heads.text
        settings = [*encoder.settings, *encoder.tokenizer_settings, self.precision, self.device.type]
        return f"text-{_index_key(encoder, head, settings)}"

    def _waveforms(self, files: list[Path]) -> Dataset[Tensor | str]:
        return _ReadableWaveforms(files, self.config.clip_seconds, self.model.audio_encoder.front_end.rate)

    def _apply_head(self, **features: Tensor) -> Tensor:
        """Map features of clips or of captions to embeddings, ``[B, D]``, on the CPU."""
        with torch.no_grad(), self._autocast():
            embeddings: Tensor = next(made for made in self.model.heads(**features) if made is not None)
        return embeddings.cpu()


def _model_card(retriever: Retriever) -> str:
    number = sum(parameter.numel() for parameter in retriever.model.parameters())
    size = retriever.embedding_size
    return model_card(retriever.config, retriever.metrics, parameters=number, embedding_size=size)


def _refuse_what_is_no_saved_model(folder: Path) -> None:
    """Refuse a place that holds anything but a saved model, each file as it was saved; it may be the user's own."""
    if got := _difference_from_saved_model(folder):
        raise InputError(f"expected {folder} to be new, empty or a saved model and nothing else, got {got}")


def _difference_from_saved_model(folder: Path) -> str | None:
    if not folder.is_dir():
        return "a file"
    names = {CONFIG, MODEL_WEIGHTS, METRICS, README, *FILES_OF_ENCODERS}
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    if foreign := sorted(found - names):
        return f"a folder with {foreign[0]}"
    if not found:
        return None
    try:
        saved = Retriever.from_pretrained(folder, device="cpu")
        require_file(folder / README)
        as_saved = (folder / README).read_text(encoding="utf-8") == _model_card(saved)
    except (ValueError, OSError) as error:
        return f"another folder: {error}"
    return None if as_saved else f"a folder with another {README}"


def _index_key(encoder: nn.Module, head: nn.Module, settings: list[Any]) -> str:
    return cache_key([checksum(part.state_dict()) for part in (encoder, head)], *settings)


def _check_captions(captions: Sequence[str]) -> None:
    for caption in captions:
        try:
            empty = not caption.encode().strip()
        except UnicodeEncodeError as error:
            raise InputError(f"expected a caption in UTF-8, got {printable(caption)}") from error
        if empty:
            raise InputError(f"expected a caption with text, got {caption!r}")


def _read_config(folder: Path) -> Config:
    """Read the settings of a saved model or of a run with a finished epoch, and refuse folders that are neither."""
    missing = [] if (folder / CONFIG).is_file() else [CONFIG]
    if not any((folder / name).is_file() for name in (MODEL_WEIGHTS, BEST_WEIGHTS)):
        missing.insert(0, f"{MODEL_WEIGHTS} or {BEST_WEIGHTS}")
    if not missing:
        config = Config.read(folder / CONFIG)
        missing = [name for name in encoder_files(config) if not (folder / name).is_file()]
    if missing:
        got = f"no {missing[0]}" if folder.is_dir() else "a file" if folder.exists() else "nothing"
        raise InputError(f"expected a saved model, or a run with a finished epoch, in {folder}, got {got}")
    return config


class _ReadableWaveforms(Dataset[Tensor | str]):
    """Items are waveforms, ``[samples]``, or the reason why a file has none."""

    def __init__(self, files: list[Path], seconds: float, rate: int) -> None:
        self.files, self.seconds, self.rate = files, seconds, rate

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor | str:
        if found := find_fault(self.files[index]):
            return f"{found.status}: {found.reason}"
        try:
            return load_waveform(self.files[index], self.seconds, self.rate)
        except InputError as error:
            return str(error)
