"""The command for a GPU, as far as it runs without one."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import values
from benchmarks.gpu.__main__ import PARTS, main
from benchmarks.gpu.report import Report
from benchmarks.gpu.setting import gpu
from crossmodal_losses import LOSSES, NTXent

ROOT = Path(__file__).parents[2]


def run(path: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    status = main(["--device", "cpu", "--out", str(path), *arguments])
    report: dict[str, Any] = json.loads(path.read_text())
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    return status, report


@pytest.mark.filterwarnings("default")  # the compiler's own imports warn of deprecations
def test_all_parts_run_with_tiny_sizes(tmp_path: Path) -> None:
    status, report = run(tmp_path / "gpu.json")
    assert status == 0
    assert report["passed"]
    assert set(report["parts"]) == set(PARTS)
    assert all(part["complete"] and part["results"] for part in report["parts"].values())
    assert report["environment"]["torch"] == torch.__version__


def test_what_is_wrong_fails_and_other_parts_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(NTXent):
        def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            return 1.001 * super().forward(*args, **kwargs)

    class Broken(NTXent):
        def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            raise RuntimeError("broken")

    monkeypatch.setattr(values, "sizes_and_dimensions", lambda setting: [(5, 7)])
    monkeypatch.setattr(values, "LOSSES", {name: LOSSES[name] for name in ("nt_xent", "triplet_max")})
    assert run(tmp_path / "gpu.json", "--part", "values")[0] == 0
    for wrong, found in (
        (Wrong, "value: nt_xent, dense, float32, ids, B = 5, D = 7"),
        (Broken, "nt_xent, B = 5, D = 7"),
    ):
        monkeypatch.setitem(LOSSES, "nt_xent", wrong)
        status, report = run(tmp_path / "gpu.json", "--part", "values")
        assert status == 1
        assert not report["passed"]
        failed = [result["name"] for result in report["parts"]["values"]["results"] if not result["passed"]]
        assert any(name.startswith(found) for name in failed)
        assert not any("triplet_max" in name for name in failed)
        assert report["parts"]["values"]["complete"]


def test_a_part_that_takes_too_long_fails(tmp_path: Path) -> None:
    status, report = run(tmp_path / "gpu.json", "--seconds", "0", "--part", "speed")
    assert status == 1
    assert not report["passed"]
    assert not report["parts"]["speed"]["complete"]


def test_results_of_another_environment_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    for part in ("values", "speed"):
        report = Report(path, part, torch.device("cpu"), 1.0)
        report.add("ms", 2.0, allowed=1.0)
        report.finish()
        assert not report.passed
    before = json.loads(path.read_text())
    assert list(before["parts"]) == ["values", "speed"]
    path.write_text(json.dumps({**before, "environment": {"card": "another"}}))
    Report(path, "behaviour", torch.device("cpu"), 1.0).finish()
    assert list(json.loads(path.read_text())["parts"]) == ["behaviour"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "expected a CUDA device, got none" in capsys.readouterr().err


def test_sizes_of_a_gpu() -> None:
    setting = gpu()
    assert {1, 2, 24, 32, 127, 128, 129, 1025, setting.tile_size - 1, setting.tile_size + 1} == set(setting.sizes)
    assert (setting.whole_tile - 1) ** 2 > 2**31
    assert setting.siglip == (65536, 768)


def test_it_imports_torch_and_triton_alone() -> None:
    pending, seen = [*(ROOT / "benchmarks" / "gpu").glob("*.py")], set()
    while pending:
        path = pending.pop()
        if path in seen:
            continue
        seen.add(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            assert not {name.split(".")[0] for name in names} & {"click", "tqdm", "matplotlib", "numpy"}, path
            files = [ROOT / name.replace(".", "/") for name in names if name.startswith("benchmarks")]
            pending += [file.with_suffix(".py") for file in files if file.with_suffix(".py").is_file()]
    assert ROOT / "benchmarks" / "baselines.py" in seen
