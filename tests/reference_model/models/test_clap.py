"""CLAP's embeddings are those of transformers' own pipeline, and do not depend on what else is embedded."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from runs import CommandLine
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    ClapAudioConfig,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapTextConfig,
    Wav2Vec2FeatureExtractor,
)

from reference_model import InputError
from reference_model.data.dataset import Clip, captions_of, clip_of_caption, read_split, write_csv
from reference_model.evaluation.metrics import split_metrics
from reference_model.models.bert import train_tokenizer
from reference_model.models.clap import Clap

RATE, CPU = 48_000, torch.device("cpu")
SECONDS = (0.3, 1.0, 1.7)  # of the clips; the window of the model is 1 s
CAPTIONS = ("A dog barks, twice!", "a dog barks, and rain falls on a roof of tin", "Rain")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with a data set, Mine: three clips of noise, two captions each, one of them of all clips."""
    folder = tmp_path / "data" / "Mine"
    (folder / "waveforms" / "test").mkdir(parents=True)
    (folder / "csv_files").mkdir()
    for number, seconds in enumerate(SECONDS):
        noise = 0.1 * np.random.default_rng(number).standard_normal(round(seconds * RATE))
        soundfile.write(folder / f"waveforms/test/{number}.wav", noise, RATE, subtype="FLOAT")
    rows = [(f"{number}.wav", caption) for number in range(3) for caption in (CAPTIONS[number], "noise")]
    write_csv(folder / "csv_files" / "test.csv", [("file_name", "caption"), *rows])
    return tmp_path / "data"


@pytest.fixture
def clips(data: Path) -> list[Clip]:
    """The clips of the data set."""
    return read_split(data, "Mine", "test")


class Published:
    """A small ClapModel as it is published, in a folder."""

    def __init__(self, folder: Path, *, fused: bool) -> None:
        torch.manual_seed(0)
        self.folder, self.tokenizer = folder, train_tokenizer([*CAPTIONS, "noise"])
        audio = ClapAudioConfig(
            patch_embeds_hidden_size=8, depths=[1, 1], num_attention_heads=[1, 2], hidden_size=16, spec_size=128,
            num_mel_bins=64, enable_fusion=fused, aff_block_r=1,
        )  # fmt: skip
        text = ClapTextConfig(
            vocab_size=len(self.tokenizer), hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
            intermediate_size=8, max_position_embeddings=80, pad_token_id=self.tokenizer.pad_token_id,
        )  # fmt: skip
        config = ClapConfig(text_config=text.to_dict(), audio_config=audio.to_dict(), projection_dim=8)
        self.model = ClapModel(config).eval()
        truncation = "fusion" if fused else "rand_trunc"
        self.extractor = ClapFeatureExtractor(max_length_s=1, truncation=truncation)
        for part in (self.model, self.extractor, self.tokenizer):
            part.save_pretrained(folder)

    def audio(self, waveforms: list[Any]) -> Tensor:
        """Return what users of transformers compute for a batch of clips."""
        np.random.seed(0)  # noqa: NPY002 - the extractor draws from it
        inputs = self.extractor(waveforms, sampling_rate=RATE, return_tensors="pt")
        embeddings: Tensor = self.model.get_audio_features(**inputs).pooler_output.detach()
        return embeddings

    def text(self, captions: list[str]) -> Tensor:
        """Return what users of transformers compute for a batch of captions."""
        inputs = self.tokenizer(captions, padding=True, return_tensors="pt", return_token_type_ids=False)
        embeddings: Tensor = self.model.get_text_features(**inputs).pooler_output.detach()
        return embeddings


@pytest.fixture(params=[False, True], ids=["unfused", "fused"])
def published(request: pytest.FixtureRequest, tmp_path: Path) -> Published:
    return Published(tmp_path / "published", fused=request.param)


def embed(published: Published, clips: list[Clip], seconds: float = 2.0) -> tuple[Tensor, Tensor]:
    return Clap(str(published.folder), CPU).embed(clips, seconds=seconds, device=CPU, workers=0)


def sounds(clips: list[Clip]) -> list[Any]:
    return [soundfile.read(clip.path, dtype="float32")[0] for clip in clips]


def test_embeddings_are_those_of_the_pipeline(published: Published, clips: list[Clip]) -> None:
    """Of a batch with a clip that is longer than the window, so that the extractor marks none at random."""
    audio, text = embed(published, clips)
    torch.testing.assert_close(audio, published.audio(sounds(clips)), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(text, published.text(captions_of(clips)), rtol=1e-4, atol=1e-6)
    assert torch.equal(text[1], text[3])  # equal captions, equal rows
    for rows in (audio, text):
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)))
        assert (rows[0] - rows[2]).abs().max() > 1e-3


def test_clips_are_cut_and_not_padded(published: Published, clips: list[Clip]) -> None:
    """The extractor pads, in its own way, and sees no more of a clip than other models do."""
    cut = embed(published, clips, 0.9)[0]
    expected = embed(published, clips)[0]
    assert torch.allclose(cut[0], expected[0], atol=1e-6)
    assert not torch.allclose(cut[1], expected[1], atol=1e-4)
    for clip in clips:
        samples, _ = soundfile.read(clip.path, dtype="float32")
        soundfile.write(clip.path, samples[: round(0.9 * RATE)], RATE, subtype="FLOAT")
    assert torch.equal(cut, embed(published, clips)[0])


def test_a_clip_is_embedded_alike_whatever_else_is(published: Published, clips: list[Clip]) -> None:
    """Nothing is left to chance, and NumPy's generator stays as it is."""
    audio, text = embed(published, clips)
    np.random.seed(3)  # noqa: NPY002
    before = np.random.get_state(legacy=False)["state"]["key"].tolist()  # noqa: NPY002
    for number, clip in enumerate(clips):
        alone = embed(published, [clip])
        torch.testing.assert_close(alone[0], audio[number : number + 1], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(alone[1], text[2 * number : 2 * number + 2], rtol=1e-4, atol=1e-6)
    assert np.random.get_state(legacy=False)["state"]["key"].tolist() == before  # noqa: NPY002


def test_it_is_judged_from_the_command_line(
    data: Path, clips: list[Clip], tmp_path: Path, command_line: CommandLine
) -> None:
    published, out = Published(tmp_path / "published", fused=True), tmp_path / "results/others/it.json"
    arguments = ["evaluate", "--model", f"clap:{published.folder}", "--data", data, "--dataset", "Mine"]
    result = command_line(*arguments, "--clip-seconds", 2, "--out", out)
    expected = split_metrics(published.audio(sounds(clips)), published.text(captions_of(clips)), clip_of_caption(clips))
    assert json.loads(result.stdout) == expected
    record = json.loads(out.read_text())
    assert (record["model"], record["source"], record["metrics"]) == (
        "published", f"clap:{published.folder}", expected,
    )  # fmt: skip
    for seconds in (0, 301, "nan"):
        words = f"expected clip_seconds from 0.31 to 300, got {float(seconds)}"
        assert words in command_line(*arguments, "--clip-seconds", seconds, status=1).output
    relevance = tmp_path / "nowhere.csv"
    refused = command_line(
        "evaluate", "--model", "clap:nowhere", *arguments[3:], "--clip-seconds", 2, "--relevance", relevance, status=1
    )
    assert "expected a table of relevance" in refused.output  # before the model is loaded
    (data / "Mine/waveforms/test/1.wav").write_bytes(b"")
    assert "1.wav: unreadable: empty" in command_line(*arguments, "--clip-seconds", 2, status=1).output


def test_an_extractor_that_fails_is_one_line(clips: list[Clip], tmp_path: Path) -> None:
    """Here of clips longer than its window alone."""
    published = Published(tmp_path / "published", fused=True)
    clap = Clap(str(published.folder), CPU)
    clap.audio_encoder.front_end.extractor.truncation = "none"
    with pytest.raises(
        InputError, match=r"expected a feature extractor for clips of 1\.7 s, got: data_truncating none"
    ):
        clap.embed(clips[2:], seconds=2.0, device=CPU, workers=0)


def change_settings(folder: Path, file: str, part: str | None = None, **changes: Any) -> None:
    settings = json.loads((folder / file).read_text())
    (settings[part] if part else settings).update(changes)
    (folder / file).write_text(json.dumps(settings))


def change_weights(folder: Path, name: str, value: Tensor | None) -> None:
    weights = load_file(path := folder / "model.safetensors")
    removed = weights.pop(name)
    save_file(
        weights if value is None else weights | {name: value.expand_as(removed).contiguous()}, path, {"format": "pt"}
    )


@pytest.mark.parametrize(
    "words, change",
    [
        ("a folder without config.json", lambda folder: (folder / "config.json").unlink()),
        ("a model of type bert", lambda folder: change_settings(
            folder, "config.json", model_type="bert", hidden_size=8, num_attention_heads=1)),
        ("a file without audio_projection.linear1.bias",
         lambda folder: change_weights(folder, "audio_projection.linear1.bias", None)),
        ("NaN or inf in text_projection.linear2.weight",
         lambda folder: change_weights(folder, "text_projection.linear2.weight", torch.tensor(torch.nan))),
        ("arrays of other sizes", lambda folder: change_settings(folder, "config.json", projection_dim=9)),
        ("a feature extractor of truncation rand_trunc for a model of enable_fusion True",
         lambda folder: change_settings(folder, "preprocessor_config.json", truncation="rand_trunc")),
        ("4294967296 as fft_window_size",
         lambda folder: change_settings(folder, "preprocessor_config.json", fft_window_size=2**32)),
        ("more than 10000 frames", lambda folder: change_settings(folder, "preprocessor_config.json", hop_length=1)),
        ("a Wav2Vec2FeatureExtractor", lambda folder: Wav2Vec2FeatureExtractor().save_pretrained(folder)),
        ("a tokenizer that pads with token 0, not 1",
         lambda folder: change_settings(folder, "config.json", "text_config", pad_token_id=1)),
        ("", lambda folder: (folder / "preprocessor_config.json").unlink()),
        ("", lambda folder: (folder / "tokenizer.json").unlink()),
        ("", lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin")),
    ],
)  # fmt: skip
def test_what_is_refused(words: str, change: Any, tmp_path: Path) -> None:
    published = Published(tmp_path / "published", fused=True)
    change(published.folder)
    with pytest.raises(InputError, match=r"expected a ClapModel by name or in a folder with config\.json, ") as refused:
        Clap(str(published.folder), CPU)
    assert f"got {published.folder}: " in str(refused.value)
    assert words in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
