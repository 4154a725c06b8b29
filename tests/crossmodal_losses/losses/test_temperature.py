"""A temperature that is learned, or the caller's own."""

from typing import Any

import pytest
import torch
from comparisons import normal_pair
from torch import Tensor

from crossmodal_losses import LOSSES, NTXent, PairLoss, TripletMax, cosine_similarity, nt_xent

WITH_TEMPERATURE = ["nt_xent", "sup_con", "sigmoid"]


@pytest.mark.parametrize("name", WITH_TEMPERATURE)
@pytest.mark.parametrize("tile_size", [None, 2])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_temperature_of_the_caller_receives_its_gradient(
    name: str, tile_size: int | None, shape: tuple[int, ...]
) -> None:
    x, y = normal_pair(0, 5, 4)
    ids = torch.tensor([0, 1, 1, 2, 3])
    scale = torch.full(shape, 3.0, dtype=torch.float64, requires_grad=True)
    value = LOSSES[name](tile_size=tile_size)(x, y, ids, temperature=1 / scale)

    def of(temperature: float) -> Tensor:
        return LOSSES[name](temperature=temperature)(x, y, ids)

    torch.testing.assert_close(value, of(1 / 3))
    (gradient,) = torch.autograd.grad(value, scale)
    assert gradient.shape == shape
    expected = float((of(1 / 3.001) - of(1 / 2.999)).detach()) / 0.002
    assert float(gradient) == pytest.approx(expected, rel=1e-5)


def test_one_line_takes_the_scale_of_a_model() -> None:
    """open_clip and transformers keep the logarithm of the inverse temperature."""
    x, y = normal_pair(1, 6, 4)
    logit_scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    logits = logit_scale.exp() * cosine_similarity(x, y)
    labels = torch.arange(6)
    clip = (torch.nn.functional.cross_entropy(logits, labels) + torch.nn.functional.cross_entropy(logits.T, labels)) / 2
    ours = NTXent(direction_weights=(0.5, 0.5))(x, y, temperature=(-logit_scale).exp())
    torch.testing.assert_close(ours, clip)
    torch.testing.assert_close(torch.autograd.grad(ours, logit_scale), torch.autograd.grad(clip, logit_scale))
    one = NTXent(direction_weights=(1, 0))(x, y, temperature=(-logit_scale).exp())
    torch.testing.assert_close(one, torch.nn.functional.cross_entropy(logits, labels))


def test_a_parameter_of_the_caller() -> None:
    x, y = normal_pair(1, 6, 4)
    parameter = torch.nn.Parameter(torch.tensor(0.2, dtype=torch.float64))
    alike = parameter.detach().clone().requires_grad_()
    found, expected = (NTXent()(x, y, temperature=t) for t in (parameter, alike))
    torch.testing.assert_close(found, expected)
    for of_parameter, of_tensor in zip(
        torch.autograd.grad(found, (x, parameter)), torch.autograd.grad(expected, (x, alike)), strict=True
    ):
        torch.testing.assert_close(of_parameter, of_tensor)


def test_only_settings_that_a_call_may_have() -> None:
    x, y = normal_pair(0, 3, 4)
    with pytest.raises(TypeError, match="expected settings of a call of TripletMax: none; got temperature"):
        TripletMax()(x, y, temperature=0.1)
    with pytest.raises(TypeError, match="expected settings of a call of NTXent: temperature; got margin"):
        NTXent()(x, y, margin=0.1)
    with pytest.raises(ValueError, match=r"expected temperature to be one number, got a tensor of shape \[2\]"):
        NTXent()(x, y, temperature=torch.ones(2))
    assert torch.equal(NTXent()(x, y, temperature=None), NTXent()(x, y))


def test_state_of_version_0_1() -> None:
    """It had no dimension; FullyShardedDataParallel takes no such parameter."""
    loss: Any = NTXent(learn_temperature=True)
    assert loss.exponent_logit.shape == (1,)
    loss.load_state_dict({"exponent_logit": torch.tensor(0.25)})
    assert loss.exponent_logit.tolist() == [0.25]
    nested = torch.nn.Sequential(loss)
    nested.load_state_dict({"0.exponent_logit": torch.tensor(0.5)})
    assert loss.exponent_logit.tolist() == [0.5]


def test_a_function_takes_one_number_of_any_shape() -> None:
    S = torch.eye(3)
    values = [nt_xent(S, temperature=t) for t in (0.5, torch.tensor(0.5), torch.tensor([0.5]))]
    assert len({float(value) for value in values}) == 1


def loss_of(name: str, **settings: Any) -> PairLoss:
    return LOSSES[name](**settings)


@pytest.mark.parametrize("name", WITH_TEMPERATURE)
def test_a_learned_temperature_of_every_loss(name: str) -> None:
    x, y = normal_pair(0, 5, 4)
    learned, fixed = loss_of(name, learn_temperature=True, temperature=0.2), loss_of(name, temperature=0.2)
    for tile_size in (None, 2):
        learned.tile_size = tile_size
        value = learned(x, y)
        torch.testing.assert_close(value, fixed(x, y), rtol=1e-6, atol=1e-6)
        (gradient,) = torch.autograd.grad(value, list(learned.parameters()))
        assert gradient.shape == (1,)
        assert gradient.isfinite().all()
        assert gradient.any()


def test_a_state_without_a_learned_temperature() -> None:
    loss = NTXent()
    assert loss.load_state_dict({}).missing_keys == []
    with pytest.raises(RuntimeError, match=r"Missing key.*exponent_logit"):
        NTXent(learn_temperature=True).load_state_dict({})
