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
from reference_model import InputError
from reference_model.config import Config
from reference_model.paper import PROTOCOLS
from reference_model.training.step import Queue, Step


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


def test_a_queue_holds_the_last_pairs() -> None:
    """Batches that fit, that wrap around, and that are larger than the queue."""
    queue = Queue(5, 2, torch.device("cpu"))
    seen: list[int] = []
    assert queue.negatives() == {}
    for size in (2, 3, 4, 1, 7):
        ids = torch.arange(size) + len(seen)
        x = torch.stack([ids, -ids], 1).float().requires_grad_()
        queue.push(x, 2 * x, ids)
        seen += ids.tolist()
        held = queue.negatives()
        assert sorted(held["negative_ids_x"].tolist()) == seen[-5:]
        assert torch.equal(held["negative_ids_x"], held["negative_ids_y"])
        assert torch.equal(held["negatives_x"][:, 0], held["negative_ids_x"].float())
        assert torch.equal(held["negatives_y"], 2 * held["negatives_x"])
        assert not held["negatives_x"].requires_grad


class Fixed(nn.Module):
    """Stands for the dual encoder: parameters of the size of the tiny model's embeddings."""

    def __init__(self, pairs: int) -> None:
        super().__init__()
        self.x, self.y = (nn.Parameter(torch.randn(pairs, 256)) for _ in range(2))

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.x, self.y


def test_earlier_pairs_are_further_negatives(config: Config) -> None:
    """Captions of one clip are no negatives of each other, in the batch or in the queue."""
    torch.manual_seed(0)
    given, batch = Fixed(8), {"audio": {}, "text": {}, "ids": IDS}
    step = Step(given, replace(config, queue=5), Accelerator(cpu=True))
    before = [side.detach().clone() for side in (given.x, given.y)]
    torch.testing.assert_close(step(batch), losses.NTXent()(*before, IDS))
    now = [side.detach().clone() for side in (given.x, given.y)]
    ids = {"negative_ids_x": IDS[3:], "negative_ids_y": IDS[3:]}
    expected = losses.NTXent()(*now, IDS, negatives_x=before[0][3:], negatives_y=before[1][3:], **ids)
    torch.testing.assert_close(step(batch), expected)


@pytest.mark.parametrize("loss, bias", [("nt_xent", []), ("sigmoid", ["learned_bias"])])
def test_a_temperature_is_learned(config: Config, loss: str, bias: list[str]) -> None:
    given, batch = Given(len(IDS)), {"audio": {}, "text": {}, "ids": IDS}
    step = Step(given, replace(config, loss=loss, learn_temperature=True), Accelerator(cpu=True))
    before = {name: tensor.clone() for name, tensor in step.state().items()}
    assert [name.rpartition(".")[2] for name in before] == ["exponent_logit", *bias]
    step(batch)
    assert all(not torch.equal(tensor, before[name]) for name, tensor in step.state().items())


def test_a_loss_without_a_temperature_learns_none(config: Config) -> None:
    with pytest.raises(
        InputError, match="expected learn_temperature with a loss that has a temperature, got triplet_max"
    ):
        replace(config, loss="triplet_max", learn_temperature=True)
    with pytest.raises(InputError, match="expected a queue or a gradient cache, got both"):
        replace(config, queue=4, gradient_cache_micro_batch=4)
