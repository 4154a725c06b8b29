"""The table of encoders: every model is built anew, from published weights and from a folder by its entry alone."""

import json
from pathlib import Path
from typing import get_args

import pytest
import torch

from reference_model.config import Size
from reference_model.data.audio import SAMPLE_RATE, SHORTEST
from reference_model.models.encoders import MODELS, TINY_WIDTH, ModelSpec
from reference_model.models.panns import from_panns
from reference_model.models.resnet38 import ResNet38

CAPTIONS = ["A dog barks, then rain falls", "Birds sing"] * 2


def test_every_model_of_a_config_has_an_entry() -> None:
    assert MODELS.keys() == set(get_args(Size))


@pytest.mark.parametrize("name, size, parameters", [("full", 2048, 68_507_072), ("tiny", 256, None)])
def test_audio_encoders_have_the_size_of_their_model(name: str, size: int, parameters: int | None) -> None:
    encoder = MODELS[name].audio.new(dropout=0.3, spec_augment=True)
    assert encoder.output_size == size
    assert parameters in (None, sum(parameter.numel() for parameter in encoder.parameters()))
    assert {block.dropout for block in encoder.modules() if hasattr(block, "downsample")} == {0.3}


def test_a_published_audio_encoder_is_read_at_the_width_of_its_model(tmp_path: Path) -> None:
    path = tmp_path / "tiny.pth"
    torch.save({"iteration": 1, "model": ResNet38(width=TINY_WIDTH).state_dict(), "sampler": {}}, path)
    encoder = MODELS["tiny"].audio.published(path, dropout=0.1, spec_augment=False)
    expected = from_panns(path, width=TINY_WIDTH).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in encoder.state_dict().items())
    assert encoder.eval()(torch.zeros(1, SHORTEST)).shape == (1, encoder.output_size)


@pytest.mark.parametrize("spec", MODELS.values(), ids=MODELS)
def test_a_text_encoder_is_saved_and_built_again(spec: ModelSpec, tmp_path: Path) -> None:
    encoder, tokenizer = spec.text.new(CAPTIONS, dropout=0.1)
    settings = spec.text.settings(encoder, tokenizer)
    spec.text.save(tmp_path, encoder, tokenizer)
    assert set(spec.text.files) <= {path.name for path in tmp_path.iterdir()}
    again, same_tokenizer = spec.text.saved(tmp_path)
    again.load_state_dict(encoder.state_dict())
    assert spec.text.tokenize(same_tokenizer, CAPTIONS) == spec.text.tokenize(tokenizer, CAPTIONS)
    assert spec.text.settings(again, same_tokenizer) == settings  # though the tokenizers were used meanwhile


def test_the_keys_of_caches_are_made_of_these_settings() -> None:
    """Every cache on disk is named by them: they change only together with the features."""
    for spec in MODELS.values():
        assert json.dumps(spec.audio.front_end) == '{"rate": 32000, "window": 1024, "hop": 320, "mel": [64, 50, 14000]}'
        assert spec.audio.front_end["rate"] == SAMPLE_RATE
        encoder, tokenizer = spec.text.new(CAPTIONS, dropout=0.1)
        activation, tokenizer_settings, longest = spec.text.settings(encoder, tokenizer)
        assert activation == ["gelu", 4, 1e-12]
        assert tokenizer_settings["model"]["type"] == "WordPiece"
        assert longest == 64
