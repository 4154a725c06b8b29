"""The settings of a run, each with its meaning and its source; a run can be repeated from them alone."""

import dataclasses
import functools
import inspect
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from typing_extensions import TypedDict

from crossmodal_losses import LOSSES, PairLoss
from reference_model import InputError, reason_of
from reference_model.data.audio import LONGEST, SAMPLE_RATE, SHORTEST
from reference_model.paper import DECAY_FACTOR
from reference_model.runtime.records import fault_of_form, read_json

Encoders = Literal["frozen", "fine-tuned"]
Size = Literal["full", "tiny"]
Precision = Literal["no", "bf16", "fp16"]
FrozenMode = Literal["eval", "train"]
WeightedRule = Literal["equation-6", "mined"]
SelectOn = Literal["both-directions", "text-to-audio"]
Pooling = Literal["first", "mean"]
Trained = Literal["both", "audio", "text"]
# Files of published weights, by the names of PANNs' networks; any other audio encoder has the Hugging Face layout.
AUDIO_CHECKPOINTS = {"panns-resnet38": "ResNet38_mAP=0.434.pth", "panns-cnn14": "Cnn14_mAP=0.431.pth"}
WITHOUT_EFFECT = ("data", "workers")  # on the result of a run: where the data is, and how many processes read it
# Settings that earlier versions had not, with what they did.
ADDED_SETTINGS: dict[str, Any] = {
    "audio_encoder": "panns-resnet38",
    "text_pooling": "first",
    "trained": "both",
    "learn_temperature": False,
    "queue": 0,
    "captions_together": False,
}
# What the memory and the processes of a machine allow.
LARGEST = {"clip_seconds": 3600.0, "workers": 1024, "queue": 2**24}
LARGEST_FLOAT, LARGEST_INT = 3.4e38, 2**63 - 1  # that torch can hold


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings of one run. None has a default, so that a stored config is complete."""

    data: str  # the folder that holds a folder for each data set
    dataset: str  # AudioCaps, Clotho, Synthetic, or another folder in the same layout
    clip_seconds: float  # the fixed length of a clip; see DATA_SETS in data/layouts.py
    loss: str  # a name of LOSSES, with the settings of section 3.2, which are its defaults
    learn_temperature: bool  # of the losses that have one; of sigmoid the bias too
    queue: int  # embeddings of earlier pairs that are further negatives, in both directions; 0: none, as in the paper
    captions_together: (
        bool  # those of a clip follow one another in an epoch, so that a batch holds them; not in the paper
    )
    encoders: Encoders  # table 1, column "Fine-tune"
    trained: Trained  # the encoders that learn where they are fine-tuned; the other one is frozen
    frozen_mode: FrozenMode  # of frozen encoders; train: they drop out, and batch-norm statistics drift
    spec_augment: bool  # erase stripes of the spectrogram, after bn0, while the audio encoder is in train mode
    dropout: float  # of encoders of Hugging Face and of ResNet-38's residual blocks, in train mode
    clip_norm: float  # the gradient is scaled down to this norm; 0: it is not
    direction_weights: tuple[float, float]  # of the anchors audio, and of the anchors text; (1, 1): equations 2 to 7
    weighted_rule: WeightedRule  # the loss that triplet_weighted is: equation 6, or triplet_weighted_mined
    mask_same_clip: bool  # captions of one clip are no negatives of each other; without effect in nt_xent
    select_on: SelectOn  # the best epoch has the highest sum of R@1, R@5 and R@10 on the validation set
    model: Size  # of the heads and of PANNs' networks; full: the paper's; tiny: small ones, for two CPU cores
    audio_encoder: str  # a name of AUDIO_CHECKPOINTS; or one of the Hugging Face hub, or a local folder
    audio_checkpoint: str | None  # of PANNs' networks (Zenodo 3987831); None: new weights, for the tiny model alone
    text_encoder: str | None  # a name, or a local folder; None: a small BERT with new weights, for the tiny model alone
    text_pooling: Pooling  # what stands for a caption: the output for its first token (section 2.2), or the mean
    batch_size: int  # section 3.2: AudioCaps 32, Clotho 24; the last incomplete batch of an epoch is dropped
    learning_rate: float  # Adam; section 3.2: 1e-4; table 1: 5e-5 where triplet losses do not converge on Clotho
    epochs: int  # section 3.2: 50
    decay_every: int  # epochs after which the learning rate is multiplied by 1/10; section 3.2: 20
    gradient_cache_micro_batch: int | None  # pairs embedded at a time and process, to save memory; None: all
    seed: int  # section 3.3: three runs with different seeds
    precision: Precision  # mixed precision: no is float32; the losses are computed in float32 always
    workers: int  # processes that read audio

    def __post_init__(self) -> None:
        """Refuse settings with which no run is possible.

        Direction weights may be given as a list, as JSON has them, or by the names of losses: others have (1, 1).
        """
        weights = self.direction_weights
        if isinstance(weights, dict):
            weights = weights.get(str(self.loss), (1.0, 1.0))
        object.__setattr__(self, "direction_weights", tuple(weights) if isinstance(weights, list) else weights)
        for field in dataclasses.fields(self):
            if get_origin(field.type) is Literal and getattr(self, field.name) not in get_args(field.type):
                listed = ", ".join(get_args(field.type))
                raise InputError(f"expected {field.name} to be one of {listed}, got {getattr(self, field.name)}")
        self._check_types()
        if self.loss not in LOSSES:
            raise InputError(f"expected loss to be one of {', '.join(LOSSES)}, got {self.loss}")
        for name in ("audio_encoder", "text_encoder"):
            if getattr(self, name) == "":  # which Path takes for the current folder
                raise InputError(f"expected {name} to be a name or a folder, got an empty text")
        of_panns = self.audio_encoder in AUDIO_CHECKPOINTS
        for name in ("audio_checkpoint", "text_encoder") if of_panns else ("text_encoder",):
            if getattr(self, name) is None and self.model == "full":
                raise InputError(f"expected {name} for the full model, got none; only the tiny one can begin anew")
        if not of_panns:
            known = " or ".join(AUDIO_CHECKPOINTS)
            if self.audio_checkpoint is not None:
                raise InputError(f"expected no audio_checkpoint but that of {known}, got one of {self.audio_encoder}")
            if self.spec_augment:
                raise InputError(f"expected spec_augment with {known} alone, got it with {self.audio_encoder}")
        for name in ("clip_seconds", "batch_size", "learning_rate", "epochs", "decay_every"):
            if not getattr(self, name) > 0:
                raise InputError(f"expected {name} > 0, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"expected dropout in [0, 1), got {self.dropout}")
        if not self.clip_norm >= 0:
            raise InputError(f"expected clip_norm >= 0, where 0 is no clipping, got {self.clip_norm}")
        if self.gradient_cache_micro_batch is not None and self.gradient_cache_micro_batch < 1:
            raise InputError(f"expected gradient_cache_micro_batch >= 1, got {self.gradient_cache_micro_batch}")
        if self.queue and self.gradient_cache_micro_batch is not None:
            raise InputError("expected a queue or a gradient cache, got both")
        for name in ("seed", "workers", "queue"):
            if getattr(self, name) < 0:
                raise InputError(f"expected {name} >= 0, got {getattr(self, name)}")
        if round(self.clip_seconds * SAMPLE_RATE) < SHORTEST:
            least = f"{SHORTEST / SAMPLE_RATE}, the least that ResNet-38 can pool"
            raise InputError(f"expected clip_seconds >= {least}, got {self.clip_seconds}")
        if self.clip_seconds > LONGEST:
            raise InputError(f"expected clip_seconds <= {LONGEST}, all that is ever decoded, got {self.clip_seconds}")
        if self.batch_size < 2:
            raise InputError(f"expected batch_size >= 2, because negatives come from the batch, got {self.batch_size}")
        try:
            self.new_loss()
        except ValueError as error:
            raise InputError(str(error)) from error

    def _check_types(self) -> None:
        """Refuse values of other types, texts that cannot be part of a path, and numbers that are too large."""
        if fault := fault_of_form(vars(self), _form()):
            raise InputError(f"expected settings of the right types, got {fault}")
        for name, value in vars(self).items():
            if isinstance(value, str) and ("\0" in value or value.encode(errors="replace").decode() != value):
                raise InputError(f"expected {name} to be a text in UTF-8 without NUL, got {value!r}")
            largest = LARGEST.get(name, LARGEST_INT if isinstance(value, int) else LARGEST_FLOAT)
            if isinstance(value, int | float) and not abs(value) <= largest:
                raise InputError(f"expected {name} to be a number of at most {largest:g}, got {reprlib.repr(value)}")

    @property
    def frozen_encoders(self) -> tuple[str, ...]:
        """Return the encoders that do not learn, of "audio" and "text"."""
        if self.encoders == "frozen":
            return ("audio", "text")
        return {"both": (), "audio": ("text",), "text": ("audio",)}[self.trained]

    def new_loss(self) -> PairLoss:
        """Return the loss of the run."""
        mined = self.loss == "triplet_weighted" and self.weighted_rule == "mined"
        loss = LOSSES["triplet_weighted_mined" if mined else self.loss]
        names = ("learn_temperature", "learn_bias") if self.learn_temperature else ()
        learned: dict[str, Any] = {name: True for name in names if name in inspect.signature(loss).parameters}
        if self.learn_temperature and not learned:
            raise InputError(f"expected learn_temperature with a loss that has a temperature, got {self.loss}")
        if not loss.objective_type.pairs_once:
            return loss(direction_weights=self.direction_weights, **learned)
        if self.direction_weights != (1, 1):
            expected = f"expected direction_weights (1, 1) with {self.loss}, which counts every pair once"
            raise InputError(f"{expected}, got {self.direction_weights}")
        return loss(**learned)

    def as_dict(self) -> dict[str, Any]:
        """Return the settings by name, as config.json holds them."""
        return dataclasses.asdict(self) | {"direction_weights": list(self.direction_weights)}

    def deciding(self) -> dict[str, Any]:
        """Return the settings that decide the result, by name."""
        return {name: value for name, value in self.as_dict().items() if name not in WITHOUT_EFFECT}

    @classmethod
    def read(cls, path: Path) -> "Config":
        """Read the config.json of a run or of a saved model, in its older form too."""
        kind = "the settings of a run"
        stored = in_current_form(read_json(path, Any, kind))
        found = stored.keys() if isinstance(stored, dict) else {type(stored).__name__}
        if differing := found ^ {field.name for field in dataclasses.fields(cls)}:
            differ = ", ".join(sorted(differing))
            raise InputError(f"expected the settings of this version in {path}, got these that differ: {differ}")
        try:
            return cls(**stored)
        except InputError as error:
            raise InputError(f"expected {kind} in {path}, got: {reason_of(error)}") from error


@functools.cache
def _form() -> Any:
    """Return the form of the settings by name, with their types."""
    return TypedDict("_form", get_type_hints(Config))  # type: ignore[operator]


def in_current_form(stored: Any) -> Any:
    """Convert stored settings from their older forms.

    There ``protocol`` is nested and the decay factor a setting, or ``nt_xent_factor`` in place of direction weights, or
    ``bert`` is the text encoder, and settings that were added later are missing. Everything else, such as a decay
    factor other than the paper's, stays as it is: the caller refuses it.
    """
    if not isinstance(stored, dict):
        return stored
    settings = dict(stored)
    if isinstance(stored.get("protocol"), dict):
        settings |= settings.pop("protocol")
        if settings.get("decay_factor") == DECAY_FACTOR:
            del settings["decay_factor"]
    if "nt_xent_factor" in settings and "direction_weights" not in settings:  # a factor of NT-Xent alone
        factor = settings.pop("nt_xent_factor")
        settings["direction_weights"] = [1.0, 1.0] if factor == 1 else {"nt_xent": [factor, factor]}
    if "bert" in settings and "text_encoder" not in settings:
        settings["text_encoder"] = settings.pop("bert")
    return ADDED_SETTINGS | settings
