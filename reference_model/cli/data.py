"""Commands that make data: ``synthesize`` and ``prepare``."""

from pathlib import Path
from typing import Any

import click

from reference_model import InputError
from reference_model.cli.options import FILE, FOLDER
from reference_model.data.dataset import require_name
from reference_model.data.layouts import DATA_SETS
from reference_model.data.manifest import in_several_splits
from reference_model.data.wavcaps import BLACKLISTS, NO_BLACKLIST
from reference_model.paper import experiments
from reference_model.runtime.signals import handle_signals


@click.command()
@click.option("--out", type=FOLDER, required=True, help="Where to make the folder of the corpus.")
@click.option("--name", help="Of that folder.", show_default="Synthetic, or Scenes with --sounds")
@click.option("--train", type=int, default=600, help="Clips to train on, each with five captions.")
@click.option("--val", type=int, default=200, help="Clips to select the best epoch on.")
@click.option("--test", type=int, default=200, help="Clips to report.")
@click.option("--seconds", type=float, default=1.5, help="Length of a clip.")
@click.option("--seed", type=int, default=0, help="Same seed, same files.")
@click.option("--sounds", type=FOLDER, help="A folder of labelled recordings: they are the events of the scenes.")
@click.option("--phrases", type=FILE, help="A table label,category,phrases: what captions call the recordings.")
@click.option("--events", type=int, help="In a scene of recordings, at most.", show_default="3")
def synthesize(
    out: Path, name: str | None, sounds: Path | None, phrases: Path | None, events: int | None, **settings: Any
) -> None:
    """Render a corpus of sound scenes with captions, in the same layout as the real data sets.

    Scenes are one event, or one after another, or several at once. Without --sounds, events are tones, buzzes,
    whistles, hiss, rumble, clicks and warbles; low, mid or high; quiet or loud.

    \b
        python -m reference_model synthesize --out data
        python -m reference_model synthesize --out data --sounds recordings --seconds 3

    With --sounds, events are the recordings in FOLDER/LABEL/NAME.wav or FOLDER/LABEL-1.wav, in any audio format, three
    or more of each label. Each recording is heard in one split alone, which follows from --seed. So a corpus of single
    events (--events 1) with the same recordings and the same seed can train an audio encoder that has heard none of
    those that scenes are validated and tested with. recordings.csv says in which split each is.

    --phrases says what captions call a label: dog,an animal,a dog barking;the bark of a dog. Other labels are called by
    their names.
    """
    from reference_model.data.corpus import Corpus
    from reference_model.data.scenes import SceneCorpus, synthesize_scenes
    from reference_model.data.synthetic import synthesize as synthesize_tones

    if sounds is None and (phrases is not None or events is not None):
        raise InputError("expected --sounds with --phrases and --events, got none: tones have phrases of their own")
    name = name or ("Synthetic" if sounds is None else "Scenes")
    require_name(name, "as --name")
    with handle_signals():
        if sounds is None:
            folder = synthesize_tones(Corpus(**settings), out, name=name)
        else:
            corpus = SceneCorpus(**settings, **({} if events is None else {"events": events}))
            folder = synthesize_scenes(corpus, sounds, out, name=name, phrases=phrases)
    click.echo(f"{folder} holds {settings['train']} + {settings['val']} + {settings['test']} clips")
    known, seconds = DATA_SETS.get(name), settings["seconds"]
    length = "" if known and seconds == known.clip_seconds else f" --clip-seconds {seconds}"
    click.echo(f"next: python -m reference_model reproduce --data {out} --dataset {name} --model tiny{length} ...")


@click.command()
@click.option("--dataset", required=True, help="AudioCaps, Clotho, or another.")
@click.option("--raw", type=FOLDER, required=True, help="The download, which is only read.")
@click.option("--data", type=FOLDER, default="data", help="Where to make the folder of the data set.")
@click.option("--audio", type=FOLDER, help="The folder of the clips, where it is not beside the tables.")
@click.option("--hold-out", type=float, metavar="PERCENT", help="Of train, for each of val and test that is missing.")
@click.option(
    "--blacklist",
    type=click.Choice([*BLACKLISTS, NO_BLACKLIST]),
    help="Of WavCaps: the clips to leave out.",
    show_default=BLACKLISTS[0],
)
@click.option("--allow-missing", is_flag=True, help="Leave clips that cannot be used out, instead of refusing.")
@click.option("--workers", type=click.IntRange(0), help="Processes that decode; by default one for each core.")
def prepare(dataset: str, raw: Path, data: Path, **settings: Any) -> None:
    """Check a downloaded data set and bring it into the layout that training reads.

    \b
        python -m reference_model prepare --dataset Clotho --raw downloads/CLOTHO_v2.1
        python -m reference_model prepare --dataset AudioCaps --raw downloads/AUDIOCAPS --allow-missing
        python -m reference_model prepare --dataset WavCaps --raw downloads/WavCaps --hold-out 1

    --raw is Clotho as published, AudioCaps' tables with a folder of clips, what aac-datasets leaves of either, or
    csv_files/ with waveforms/. It may be a data set of Hugging Face with the sounds inside, saved to disk or as parquet
    files (columns audio, and caption, captions or caption_1, ...); or WavCaps, json_files/ with Zip_files/.

    A download may lack val or test, as WavCaps does. With --hold-out 1 each of them gets 1 percent of the training
    clips, the same ones each time: a checksum of its name decides about a clip.

    WavCaps shares sounds with data sets that models are judged on, and lists them in json_files/blacklist. Those in
    val and test of AudioCaps and Clotho are left out, because a model that was trained on them could not be judged
    there. --blacklist all_ac leaves out those in train of these two as well, for a model that shall know none of their
    clips; ub8k_esc50_vggsound those in UrbanSound8K, ESC-50 and VGGSound; none keeps every clip.

    Every clip is decoded, mixed down and resampled to 32 kHz once. manifest.csv says of each whether it can be used,
    and why not: missing, unreadable, truncated, too short or silent. The summary stands beside the paper's counts.
    Interrupted, it continues; run again, it brings up to date.
    """
    with handle_signals():
        from reference_model.data.prepare import prepare as prepare_all

        prepared = prepare_all(raw, dataset, data, **settings)
    click.echo(prepared.summary())
    for clips in in_several_splits(prepared.rows):
        click.echo(f"warning: the same sound in several splits: {clips}")
    click.echo(f"{prepared.folder} is ready, {prepared.folder}/manifest.csv tells of every clip")
    name = next((name for name in experiments() if name.startswith(dataset.lower())), None)
    if name is not None:
        elsewhere = "" if data == Path("data") else f" --data {data}"
        click.echo(f"next: python -m reference_model train --experiment {name}{elsewhere}")
        click.echo("      with ResNet38_mAP=0.434.pth here (Zenodo, record 3987831), or --model tiny to try it without")
