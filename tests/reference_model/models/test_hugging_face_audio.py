"""Audio encoders in the Hugging Face layout: their features are those of transformers' own pipeline."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_audio import FAMILIES
from torch import nn
from transformers import ASTForAudioClassification, ClapModel, WhisperModel

from reference_model import InputError
from reference_model.models import hugging_face_audio


@pytest.fixture(params=FAMILIES)
def published(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Any, Any]:
    """A folder of a small model as it is published, the model and its feature extractor."""
    torch.manual_seed(0)
    model, extractor = FAMILIES[request.param]()
    folder = tmp_path / "published"
    model.eval().save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder, model, extractor


def pipeline(model: Any, extractor: Any, waveform: np.ndarray) -> Any:
    """What users of transformers compute for one clip."""
    inputs = extractor(waveform, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    if isinstance(model, ClapModel):
        return model.audio_model(**inputs).pooler_output
    if isinstance(model, WhisperModel):
        return model.get_encoder()(**inputs).last_hidden_state.mean(1)
    outputs = model.base_model(**inputs)
    return outputs.pooler_output if isinstance(model, ASTForAudioClassification) else outputs.last_hidden_state.mean(1)


def test_features_are_those_of_the_pipeline(published: tuple[Path, Any, Any], tmp_path: Path) -> None:
    """In a batch, and of an encoder that was saved."""
    folder, model, extractor = published
    encoder = hugging_face_audio.published(str(folder), clip_seconds=0.5, dropout=0.1).eval()
    assert encoder.front_end.rate == extractor.sampling_rate
    waveforms = 0.1 * torch.randn(3, extractor.sampling_rate // 2)
    inputs = [encoder.front_end(waveform) for waveform in waveforms]
    batch = {name: torch.stack([of_clip[name] for of_clip in inputs]) for name in inputs[0]}
    encoder.save(tmp_path)
    saved = hugging_face_audio.saved(tmp_path, clip_seconds=0.5).eval()
    saved.load_state_dict(encoder.state_dict())
    assert saved.settings == encoder.settings == json.loads(json.dumps(encoder.settings))
    with torch.no_grad():
        features = encoder(**batch)
        assert features.shape == (3, encoder.output_size)
        torch.testing.assert_close(features, saved(**batch), rtol=1e-5, atol=1e-6)  # memory lies otherwise
        expected = torch.cat([pipeline(model, extractor, waveform.numpy()) for waveform in waveforms])
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


def test_every_parameter_that_trains_has_a_gradient_and_training_repeats(published: tuple[Path, Any, Any]) -> None:
    """Nothing is drawn from NumPy, which masks parts of the input: a run that continues would draw other numbers."""
    folder, _, extractor = published
    encoder = hugging_face_audio.published(str(folder), clip_seconds=0.5, dropout=0.2).train()
    assert {module.p for module in encoder.modules() if isinstance(module, nn.Dropout)} <= {0.2}
    made_of = encoder.front_end(torch.randn(extractor.sampling_rate // 2))
    inputs = {name: torch.stack([rows, rows]) for name, rows in made_of.items()}
    made = []
    for seed in range(2):
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(0)
        made.append(encoder(**inputs))
    assert torch.equal(*made)
    encoder.zero_grad()
    made[0].square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


@pytest.mark.parametrize(
    "family, words", [("clap", "draws a part of clips of 2.0"), ("ast", "ignores the end of clips of 2.0")]
)
def test_clips_that_are_not_looked_at_whole_are_refused(family: str, words: str, tmp_path: Path) -> None:
    model, extractor = FAMILIES[family]()
    model.save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=rf"expected an audio encoder by name .* got {tmp_path}: one that {words}"):
        hugging_face_audio.published(str(tmp_path), clip_seconds=2.0, dropout=0.1)


def test_folders_of_other_things_are_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(
            InputError, match=rf"expected an audio encoder by name or in a folder with .* got {folder}: "
        ):
            hugging_face_audio.published(str(folder), clip_seconds=1.0, dropout=0.1)
    model, extractor = FAMILIES["ast"]()
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"expected an audio encoder .*preprocessor_config\.json"):
        hugging_face_audio.published(str(tmp_path), clip_seconds=0.5, dropout=0.1)
    extractor.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "hidden_size": 10**9}))
    with pytest.raises(InputError, match="1000000000 as hidden_size"):
        hugging_face_audio.saved(tmp_path, clip_seconds=0.5)


@pytest.mark.parametrize(
    "family, name, value, words",
    [
        ("clap", "fft_window_size", 2**30, "1073741824 as fft_window_size"),
        ("ast", "num_mel_bins", 10**5, "100000 as num_mel_bins"),
        ("ast", "max_length", float("nan"), "nan as max_length"),
        ("clap", "max_length_s", 10**4, "one of clips of more than 300 seconds"),
        ("clap", "sampling_rate", 10**6, "1000000 as sampling_rate"),
        ("clap", "hop_length", 1, "one of more than 10000 frames"),
        ("whisper", "chunk_length", 10**5, "one of clips of more than 300 seconds"),
    ],
)
def test_feature_extractors_that_ask_for_too_much_are_refused(
    family: str, name: str, value: float, words: str, tmp_path: Path
) -> None:
    for part in FAMILIES[family]():
        part.save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(InputError, match=rf"expected a feature extractor in {tmp_path}, got: {words}"):
        hugging_face_audio.published(str(tmp_path), clip_seconds=0.5, dropout=0.1)
