"""The examples learn, their learned temperature too, and two processes find what one process finds."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
# Where the temperature starts, None if there is none.
ONE_PROCESS = {
    "with_queue.py": 0.2,
    "with_hard_negatives.py": None,
    "with_ema_teacher.py": 0.2,
    "with_open_clip.py": 0.07,
    "with_trainer_clap.py": 0.2,
    "with_sentence_transformers.py": 0.2,
}
ANY_NUMBER = {
    "with_torchrun.py": 0.2,
    "with_fsdp.py": 0.2,
    "with_accelerate.py": 0.2,
    "with_fabric.py": 0.2,
    "with_lightning.py": 0.2,
    "with_trainer_clip.py": 0.07,
}
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "ACCELERATE_USE_CPU": "true",
    # What torchrun and fabric run set, besides ranks and addresses.
    **{"TORCHELASTIC_RUN_ID": "none", "LT_CLI_USED": "1", "LT_ACCELERATOR": "cpu", "LT_STRATEGY": "ddp"},
}


def results(text: str) -> dict[str, float]:
    """Return the numbers of the last line that has any: loss, temperature, R@1."""
    lines = [line for line in text.splitlines() if "R@1" in line]
    assert lines, text
    return {name: float(number) for name, number in re.findall(r"(loss|temperature|R@1) ([\d.]+)", lines[-1])}


def test_the_examples_learn(tmp_path: Path) -> None:
    wanted = [*(f"{name}:1" for name in {**ONE_PROCESS, **ANY_NUMBER}), *(f"{name}:2" for name in ANY_NUMBER)]
    command = [sys.executable, str(ROOT / "tests" / "fork_examples.py"), str(tmp_path), *wanted]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    for name, start in {**ONE_PROCESS, **ANY_NUMBER}.items():
        found = results((tmp_path / f"{name}:1.0").read_text(encoding="utf-8"))
        assert found["R@1"] >= 0.6, name
        if start is not None:
            assert abs(found["temperature"] - start) > 1e-3, name  # the optimiser has its parameter
        if name in ANY_NUMBER:
            in_two = results((tmp_path / f"{name}:2.0").read_text(encoding="utf-8"))
            # FSDP's is of the pairs of its process alone.
            assert in_two.pop("R@1") == pytest.approx(found.pop("R@1"), abs=0.01), name
            assert in_two == pytest.approx(found, rel=1e-4), name


def test_torchrun_starts_an_example() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    command.append(str(EXAMPLES / "with_torchrun.py"))
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert results(done.stdout)["R@1"] >= 0.9


def test_the_notebook_shows_learning_and_collapse() -> None:
    """It is committed without outputs. Its last cell holds R@1 of each loss: trained gently, and roughly."""
    notebook: Any = nbformat.read(EXAMPLES / "four_losses.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    with pytest.MonkeyPatch.context() as environment:
        for name in ("PYTHONPATH", "OMP_NUM_THREADS"):
            environment.setenv(name, ENVIRONMENT[name])
        NotebookClient(notebook, timeout=300).execute()
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output["data"]
    ]
    assert len(pictures) == 4
    found = ast.literal_eval(notebook.cells[-1].outputs[0]["data"]["text/plain"])
    assert found.keys() == {"triplet_sum", "triplet_max", "triplet_weighted", "nt_xent"}
    assert all(gentle > 0.7 for gentle, _ in found.values())
    assert max(found["triplet_max"][1], found["triplet_weighted"][1]) < found["nt_xent"][1] - 0.2


def test_every_example_is_run_and_short() -> None:
    scripts = {path.name: path.read_text(encoding="utf-8") for path in EXAMPLES.glob("*.py")}
    assert scripts.keys() == ONE_PROCESS.keys() | ANY_NUMBER.keys()
    assert not [name for name, text in scripts.items() if len(text.splitlines()) >= 60]
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\((\w+\.\w+)\)", page)) == scripts.keys() | {"four_losses.ipynb"}
