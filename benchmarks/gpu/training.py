"""The step of the paper's heads on features of frozen encoders, and the minutes of all 36 such runs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import normalize

from benchmarks.frozen import AUDIO, EMBEDDING, TEXT, frozen_experiments, steps_of_run
from benchmarks.gpu.report import Results
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.times import graphed, milliseconds
from crossmodal_losses import LOSSES
from reference_model.paper import SEEDS

# The goal for the steps of all runs, one after another.
GOAL_MINUTES = 15.0


def new_step(setting: Setting, name: str, B: int) -> Callable[[], None]:
    """Return a training step of heads of the paper's size, with Adam, on features that lie on the device."""
    heads = nn.ModuleList(
        nn.Sequential(nn.Linear(inputs, setting.hidden), nn.ReLU(), nn.Linear(setting.hidden, EMBEDDING))
        for inputs in (AUDIO, TEXT)
    ).to(setting.device)
    features = [torch.randn(B, inputs, device=setting.device) for inputs in (AUDIO, TEXT)]
    options: dict[str, Any] = {"fused": True, "capturable": True} if setting.is_cuda else {}
    optimiser, loss = torch.optim.Adam(heads.parameters(), lr=1e-4, **options), LOSSES[name]()

    def step() -> None:
        optimiser.zero_grad(set_to_none=False)
        loss(*(normalize(head(part)) for head, part in zip(heads, features, strict=True))).backward()
        optimiser.step()

    for _ in range(3):
        step()
    return step


def minutes(us: dict[tuple[int, str], float]) -> float:
    """Return the minutes of the steps of all runs, given the microseconds of a step of a batch size and a loss."""
    return len(SEEDS) * sum(
        steps_of_run(dataset, B) * us[B, name] / 60e6
        for (dataset, B), names in frozen_experiments().items()
        for name in names
    )


def training(results: Results, setting: Setting) -> None:
    """Time the step of every loss and batch size of the paper, eager and in a graph; add up those of all runs."""
    us: dict[str, dict[tuple[int, str], float]] = {"eager": {}, "graphed": {}}
    kinds = {(B, name) for (_, B), names in frozen_experiments().items() for name in names}
    for B, name in sorted(kinds):
        step = new_step(setting, name, B)
        calls = {"eager": step, "graphed": graphed(setting, step)}
        for label, ms in milliseconds(setting, calls).items():
            us[label][B, name] = 1e3 * ms
            results.add(f"us of a training step, B = {B}: {name}, {label}", round(1e3 * ms, 1))
    runs = len(SEEDS) * sum(map(len, frozen_experiments().values()))
    for label, of in us.items():
        goal = GOAL_MINUTES if setting.is_cuda and label == "graphed" else None
        results.add(f"minutes of the steps of {runs} runs, {label}; goal {GOAL_MINUTES}", round(minutes(of), 1), goal)
