"""Data, model and batches of a run, as they are before its first step."""

import hashlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DistributedSampler

from reference_model import InputError
from reference_model.config import Config
from reference_model.data.audio import check_audio
from reference_model.data.batches import CaptionsOfClips, DistributedBatchSampler, Pairs, WaveformBatches
from reference_model.data.dataset import SPLITS, Clip, captions_of, read_split
from reference_model.data.manifest import audio_checksums
from reference_model.models.dual_encoder import DualEncoder, new_model
from reference_model.models.features import FeatureBatches, MixedBatches, cached_features, compute_features
from reference_model.paper import DATASET_SIZES
from reference_model.run_folder import CHECKPOINT, CONFIG, FROZEN_WEIGHTS
from reference_model.runtime.files import write_json
from reference_model.runtime.signals import raise_if_stop_requested
from reference_model.runtime.tensors import load_record, save_tensors
from reference_model.training.checkpoint import fingerprint

log = logging.getLogger(__name__)

Clips = dict[str, list[Clip]]  # of every split
TokenIds = dict[str, list[list[int]]]  # of the captions of every split


def read_clips(config: Config, folder: Path, accelerator: Accelerator) -> Clips:
    """Read the clips of every split; refuse too few for a batch, and others than those of the run's checkpoint."""
    clips = {split: read_split(config.data, config.dataset, split) for split in SPLITS}
    for split, number in DATASET_SIZES.get(config.dataset, {}).items():
        if accelerator.is_main_process and (here := len(clips[split])) != number:
            log.warning("%s, %s: %d clips, where the paper had %d", config.dataset, split, here, number)
    pairs, processes = len(captions_of(clips["train"])), accelerator.num_processes
    if pairs < config.batch_size:
        raise InputError(f"expected at least one batch of {config.batch_size} pairs, got {pairs}; lower --batch-size")
    if config.batch_size < processes:
        raise InputError(f"expected a pair for each of {processes} processes in a batch, got {config.batch_size}")
    if (folder / CHECKPOINT).exists() and load_record(folder / CHECKPOINT).get("data") != fingerprint(clips):
        raise InputError(
            f"expected the clips and captions that {folder} was trained on so far, got others in "
            f"{Path(config.data) / config.dataset}; choose another --out"
        )
    return clips


def make_model(config: Config, folder: Path, clips: Clips, accelerator: Accelerator) -> tuple[DualEncoder, TokenIds]:
    """Make the model as training begins with it and tokenise the captions.

    Settings and encoders of the run are written once encoders and audio files are known to be as expected.
    """
    captions = {split: captions_of(of_split) for split, of_split in clips.items()}
    torch.manual_seed(config.seed)
    model = new_model(config, captions["train"])
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # statistics of the whole batch, not of a process's part
    check_audio(clip.path for split in SPLITS for clip in clips[split])
    raise_if_stop_requested()
    if accelerator.is_main_process:
        write_json(folder / CONFIG, config.as_dict())
        model.save_encoders(folder)
        if (frozen := model.frozen_parameters()) and not (folder / CHECKPOINT).exists():
            save_tensors(folder / FROZEN_WEIGHTS, frozen)
    return model.to(accelerator.device), {split: model.text_encoder.tokenize(captions[split]) for split in SPLITS}


def constant_features(
    config: Config, folder: Path, model: DualEncoder, clips: Clips, token_ids: TokenIds, accelerator: Accelerator
) -> dict[str, dict[str, Tensor]]:
    """Return the features of every split by constant encoders, from ``folder`` or computed and kept there."""
    known = {}
    for split in SPLITS if model.constant else ():
        checksums = audio_checksums(config.data, config.dataset, split, clips[split])
        known[split] = cached_features(folder, model, clips[split], checksums, token_ids[split], config, accelerator)
    return known


class EpochBatches:
    """The batches of this process: of each encoder its inputs or, where it is constant, its features.

    Their order follows from seed and epoch.
    """

    def __init__(
        self,
        config: Config,
        model: DualEncoder,
        clips: list[Clip],
        token_ids: list[list[int]],
        known: Mapping[str, Tensor],
        on: Accelerator,
    ) -> None:
        front_end = model.audio_encoder.front_end
        pairs = Pairs(clips, token_ids, config.clip_seconds, front_end, known=known.keys())
        shuffled: Any = clips if config.captions_together else pairs
        self.order: DistributedSampler[Any] = DistributedSampler(shuffled, 1, 0, seed=spread_seed(config.seed))
        captions = CaptionsOfClips(clips, self.order) if config.captions_together else self.order
        whole = BatchSampler(captions, config.batch_size, drop_last=True)
        self.sampler = DistributedBatchSampler(whole, on.process_index, on.num_processes)
        self.batches: FeatureBatches | MixedBatches
        if model.is_constant:
            features = compute_features(model, clips, token_ids, config, on, known)
            self.batches = FeatureBatches(features, self.sampler)
        else:
            # With text of the cache, a clip is encoded once for all its captions in a batch; not in the paper's runs,
            # whose batch norm counts it once for each.
            once = config.trained == "audio" and config.gradient_cache_micro_batch is None
            read = WaveformBatches(pairs, self.sampler, config.workers, on.device, each_clip_once=once)
            self.batches = MixedBatches(read, known, token_ids)

    def __len__(self) -> int:
        return len(self.sampler)

    def of_epoch(self, epoch: int, *, first: int) -> Iterator[dict[str, Any]]:
        """Yield the batches of an epoch without the first ones."""
        self.order.set_epoch(epoch)
        return self.batches.from_step(first)


def spread_seed(*numbers: int) -> int:
    """Return a seed for these numbers; close numbers give seeds that are far apart."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:6], "little")
