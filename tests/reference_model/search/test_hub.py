"""A saved model on the Hugging Face hub, which a cache of downloads stands for."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from huggingface_hub import snapshot_download

from reference_model import InputError
from reference_model.config import Config
from reference_model.models.encoders import encoder_files
from reference_model.search.hub import READ
from reference_model.search.retriever import Retriever


def test_the_files_of_a_saved_model_are_downloaded_and_no_others(config: Config) -> None:
    files = ["model.safetensors", "config.json", "metrics.json"]
    files += encoder_files(replace(config, audio_encoder="somebody/clap"))
    others = ["model.py", "audio_encoder/model.py", "text_encoder/weights.bin", "other.safetensors"]
    assert [file for file in (*files, *others) if any(map(Path(file).match, READ))] == files


def test_a_model_of_the_hub(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is uploaded loads by its name once it was downloaded; nothing is downloaded unasked, and no code ever."""
    model = Retriever.from_pretrained(trained)
    cache = tmp_path / "models--somebody--sounds"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("1a2b", encoding="utf-8")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    made, asked = Mock(), []

    def upload(self: Any, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        assert repo_id == "somebody/sounds"
        shutil.copytree(folder_path, cache / "snapshots" / "1a2b")

    def download(name: str, *, allow_patterns: list[str], local_files_only: bool) -> str:
        asked.append(local_files_only)
        assert not [
            file for file in ("model.py", "weights.bin", "weights.pth") if any(map(Path(file).match, allow_patterns))
        ]
        return str(snapshot_download(name, allow_patterns=allow_patterns, local_files_only=True, cache_dir=tmp_path))

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", made)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload)
    monkeypatch.setattr("reference_model.search.hub.snapshot_download", download)
    with pytest.raises(InputError, match=r"expected a saved model.* in somebody/sounds, got nothing"):
        Retriever.from_pretrained("somebody/sounds")
    model.push_to_hub("somebody/sounds")
    made.assert_called_once_with("somebody/sounds", private=True, exist_ok=True)
    for wanted in (False, True):
        again = Retriever.from_pretrained("somebody/sounds", download=wanted)
        assert torch.equal(again.embed_text(["a low tone"]), model.embed_text(["a low tone"]))
        assert again.metrics == model.metrics
    assert asked == [True, True, False]
    with pytest.raises(InputError, match="expected a model on the hub, got nobody/nothing: "):
        Retriever.from_pretrained("nobody/nothing", download=True)
