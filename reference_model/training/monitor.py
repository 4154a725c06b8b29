"""The log, the progress bar, TensorBoard and the curves of a run; and the check that its loss is finite."""

import logging
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from reference_model import InputError
from reference_model.config import Config
from reference_model.evaluation.metrics import DIRECTIONS, Metrics, NotFinite
from reference_model.run_folder import CURVES, LOG, TENSORBOARD
from reference_model.runtime.files import require_file, writing
from reference_model.runtime.signals import Stopped
from reference_model.training.checkpoint import Progress
from reference_model.training.curves import plot_curves

SECONDS_BETWEEN_FETCHES = 0.5  # of the losses: a GPU would wait if each were fetched at once

log = logging.getLogger(__name__)
log_of_training = logging.getLogger("reference_model.training")
log_of_training.setLevel(logging.INFO)


class _LogFile(logging.FileHandler):
    """The log in a file; lines that find no room on the disk are lost, and the run goes on."""

    def __init__(self, path: Path) -> None:
        require_file(path)
        super().__init__(path, encoding="utf-8")

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        pass

    def close(self) -> None:
        with suppress(OSError):
            super().close()


def _hook_without_write_errors(arguments: threading.ExceptHookArgs) -> None:
    """Print errors of threads, except those of TensorBoard's on a full disk, which the main thread raises again."""
    if not (arguments.exc_type and issubclass(arguments.exc_type, OSError)):
        threading.__excepthook__(arguments)


@contextmanager
def log_to_folder(folder: Path, *, is_main: bool) -> Iterator[None]:
    """Write the log of the main process to ``log.txt`` too; other processes log errors only."""
    handler = _LogFile(folder / LOG) if is_main else logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log_of_training.addHandler(handler)
    log_of_training.setLevel(logging.INFO if is_main else logging.ERROR)
    hook, threading.excepthook = threading.excepthook, _hook_without_write_errors
    try:
        with logging_redirect_tqdm():
            yield
    except InputError as error:
        log.error("%s", error)
        raise
    except Stopped:
        log.info("%s: stopped when asked to; the same command continues", folder)
        raise
    finally:
        threading.excepthook = hook
        log_of_training.removeHandler(handler)
        handler.close()


class Monitor:
    """Follows one run, of ``steps`` an epoch, as the trainer changes its progress; only the main process writes."""

    def __init__(
        self, config: Config, folder: Path, progress: Progress, steps: int, *, show_bar: bool, is_main: bool
    ) -> None:
        self.config, self.folder, self.progress, self.steps = config, folder, progress, steps
        self.unfetched: list[Tensor] = []  # losses of the last steps
        self.fetched_at = time.monotonic()
        done = (progress.epoch - 1) * steps + progress.step
        self.board = SummaryWriter(str(folder / TENSORBOARD), purge_step=done + 1) if is_main else None
        name, total = f"{config.loss}, seed {config.seed}", config.epochs * steps
        # disable=None would hide the bar where nobody watches, and a log keeps it.
        self.bar = tqdm(None, name, total, initial=done, unit="step", disable=not (is_main and show_bar))

    def close(self) -> None:
        """Remove the progress bar and close TensorBoard's file."""
        self.bar.close()
        if self.board is not None:
            with writing(self.folder / TENSORBOARD):
                self.board.close()

    def _add_to_board(self, name: str, value: float, step: int) -> None:
        if self.board is not None:
            with writing(self.folder / TENSORBOARD):
                self.board.add_scalar(name, value, step)

    def add_loss(self, loss: Tensor) -> None:
        """Keep the loss of a finished step on its device until the next fetch."""
        self.unfetched.append(loss)
        self.bar.update()

    def fetch_is_due(self) -> bool:
        """Return whether the losses were not fetched for half a second."""
        return time.monotonic() - self.fetched_at >= SECONDS_BETWEEN_FETCHES

    def fetch_losses(self) -> None:
        """Fetch the losses of the last steps from the device, add them to the progress and report them.

        Raises:
            NotFinite: a loss is NaN or inf.
        """
        progress = self.progress
        values = torch.stack(self.unfetched).tolist()
        self.unfetched.clear()
        self.fetched_at = time.monotonic()
        for step, value in enumerate(values, start=progress.step - len(values) + 1):
            if not math.isfinite(value):
                raise NotFinite(f"the loss is {value} at step {step} of epoch {progress.epoch}")
            progress.total += value
            self._add_to_board("loss", value, (progress.epoch - 1) * self.steps + step)
        shown = {"loss": f"{values[-1]:.3f}"}
        if progress.history:
            shown["val R@10"] = f"{progress.history[-1]['val']['text_to_audio']['R@10']:.1f}%"
        self.bar.set_postfix(shown)

    def report_epoch(self) -> None:
        """Report the last epoch of the history."""
        if self.board is None:
            return
        config, history, name = self.config, self.progress.history, self.folder.name
        record = history[-1]
        step = record["epoch"] * self.steps
        self._add_to_board("learning_rate", record["learning_rate"], step)
        for group, values in {**record["val"], "diagnosis": record["diagnosis"]}.items():
            for key, value in values.items():
                self._add_to_board(f"{group}/{key}", value, step)
        plot_curves(self.folder / CURVES, history, title=f"{config.dataset}, {config.loss}, seed {config.seed}")
        log.info("%s, epoch %d: loss %.4f; val %s", name, record["epoch"], record["loss"], summary(record["val"]))
        if record["diagnosis"]["collapsed"]:
            log.warning("%s, epoch %d: the model has collapsed, all similarities are alike", name, record["epoch"])


def summary(metrics: Metrics) -> str:
    """Return the recalls of both directions in one line."""
    return "; ".join(
        f"{direction.replace('_', ' ')} R@1/5/10 " + "/".join(f"{metrics[direction][f'R@{k}']:.1f}" for k in (1, 5, 10))
        for direction in DIRECTIONS
    )
