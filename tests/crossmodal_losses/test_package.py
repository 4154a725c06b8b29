"""The package as its users see it: imports, public names, modules in a model, the wheel."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from comparisons import each_loss, learning_loss

import crossmodal_losses
from crossmodal_losses import LOSSES, NTXent, diagnose


def test_the_import_needs_torch_alone() -> None:
    """Modules that the import adds to those of torch belong to the package or to Python, and there are few of them."""
    program = "import sys, torch; before = {*sys.modules}; import crossmodal_losses; print(*{*sys.modules} - before)"
    added = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    foreign = {name.split(".")[0] for name in added} - {"crossmodal_losses"} - set(sys.stdlib_module_names)
    assert not foreign
    assert "crossmodal_losses.losses.nt_xent" in added
    assert len(added) < 40


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


def test_the_wheel_holds_the_package_alone_and_runs_beside_torch(tmp_path: Path) -> None:
    """It is built from a copy of the checkout and installed into an empty folder; README's first example runs there."""
    root = Path(__file__).parents[2]
    source, wheels, site = tmp_path / "source", tmp_path / "wheels", tmp_path / "site"
    without = shutil.ignore_patterns(".git", "build", "*.egg-info", "demo", "__pycache__", ".*_cache", ".hypothesis")
    shutil.copytree(root, source, ignore=without)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", wheels, source], check=True)
    (wheel,) = wheels.iterdir()
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"crossmodal_losses"}
    ours = {str(p.relative_to(root)) for p in (root / "crossmodal_losses").rglob("*") if p.suffix in (".py", ".typed")}
    assert {name for name in names if ".dist-info" not in name} == ours
    metadata = zipfile.ZipFile(wheel).read(next(name for name in names if name.endswith("METADATA"))).decode()
    required = [line for line in re.findall("^Requires-Dist: (.*)$", metadata, re.MULTILINE) if "extra ==" not in line]
    assert required == ["torch>=2.4"]
    assert set(re.findall("^Provides-Extra: (.*)$", metadata, re.MULTILINE)) == {
        "reference",
        "test",
        "bench",
        "mutants",
    }

    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True)
    example = re.search(r"```python\n(.*?)```", (root / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert example is not None
    program = (
        f"import sys; sys.path[:0] = [{str(site)!r}]\n{example[1]}\nimport crossmodal_losses as c; print(c.__file__)"
    )
    command = [sys.executable, "-I", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "Diagnosis(positive=tensor(" in done.stdout
    assert str(site) in done.stdout
