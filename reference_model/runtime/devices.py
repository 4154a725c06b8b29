"""The device, the precision and the processes of a run."""

import os

import torch
from accelerate import Accelerator

from reference_model import InputError


def make_accelerator(precision: str) -> Accelerator:
    """Return the accelerator of this process; without a GPU no fp16: gradients would vanish, as nothing scales them."""
    # Accelerate overlooks torchrun's processes where there is no GPU, unless cpu is set; each would be the first.
    cpu = "LOCAL_RANK" in os.environ and not torch.cuda.is_available()
    accelerator = Accelerator(mixed_precision=precision, cpu=cpu)
    if precision == "fp16" and accelerator.scaler is None:
        raise InputError(f"expected --precision no or bf16 on {accelerator.device}, got fp16, which needs a GPU")
    return accelerator
