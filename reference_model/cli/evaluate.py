"""The command ``evaluate``: metrics of a run, or of a model that was not trained here."""

from pathlib import Path
from typing import Any

import click

from reference_model import InputError
from reference_model.cli.options import FILE, FOLDER
from reference_model.runtime.output import require_written
from reference_model.runtime.signals import handle_signals


@click.command()
@click.option("--run", type=FOLDER, help="The folder of a run with at least one finished epoch, or of a saved model.")
@click.option("--embeddings", type=FILE, help="Embeddings that any model made of a split: .safetensors or .npz.")
@click.option("--split", type=click.Choice(["train", "val", "test"]), default="test", help="The split to measure.")
@click.option("--data", show_default="data; of a run where it was at training", help="The folder of the data sets.")
@click.option("--dataset", help="The data set, with --embeddings.")
@click.option("--relevance", type=FILE, help="A table caption,file_name of further clips that match a caption.")
@click.option("--out", type=FILE, help="Write a record for the tables too: RESULTS/others/NAME.json. Not with --run.")
@click.option("--name", show_default="that of the file", help="Of the model in the tables, with --out.")
def evaluate(run: Path | None, split: str, data: str | None, relevance: Path | None, **other: Any) -> None:
    """Measure a run's best weights again, or another model by the same protocol. Prints JSON.

    \b
        python -m reference_model evaluate --run runs/first --split val
        python -m reference_model evaluate --embeddings mine.safetensors --dataset Clotho --out results/others/mine.json

    Either --run or --embeddings. Both are measured alike: each clip is embedded once, all clips and all captions of
    the split are candidates, and a candidate that ties with a relevant one is ranked before it.

    A file of embeddings holds audio [N, D], text [M, D], and the clip of every caption: as clip_of_caption, integers
    [M], or as a JSON record {"clips": [{"file_name": ..., "captions": [...]}, ...]}. A run's
    test_embeddings.safetensors is such a file. With --dataset, its clips have to be those of the split.

    With --out, a record is written besides. In the folder "others" of the results of reproduce it is a row of the
    tables and of the report, beside ours and the paper's.
    """
    import json

    given = {"--run": run, "--embeddings": other["embeddings"]}
    if len(names := [name for name, value in given.items() if value is not None]) != 1:
        raise InputError(f"expected one of {', '.join(given)}, got {' and '.join(names) or 'none'}")
    with handle_signals():
        if run is None:
            metrics = _judge(split, data or "data", relevance, **other)
        else:
            _refuse_with_run(other)
            from reference_model.evaluation.evaluate import evaluate_run

            metrics = evaluate_run(run, split=split, data=data, relevance=relevance)
    click.echo(json.dumps(metrics, indent=1))
    require_written()


def _refuse_with_run(other: dict[str, Any]) -> None:
    for option in ("dataset", "out", "name"):
        if other[option] is not None:
            raise InputError(f"expected --{option.replace('_', '-')} with --embeddings, got it with --run")


def _judge(
    split: str,
    data: str,
    relevance: Path | None,
    *,
    embeddings: Path,
    dataset: str | None,
    out: Path | None,
    name: str | None,
) -> dict[str, Any]:
    """Return the metrics of a model that was not trained here, and write its record."""
    from reference_model.evaluation import judge, others

    if dataset is None and out is not None:
        raise InputError("expected --dataset with --out, got none")
    if name is not None and out is None:
        raise InputError("expected --name with --out, got it alone")
    about = {"model": embeddings.stem if name is None else name, "dataset": str(dataset), "split": split}
    if out is not None:
        others.require_place(out, **about)
    metrics = judge.judge(judge.embeddings_of_split(embeddings, data, dataset, split), relevance)
    if out is not None:
        others.write_other(out, metrics, **about, source=str(embeddings), relevance=relevance)
    return metrics
