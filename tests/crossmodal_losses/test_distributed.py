"""A loss of a batch on several processes has the value and gradients of one process, at 1 / W of the work."""

import copy
import os
import pickle
import random
import re
import signal
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from comparisons import Largest, each_loss, exact_pair, normal_batch, normal_pair, of_batch
from processes import exit_codes, run
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.traffic import Traffic
from crossmodal_losses import LOSSES, GatheredLoss, NTXent, PairLoss, RingLoss
from crossmodal_losses.checks import Batch

Wrapper = type[GatheredLoss] | type[RingLoss]
WRAPPERS: list[Wrapper] = [GatheredLoss, RingLoss]
LEARNED = "nt_xent, learned"

each_wrapper = pytest.mark.parametrize("wrapper", WRAPPERS)


def new_loss(name: str, **settings: Any) -> PairLoss:
    if name == LEARNED:
        return NTXent(learn_temperature=True, **settings).double()
    return LOSSES[name](**settings)


def part(sizes: list[int]) -> slice:
    """Return the rows of this rank."""
    start = sum(sizes[: dist.get_rank()])
    return slice(start, start + sizes[dist.get_rank()])


def uneven(total: int, draw: random.Random) -> list[int]:
    """Share some rows among the ranks: to some perhaps none."""
    cuts = sorted(draw.randint(0, total) for _ in range(dist.get_world_size() - 1))
    return [end - start for start, end in pairwise([0, *cuts, total])]


def local_part(value: Tensor | None, own: slice) -> Tensor | None:
    """Return the rows of this rank; sometimes None where it has none."""
    if value is None or (own.start == own.stop and dist.get_rank() % 2):
        return None
    return value[own].detach().clone().requires_grad_(value.requires_grad)


def assert_equals_one_process(
    wrapper: Wrapper, name: str, settings: dict[str, Any], batch: Batch, sizes: list[list[int]]
) -> None:
    """Sizes are the numbers of pairs, of negatives_x and of negatives_y of every rank."""
    W, reduction = dist.get_world_size(), settings["reduction"]
    own = [part(of_ranks) for of_ranks in sizes]
    own_of = [own[0], own[0], own[1], own[2], own[0], own[1], own[2]]
    whole = new_loss(name, **settings)
    leaves = [value for value in (*batch.embeddings, *whole.parameters()) if value is not None and value.requires_grad]
    value = of_batch(whole, batch)
    each = reduction == "none"
    upstream = torch.linspace(0.5, 2, value.numel(), dtype=value.dtype).reshape(value.shape)
    expected = torch.autograd.grad(value, leaves, upstream, materialize_grads=True)

    loss = wrapper(new_loss(name, **settings))
    local = Batch(*(local_part(v, rows) for v, rows in zip(batch, own_of, strict=True)))  # type: ignore[arg-type]
    found = of_batch(loss, local)
    message = f"{wrapper.__name__}, {name}, {settings}, {sizes}: {{}}"
    close: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12, "msg": message.format}
    torch.testing.assert_close(found, value[own[0]] if each else value, **close)
    found.backward(upstream[own[0]] if each else upstream)
    # For "none" every rank returns the terms of its rows; otherwise all return one value, and DDP takes the mean of W.
    copies, exact = 1 if each else W, iter(expected)
    for v, of_whole, rows in zip(local.embeddings, batch.embeddings, own_of[:4], strict=True):
        if of_whole is None or not of_whole.requires_grad:
            continue
        expected_rows = next(exact)[rows]
        if v is not None:
            gradient = torch.zeros_like(v) if v.grad is None else v.grad
            torch.testing.assert_close(gradient / copies, expected_rows, **close)
    for parameter, of_parameter in zip(loss.parameters(), exact, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad * W / copies, of_parameter, **close)
    if not each:
        everyones = [torch.empty_like(found) for _ in range(W)]
        dist.all_gather(everyones, found.detach())
        assert all(torch.equal(other, found) for other in everyones), message


def every_loss() -> None:
    """Every loss x gathered or ring x ids or none x reduction, on uneven rows and all kinds of tiles.

    There are candidates without a partner on some ranks, on all, or on none; weights of the directions; and inputs that
    need no gradient.
    """
    W = dist.get_world_size()
    draw = random.Random(W)
    kinds = product(WRAPPERS, [*LOSSES, LEARNED], ("mean", "sum", "none"), (False, True))
    for wrapper, name, reduction, with_ids in kinds:
        exact = draw.random() < 0.5
        sizes = [draw.randint(1, 7) for _ in range(W)] if draw.random() < 0.7 else [draw.randint(1, 5)] * W
        B = sum(sizes)
        M, N = (draw.choice([0, 0, 1, 5, 9]) for _ in range(2))
        seed, rows = draw.randrange(2**31), B + max(M, N)
        x, y = map(Tensor.detach, exact_pair(seed, rows) if exact else normal_pair(seed, rows, 4))
        generator = torch.Generator().manual_seed(seed)
        ids = [torch.randint(B // 2 + 1, (count,), generator=generator) if with_ids else None for count in (B, M, N)]
        parts = [x[:B], y[:B], x[B : B + M], y[B : B + N]]
        wanted = (
            [True] * 4 if draw.random() < 0.7 else draw.choice([[False, False, True, True], [True, False, False, True]])
        )
        if M == N == 0 and not any(wanted[:2]):
            wanted = [True] * 4
        parts = [value.clone().requires_grad_(want) for value, want in zip(parts, wanted, strict=True)]
        settings: dict[str, Any] = {"reduction": reduction, "tile_size": draw.choice([1, 2, 3, 100, None])}
        if name != "sigmoid":
            settings["direction_weights"] = draw.choice([(1, 1), (1, 1), (1, 0), (0, 1), (0.5, 2)])
        batch = Batch(*parts, *ids)
        assert_equals_one_process(wrapper, name, settings, batch, [sizes, uneven(M, draw), uneven(N, draw)])


@pytest.mark.parametrize("W", [1, 2, 3])
def test_every_loss_equals_that_of_one_process(W: int) -> None:
    run(W, every_loss)


def awkward_inputs() -> None:
    """Half precision, autocast, a NaN, one or no input that requires a gradient, a second backward pass."""
    rank, own = dist.get_rank(), part([3, 5])
    x, y = (e.detach().float() for e in normal_pair(3, 8, 6))
    for wrapper, name in product(WRAPPERS, LOSSES):
        whole, loss = LOSSES[name](), wrapper(LOSSES[name](tile_size=2))
        expected = torch.autograd.grad(whole(a := x.clone().requires_grad_(), b := y.clone().requires_grad_()), (a, b))
        for dtype, tolerance in ((torch.bfloat16, 3e-2), (torch.float32, 1e-5)):
            held = [e[own].to(dtype).requires_grad_() for e in (x, y)]
            with torch.autocast("cpu", enabled=dtype == torch.float32):
                value = loss(*held)
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, whole(x.to(dtype), y.to(dtype)), rtol=1e-5, atol=1e-6)
            for _ in range(2):
                gradients = torch.autograd.grad(value, held, retain_graph=True)
                for gradient, of_whole in zip(gradients, expected, strict=True):
                    assert gradient.dtype == dtype
                    scale = float(of_whole.abs().max())
                    torch.testing.assert_close(
                        gradient.float() / 2, of_whole[own], rtol=tolerance, atol=tolerance * scale
                    )
        with pytest.raises(RuntimeError, match="expected one derivative of a loss in tiles, got a second"):
            torch.autograd.grad(loss(*held), held[0], create_graph=True)[0].sum().backward()
        for needs_grad in ((True, False), (False, True), (False, False)):
            held = [e[own].clone().requires_grad_(needs) for e, needs in zip((x, y), needs_grad, strict=True)]
            value = loss(*held)
            torch.testing.assert_close(value, whole(x, y), rtol=1e-5, atol=1e-6)
            assert value.requires_grad == any(needs_grad)
            if any(needs_grad):
                value.backward()
            for e, needs, of_whole in zip(held, needs_grad, expected, strict=True):
                assert (e.grad is not None) == needs
                if e.grad is not None:
                    torch.testing.assert_close(e.grad / 2, of_whole[own], rtol=1e-5, atol=1e-6)
        with torch.no_grad():
            torch.testing.assert_close(loss(x[own], y[own]), whole(x, y), rtol=1e-5, atol=1e-6)
        poisoned = x[own].clone()
        if rank == 1:
            poisoned[2, 0] = torch.nan
        assert loss(poisoned, y[own]).isnan()
        for side in ("negatives_x", "negatives_y"):
            assert loss(x[own], y[own], **{side: poisoned.flip(0)[: 2 * rank + 1]}).isnan(), (wrapper, name, side)


def temperature_of_the_caller() -> None:
    """It receives its gradient, with candidates that only one rank has."""
    rank, own = dist.get_rank(), part([3, 5])
    batch = normal_batch(5, 8, 0, 4, 6)
    for wrapper, name in product(WRAPPERS, ("nt_xent", "sup_con", "sigmoid")):
        values: list[Tensor] = []
        found: list[Tensor] = []
        for loss in (LOSSES[name](), wrapper(LOSSES[name](tile_size=2))):
            whole = isinstance(loss, PairLoss)
            t = torch.tensor([0.2], dtype=torch.float64, requires_grad=True)
            x, y = (e.detach() if whole else e.detach()[own] for e in batch[:2])
            negatives = batch.negatives_y if whole or rank == 0 else None
            values.append(loss(x, y, negatives_y=None if negatives is None else negatives.detach(), temperature=t))
            found += torch.autograd.grad(values[-1], t)
        torch.testing.assert_close(values[1], values[0])
        torch.testing.assert_close(found[1], found[0])


class Encoders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.f, self.g = nn.Linear(5, 4).double(), nn.Linear(3, 4).double()

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return self.f(a), self.g(b)


def with_ddp() -> None:
    """Gradient accumulation and a learned temperature, with the loss inside or outside of DDP; compiled or not."""
    sizes = [2, 4, 1][: dist.get_world_size()]
    B, own = sum(sizes), part(sizes)
    generator = torch.Generator().manual_seed(2)
    batches = [
        (torch.randn(B, 5, generator=generator).double(), torch.randn(B, 3, generator=generator).double())
        for _ in range(2)
    ]

    encoders, whole = Encoders(), new_loss(LEARNED)
    for a, b in batches:
        whole(*encoders(a, b)).backward()
    expected = [parameter.grad for parameter in (*encoders.parameters(), *whole.parameters())]

    class WithLoss(nn.Module):
        def __init__(self, loss: nn.Module) -> None:
            super().__init__()
            self.encoders, self.loss = Encoders(), loss

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.loss(*self.encoders(a, b))  # type: ignore[no-any-return]

    for wrapper, (inside, compiled) in product(WRAPPERS, ((True, False), (False, False), (True, True))):
        loss = wrapper(new_loss(LEARNED, tile_size=3))
        model = WithLoss(loss) if inside else Encoders()
        ddp = DistributedDataParallel(model)
        called = torch.compile(ddp, backend="aot_eager") if compiled else ddp
        for step, (a, b) in enumerate(batches):
            with ddp.no_sync() if step == 0 else nullcontext():
                result = called(a[own], b[own])
                value = result if inside else loss(*result)
                value.backward()
        parameters = [*model.parameters()] if inside else [*model.parameters(), *loss.parameters()]
        found = [parameter.grad for parameter in parameters]
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def subgroups() -> None:
    outer, middle = dist.new_group([0, 2]), dist.new_group([1])
    x, y = (e.detach() for e in normal_pair(3, 6, 4))
    own = slice(0, 2) if dist.get_rank() == 0 else slice(2, 6)
    for wrapper in WRAPPERS:
        if dist.get_rank() == 1:
            with pytest.raises(ValueError, match="expected a process of the group, got one that is not in it"):
                wrapper(NTXent(), outer)(x, y)
            torch.testing.assert_close(wrapper(NTXent(), middle)(x, y), NTXent()(x, y))
        else:
            a = x[own].clone().requires_grad_()
            value = wrapper(NTXent(), outer)(a, y[own])
            torch.testing.assert_close(value, NTXent()(x, y))
            gradient = torch.autograd.grad(value, a)[0]
            expected = torch.autograd.grad(NTXent()(u := x.clone().requires_grad_(), y), u)[0]
            torch.testing.assert_close(gradient / 2, expected[own])


def refusals() -> None:
    """Every rank raises the same error, and the group works afterwards."""
    rank = dist.get_rank()
    x = torch.eye(4)
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: (x[:, : 4 - rank], x[:, : 4 - rank]), "expected one D on all ranks, got 4 on rank 0 and 3 on 1"),
        (
            lambda: (x, x.to([torch.float32, torch.float64][rank])),
            r"expected one dtypes of x and y on all ranks, got \(torch.float32, torch.float32\) on rank 0 and "
            r"\(torch.float32, torch.float64\) on 1",
        ),
        (lambda: (x.to(["cpu", "meta"][rank]),) * 2, "rank 1: expected x and y to hold numbers, got .* device meta"),
        (
            lambda: (x, x, [None, torch.arange(4)][rank]),
            r"expected one ids \(given or None\) on all ranks, got False on rank 0 and True on 1",
        ),
        (lambda: (x[: 4 * (1 - rank)],) * 2, r"rank 1: expected x of shape \[B, D\] with B >= 1 .*, got \[0, 4\]"),
        (lambda: (x.clone().requires_grad_(rank == 1), x), "expected one wish for gradients on all ranks"),
    ]
    for wrapper in WRAPPERS:
        for arguments, message in cases:
            with pytest.raises(ValueError, match=message):
                wrapper(NTXent())(*arguments())
        with pytest.raises(TypeError, match="rank 1: expected x to be of a floating dtype"):
            wrapper(NTXent())(*((x, x) if rank == 0 else (x.long(), x)))
        with pytest.raises(
            ValueError, match=r"expected one loss on all ranks, got .*0.07.* on rank 0 and .*0.5.* on 1"
        ):
            wrapper(NTXent(temperature=[0.07, 0.5][rank]))(x, x)
        for given, message in (
            ({"negatives_y": x.double() if rank else x}, "rank 1: expected negatives_y of the dtype of y"),
            (
                {"negatives_x": x, "negative_ids_x": torch.arange(4) if rank else None},
                "expected one ids of negatives_x",
            ),
            ({"negatives_x": x.clone().requires_grad_(rank == 0)}, "expected one wish for gradients of negatives_x"),
            ({"negative_ids_y": torch.arange(4) if rank else None}, "rank 1: expected negative_ids_y with negatives_y"),
            ({"negatives_y": x[:, : 4 - rank]}, r"rank 1: expected negatives_y of shape \[any, 4\]"),
            ({"temperature": [0.1, 0.2][rank]}, "expected one loss on all ranks"),
        ):
            with pytest.raises(ValueError, match=message):
                wrapper(NTXent())(x, x, torch.arange(4), **given)
        with pytest.raises(
            TypeError, match=r"rank \d: expected settings of a call of TripletMax: none; got temperature"
        ):
            wrapper(LOSSES["triplet_max"]())(x, x, temperature=0.1)
        wrapper(NTXent())(x, x)
    with pytest.raises(
        ValueError, match=r"expected one loss on all ranks, got .*GatheredLoss.* on rank 0 and .*RingLoss"
    ):
        WRAPPERS[rank](NTXent())(x, x)


@pytest.mark.parametrize(
    ("W", "work"),
    [(2, awkward_inputs), (2, temperature_of_the_caller), (3, with_ddp), (3, subgroups), (2, refusals)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_on_ranks(W: int, work: Callable[[], None]) -> None:
    run(W, work)


def costs() -> None:
    W = dist.get_world_size()
    B, D, t = 12 * W, 101, 12  # 12 D is more than what the ranks say of their arguments, in bytes
    own = part([12] * W)
    x, _ = (e.detach() for e in normal_pair(4, B, D))
    y = -x  # every hinge is above 0

    def cost(loss: Callable[[Tensor, Tensor], Tensor], rows: slice, backward: bool) -> tuple[float, Traffic]:
        a, b = (e[rows].clone().requires_grad_(backward) for e in (x, y))
        with FlopCounterMode(display=False) as flops, Traffic(12 * D) as sent:
            value = loss(a, b)
            if backward:
                value.backward()
        return float(flops.get_total_flops()), sent

    for name, backward in product(LOSSES, (False, True)):
        loss = LOSSES[name](tile_size=t)
        whole, _ = cost(loss, slice(0, B), backward)
        assert whole > 0
        for wrapper in WRAPPERS:
            share, sent = cost(wrapper(loss), own, backward)
            assert share == whole / W, (wrapper, name)
            blocks, others = sent.bytes / (8 * B * D), sent.other_bytes / (8 * B)
            assert (W - 1) / W <= blocks <= (2 if backward else 1), (wrapper, name, blocks)
            assert others <= 20, (wrapper, name, others)

    for wrapper in WRAPPERS:
        sent_by = {}
        for wanted in (False, True):

            def with_negatives(loss: nn.Module, rows: slice, wanted: bool = wanted) -> tuple[float, Traffic]:
                more = x[rows].flip(0).requires_grad_(wanted)
                return cost(lambda a, b: loss(a, b, negatives_y=more), rows, True)

            whole, _ = with_negatives(NTXent(tile_size=t), slice(0, B))
            share, sent = with_negatives(wrapper(NTXent(tile_size=t)), own)
            assert share == whole / W, (wrapper, wanted)
            sent_by[wanted] = sent.bytes
        # Sums of gradients that nobody wants are not sent: of B x D, what leaves a process.
        assert sent_by[True] - sent_by[False] == pytest.approx((W - 1) / W * 8 * B * D, rel=0.5), wrapper


@pytest.mark.parametrize("W", [2, 3])
def test_the_work_is_divided_and_embeddings_are_sent_twice(W: int) -> None:
    run(W, costs)


def memory_of_a_rank() -> None:
    """No tensor is larger than the columns and their candidates without a partner: all of them, or one rank's."""
    W = dist.get_world_size()
    rows, D = 12, 150
    x, y = (e.detach() for e in normal_pair(4, rows * W, D))
    own = part([rows] * W)
    for wrapper, name in product(WRAPPERS, LOSSES):
        a, b = x[own].clone().requires_grad_(), y[own].clone().requires_grad_()
        negatives = a.detach().flip(0).requires_grad_(), b.detach().flip(0).requires_grad_()
        with Largest() as seen:
            wrapper(LOSSES[name](tile_size=8))(a, b, negatives_x=negatives[0], negatives_y=negatives[1]).backward()
        assert seen.entries == 2 * rows * D * (W if wrapper is GatheredLoss else 1), (wrapper, name, seen.entries)


@pytest.mark.parametrize("W", [2, 3])
def test_the_memory_of_the_ring_does_not_grow_with_the_ranks(W: int) -> None:
    run(W, memory_of_a_rank)


def dies(wrapper: Wrapper, folder: Path) -> None:
    """Rank 1 is killed between two steps; rank 0 must raise, not wait for ever."""
    x = torch.eye(4, requires_grad=True)
    loss = wrapper(NTXent())
    loss(x, x).backward()
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        loss(x, x).backward()
    except RuntimeError as error:
        (folder / "message").write_text(str(error), encoding="utf-8")
        os._exit(1)  # a normal exit may abort in torch, because the group is broken


@each_wrapper
def test_a_killed_rank_ends_the_job(wrapper: Wrapper, tmp_path: Path) -> None:
    codes = exit_codes(2, dies, wrapper, tmp_path)
    assert codes == [1, -signal.SIGKILL]
    assert re.search("Connection (closed|reset) by peer", (tmp_path / "message").read_text(encoding="utf-8"))


@each_wrapper
@each_loss
def test_without_a_process_group_it_is_the_plain_loss(name: str, wrapper: Wrapper) -> None:
    assert not dist.is_initialized()
    x, y = normal_pair(1, 6, 4)
    loss, (more, ids) = LOSSES[name](), (y.flip(0)[:2], torch.tensor([0, 5]))
    assert torch.equal(wrapper(loss)(x, y), loss(x, y))
    for given in ({"negatives_x": more}, {"negatives_y": more, "negative_ids_y": ids}):
        expected = loss(x, y, torch.arange(6), **given)
        assert torch.equal(wrapper(loss)(x, y, torch.arange(6), **given), expected)
        assert not torch.equal(loss(x, y), expected)


@each_wrapper
def test_only_losses_of_pairs_are_wrapped(wrapper: Wrapper) -> None:
    with pytest.raises(TypeError, match="expected loss to be a PairLoss, such as NTXent\\(\\), got CrossEntropyLoss"):
        wrapper(nn.CrossEntropyLoss())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected process_group to be a process group or None, got str"):
        wrapper(NTXent(), "gloo")  # type: ignore[arg-type]


@each_wrapper
def test_copies_of_a_wrapper(wrapper: Wrapper) -> None:
    """A copy works with the same process group; what is pickled has none; averages of weights copy, too."""
    group = dist.ProcessGroup(0, 1)  # type: ignore[call-arg]
    loss = wrapper(NTXent(learn_temperature=True), group)
    copied, again = copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))
    assert copied.process_group is group
    assert again.process_group is None
    assert loss.process_group is group
    model = nn.Sequential(nn.Linear(2, 2), loss)
    averaged: Any = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    averaged.update_parameters(model)
    for found in (copied, again, averaged.module[1]):
        assert type(found) is wrapper
        torch.testing.assert_close(found.state_dict(), loss.state_dict())
        assert found.loss.exponent_logit is not loss.loss.exponent_logit


def test_a_learned_temperature_is_a_parameter_of_the_wrapper() -> None:
    loss = GatheredLoss(NTXent(learn_temperature=True))
    assert [name for name, _ in loss.named_parameters()] == ["loss.exponent_logit"]
