"""``GradientCache`` has the value and gradients of the same micro-batches with all activations kept."""

import copy
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from comparisons import each_loss, learning_loss
from hypothesis import given
from hypothesis import strategies as st
from processes import run
from strategies import reductions
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import set_checkpoint_early_stop

from crossmodal_losses import GatheredLoss, GradientCache, NTXent, RingLoss, TripletMax

# torch 2.4's own checkpoint
pytestmark = pytest.mark.filterwarnings("ignore:`torch.cpu.amp.autocast:FutureWarning")

CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}
X, Y, D = 5, 4, 3  # numbers of an input of x, of an input of y, and of an embedding


def encoder(size: int, *layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, 6), *layers, nn.Tanh(), nn.Linear(6, D)).double()


def encoders(layer: Callable[[], nn.Module] = nn.Identity, seed: int = 0) -> nn.ModuleList:
    torch.manual_seed(seed)
    return nn.ModuleList([encoder(X, layer()), encoder(Y, layer())])


def batch(B: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(B)
    return tuple(torch.randn(B, size, generator=generator, dtype=torch.float64) for size in (X, Y))  # type: ignore[return-value]


class Shifted(nn.Module):
    """An encoder whose last operation saves no tensor.

    So the backward pass has the gradient of ``shift`` before it has encoded the last micro-batch again.
    """

    def __init__(self, encode: nn.Module) -> None:
        super().__init__()
        self.encode = encode
        self.shift, self.unused = (nn.Parameter(torch.zeros(D, dtype=torch.float64)) for _ in range(2))
        self.unused.requires_grad_(False)

    def forward(self, inputs: Any) -> Any:
        return self.encode(inputs) + self.shift


def value_of(
    cached: bool, encode: Any, inputs: Any, N: int, ids: Tensor | None = None, loss: Any = None, seed: int = 0
) -> Tensor:
    """Compute a loss in micro-batches of N: through a cache, or with all activations kept for the backward pass."""
    torch.manual_seed(seed)
    loss = NTXent() if loss is None else loss
    if cached:
        return GradientCache(loss, micro_batch_size=N)(*encode, *inputs, ids)
    x, y = (torch.cat([e(part) for part in i.split(N)]) for e, i in zip(encode, inputs, strict=True))
    value: Tensor = loss(x, y, ids)
    return value


def gradients(module: nn.Module) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in module.named_parameters()}


def buffers(module: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def assert_same(found: nn.Module, expected: nn.Module, message: str = "{}") -> None:
    """Compare the gradients of two modules, and their running statistics."""
    torch.testing.assert_close(gradients(found), gradients(expected), **CLOSE, msg=message.format)
    torch.testing.assert_close(buffers(found), buffers(expected), rtol=0, atol=0)


class Calls(nn.Module):
    """Count the calls of an encoder."""

    def __init__(self, encode: nn.Module) -> None:
        super().__init__()
        self.encode, self.count = encode, 0

    def forward(self, inputs: Any) -> Any:
        self.count += 1
        return self.encode(inputs)


@each_loss
@given(st.integers(1, 9), st.integers(1, 10), reductions, st.booleans())
def test_value_and_gradients_are_those_with_all_activations_kept(
    name: str, B: int, N: int, reduction: Any, drop: bool
) -> None:
    """Without dropout, they are those of one large batch, too."""
    found, expected = (
        nn.ModuleList([*encoders(nn.Dropout if drop else nn.Identity), learning_loss(name, reduction=reduction)])
        for _ in range(2)
    )
    inputs, ids = batch(B), torch.arange(B) // 2
    reference = value_of(False, expected[:2], inputs, N if drop else B, ids, expected[2])
    reference.sum().backward()
    state = torch.get_rng_state()
    value = value_of(True, found[:2], inputs, N, ids, found[2])
    value.sum().backward()
    torch.testing.assert_close(value, reference, **CLOSE)
    assert_same(found, expected)
    assert torch.equal(torch.get_rng_state(), state)


@given(st.integers(1, 9), st.integers(1, 10))
def test_each_micro_batch_runs_twice_and_without_gradients_once(B: int, N: int) -> None:
    encode_x, encode_y = (Calls(encode) for encode in encoders())
    count = -(-B // N)
    cache = GradientCache(TripletMax(), micro_batch_size=N)
    with torch.no_grad():
        assert not cache(encode_x, encode_y, *batch(B)).requires_grad
    assert (encode_x.count, encode_y.count) == (count, count)
    encode_y.requires_grad_(False)
    cache(encode_x, encode_y, *batch(B)).backward()
    assert (encode_x.count, encode_y.count) == (3 * count, 2 * count)


def test_one_micro_batch_is_held_at_a_time() -> None:
    """An activation of every micro-batch is counted as long as its memory is in use."""
    held: list[StorageWeakRef] = []
    most = 0

    class Held(nn.Module):
        def forward(self, hidden: Tensor) -> Tensor:
            nonlocal most
            hidden = hidden.exp()
            held.append(StorageWeakRef(hidden.untyped_storage()))
            most = max(most, sum(not storage.expired() for storage in held))
            return hidden.sin()

    models = encoders(Held)
    value_of(False, models, batch(12), 2).backward()
    assert (most, len(held)) == (12, 12)
    most = 0
    held.clear()
    value = value_of(True, models, batch(12), 2)
    assert all(storage.expired() for storage in held)
    value.backward()
    assert (most, len(held)) == (1, 24)
    assert all(storage.expired() for storage in held)


def test_nothing_outlives_the_value() -> None:
    inputs_x, inputs_y = batch(4)
    value = GradientCache(NTXent(), micro_batch_size=2)(*encoders(), inputs_x, inputs_y)
    of_inputs = StorageWeakRef(inputs_x.untyped_storage())
    reference = weakref.ref(value.grad_fn)
    del inputs_x, inputs_y, value
    assert of_inputs.expired()
    assert reference() is None


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.BatchNorm1d(6),
        lambda: nn.BatchNorm1d(6, momentum=None),
        lambda: nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(), nn.BatchNorm1d(6, track_running_stats=False)),
        lambda: nn.Sequential(nn.Unflatten(1, (2, 3)), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten()),
    ],
    ids=["BatchNorm", "cumulative", "after dropout", "InstanceNorm"],
)
def test_running_statistics_count_each_micro_batch_once(layer: Callable[[], nn.Module]) -> None:
    found, expected = encoders(layer), encoders(layer)
    for step in range(2):
        for models in (found, expected):
            value_of(models is found, models, batch(8), 3, seed=step).backward()
    assert_same(found, expected)


def test_a_graph_of_the_same_encoder_elsewhere_is_left_intact() -> None:
    """To autograd, restored statistics are no change of a saved tensor."""
    found, expected = encoders(lambda: nn.BatchNorm1d(6)), encoders(lambda: nn.BatchNorm1d(6))
    for models in (found, expected):
        elsewhere = models[0](batch(8)[0]).square().sum()
        value_of(models is found, models, batch(8), 4).backward()
        elsewhere.backward()
    assert_same(found, expected)


def test_frozen_statistics_stay_and_errors_of_an_encoder_are_raised() -> None:
    models = encoders(lambda: nn.BatchNorm1d(6)).eval()
    before = buffers(models)
    value_of(True, models, batch(8), 3).backward()
    torch.testing.assert_close(buffers(models), before, rtol=0, atol=0)
    call = nn.Module.__call__
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        value_of(True, models[::-1], batch(8), 3)
    assert nn.Module.__call__ is call


def test_an_ordinary_differentiable_tensor() -> None:
    """Two backward passes over one graph, and a second derivative."""
    models = encoders(lambda: nn.BatchNorm1d(6))
    parameters = list(models.parameters())
    value = value_of(True, models, batch(8), 4)
    statistics = buffers(models)
    first = torch.autograd.grad(value, parameters, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(3 * value, parameters), [3 * g for g in first], **CLOSE)
    torch.testing.assert_close(buffers(models), statistics, rtol=0, atol=0)

    second = []
    for cached in (False, True):
        models = encoders()
        found = torch.autograd.grad(value_of(cached, models, batch(8), 3), list(models.parameters()), create_graph=True)
        penalty = torch.stack([g.square().sum() for g in found]).sum()
        second.append(torch.autograd.grad(penalty, list(models.parameters()), allow_unused=True))
    torch.testing.assert_close(second[0], second[1], **CLOSE)


def test_autocast_and_a_gradient_scaler() -> None:
    """The backward pass runs outside of autocast, as it should, and encodes in bfloat16 again."""
    found, expected = encoders(nn.Dropout).float(), encoders(nn.Dropout).float()
    inputs = batch(7)[0].float(), batch(7)[1].float()
    for models in (found, expected):
        optimizer = torch.optim.SGD(models.parameters(), lr=0.1)
        scaler = torch.amp.grad_scaler.GradScaler("cpu", init_scale=8.0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = value_of(models is found, models, inputs, 3)
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
    torch.testing.assert_close(gradients(found), gradients(expected), rtol=0.02, atol=1e-4)
    torch.testing.assert_close(list(found.parameters()), list(expected.parameters()), rtol=0.02, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_random_numbers_of_a_gpu_where_the_inputs_come_from_the_cpu() -> None:
    found, expected = encoders(nn.Dropout).cuda(), encoders(nn.Dropout).cuda()

    for models in (found, expected):
        moving = [lambda inputs, encode=encode: encode(inputs.cuda()) for encode in models]
        value_of(models is found, moving, batch(64), 16).backward()
    assert_same(found, expected)


@pytest.mark.skipif(torch.__version__ < "2.5", reason="torch 2.4 does not compile what a checkpoint runs")
@pytest.mark.parametrize("in_place", [False, True])
def test_compiled_encoders_are_compiled_once(in_place: bool) -> None:
    torch._dynamo.reset()
    compiled: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph

    found, expected = encoders(lambda: nn.BatchNorm1d(6)), encoders(lambda: nn.BatchNorm1d(6))
    # Not modules of torch itself, whose calls torch.compile does not compile.
    encode: list[Any] = [Shifted(model) for model in found]
    if in_place:
        for model in encode:
            model.compile(backend=backend)
    else:
        encode = [torch.compile(model, backend=backend) for model in encode]
    for _ in range(2):
        value_of(False, expected, batch(8), 4).backward()
        value_of(True, encode, batch(8), 4).backward()
    assert_same(found, expected)
    assert len(compiled) == 2


def test_inside_a_compiled_step() -> None:
    found, expected = encoders(nn.Dropout), encoders(nn.Dropout)
    cache = GradientCache(NTXent(), micro_batch_size=4)

    def step(models: nn.ModuleList, inputs_x: Tensor, inputs_y: Tensor) -> Tensor:
        return cache(models[0], models[1], 2 * inputs_x, inputs_y)

    for models, function in ((expected, step), (found, torch.compile(step, backend="eager"))):
        torch.manual_seed(2)
        function(models, *batch(8)).backward()
    assert_same(found, expected)


@pytest.mark.parametrize(
    "given, error, words",
    [
        ({"loss": 1}, TypeError, "expected loss to be callable, got int"),
        ({"micro_batch_size": 2.0}, TypeError, "expected micro_batch_size to be a whole number, got float"),
        ({"micro_batch_size": True}, TypeError, "expected micro_batch_size to be a whole number, got bool"),
        ({"micro_batch_size": 0}, ValueError, "expected micro_batch_size to be >= 1, got 0"),
        ({"embedding": 1}, TypeError, "expected embedding to be None, the name of a field, or a pair of these, got 1"),
        ({"embedding": ("a", 1)}, TypeError, r"expected embedding to be None, .* got \('a', 1\)"),
        ({"embedding": ("a",)}, TypeError, r"expected embedding to be None, .* got \('a',\)"),
        ({"inputs_x": ""}, ValueError, r"expected inputs_x to hold tensors \[B, ...\] of one B >= 1, got shapes \[\]"),
        ({"inputs_y": {"a": [3]}}, ValueError, r"expected inputs_y to hold tensors .* got shapes \[\]"),
        ({"inputs_y": {}}, ValueError, r"expected inputs_y to hold tensors \[B, ...\] of one B >= 1, got shapes \[\]"),
        ({"inputs_x": torch.tensor(1.0)}, ValueError, r"expected inputs_x to hold .* got shapes \[\[\]\]"),
        ({"inputs_x": torch.zeros(0, X)}, ValueError, r"expected inputs_x to hold .* got shapes \[\[0, 5\]\]"),
        (
            {"inputs_x": [torch.zeros(3), torch.zeros(4)]},
            ValueError,
            r"expected inputs_x .* got shapes \[\[3\], \[4\]\]",
        ),
        ({"inputs_x": torch.zeros(3, X)}, ValueError, "expected inputs_x and inputs_y of one B, got 3 and 4"),
        ({"encode_y": lambda i: [i]}, TypeError, "expected encode_y to return a floating tensor, got list"),
        ({"encode_y": lambda i: i.long()}, TypeError, "expected encode_y to return a floating tensor, got torch.int64"),
        ({"encode_y": lambda i: i[:, 0]}, ValueError, r"expected encode_y to return \[2, D\], got \[2\]"),
        ({"encode_y": lambda i: i[:1]}, ValueError, r"expected encode_y to return \[2, D\], got \[1, 4\]"),
    ],
)
def test_what_is_refused(given: dict[str, Any], error: type[Exception], words: str) -> None:
    def compute(loss: Any, micro_batch_size: Any, embedding: Any = None, **arguments: Any) -> Tensor:
        return GradientCache(loss, micro_batch_size=micro_batch_size, embedding=embedding)(**arguments)

    (encode_x, encode_y), (inputs_x, inputs_y) = encoders(), batch(4)
    arguments = {"encode_x": encode_x, "encode_y": encode_y, "inputs_x": inputs_x, "inputs_y": inputs_y}
    with pytest.raises(error, match=words):
        compute(**{"loss": NTXent(), "micro_batch_size": 2, **arguments, **given})


def test_a_cache_shows_its_settings() -> None:
    cache = GradientCache(NTXent(learn_temperature=True), micro_batch_size=2)
    assert "(\n  micro_batch_size=2\n" in repr(cache)
    cache = GradientCache(NTXent(learn_temperature=True), micro_batch_size=2, embedding=("a", None))
    assert "micro_batch_size=2, embedding=('a', None)" in repr(cache)
    assert len(list(cache.parameters())) == 1


class Dual(nn.Module):
    def __init__(self, models: nn.ModuleList) -> None:
        super().__init__()
        self.x, self.y = map(Shifted, models)

    def forward(self, inputs_x: Tensor | None, inputs_y: Tensor | None) -> Any:
        return self.x(inputs_x) if inputs_y is None else self.y(inputs_y)


def parallel(module: nn.Module, reduced: list[int], **settings: Any) -> DistributedDataParallel:
    """Wrap a module in DDP with several buckets; append the index of every bucket that is reduced to the list."""
    ddp = DistributedDataParallel(module, bucket_cap_mb=1e-4, **settings)

    def hook(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
        reduced.append(bucket.index())
        return allreduce_hook(state, bucket)

    ddp.register_comm_hook(None, hook)
    return ddp


def assert_parallel_equals_one_process(wrapper: type[GatheredLoss] | type[RingLoss], case: str) -> None:
    rank, sizes = dist.get_rank(), [7, 4]
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    whole = batch(sum(sizes))
    expected, loss = Dual(encoders()), NTXent(learn_temperature=True)
    found, shared = copy.deepcopy(expected), copy.deepcopy(loss)
    reduced: list[list[int]] = [[], []]
    if case == "one module":
        dual = parallel(found, reduced[0])
        encode: Any = (lambda i: dual(i, None)), (lambda i: dual(None, i))
        del reduced[1]
    else:
        settings = {"two modules": {}, "unused": {"find_unused_parameters": True}, "static": {"static_graph": True}}
        for models in (expected, found):
            models.x.unused.requires_grad_(case == "unused")
        encode = [parallel(found.x, reduced[0], **settings[case]), parallel(found.y, reduced[1], **settings[case])]
    cache = GradientCache(wrapper(shared), micro_batch_size=3)
    for step in range(2):
        # DDP has one bucket in the first step, and in all steps if the graph is static.
        least = 1 if step == 0 or case == "static" else 2
        say = f"{wrapper.__name__}, {case}, step {step}: {{}}"
        loss(expected(whole[0], None), expected(None, whole[1])).backward()
        cache(*encode, *(part[own] for part in whole)).backward()
        assert_same(found, expected, say)
        assert_same(shared, loss, say)
        for buckets in reduced:
            assert sorted(buckets) == list(range(max(least, len(buckets)))), say
            buckets.clear()
        for module in (found, expected, shared, loss):
            module.zero_grad()


def assert_no_sync_is_respected() -> None:
    """Gradients of two steps add up, and those of the first are not reduced."""
    rank = dist.get_rank()
    expected, found = encoders(), encoders()
    reduced: list[int] = []
    ddp = [parallel(model, reduced) for model in found]
    cache = GradientCache(GatheredLoss(NTXent()), micro_batch_size=2)
    for B in (6, 10):
        NTXent()(*(model(inputs) for model, inputs in zip(expected, batch(B), strict=True))).backward()
        own = [inputs.chunk(2)[rank] for inputs in batch(B)]
        if B == 6:
            with ddp[0].no_sync(), ddp[1].no_sync():
                cache(*ddp, *own).backward()
            assert not reduced
        else:
            cache(*ddp, *own).backward()
    assert reduced == [0, 0]
    assert_same(found, expected)


def assert_buffers_are_those_of_the_first_run() -> None:
    """Buffers are those of DDP modules that are called once, and whose buffers rank 0 broadcasts before each call."""
    found, expected = encoders(lambda: nn.BatchNorm1d(6)), encoders(lambda: nn.BatchNorm1d(6))
    ddp, once = ([DistributedDataParallel(model) for model in models] for models in (found, expected))
    own = tuple(inputs.chunk(2)[dist.get_rank()] for inputs in batch(12))
    for N in (2, 6, 6):
        value_of(False, once, own, N)
        with set_checkpoint_early_stop(False):  # otherwise the second call stops before DDP's last lines
            GradientCache(RingLoss(NTXent()), micro_batch_size=N)(*ddp, *own).backward()
        torch.testing.assert_close(buffers(found), buffers(expected), rtol=0, atol=0)


def distributed_data_parallel() -> None:
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "`torch.cpu.amp.autocast", FutureWarning)
    for case in ("two modules", "one module", "unused", "static"):
        assert_parallel_equals_one_process(GatheredLoss, case)
    for case in ("two modules", "one module"):
        assert_parallel_equals_one_process(RingLoss, case)
    assert_no_sync_is_respected()
    assert_buffers_are_those_of_the_first_run()


def test_distributed_data_parallel_reduces_each_bucket_once() -> None:
    run(2, distributed_data_parallel)


@each_loss
@pytest.mark.parametrize("with_x", [True, False])
def test_candidates_without_a_partner_are_encoded_too(name: str, with_x: bool) -> None:
    (a, b), (more_a, more_b), ids = batch(7), batch(5), torch.arange(7) // 2
    other_ids = {"negative_ids_y": torch.tensor([0, 9, 3, 3, 8])}
    expected, found = encoders(), encoders()
    loss = learning_loss(name)
    negatives_x = expected[0](more_a) if with_x else None
    kept = loss(
        expected[0](a), expected[1](b), ids, negatives_x=negatives_x, negatives_y=expected[1](more_b), **other_ids
    )
    kept.backward()
    cache = GradientCache(loss, micro_batch_size=2)
    inputs = {"negatives_x": more_a if with_x else None, "negatives_y": more_b}
    value = cache(*found, a, b, ids, **inputs, **other_ids)
    value.backward()
    torch.testing.assert_close(value, kept, **CLOSE)
    assert_same(found, expected)


def test_a_queue_that_is_embedded_already() -> None:
    (a, b), queue = batch(7), torch.randn(4, D, dtype=torch.float64)
    f, g = encoders()
    cache = GradientCache(lambda x, y: NTXent()(x, y, negatives_y=queue), micro_batch_size=3)
    torch.testing.assert_close(cache(f, g, a, b), NTXent()(f(a), g(b), negatives_y=queue), **CLOSE)
