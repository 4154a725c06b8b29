"""Pre-training of small encoders on clips with tags and captions, in place of the published weights.

The audio encoder learns to tag the events of a clip, as PANNs does on AudioSet. BERT learns to fill in masked words and
to tell whether two captions belong to one clip, in place of the next-sentence task of Devlin et al. 2019. Both are
saved in the layouts of the published files, so that runs load them like those.
"""

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Dataset, StackDataset
from tqdm import tqdm
from transformers import BertForPreTraining, DataCollatorForLanguageModeling, PreTrainedTokenizerFast

from reference_model import InputError
from reference_model.data.audio import LONGEST, SAMPLE_RATE, SHORTEST, check_audio
from reference_model.data.batches import Waveforms
from reference_model.data.dataset import Clip, captions_of, clip_of_caption, csv_rows, data_folder, read_split
from reference_model.data.layouts import DATA_SETS, clip_seconds
from reference_model.models import bert, hugging_face
from reference_model.models.encoders import TINY_WIDTH
from reference_model.models.resnet38 import ResNet38
from reference_model.models.text import tokenize
from reference_model.runtime.files import atomic_folder, atomic_write, require_same_settings, write_json
from reference_model.runtime.lease import lock_folder
from reference_model.runtime.records import read_json
from reference_model.runtime.signals import raise_if_stop_requested

AUDIO, TEXT = "ResNet38_tiny.pth", "bert"  # file and folder of the encoders
RECORD = "pretraining.json"  # the settings they were made with
EPOCHS = "audio_epochs", "text_epochs"  # settings of one encoder each
BATCH_SIZE = 32  # at most
LEARNING_RATE = 1e-3  # at the top of the one-cycle schedule
MASKED = 0.15  # fraction of the words that BERT fills in


def pretrain(
    data: str | Path,
    dataset: str,
    out: Path,
    *,
    seconds: float | None = None,
    audio_epochs: int | None,
    text_epochs: int | None,
    seed: int,
) -> None:
    """Pre-train encoders on the train split, and write ``out/ResNet38_tiny.pth`` and ``out/bert``.

    An encoder that is there already stays; one whose epochs are None is not made, and may be made by another call.

    Args:
        seconds: the fixed length of a clip; None: that of a data set that is known by name.

    Raises:
        InputError: the data set is missing, or has no tags; the folder holds encoders of other settings; or another
            process is at work there.
    """
    seconds = clip_seconds(dataset, seconds)
    if not SHORTEST / SAMPLE_RATE <= seconds <= LONGEST:
        raise InputError(f"expected clips of {SHORTEST / SAMPLE_RATE} to {LONGEST} seconds, got {seconds}")
    clips = read_split(data, dataset, "train")
    tags = {} if audio_epochs is None else tags_of(clips, data, dataset)
    settings = {"dataset": dataset, "clip_seconds": seconds}
    settings |= {"audio_epochs": audio_epochs, "text_epochs": text_epochs, "seed": seed}
    out.mkdir(parents=True, exist_ok=True)
    with lock_folder(out, keep_guard=False):
        record = settings
        if (out / RECORD).exists():
            got = f"encoders of others; see {out / RECORD}"
            stored = _stored(out)
            record = settings | {name: stored[name] for name in EPOCHS if settings[name] is None and name in stored}
            known = stored | {name: record[name] for name in EPOCHS if stored.get(name) is None}
            require_same_settings(out, known, record, expected="new or of these settings", got=got)
        write_json(out / RECORD, record)
        _pretrain_missing(clips, tags, out, settings)


def _stored(out: Path) -> dict[str, Any]:
    """Read the settings of encoders. Older ones do not say the length of clips, which was that of the data set."""
    stored: dict[str, Any] = read_json(out / RECORD, dict[str, Any], "the settings of encoders")
    known = DATA_SETS.get(str(stored.get("dataset")))
    return stored if known is None else {"clip_seconds": known.clip_seconds, **stored}


def _pretrain_missing(clips: list[Clip], tags: dict[str, list[str]], out: Path, settings: dict[str, Any]) -> None:
    """Pre-train the encoders that are wanted and not there."""
    seed, audio_epochs, text_epochs = settings["seed"], settings["audio_epochs"], settings["text_epochs"]
    if audio_epochs is not None and not (out / AUDIO).exists():
        torch.manual_seed(seed)
        weights = train_tagger(clips, tags, settings["clip_seconds"], audio_epochs)
        checkpoint = {"iteration": audio_epochs, "model": weights, "sampler": {}}
        atomic_write(out / AUDIO, lambda path: torch.save(checkpoint, path))
    if text_epochs is not None and not (out / TEXT).exists():
        torch.manual_seed(seed)
        tokenizer = bert.train_tokenizer(captions_of(clips))
        model = train_bert(clips, tokenizer, text_epochs)
        atomic_folder(out / TEXT, partial(bert.save_pretrained, bert=model, tokenizer=tokenizer))


def tags_of(clips: list[Clip], data: str | Path, dataset: str) -> dict[str, list[str]]:
    """Return the events in every clip of the train split by file name, and check that all clips are readable."""
    tags = read_tags(data, dataset, "train")
    untagged = [clip.path.name for clip in clips if clip.path.name not in tags]
    if untagged:
        raise InputError(f"expected the events of every clip, got none of {len(untagged)}, such as {untagged[0]}")
    check_audio(clip.path for clip in clips)
    return tags


def read_tags(data: str | Path, dataset: str, split: str) -> dict[str, list[str]]:
    """Read the events in every clip of a split, by file name, from ``DATA/NAME/tags/SPLIT.csv``."""
    table = data_folder(data, dataset) / "tags" / f"{split}.csv"
    if not table.is_file():
        raise InputError(f"expected the events of each clip in {table}, got no file; synthesize makes it")
    rows = csv_rows(table)
    if (header := next(rows, (1, []))[1]) != ["file_name", "tags"]:
        raise InputError(f"expected the header file_name,tags in {table}, got {','.join(header) or 'nothing'}")
    return {name: events.split("; ") for _, (name, events) in rows}


class Tagger(nn.Module):
    """An audio encoder with two linear layers that tag events, under the names of the published network."""

    def __init__(self, encoder: ResNet38, tags: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.fc1 = nn.Linear(encoder.output_size, encoder.output_size)
        self.fc_audioset = nn.Linear(encoder.output_size, tags)

    def forward(self, waveforms: Tensor) -> Tensor:
        """Return a logit for every clip and tag, ``[B, tags]``."""
        logits: Tensor = self.fc_audioset(F.relu(self.fc1(self.encoder(waveforms))))
        return logits


def train_tagger(clips: list[Clip], tags: dict[str, list[str]], seconds: float, epochs: int) -> dict[str, Tensor]:
    """Train a small audio encoder to tag events, and return its weights under the published names."""
    known = sorted({tag for of_clip in tags.values() for tag in of_clip})
    labels = torch.tensor([[float(tag in tags[clip.path.name]) for tag in known] for clip in clips])  # [N, tags]
    tagged: Dataset[Any] = StackDataset(Waveforms(clips, seconds), labels)  # type: ignore[arg-type]
    model = Tagger(ResNet38(width=TINY_WIDTH), len(known))
    loader = DataLoader(tagged, min(BATCH_SIZE, len(clips)), shuffle=True, drop_last=True)
    fit(model, loader, epochs, "tagging", lambda batch: F.binary_cross_entropy_with_logits(model(batch[0]), batch[1]))
    return {name.removeprefix("encoder."): tensor.cpu() for name, tensor in model.state_dict().items()}


class CaptionPairs(Dataset[dict[str, Any]]):
    """Every caption followed by a second one: with equal chances one of the same clip (label 0) or any (label 1)."""

    def __init__(self, clips: list[Clip], tokenizer: PreTrainedTokenizerFast) -> None:
        self.sentences = tokenize(tokenizer, captions_of(clips))
        self.clips = clip_of_caption(clips).tolist()

    def __len__(self) -> int:
        return len(self.sentences)

    def __getitem__(self, index: int) -> dict[str, Any]:
        label = int(torch.randint(2, ()))
        of_clip = range(bisect_left(self.clips, self.clips[index]), bisect_right(self.clips, self.clips[index]))
        captions = range(len(self.sentences)) if label else of_clip
        first, second = self.sentences[index], self.sentences[captions[int(torch.randint(len(captions), ()))]][1:]
        return {
            "input_ids": (first + second)[: hugging_face.LONGEST],
            "token_type_ids": ([0] * len(first) + [1] * len(second))[: hugging_face.LONGEST],
            "next_sentence_label": label,
        }


def train_bert(clips: list[Clip], tokenizer: PreTrainedTokenizerFast, epochs: int) -> Any:
    """Train a small BERT on the captions, and return it without the heads of the two tasks."""
    model = BertForPreTraining(bert.tiny(tokenizer).config)
    pairs = CaptionPairs(clips, tokenizer)
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASKED)
    loader = DataLoader(pairs, min(BATCH_SIZE, len(pairs)), shuffle=True, drop_last=True, collate_fn=collate)
    fit(model, loader, epochs, "filling in words", lambda batch: model(**batch).loss)
    return model.bert


def fit(model: nn.Module, loader: "DataLoader[Any]", epochs: int, task: str, loss_of: Callable[[Any], Tensor]) -> None:
    """Minimise ``loss_of(batch)`` with Adam and a one-cycle schedule, on the GPU if there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).train()
    optimizer = Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    steps = epochs * len(loader)
    schedule = OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    batches = itertools.chain.from_iterable(itertools.repeat(loader, epochs))
    mean = None
    for batch in (bar := tqdm(batches, task, steps, unit="step")):
        raise_if_stop_requested()
        loss = loss_of(send_to_device(batch, device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        mean = loss.item() if mean is None else 0.98 * mean + 0.02 * loss.item()
        bar.set_postfix(loss=f"{mean:.4f}")
