"""Commands that train: ``pretrain`` and ``train``."""

import os
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from crossmodal_losses import LOSSES
from reference_model import InputError
from reference_model.cli.options import ENCODERS, FOLDER, run_options, run_settings
from reference_model.config import Config
from reference_model.data.layouts import clip_seconds
from reference_model.paper import DATASET_SIZES, EPOCHS, Experiment, experiments, row_for
from reference_model.runtime.signals import handle_signals


@click.command()
@click.option("--data", type=FOLDER, default="data", help="The folder that holds the data set.")
@click.option("--dataset", default="Synthetic", help="One with tags/train.csv, as synthesize makes them.")
@click.option("--clip-seconds", "seconds", type=float, help="Synthetic 1.5; others need it.")
@click.option("--out", type=FOLDER, required=True, help="Where to put the encoders.")
@click.option("--only", type=click.Choice(["audio", "text"]), help="One encoder alone; text needs no tags.")
@click.option("--audio-epochs", type=click.IntRange(1), default=40, help="Epochs of tagging.")
@click.option("--text-epochs", type=click.IntRange(1), default=20, help="Epochs of filling in words.")
@click.option("--seed", type=int, default=0, help="Seed of the weights, the order, and dropout.")
def pretrain(
    data: Path,
    dataset: str,
    seconds: float | None,
    out: Path,
    only: str | None,
    audio_epochs: int,
    text_epochs: int,
    seed: int,
) -> None:
    """Pre-train small encoders on a data set with tags, to have something to freeze or to fine-tune.

    As the published ones: the audio encoder learns to tag the events of a clip, BERT to fill in masked words and to
    tell whether two captions belong together. On the train split alone. Interrupted, the encoder it was at begins anew.
    """
    from reference_model.training.pretrain import AUDIO, TEXT
    from reference_model.training.pretrain import pretrain as pretrain_both

    with handle_signals():
        pretrain_both(
            data,
            dataset,
            out,
            seconds=seconds,
            audio_epochs=None if only == "text" else audio_epochs,
            text_epochs=None if only == "audio" else text_epochs,
            seed=seed,
        )
    made = [] if only == "text" else [f"--audio-checkpoint {out / AUDIO}"]
    made += [] if only == "audio" else [f"--text-encoder {out / TEXT}"]
    click.echo(f"next: train or reproduce --model tiny {' '.join(made)}")


@click.command()
@click.option(
    "--experiment",
    type=click.Choice(list(experiments())),
    metavar="NAME",
    help="A row of the paper's tables, such as clotho-frozen-triplet_weighted or audiocaps-frozen-nt_xent-batch-128: "
    "its data set, loss, encoders, batch size and learning rate. Options that are given change it.",
)
@click.option("--dataset", help="AudioCaps, Clotho, Synthetic, or another in the same layout.")
@click.option("--encoders", type=ENCODERS, help="frozen: only the heads train. fine-tuned: everything trains.")
@click.option("--loss", type=click.Choice(sorted(LOSSES)), help="With the paper's settings.")
@click.option("--batch-size", type=int, help="By default the paper's: 32; 24 for Clotho.")
@click.option("--learning-rate", type=float, help="Of Adam; by default the paper's: 1e-4; 5e-5 for some rows.")
@click.option("--seed", type=int, default=0, help="Seed of the weights, the order of the pairs, and dropout.")
@run_options
@click.option("--out", type=FOLDER, help="The run's folder; by default runs/EXPERIMENT[-released]-seed-SEED.")
def train(
    experiment: str | None, features: Path | None, checkpoint_minutes: float, out: Path | None, **options: Any
) -> None:
    """Train one configuration and measure its best epoch on the test set.

    \b
        python -m reference_model train --experiment clotho-frozen-nt_xent --seed 0
        python -m reference_model train --dataset Clotho --loss nt_xent --encoders frozen --out runs/first

    Without --experiment, say --dataset, --loss, --encoders and --out. The batch size, the learning rate and the
    epochs are then the paper's for these, and are printed with their source; another data set takes those of
    AudioCaps. The other defaults are those of section 3.2 of the paper.

    The run's folder receives metrics.json, best.safetensors, config.json, log.txt, curves.png and tensorboard/. A run
    that was interrupted, even by SIGKILL, continues from its last checkpoint; after SIGTERM or Ctrl-C there is one of
    the last step, and the exit status is 75: run me again. A finished run is not repeated. It uses the GPU if there
    is one; `torchrun --nproc-per-node 2 -m reference_model train ...` divides every batch among several, or among
    processes.
    """
    row, source = _row(options) if experiment is None else (experiments()[experiment], "")
    settings = run_settings(options, row)
    config = Config(**{**settings, "clip_seconds": clip_seconds(settings["dataset"], settings["clip_seconds"])})
    if config.encoders == "frozen" and config.trained != "both":
        raise InputError(f"expected --train {config.trained} with --encoders fine-tuned, got frozen: neither learns")
    if out is None:
        if experiment is None:
            raise InputError("expected --out, the run's folder, got none; it has a default for --experiment alone")
        protocol = "" if options["protocol_name"] == "paper" else f"-{options['protocol_name']}"
        out = Path("runs") / f"{experiment}{protocol}-seed-{config.seed}"
    if source and os.environ.get("RANK", "0") == "0":  # once, where torchrun has started several processes
        click.echo(source)
    with handle_signals():
        from accelerate import PartialState

        from reference_model.training.monitor import summary
        from reference_model.training.trainer import train as train_run

        metrics = train_run(config, out, features=features, checkpoint_minutes=checkpoint_minutes)
    if not PartialState().is_main_process:
        return
    clips, paper = metrics["clips"]["test"], DATASET_SIZES.get(config.dataset, {}).get("test")
    pool = f"{clips} clips" if paper in (clips, None) else f"{clips} clips (the paper: {paper})"
    click.echo(f"test, {pool}: {summary(metrics['test'])}" + (" (collapsed)" if metrics["collapsed"] else ""))
    click.echo(f"{out}/ holds metrics.json, curves.png and best.safetensors; tensorboard --logdir {out} shows more")


def _row(options: dict[str, Any]) -> tuple[Experiment, str]:
    """Return the row of table 1 for the data set, encoders and loss, and in words what is taken from the paper."""
    missing = [f"--{name}" for name in ("dataset", "encoders", "loss") if options[name] is None]
    if missing:
        raise InputError(f"expected {', '.join(missing)}, got none; an experiment says them all")
    row, name = row_for(options["dataset"], options["encoders"], options["loss"])
    absent = [setting for setting in ("batch_size", "learning_rate") if options[setting] is None]
    taken = [f"{setting.replace('_', ' ')} {row[setting]:g}" for setting in absent]
    sources = [f"{', '.join(taken)}: the paper's, {name}"] if taken else []
    if click.get_current_context().get_parameter_source("epochs") is ParameterSource.DEFAULT:
        sources.append(f"epochs {EPOCHS}: section 3.2")
    return row, "; ".join(sources)
