"""One run, from its settings to metrics.json: train, keep the epoch that is best on the validation set, test it.

Section 3.2 of the paper. The folder of the run receives config.json, log.txt, curves.png, tensorboard/,
best.safetensors with text_encoder/ (and frozen.safetensors), and at the end metrics.json. checkpoint.safetensors is
there while the run is under way: the same command continues it, and ends with the same weights and metrics as if it
had not been interrupted; with another number of threads, their last bits differ.

Several processes, started by torchrun (or, on GPUs, accelerate launch), divide every batch among them. The batches, and
the negatives, are those of one process. The main process measures and writes.
"""

import logging
import time
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from reference_model import InputError, run_folder
from reference_model.config import Config
from reference_model.data.dataset import SPLITS
from reference_model.evaluation.embedded import stored_clips
from reference_model.evaluation.evaluate import embeddings, evaluate
from reference_model.evaluation.metrics import DIRECTIONS, Metrics, NotFinite, chance, sum_of_recalls
from reference_model.models.features import Features, checksum, compute_features
from reference_model.paper import DECAY_FACTOR
from reference_model.run_folder import Diverged, open_run, stored_metrics
from reference_model.runtime.devices import make_accelerator
from reference_model.runtime.environment import describe_environment
from reference_model.runtime.files import write_json
from reference_model.runtime.lease import lock_folder
from reference_model.runtime.signals import Stopped, handle_signals, stop_requested
from reference_model.runtime.tensors import load_weights, save_tensors
from reference_model.training.captured import new_step
from reference_model.training.checkpoint import Progress, fingerprint, load_checkpoint, save_checkpoint, versions
from reference_model.training.monitor import Monitor, log_to_folder, summary
from reference_model.training.setup import EpochBatches, constant_features, make_model, read_clips, spread_seed

log = logging.getLogger(__name__)


def train(
    config: Config,
    folder: Path,
    *,
    features: Path | None = None,
    checkpoint_minutes: float = 10.0,
    show_bar: bool = True,
) -> dict[str, Any]:
    """Train a run, or continue it, and return the content of ``metrics.json``; a finished run is only read.

    Args:
        config: the settings.
        folder: the folder of the run: new, or of this very run.
        features: the folder of the features of constant encoders; None: in the folder of the data set.
        checkpoint_minutes: a checkpoint is written so often, and when the steps of an epoch are done.
        show_bar: show a progress bar; a log keeps every state of it.

    Raises:
        InputError: the data, the folder or a checkpoint is not as expected; nothing is lost.
        Diverged: the loss is no longer finite; the last good state is kept.
        Stopped: a stop was requested; the same call continues.
    """
    accelerator = make_accelerator(config.precision)
    with accelerator.main_process_first():  # the main process makes the folder, or refuses it
        if open_run(config, folder) is not None:
            return stored_metrics(folder)
    with lock_folder(folder) if accelerator.is_main_process else nullcontext():
        if open_run(config, folder) is not None:  # by now another process may have finished the run
            return stored_metrics(folder)
        with log_to_folder(folder, is_main=accelerator.is_main_process), handle_signals():
            features = features or Path(config.data) / config.dataset / "features"
            return Trainer(config, folder, accelerator, features, checkpoint_minutes * 60).run(show_bar)


class Trainer:
    """One run: the constructor makes data, model, batches and optimiser and reads a checkpoint; :meth:`run` trains."""

    def __init__(
        self, config: Config, folder: Path, accelerator: Accelerator, feature_folder: Path, checkpoint_seconds: float
    ) -> None:
        self.config, self.folder, self.accelerator = config, folder, accelerator
        self.checkpoint_seconds = checkpoint_seconds
        self.is_main = accelerator.is_main_process
        self.started = time.monotonic()  # less the seconds of the processes that worked on the run before
        self.progress = Progress()
        self.clips = clips = read_clips(config, folder, accelerator)
        self.model, self.token_ids = model, token_ids = make_model(config, folder, clips, accelerator)
        self.known = constant_features(config, feature_folder, model, clips, token_ids, accelerator)
        train = (clips["train"], token_ids["train"], self.known.get("train", {}))
        self.batches = EpochBatches(config, model, *train, accelerator)
        self.step = new_step(model.heads if model.is_constant else model, config, accelerator)
        self.origin = {"data": fingerprint(clips), "frozen": checksum(model.frozen_parameters())}  # stay the same
        if (folder / run_folder.CHECKPOINT).exists():
            self._load_checkpoint()

    def run(self, show_bar: bool) -> dict[str, Any]:
        """Train all epochs, measure the best one on the test set, and return the content of ``metrics.json``."""
        config, folder, progress, steps = self.config, self.folder, self.progress, len(self.batches)
        processes = self.accelerator.num_processes
        log.info(
            "%s: %d epochs of %d steps on %s, %d process%s",
            *(folder, config.epochs, steps, self.accelerator.device, processes, "" if processes == 1 else "es"),
        )
        with closing(Monitor(config, folder, progress, steps, show_bar=show_bar, is_main=self.is_main)) as monitor:
            try:
                while progress.epoch <= config.epochs:
                    self._train_epoch(monitor)
                    self._measure_epoch(monitor)
                    if any(self._in_any_process(stop_requested())):
                        raise Stopped
            except NotFinite as error:
                raise self._diverged(error) from error
        if self.is_main:
            self._finish()
        self.accelerator.wait_for_everyone()
        return stored_metrics(folder)

    def _train_epoch(self, monitor: Monitor) -> None:
        """Train the steps of the epoch that are not done yet."""
        config, progress = self.config, self.progress
        self.step.set_learning_rate(learning_rate(config, progress.epoch))
        self.model.train()
        saved_at = time.monotonic()
        for batch in self.batches.of_epoch(progress.epoch, first=progress.step):
            # Dropout follows from the step alone, so a run that continues draws the same numbers.
            process = self.accelerator.process_index
            torch.manual_seed(spread_seed(config.seed, progress.epoch, progress.step + 1, process))
            monitor.add_loss(self.step(batch))
            progress.step += 1
            stop, fetch, save = self._in_any_process(
                stop_requested(),
                monitor.fetch_is_due(),
                progress.step == len(self.batches) or time.monotonic() - saved_at >= self.checkpoint_seconds,
            )
            if stop or fetch or save:
                monitor.fetch_losses()  # before the checkpoint, which holds no state with a loss that is not finite
            if stop or save:
                self._save_checkpoint()
                saved_at = time.monotonic()
            if stop:
                raise Stopped

    def _in_any_process(self, *flags: bool) -> list[bool]:
        """Return the logical OR of each flag over all processes, so that all of them act after the same step."""
        if self.accelerator.num_processes == 1:
            return list(flags)
        counts = self.accelerator.reduce(torch.tensor(flags, device=self.accelerator.device).float(), "sum")
        return [bool(count) for count in counts.tolist()]

    def _save_checkpoint(self) -> None:
        if not self.is_main:
            return
        scaler, seconds = self.accelerator.scaler, time.monotonic() - self.started
        record = {**vars(self.progress), "seconds": seconds, "scaler": scaler and scaler.state_dict(), **self.origin}
        record |= {"config": self.config.as_dict(), "versions": versions(), "threads": torch.get_num_threads()}
        path, weights = self.folder / run_folder.CHECKPOINT, self.model.trainable_state_dict() | self.step.state()
        save_checkpoint(path, weights, self.step.optimizer, record)

    def _load_checkpoint(self) -> None:
        config, folder = self.config, self.folder
        path, weights = folder / run_folder.CHECKPOINT, self.model.trainable_state_dict() | self.step.state()
        record = load_checkpoint(path, weights, self.step.optimizer)
        if record["frozen"] != self.origin["frozen"]:
            raise InputError(
                f"expected the frozen encoders that {folder} was begun with, got others in "
                f"{config.audio_checkpoint or config.audio_encoder} or {config.text_encoder}; choose another --out"
            )
        if record["versions"] != versions():
            log.warning("begun with %s, continued with %s: not to the bit the same", record["versions"], versions())
        if (threads := record.get("threads", torch.get_num_threads())) != torch.get_num_threads():
            now = torch.get_num_threads()
            log.warning("begun with %d threads, continued with %d: not to the bit the same", threads, now)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(record["scaler"])
        self.progress = Progress(*(record[name] for name in ("epoch", "step", "total", "history")))
        self.started -= record["seconds"]
        at = (folder, record["step"], record["epoch"], config.epochs)
        log.info("%s: continuing after step %d of epoch %d of %d", *at)

    def _measure_epoch(self, monitor: Monitor) -> None:
        """Measure the epoch, keep its weights if they are the best so far, and go on to the next one."""
        progress = self.progress
        recalls, diagnosis = self._measure()
        record = {
            "epoch": progress.epoch,
            "loss": progress.total / len(self.batches),
            "learning_rate": learning_rate(self.config, progress.epoch),
            "val": recalls,
            "diagnosis": diagnosis,
        }
        progress.history.append(record)
        if self.is_main and self._best() is record:
            save_tensors(self.folder / run_folder.BEST_WEIGHTS, self.model.trainable_state_dict())
        progress.epoch, progress.step, progress.total = progress.epoch + 1, 0, 0.0
        monitor.report_epoch()

    def _measure(self) -> tuple[Metrics, dict[str, float]]:
        """Measure on the validation set in the main process, and return its result in every process.

        Raises:
            NotFinite: an embedding is NaN or inf.
        """
        result: list[Any] = [None]
        if self.is_main:
            try:
                result = [evaluate(self.model.heads, self._features("val"), self.accelerator)]
            except NotFinite as error:
                result = [NotFinite(f"after epoch {self.progress.epoch}: {error}")]
        measured: tuple[Metrics, dict[str, float]] | NotFinite = broadcast_object_list(result)[0]
        if isinstance(measured, NotFinite):
            raise measured
        return measured

    def _features(self, split: str) -> Features:
        of_split = (self.clips[split], self.token_ids[split], self.config, self.accelerator, self.known.get(split))
        return compute_features(self.model, *of_split)

    def _best(self) -> dict[str, Any] | None:
        """Return the record of the epoch with the highest sum of recalls, the first of equal ones."""
        directions = DIRECTIONS if self.config.select_on == "both-directions" else ("text_to_audio",)
        return max(self.progress.history, key=lambda r: sum_of_recalls(r["val"], directions), default=None)

    def _finish(self) -> None:
        """Measure the best epoch on the test set and write ``metrics.json``, which marks the run as finished."""
        folder, clips, heads, history = self.folder, self.clips, self.model.heads, self.progress.history
        best = self._best()
        assert best is not None
        load_weights(folder / run_folder.BEST_WEIGHTS, self.model.trainable_state_dict())
        features = self._features("test")
        test, _ = evaluate(heads, features, self.accelerator)
        audio, text = embeddings(heads, features, self.accelerator)
        named = {"clips": stored_clips(clips["test"])}
        save_tensors(folder / run_folder.TEST_EMBEDDINGS, {"audio": audio, "text": text}, named)
        metrics = {
            "test": test,
            "val": best["val"],
            "chance": chance([len(clip.captions) for clip in clips["test"]]),
            "best_epoch": best["epoch"],
            "collapsed": bool(history[-1]["diagnosis"]["collapsed"]),
            "clips": {split: len(clips[split]) for split in SPLITS},
            "config": self.config.as_dict(),
            "versions": versions(),
            "history": history,
        }
        seconds = round(time.monotonic() - self.started, 1)
        time_record = {"seconds": seconds, "machine": describe_environment(), "threads": torch.get_num_threads()}
        write_json(folder / run_folder.TIME, time_record)
        write_json(folder / run_folder.METRICS, metrics)
        (folder / run_folder.CHECKPOINT).unlink()
        log.info("%s, test of %d clips at epoch %d: %s", folder.name, len(clips["test"]), best["epoch"], summary(test))

    def _diverged(self, error: NotFinite) -> Diverged:
        best, kept = self._best(), "no epoch was finished"
        if best is not None:
            kept = f"the best epoch, {best['epoch']}, is kept in {self.folder / run_folder.BEST_WEIGHTS}"
        reason = (
            f"training stopped: {error}; {kept}. Try a lower --learning-rate, or --precision bf16 in place of fp16, "
            f"and another --out"
        )
        if self.is_main:
            record = {"reason": reason, "best_epoch": best and best["epoch"], "history": self.progress.history}
            write_json(self.folder / run_folder.DIVERGED, record)
        return Diverged(reason)


def learning_rate(config: Config, epoch: int) -> float:
    """Return the learning rate of an epoch, counted from 1: a tenth of it every ``decay_every`` epochs."""
    return config.learning_rate * DECAY_FACTOR ** ((epoch - 1) // config.decay_every)
