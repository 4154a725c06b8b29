"""The paper's runs with frozen encoders: how many steps each takes."""

from reference_model.paper import DATASET_SIZES, EPOCHS, experiments

# Columns of the features, of the hidden layer of a head, and of an embedding.
AUDIO, TEXT, HIDDEN, EMBEDDING = 2048, 768, 2048, 1024
# Data set -> split -> captions of a clip.
CAPTIONS = {"AudioCaps": {"train": 1, "val": 5, "test": 5}, "Clotho": {"train": 5, "val": 5, "test": 5}}


def frozen_experiments() -> dict[tuple[str, int], list[str]]:
    """Return (data set, batch size) -> losses, for the rows of the paper's tables with frozen encoders."""
    found: dict[tuple[str, int], list[str]] = {}
    for row in experiments().values():
        if row["encoders"] == "frozen":
            found.setdefault((row["dataset"], row["batch_size"]), []).append(row["loss"])
    return found


def steps_of_run(dataset: str, batch_size: int) -> int:
    """Return the steps of all epochs of a run: whole batches of the captions."""
    return EPOCHS * (DATASET_SIZES[dataset]["train"] * CAPTIONS[dataset]["train"] // batch_size)
