"""The tables "coming from": each old line has the value and the gradients of the new line, up to the factor."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from crossmodal_losses import LOSSES
from docs.parity import LIBRARIES, LINES, VALUES, B, names, values


def gradients(value: Tensor, known: dict[str, Any]) -> list[Tensor]:
    """Return the gradients of x and y. Cached losses compute them in a backward pass alone."""
    known["x"].grad = known["y"].grad = None
    value.backward()
    return [known["x"].grad, known["y"].grad]


@pytest.mark.parametrize("library", LIBRARIES)
def test_old_and_new_lines(library: str) -> None:
    known, shown = names(library), json.loads(VALUES.read_text(encoding="utf-8"))
    lines = [line for line in LINES if line.library == library]
    assert len(lines) >= 2
    for line in lines:
        old, new = values(line, known)
        assert shown[line.name] == [f"{old.item():.4f}", f"{new.item():.4f}"]
        if line.factor == "none":
            assert abs(new.item() / old.item() - 1) > 0.01
            continue
        factor = eval(line.factor, {"B": B})
        torch.testing.assert_close(new, (factor * old).to(new.dtype), rtol=1e-5, atol=0)
        if library != "transformers":  # there the embeddings are the model's
            expected = [factor * grad for grad in gradients(old, known)]
            torch.testing.assert_close(gradients(new, known), expected, rtol=1e-4, atol=1e-7)


def test_the_table_is_whole() -> None:
    assert {line.library for line in LINES} == set(LIBRARIES)
    assert {line.loss for line in LINES} <= LOSSES.keys()
    assert json.loads(VALUES.read_text(encoding="utf-8")).keys() == {line.name for line in LINES}
