"""Install a wheel beside the torch of given environments, compute every loss there, and do what the start page says.

``python tests/check_wheel.py dist/*.whl /path/to/python ...``: nothing in the environments changes.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

# Everything else comes from the environment, which need have nothing but torch.
WITH_WHEEL = "import sys\nsys.path.insert(0, sys.argv[1])\n"
PROGRAM = """
import platform

import torch

import crossmodal_losses
from crossmodal_losses import LOSSES, GradientCache, diagnose, retrieval_metrics

assert crossmodal_losses.__file__.startswith(sys.argv[1])
torch.manual_seed(0)
leaves = torch.randn(40, 8, requires_grad=True), torch.randn(40, 8, requires_grad=True)
ids = torch.arange(40) // 2


def computed(loss):
    value = loss(*leaves, ids)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


for name, loss in LOSSES.items():
    x, y = leaves
    S = crossmodal_losses.cosine_similarity(x, y)
    value = getattr(crossmodal_losses, name)(S, ids=ids)
    expected = [value.detach(), *torch.autograd.grad(value, leaves)]
    cached = GradientCache(loss(), micro_batch_size=16)
    for found in (computed(loss()), computed(loss(tile_size=16))):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(cached(torch.sin, torch.cos, x, y, ids), loss()(x.sin(), y.cos(), ids))
assert diagnose(*leaves, ids).positive.shape == ()
assert retrieval_metrics(x, x, ids, ids).x_to_y.recall[1] == 1
print(f"torch {torch.__version__}, Python {platform.python_version()}: {len(LOSSES)} losses")
"""


def start_page() -> list[str]:
    """Return the programs of the start page: the first lines, and a whole training, which ends with an assertion."""
    text = (Path(__file__).parents[1] / "docs" / "index.md").read_text(encoding="utf-8")
    first, training = re.findall(r"```\{testcode\}\n(.*?)```", text, re.DOTALL)
    assert "assert metrics" in training
    return [first, training]


def check(wheel: Path, python: str) -> str:
    """Return the versions of an environment in which the wheel's losses are right; raise if they are not."""
    with tempfile.TemporaryDirectory() as site:
        pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", site, str(wheel)], check=True)
        for program in start_page():
            subprocess.run([python, "-I", "-c", WITH_WHEEL + program, site], cwd=site, check=True, capture_output=True)
        command = [python, "-I", "-c", WITH_WHEEL + PROGRAM, site]
        return subprocess.run(command, cwd=site, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


if __name__ == "__main__":
    for interpreter in sys.argv[2:]:
        print(check(Path(sys.argv[1]).resolve(), interpreter), flush=True)
