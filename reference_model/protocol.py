"""Where the paper's text and its published code differ: eight settings, and the two protocols that fix all of them."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from reference_model import InputError

FrozenMode = Literal["eval", "train"]
WeightedRule = Literal["equation-6", "mined"]
SelectOn = Literal["both-directions", "text-to-audio"]


def check_choice(name: str, value: Any, kind: Any) -> None:
    """Refuse what is none of the values of a Literal."""
    if value not in get_args(kind):
        raise InputError(f"expected {name} to be one of {', '.join(get_args(kind))}, got {value}")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """None of the settings has a default: a protocol says them all."""

    frozen_mode: FrozenMode  # of frozen encoders; train: they drop out, and batch-norm statistics drift
    spec_augment: bool  # when the audio encoder is in train mode: stripes of the spectrogram are erased, after bn0
    dropout: float  # of BERT and of the residual blocks, in train mode
    clip_norm: float  # the gradient is scaled down to this norm; 0: it is not
    nt_xent_factor: float  # 1: equation 7; 0.5: the mean of its two directions
    weighted_rule: WeightedRule  # what triplet_weighted is: equation 6, or triplet_weighted_mined
    mask_same_clip: bool  # captions of one clip are no negatives of each other; never so in nt_xent
    select_on: SelectOn  # the sum of R@1, R@5 and R@10 on the validation set that the best epoch is selected by

    def __post_init__(self) -> None:
        choices = (("frozen_mode", FrozenMode), ("weighted_rule", WeightedRule), ("select_on", SelectOn))
        for name, kind in choices:
            check_choice(name, getattr(self, name), kind)
        if not 0 <= self.dropout < 1:
            raise InputError(f"expected dropout in [0, 1), got {self.dropout}")
        if not self.clip_norm >= 0:
            raise InputError(f"expected clip_norm >= 0, where 0 is no clipping, got {self.clip_norm}")
        if not self.nt_xent_factor > 0:
            raise InputError(f"expected nt_xent_factor > 0, got {self.nt_xent_factor}")


PROTOCOLS = {
    # What the text says, sections 2.3 and 3.2. Dropout: that of the published encoders.
    "paper": Protocol(
        frozen_mode="eval",
        spec_augment=False,
        dropout=0.1,
        clip_norm=0.0,
        nt_xent_factor=1.0,
        weighted_rule="equation-6",
        mask_same_clip=False,
        select_on="both-directions",
    ),
    # What github.com/XinhaoMei/audio-text_retrieval did.
    "released": Protocol(
        frozen_mode="train",
        spec_augment=True,
        dropout=0.2,
        clip_norm=2.0,
        nt_xent_factor=0.5,
        weighted_rule="mined",
        mask_same_clip=True,
        select_on="text-to-audio",
    ),
}


def protocol(name: str, **changes: Any) -> Protocol:
    """The protocol of this name, with some of its settings changed."""
    return dataclasses.replace(PROTOCOLS[name], **changes)
