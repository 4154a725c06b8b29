"""The curves of a run, as a picture."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from reference_model.training import curves
from reference_model.training.curves import plot_curves


def record(epoch: int) -> dict[str, Any]:
    recalls = {f"R@{k}": float(k + epoch) for k in (1, 5, 10)}
    return {"epoch": epoch, "loss": 2.0 / epoch, "val": {"text_to_audio": recalls, "audio_to_text": recalls}}


def test_loss_and_recalls_are_drawn_over_the_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(curves, "write_figure", lambda _, figure: drawn.append(figure))
    plot_curves(tmp_path / "curves.png", [record(1), record(2), record(3)], title="a run")
    loss, recall = drawn[0].axes
    np.testing.assert_array_equal(loss.lines[0].get_xydata(), [[1, 2.0], [2, 1.0], [3, 2 / 3]])
    labels = [f"{name} R@{k}" for name in ("Text-to-Audio", "Audio-to-Text") for k in (1, 5, 10)]
    assert [line.get_label() for line in recall.lines] == labels
    np.testing.assert_array_equal(recall.lines[1].get_ydata(), [6, 7, 8])


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    plot_curves(tmp_path / "curves.png", [record(1)], title="a run")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]
