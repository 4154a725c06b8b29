"""Section 3.2: train one configuration, keep the epoch that is best on the validation set, measure it on the test set.

A run is a folder. It leaves there config.json, log.txt, curves.png, tensorboard/, best.safetensors with
text_encoder/, and at the end metrics.json. checkpoint.safetensors is there while it is under way: the same command
continues it from the last finished epoch, and ends with the same weights as if it had not been interrupted.

Several processes, started by accelerate launch or torchrun, divide every batch among them. The batches, and the
negatives, are those of one process; the first process measures and writes.
"""

import importlib.metadata
import json
import logging
import math
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from crossmodal_losses import LOSSES, GatheredLoss, GradientCache
from reference_model import InputError, text_encoder
from reference_model.audio_files import check_audio
from reference_model.checkpoint import load_checkpoint, load_weights, save_checkpoint, save_weights
from reference_model.config import Config
from reference_model.data import SPLITS, Clip, Pairs, Share, batches, captions_of, collate, read_split
from reference_model.dual_encoder import BEST_WEIGHTS, TEXT_ENCODER, DualEncoder, new_model
from reference_model.evaluate import CONFIG, METRICS, accelerator_for, evaluate, stored_metrics
from reference_model.files import write_json
from reference_model.report import plot_curves
from reference_model.retrieval import DIRECTIONS, Metrics, NotFinite, chance, sum_of_recalls

CHECKPOINT = "checkpoint.safetensors"
DIVERGED = "diverged.json"
LOG = "log.txt"

log = logging.getLogger(__name__)
log.setLevel(logging.INFO)


class Diverged(InputError):
    """The loss, or an embedding, is no longer finite."""


def open_run(config: Config, run: Path) -> dict[str, Any] | None:
    """Make the run's folder, or find it: its metrics if it is finished, None if there is work to do.

    Raises:
        InputError: the folder holds something else, or a run of another configuration.
        Diverged: the folder holds this run, and it has diverged.
    """
    if (run / CONFIG).exists():
        stored = Config.read(run / CONFIG)
        if replace(stored, workers=config.workers) != config:  # how many read the audio changes nothing
            theirs, ours = stored.as_dict(), config.as_dict()
            different = [
                f"{name} {theirs[name]} there, {ours[name]} here" for name in ours if theirs[name] != ours[name]
            ]
            raise InputError(
                f"expected {run} to be new or a run of this configuration, got a run of another "
                f"({'; '.join(different)}); choose another --out"
            )
        if (run / DIVERGED).exists():
            raise Diverged(json.loads((run / DIVERGED).read_text(encoding="utf-8"))["reason"])
        return stored_metrics(run) if (run / METRICS).exists() else None
    if run.exists() and (not run.is_dir() or {path.name for path in run.iterdir()} - {LOG}):
        raise InputError(f"expected {run} to be new or a run's folder, got something without {CONFIG}")
    run.mkdir(parents=True, exist_ok=True)
    return None


def train(config: Config, run: Path, *, position: int = 0) -> dict[str, Any]:
    """Train, or continue, or find finished; returns what is in ``metrics.json``.

    Args:
        config: the settings.
        run: the folder, new or this very run's.
        position: the line of the progress bar, where several runs share a screen.

    Raises:
        InputError: the data, the folder or a checkpoint is not as expected; nothing is lost.
        Diverged: the loss is no longer finite; the last good state is kept.
    """
    accelerator = accelerator_for(config)
    with accelerator.main_process_first():  # which makes the folder, or refuses it
        finished = open_run(config, run)
    if finished is not None:
        return finished
    handler = logging.FileHandler(run / LOG, encoding="utf-8") if accelerator.is_main_process else logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO if accelerator.is_main_process else logging.ERROR)
    try:
        with logging_redirect_tqdm():
            return _train(config, run, accelerator, position)
    except InputError as error:
        log.error("%s", error)
        raise
    finally:
        log.removeHandler(handler)
        handler.close()


def _train(config: Config, run: Path, accelerator: Accelerator, position: int) -> dict[str, Any]:
    main, processes = accelerator.is_main_process, accelerator.num_processes
    # The data. Everything that can be wrong with it is found before anything is trained.
    clips = {split: read_split(config.data, config.dataset, split) for split in SPLITS}
    check_audio(clip.path for split in SPLITS for clip in clips[split])
    number_of_pairs = len(captions_of(clips["train"]))
    if number_of_pairs < config.batch_size:
        raise InputError(f"expected at least one batch of {config.batch_size} pairs, got {number_of_pairs}")
    if config.batch_size < processes:
        raise InputError(f"expected a pair for each of {processes} processes in a batch, got {config.batch_size}")

    # The model.
    torch.manual_seed(config.seed)
    model, tokenizer = new_model(config, captions_of(clips["train"]))
    if processes > 1 and accelerator.device.type == "cuda":  # a batch is normalised by the statistics of all of it
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if main:
        # Nothing was wrong so far: the folder is this run's from here on.
        write_json(run / CONFIG, config.as_dict())
        text_encoder.save(run / TEXT_ENCODER, model.text_encoder, tokenizer)
    token_ids = {split: text_encoder.tokenize(tokenizer, captions_of(clips[split])) for split in SPLITS}

    # Equations 2 to 7, with the settings of section 3.2.
    loss = GatheredLoss(LOSSES[config.loss]())
    micro_batch = config.gradient_cache_micro_batch
    cache = None if micro_batch is None else GradientCache(loss, micro_batch_size=micro_batch)

    pairs = Pairs(clips["train"], token_ids["train"], config.clip_seconds)
    sampler: DistributedSampler[Any] = DistributedSampler(
        pairs, num_replicas=1, rank=0, seed=_seed_of_epoch(config.seed, 0)
    )
    whole_batches = BatchSampler(sampler, config.batch_size, drop_last=True)
    loader = DataLoader(
        pairs,
        batch_sampler=Share(whole_batches, accelerator.process_index, processes),
        collate_fn=collate,
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
        pin_memory=accelerator.device.type == "cuda",
        generator=torch.Generator(),  # or starting workers would draw from the generator that dropout uses
    )
    optimizer = Adam([p for p in model.parameters() if p.requires_grad], lr=config.learning_rate, fused=True)
    schedule = StepLR(optimizer, config.decay_every, config.decay_factor)
    model.to(accelerator.device)
    history: list[dict[str, Any]] = []
    if (run / CHECKPOINT).exists():
        progress = load_checkpoint(run / CHECKPOINT, model, optimizer)
        history = progress["history"]
        schedule.load_state_dict(progress["schedule"])
        for group, rate in zip(optimizer.param_groups, schedule.get_last_lr(), strict=True):
            group["lr"] = rate
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(progress["scaler"])
        log.info("continuing after epoch %d of %d", len(history), config.epochs)
    else:
        log.info(
            "%s: %d pairs, %d steps an epoch, on %s, %d process%s",
            run, number_of_pairs, len(loader), accelerator.device, processes, "" if processes == 1 else "es",
        )  # fmt: skip
    embed_pairs, optimizer = accelerator.prepare(model, optimizer)

    def embed_audio(waveforms: Tensor) -> Tensor:
        return embed_pairs(waveforms=waveforms)[0]  # type: ignore[no-any-return]

    def embed_text(tokens: dict[str, Tensor]) -> Tensor:
        return embed_pairs(**tokens)[1]  # type: ignore[no-any-return]

    finished_steps = len(history) * len(loader)

    with (
        SummaryWriter(str(run / "tensorboard"), purge_step=finished_steps + 1) if main else nullcontext() as board,
        tqdm(
            desc=f"{config.loss}, seed {config.seed}",
            total=config.epochs * len(loader),
            initial=finished_steps,
            unit="step",
            position=position,
            disable=not main,  # and shown otherwise, though the bars below it may not be
        ) as bar,
    ):
        for epoch in range(len(history) + 1, config.epochs + 1):
            started = time.perf_counter()
            torch.manual_seed(_seed_of_epoch(config.seed, epoch, accelerator.process_index))
            sampler.set_epoch(epoch)
            model.train()
            total = 0.0
            for step, batch in enumerate(batches(loader), start=1):
                batch = {name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in batch.items()}
                if cache is None:
                    value = loss(*embed_pairs(**batch))
                else:
                    waveforms = batch.pop("waveforms")
                    value = cache(embed_audio, embed_text, waveforms, batch)
                current = value.item()
                if not math.isfinite(current):
                    raise _diverged(run, history, f"the loss is {current} at step {step} of epoch {epoch}")
                optimizer.zero_grad()
                accelerator.backward(value)
                optimizer.step()
                total += current
                bar.update()
                bar.set_postfix(_postfix(current, history))
                if board is not None:
                    board.add_scalar("loss", current, bar.n)
            record: dict[str, Any] = {
                "epoch": epoch,
                "loss": total / len(loader),
                "learning_rate": schedule.get_last_lr()[0],
            }
            measured = _measured(model, clips["val"], token_ids["val"], config, accelerator)
            if isinstance(measured, NotFinite):
                raise _diverged(run, history, f"after epoch {epoch}: {measured}") from measured
            record["val"], record["diagnosis"] = measured
            record["seconds"] = time.perf_counter() - started
            schedule.step()
            best = max((sum_of_recalls(r["val"]) for r in history), default=-math.inf)
            if main and sum_of_recalls(record["val"]) > best:
                save_weights(run / BEST_WEIGHTS, model)
            history.append(record)
            if board is not None:
                _report_epoch(run, history, config, board, bar)
                scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
                progress = {"history": history, "schedule": schedule.state_dict(), "scaler": scaler}
                save_checkpoint(run / CHECKPOINT, model, optimizer, progress)
    if main:
        _finish(config, run, model, clips, token_ids, accelerator, history)
    accelerator.wait_for_everyone()
    return stored_metrics(run)


def _measured(
    model: DualEncoder, clips: list[Clip], token_ids: list[list[int]], config: Config, accelerator: Accelerator
) -> tuple[Metrics, dict[str, float]] | NotFinite:
    """What the first process finds, on every process."""
    found: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            found = [evaluate(model, clips, token_ids, config, accelerator)]
        except NotFinite as error:
            found = [error]
    measured: tuple[Metrics, dict[str, float]] | NotFinite = broadcast_object_list(found)[0]
    return measured


def _finish(
    config: Config,
    run: Path,
    model: DualEncoder,
    clips: dict[str, Any],
    token_ids: dict[str, Any],
    accelerator: Accelerator,
    history: list[dict[str, Any]],
) -> None:
    """Measure the best epoch on the test set and write ``metrics.json``, by which a run is known to be finished."""
    load_weights(run / BEST_WEIGHTS, model)
    test, _ = evaluate(model, clips["test"], token_ids["test"], config, accelerator)
    best = max(history, key=lambda record: sum_of_recalls(record["val"]))
    metrics = {
        "test": test,
        "val": best["val"],
        "chance": chance([len(clip.captions) for clip in clips["test"]]),
        "best_epoch": best["epoch"],
        "collapsed": bool(history[-1]["diagnosis"]["collapsed"]),
        "config": config.as_dict(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "torchaudio", "transformers")},
        "history": history,
    }
    write_json(run / METRICS, metrics)
    (run / CHECKPOINT).unlink()
    log.info("%s, test at epoch %d: %s", run.name, best["epoch"], summary(test))


def _seed_of_epoch(seed: int, epoch: int, process: int = 0) -> int:
    """Dropout of an epoch depends on this alone, so an interrupted run repeats an epoch exactly."""
    return seed * 1_000_003 + epoch + process * 1_000_000_007


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
    plot_curves(run / "curves.png", history, title=f"{config.dataset}, {config.loss}, seed {config.seed}")
    log.info("%s, epoch %d: loss %.4f; val %s", run.name, record["epoch"], record["loss"], summary(record["val"]))
    if record["diagnosis"]["collapsed"]:
        log.warning("%s, epoch %d: the model has collapsed, all similarities are alike", run.name, record["epoch"])


def _diverged(run: Path, history: list[dict[str, Any]], what: str) -> Diverged:
    best = max(history, key=lambda r: sum_of_recalls(r["val"]), default=None)
    kept = f"the best epoch, {best['epoch']}, is kept in {run / BEST_WEIGHTS}" if best else "no epoch was finished"
    reason = (
        f"training stopped: {what}; {kept}. Try a lower --learning-rate, or --precision bf16 in place of fp16, "
        f"and another --out"
    )
    record = {"reason": reason, "best_epoch": best["epoch"] if best else None, "history": history}
    if PartialState().is_main_process:
        write_json(run / DIVERGED, record)
    return Diverged(reason)
