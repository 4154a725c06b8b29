"""The command line: ``python -m reference_model COMMAND``."""

import os
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import click

from crossmodal_losses import LOSSES
from reference_model import InputError
from reference_model.config import Config, Encoders, FrozenMode, Precision, SelectOn, Size, WeightedRule
from reference_model.data.layouts import DATA_SETS, clip_seconds
from reference_model.data.manifest import in_several_splits
from reference_model.paper import (
    DATASET_SIZES,
    DECAY_EVERY,
    EPOCHS,
    LOSS_NAMES,
    PROTOCOLS,
    ROW_SETTINGS,
    SEEDS,
    TABLES,
    chosen,
    experiments,
)
from reference_model.reproduction.tables import markdown
from reference_model.runtime.signals import EXIT_STOPPED, Stopped, handle_signals

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
        raise click.exceptions.Exit(EXIT_STOPPED)


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
            --tables 1 --encoders fine-tuned --learning-rate 5e-4 --epochs 3 --decay-every 2 --jobs 2

    \b
    With AudioCaps and Clotho on disk, and ResNet38_mAP=0.434.pth from Zenodo, record 3987831:
        python -m reference_model prepare --dataset Clotho --raw DOWNLOADS
        python -m reference_model prepare --dataset AudioCaps --raw DOWNLOADS
        python -m reference_model train --experiment clotho-frozen-nt_xent --seed 0     one run
        python -m reference_model reproduce --tables 1 2 --seeds 0 1 2                  all of them, and the tables

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
    from reference_model.data.synthetic import Corpus
    from reference_model.data.synthetic import synthesize as render_corpus

    corpus = Corpus(train=train_clips, val=val_clips, test=test_clips, seconds=seconds, seed=seed)
    folder = render_corpus(corpus, out)
    click.echo(f"{folder} holds {train_clips} + {val_clips} + {test_clips} clips")
    length = "" if seconds == DATA_SETS["Synthetic"].clip_seconds else f" --clip-seconds {seconds}"
    click.echo(f"next: python -m reference_model reproduce --data {out} --dataset Synthetic --model tiny{length} ...")


@main.command()
@click.option("--data", type=FOLDER, default="data", help="The folder that holds the data set.")
@click.option("--dataset", default="Synthetic", help="One that synthesize made; others have no tags.")
@click.option("--out", type=FOLDER, required=True, help="Where to put both encoders.")
@click.option("--audio-epochs", type=click.IntRange(1), default=40, help="Of tagging.")
@click.option("--text-epochs", type=click.IntRange(1), default=20, help="Of filling in words.")
@click.option("--seed", type=int, default=0, help="Of the weights, the order, and dropout.")
def pretrain(data: Path, dataset: str, out: Path, audio_epochs: int, text_epochs: int, seed: int) -> None:
    """Pre-train small encoders on the synthetic corpus, to have something to freeze or to fine-tune.

    As the published ones: the audio encoder learns to tag the events of a clip, BERT to fill in masked words and to
    tell whether two captions belong together. On the train split alone. Interrupted, the encoder it was at begins anew.
    """
    from reference_model.training.pretrain import AUDIO, TEXT
    from reference_model.training.pretrain import pretrain as pretrain_both

    with handle_signals():
        pretrain_both(data, dataset, out, audio_epochs=audio_epochs, text_epochs=text_epochs, seed=seed)
    click.echo(f"next: train or reproduce --model tiny --audio-checkpoint {out / AUDIO} --bert {out / TEXT}")


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
    with handle_signals():
        from reference_model.data.prepare import prepare as prepare_all

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
    """The options that train and reproduce share: what is not said by a row of the tables."""
    options = [
        click.option("--data", default="data", help="The folder that holds a folder for each data set."),
        click.option(
            "--model",
            type=click.Choice(get_args(Size)),
            default="full",
            help="full: ResNet-38 of PANNs and BERT. tiny: small ones, for two CPU cores.",
        ),
        click.option(
            "--audio-checkpoint",
            show_default="ResNet38_mAP=0.434.pth, of the tiny model new weights",
            help="The file from Zenodo, record 3987831; for the tiny model that of pretrain.",
        ),
        click.option(
            "--bert",
            show_default="bert-base-uncased, of the tiny model a small one with new weights",
            help="BERT by name, or its folder.",
        ),
        click.option("--epochs", type=int, default=EPOCHS, help="Each sees every caption once."),
        click.option("--decay-every", type=int, default=DECAY_EVERY, help="Epochs between falls of the rate to 1/10."),
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
        click.option(
            "--features", type=FOLDER, show_default=False,
            help="Where features of frozen encoders are kept for all runs; by default DATA/DATASET/features.",
        ),
        click.option(
            "--checkpoint-minutes", type=click.FloatRange(min=0), default=10.0,
            help="Save the state so often, besides after every epoch.",
        ),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def _said(name: str, setting: str) -> str:
    value = PROTOCOLS[name][setting]
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else value


def _config(**options: Any) -> Config:
    """The config of train's options."""
    missing = [f"--{name.replace('_', '-')}" for name in ROW_SETTINGS if options[name] is None]
    if missing:
        raise InputError(f"expected {', '.join(missing)}, got none; an experiment says them all")
    settings = _completed(options)
    settings["clip_seconds"] = clip_seconds(settings["dataset"], settings["clip_seconds"])
    return Config(**settings)


def _completed(options: dict[str, Any]) -> dict[str, Any]:
    """Settings of Config from options: what the protocol and the size of the model say of those that are not given."""
    settings = dict(options)
    for name, value in PROTOCOLS[settings.pop("protocol_name")].items():
        if settings[name] is None:
            settings[name] = value
    if settings["model"] == "full":
        settings["audio_checkpoint"] = settings["audio_checkpoint"] or "ResNet38_mAP=0.434.pth"
        settings["bert"] = settings["bert"] or "bert-base-uncased"
    return settings


@main.command()
@click.option(
    "--experiment",
    type=click.Choice(list(experiments())),
    metavar="NAME",
    help="A row of the paper's tables, such as clotho-frozen-triplet_weighted or audiocaps-frozen-nt_xent-batch-128: "
    "its data set, loss, encoders, batch size and learning rate. Options that are given change it.",
)
@click.option("--dataset", help="AudioCaps, Clotho, Synthetic, or another in the same layout.")
@click.option(
    "--encoders", type=click.Choice(get_args(Encoders)),
    help="frozen: only the heads train. fine-tuned: everything trains.",
)  # fmt: skip
@click.option("--loss", type=click.Choice(sorted(LOSSES)), help="With the paper's settings.")
@click.option("--batch-size", type=int, help="The paper: 32; 24 for Clotho.")
@click.option("--learning-rate", type=float, help="Of Adam. The paper: 1e-4; 5e-5 for some rows.")
@click.option("--seed", type=int, default=0, help="Of the weights, the order of the pairs, and dropout.")
@_settings
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
    with handle_signals():
        from accelerate import PartialState

        from reference_model.training.trainer import summary
        from reference_model.training.trainer import train as train_run

        metrics = train_run(config, out, features=features, checkpoint_minutes=checkpoint_minutes)
    if not PartialState().is_main_process:
        return
    clips, paper = metrics["clips"]["test"], DATASET_SIZES.get(config.dataset, {}).get("test")
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

    from reference_model.evaluation.evaluate import evaluate_run

    click.echo(json.dumps(evaluate_run(run, split=split, data=data), indent=1))


@main.command(cls=_Several)
@click.option("--tables", multiple=True, type=click.Choice(TABLES), default=TABLES, help="1, 2, or both: --tables 1 2.")
@click.option("--seeds", multiple=True, type=int, default=SEEDS, help="One or several: --seeds 0 1 2.")
@click.option(
    "--dataset", "datasets", multiple=True,
    help="Only these of the tables' data sets. Another than the paper's takes the rows of AudioCaps.",
)  # fmt: skip
@click.option("--encoders", multiple=True, type=click.Choice(get_args(Encoders)), help="Only these rows.")
@click.option(
    "--losses",
    multiple=True,
    type=click.Choice(list(LOSS_NAMES)),
    help="Only these rows: --losses nt_xent triplet_max.",
)
@click.option("--learning-rate", type=float, help="Of every run, in place of the tables'.")
@_settings
@click.option("--jobs", type=click.IntRange(1), default=1, help="Runs to train at a time, each in its own process.")
@click.option(
    "--plan", "plan_only", is_flag=True, help="Show every run, its state, the hours and the disk; train nothing."
)
@click.option("--retry-failed", is_flag=True, help="Train those again that ended in an error.")
@click.option("--out", type=FOLDER, default="results", help="Where to put the runs, the tables and the report.")
def reproduce(
    tables: tuple[str, ...],
    seeds: tuple[int, ...],
    datasets: tuple[str, ...],
    encoders: tuple[str, ...],
    losses: tuple[str, ...],
    learning_rate: float | None,
    features: Path | None,
    checkpoint_minutes: float,
    jobs: int,
    plan_only: bool,
    retry_failed: bool,
    out: Path,
    **options: Any,
) -> None:
    """Train what the paper's tables need, and make the tables, ours beside the published numbers.

    \b
        python -m reference_model reproduce --tables 1 2 --seeds 0 1 2
        python -m reference_model reproduce --plan          what there is to do, what is done, what failed
        python -m reference_model reproduce --tables 2      and later the other: what both share is run once

    A row that stands in both tables is run once, and a finished run is not repeated. It can be stopped and started
    again at any time, and the same command may be at work on several GPUs or machines that see the same --out: each
    takes the next run that nobody is at. --jobs N trains N runs at a time here, which small models and frozen encoders
    gain by. A run that ends in an error is recorded, and the others go on.

    --out receives table_1 and table_2 as .md, .tex, .json and .png, claims.md, report.html, and a folder for each run.
    """
    from reference_model.reproduction.grid import Grid, counts, plan
    from reference_model.reproduction.report import write_report, write_tables
    from reference_model.reproduction.workers import estimate, refuse_others
    from reference_model.reproduction.workers import reproduce as train_all

    if "LOCAL_RANK" in os.environ:
        raise InputError("expected reproduce on its own, got torchrun; it divides runs, not batches: see --jobs")
    rows = chosen(tables, datasets=datasets, encoders=encoders, losses=losses)
    if learning_rate is not None:
        rows = {
            table: [{**row, "learning_rate": learning_rate} for row in of_table] for table, of_table in rows.items()
        }
    asked = Grid.of(rows, seeds, _completed(options))
    grid = asked.with_those_of(out)  # which the tables show
    runs = asked.runs(out)
    refuse_others(runs)
    if retry_failed and not plan_only:
        for run in runs:
            run.failure.unlink(missing_ok=True)
    click.echo(plan(grid, out))
    click.echo(estimate(runs, jobs=jobs, out=out))
    if plan_only:
        return
    grid.write(out)
    train_all(
        asked, out, jobs=jobs, features=features, checkpoint_minutes=checkpoint_minutes,
        when_settled=lambda: write_tables(Grid.read(out), out),
    )  # fmt: skip
    grid = Grid.read(out)  # others may have added to it
    made = write_tables(grid, out)
    write_report(grid, out)
    for table in made:
        click.echo("\n" + markdown(table))
    click.echo(f"{out}/report.html shows it all; {out}/table_*.md, .tex, .json and .png, {out}/claims.md")
    states = [run.state() for run in runs]
    click.echo(f"{len(runs)} runs: {counts(states)}")
    if "running" in states:
        click.echo(f"next: python -m reference_model report --results {out}, when those that others are at are done")
    if "failed" in states:
        raise InputError(
            f"expected every run to end well, got {states.count('failed')} that failed: "
            "--plan says why, --retry-failed tries again"
        )


@main.command()
@click.option("--results", type=FOLDER, default="results", help="The folder that reproduce works in.")
def report(results: Path) -> None:
    """Make the tables and report.html of a folder of results again, of the runs that there are so far.

    One page that holds everything: tables and pictures, what the paper reports beside what these runs show, the curves
    of every run, similarities of pairs, retrieved clips and captions to listen to, settings and versions.
    """
    from reference_model.reproduction.grid import Grid
    from reference_model.reproduction.report import write_report, write_tables

    grid = Grid.read(results)
    write_tables(grid, results)
    click.echo(f"{write_report(grid, results)} opens in any browser, without a network")


_RUN = click.option(
    "--run", type=FOLDER, required=True,
    help="A run's folder, with at least one finished epoch, or that of a saved model (see export).",
)  # fmt: skip
_INDEX = click.option(
    "--index", type=FOLDER, show_default=False,
    help="Where embeddings are kept for the next time; by default beside what is embedded, in FOLDER.index.",
)  # fmt: skip


def _searched(command: Callable[..., None]) -> Callable[..., None]:
    """What embed and search take: a folder of audio, or a file of captions."""
    options = [
        _RUN,
        click.option("--audio", type=FOLDER, help="A folder of audio files; the folders in it are searched too."),
        click.option(
            "--captions",
            type=click.Path(path_type=Path, dir_okay=False),
            help="A text file, one caption a line; or a table file_name,caption,... that ends in .csv.",
        ),
        _INDEX,
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _require_one(audio: Path | None, captions: Path | None) -> None:
    if (audio is None) == (captions is None):
        raise InputError(f"expected --audio or --captions, got {'neither' if audio is None else 'both'}")


@main.command()
@_searched
@click.option("--out", type=FOLDER, required=True, help="Where to put embeddings.safetensors and index.json.")
def embed(run: Path, audio: Path | None, captions: Path | None, index: Path | None, out: Path) -> None:
    """Embed a folder of audio, or a file of captions, with a trained model.

    \b
        python -m reference_model embed --run runs/first --audio recordings --out embedded/recordings
        python -m reference_model embed --run runs/first --captions captions.txt --out embedded/captions

    OUT/embeddings.safetensors holds the array "embeddings", a row a clip or caption, normalised: the product of two
    rows is their cosine similarity. OUT/index.json lists which row is what: the names of the clips, relative to the
    folder, or the captions in the order of the file.

    What is embedded is kept for search and for the next time, when only new and changed clips are computed.
    Interrupted, it continues. Files that cannot be read are named and left out.
    """
    _require_one(audio, captions)
    with handle_signals():
        from reference_model.data.dataset import read_captions
        from reference_model.runtime.files import write_json
        from reference_model.runtime.tensors import save_tensors
        from reference_model.search.retriever import Retriever

        retriever = Retriever.from_pretrained(run)
        found = retriever.audio_index(audio, index) if audio else retriever.caption_index(captions or Path(), index)
        items, embeddings = found.items, found.embeddings
        if captions:  # a caption that is there twice gets two rows
            row = {caption: number for number, caption in enumerate(items)}
            items = read_captions(captions)
            embeddings = embeddings[[row[caption] for caption in items]]
        out.mkdir(parents=True, exist_ok=True)
        save_tensors(out / "embeddings.safetensors", {"embeddings": embeddings})
        write_json(out / "index.json", items)
    _tell_of(found.left_out)
    what = "clips" if audio else "captions"
    click.echo(
        f"{out}/embeddings.safetensors holds {len(items)} {what} x {embeddings.shape[1]}, {out}/index.json which"
    )
    click.echo(
        f'next: python -m reference_model search --run {run} --audio {audio} "a dog barks twice"'
        if audio
        else f"next: python -m reference_model search --run {run} --captions {captions} CLIP.wav"
    )


@main.command()
@_searched
@click.option("--top", type=click.IntRange(1), default=10, help="Results to print.")
@click.argument("query")
def search(run: Path, audio: Path | None, captions: Path | None, index: Path | None, top: int, query: str) -> None:
    """Find the clips that suit a caption, or the captions that suit a clip.

    \b
        python -m reference_model search --run runs/first --audio recordings "a dog barks twice"
        python -m reference_model search --run runs/first --captions captions.txt recordings/dog.wav

    QUERY is a caption with --audio, and an audio file with --captions. Every line of the answer has a rank, the cosine
    similarity, and the clip, relative to the folder, or the caption.

    The first search of a folder embeds every clip in it, which may take long; it is kept, and from then on only new
    and changed clips are embedded. Interrupted, it continues. Files that cannot be read are named and left out.
    """
    _require_one(audio, captions)
    with handle_signals():
        from reference_model.search.index import shown
        from reference_model.search.retriever import Retriever

        retriever = Retriever.from_pretrained(run)
        if audio:
            embedded = retriever.embed_text([query])[0]
            found = retriever.audio_index(audio, index)
        else:
            embedded = retriever.embed_audio([query])[0]
            found = retriever.caption_index(captions or Path(), index)
        results = found.nearest(embedded, top)
    _tell_of(found.left_out)
    for rank, score, item in results:
        click.echo(f"{rank:>{len(str(len(results)))}}  {score:7.4f}  {shown(item)}")


def _tell_of(left_out: Mapping[str, str]) -> None:
    """In one line, on standard error."""
    from reference_model.search.index import shown

    if left_out:
        name, reason = next(iter(left_out.items()))
        click.echo(f"left out, unreadable: {len(left_out)}, such as {shown(name)}: {shown(reason)}", err=True)


@main.command()
@_RUN
@click.option("--out", type=FOLDER, required=True, help="A new folder, or one of a saved model, which is replaced.")
def export(run: Path, out: Path) -> None:
    """Save the model of a run, all of it, in one folder: to keep, to give away, to use elsewhere.

    \b
        python -m reference_model export --run runs/first --out models/first

    OUT holds model.safetensors, config.json, text_encoder/, metrics.json of a finished run, and README.md, a model
    card: training, metrics, limits. Wherever a run's folder is taken, OUT is too; it is smaller, and needs neither the
    data nor the weights that training began with.
    """
    from reference_model.search.retriever import Retriever

    Retriever.from_pretrained(run).save_pretrained(out)
    click.echo(f"{out}/ holds the model; {out}/README.md describes it")
    click.echo(f'next: python -m reference_model search --run {out} --audio FOLDER "a dog barks twice"')


def run() -> None:
    """Run the command line as a program."""
    if not sys.warnoptions:  # of the libraries below us; they are no news to the user of this command
        warnings.simplefilter("ignore")
    main(prog_name="python -m reference_model")
