"""The device and its precision."""

import functools

import pytest
from accelerate import Accelerator

from reference_model import InputError
from reference_model.runtime import devices
from reference_model.runtime.devices import make_accelerator


def test_a_precision_that_the_device_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "Accelerator", functools.partial(Accelerator, cpu=True))
    with pytest.raises(InputError, match="expected --precision no or bf16 on cpu, got fp16"):
        make_accelerator("fp16")


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_precision_is_that_of_the_run(precision: str) -> None:
    assert make_accelerator(precision).mixed_precision == precision
