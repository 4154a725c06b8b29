"""Every private or version-dependent use of torch does on this torch what the package needs."""

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from crossmodal_losses.engine import compat


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own forward mode still uses it
def test_transformations_are_noticed() -> None:
    seen: list[bool] = []

    def look(x: Tensor) -> Tensor:
        seen.append(compat.is_transformed(x, None))
        return x.sin()

    x = torch.ones(3)
    look(x)
    torch.func.vmap(look)(x)
    torch.func.grad(lambda x: look(x).sum())(x)
    torch.func.jvp(look, (x,), (x,))
    with forward_ad.dual_level():
        look(x)
        look(forward_ad.make_dual(x, x))
    look(x.requires_grad_()).sum().backward()
    assert seen == [False, True, True, True, False, True, False]


def test_where_numbers_can_be_read() -> None:
    assert compat.can_look(torch.ones(2))
    assert not compat.can_look(torch.ones(2, device="meta"))
    with FakeTensorMode():
        assert not compat.can_look(torch.ones(2))


def test_batches_of_gradients_are_noticed() -> None:
    seen: list[bool] = []

    class Look(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, upstream: Tensor) -> Tensor:
            seen.append(compat.is_batched(upstream))
            return upstream

    x = torch.ones(3, requires_grad=True)
    y = Look.apply(x)  # type: ignore[no-untyped-call]
    torch.autograd.grad(y, x, torch.ones(3), retain_graph=True)
    torch.autograd.grad(y, x, torch.eye(3), is_grads_batched=True)
    assert seen == [False, True]
    assert not compat.is_batched(None)
    assert torch.func.vmap(lambda x: torch.tensor(compat.is_batched(x)))(torch.ones(2)).all()


def test_a_cpu_does_not_multiply_bfloat16_into_float32() -> None:
    x = torch.ones(2, 2, dtype=torch.bfloat16)
    assert not compat.multiplies_into_float32((x, x, None, None))


@pytest.mark.filterwarnings("default")  # the compiler's own imports warn of deprecations
def test_a_function_is_not_compiled() -> None:
    compiling: list[bool] = []

    @compat.not_compiled
    def look(x: Tensor) -> Tensor:
        compiling.append(torch.compiler.is_compiling())
        return x + 1

    torch._dynamo.reset()
    assert torch.compile(lambda x: look(x * 2), backend="eager")(torch.ones(())) == 3
    assert compiling == [False]


def test_autocast_is_disabled_and_comes_back() -> None:
    a = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with compat.without_autocast(a.device):
            assert (a @ a).dtype == torch.float32
        assert (a @ a).dtype == torch.bfloat16
    with compat.without_autocast(torch.device("meta")):
        pass


def test_normalisation_layers() -> None:
    assert isinstance(nn.BatchNorm1d(2), compat.NormalisationLayer)
    assert isinstance(nn.InstanceNorm2d(2), compat.NormalisationLayer)
    assert not isinstance(nn.LayerNorm(2), compat.NormalisationLayer)
