"""Every form of Adam that is timed trains the same run."""

import copy

import pytest

from benchmarks.frozen import AUDIO, TEXT
from benchmarks.training import adam
from reference_model.models.dual_encoder import Heads


def test_every_form_takes_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = Heads(AUDIO, TEXT, hidden_size=8, embedding_size=4)
    monkeypatch.setattr(adam, "new_heads", lambda: copy.deepcopy(heads))
    losses = {form: [call().item() / count for _ in range(4)] for form, (call, count) in adam.steps(8).items()}
    assert len(losses) == 5
    for found in losses.values():
        assert found == pytest.approx(losses["loop"], rel=1e-4)
    assert losses["loop"] == sorted(losses["loop"], reverse=True)
    assert losses["loop"][0] - losses["loop"][3] > 0.01
