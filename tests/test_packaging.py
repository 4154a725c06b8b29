"""What is published: the source distribution, the wheel built from it, and the page of both on the package index."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest
from check_wheel import check

import crossmodal_losses

ROOT = Path(__file__).parents[1]
TYPED = """
import torch
from crossmodal_losses import LOSSES, GatheredLoss, GradientCache, NTXent, TripletMax, diagnose, nt_xent

x, y = torch.randn(4, 8), torch.randn(4, 8)
loss = LOSSES["triplet_max"](margin=0.1)
value: torch.Tensor = loss(x, y, ids=torch.arange(4))
value = GatheredLoss(TripletMax(margin=0.1, direction_weights=(0.5, 0.5)))(x, y)
value = NTXent(learn_temperature=True)(x, y, temperature=torch.tensor(0.1))
value = GradientCache(loss, micro_batch_size=2)(torch.sin, torch.cos, x, y)
value = nt_xent(x @ y.T, temperature=0.1) + diagnose(x, y).positive
"""
MISTAKES = ["TripletMax(margn=0.1)", "NTXent(temperature='warm')", "nt_xent(x, reduction='average')", "nt_xent(x, 0.1)"]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source distribution and the wheel that ``python -m build`` makes of a copy of the checkout."""
    folder = tmp_path_factory.mktemp("published")
    ignored = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__")
    made = {"build", "demo", "dist", "example", "evidence", "data", "runs"}  # at the top, by the Makefile's targets
    shutil.copytree(
        ROOT, folder / "source", ignore=lambda at, names: {*ignored(at, names), *(made if Path(at) == ROOT else ())}
    )
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", "../dist", "."]
    subprocess.run(command, cwd=folder / "source", check=True, capture_output=True)
    (sdist,), (wheel,) = (folder / "dist").glob("*.tar.gz"), (folder / "dist").glob("*.whl")
    return sdist, wheel


def test_one_version_everywhere() -> None:
    newest = re.search(
        r"^## ([\d.]+) \((\d{4}-\d\d-\d\d)\)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M
    )
    assert newest is not None
    assert newest[1] == crossmodal_losses.__version__
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {newest[1]}\ndate-released: {newest[2]}\n" in citation


def test_the_wheel_holds_the_package_alone_and_runs_beside_torch(published: tuple[Path, Path]) -> None:
    names = zipfile.ZipFile(published[1]).namelist()
    files = [path for path in (ROOT / "crossmodal_losses").rglob("*") if path.suffix in (".py", ".typed")]
    assert {name for name in names if ".dist-info" not in name} == {str(path.relative_to(ROOT)) for path in files}
    assert check(published[1], sys.executable).startswith("torch ")


def test_the_package_page(published: tuple[Path, Path]) -> None:
    """Its text is accepted by the index, its links lead to the repository, and torch is all that is needed."""
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *published], check=True, capture_output=True)
    wheel = zipfile.ZipFile(published[1])
    metadata = wheel.read(next(name for name in wheel.namelist() if name.endswith("METADATA"))).decode()
    page = HeaderParser().parsestr(metadata)
    assert page.get_all("Requires-Dist") == ["torch>=2.4"]
    assert page["Provides-Extra"] is None
    assert page["License-Expression"] == "Apache-2.0"
    label, repository = page["Project-URL"].split(", ")
    assert label == "Repository"
    links = re.findall(r"\]\(([^)\s]+)\)", str(page.get_payload()))
    assert len(links) > 5
    assert all(link.startswith("https://") for link in links)
    ours = [
        link.removeprefix(f"{repository}/blob/main/").split("#")[0] for link in links if link.startswith(repository)
    ]
    assert all((ROOT / link).exists() for link in ours)


def test_the_source_distribution_holds_the_checkout_and_its_tests_pass(
    published: tuple[Path, Path], tmp_path: Path
) -> None:
    with tarfile.open(published[0]) as file:
        file.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    missing = [name for name in listed.split("\0") if (ROOT / name).is_file() and not (source / name).is_file()]
    assert not [name for name in missing if not name.startswith(".")]  # of git, and of forges
    tests = ["tests/crossmodal_losses/losses/test_nt_xent.py", "tests/crossmodal_losses/test_package.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_users_script_is_type_checked(published: tuple[Path, Path], tmp_path: Path) -> None:
    """Pyright, which reads the hints of the wheel, finds the mistakes and no others."""
    zipfile.ZipFile(published[1]).extractall(tmp_path)
    script = tmp_path / "script.py"
    script.write_text("\n".join([TYPED.strip(), *MISTAKES]) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, str(script)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    found = [int(line) for line in re.findall(r"script\.py:(\d+):\d+ - error", done.stdout)]
    first = len(TYPED.strip().splitlines()) + 1
    assert found == [*range(first, first + len(MISTAKES))], done.stdout
