"""Section 3.2: train one configuration, keep the epoch that is best on the validation set, measure it on the test set.

A run is a folder. It leaves there config.json, log.txt, curves.png, tensorboard/, best.safetensors with
text_encoder/ (and frozen.safetensors), and at the end metrics.json. checkpoint.safetensors is there while it is under
way: the same command continues it, and ends with the same weights and metrics as if it had not been interrupted.

Several processes, started by torchrun (or, on GPUs, accelerate launch), divide every batch among them. The batches, and
the negatives, are those of one process; the first process measures and writes.
"""

import copy
import hashlib
import importlib.metadata
import json
import logging
import math
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DistributedSampler
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from reference_model import InputError
from reference_model.config import Config
from reference_model.data.audio import check_audio
from reference_model.data.batches import DistributedBatchSampler, Pairs, WaveformBatches
from reference_model.data.dataset import SPLITS, Clip, captions_of, read_split
from reference_model.data.manifest import audio_checksums
from reference_model.evaluation.evaluate import embeddings, evaluate
from reference_model.evaluation.metrics import DIRECTIONS, Metrics, NotFinite, chance, sum_of_recalls
from reference_model.models import bert as text_encoder
from reference_model.models.dual_encoder import new_model
from reference_model.models.features import FeatureBatches, Features, checksum, features_of, kept_features
from reference_model.paper import DATASET_SIZES, DECAY_FACTOR
from reference_model.reproduction.cost import duration, rehearse, seconds_a_clip
from reference_model.reproduction.plots import plot_curves
from reference_model.run_folder import (
    BEST_WEIGHTS,
    CHECKPOINT,
    CONFIG,
    CURVES,
    DIVERGED,
    FROZEN_WEIGHTS,
    LOG,
    METRICS,
    TENSORBOARD,
    TEST_EMBEDDINGS,
    TEXT_ENCODER,
    TIME,
    Diverged,
    open_run,
    stored_metrics,
)
from reference_model.runtime.devices import make_accelerator
from reference_model.runtime.environment import describe_environment
from reference_model.runtime.files import write_json
from reference_model.runtime.lease import Busy, lock_run_folder, lost_lock
from reference_model.runtime.signals import Stopped, handle_signals, raise_if_stop_requested, stop_requested
from reference_model.runtime.tensors import load_checkpoint, load_record, load_weights, save_checkpoint, save_tensors
from reference_model.training.step import Step

SECONDS_BETWEEN_LOOKS = 0.5  # at the losses: fetching each one would make a GPU wait

log = logging.getLogger(__name__)
log.setLevel(logging.INFO)


def train(
    config: Config,
    run: Path,
    *,
    features: Path | None = None,
    checkpoint_minutes: float = 10.0,
    position: int = 0,
) -> dict[str, Any]:
    """Train, or continue, or find finished; returns what is in ``metrics.json``.

    Args:
        config: the settings.
        run: the folder, new or this very run's.
        features: where the features of constant encoders are kept; None: in the folder of the data set.
        checkpoint_minutes: the state is saved so often, and when the steps of an epoch are done.
        position: the line of the progress bar, where several runs share a screen.

    Raises:
        InputError: the data, the folder or a checkpoint is not as expected; nothing is lost.
        Diverged: the loss is no longer finite; the last good state is kept.
        Stopped: a signal asked for it; the same call continues.
    """
    accelerator = make_accelerator(config.precision)
    with accelerator.main_process_first():  # which makes the folder, or refuses it
        finished = open_run(config, run)
    if finished is not None:
        return finished
    with lock_run_folder(run) if accelerator.is_main_process else nullcontext():
        finished = open_run(config, run)  # by now another may have finished it
        if finished is not None:
            return finished
        return _train(config, run, accelerator, features, checkpoint_minutes, position)


def _train(
    config: Config,
    run: Path,
    accelerator: Accelerator,
    features: Path | None,
    checkpoint_minutes: float,
    position: int,
) -> dict[str, Any]:
    handler = logging.FileHandler(run / LOG, encoding="utf-8") if accelerator.is_main_process else logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO if accelerator.is_main_process else logging.ERROR)
    features = features or Path(config.data) / config.dataset / "features"
    try:
        with logging_redirect_tqdm(), handle_signals():
            training = _Training(config, run, accelerator, features, checkpoint_minutes * 60, position)
            return training.run_to_the_end()
    except InputError as error:
        log.error("%s", error)
        raise
    except Stopped:
        log.info("%s: stopped when asked to; the same command continues", run)
        raise
    finally:
        log.removeHandler(handler)
        handler.close()


@dataclass
class _Progress:
    """How far a run is. Random numbers are no part of it: those of a step follow from seed, epoch and step alone."""

    epoch: int = 1  # under way
    step: int = 0  # of the epoch, the last one done
    total: float = 0.0  # of the losses of these steps
    history: list[dict[str, Any]] = field(default_factory=list)  # of the epochs done
    seconds: float = 0.0  # at work, of what is saved


class _Training:
    """A run under way."""

    def __init__(
        self,
        config: Config,
        run: Path,
        accelerator: Accelerator,
        features: Path,
        checkpoint_seconds: float,
        position: int,
    ) -> None:
        self.config, self.run, self.accelerator = config, run, accelerator
        self.checkpoint_seconds, self.position = checkpoint_seconds, position
        self.since = time.monotonic()
        self.main, processes = accelerator.is_main_process, accelerator.num_processes

        # The data. Everything that can be wrong with it is found before anything is trained.
        self.clips = {split: read_split(config.data, config.dataset, split) for split in SPLITS}
        if self.main:
            self._compare_with_the_paper()
        number_of_pairs = len(captions_of(self.clips["train"]))
        if number_of_pairs < config.batch_size:
            raise InputError(
                f"expected at least one batch of {config.batch_size} pairs, got {number_of_pairs}; lower --batch-size"
            )
        if config.batch_size < processes:
            raise InputError(f"expected a pair for each of {processes} processes in a batch, got {config.batch_size}")

        if (run / CHECKPOINT).exists():
            self._require_the_same_data()

        # The model.
        torch.manual_seed(config.seed)
        self.model, tokenizer = new_model(config, captions_of(self.clips["train"]))
        if processes > 1 and accelerator.device.type == "cuda":  # a batch is normalised by the statistics of all of it
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        check_audio(clip.path for split in SPLITS for clip in self.clips[split])
        raise_if_stop_requested()
        if self.main:
            # Nothing was wrong so far: the folder is this run's from here on.
            write_json(run / CONFIG, config.as_dict())
            text_encoder.save(run / TEXT_ENCODER, self.model.text_encoder, tokenizer)
            if self.model.frozen and not (run / CHECKPOINT).exists():
                save_tensors(run / FROZEN_WEIGHTS, self.model.frozen_parameters())
        self.token_ids = {split: text_encoder.tokenize(tokenizer, captions_of(self.clips[split])) for split in SPLITS}
        self.frozen = checksum(self.model.frozen_parameters())
        self.model.to(accelerator.device)

        # The batches. Every epoch has an order of its own, which follows from the seed.
        self.sampler: DistributedSampler[Any] = DistributedSampler(
            range(number_of_pairs),  # type: ignore[arg-type]
            num_replicas=1,
            rank=0,
            seed=_seed(config.seed),
        )
        whole = BatchSampler(self.sampler, config.batch_size, drop_last=True)
        self.batch_sampler = DistributedBatchSampler(whole, accelerator.process_index, processes)
        self.steps = len(self.batch_sampler)  # an epoch
        self.constant: dict[str, Features] = {}
        if self.model.constant:
            self.constant = {split: self._kept_features(features, split) for split in SPLITS}
            self.batches: FeatureBatches | WaveformBatches = FeatureBatches(self.constant["train"], self.batch_sampler)
        else:
            pairs = Pairs(self.clips["train"], self.token_ids["train"], config.clip_seconds)
            self.batches = WaveformBatches(pairs, self.batch_sampler, config.workers, accelerator.device)

        self.trained = self.model.heads if self.model.constant else self.model
        self._estimate()
        self.step = Step(self.trained, config, accelerator)
        self.progress = _Progress()
        if (run / CHECKPOINT).exists():
            self._restore()

    def _compare_with_the_paper(self) -> None:
        for split, clips in DATASET_SIZES.get(self.config.dataset, {}).items():
            if len(self.clips[split]) != clips:
                here = len(self.clips[split])
                log.warning("%s, %s: %d clips, where the paper had %d", self.config.dataset, split, here, clips)

    def _kept_features(self, folder: Path, split: str) -> Features:
        clips = self.clips[split]
        checked = audio_checksums(self.config.data, self.config.dataset, split, clips)
        return kept_features(folder, self.model, clips, checked, self.token_ids[split], self.config, self.accelerator)

    def _features(self, split: str) -> Features:
        if self.constant:
            return self.constant[split]
        return features_of(self.model, self.clips[split], self.token_ids[split], self.config, self.accelerator)

    def _estimate(self) -> None:
        """Rehearse a few steps on a copy of the model, and say how long the run will take."""
        scaler = None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict()
        rehearsal = Step(copy.deepcopy(self.trained), self.config, self.accelerator)
        self.sampler.set_epoch(0)
        step = rehearse(rehearsal, self.batches.from_step(0))
        with self.accelerator.autocast():
            clip = 0.0 if self.model.constant else seconds_a_clip(self.model, self.config.clip_seconds)
        self.accelerator.free_memory()
        if scaler is not None:
            self.accelerator.scaler.load_state_dict(scaler)
        epochs, clips = self.config.epochs, len(self.clips["val"])
        log.info(
            "%s: %s for the whole run, %d epochs of %d steps of %.2g s, with %d clips to measure after each; "
            "on %s, %d process%s",
            self.run, duration(epochs * (self.steps * step + clips * clip)), epochs, self.steps, step, clips,
            self.accelerator.device, self.accelerator.num_processes,
            "" if self.accelerator.num_processes == 1 else "es",
        )  # fmt: skip

    def run_to_the_end(self) -> dict[str, Any]:
        config, progress = self.config, self.progress
        done = (progress.epoch - 1) * self.steps + progress.step
        with (
            SummaryWriter(str(self.run / TENSORBOARD), purge_step=done + 1) if self.main else nullcontext() as board,
            tqdm(
                desc=f"{config.loss}, seed {config.seed}",
                total=config.epochs * self.steps,
                initial=done,
                unit="step",
                position=self.position,
                disable=not self.main,  # and shown otherwise, though the bars below it may not be
            ) as bar,
        ):
            while progress.epoch <= config.epochs:
                self._train_epoch(board, bar)
                self._measure_epoch(board, bar)
                if any(self._agreed(stop_requested())):
                    raise Stopped
        if self.main:
            self._finish()
        self.accelerator.wait_for_everyone()
        return stored_metrics(self.run)

    def _train_epoch(self, board: SummaryWriter | None, bar: "tqdm[Any]") -> None:
        """The steps of the epoch that are not done yet."""
        config, progress = self.config, self.progress
        self.sampler.set_epoch(progress.epoch)
        self.step.set_learning_rate(_learning_rate(config, progress.epoch))
        self.model.train()
        pending: list[Tensor] = []  # losses not looked at yet
        looked = saved = time.monotonic()
        for batch in self.batches.from_step(progress.step):
            torch.manual_seed(_seed(config.seed, progress.epoch, progress.step + 1, self.accelerator.process_index))
            pending.append(self.step(batch))
            progress.step += 1
            bar.update()
            now = time.monotonic()
            last = progress.step == self.steps
            stop, look, save = self._agreed(
                stop_requested(), now - looked >= SECONDS_BETWEEN_LOOKS, last or now - saved >= self.checkpoint_seconds
            )
            if stop or look or save:
                self._look_at(pending, board, bar)
                looked = now
            if stop or save:
                self._save()
                saved = time.monotonic()
            if stop:
                raise Stopped

    def _agreed(self, *wishes: bool) -> list[bool]:
        """What any process wishes, all of them do after the same step."""
        if self.accelerator.num_processes == 1:
            return list(wishes)
        counted = self.accelerator.reduce(torch.tensor(wishes, device=self.accelerator.device).float(), "sum")
        return [bool(count) for count in counted.tolist()]

    def _look_at(self, pending: list[Tensor], board: SummaryWriter | None, bar: "tqdm[Any]") -> None:
        progress = self.progress
        first = progress.step - len(pending) + 1
        values = torch.stack(pending).tolist()
        pending.clear()
        for step, value in enumerate(values, start=first):
            if not math.isfinite(value):
                raise self._diverged(f"the loss is {value} at step {step} of epoch {progress.epoch}")
            progress.total += value
            if board is not None:
                board.add_scalar("loss", value, (progress.epoch - 1) * self.steps + step)
        bar.set_postfix(_postfix(values[-1], progress.history))

    def _measure_epoch(self, board: SummaryWriter | None, bar: "tqdm[Any]") -> None:
        """Measure on the validation set, keep the weights if they are the best so far, and go on to the next epoch."""
        config, progress = self.config, self.progress
        measured = self._measured("val")
        if isinstance(measured, NotFinite):
            raise self._diverged(f"after epoch {progress.epoch}: {measured}") from measured
        recalls, diagnosis = measured
        record = {
            "epoch": progress.epoch,
            "loss": progress.total / self.steps,
            "learning_rate": _learning_rate(config, progress.epoch),
            "val": recalls,
            "diagnosis": diagnosis,
        }
        best = max((self._score(r) for r in progress.history), default=-math.inf)
        if self.main and self._score(record) > best:
            save_tensors(self.run / BEST_WEIGHTS, self.model.changing_state())
        progress.history.append(record)
        progress.epoch, progress.step, progress.total = progress.epoch + 1, 0, 0.0
        if board is not None:
            _report_epoch(self.run, progress.history, config, board, bar)

    def _measured(self, split: str) -> tuple[Metrics, dict[str, float]] | NotFinite:
        """What the first process finds, on every process."""
        found: list[Any] = [None]
        if self.main:
            try:
                found = [evaluate(self.model.heads, self._features(split), self.accelerator)]
            except NotFinite as error:
                found = [error]
        measured: tuple[Metrics, dict[str, float]] | NotFinite = broadcast_object_list(found)[0]
        return measured

    def _score(self, record: dict[str, Any]) -> float:
        """What the best epoch has most of."""
        both = self.config.select_on == "both-directions"
        return sum_of_recalls(record["val"], DIRECTIONS if both else ("text_to_audio",))

    def _save(self) -> None:
        """Everything that the next step depends on."""
        if not self.main:
            return
        if lost_lock(self.run):
            raise Busy(f"expected {self.run} for this run alone, got it taken over while this process was suspended")
        scaler = self.accelerator.scaler
        self._note_time()
        record = {
            **asdict(self.progress),
            "scaler": None if scaler is None else scaler.state_dict(),
            "data": _fingerprint(self.clips),
            "frozen": self.frozen,
            "config": self.config.as_dict(),
            "versions": _versions(),
        }
        save_checkpoint(self.run / CHECKPOINT, self.model.changing_state(), self.step.optimizer, record)

    def _note_time(self) -> None:
        now = time.monotonic()
        self.progress.seconds += now - self.since
        self.since = now

    def _require_the_same_data(self) -> None:
        if load_record(self.run / CHECKPOINT)["data"] != _fingerprint(self.clips):
            raise InputError(
                f"expected the clips and captions that {self.run} was trained on so far, got others in "
                f"{Path(self.config.data) / self.config.dataset}; choose another --out"
            )

    def _restore(self) -> None:
        path = self.run / CHECKPOINT
        record = load_checkpoint(path, self.model.changing_state(), self.step.optimizer)
        if record["frozen"] != self.frozen:
            raise InputError(
                f"expected the frozen encoders that {self.run} was begun with, got others in "
                f"{self.config.audio_checkpoint} or {self.config.bert}; choose another --out"
            )
        if record["versions"] != _versions():
            log.warning("begun with %s, continued with %s: not to the bit the same", record["versions"], _versions())
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(record["scaler"])
        self.progress = _Progress(**{name: record[name] for name in asdict(self.progress)})
        log.info(
            "%s: continuing after step %d of epoch %d of %d",
            self.run, self.progress.step, self.progress.epoch, self.config.epochs,
        )  # fmt: skip

    def _finish(self) -> None:
        """Measure the best epoch on the test set and write ``metrics.json``, by which a run is known to be finished."""
        load_weights(self.run / BEST_WEIGHTS, self.model.changing_state())
        features = self._features("test")
        test, _ = evaluate(self.model.heads, features, self.accelerator)
        audio, text = embeddings(self.model.heads, features, self.accelerator)
        clips = [{"file_name": clip.path.name, "captions": clip.captions} for clip in self.clips["test"]]
        save_tensors(self.run / TEST_EMBEDDINGS, {"audio": audio, "text": text}, {"clips": clips})
        history = self.progress.history
        best = max(history, key=self._score)
        metrics = {
            "test": test,
            "val": best["val"],
            "chance": chance([len(clip.captions) for clip in self.clips["test"]]),
            "best_epoch": best["epoch"],
            "collapsed": bool(history[-1]["diagnosis"]["collapsed"]),
            "clips": {split: len(self.clips[split]) for split in SPLITS},
            "config": self.config.as_dict(),
            "versions": _versions(),
            "history": history,
        }
        self._note_time()
        write_json(self.run / TIME, {"seconds": round(self.progress.seconds, 1), "machine": describe_environment()})
        write_json(self.run / METRICS, metrics)
        (self.run / CHECKPOINT).unlink()
        log.info("%s, test of %d clips at epoch %d: %s", self.run.name, len(clips), best["epoch"], summary(test))

    def _diverged(self, what: str) -> Diverged:
        run, history = self.run, self.progress.history
        best = max(history, key=self._score, default=None)
        kept = f"the best epoch, {best['epoch']}, is kept in {run / BEST_WEIGHTS}" if best else "no epoch was finished"
        reason = (
            f"training stopped: {what}; {kept}. Try a lower --learning-rate, or --precision bf16 in place of fp16, "
            f"and another --out"
        )
        record = {"reason": reason, "best_epoch": best["epoch"] if best else None, "history": history}
        if PartialState().is_main_process:
            write_json(run / DIVERGED, record)
        return Diverged(reason)


def _learning_rate(config: Config, epoch: int) -> float:
    return config.learning_rate * DECAY_FACTOR ** ((epoch - 1) // config.decay_every)


def _seed(*numbers: int) -> int:
    """Far apart for numbers that are close."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:6], "little")


def _fingerprint(clips: dict[str, list[Clip]]) -> str:
    """Of all names and captions, in their order; not of the folder they are in."""
    content = [[split, [[clip.path.name, *clip.captions] for clip in clips[split]]] for split in SPLITS]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("torch", "torchaudio", "transformers")}


def summary(metrics: dict[str, dict[str, float]]) -> str:
    """The recalls of both directions in one line."""
    return "; ".join(
        f"{direction.replace('_', ' ')} R@1/5/10 " + "/".join(f"{metrics[direction][f'R@{k}']:.1f}" for k in (1, 5, 10))
        for direction in DIRECTIONS
    )


def _postfix(loss: float, history: list[dict[str, Any]]) -> dict[str, str]:
    recall = {"val R@10": f"{history[-1]['val']['text_to_audio']['R@10']:.1f}%"} if history else {}
    return {"loss": f"{loss:.3f}", **recall}


def _report_epoch(
    run: Path, history: list[dict[str, Any]], config: Config, board: SummaryWriter, bar: "tqdm[Any]"
) -> None:
    record = history[-1]
    board.add_scalar("learning_rate", record["learning_rate"], bar.n)
    for name, value in record["diagnosis"].items():
        board.add_scalar(f"diagnosis/{name}", value, bar.n)
    for direction in DIRECTIONS:
        for name, value in record["val"][direction].items():
            board.add_scalar(f"{direction}/{name}", value, bar.n)
    plot_curves(run / CURVES, history, title=f"{config.dataset}, {config.loss}, seed {config.seed}")
    log.info("%s, epoch %d: loss %.4f; val %s", run.name, record["epoch"], record["loss"], summary(record["val"]))
    if record["diagnosis"]["collapsed"]:
        log.warning("%s, epoch %d: the model has collapsed, all similarities are alike", run.name, record["epoch"])
