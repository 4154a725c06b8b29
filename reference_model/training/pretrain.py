"""Small encoders, pre-trained on the synthetic corpus as the published ones are on theirs.

The audio encoder learns to tag the events of a clip, as PANNs does those of AudioSet. BERT learns to fill in masked
words and to tell whether two captions are of one clip, where Devlin et al. 2019 ask whether one sentence follows the
other. Both are saved in the layouts of the published files, so that everything after that is as with them.
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import BertForPreTraining, DataCollatorForLanguageModeling, PreTrainedTokenizerFast

from reference_model import InputError
from reference_model.data.audio import check_audio
from reference_model.data.batches import Waveforms
from reference_model.data.dataset import Clip, captions_of, clip_of_caption, csv_rows, read_split
from reference_model.data.layouts import clip_seconds
from reference_model.models import bert as text_encoder
from reference_model.models.dual_encoder import TINY_WIDTH
from reference_model.models.resnet38 import ResNet38
from reference_model.runtime.files import atomic_folder, atomic_write, read_json, require_same_settings, write_json
from reference_model.runtime.signals import raise_if_stop_requested

AUDIO, TEXT, RECORD = "ResNet38_tiny.pth", "bert", "pretraining.json"
BATCH = 32  # or as many as there are
LEARNING_RATE = 1e-3  # the highest of one cycle
MASKED = 0.15  # of the words


def pretrain(data: str | Path, dataset: str, out: Path, *, audio_epochs: int, text_epochs: int, seed: int) -> None:
    """Make ``out/ResNet38_tiny.pth`` and ``out/bert`` of the train split; what is there already stays.

    Raises:
        InputError: the data set is missing or has no tags; only the synthetic one has. Or the folder holds encoders of
            other settings.
    """
    clips = read_split(data, dataset, "train")
    tags = read_tags(data, dataset, "train")
    untagged = [clip.path.name for clip in clips if clip.path.name not in tags]
    if untagged:
        raise InputError(f"expected the events of every clip, got none of {len(untagged)}, such as {untagged[0]}")
    check_audio(clip.path for clip in clips)
    settings = {"dataset": dataset, "audio_epochs": audio_epochs, "text_epochs": text_epochs, "seed": seed}
    out.mkdir(parents=True, exist_ok=True)
    if (out / RECORD).exists():
        got = f"encoders of others; see {out / RECORD}"
        require_same_settings(out, read_json(out / RECORD), settings, expected="new or of these settings", got=got)
    write_json(out / RECORD, settings)
    seconds = clip_seconds(dataset, None)
    if not (out / AUDIO).exists():
        torch.manual_seed(seed)
        weights = _tag(clips, tags, seconds, audio_epochs)
        checkpoint = {"iteration": audio_epochs, "model": weights, "sampler": {}}
        atomic_write(out / AUDIO, lambda path: torch.save(checkpoint, path))
    if not (out / TEXT).exists():
        torch.manual_seed(seed)
        tokenizer = text_encoder.train_tokenizer(captions_of(clips))
        bert = _fill_in(clips, tokenizer, text_epochs)
        with atomic_folder(out / TEXT) as folder:
            bert.save_pretrained(folder)
            tokenizer.save_pretrained(folder)


def read_tags(data: str | Path, dataset: str, split: str) -> dict[str, list[str]]:
    """File name to the events in it, from ``DATA/NAME/tags/SPLIT.csv``."""
    table = Path(data) / dataset / "tags" / f"{split}.csv"
    if not table.is_file():
        raise InputError(f"expected the events of each clip in {table}, got no file; synthesize makes it")
    return {name: events.split("; ") for _, (name, events) in itertools.islice(csv_rows(table), 1, None)}


class _Tagger(nn.Module):
    """The encoder, and the two linear layers that the published network has on it, by their names there."""

    def __init__(self, encoder: ResNet38, tags: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.fc1 = nn.Linear(encoder.output_size, encoder.output_size)
        self.fc_audioset = nn.Linear(encoder.output_size, tags)

    def forward(self, waveforms: Tensor) -> Tensor:
        logits: Tensor = self.fc_audioset(F.relu(self.fc1(self.encoder(waveforms))))
        return logits


class _Tagged(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, clips: list[Clip], tags: dict[str, list[str]], seconds: float) -> None:
        self.waveforms = Waveforms(clips, seconds)
        self.known = sorted({tag for of_clip in tags.values() for tag in of_clip})
        self.present = torch.tensor([[float(tag in tags[clip.path.name]) for tag in self.known] for clip in clips])

    def __len__(self) -> int:
        return len(self.waveforms)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.waveforms[index], self.present[index]


def _tag(clips: list[Clip], tags: dict[str, list[str]], seconds: float, epochs: int) -> dict[str, Tensor]:
    tagged = _Tagged(clips, tags, seconds)
    model = _Tagger(ResNet38(width=TINY_WIDTH), len(tagged.known))
    loader = DataLoader(tagged, min(BATCH, len(tagged)), shuffle=True, drop_last=True)
    _learn(
        model, loader, epochs, "tagging", lambda batch: F.binary_cross_entropy_with_logits(model(batch[0]), batch[1])
    )
    return {name.removeprefix("encoder."): tensor.cpu() for name, tensor in model.state_dict().items()}


class _CaptionPairs(Dataset[dict[str, Any]]):
    """Every caption, followed by one of the same clip (label 0) or by any (label 1), as a coin falls."""

    def __init__(self, clips: list[Clip], tokenizer: PreTrainedTokenizerFast) -> None:
        self.sentences = text_encoder.tokenize(tokenizer, captions_of(clips))
        self.clip = clip_of_caption(clips).tolist()
        self.of_clip: dict[int, list[int]] = {}
        for caption, clip in enumerate(self.clip):
            self.of_clip.setdefault(clip, []).append(caption)

    def __len__(self) -> int:
        return len(self.sentences)

    def __getitem__(self, index: int) -> dict[str, Any]:
        other = int(torch.randint(2, ()))
        captions = range(len(self.sentences)) if other else self.of_clip[self.clip[index]]
        first, second = self.sentences[index], self.sentences[captions[int(torch.randint(len(captions), ()))]][1:]
        return {
            "input_ids": (first + second)[: text_encoder.LONGEST],
            "token_type_ids": ([0] * len(first) + [1] * len(second))[: text_encoder.LONGEST],
            "next_sentence_label": other,
        }


def _fill_in(clips: list[Clip], tokenizer: PreTrainedTokenizerFast, epochs: int) -> Any:
    model = BertForPreTraining(text_encoder.tiny(tokenizer).bert.config)
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASKED)
    pairs = _CaptionPairs(clips, tokenizer)
    loader = DataLoader(pairs, min(BATCH, len(pairs)), shuffle=True, drop_last=True, collate_fn=collate)
    _learn(model, loader, epochs, "filling in words", lambda batch: model(**batch).loss)
    return model.bert


def _learn(
    model: nn.Module, loader: "DataLoader[Any]", epochs: int, what: str, loss_of: Callable[[Any], Tensor]
) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).train()
    optimizer = Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    schedule = OneCycleLR(optimizer, LEARNING_RATE, total_steps=epochs * len(loader))

    def batches() -> Iterator[Any]:
        for _ in range(epochs):
            yield from loader

    mean = None
    for batch in (bar := tqdm(batches(), what, epochs * len(loader), unit="step")):
        raise_if_stop_requested()
        batch = (
            {k: v.to(device) for k, v in batch.items()} if hasattr(batch, "items") else [t.to(device) for t in batch]
        )
        loss = loss_of(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        mean = loss.item() if mean is None else 0.98 * mean + 0.02 * loss.item()
        bar.set_postfix(loss=f"{mean:.4f}")
