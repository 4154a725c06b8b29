"""A trained model in use: embeddings of clips and captions, search in both directions, one folder to keep."""

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from reference_model import InputError
from reference_model.config import Config
from reference_model.data.audio import check_audio, find_fault, load_waveform
from reference_model.data.batches import data_loader, pad_tokens, read_batches
from reference_model.data.dataset import read_captions
from reference_model.models import bert as text_encoder
from reference_model.models.bert import LONGEST, tokenize
from reference_model.models.dual_encoder import DualEncoder, saved_model
from reference_model.models.features import AT_ONCE, checksum, different, key
from reference_model.models.logmel import FRONT_END
from reference_model.run_folder import BEST_WEIGHTS, CONFIG, METRICS, MODEL_WEIGHTS, TEXT_ENCODER, stored_metrics
from reference_model.runtime.files import replace_folder, write_json, write_text
from reference_model.runtime.signals import raise_if_stop_requested
from reference_model.runtime.tensors import save_tensors
from reference_model.search.index import (
    Embedded,
    Found,
    Index,
    log,
    place_of_index,
    shown,
    stamps_of_audio,
    up_to_date,
)
from reference_model.search.model_card import model_card

README = "README.md"


class Retriever:
    """Clips and captions in the embedding space of a trained model.

    ::

        retriever = Retriever.from_pretrained("runs/first")
        for rank, score, clip in retriever.find_audio("a dog barks twice", "recordings"):
            print(rank, score, clip)

    Embeddings are those that ``evaluate`` ranks, to the bit where the same clips and captions are given in the same
    order on the same device; in other batches the last bits differ. So they are computed in the precision that the run
    was trained in; in float32 for fp16 where there is no GPU.
    """

    def __init__(
        self,
        model: DualEncoder,
        tokenizer: PreTrainedTokenizerFast,
        config: Config,
        *,
        metrics: dict[str, Any] | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        """
        Args:
            model, tokenizer, config: of one run.
            metrics: what a finished run has measured, for the model card.
            device: where to compute; None: on the GPU if there is one.
        """
        self.tokenizer, self.config, self.metrics = tokenizer, config, metrics
        try:
            self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            self.model = model.to(self.device).eval()
        except (RuntimeError, AssertionError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"expected a device of this machine, got {device}: {reason}") from error
        self.precision = "no" if config.precision == "fp16" and self.device.type == "cpu" else config.precision
        self.embedding_size: int = model.heads.audio[-1].out_features  # type: ignore[assignment]

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, device: str | torch.device | None = None) -> "Retriever":
        """From the folder that :meth:`save_pretrained` made, or from a run's; nothing else is read.

        Raises:
            InputError: the folder is neither, or the device is not there.
        """
        folder = Path(folder)
        needed = (CONFIG, f"{TEXT_ENCODER}/config.json", f"{TEXT_ENCODER}/tokenizer.json")
        missing = [name for name in needed if not (folder / name).is_file()]
        if not any((folder / name).is_file() for name in (MODEL_WEIGHTS, BEST_WEIGHTS)):
            missing.insert(0, f"{MODEL_WEIGHTS} or {BEST_WEIGHTS}")
        if missing:
            got = f"no {missing[0]}" if folder.is_dir() else "a file" if folder.exists() else "nothing"
            raise InputError(f"expected a saved model, or a run with a finished epoch, in {folder}, got {got}")
        config = Config.read(folder / CONFIG)
        model, tokenizer = saved_model(config, folder)
        metrics = stored_metrics(folder) if (folder / METRICS).exists() else None
        return cls(model, tokenizer, config, metrics=metrics, device=device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Everything that :meth:`from_pretrained` needs, with a model card, in one folder; whole or not at all.

        Raises:
            InputError: the folder holds something else than a saved model, or cannot be written.
        """

        def write(beside: Path) -> None:
            save_tensors(beside / MODEL_WEIGHTS, self.model.state_dict())
            write_json(beside / CONFIG, self.config.as_dict())
            text_encoder.save(beside / TEXT_ENCODER, self.model.text_encoder, self.tokenizer)
            if self.metrics is not None:
                write_json(beside / METRICS, self.metrics)
            parameters = sum(parameter.numel() for parameter in self.model.parameters())
            card = model_card(self.config, self.metrics, parameters=parameters, embedding_size=self.embedding_size)
            write_text(beside / README, card)

        names = (MODEL_WEIGHTS, CONFIG, TEXT_ENCODER, METRICS, README)
        replace_folder(Path(folder), write, names=names, kind="a saved model")

    def embed_audio(self, paths: Sequence[str | Path]) -> Tensor:
        """Audio files of any length, rate and channel count to embeddings, ``[N, D]``, normalised float32 on the CPU.

        A clip is cut or zero-padded at its end to the length that the model was trained with, ``config.clip_seconds``.
        Memory grows with the number of clips, by their features; that of :meth:`audio_index` by their embeddings.

        Raises:
            InputError: files cannot be read; names every one that is missing, empty, truncated or no audio.
        """
        if isinstance(paths, (str, Path)):
            raise InputError(f"expected a list of audio files, got one: {paths}")
        files = [Path(path) for path in paths]
        if len(files) > 1:
            check_audio(files)
        features, left = [], iter(files)
        for part, reasons in self._clip_features(files):
            for reason, path in zip(reasons, left, strict=False):
                if reason:
                    raise InputError(f"expected readable audio, got {shown(str(path))}: {reason}")
            features.append(part)
        if not features:
            return torch.empty(0, self.embedding_size)
        embeddings = self._through_head(audio=torch.cat(features))
        bad = [path for path, finite in zip(files, embeddings.isfinite().all(1).tolist(), strict=True) if not finite]
        if bad:
            raise InputError(f"expected finite embeddings, got NaN or inf for {bad[0]}")
        return embeddings

    def embed_text(self, captions: Sequence[str]) -> Tensor:
        """Captions to embeddings, ``[N, D]``, normalised float32 on the CPU.

        Raises:
            InputError: a caption holds no text.
        """
        if isinstance(captions, str):
            raise InputError(f"expected a list of captions, got one: {shown(captions)}")
        for caption in captions:
            _require_text(caption)
        if not captions:
            return torch.empty(0, self.embedding_size)
        sentences, text_of_caption = different(tokenize(self.tokenizer, list(captions)))
        features = torch.cat(list(self._caption_features(sentences)))
        return self._through_head(text=features)[text_of_caption]

    def find_audio(
        self, caption: str, folder: str | Path, top: int = 10, *, index: str | Path | None = None
    ) -> list[Found]:
        """The clips in a folder, and the folders in it, that suit a caption best.

        Embeddings are kept beside the folder; see :meth:`audio_index`.
        """
        query = self.embed_text([caption])[0]
        return self.audio_index(folder, index).nearest(query, top)

    def find_captions(
        self, clip: str | Path, captions: str | Path, top: int = 10, *, index: str | Path | None = None
    ) -> list[Found]:
        """The captions in a file that suit a clip best; see :meth:`caption_index`."""
        query = self.embed_audio([clip])[0]
        return self.caption_index(captions, index).nearest(query, top)

    def audio_index(self, folder: str | Path, index: str | Path | None = None) -> Index:
        """The clips in a folder with their embeddings, which are kept: only new and changed ones are computed.

        Args:
            folder: it is searched for audio files, and so are the folders in it.
            index: where to keep embeddings, of this folder and of others; None: beside it, in FOLDER.index.

        Files that cannot be read are left out, each with a warning.

        Raises:
            InputError: there is no clip that can be read, or the index cannot be written.
            Stopped: a signal asked for it; what is computed so far is kept.
        """
        folder = Path(folder)
        stamps, closed = stamps_of_audio(folder)
        for name, reason in closed.items():
            log.warning("%s is left out: %s", shown(name), reason)

        def embed(names: list[str]) -> Iterator[Embedded]:
            left = iter(names)
            for features, reasons in self._clip_features([folder / name for name in names]):
                rows = iter(self._through_head(audio=features))
                yield [(name, reason or _finite(next(rows))) for reason, name in zip(reasons, left, strict=False)]

        path = place_of_index(folder, self._audio_key, index)
        found = up_to_date(path, stamps, embed)
        left_out = {**closed, **found.left_out}
        if not found.items:
            name, reason = next(iter(left_out.items()))
            raise InputError(
                f"expected a clip that can be read in {folder}, got {len(left_out)} that cannot, "
                f"such as {shown(name)}: {shown(reason)}"
            )
        return Index(found.items, found.embeddings, left_out)

    def caption_index(self, captions: str | Path, index: str | Path | None = None) -> Index:
        """The different captions in a file with their embeddings, which are kept: only new ones are computed.

        Args:
            captions: text in UTF-8, one caption a line; or a table file_name,caption,... whose name ends in .csv.
            index: where to keep embeddings, of this file and of others; None: beside it, in FILE.index.

        Raises:
            InputError: the file is something else, or the index cannot be written.
            Stopped: a signal asked for it; what is computed so far is kept.
        """
        file = Path(captions)
        stamps: dict[str, list[int]] = {caption: [] for caption in read_captions(file)}

        def embed(names: list[str]) -> Iterator[Embedded]:
            left = iter(names)
            for features in self._caption_features(tokenize(self.tokenizer, names)):
                yield [(name, row) for row, name in zip(self._through_head(text=features), left, strict=False)]

        path = place_of_index(file, self._text_key, index)
        return up_to_date(path, stamps, embed)

    # What the embeddings of clips, and of captions, depend on.

    @cached_property
    def _audio_key(self) -> str:
        weights = [checksum(part.state_dict()) for part in (self.model.audio_encoder, self.model.heads.audio)]
        return f"audio-{key(weights, FRONT_END, self.config.clip_seconds, self.precision, self.device.type)}"

    @cached_property
    def _text_key(self) -> str:
        weights = [checksum(part.state_dict()) for part in (self.model.text_encoder, self.model.heads.text)]
        bert = self.model.text_encoder.bert.config
        beyond_weights = [bert.hidden_act, bert.num_attention_heads, bert.layer_norm_eps]
        tokenizer = json.loads(self.tokenizer.backend_tokenizer.to_str())
        for mutable in ("truncation", "padding"):  # remain of the last call
            tokenizer.pop(mutable, None)
        return f"text-{key(weights, beyond_weights, tokenizer, LONGEST, self.precision, self.device.type)}"

    def _clip_features(self, files: list[Path]) -> Iterator[tuple[Tensor, list[str | None]]]:
        """In batches: features of what can be read, ``[b, 2048]``, and for every file None, or why it cannot."""
        workers = self.config.workers if len(files) > AT_ONCE else 0
        readable = _Readable(files, self.config.clip_seconds)
        loader = data_loader(readable, workers, self.device, batch_size=AT_ONCE, collate_fn=_collate)
        for waveforms, reasons in tqdm(read_batches(loader), "embedding clips", len(loader), leave=False, unit="batch"):
            raise_if_stop_requested()
            if waveforms is None:
                yield torch.empty(0, self.model.audio_encoder.output_size, device=self.device), reasons
                continue
            with torch.no_grad(), self._autocast():
                features = self.model.encode_audio(waveforms.to(self.device, non_blocking=True)).float()
            yield features, reasons

    def _caption_features(self, sentences: list[list[int]]) -> Iterator[Tensor]:
        """In batches, ``[b, 768]``, of token ids."""
        starts = range(0, len(sentences), AT_ONCE)
        for start in tqdm(starts, "embedding captions", leave=False, unit="batch", disable=len(starts) < 2):
            raise_if_stop_requested()
            tokens = pad_tokens(sentences[start : start + AT_ONCE])
            on_device = {name: tensor.to(self.device) for name, tensor in tokens.items()}
            with torch.no_grad(), self._autocast():
                features = self.model.encode_text(**on_device).float()
            yield features

    def _through_head(self, **features: Tensor) -> Tensor:
        """Features of either kind to embeddings, ``[B, D]``, on the CPU."""
        with torch.no_grad(), self._autocast():
            embeddings: Tensor = next(made for made in self.model.heads(**features) if made is not None)
        return embeddings.cpu()

    def _autocast(self) -> AbstractContextManager[Any]:
        """As Accelerate does it for ``evaluate``; but in any number of precisions a process."""
        if self.precision == "no":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16 if self.precision == "bf16" else torch.float16)


class _Readable(Dataset[Tensor | str]):
    """Of each file its waveform, ``[samples]``, or why it has none."""

    def __init__(self, files: list[Path], seconds: float) -> None:
        self.files, self.seconds = files, seconds

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor | str:
        found = find_fault(self.files[index])
        if found is not None:
            return f"{found.status}: {found.reason}"
        try:
            return load_waveform(self.files[index], self.seconds)
        except InputError as error:
            return str(error)


def _collate(made: list[Tensor | str]) -> tuple[Tensor | None, list[str | None]]:
    """Waveforms, ``[b, samples]``, if there are any; and for every file None, or why it has none."""
    waveforms = [waveform for waveform in made if isinstance(waveform, Tensor)]
    reasons = [reason if isinstance(reason, str) else None for reason in made]
    return torch.stack(waveforms) if waveforms else None, reasons


def _finite(embedding: Tensor) -> Tensor | str:
    return embedding if bool(embedding.isfinite().all()) else "its embedding is not finite"


def _require_text(caption: str) -> None:
    try:
        empty = not caption.encode().strip()
    except UnicodeEncodeError as error:
        raise InputError(f"expected a caption in UTF-8, got {shown(caption)}") from error
    if empty:
        raise InputError(f"expected a caption with text, got {caption!r}")
