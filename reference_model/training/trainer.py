"""One run, from its settings to metrics.json: train, keep the epoch that is best on the validation set, test it.

Section 3.2 of the paper. The folder of the run receives config.json, log.txt, curves.png, tensorboard/,
best.safetensors with text_encoder/ (and frozen.safetensors), and at the end metrics.json. checkpoint.safetensors is
there while the run is under way: the same command continues it, and ends with the same weights and metrics as if it
had not been interrupted.

Several processes, started by torchrun (or, on GPUs, accelerate launch), divide every batch among them. The batches, and
the negatives, are those of one process. The main process measures and writes.
"""

import logging
import math
import time
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from reference_model.config import Config
from reference_model.data.dataset import SPLITS
from reference_model.evaluation.evaluate import embeddings, evaluate
from reference_model.evaluation.metrics import DIRECTIONS, Metrics, NotFinite, chance, sum_of_recalls
from reference_model.models.features import Features, compute_features
from reference_model.paper import DECAY_FACTOR
from reference_model.run_folder import (
    BEST_WEIGHTS,
    CHECKPOINT,
    DIVERGED,
    METRICS,
    TEST_EMBEDDINGS,
    TIME,
    Diverged,
    open_run,
    stored_metrics,
)
from reference_model.runtime.devices import make_accelerator
from reference_model.runtime.environment import describe_environment
from reference_model.runtime.files import write_json
from reference_model.runtime.lease import lock_run_folder
from reference_model.runtime.signals import Stopped, handle_signals, stop_requested
from reference_model.runtime.tensors import load_weights, save_tensors
from reference_model.training.checkpoint import Progress, RunState, versions
from reference_model.training.monitor import Monitor, log_to_folder, summary
from reference_model.training.setup import EpochBatches, constant_features, make_model, read_clips, spread_seed
from reference_model.training.step import Step

log = logging.getLogger(__name__)


def train(
    config: Config, folder: Path, *, features: Path | None = None, checkpoint_minutes: float = 10.0, position: int = 0
) -> dict[str, Any]:
    """Train a run, or continue it, and return the content of ``metrics.json``; a finished run is only read.

    Args:
        config: the settings.
        folder: the folder of the run: new, or of this very run.
        features: the folder of the features of constant encoders; None: in the folder of the data set.
        checkpoint_minutes: a checkpoint is written so often, and when the steps of an epoch are done.
        position: the line of the progress bar, where several runs share a screen.

    Raises:
        InputError: the data, the folder or a checkpoint is not as expected; nothing is lost.
        Diverged: the loss is no longer finite; the last good state is kept.
        Stopped: a stop was requested; the same call continues.
    """
    accelerator = make_accelerator(config.precision)
    with accelerator.main_process_first():  # the main process makes the folder, or refuses it
        metrics = open_run(config, folder)
    if metrics is not None:
        return metrics
    with lock_run_folder(folder) if accelerator.is_main_process else nullcontext():
        metrics = open_run(config, folder)  # by now another process may have finished the run
        if metrics is not None:
            return metrics
        with log_to_folder(folder, is_main=accelerator.is_main_process), handle_signals():
            trainer = Trainer(
                config,
                folder,
                accelerator,
                feature_folder=features or Path(config.data) / config.dataset / "features",
                checkpoint_seconds=checkpoint_minutes * 60,
            )
            return trainer.run(position)


class Trainer:
    """Trains one run.

    Data, model, batches and optimiser are made, and a checkpoint is read, by the constructor; :meth:`run` trains.

    Args:
        config: the settings.
        folder: the folder of the run, locked for this process.
        accelerator: device, precision and processes.
        feature_folder: the folder of the features of constant encoders.
        checkpoint_seconds: the time between two checkpoints within an epoch.
    """

    def __init__(
        self, config: Config, folder: Path, accelerator: Accelerator, *, feature_folder: Path, checkpoint_seconds: float
    ) -> None:
        self.config, self.folder, self.accelerator = config, folder, accelerator
        self.checkpoint_seconds = checkpoint_seconds
        self.is_main = accelerator.is_main_process
        self.progress = Progress()
        self.clips = read_clips(config, folder, accelerator)
        self.model, self.token_ids = make_model(config, folder, self.clips, accelerator)
        self.features: dict[str, Features] = {}
        if self.model.constant:
            self.features = constant_features(
                config, feature_folder, self.model, self.clips, self.token_ids, accelerator
            )
        train, train_token_ids = self.clips["train"], self.token_ids["train"]
        self.batches = EpochBatches(config, train, train_token_ids, self.features.get("train"), accelerator)
        self.step = Step(self.model.heads if self.model.constant else self.model, config, accelerator)
        optimizer, scaler = self.step.optimizer, accelerator.scaler
        self.state = RunState(config, folder, self.clips, self.model, optimizer, scaler, self.progress)
        if (folder / CHECKPOINT).exists():
            self.state.restore()
            log.info(
                "%s: continuing after step %d of epoch %d of %d",
                *(folder, self.progress.step, self.progress.epoch, config.epochs),
            )

    def run(self, position: int = 0) -> dict[str, Any]:
        """Train all epochs, measure the best one on the test set, and return the content of ``metrics.json``."""
        progress, epochs = self.progress, self.config.epochs
        log.info(
            "%s: %d epochs of %d steps on %s, %d process%s",
            *(self.folder, epochs, len(self.batches), self.accelerator.device, self.accelerator.num_processes),
            "" if self.accelerator.num_processes == 1 else "es",
        )
        monitor = Monitor(
            self.config, self.folder, progress, len(self.batches), position=position, is_main=self.is_main
        )
        with closing(monitor):
            try:
                while progress.epoch <= epochs:
                    self._train_epoch(monitor)
                    self._measure_epoch(monitor)
                    if any(self._in_any_process(stop_requested())):
                        raise Stopped
            except NotFinite as error:
                raise self._diverged(error) from error
        if self.is_main:
            self._finish()
        self.accelerator.wait_for_everyone()
        return stored_metrics(self.folder)

    def _train_epoch(self, monitor: Monitor) -> None:
        """Train the steps of the epoch that are not done yet."""
        config, progress = self.config, self.progress
        self.step.set_learning_rate(learning_rate(config, progress.epoch))
        self.model.train()
        saved_at = time.monotonic()
        for batch in self.batches.of_epoch(progress.epoch, first=progress.step):
            # Dropout follows from the step alone, so a run that continues draws the same numbers.
            torch.manual_seed(
                spread_seed(config.seed, progress.epoch, progress.step + 1, self.accelerator.process_index)
            )
            loss = self.step(batch)
            progress.step += 1
            monitor.add_loss(loss)
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
        if self.is_main:
            self.state.save()

    def _measure_epoch(self, monitor: Monitor) -> None:
        """Measure on the validation set, keep the weights if they are the best so far, and go on to the next epoch."""
        progress = self.progress
        recalls, diagnosis = self._measure("val")
        record = {
            "epoch": progress.epoch,
            "loss": progress.total / len(self.batches),
            "learning_rate": learning_rate(self.config, progress.epoch),
            "val": recalls,
            "diagnosis": diagnosis,
        }
        best = max((self._score(earlier) for earlier in progress.history), default=-math.inf)
        if self.is_main and self._score(record) > best:
            save_tensors(self.folder / BEST_WEIGHTS, self.model.trainable_state_dict())
        progress.history.append(record)
        progress.epoch, progress.step, progress.total = progress.epoch + 1, 0, 0.0
        monitor.report_epoch()

    def _measure(self, split: str) -> tuple[Metrics, dict[str, float]]:
        """Measure in the main process, and return its result in every process.

        Raises:
            NotFinite: an embedding is NaN or inf.
        """
        result: list[Any] = [None]
        if self.is_main:
            try:
                result = [evaluate(self.model.heads, self._features(split), self.accelerator)]
            except NotFinite as error:
                result = [NotFinite(f"after epoch {self.progress.epoch}: {error}")]
        measured: tuple[Metrics, dict[str, float]] | NotFinite = broadcast_object_list(result)[0]
        if isinstance(measured, NotFinite):
            raise measured
        return measured

    def _features(self, split: str) -> Features:
        if self.model.constant:
            return self.features[split]
        return compute_features(self.model, self.clips[split], self.token_ids[split], self.config, self.accelerator)

    def _score(self, record: dict[str, Any]) -> float:
        """Return the number by which the best epoch is chosen."""
        both = self.config.select_on == "both-directions"
        return sum_of_recalls(record["val"], DIRECTIONS if both else ("text_to_audio",))

    def _finish(self) -> None:
        """Measure the best epoch on the test set and write ``metrics.json``, which marks the run as finished."""
        load_weights(self.folder / BEST_WEIGHTS, self.model.trainable_state_dict())
        features, clips = self._features("test"), self.clips["test"]
        test, _ = evaluate(self.model.heads, features, self.accelerator)
        audio, text = embeddings(self.model.heads, features, self.accelerator)
        names = [{"file_name": clip.path.name, "captions": clip.captions} for clip in clips]
        save_tensors(self.folder / TEST_EMBEDDINGS, {"audio": audio, "text": text}, {"clips": names})
        history = self.progress.history
        best = max(history, key=self._score)
        metrics = {
            "test": test,
            "val": best["val"],
            "chance": chance([len(clip.captions) for clip in clips]),
            "best_epoch": best["epoch"],
            "collapsed": bool(history[-1]["diagnosis"]["collapsed"]),
            "clips": {split: len(self.clips[split]) for split in SPLITS},
            "config": self.config.as_dict(),
            "versions": versions(),
            "history": history,
        }
        self.progress.count_seconds()
        time_record = {"seconds": round(self.progress.seconds, 1), "machine": describe_environment()}
        write_json(self.folder / TIME, time_record)
        write_json(self.folder / METRICS, metrics)
        (self.folder / CHECKPOINT).unlink()
        log.info("%s, test of %d clips at epoch %d: %s", self.folder.name, len(clips), best["epoch"], summary(test))

    def _diverged(self, error: NotFinite) -> Diverged:
        folder, history = self.folder, self.progress.history
        best = max(history, key=self._score, default=None)
        kept = "no epoch was finished"
        if best is not None:
            kept = f"the best epoch, {best['epoch']}, is kept in {folder / BEST_WEIGHTS}"
        reason = (
            f"training stopped: {error}; {kept}. Try a lower --learning-rate, or --precision bf16 in place of fp16, "
            f"and another --out"
        )
        if self.is_main:
            best_epoch = None if best is None else best["epoch"]
            write_json(folder / DIVERGED, {"reason": reason, "best_epoch": best_epoch, "history": history})
        return Diverged(reason)


def learning_rate(config: Config, epoch: int) -> float:
    """Return the learning rate of an epoch, counted from 1: a tenth of it every ``decay_every`` epochs."""
    return config.learning_rate * DECAY_FACTOR ** ((epoch - 1) // config.decay_every)
