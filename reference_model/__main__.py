"""The command line: ``python -m reference_model COMMAND``."""

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click

from crossmodal_losses import LOSSES
from reference_model import InputError
from reference_model.config import CLIP_SECONDS, Config, Encoders, Precision, Size, clip_seconds
from reference_model.experiments import SETTINGS, experiments
from reference_model.interruption import CONTINUE, Stopped, signals_noted
from reference_model.manifest import PAPER, in_several_splits
from reference_model.protocol import PROTOCOLS, FrozenMode, SelectOn, WeightedRule, protocol

PAPER_LOSSES = ("triplet_sum", "triplet_max", "triplet_weighted", "nt_xent")
FOLDER = click.Path(path_type=Path, file_okay=False)


class _Group(click.Group):
    """Wrong input ends in one message and status 1; a bug in its traceback."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except (InputError, OSError) as error:
            raise click.ClickException(str(error)) from error
        except Stopped:
            pass  # and with it the progress bars go
        click.echo("stopped when asked to; the same command continues", err=True)
        raise click.exceptions.Exit(CONTINUE)


class _Several(click.Command):
    """Options that can be repeated take several values at once too: --seeds 0 1 2."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        repeatable = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        repeated: list[str] = []
        option = None
        for argument in args:
            if argument.startswith("-"):
                option = argument if argument in repeatable else None
                repeated.append(argument)
            else:
                if option is not None and repeated[-1] != option:
                    repeated.append(option)
                repeated.append(argument)
        return super().parse_args(context, repeated)


@click.group(
    cls=_Group,
    context_settings={"show_default": True, "max_content_width": 100, "help_option_names": ["-h", "--help"]},
)
def main() -> None:
    """Audio-text retrieval with four metric learning losses: the experiment of Mei et al. 2022.

    \b
    Without data of your own, on a laptop:
        python -m reference_model synthesize --out data
        python -m reference_model reproduce --data data --dataset Synthetic --model tiny \\
            --encoders fine-tuned --batch-size 32 --learning-rate 5e-4 --epochs 3 --decay-every 2 --jobs 2 \\
            --out results

    \b
    With AudioCaps or Clotho on disk, and ResNet38_mAP=0.434.pth from Zenodo, record 3987831:
        python -m reference_model prepare --dataset Clotho --raw DOWNLOADS
        python -m reference_model train --experiment clotho-frozen-nt_xent --seed 0

    \b
    Data is expected, for every data set, as
        ROOT/NAME/csv_files/{train,val,test}.csv    file_name,caption or file_name,caption_1,...
        ROOT/NAME/waveforms/{train,val,test}/FILE_NAME

    Every command can be stopped and run again: it continues where it stopped.
    """
    # Tokenizers warn when processes are forked after they were used; they are used before, and not after.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@main.command()
@click.option("--out", type=FOLDER, required=True, help="Where to make the folder Synthetic.")
@click.option("--train", "train_clips", type=int, default=600, help="Clips to train on, each with five captions.")
@click.option("--val", "val_clips", type=int, default=200, help="Clips to select the best epoch on.")
@click.option("--test", "test_clips", type=int, default=200, help="Clips to report.")
@click.option("--seconds", type=float, default=1.5, help="Length of a clip.")
@click.option("--seed", type=int, default=0, help="Same seed, same files.")
def synthesize(out: Path, train_clips: int, val_clips: int, test_clips: int, seconds: float, seed: int) -> None:
    """Render a small corpus of sound scenes with captions.

    Scenes are one event, or one after another, or two at once; events are tones, buzzes, whistles, hiss, rumble,
    clicks and warbles; low, mid or high; quiet or loud. The files lie in the same layout as the real data sets.
    """
    from reference_model.synthesize import Corpus
    from reference_model.synthesize import synthesize as render_corpus

    corpus = Corpus(train=train_clips, val=val_clips, test=test_clips, seconds=seconds, seed=seed)
    folder = render_corpus(corpus, out)
    click.echo(f"{folder} holds {train_clips} + {val_clips} + {test_clips} clips")
    length = "" if seconds == CLIP_SECONDS["Synthetic"] else f" --clip-seconds {seconds}"
    click.echo(f"next: python -m reference_model reproduce --data {out} --dataset Synthetic --model tiny{length} ...")


@main.command()
@click.option("--dataset", required=True, help="AudioCaps, Clotho, or another.")
@click.option(
    "--raw", type=FOLDER, required=True,
    help="The download: Clotho as published, AudioCaps' tables with a folder of clips, what aac-datasets leaves of "
    "either, or csv_files/ with waveforms/. It is only read.",
)  # fmt: skip
@click.option("--data", type=FOLDER, default="data", help="Where to make the folder of the data set.")
@click.option("--audio", type=FOLDER, help="The folder of the clips, where it is not beside the tables.")
@click.option("--allow-missing", is_flag=True, help="Leave clips that cannot be used out, instead of refusing.")
@click.option("--workers", type=click.IntRange(0), help="Processes that decode; by default one for each core.")
def prepare(dataset: str, raw: Path, data: Path, audio: Path | None, allow_missing: bool, workers: int | None) -> None:
    """Check a downloaded data set and bring it into the layout that training reads.

    \b
        python -m reference_model prepare --dataset Clotho --raw downloads/CLOTHO_v2.1
        python -m reference_model prepare --dataset AudioCaps --raw downloads/AUDIOCAPS --allow-missing

    Every clip is decoded, mixed down and resampled to 32 kHz once. manifest.csv says of each whether it can be used,
    and why not: missing, unreadable, truncated, too short or silent. The summary stands beside the paper's counts.
    Interrupted, it continues; run again, it brings up to date.
    """
    with signals_noted():
        from reference_model.prepare import prepare as prepare_all

        prepared = prepare_all(raw, dataset, data, audio=audio, allow_missing=allow_missing, workers=workers)
    click.echo(prepared.summary())
    for clips in in_several_splits(prepared.rows):
        click.echo(f"warning: the same sound in several splits: {clips}")
    click.echo(f"{prepared.folder} is ready, {prepared.folder}/manifest.csv tells of every clip")
    name = next((name for name in experiments() if name.startswith(dataset.lower())), None)
    if name is not None:
        elsewhere = "" if data == Path("data") else f" --data {data}"
        click.echo(f"next: python -m reference_model train --experiment {name}{elsewhere}")
        click.echo("      with ResNet38_mAP=0.434.pth here (Zenodo, record 3987831), or --model tiny to try it without")


# Of the protocol: option, its type or values, what it sets.
_PROTOCOL: dict[str, tuple[Any, str]] = {
    "frozen_mode": (click.Choice(get_args(FrozenMode)), "Frozen encoders: constant, or with dropout and drift."),
    "spec_augment": (bool, "Erase stripes of the spectrograms, where the audio encoder is in train mode."),
    "dropout": (float, "Of BERT and of the residual blocks, in train mode."),
    "clip_norm": (float, "Scale larger gradients down to this norm; 0: none."),
    "nt_xent_factor": (float, "1: equation 7. 0.5: the mean of its two directions."),
    "weighted_rule": (click.Choice(get_args(WeightedRule)), "What triplet_weighted is."),
    "mask_same_clip": (bool, "Captions of one clip are no negatives of each other, except in nt_xent."),
    "select_on": (click.Choice(get_args(SelectOn)), "Recalls that the best epoch has most of."),
}


def _settings(command: Callable[..., None]) -> Callable[..., None]:
    """The options of a run that train and reproduce share."""
    options = [
        click.option("--data", default="data", help="The folder that holds a folder for each data set."),
        click.option("--dataset", help="AudioCaps, Clotho, Synthetic, or another in the same layout."),
        click.option(
            "--encoders",
            type=click.Choice(get_args(Encoders)),
            help="frozen: only the heads train. fine-tuned: everything trains.",
        ),
        click.option("--batch-size", type=int, help="The paper: 32; 24 for Clotho."),
        click.option("--learning-rate", type=float, help="Of Adam. The paper: 1e-4; 5e-5 for some rows."),
        click.option(
            "--model",
            type=click.Choice(get_args(Size)),
            default="full",
            help="full: ResNet-38 of PANNs and BERT. tiny: small ones with new weights, for two CPU cores.",
        ),
        click.option(
            "--audio-checkpoint",
            default="ResNet38_mAP=0.434.pth",
            help="For the full model: the file from Zenodo, record 3987831.",
        ),
        click.option("--bert", default="bert-base-uncased", help="For the full model: BERT by name, or its folder."),
        click.option("--epochs", type=int, default=50, help="Each sees every caption once."),
        click.option("--decay-every", type=int, default=20, help="Epochs."),
        click.option("--decay-factor", type=float, default=0.1, help="Of the learning rate."),
        click.option(
            "--protocol",
            "protocol_name",
            type=click.Choice(list(PROTOCOLS)),
            default="paper",
            help="What the paper's text says, or what its published code did; the next options change it one by one.",
        ),
        *(
            click.option(
                f"--{name.replace('_', '-')}",
                type=kind,
                help=f"{text} paper: {_said('paper', name)}, released: {_said('released', name)}.",
            )
            for name, (kind, text) in _PROTOCOL.items()
        ),
        click.option(
            "--gradient-cache-micro-batch", type=int,
            help="Embed so many pairs at a time, which takes the memory of as many, and one more forward pass.",
        ),
        click.option("--clip-seconds", type=float, help="AudioCaps 10, Clotho 30, Synthetic 1.5; others need it."),
        click.option(
            "--precision", type=click.Choice(get_args(Precision)), default="no",
            help="Mixed precision of the encoders; the losses are always computed in float32.",
        ),
        click.option("--workers", type=int, default=2, help="Processes that read audio."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def _said(name: str, setting: str) -> str:
    value = getattr(PROTOCOLS[name], setting)
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else value


def _config(protocol_name: str, **settings: Any) -> Config:
    """The config of a command's options; those of the protocol that are not given are as it says."""
    missing = [f"--{name.replace('_', '-')}" for name in SETTINGS if settings[name] is None]
    if missing:
        raise InputError(f"expected {', '.join(missing)}, got none; an experiment says them all")
    changes = {name: settings.pop(name) for name in _PROTOCOL}
    if settings["model"] == "tiny":
        settings |= {"audio_checkpoint": None, "bert": None}
    settings["clip_seconds"] = clip_seconds(settings["dataset"], settings["clip_seconds"])
    given = {name: value for name, value in changes.items() if value is not None}
    return Config(protocol=protocol(protocol_name, **given), **settings)


@main.command()
@click.option(
    "--experiment",
    type=click.Choice(list(experiments())),
    metavar="NAME",
    help="A row of the paper's tables, such as clotho-frozen-triplet_weighted or audiocaps-frozen-nt_xent-batch-128: "
    "its data set, loss, encoders, batch size and learning rate. Options that are given change it.",
)
@_settings
@click.option("--loss", type=click.Choice(sorted(LOSSES)), help="With the paper's settings.")
@click.option("--seed", type=int, default=0, help="Of the weights, the order of the pairs, and dropout.")
@click.option(
    "--features", type=FOLDER, show_default=False,
    help="Where features of frozen encoders are kept for all runs; by default DATA/DATASET/features.",
)  # fmt: skip
@click.option(
    "--checkpoint-minutes", type=click.FloatRange(min=0), default=10.0,
    help="Save the state so often, besides after every epoch.",
)  # fmt: skip
@click.option(
    "--out",
    type=FOLDER,
    show_default=False,
    help="The run's folder; by default runs/EXPERIMENT-seed-SEED, with -released before -seed.",
)
def train(
    experiment: str | None, features: Path | None, checkpoint_minutes: float, out: Path | None, **settings: Any
) -> None:
    """Train one configuration and measure its best epoch on the test set.

    \b
        python -m reference_model train --experiment clotho-frozen-nt_xent --seed 0

    Without --experiment, say --dataset, --loss, --encoders, --batch-size, --learning-rate and --out. The other
    defaults are those of section 3.2 of the paper.

    The run's folder receives metrics.json, best.safetensors, config.json, log.txt, curves.png and tensorboard/. A run
    that was interrupted, even by SIGKILL, continues from its last checkpoint; after SIGTERM or Ctrl-C there is one of
    the last step, and the exit status is 75: run me again. A finished run is not repeated. It uses the GPU if there
    is one; `torchrun --nproc-per-node 2 -m reference_model train ...` divides every batch among several, or among
    processes.
    """
    if experiment is not None:
        settings |= {name: value for name, value in experiments()[experiment].items() if settings[name] is None}
        protocol_name = "" if settings["protocol_name"] == "paper" else f"-{settings['protocol_name']}"
        out = out or Path("runs") / f"{experiment}{protocol_name}-seed-{settings['seed']}"
    config = _config(**settings)
    if out is None:
        raise InputError("expected --out, the run's folder, got none; it has a default for --experiment alone")
    with signals_noted():
        from accelerate import PartialState

        from reference_model.train import summary
        from reference_model.train import train as train_run

        metrics = train_run(config, out, features=features, checkpoint_minutes=checkpoint_minutes)
    if not PartialState().is_main_process:
        return
    clips, paper = metrics["clips"]["test"], PAPER.get(config.dataset, {}).get("test")
    pool = f"{clips} clips" if paper in (clips, None) else f"{clips} clips (the paper: {paper})"
    click.echo(f"test, {pool}: {summary(metrics['test'])}" + (" (collapsed)" if metrics["collapsed"] else ""))
    click.echo(f"{out}/ holds metrics.json, curves.png and best.safetensors; tensorboard --logdir {out} shows more")


@main.command()
@click.option("--run", type=FOLDER, required=True, help="The folder of a run with at least one finished epoch.")
@click.option("--split", type=click.Choice(["train", "val", "test"]), default="test", help="Of the data set.")
@click.option("--data", help="Another place of the data; by default where it was at training.", show_default=False)
def evaluate(run: Path, split: str, data: str | None) -> None:
    """Measure a run's best weights again, on any split. Prints JSON; the run is left as it is."""
    import json

    from reference_model.evaluate import evaluate_run

    click.echo(json.dumps(evaluate_run(run, split=split, data=data), indent=1))


@main.command(cls=_Several)
@_settings
@click.option(
    "--losses", multiple=True, type=click.Choice(sorted(LOSSES)), default=PAPER_LOSSES,
    help="One or several: --losses nt_xent triplet_sum.",
)  # fmt: skip
@click.option("--seeds", multiple=True, type=int, default=(0, 1, 2), help="One or several: --seeds 0 1 2.")
@click.option("--jobs", type=click.IntRange(1), default=1, help="Runs to train at a time, each in its own process.")
@click.option("--out", type=FOLDER, required=True, help="Where to put the table and the runs.")
def reproduce(out: Path, losses: tuple[str, ...], seeds: tuple[int, ...], jobs: int, **settings: Any) -> None:
    """Train losses x seeds and print the paper's table, with mean and standard deviation and a row for chance.

    Finished runs are not repeated, interrupted ones continue. Runs that collapsed (all similarities alike at the end)
    or diverged (the loss was no longer finite) are marked.
    """
    from reference_model.reproduce import reproduce as run_all

    config = _config(loss=losses[0], seed=seeds[0], **settings)
    click.echo("\n" + run_all(config, losses=losses, seeds=seeds, out=out, jobs=jobs))
    click.echo(f"picture and table: {out}/table.png, {out}/table.md, {out}/table.json")
    click.echo(f"curves and metrics of every run: {out}/runs/*/curves.png, {out}/runs/*/metrics.json")
    click.echo(f"live: tensorboard --logdir {out}/runs")
    click.echo("next: more seeds (--seeds 0 1 2), more epochs, or your own data (python -m reference_model --help)")


if __name__ == "__main__":
    if not sys.warnoptions:  # of the libraries below us; they are no news to the user of this command
        warnings.simplefilter("ignore")
    main(prog_name="python -m reference_model")
