"""The command for a GPU, as far as it runs without one: on a CPU, with stand-ins, and with what has to be refused."""

import ast
import itertools
import json
import math
import pickle
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from operator_graph import OperatorGraph, use_operator_graphs
from torch import Tensor, distributed
from torch.autograd import DeviceType  # type: ignore[attr-defined]

from benchmarks import commit as commits
from benchmarks.frozen import frozen_experiments, steps_of_run
from benchmarks.gpu import behaviour, counting, launches, report, speed, times, training, values
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.report import PARTS, Report, Results
from benchmarks.gpu.setting import Setting, gpu, trial
from crossmodal_losses import LOSSES, GatheredLoss, NTXent, RingLoss, cosine_similarity

ROOT = Path(__file__).parents[2]


def run(path: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    status = main(["--device", "cpu", "--out", str(path), *arguments])
    found: dict[str, Any] = json.loads(path.read_text())
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    return status, found


def results_of(check: Callable[..., None], *arguments: Any) -> list[dict[str, Any]]:
    results = Results()
    check(results, *arguments)
    return results.found


@pytest.mark.filterwarnings("default")  # the compiler's own imports warn of deprecations
def test_all_parts_run_with_tiny_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One check of every eleven: of each kind there are more, but for those of speed."""
    for part in (values, behaviour, counting):
        checks = part.checks
        monkeypatch.setattr(
            part, "checks", lambda setting, checks=checks: itertools.islice(checks(setting), 0, None, 11)
        )
    monkeypatch.setattr(
        training, "milliseconds", lambda _, calls: {name: call() or 1.0 for name, call in calls.items()}
    )
    status, found = run(tmp_path / "gpu.json")
    assert status == 0
    assert found["passed"]
    assert not found["missing"]
    assert set(found["parts"]) == set(PARTS)
    assert all(part["complete"] and part["results"] for part in found["parts"].values())
    assert found["environment"]["torch"] == torch.__version__
    assert {"commit", "driver", "crossmodal_losses"} <= set(found["environment"])


def test_what_is_wrong_fails_and_other_parts_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(NTXent):
        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            return 1.001 * super().forward(*args, **kwargs)

    class Broken(NTXent):
        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            raise RuntimeError("broken")

    monkeypatch.setattr(values, "checks", only(values.checks, "nt_xent, B = 5, D = 7", "triplet_max, B = 5, D = 7"))
    assert run(tmp_path / "gpu.json", "--part", "values")[0] == 0
    for wrong, expected in (
        (Wrong, "value: nt_xent, dense, float32, ids, B = 5, D = 7"),
        (Broken, "nt_xent, B = 5, D = 7"),
    ):
        monkeypatch.setitem(LOSSES, "nt_xent", wrong)
        status, found = run(tmp_path / "gpu.json", "--part", "values")
        assert status == 1
        assert not found["passed"]
        failed = [result["name"] for result in found["parts"]["values"]["results"] if not result["passed"]]
        assert any(name.startswith(expected) for name in failed)
        assert not any("triplet_max" in name for name in failed)
        assert found["parts"]["values"]["complete"]


def only(checks: Callable[..., Any], *parts: str) -> Callable[..., Any]:
    return lambda setting: [(name, check) for name, check in checks(setting) if name.startswith(parts)]


def test_a_part_that_takes_too_long_fails(tmp_path: Path) -> None:
    status, found = run(tmp_path / "gpu.json", "--seconds", "0", "--part", "speed")
    assert status == 1
    assert not found["passed"]
    assert not found["parts"]["speed"]["complete"]


def test_results_of_another_environment_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "gpu.json"

    def finished(part: str) -> dict[str, Any]:
        Report(path, part, torch.device("cpu"), 1.0).finish()
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    monkeypatch.setattr(report, "commit", lambda: "1234567")
    for part in PARTS:
        found = finished(part)
        assert found["passed"] == (part == PARTS[-1])
    assert list(found["parts"]) == [*PARTS]
    monkeypatch.setattr(report, "commit", lambda: "7654321")
    found = finished("behaviour")
    assert list(found["parts"]) == ["behaviour"]
    assert found["missing"] == ["values", "speed"]
    assert not found["passed"]


def test_the_commit_tells_of_changed_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> None:
        settings = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
        subprocess.run(["git", "-C", str(tmp_path), *settings, *arguments], check=True, capture_output=True)

    monkeypatch.setattr(commits, "ROOT", tmp_path)
    assert commits.commit() == "unknown"
    for name in ("code.py", "results.json"):
        (tmp_path / name).write_text("1\n")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    clean = commits.commit()
    assert len(clean) >= 7
    (tmp_path / "results.json").write_text("2\n")
    assert commits.commit() == clean
    (tmp_path / "code.py").write_text("2\n")
    assert commits.commit() == f"{clean}, changed"
    monkeypatch.setenv("PATH", "")
    assert commits.commit() == report.driver() == "unknown"


def test_the_driver_is_that_of_the_first_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout="570.1\n570.1\n"))
    assert report.driver() == "570.1"


def test_processes_share_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads stand for them. What they check can be sent to them."""

    def broken(results: Results) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(report, "new_processes", ThreadPoolExecutor)
    shared = Report(tmp_path / "gpu.json", "values", torch.device("cpu"), 60.0)
    shared.run_all([("one", lambda results: results.add("one", 1.0, 2.0)), ("two", broken)], 2)
    assert [(result["name"], result["passed"]) for result in shared.results] == [("one", True), ("two", False)]
    late = Report(tmp_path / "gpu.json", "values", torch.device("cpu"), -1.0)
    with pytest.raises(report.OutOfTime):
        late.run_all([("one", broken)], 2)
    for checks in (values.checks, behaviour.checks, counting.checks, speed.checks, speed.compilations):
        assert pickle.loads(pickle.dumps([*checks(gpu())]))


def test_what_ends_a_process_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(*_: Any) -> None:
        raise BrokenProcessPool("ended")

    class Ended(ThreadPoolExecutor):
        def submit(self, *_: Any, **__: Any) -> Any:
            return super().submit(end)

    monkeypatch.setattr(report, "new_processes", Ended)
    ended = Report(tmp_path / "gpu.json", "values", torch.device("cpu"), 60.0)
    ended.run_all([("one", lambda results: None)], 1)
    assert [(result["found"], result["passed"]) for result in ended.results] == [("BrokenProcessPool: ended", False)]


def zero_gradients(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The values of a loss, without its gradients."""
    return lambda x, y, *others: loss(x.detach(), y.detach(), *others) + 0 * (x.sum() + y.sum())


def test_every_part_of_a_deviation_counts() -> None:
    large, small = torch.full((), 10.0).double(), torch.full((2, 3), 1e-6).double()
    assert values.deviation([large, small], [large, small]) == 0
    assert values.deviation([large, 0 * small], [large, small]) == 1
    assert values.deviation([large, small], [large, 0 * small]) == math.inf
    assert math.isnan(values.deviation([large, small, large * math.nan], [large, small, large]))
    assert math.isnan(values.deviation([large * math.nan, 0 * small], [large, small]))


def test_gradients_of_0_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where values are right: compiled, in a group of one, and beside float64."""
    assert all(result["passed"] for result in results_of(behaviour.compiles, trial(), "nt_xent", "tiles"))
    monkeypatch.setattr(torch, "compile", lambda loss, **_: zero_gradients(loss))
    assert not any(result["passed"] for result in results_of(behaviour.compiles, trial(), "nt_xent", "tiles"))
    for kind in (GatheredLoss, RingLoss):
        of_ranks = kind._of_ranks

        def wrong(self: Any, group: Any, tensors: Any, settings: Any, of_ranks: Any = of_ranks) -> Tensor:
            return zero_gradients(lambda *sides: of_ranks(self, group, (*sides, *tensors[2:]), settings))(*tensors[:2])

        monkeypatch.setattr(kind, "_of_ranks", wrong)
    found = results_of(behaviour.one_rank, trial())
    assert len(found) == 2 * len(LOSSES)
    assert not any(result["passed"] for result in found)


def test_a_group_of_one_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collectives of the process group run, of both losses of several processes."""
    called: list[str] = []
    for name in ("all_gather_into_tensor", "reduce_scatter_tensor", "all_to_all_single", "all_reduce"):
        collective = getattr(distributed, name)

        def counting_calls(*args: Any, name: str = name, of: Any = collective, **kwargs: Any) -> Any:
            called.append(name)
            return of(*args, **kwargs)

        monkeypatch.setattr(distributed, name, counting_calls)
    assert all(result["passed"] for result in results_of(behaviour.one_rank, trial()))
    assert set(called) == {"all_gather_into_tensor", "reduce_scatter_tensor", "all_to_all_single", "all_reduce"}


@pytest.mark.parametrize("name", [name for name in LOSSES if name.startswith("triplet")])
def test_a_loss_that_decides_needs_no_allowance(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more rows than MANY: half precision finds the selections of float64, and another selection is refused."""
    setting = replace(trial(), tile_size=64)
    arguments = setting, name, values.MANY + 1, 20, True, ("tiles",), (torch.float32, torch.bfloat16), ("mean",)
    found = results_of(values.compare, *arguments)
    assert len(found) == 4
    assert all(result["passed"] for result in found), found
    forward = LOSSES[name].forward

    def fewer_candidates(self: Any, x: Tensor, y: Tensor, ids: Tensor | None) -> Tensor:
        assert ids is not None
        return forward(self, x, y, ids // 2)

    monkeypatch.setattr(LOSSES[name], "forward", fewer_candidates)
    assert not all(result["passed"] for result in results_of(values.compare, *arguments))


def test_similarities_of_signs_are_exact() -> None:
    for D in (1, 7, 1000, 1024):
        of_dtypes = [trial().signs(200, D, dtype) for dtype in values.ALLOWED]
        for x, y in of_dtypes:
            assert torch.equal(x.double(), of_dtypes[0][0])
            assert torch.equal(y.double(), of_dtypes[0][1])
        x, y = (side.detach() for side in of_dtypes[0])
        n = float(x[2].square().sum())  # the third power of two is 1
        assert n == {1: 1, 7: 4, 1000: 256, 1024: 1024}[D]
        k = cosine_similarity(x, y) * n
        assert torch.equal(k, k.round())
        assert len(x.norm(dim=1).unique()) == 5


@dataclass(frozen=True)
class Captures(Setting):
    """A CPU, with a stand-in for CUDA's graphs and streams."""

    @property
    def is_cuda(self) -> bool:
        return True


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> Setting:
    use_operator_graphs(monkeypatch)
    return Captures(**vars(trial()))


@pytest.mark.parametrize("check", [behaviour.is_captured, behaviour.on_a_side_stream])
def test_capture_and_side_stream(captures: Setting, check: Callable[..., None]) -> None:
    """What is right passes; what is other than a step without a graph, or without a stream, is counted."""
    (size, *_), variant = captures.behaviour, behaviour.VARIANTS[0]

    def step() -> behaviour.Step:
        return behaviour.step_of(captures, "nt_xent", "tiles", size, variant)

    assert results_of(check, captures, "name", step()) == [{"name": "name", "found": 0, "allowed": 0, "passed": True}]
    assert (
        len(OperatorGraph.made)
        == sum(graph.replays for graph in OperatorGraph.made)
        == (check is behaviour.is_captured)
    )
    calls = 0

    def another_each_time(x: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return calls * NTXent(tile_size=2)(x, y)

    (wrong,) = results_of(check, captures, "name", replace(step(), loss=another_each_time))
    assert wrong["found"] == 3
    assert not wrong["passed"]


def test_a_replay_is_timed(captures: Setting) -> None:
    calls = 0

    def call() -> Tensor:
        nonlocal calls
        calls += 1
        return torch.ones(2) * 2

    def refused() -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    graphed = times.graphed_where_possible(captures, {"call": call, "refused": refused})
    assert list(graphed) == ["call, graphed"]
    assert calls == 2
    graphed["call, graphed"]()
    assert calls == 2
    assert OperatorGraph.made[0].replays == 1


def test_numbers_of_launches_are_those_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """More fail, and fewer; kernels on the device fail where a product is split twice, and where none are seen."""

    class OnCuda(Setting):
        is_cuda = True

    setting = OnCuda(**vars(trial()))
    for more in (-1, 0, 1):
        monkeypatch.setattr(counting, "count_kernels", lambda *_: 6)
        monkeypatch.setattr(counting, "count_operators", lambda _, more=more: 6 + more)
        operators, kernels = results_of(counting.small_batch, setting, "nt_xent", "mean")
        assert operators["passed"] == (more == 0)
        assert kernels["passed"]
    for found, passed in ((0, False), (5, False), (6, True), (7, True), (8, False)):
        monkeypatch.setattr(counting, "count_kernels", lambda *_, found=found: found)
        *_, kernels = results_of(counting.small_batch, setting, "nt_xent", "mean")
        assert kernels["passed"] == passed
    of_table = iter([64, 71, 68, 75, 76, 82, 80, 87])
    monkeypatch.setattr(counting, "count_operators", lambda _: next(of_table))
    monkeypatch.setitem(launches.LAUNCHES, "triplet_sum", ((64, 71), (68, 75), (76, 82), (80, 86)))
    of_table_passed = [
        result["passed"] for result in results_of(counting.at_sizes_of_the_table, setting, "triplet_sum")
    ]
    assert of_table_passed == [True] * 7 + [False]


def test_launches_are_counted() -> None:
    x = torch.ones(3, 4, requires_grad=True)
    step = lambda: torch.autograd.grad((x.T.contiguous() * 2).sum(), x, torch.ones(()))  # noqa: E731
    assert counting.count_operators(step) == 5  # clone, mul, sum, ones, mul
    events = [SimpleNamespace(name=str(kind), device_type=kind) for kind in (DeviceType.CPU, DeviceType.CUDA)]
    assert counting.on_the_device(events) == [str(DeviceType.CUDA)]


@pytest.mark.parametrize(
    "card, bounded",
    [("NVIDIA H100 80GB HBM3", True), ("NVIDIA H200", True), ("NVIDIA H100 PCIe", False), ("B200", False)],
)
def test_the_mark_is_that_of_its_card(card: str, bounded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class OnCuda(Setting):
        is_cuda = True

        def wait(self) -> None:
            pass

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: card)
    found = results_of(speed.siglip, OnCuda(**vars(trial())))
    assert [result["allowed"] for result in found] == [speed.SIGLIP_MS if bounded else None] * 2 + [None]
    assert all(("is the bound" in result["name"]) == bounded for result in found)


def test_minutes_of_the_papers_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {key: steps_of_run(*key) for key in frozen_experiments()}
    assert steps[("AudioCaps", 32)] == 50 * (49274 // 32)
    assert steps[("Clotho", 24)] == 50 * (5 * 3839 // 24)
    us = {(B, name): 1000.0 for (_, B), names in frozen_experiments().items() for name in names}
    assert training.minutes(us) == pytest.approx(3 * 4 * sum(steps.values()) / 60e3)
    assert gpu().hidden == 2048


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "expected a CUDA device, got none" in capsys.readouterr().err


def test_sizes_of_a_gpu() -> None:
    setting = gpu()
    assert {1, 2, 24, 32, 127, 128, 129, 1025, setting.tile_size - 1, setting.tile_size + 1} == set(setting.sizes)
    assert {B for B, _ in setting.wide} == {4095, 4096, 4097}
    assert {B for B, _ in setting.behaviour} == {1, 100}
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
            files = [
                ROOT / name.replace(".", "/") for name in names if name.startswith(("benchmarks", "reference_model"))
            ]
            pending += [file.with_suffix(".py") for file in files if file.with_suffix(".py").is_file()]
    assert {ROOT / "benchmarks" / "baselines.py", ROOT / "reference_model" / "paper.py"} <= seen
