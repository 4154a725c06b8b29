"""Saved models on the Hugging Face hub: weights are safetensors, and the network is used only where asked for."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from reference_model import InputError, reason_of
from reference_model.models.encoders import FILES_OF_ENCODERS
from reference_model.run_folder import CONFIG, METRICS, MODEL_WEIGHTS

# Of everything that a model on the hub may hold: no code and no pickle is ever downloaded.
READ = [MODEL_WEIGHTS, CONFIG, METRICS, *sorted(FILES_OF_ENCODERS)]


def local_folder(name: str | Path, *, download: bool) -> Path:
    """Return a folder as it is, or that of a model on the Hugging Face hub.

    Such a model has a name like "somebody/model". It was downloaded before, or is with ``download=True``; without, the
    network is never used.

    Raises:
        InputError: the model cannot be downloaded.
    """
    if Path(name).exists() or isinstance(name, Path):
        return Path(name)
    try:
        return Path(snapshot_download(name, allow_patterns=READ, local_files_only=not download))
    except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        if not download:
            return Path(name)  # a folder that is not there
        raise InputError(f"expected a model on the hub, got {name}: {reason_of(error)}") from error


class OnHub:
    """A model with a method ``save_pretrained``."""

    save_pretrained: Callable[[Path], None]

    def push_to_hub(self, name: str, *, private: bool = True) -> None:
        """Upload what ``save_pretrained`` writes to the model ``name`` of the hub, a new one too, in one commit."""
        hub = HfApi()
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(saved := Path(folder) / "model")
            hub.create_repo(name, private=private, exist_ok=True)
            hub.upload_folder(repo_id=name, folder_path=saved, commit_message="Upload a model of crossmodal_losses")
