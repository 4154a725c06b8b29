"""Commands that use a trained model: ``embed``, ``search`` and ``export``."""

from collections.abc import Mapping
from pathlib import Path

import click

from reference_model import InputError
from reference_model.cli.options import FOLDER, with_options
from reference_model.runtime.output import require_written
from reference_model.runtime.signals import handle_signals

_run_option = click.option(
    "--run", type=FOLDER, required=True, help="A run's folder with a finished epoch, or a saved model (see export)."
)
_source_options = with_options(
    _run_option,
    click.option("--audio", type=FOLDER, help="A folder of audio files; the folders in it are searched too."),
    click.option(
        "--captions",
        type=click.Path(path_type=Path, dir_okay=False),
        help="A text file, one caption a line; or a table file_name,caption,... that ends in .csv.",
    ),
    click.option(
        "--index", type=FOLDER, help="Where embeddings are kept for the next time; by default in FOLDER.index beside."
    ),
)


def _require_one(audio: Path | None, captions: Path | None) -> None:
    """Refuse both of --audio and --captions, and neither."""
    if (audio is None) == (captions is None):
        raise InputError(f"expected --audio or --captions, got {'neither' if audio is None else 'both'}")


def _refuse_other_files(out: Path) -> None:
    """Refuse a folder with files under the names of those of ``embed`` that it has not made."""
    from reference_model.runtime.records import read_json
    from reference_model.runtime.tensors import load_tensors

    arrays, items = out / "embeddings.safetensors", out / "index.json"
    if arrays.exists() or items.exists():  # the arrays are written first
        try:
            names = set(load_tensors(arrays)[0])
            if items.exists():
                read_json(items, list[str], "the names of clips, or captions,")
        except InputError as error:
            raise InputError(f"expected {out} to have no file but those of embed, got another: {error}") from error
        if names != {"embeddings"}:
            raise InputError(f"expected {out} to have no file but those of embed, got {arrays.name} of other arrays")


@click.command()
@_source_options
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
        _refuse_other_files(out)
        out.mkdir(parents=True, exist_ok=True)
        save_tensors(out / "embeddings.safetensors", {"embeddings": embeddings})
        write_json(out / "index.json", items)
    _report_left_out(audio, found.skipped)
    size = f"{len(items)} {'clips' if audio else 'captions'} x {embeddings.shape[1]}"
    click.echo(f"{out}/embeddings.safetensors holds {size}, {out}/index.json which")
    example = f'--audio {audio} "a dog barks twice"' if audio else f"--captions {captions} CLIP.wav"
    click.echo(f"next: python -m reference_model search --run {run} {example}")


@click.command()
@_source_options
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
        from reference_model.search.index import printable
        from reference_model.search.retriever import Retriever

        retriever = Retriever.from_pretrained(run)
        embedded = retriever.embed_text([query])[0] if audio else retriever.embed_audio([query])[0]
        found = retriever.audio_index(audio, index) if audio else retriever.caption_index(captions or Path(), index)
        results = found.nearest(embedded, top)
    _report_left_out(audio, found.skipped)
    for rank, score, item in results:
        click.echo(f"{rank:>{len(str(len(results)))}}  {score:7.4f}  {printable(item)}")
    require_written()


def _report_left_out(folder: Path | None, skipped: Mapping[str, str]) -> None:
    """Print on standard error how many files could not be read, and how many of the folder are not called audio."""
    from reference_model.data.audio import passed_over
    from reference_model.search.index import printable

    if skipped:
        name, reason = next(iter(skipped.items()))
        click.echo(f"left out, unreadable: {len(skipped)}, such as {printable(name)}: {printable(reason)}", err=True)
    if folder and (others := passed_over(folder)):
        kinds = ", ".join(f"{number} {printable(kind)}" for kind, number in others.most_common(10))
        click.echo(f"passed over, not called audio: {others.total()} ({kinds}{', ...' * (len(others) > 10)})", err=True)


@click.command()
@_run_option
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
