"""The captured step trains as the eager one does: on a GPU, and on a CPU with a stand-in for the graph."""

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import call

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from operator_graph import OperatorGraph, use_operator_graphs
from runs import Interrupted
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from reference_model.config import Config
from reference_model.models.dual_encoder import Heads
from reference_model.training import captured, trainer
from reference_model.training.captured import CapturedStep
from reference_model.training.checkpoint import load_checkpoint, save_checkpoint
from reference_model.training.step import Step


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[OperatorGraph]:
    """Graphs of operators in the place of CUDA's."""
    return use_operator_graphs(monkeypatch)


@pytest.fixture(
    params=["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]
)
def device(request: pytest.FixtureRequest) -> str:
    """Where steps are captured: on a GPU, and on a CPU with the stand-in."""
    if request.param == "cpu":
        request.getfixturevalue("stand_in")
    return str(request.param)


PAIRS, STEPS, CHANGE = 16, 11, 7  # the learning rate changes before step 7, counted from 0
RATES = 2.0**-7, 2.0**-9  # floats of both sizes


class Model(nn.Module):
    """Heads with dropout: constant encoders have none, and a replay has to draw the numbers of an eager step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.audio, self.text = (nn.Sequential(nn.Linear(n, 32), nn.Dropout(0.5), nn.Linear(32, 24)) for n in (12, 8))

    def forward(self, audio: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return self.audio(audio), self.text(text)


def batches(device: str) -> list[dict[str, Any]]:
    """A batch for each step."""
    torch.manual_seed(1)
    rows = [(torch.randn(PAIRS, 12), torch.randn(PAIRS, 8), torch.randint(9, (PAIRS,))) for _ in range(STEPS)]
    return [{"audio": {"audio": a.to(device)}, "text": {"text": t.to(device)}, "ids": i.to(device)} for a, t, i in rows]


def new(kind: type[Step], config: Config, device: str) -> Step:
    """A step, which learns a temperature on a GPU alone: on a CPU the losses take it for a number, as no graph may."""
    config = replace(config, learn_temperature=device == "cuda" and config.loss == "nt_xent")
    return kind(Model().to(device), config, Accelerator(cpu=device == "cpu", mixed_precision=config.precision))


def run_steps(step: Step, numbers: range, device: str) -> list[Tensor]:
    """Train as the trainer does, and return the losses, read at the end."""
    losses, given, unchanged = [], batches(device), batches(device)
    for number in numbers:
        step.set_learning_rate(RATES[number >= CHANGE])
        torch.manual_seed(100 + number)
        losses.append(step(given[number]))
    assert all(map(torch.equal, tree_leaves(given), tree_leaves(unchanged)))
    return losses


def trained(step: Step) -> list[Tensor]:
    """All that training changes: weights, what the loss learns, and Adam's state."""
    states = [state[name] for state in step.optimizer.state.values() for name in ("step", "exp_avg", "exp_avg_sq")]
    return [tensor.detach().cpu() for tensor in (*step.parameters, *states)]


def assert_same(found: list[Tensor], expected: list[Tensor], device: str) -> None:
    """To the bit on a CPU; on a GPU, where sums may be formed in another order, to a hundredth of an update."""
    rtol, atol = (0.0, 0.0) if device == "cpu" else (1e-4, RATES[1] / 100)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


SETTINGS: list[dict[str, Any]] = [
    {"loss": "nt_xent", "clip_norm": 0.5},
    {"loss": "triplet_weighted", "mask_same_clip": True},
    {"loss": "sup_con", "precision": "bf16", "clip_norm": 0.5},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings["loss"])
def test_a_captured_step_trains_as_an_eager_one(config: Config, device: str, settings: dict[str, Any]) -> None:
    config = replace(config, **settings)
    eager, captured_step = (new(kind, config, device) for kind in (Step, CapturedStep))
    expected = run_steps(eager, range(STEPS), device)
    losses = run_steps(captured_step, range(STEPS), device)
    assert len({float(loss) for loss in losses}) == STEPS
    assert_same(losses, expected, device)
    assert_same(trained(captured_step), trained(eager), device)
    assert all(group["capturable"] for group in captured_step.optimizer.param_groups)
    if device == "cpu":
        assert [graph.replays for graph in OperatorGraph.made] == [STEPS - captured.EAGER_STEPS]
        side, current = torch.cuda.Stream(), torch.cuda.current_stream()
        for stream, other in ((side, current), (current, side)):  # before and after every eager step
            assert stream.wait_stream.call_args_list == [call(other)] * captured.EAGER_STEPS  # type: ignore[attr-defined]


@pytest.mark.usefixtures("stand_in")
def test_where_the_capture_is_refused_all_steps_are_eager(
    config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(graph: OperatorGraph, stream: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    eager, refused = (new(kind, config, "cpu") for kind in (Step, CapturedStep))
    assert_same(run_steps(refused, range(STEPS), "cpu"), run_steps(eager, range(STEPS), "cpu"), "cpu")
    assert_same(trained(refused), trained(eager), "cpu")
    (warning,) = caplog.messages
    assert warning.endswith("which was refused: operation not permitted when stream is capturing")


@pytest.mark.parametrize("stop", [2, 6])
@pytest.mark.parametrize("first, second", list(itertools.product((Step, CapturedStep), repeat=2)))
def test_a_checkpoint_lies_between(
    config: Config, device: str, tmp_path: Path, stop: int, first: type[Step], second: type[Step]
) -> None:
    """Before the capture and after it, from an eager step to a captured one and back."""
    path, whole = tmp_path / "checkpoint.safetensors", new(Step, config, device)
    expected = run_steps(whole, range(STEPS), device)

    def weights(step: Step) -> dict[str, Tensor]:
        return dict(step.embed.state_dict()) | step.state()

    before, after = (new(kind, config, device) for kind in (first, second))
    losses = run_steps(before, range(stop), device)
    record = {"epoch": 1, "step": stop, "total": 0.0, "history": [], "seconds": 0.0, "scaler": None}
    record |= {"data": "", "frozen": "", "versions": {}}
    save_checkpoint(path, weights(before), before.optimizer, record)
    load_checkpoint(path, weights(after), after.optimizer)
    losses += run_steps(after, range(stop, STEPS), device)
    assert_same(losses, expected, device)
    assert_same(trained(after), trained(whole), device)


def test_an_interrupted_run_of_captured_steps_ends_as_if_it_had_not_been(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stand_in: list[OperatorGraph]
) -> None:
    config = replace(config, encoders="frozen", epochs=2, decay_every=1)
    eager = trainer.train(config, tmp_path / "eager", features=tmp_path / "features")
    monkeypatch.setattr(trainer, "new_step", CapturedStep)
    expected = trainer.train(config, tmp_path / "whole", features=tmp_path / "features")
    for mine, theirs in zip(expected["history"], eager["history"], strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)  # learning rates are float32 in the graph
    replay = OperatorGraph.replay

    def replay_once(graph: OperatorGraph) -> None:
        replay(graph)
        if graph.replays == 4:  # in the second epoch, of 5 steps
            raise Interrupted

    monkeypatch.setattr(OperatorGraph, "replay", replay_once)
    with pytest.raises(Interrupted):
        trainer.train(config, tmp_path / "run", features=tmp_path / "features")
    monkeypatch.setattr(OperatorGraph, "replay", replay)
    assert trainer.train(config, tmp_path / "run", features=tmp_path / "features") == expected
    theirs, ours = (load_file(tmp_path / run / "best.safetensors") for run in ("whole", "run"))
    assert all(torch.equal(theirs[name], value) for name, value in ours.items())
    assert [graph.replays for graph in stand_in] == [7, 4, 2]


def test_only_heads_on_one_gpu_are_captured(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def kind(module: nn.Module, config: Config, **changed: Any) -> str:
        gpu = {"device": torch.device("cuda", 0), "distributed_type": DistributedType.NO, "scaler": None}
        return str(captured.new_step(module, config, SimpleNamespace(**gpu | changed)))

    monkeypatch.setattr(captured, "CapturedStep", lambda *_: "captured")
    monkeypatch.setattr(captured, "Step", lambda *_: "eager")
    heads = Heads(4, 4, hidden_size=4, embedding_size=4)
    assert kind(heads, config) == "captured"
    assert kind(heads, config, device=torch.device("cpu")) == "eager"
    assert kind(heads, config, distributed_type=DistributedType.MULTI_GPU) == "eager"
    assert kind(heads, config, scaler=object()) == "eager"
    assert kind(heads, replace(config, queue=4)) == "eager"
    assert kind(heads, replace(config, gradient_cache_micro_batch=4)) == "eager"
    assert kind(Model(), config) == "eager"  # the inputs of encoders have many shapes


@pytest.mark.parametrize(
    "settings",
    [*SETTINGS[:2], *({"loss": loss, "learn_temperature": True} for loss in ("nt_xent", "sigmoid"))],
    ids=str,
)
def test_nothing_waits_in_a_step(
    config: Config, monkeypatch: pytest.MonkeyPatch, stand_in: list[OperatorGraph], settings: dict[str, Any]
) -> None:
    """On a GPU that is not there: gradients are found up to the parameters, which then get any of their size."""
    pytest.importorskip("triton")
    from fake_cuda import counted, run_backward

    def backward(value: Tensor) -> None:
        assert run_backward(value)
        for parameter in step.parameters:
            parameter.grad = torch.empty_like(parameter)

    def fused_adam(*lists: list[Tensor], lr: Tensor, **_: Any) -> None:
        assert {tensor.device.type for tensor in (lr, *itertools.chain(*lists))} == {"cuda"}
        updated.append(lr)

    updated: list[Tensor] = []
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(Accelerator, "device", torch.device("cuda"))
    monkeypatch.setattr(accelerator, "backward", backward)
    monkeypatch.setattr(nn.Module, "to", lambda module, _: module)
    monkeypatch.setattr(torch, "_fused_adam_", fused_adam)
    with FakeTensorMode(), torch.device("cuda"):
        module = Heads(12, 8, hidden_size=32, embedding_size=24)
        step = CapturedStep(module, replace(config, **settings), accelerator)
        batch = {"audio": {"audio": torch.empty(16, 12)}, "text": {"text": torch.empty(16, 8)}}
        ids = torch.empty(16, dtype=torch.int64)
        with counted() as launches:
            step.set_learning_rate(1e-4)
            step({**batch, "ids": ids})
    assert launches.operators["fill_"] == len(updated) == 1
    assert launches.kernels
