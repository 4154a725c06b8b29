"""What the losses ask of a CUDA device, on machines without one: launches are counted, kernels compiled as launched."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from comparisons import each_loss
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from benchmarks.gpu.launches import DENSE, DTYPES, LAUNCHES, MAKE, TILE, TILED, D, of_small_batch
from crossmodal_losses import LOSSES, NTXent, PairLoss, SupCon, TripletMax, TripletSum
from crossmodal_losses.checks import REDUCTIONS
from crossmodal_losses.engine import operands, problem

pytest.importorskip("triton")

import triton
import triton.language as tl
from fake_cuda import Compiled, Launch, Launches, Pointer, compile_launches, counted, run_backward

CAPABILITIES = 80, 90, 100


def launched(
    make: Callable[..., PairLoss], B: int, dtype: torch.dtype, ids: bool, *negatives: int, **settings: Any
) -> Launches:
    """What forward and backward launch, for B pairs and for candidates without a partner, of x and of y."""
    with FakeTensorMode():
        with torch.device("cuda"):
            x, y, *others = (torch.empty(n, D, dtype=dtype, requires_grad=True) for n in (B, B, *negatives))
            all_ids: list[Tensor] = [torch.empty(n, dtype=torch.int64) for n in (B, *negatives)]
            loss = make(**settings)
        names = "negatives_x", "negatives_y", "negative_ids_x", "negative_ids_y"
        of_pairs, *of_others = all_ids if ids else [None] * (1 + len(negatives))
        further = {name: value for name, value in zip(names, [*others, *of_others], strict=False) if value is not None}
        inputs = [x, y, *others, *loss.parameters()]
        with counted() as launches:
            gradients = run_backward(loss(x, y, of_pairs, **further))
    of_inputs = [(value.shape, value.dtype) for value in inputs]
    assert sorted(map(str, of_inputs)) == sorted(str((grad.shape, grad.dtype)) for grad in gradients)
    assert all(grad.is_cuda for grad in gradients)
    return launches


@pytest.mark.parametrize("name", MAKE)
def test_number_of_launches(name: str) -> None:
    found = tuple(
        tuple(launched(MAKE[name], B, dtype, ids, tile_size=TILE).total for ids in (False, True))
        for B in (DENSE, TILED)
        for dtype in DTYPES
    )
    assert found == LAUNCHES[name]


@pytest.mark.parametrize("name", MAKE)
def test_number_of_launches_of_a_small_batch(name: str) -> None:
    for B, dtype, ids in ((1, torch.float32, False), (32, torch.float16, True), (128, torch.bfloat16, False)):
        launches = launched(MAKE[name], B, dtype, ids)
        kernels = [launch.kernel for launch in launches.kernels]
        assert kernels == ["scale_rows", "pair_losses", "finish"]
        assert launches.operators["mm"] == launches.operators["bmm"] == launches.operators["ones_like"] == 1
        assert launches.total == of_small_batch(name)
        if name in LOSSES:
            for reduction in REDUCTIONS:
                of_reduction = launched(MAKE[name], B, dtype, ids, reduction=reduction)
                assert of_reduction.total == of_small_batch(name, reduction)
    assert launched(MAKE[name], 129, dtype, ids).total > 40
    assert launched(MAKE[name], 128, dtype, ids, tile_size=128).total > 40


@pytest.mark.parametrize("name", ["triplet_sum", "triplet_max", "nt_xent"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_are_scaled_once_for_a_pass(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many divisions for many tiles as for few, while the rows take no more memory than they may."""
    found = {tile: launched(MAKE[name], 2049, dtype, False, tile_size=tile).operators["div"] for tile in (2048, 512)}
    assert len(set(found.values())) == 1
    monkeypatch.setitem(operands.SCALED_AT_ONCE, "cuda", 2049 * D * dtype.itemsize)
    assert launched(MAKE[name], 2049, dtype, False, tile_size=512).operators["div"] == found[512]
    monkeypatch.setitem(operands.SCALED_AT_ONCE, "cuda", 2049 * D * dtype.itemsize - 1)
    assert launched(MAKE[name], 2049, dtype, False, tile_size=512).operators["div"] > 2 * found[512]


def test_ids_of_large_batches_are_numbered() -> None:
    """The kernels get numbers of 32 bits; of the candidates without a partner, too, whose rows count."""
    for B, N, dtype in ((12288, 4095, torch.int64), (12288, 4096, torch.int32)):
        launches = launched(TripletMax, B, torch.bfloat16, True, 0, N)
        tiles = [dict(launch.arguments) for launch in launches.kernels if launch.kernel == "tile"]
        assert {arguments[name].dtype for arguments in tiles for name in ("ids_x", "ids_y")} == {dtype}


@each_loss
@pytest.mark.parametrize("dtype, ids", [(torch.float16, True), (torch.float64, False)])
def test_nothing_waits(name: str, dtype: torch.dtype, ids: bool) -> None:
    """With candidates without a partner, for every reduction, and in float64, which has no kernels."""
    for reduction, tile_size in (("mean", 64), *((reduction, 32) for reduction in REDUCTIONS)):
        launches = launched(LOSSES[name], 50, dtype, ids, 20, 30, reduction=reduction, tile_size=tile_size)
        assert launches.operators
        assert dtype != torch.float64 or not launches.kernels


@each_loss
def test_half_precision_is_multiplied_as_it_is(name: str) -> None:
    """All of S, and in tiles; beside many candidates a few pairs, too, in one tile for each kind of candidates."""
    for dtype in (torch.float16, torch.bfloat16):
        for tile_size in (None, 100):
            assert launched(LOSSES[name], 200, dtype, False, tile_size=tile_size).products == {dtype}
        of_queue = launched(LOSSES[name], 64, dtype, False, 1, 8000)
        assert of_queue.products == {dtype}
        assert of_queue.operators["mm"] in (3, 6)
    assert torch.float32 in launched(NTXent, 64, dtype, False, 1, 100).products


def test_gradients_of_hardest_negatives_are_gathered_at_once() -> None:
    """Of all dimensions, in 2 launches for x and 2 for y."""
    for dtype in (torch.float32, torch.bfloat16):
        assert launched(TripletMax, 32768, dtype, False).operators["_embedding_bag_forward_only"] == 4


def test_hardest_negatives_of_large_batches_are_gathered_where_all_of_S_is_kept() -> None:
    for B, sums in ((1024, 0), (1025, 4)):
        launches = launched(TripletMax, B, torch.float32, False, tile_size=B)
        assert launches.operators["_embedding_bag_forward_only"] == sums
        assert not [launch for launch in launches.kernels if launch.kernel == "tile"]


def test_products_are_kept_up_to_the_memory_of_a_tile() -> None:
    """They are made once and not twice, in tiles of 4,096 x 16,384; of a few rows 64 are in memory."""
    for B, products in ((8192, 2), (8193, 3 + 3)):
        assert launched(NTXent, B, torch.bfloat16, False).operators["mm"] == products
    for N, products in ((1_000_000, 2 + 62), (1_100_000, 2 * (2 + 68))):
        assert launched(NTXent, 16, torch.bfloat16, False, 1, N).operators["mm"] == products


@each_loss
def test_ids_may_be_a_column_of_a_table(name: str) -> None:
    with FakeTensorMode():
        with torch.device("cuda"):
            x, y, negatives = (torch.empty(n, D, requires_grad=True) for n in (50, 50, 30))
            ids, negative_ids = (torch.empty(n, 2, dtype=torch.int64)[:, 0] for n in (50, 30))
        with counted() as launches:
            run_backward(LOSSES[name](tile_size=32)(x, y, ids, negatives_y=negatives, negative_ids_y=negative_ids))
    assert launches.kernels


def _index_on_the_host(x: Tensor) -> Tensor:
    return x[torch.arange(2)]


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: float(x.sum()),
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.unique(),
        lambda x: torch.equal(x, x),
        lambda x: x.cpu(),
        lambda x: x.to("cpu", non_blocking=True),
        lambda x: x + torch.tensor(0.5),
        lambda x: torch.tensor(0.5, device="cuda"),
        _index_on_the_host,
    ],
)
def test_waits_and_copies_are_refused(wait: Callable[[Tensor], Any]) -> None:
    refused = AssertionError, DataDependentOutputException, DynamicOutputShapeException
    with FakeTensorMode():
        x = torch.empty(3, 4, device="cuda")
        with counted() as launches, pytest.raises(refused):
            wait(x)
        with counted() as launches:
            x.mul_(2).view(4, 3).sum().add_(torch.empty_like(x).max())
    assert launches.operators == {"mul_": 1, "sum": 1, "max": 1, "add_": 1}


@triton.jit  # type: ignore[untyped-decorator]
def add_atomically(values, total) -> None:  # type: ignore[no-untyped-def]
    tl.atomic_add(total, tl.load(values + tl.program_id(0)))


def test_launches_are_recorded_or_refused() -> None:
    with FakeTensorMode(), counted() as launches:
        x = torch.empty(4, 4, device="cuda")
        with torch.cuda.device_of(x):
            add_atomically[2, 65535](x.view(-1)[5:], x[0], num_warps=1)
            for grid, value in (((0,), x), ((1, 65536), x), ((1,), x.T)):
                with pytest.raises(AssertionError):
                    add_atomically[grid](value, x)
        with pytest.raises(AssertionError, match="expected a launch on the device of its tensors"):
            add_atomically[1,](x, x)
    arguments = ("values", Pointer(torch.float32, 4)), ("total", Pointer(torch.float32, 0)), ("num_warps", 1)
    assert launches.kernels == [Launch(__name__, "add_atomically", arguments)]
    assert launches.total == 1


FUSED: tuple[Callable[..., PairLoss], ...] = (
    TripletMax, TripletSum, NTXent, MAKE["nt_xent, learned"], SupCon, MAKE["sigmoid, learned"],
)  # fmt: skip

NUMBERED = FUSED[2:4]  # whose kernels are compiled with numbered ids
HALVES = {dtype: dtype for dtype in (torch.bfloat16, torch.float16)}

# Of the 64 x 64 entries of a block every load of a thread takes four, whatever the length of a row. A multiprocessor
# has 65,536 registers, for so many warps of 32 threads.
LOADS_OF_4_WARPS, WARPS = 8, 12


# The instructions of a kernel for an entry of a tile: of the states of a kind, of its gradient, or of both in one; at
# most, on any of the devices, by any of the versions of Triton, and a twentieth more. An improvement lowers them.
INSTRUCTIONS = {
    ("hardest", "states"): 31.0,
    ("hinges", "both"): 44.3,
    ("exponentials", "states"): 21.3,
    ("exponentials", "gradient"): 21.4,
    ("logarithm", "states"): 30.7,
    ("logarithm", "gradient"): 28.0,
    ("several", "states"): 89.7,
    ("several", "gradient"): 41.7,
    ("pairs", "both"): 61.0,
}


def instructions(kernel: Compiled) -> float:
    """How many there are for an entry of a block."""
    numbers = kernel.launch.numbers
    of_thread: float = numbers["BLOCK_ROWS"] * numbers["BLOCK_COLUMNS"] / (32 * numbers["num_warps"])
    return kernel.instructions / of_thread


def warps(kernel: Compiled) -> int:
    """How many warps a multiprocessor has registers for, in whole blocks; a thread takes registers in eights."""
    of_block: int = kernel.launch.numbers["num_warps"]
    return 65536 // (-(-kernel.registers // 8) * 8 * 32 * of_block) * of_block


def test_kernels_as_launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that load most for three generations of devices; those that load less for one.

    With ids of 64 bits and numbered ids, and without; for bfloat16, float16 and float32; of tiles on the diagonal of S
    and beside it; for both directions, and either.
    """
    launches: list[Launch] = []
    less: list[Launch] = []
    for make, weights in zip(FUSED, [(1, 0), (0, 1)] * 3, strict=True):
        with monkeypatch.context() as patch:
            patch.setitem(problem.NUMBERED_FROM, "cuda", 0 if make in NUMBERED else TILED + 1)
            launches += launched(make, TILED, torch.bfloat16, True, tile_size=TILE).kernels
        for dtype, exclude, of_directions in (
            (torch.float32, "diagonal", weights),
            (torch.float16, "nothing", weights[::-1]),
        ):
            one_direction = {} if make is FUSED[-1] else {"direction_weights": of_directions}
            others = launched(make, TILE + 1, dtype, False, tile_size=TILE, **one_direction)
            less += [launch for launch in others.kernels if launch.numbers.get("EXCLUDE") == exclude]
    rows = [launch for launch in launches if launch.kernel in ("measure", "differentiate")]
    launches = [launch for launch in launches if launch not in rows]
    most = next(launch for launch in launches if launch.kernel == "tile" and launch.numbers["KIND"] == "hinges")
    spilling = replace(most, arguments=(*most.arguments, ("maxnreg", 32)))
    pointer = Pointer(torch.float32, 0)
    atomic = Launch(__name__, "add_atomically", (("values", pointer), ("total", pointer)))
    # A separate process compiles: the interpreter, which other tests use, leaves triton changed.
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        work = launches, rows, less, [spilling, atomic]
        capabilities = CAPABILITIES, CAPABILITIES, CAPABILITIES[1:2], CAPABILITIES[1:2]
        compiled = process.map(compile_launches, work, capabilities, timeout=300)
        of_most, of_rows, of_less, (of_spilling, of_atomic) = compiled
    assert of_spilling.spills > 0
    assert of_atomic.atomics == 1
    assert len(of_rows) == 3 * 2
    assert all(kernel.spills == kernel.atomics == 0 < kernel.loads_of_16_bytes for kernel in of_rows), of_rows
    for kernel in (*of_most, *of_less):
        assert kernel.spills == kernel.atomics == 0, kernel
        arguments = dict(kernel.launch.arguments)
        gradients = arguments.get("grad_products")
        assert kernel.rounds_to == (None if gradients is None else HALVES.get(gradients.dtype)), kernel
        if kernel.launch.kernel == "tile":
            does = "states" if gradients is None else "gradient"
            if gradients is not None and (arguments["of_rows"] or arguments["of_columns"]):
                does = "both"
            assert instructions(kernel) <= INSTRUCTIONS[arguments["KIND"], does], kernel
            assert kernel.loads_of_16_bytes >= LOADS_OF_4_WARPS * 4 // kernel.launch.numbers["num_warps"], kernel
    assert min(map(warps, of_most)) == WARPS
    assert len(of_most) == 3 * 15  # a merge of each of six kinds, states of four, gradients of three, both of two
    assert len(of_less) == 14


def test_kernels_of_a_small_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every formula for the largest block, the one that needs most registers for all generations of devices.

    Of each smaller block two formulas, of the dtypes and with ids or without.
    """
    work: dict[int, list[Launch]] = {capability: [] for capability in CAPABILITIES}
    for capability, B, dtype, ids, names in (
        (80, 128, torch.bfloat16, True, ("sup_con", "nt_xent, learned", "triplet_sum")),
        (90, 128, torch.bfloat16, True, ("sup_con", "sigmoid", "triplet_max")),
        (100, 128, torch.bfloat16, True, ("sup_con", "triplet_weighted_mined", "nt_xent")),
        (80, 64, torch.float16, False, ("nt_xent", "triplet_weighted")),
        (90, 24, torch.float32, True, ("triplet_max", "nt_xent, learned")),
        (100, 1, torch.float16, False, ("triplet_sum", "sigmoid, learned")),
    ):
        for name in names:
            work[capability] += launched(MAKE[name], B, dtype, ids).kernels
    work[90] += launched(MAKE["sigmoid"], 128, torch.bfloat16, True, reduction="none").kernels[1:3]
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        found = process.map(compile_launches, work.values(), [[capability] for capability in work], timeout=300)
        compiled = [kernel for kernels in found for kernel in kernels]
    assert all(kernel.spills == kernel.atomics == 0 for kernel in compiled), compiled
    kernels = Counter(kernel.launch.kernel for kernel in compiled)
    assert kernels == {"scale_rows": 6, "finish": 6, "pair_losses": 17}
    formulas = {(kernel.launch.numbers["BLOCK"], kernel.launch.numbers.get("FORMULA")) for kernel in compiled}
    assert len({formula for block, formula in formulas if block == 128}) == 7
