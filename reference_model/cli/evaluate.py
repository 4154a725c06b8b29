"""The command ``evaluate``: metrics of a run, or of a model that was not trained here."""

from pathlib import Path
from typing import Any

import click

from reference_model import InputError
from reference_model.cli.options import FILE, FOLDER
from reference_model.data.layouts import clip_seconds
from reference_model.runtime.output import require_written
from reference_model.runtime.signals import handle_signals

CLAP = "clap:"  # how --model begins
_OTHERS = ("--model", "--embeddings")
# The options that are not for all of --run, --model and --embeddings: their names here, and those that they are for.
_ARE_FOR = {
    "--dataset": ("dataset", _OTHERS),
    "--out": ("out", _OTHERS),
    "--name": ("name", _OTHERS),
    "--clip-seconds": ("seconds", ("--model",)),
    "--workers": ("workers", ("--model",)),
}


@click.command()
@click.option("--run", type=FOLDER, help="The folder of a run with at least one finished epoch, or of a saved model.")
@click.option("--model", metavar="clap:NAME", help="A ClapModel of Hugging Face, by name or folder.")
@click.option("--embeddings", type=FILE, help="Embeddings that any model made of a split: .safetensors or .npz.")
@click.option("--split", type=click.Choice(["train", "val", "test"]), default="test", help="The split to measure.")
@click.option("--data", show_default="data; of a run where it was at training", help="The folder of the data sets.")
@click.option("--dataset", help="The data set, with --model or --embeddings.")
@click.option(
    "--clip-seconds",
    "seconds",
    type=float,
    help="With --model. AudioCaps 10, Clotho 30, Synthetic 1.5; others need it.",
)
@click.option("--workers", type=click.IntRange(0), show_default="2", help="With --model: processes that read audio.")
@click.option("--relevance", type=FILE, help="A table caption,file_name of further clips that match a caption.")
@click.option("--out", type=FILE, help="Write a record for the tables too: RESULTS/others/NAME.json. Not with --run.")
@click.option("--name", show_default="that of the file or folder", help="Of the model in the tables, with --out.")
def evaluate(run: Path | None, split: str, data: str | None, relevance: Path | None, **other: Any) -> None:
    """Measure a run's best weights again, or another model by the same protocol. Prints JSON.

    \b
        python -m reference_model evaluate --run runs/first --split val
        python -m reference_model evaluate --model clap:laion/clap-htsat-unfused --dataset Clotho \\
            --out results/others/clap.json
        python -m reference_model evaluate --embeddings mine.safetensors --dataset Clotho --out results/others/mine.json

    One of --run, --model and --embeddings. All are measured alike: each clip is embedded once, all clips and all
    captions of the split are candidates, and a candidate that ties with a relevant one is ranked before it.

    A file of embeddings holds audio [N, D], text [M, D], and the clip of every caption: as clip_of_caption, integers
    [M], or as a JSON record {"clips": [{"file_name": ..., "captions": [...]}, ...]}. A run's
    test_embeddings.safetensors is such a file. With --dataset, its clips have to be those of the split.

    With --out, a record is written besides. In the folder "others" of the results of reproduce it is a row of the
    tables and of the report, beside ours and the paper's.
    """
    import json

    given = {"--run": run, "--model": other["model"], "--embeddings": other["embeddings"]}
    if len(names := [name for name, value in given.items() if value is not None]) != 1:
        raise InputError(f"expected one of {', '.join(given)}, got {' and '.join(names) or 'none'}")
    for option, (name, are_for) in _ARE_FOR.items():
        if other[name] is not None and names[0] not in are_for:
            raise InputError(f"expected {option} with {' or '.join(are_for)}, got it with {names[0]}")
    with handle_signals():
        if run is None:
            metrics = _judge(split, data or "data", relevance, **other)
        else:
            from reference_model.evaluation.evaluate import evaluate_run

            metrics = evaluate_run(run, split=split, data=data, relevance=relevance)
    click.echo(json.dumps(metrics, indent=1))
    require_written()


def _judge(
    split: str,
    data: str,
    relevance: Path | None,
    *,
    model: str | None,
    embeddings: Path,
    dataset: str | None,
    seconds: float | None,
    workers: int | None,
    out: Path | None,
    name: str | None,
) -> dict[str, Any]:
    """Return the metrics of a model that was not trained here, and write its record to ``out`` if there is one."""
    from reference_model.evaluation import judge, others

    if dataset is None and (model or out):
        raise InputError(f"expected --dataset with {'--model' if model else '--out'}, got none")
    if name is not None and out is None:
        raise InputError("expected --name with --out, got it alone")
    default = embeddings.stem if model is None else Path(_clap(model)).name
    about = {"model": default if name is None else name, "dataset": str(dataset), "split": split}
    if out is not None:
        others.require_place(out, **about)
    if model is None:
        metrics = judge.judge(judge.embeddings_of_split(embeddings, data, dataset, split), relevance)
    else:
        metrics = judge.judge_clap(
            _clap(model),
            data,
            str(dataset),
            split,
            seconds=clip_seconds(str(dataset), seconds),
            workers=2 if workers is None else workers,
            relevance=relevance,
        )
    if out is not None:
        others.write_other(out, metrics, **about, source=model or str(embeddings), relevance=relevance)
    return metrics


def _clap(model: str) -> str:
    """Return the name or folder of a ClapModel."""
    name = model.removeprefix(CLAP)
    if name in ("", model):
        raise InputError(f"expected {CLAP}NAME or {CLAP}FOLDER as --model, got {model}")
    return name
