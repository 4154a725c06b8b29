"""Records of models that were not trained here: their metrics on a split.

One of the test set is a row of the tables if it lies in the folder :data:`OTHERS` of the results.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import NotRequired, TypedDict

from reference_model import InputError
from reference_model.evaluation.metrics import Metrics
from reference_model.run_folder import OfDirections
from reference_model.runtime.environment import describe_environment
from reference_model.runtime.files import write_json, writing
from reference_model.runtime.records import read_json

OTHERS = "others"  # the folder of the records, in the folder of the results
KIND = "the metrics of another model"

Text = Annotated[str, Field(min_length=1)]


class OtherModel(TypedDict):
    """The record of another model's metrics on a split."""

    model: Text  # its name in the tables
    source: str  # what was judged, as evaluate was told
    dataset: Text
    split: Literal["train", "val", "test"]
    relevance: str | None  # the name of the table of relevance
    metrics: OfDirections
    made: NotRequired[str]  # the machine and the versions


def require_place(path: Path, model: str, dataset: str, split: str) -> None:
    """Refuse a file that is not the record of this model on this split, and a name that no file can hold."""
    for option, text in (("--name", model), ("--dataset", dataset)):
        if not text.strip() or text.encode(errors="replace").decode() != text:
            raise InputError(f"expected a text in UTF-8 as {option}, got {text!r}")
    if path.suffix != ".json":
        raise InputError(f"expected a name that ends in .json as --out, got {path}")
    if path.exists():
        stored = read_other(path)
        if (stored["model"], stored["dataset"], stored["split"]) != (model, dataset, split):
            got = f"those of {stored['model']} on {stored['dataset']}, {stored['split']}; choose another --out"
            raise InputError(f"expected {path} to be the metrics of {model} on {dataset}, {split}, got {got}")


def write_other(
    path: Path, metrics: Metrics, *, model: str, source: str, dataset: str, split: str, relevance: Path | None
) -> None:
    """Write the record of a model's metrics, and make its folder if there is none."""
    record: dict[str, Any] = {
        "model": model,
        "source": _text(source),
        "dataset": dataset,
        "split": split,
        "relevance": None if relevance is None else _text(relevance.name),
        "metrics": metrics,
        "made": describe_environment(),
    }
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)


def _text(name: str) -> str:
    """Return a name in UTF-8: that of a file may have other bytes."""
    return name.encode(errors="replace").decode()


def read_other(path: Path) -> OtherModel:
    """Read a record of :func:`write_other`; an InputError names a file of another form."""
    record: OtherModel = read_json(path, OtherModel, KIND)
    return record


def read_others(results: Path) -> list[OtherModel]:
    """Return the records in a folder of results, by the names of their files."""
    return [read_other(path) for path in sorted((results / OTHERS).glob("*.json"))]
