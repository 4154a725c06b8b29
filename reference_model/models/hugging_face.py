"""Models in the Hugging Face layout, by name or from a folder: settings, weights and nothing else is read.

No code of a folder runs, and nothing in it is unpickled. Of its config.json the settings of the architecture are read,
for a class of the transformers package; whatever else stands there, such as a kernel to download, is left alone.
"""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, FiniteFloat
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, MODEL_MAPPING, PreTrainedConfig, PreTrainedModel
from typing_extensions import TypedDict

from reference_model.runtime.files import require_file
from reference_model.runtime.records import check_form, read_json
from reference_model.runtime.tensors import load_record

CONFIG = "config.json"
LARGEST = 10**9  # weights of a model; BERT-large has a third of it
LARGEST_NUMBER = 2**20  # in settings
MOST_LAYERS = 1000
LONGEST = 64  # tokens of a caption; longer ones are cut
# Not read: a file of an encoder alone may say that there is no decoder, of a family whose models have one.
_OF_DECODERS = ("is_decoder", "is_encoder_decoder", "add_cross_attention", "use_cache")
# Words in the names of rates that count in train mode alone: of dropout, and of dropped layers and masked inputs.
_DROPOUT, _DROPPED_OR_MASKED = "dropout|pdrop", "layerdrop|drop_path|mask_time_prob|mask_feature_prob"
_IN_TRAIN_MODE = re.compile(f"{_DROPOUT}|{_DROPPED_OR_MASKED}")

_Size = Annotated[int, Field(ge=1, le=LARGEST_NUMBER)]
_Rate = Annotated[float, Field(ge=0, lt=1)]


class _Architecture(TypedDict, total=False):
    """Settings that most families have, where they have them."""

    vocab_size: _Size | None
    hidden_size: _Size
    num_hidden_layers: Annotated[int, Field(ge=1, le=MOST_LAYERS)]
    num_attention_heads: _Size | list[_Size]
    intermediate_size: _Size
    max_position_embeddings: Annotated[int, Field(ge=LONGEST, le=LARGEST_NUMBER)]
    type_vocab_size: Annotated[int, Field(ge=0, le=LARGEST_NUMBER)]
    pad_token_id: Annotated[int, Field(ge=0, le=LARGEST_NUMBER)] | None
    hidden_act: str
    hidden_dropout_prob: _Rate
    attention_probs_dropout_prob: _Rate
    initializer_range: FiniteFloat
    layer_norm_eps: FiniteFloat
    position_embedding_type: Literal["absolute"]


class _Index(TypedDict):
    """The index of weights that are divided among several files."""

    weight_map: dict[str, str]


def check_folder(folder: Path) -> None:
    """Refuse pipes, damaged files of weights, and an index of weights that leads out of the folder."""
    if not (folder / CONFIG).exists():
        raise ValueError(f"a folder without {CONFIG}")
    for path in sorted(folder.iterdir()):
        if not path.is_dir():
            require_file(path)
        if path.suffix == ".safetensors":
            load_record(path)
    index = folder / "model.safetensors.index.json"
    if index.exists():
        for part in read_json(index, _Index, "an index of weights")["weight_map"].values():
            if part != Path(part).name or not (folder / part).is_file():
                raise ValueError(f"a part {part!r} in {index}, which is no file beside it")


def read_config(name: str | Path, *, dropout: float = 0.1) -> PreTrainedConfig:
    """Read the settings of an architecture from the config.json in a folder, or from one that is published.

    In train mode each of its dropouts has this rate, and it drops no whole layers and masks nothing of its input.
    """
    if Path(name).is_absolute() and not Path(name).exists():
        raise ValueError("nothing there")
    if Path(name).is_dir():
        check_folder(Path(name))
        source = Path(name) / CONFIG
        stored = read_json(source, dict[str, Any], "the settings of a model")
    else:
        source, stored = Path(name), PreTrainedConfig.get_config_dict(name)[0]
    family = stored.get("model_type")
    if family not in CONFIG_MAPPING or CONFIG_MAPPING[family] not in MODEL_MAPPING:
        raise ValueError(f"a model of type {family}")
    config = _architecture(CONFIG_MAPPING[family], stored, source)
    for part in (config, *_parts(config)):
        for name in filter(_IN_TRAIN_MODE.search, _declared(type(part))):
            if type(getattr(part, name, None)) in (int, float):  # None: it has no such layer
                setattr(part, name, dropout if re.search(_DROPOUT, name) else 0.0)
    with torch.device("meta"):
        weights = sum(p.numel() for p in new(config).parameters())
    if weights > LARGEST:
        raise ValueError(f"a model of more than {LARGEST:,} weights in {source}")
    return config


def _architecture(kind: type[PreTrainedConfig], stored: dict[str, Any], source: Path) -> PreTrainedConfig:
    """Return the settings that this class of settings declares itself."""
    check_form(stored, _Architecture, "the settings of a model", source)
    declared = _declared(kind)
    if "expert" in " ".join(declared):
        raise ValueError("a mixture of experts, of which a caption needs some alone")
    settings: dict[str, Any] = {name: stored[name] for name in sorted(declared & stored.keys())}
    for name, value in numbers(settings):
        largest = MOST_LAYERS if any(word in name for word in ("layers", "depth", "blocks")) else LARGEST_NUMBER
        if not abs(value) <= largest:
            raise ValueError(f"{value} as {name} in {source}")
    for name, part in kind.sub_configs.items():
        if isinstance(settings.get(name), dict):
            settings[name] = _architecture(part, settings[name], source)
    return kind(**settings)


def _declared(kind: type[PreTrainedConfig]) -> set[str]:
    """Return the names of settings that a class declares itself, and none that all classes have."""
    own = kind.__mro__[: kind.__mro__.index(PreTrainedConfig)]
    return {name for parent in own for name in inspect.get_annotations(parent)} - {*_OF_DECODERS, "model_type"}


def settings_of(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the settings that features in eval mode may depend on, as JSON."""
    names = sorted(_declared(type(config)) - config.sub_configs.keys())
    settings = {name: getattr(config, name, None) for name in names if not _IN_TRAIN_MODE.search(name)}
    settings = {name: value for name, value in settings.items() if not callable(value)}
    return settings | {name: settings_of(getattr(config, name)) for name in config.sub_configs}


def numbers(settings: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the numbers among settings, and in lists among them, with their names."""
    for name, value in settings.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, int | float):
                yield name, item


def _parts(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    return [getattr(config, name) for name in config.sub_configs if isinstance(getattr(config, name), PreTrainedConfig)]


def _model_class(config: PreTrainedConfig) -> tuple[type[PreTrainedModel], dict[str, Any]]:
    """Return the class of a model, and the arguments with which it has no layers for other tasks."""
    found: Any = MODEL_MAPPING[type(config)]
    kind: type[PreTrainedModel] = found[0] if isinstance(found, tuple) else found
    has_pooling = "add_pooling_layer" in inspect.signature(kind.__init__).parameters
    return kind, {"add_pooling_layer": False} if has_pooling else {}


def new(config: PreTrainedConfig) -> PreTrainedModel:
    """Build a model with new weights."""
    kind, arguments = _model_class(config)
    return kind(config, **arguments)


def load(name: str, config: PreTrainedConfig, tower: str | None) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """Load a part of a model, see :func:`tower_of`, with published weights, in float32, from safetensors alone.

    Returns:
        The part, and its parameters that the files lack, by name.
    """
    kind, arguments = _model_class(config)
    choices = {"use_safetensors": True, "ignore_mismatched_sizes": True, "output_loading_info": True}
    model, loading = kind.from_pretrained(name, config=config, **arguments, **choices)
    encoder = tower_of(model, tower).float()
    own = {id(weights) for weights in (*encoder.parameters(), *encoder.buffers())}
    absent = {str(key[0] if isinstance(key, tuple) else key) for key in loading["missing_keys"]}
    if wrong := sorted(str(key[0]) for key in loading["mismatched_keys"]):
        raise ValueError(f"a file with arrays of other sizes: {wrong[0]}")
    if bad := next((key for key, weights in encoder.named_parameters() if not weights.isfinite().all()), None):
        raise ValueError(f"a file with NaN or inf in {bad}")
    if lacking := sorted(key for key, values in model.named_buffers() if key in absent and id(values) in own):
        raise ValueError(f"a file without {lacking[0]}")
    return encoder, {key: p for key, p in model.named_parameters() if key in absent and id(p) in own}


def tower_of(model: PreTrainedModel, tower: str | None) -> nn.Module:
    """Return the part of a model that encodes text or audio: a tower of this name, an encoder, or the model itself.

    Without a name it is the whole model.
    """
    part: nn.Module = model
    if tower is not None and hasattr(model, tower):
        part = getattr(model, tower)
    elif tower is not None and model.config.is_encoder_decoder:
        part = model.get_encoder()
    return part


def freeze_unused(encoder: nn.Module, inputs: dict[str, Tensor], absent: dict[str, nn.Parameter]) -> int:
    """Freeze the parameters that features do not depend on, and set them to 0; these alone may be absent from files.

    Returns:
        The size of the features, which the encoder makes of the inputs, ``[1, size]``.
    """
    encoder.eval()
    features = encoder(**inputs)
    features.sum().backward()
    if lacking := sorted(name for name, parameter in absent.items() if parameter.grad is not None):
        raise ValueError(f"a file without {lacking[0]}")
    for parameter in encoder.parameters():
        if parameter.grad is None:
            nn.init.zeros_(parameter.requires_grad_(False))
        parameter.grad = None
    encoder.train()
    return int(features.shape[1])
