"""NT-Xent: its digits, and its temperature, fixed, given as a tensor or learned."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from crossmodal_losses import NTXent, nt_xent


@pytest.mark.parametrize("temperature", [0.005, 0.01, 1.0])
def test_extreme_temperatures_keep_their_digits(temperature: float) -> None:
    """float32 against float64, at losses near 0 and at losses of hundreds; log(num / den + tiny) would saturate."""
    for diagonal, off in ((1.0, 0.25), (-1.0, 1.0)):
        S = torch.full((5, 5), off)
        S.fill_diagonal_(diagonal)
        S.requires_grad_()
        exact = S.detach().double().requires_grad_()
        value, expected = nt_xent(S, temperature=temperature), nt_xent(exact, temperature=temperature)
        floor = 1e-37  # below it float32 has no normal numbers
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=floor)
        (gradient,) = torch.autograd.grad(value, S)
        (expected_gradient,) = torch.autograd.grad(expected, exact)
        torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-4, atol=floor)
        assert (expected_gradient.abs() < floor).all() or (gradient != 0).all()


def test_learned_temperature_starts_where_told_and_stays_inside() -> None:
    loss = NTXent(temperature=0.07, learn_temperature=True)

    def temperature() -> float:
        assert isinstance(loss.temperature, Tensor)
        return float(loss.temperature.detach())

    assert temperature() == pytest.approx(0.07, rel=1e-5)
    assert NTXent(learn_temperature=False).state_dict() == {}
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    loss(x, -x).backward()
    assert loss.exponent_logit.grad is not None
    assert loss.exponent_logit.grad != 0
    for push in (-1e6, -30.0, 30.0, 1e6):
        with torch.no_grad():
            loss.exponent_logit.fill_(push)
        assert float(torch.tensor(0.01)) <= temperature() <= 1
        assert loss(x, x).isfinite()


def test_nt_xent_has_all_digits_where_the_positive_is_far_behind() -> None:
    S = torch.tensor([[0.0, 0.2], [0.2, 0.0]], dtype=torch.float64)  # 21 behind, at this temperature
    temperature = 0.2 / 21
    expected = 4 * (21 + math.log1p(math.exp(-21))) / 2
    assert float(nt_xent(S, temperature=temperature)) == pytest.approx(expected, rel=1e-13)


def test_gradient_of_a_temperature_tensor() -> None:
    S = torch.linspace(-1, 1, 9, dtype=torch.float64).reshape(3, 3).cos().requires_grad_()
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda s, t: nt_xent(s, temperature=t), (S, temperature))
    assert gradgradcheck(lambda s, t: nt_xent(s, temperature=t), (S, temperature))


def test_a_parameter_of_version_0_1_loads() -> None:
    """It was without dimensions."""
    loss = NTXent(learn_temperature=True)
    loss.load_state_dict({"exponent_logit": torch.tensor(0.5)})
    assert loss.exponent_logit.tolist() == [0.5]
