"""The package as its users see it: imports, public names, modules in a model."""

import subprocess
import sys

import pytest
import torch
from comparisons import each_loss, learning_loss

import crossmodal_losses
from crossmodal_losses import LOSSES, NTXent, diagnose


def test_the_import_needs_torch_alone() -> None:
    """Modules that the import adds belong to the package, to torch or to Python; ours and Python's are few."""
    program = "import sys, torch; before = {*sys.modules}; import crossmodal_losses; print(*{*sys.modules} - before)"
    added = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    of_torch = {"torch", "sympy", "mpmath"}  # torch 2.4 imports more of itself when an operator is registered
    added = [name for name in added if name.split(".")[0] not in of_torch]
    assert {name.split(".")[0] for name in added} <= {"crossmodal_losses", *sys.stdlib_module_names}
    assert "crossmodal_losses.losses.nt_xent" in added
    assert len(added) < 45


def test_public_names() -> None:
    for name in crossmodal_losses.__all__:
        assert getattr(crossmodal_losses, name).__doc__, name
    assert crossmodal_losses.__version__.count(".") == 2


@each_loss
def test_a_module_shows_its_settings(name: str) -> None:
    """The text of a module is the call that makes it again."""
    module = LOSSES[name](reduction="sum")
    again = eval(repr(module), vars(crossmodal_losses))
    assert repr(again) == repr(module)
    assert "reduction='sum'" in repr(module)


@each_loss
def test_the_default_dtype_of_torch_changes_nothing(name: str) -> None:
    x = torch.eye(3)
    torch.set_default_dtype(torch.float64)
    try:
        assert LOSSES[name]()(x, x).dtype == torch.float32
        assert diagnose(x, x).violating.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_learned_temperature_of_a_half_precision_model() -> None:
    temperature = NTXent(learn_temperature=True).bfloat16().temperature
    assert isinstance(temperature, torch.Tensor)
    assert temperature.dtype == torch.float32
    assert float(temperature.detach()) == pytest.approx(0.07, rel=0.005)


@each_loss
def test_a_module_moves_with_its_model(name: str) -> None:
    """A loss that is part of a model keeps its value through state_dict and a change of dtype."""
    model = torch.nn.ModuleDict({"loss": learning_loss(name)})
    model.load_state_dict(model.state_dict())
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    value = model["loss"](x, x.flip(0))
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.bfloat16, 0.1)):
        torch.testing.assert_close(model.to(dtype)["loss"](x, x.flip(0)).float(), value, rtol=tolerance, atol=1e-5)
