"""Commands that make data: ``synthesize`` and ``prepare``."""

from pathlib import Path

import click

from reference_model.cli.options import FOLDER
from reference_model.data.layouts import DATA_SETS
from reference_model.data.manifest import in_several_splits
from reference_model.paper import experiments
from reference_model.runtime.signals import handle_signals


@click.command()
@click.option("--out", type=FOLDER, required=True, help="Where to make the folder Synthetic.")
@click.option("--train", type=int, default=600, help="Clips to train on, each with five captions.")
@click.option("--val", type=int, default=200, help="Clips to select the best epoch on.")
@click.option("--test", type=int, default=200, help="Clips to report.")
@click.option("--seconds", type=float, default=1.5, help="Length of a clip.")
@click.option("--seed", type=int, default=0, help="Same seed, same files.")
def synthesize(out: Path, seconds: float, **settings: int) -> None:
    """Render a small corpus of sound scenes with captions.

    Scenes are one event, or one after another, or two at once; events are tones, buzzes, whistles, hiss, rumble,
    clicks and warbles; low, mid or high; quiet or loud. The files lie in the same layout as the real data sets.
    """
    from reference_model.data.synthetic import Corpus
    from reference_model.data.synthetic import synthesize as render_corpus

    corpus = Corpus(seconds=seconds, **settings)
    with handle_signals():
        folder = render_corpus(corpus, out)
    click.echo(f"{folder} holds {corpus.train} + {corpus.val} + {corpus.test} clips")
    length = "" if seconds == DATA_SETS["Synthetic"].clip_seconds else f" --clip-seconds {seconds}"
    click.echo(f"next: python -m reference_model reproduce --data {out} --dataset Synthetic --model tiny{length} ...")


@click.command()
@click.option("--dataset", required=True, help="AudioCaps, Clotho, or another.")
@click.option("--raw", type=FOLDER, required=True, help="The download, which is only read.")
@click.option("--data", type=FOLDER, default="data", help="Where to make the folder of the data set.")
@click.option("--audio", type=FOLDER, help="The folder of the clips, where it is not beside the tables.")
@click.option("--allow-missing", is_flag=True, help="Leave clips that cannot be used out, instead of refusing.")
@click.option("--workers", type=click.IntRange(0), help="Processes that decode; by default one for each core.")
def prepare(dataset: str, raw: Path, data: Path, audio: Path | None, allow_missing: bool, workers: int | None) -> None:
    """Check a downloaded data set and bring it into the layout that training reads.

    \b
        python -m reference_model prepare --dataset Clotho --raw downloads/CLOTHO_v2.1
        python -m reference_model prepare --dataset AudioCaps --raw downloads/AUDIOCAPS --allow-missing

    --raw is Clotho as published, AudioCaps' tables with a folder of clips, what aac-datasets leaves of either, or
    csv_files/ with waveforms/.

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
