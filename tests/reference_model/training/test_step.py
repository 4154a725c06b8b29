"""One training step: the loss of the protocol, Adam's update, and clipping, without an encoder."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

import crossmodal_losses as losses
from crossmodal_losses import cosine_similarity, nt_xent
from reference_model.config import Config
from reference_model.paper import PROTOCOLS
from reference_model.training.step import Step


class Given(nn.Module):
    """Stands for the dual encoder: its embeddings are parameters."""

    def __init__(self, pairs: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.x, self.y = (nn.Parameter(torch.randn(pairs, 16)) for _ in range(2))

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.x, self.y


IDS = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4])


@pytest.mark.parametrize(
    "loss, of_paper, of_released",
    [
        ("triplet_sum", losses.triplet_sum, partial(losses.triplet_sum, ids=IDS)),
        ("triplet_max", losses.triplet_max, partial(losses.triplet_max, ids=IDS)),
        ("triplet_weighted", losses.triplet_weighted, partial(losses.triplet_weighted_mined, ids=IDS)),
        ("nt_xent", nt_xent, lambda S: nt_xent(S) / 2),
    ],
)
def test_the_loss_is_as_the_protocol_says(config: Config, loss: str, of_paper: Any, of_released: Any) -> None:
    given, batch = Given(len(IDS)), {"audio": {}, "text": {}, "ids": IDS}
    S = cosine_similarity(given.x, given.y).detach()
    config = replace(config, loss=loss)
    paper = Step(given, config, Accelerator(cpu=True))(batch)
    released = Step(Given(len(IDS)), replace(config, **PROTOCOLS["released"]), Accelerator(cpu=True))(batch)
    torch.testing.assert_close(paper, of_paper(S))
    torch.testing.assert_close(released, of_released(S))
    assert not torch.isclose(paper, released)


@pytest.mark.parametrize("loss", ["nt_xent", "triplet_weighted"])
def test_directions_have_weights(config: Config, loss: str) -> None:
    """The anchors x are audio, and y text."""
    given, batch = Given(len(IDS)), {"audio": {}, "text": {}, "ids": IDS}
    S = cosine_similarity(given.x, given.y).detach()
    config = replace(config, loss=loss, direction_weights=(0.25, 3.0))
    found = Step(given, config, Accelerator(cpu=True))(batch)
    torch.testing.assert_close(found, getattr(losses, loss)(S, direction_weights=(0.25, 3.0)))
    assert not torch.isclose(found, getattr(losses, loss)(S, direction_weights=(3.0, 0.25)))


def test_the_update_is_adams_with_its_usual_settings(config: Config) -> None:
    """Section 3.2 says Adam, and nothing about its settings: betas 0.9 and 0.999, eps 1e-8, no weight decay."""
    batch = {"audio": {}, "text": {}, "ids": torch.arange(4)}
    step, given = Step(module := Given(4), replace(config, learning_rate=1e-2), Accelerator(cpu=True)), Given(4)
    assert type(step.optimizer) is torch.optim.Adam
    (group,) = step.optimizer.param_groups
    settings = [group[name] for name in ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize")]
    assert settings == [1e-2, (0.9, 0.999), 1e-8, 0, False, False]
    # By hand, three steps long.
    weights = [given.x.detach().clone(), given.y.detach().clone()]
    mean, square = [torch.zeros(4, 16) for _ in weights], [torch.zeros(4, 16) for _ in weights]
    for t in (1, 2, 3):
        step(batch)
        for weight in weights:
            weight.requires_grad_()
        gradients = torch.autograd.grad(nt_xent(cosine_similarity(*weights)), weights)
        for k, gradient in enumerate(gradients):
            mean[k] = 0.9 * mean[k] + 0.1 * gradient
            square[k] = 0.999 * square[k] + 0.001 * gradient**2
            update = mean[k] / (1 - 0.9**t) / ((square[k] / (1 - 0.999**t)).sqrt() + 1e-8)
            weights[k] = (weights[k] - 1e-2 * update).detach()
    torch.testing.assert_close([module.x.detach(), module.y.detach()], weights, rtol=1e-4, atol=1e-5)


def test_large_gradients_are_clipped_before_the_update(config: Config) -> None:
    def gradient_norm(**settings: Any) -> float:
        step = Step(Given(8), replace(config, loss="triplet_sum", **settings), Accelerator(cpu=True))
        gradients: list[Tensor] = []
        step.optimizer.register_step_pre_hook(
            lambda *_: gradients.extend(p.grad.flatten() for p in step.parameters if p.grad is not None)
        )
        step({"audio": {}, "text": {}, "ids": torch.arange(8)})
        return float(torch.cat(gradients).norm())

    unclipped = gradient_norm()
    assert unclipped > 0.5
    assert gradient_norm(clip_norm=0.5) == pytest.approx(0.5, rel=1e-4)
    assert gradient_norm(clip_norm=2 * unclipped) == pytest.approx(unclipped)
