"""The gradient of one large batch with the encoder memory of a small one.

A loss over B pairs needs all embeddings at once, but not what the encoders computed on the way to them. So a few inputs
at a time are encoded, and only their embeddings kept. The loss gives every embedding its gradient. Then the backward
pass encodes the same few inputs again, keeps what their gradients need this time, and is done with it before it turns
to the next few.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

Encoder = Callable[[Any], Tensor]


def _mapped(name: str, inputs: Any, function: Callable[[Tensor], Any]) -> Any:
    """The inputs with every tensor replaced by what the function makes of it."""
    if inputs is None:
        return None
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, Mapping):
        return {key: _mapped(name, part, function) for key, part in inputs.items()}
    if isinstance(inputs, (list, tuple)):
        make = getattr(inputs, "_make", type(inputs))  # of a named tuple, of any other
        return make([_mapped(name, part, function) for part in inputs])
    raise TypeError(f"expected {name} to be tensors, or dicts, lists or tuples of them, got {type(inputs).__name__}")


def _tensors(name: str, inputs: Any) -> list[Tensor]:
    """The tensors among the inputs, all [B, ...] with one B >= 1."""
    tensors: list[Tensor] = []
    _mapped(name, inputs, tensors.append)
    shapes = [list(tensor.shape) for tensor in tensors]
    if not shapes or any(not shape or shape[:1] != shapes[0][:1] or shape[0] == 0 for shape in shapes):
        raise ValueError(f"expected {name} to hold tensors [B, ...] of one B >= 1, got shapes {shapes}")
    return tensors


@contextmanager
def _noting_calls(called: list[nn.Module]) -> Iterator[None]:
    """Notes the modules that are called, but not those that they call: these are parts of them.

    torch has hooks common to all modules for this, but torch.compile compiles a module anew when there is one.
    """
    modules: Any = nn.Module
    call = modules.__call__

    def noted(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        called.append(module)
        modules.__call__ = call
        try:
            return call(module, *args, **kwargs)
        finally:
            modules.__call__ = noted

    modules.__call__ = noted
    try:
        yield
    finally:
        modules.__call__ = call


class _BusyReducer:
    """Answers for the reducer of DistributedDataParallel while that waits for gradients."""

    def _rebuild_buckets(self) -> bool:
        return False


class _RunningAgain(ExitStack):
    """While modules run for the second time: what they do beside computing their outputs, they have done already.

    DistributedDataParallel would prepare for another backward pass in the middle of this one, and fetch the buffers of
    rank 0; normalisation layers would count a micro-batch twice in their running statistics.
    """

    def __init__(self, called: list[nn.Module]) -> None:
        super().__init__()
        self.called = called

    def __enter__(self) -> "_RunningAgain":
        for module in {part for called in self.called for part in called.modules()}:
            if isinstance(module, DistributedDataParallel):
                self.enter_context(module.no_sync())
                self._set(module, "require_forward_param_sync", False)
                self._set(module, "reducer", _BusyReducer())  # it is asked even under no_sync
            elif isinstance(module, _NormBase):
                for statistic in module.buffers(recurse=False):
                    # .data: to autograd this is no change, as the update itself is none
                    self.callback(statistic.data.copy_, statistic.clone())
        return self

    def _set(self, module: nn.Module, name: str, value: Any) -> None:
        self.callback(setattr, module, name, getattr(module, name))
        setattr(module, name, value)


class GradientCache(nn.Module):
    """The loss of one large batch, of which the encoders hold only a micro-batch at a time (Gao et al. 2021).

    >>> from crossmodal_losses import NTXent
    >>> audio, text = torch.nn.Linear(8, 4), torch.nn.Linear(6, 4)
    >>> cache = GradientCache(NTXent(), micro_batch_size=16)
    >>> value = cache(audio, text, torch.randn(100, 8), torch.randn(100, 6))
    >>> value.backward()  # or scaler.scale(value).backward(), accelerator.backward(value), ...

    Value and gradients are those of ``loss(x, y)`` where x and y are the embeddings of all micro-batches, encoded one
    after the other. Without layers that mix the inputs of a batch or draw random numbers, that is ``loss(audio(a),
    text(t))``. Memory is that of the inputs, the embeddings, the loss, and the backward pass of one micro-batch. The
    price is one more forward pass of the encoders.

    In the backward pass each micro-batch is encoded again, with the random state of torch and the autocast settings it
    had at first. So an encoder must compute the same from the same input, parameters and random state; numbers drawn
    by ``random`` or NumPy are not drawn again. The running statistics of torch's normalisation layers count each
    micro-batch once; whatever else an encoder changes in itself, it changes twice.

    With DistributedDataParallel, pass the wrapped modules, or any functions that call them, and a
    :class:`~crossmodal_losses.GatheredLoss` or :class:`~crossmodal_losses.RingLoss`. Each bucket of gradients is
    reduced once a backward pass, without ``no_sync``. If the modules have buffers, which rank 0 broadcasts in every
    forward pass, all ranks must have the same number of micro-batches, or ``broadcast_buffers=False``.

    Args:
        loss: of ``(x, y)``, or of ``(x, y, ids)`` where ids are given; a loss of ``LOSSES`` or any other.
        micro_batch_size: how many inputs are encoded at a time; the last micro-batch may be smaller.

    Source: Gao, Zhang, Han and Callan 2021, Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup,
    https://arxiv.org/abs/2101.06983
    """

    def __init__(self, loss: Callable[..., Tensor], *, micro_batch_size: int) -> None:
        super().__init__()
        if not callable(loss):
            raise TypeError(f"expected loss to be callable, got {type(loss).__name__}")
        if not isinstance(micro_batch_size, int) or isinstance(micro_batch_size, bool):
            raise TypeError(f"expected micro_batch_size to be a whole number, got {type(micro_batch_size).__name__}")
        if micro_batch_size < 1:
            raise ValueError(f"expected micro_batch_size to be >= 1, got {micro_batch_size}")
        self.loss = loss
        self.micro_batch_size = micro_batch_size

    def forward(
        self, encode_x: Encoder, encode_y: Encoder, inputs_x: Any, inputs_y: Any, ids: Tensor | None = None
    ) -> Tensor:
        """The loss of a batch.

        Args:
            encode_x, encode_y: modules, compiled or not, or functions that call modules; from one argument, a
                micro-batch of the inputs, to floating ``[rows, D]``.
            inputs_x, inputs_y: tensors ``[B, ...]``, or dicts, lists or tuples of them, nested or not; a mapping of
                any kind reaches the encoder as a dict, None as None.
            ids: passed to the loss, unless None.
        """
        # What the compiler would have to follow happens in the backward pass; compiled encoders are welcome.
        of_batch = self._of_batch_uncompiled if torch.compiler.is_compiling() else self._of_batch
        return of_batch(encode_x, encode_y, inputs_x, inputs_y, ids)

    def _of_batch(
        self, encode_x: Encoder, encode_y: Encoder, inputs_x: Any, inputs_y: Any, ids: Tensor | None
    ) -> Tensor:
        of_x, of_y = _tensors("inputs_x", inputs_x), _tensors("inputs_y", inputs_y)
        if len(of_x[0]) != len(of_y[0]):
            raise ValueError(f"expected inputs_x and inputs_y of one B, got {len(of_x[0])} and {len(of_y[0])}")
        x = self._embeddings("encode_x", encode_x, inputs_x, of_x)
        y = self._embeddings("encode_y", encode_y, inputs_y, of_y)
        return self.loss(x, y) if ids is None else self.loss(x, y, ids)

    def _embeddings(self, name: str, encode: Encoder, inputs: Any, tensors: list[Tensor]) -> Tensor:
        # checkpoint looks at its arguments to see on which device random numbers may be drawn. An encoder may draw them
        # on a GPU although its inputs come from the CPU.
        device = torch.empty(0, device="cuda" if torch.cuda.is_initialized() else "cpu")

        def run(_: Tensor, *micro_batch: Tensor) -> Tensor:
            parts = iter(micro_batch)
            return encode(_mapped(name, inputs, lambda _: next(parts)))

        def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
            called: list[nn.Module] = []
            return _noting_calls(called), _RunningAgain(called)

        embeddings = []
        for micro_batch in zip(*(tensor.split(self.micro_batch_size) for tensor in tensors), strict=True):
            rows = checkpoint(run, device, *micro_batch, use_reentrant=False, context_fn=contexts)
            if not isinstance(rows, Tensor) or not rows.is_floating_point():
                got = rows.dtype if isinstance(rows, Tensor) else type(rows).__name__
                raise TypeError(f"expected {name} to return a floating tensor, got {got}")
            if rows.dim() != 2 or len(rows) != len(micro_batch[0]):
                raise ValueError(f"expected {name} to return [{len(micro_batch[0])}, D], got {list(rows.shape)}")
            embeddings.append(rows)
        return torch.cat(embeddings)

    _of_batch_uncompiled = _disable_dynamo(_of_batch)

    def extra_repr(self) -> str:
        return f"micro_batch_size={self.micro_batch_size}"

    __call__: Callable[..., Tensor]
