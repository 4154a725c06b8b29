"""Gradients of one large batch with the encoder memory of a small one.

A loss over B pairs needs all embeddings at once, but not the activations of the encoders. The steps:

1. Encode one micro-batch after the other, and keep only the embeddings.
2. Compute the loss of all embeddings, and its gradient for every embedding.
3. In the backward pass, encode each micro-batch again, this time with its activations, compute the gradients of the
   encoders from those of the embeddings, and free the activations before the next micro-batch.

``torch.utils.checkpoint`` does steps 1 and 3 for one micro-batch. This module splits the batch, and keeps modules that
change when they are called (DistributedDataParallel, normalisation layers) from changing a second time in step 3.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from crossmodal_losses.checks import check_embedding_fields, check_micro_batch_size
from crossmodal_losses.encoder_modules import check_parameters, modules_of
from crossmodal_losses.engine.compat import NormalisationLayer, not_compiled
from crossmodal_losses.micro_batches import MicroBatches, select_embedding

Encoder = Callable[[Any], Any]


# In place of DistributedDataParallel's reducer, which must not be prepared again in a backward pass.
_REDUCER_DURING_BACKWARD = SimpleNamespace(_rebuild_buckets=lambda: False)


class _Recomputation(ExitStack):
    """Context in which modules compute their outputs a second time, without the side effects of a call.

    Otherwise DistributedDataParallel would prepare for another backward pass in the middle of this one, and copy the
    buffers of rank 0 to all ranks; normalisation layers would count a micro-batch twice in their running statistics.
    """

    def __init__(self, modules: list[nn.Module]) -> None:
        super().__init__()
        self.modules = modules

    def __enter__(self) -> "_Recomputation":
        for module in self.modules:
            if isinstance(module, DistributedDataParallel):
                self.enter_context(module.no_sync())
                self._set(module, "require_forward_param_sync", False)
                self._set(module, "reducer", _REDUCER_DURING_BACKWARD)  # no_sync alone still calls the reducer
            elif isinstance(module, NormalisationLayer):
                for statistic in module.buffers(recurse=False):
                    # At the end of the context, restore the statistic; .data hides that from autograd, as torch does
                    # for the update itself.
                    self.callback(statistic.data.copy_, statistic.clone())
        return self

    def _set(self, module: nn.Module, name: str, value: Any) -> None:
        """Set an attribute, and restore it at the end of the context."""
        self.callback(setattr, module, name, getattr(module, name))
        setattr(module, name, value)


class GradientCache(nn.Module):
    """Compute the loss of a large batch while the encoders hold one micro-batch at a time (Gao et al. 2021).

    >>> from crossmodal_losses import NTXent
    >>> audio, text = torch.nn.Linear(8, 4), torch.nn.Linear(6, 4)
    >>> cache = GradientCache(NTXent(), micro_batch_size=16)
    >>> value = cache(audio, text, torch.randn(100, 8), torch.randn(100, 6))
    >>> value.backward()  # or scaler.scale(value).backward(), accelerator.backward(value), ...

    Value and gradients are those of ``loss(x, y)``, where x and y are the embeddings of all micro-batches, encoded one
    after the other. Without layers that mix the inputs of a batch or draw random numbers, that is ``loss(audio(a),
    text(t))``. Memory is needed for the inputs, the embeddings, the loss, and the backward pass of one micro-batch. The
    encoders compute one more forward pass.

    In the backward pass each micro-batch is encoded again, with torch's random state and the autocast settings of the
    first time. So an encoder must compute the same from the same input, parameters and random state; the states of
    ``random`` and NumPy are not restored. The running statistics of torch's normalisation layers count each micro-batch
    once; any other state that an encoder changes when it is called is changed twice.

    With DistributedDataParallel, pass the wrapped modules, or any functions that call them, and a
    :class:`~crossmodal_losses.GatheredLoss` or :class:`~crossmodal_losses.RingLoss`. Each bucket of gradients is
    reduced once in a backward pass, without ``no_sync``. If the modules have buffers, which rank 0 broadcasts in every
    forward pass, all ranks must have the same number of micro-batches, or ``broadcast_buffers=False``.

    Args:
        loss: a function of ``(x, y)``, or of ``(x, y, ids)`` if ids are given; a loss of ``LOSSES`` or any other.
        micro_batch_size: number of inputs that are encoded at a time; the last micro-batch may be smaller.
        embedding: which field of an encoder's output is the embedding, such as ``"pooler_output"`` of a model of
            transformers or the key of a dict; for each encoder its own, as ``("audio_embeds", "text_embeds")``. None,
            alone or in a pair: an encoder returns the embeddings themselves.

    Source: Gao, Zhang, Han and Callan 2021, Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup,
    https://arxiv.org/abs/2101.06983
    """

    def __init__(
        self,
        loss: Callable[..., Tensor],
        *,
        micro_batch_size: int,
        embedding: str | tuple[str | None, str | None] | None = None,
    ) -> None:
        super().__init__()
        if not callable(loss):
            raise TypeError(f"expected loss to be callable, got {type(loss).__name__}")
        self.loss = loss
        self.micro_batch_size = check_micro_batch_size(micro_batch_size)
        self.embedding_x, self.embedding_y = check_embedding_fields(embedding)

    @not_compiled  # torch.compile cannot follow what happens in the backward pass; encoders may be compiled
    def forward(
        self,
        encode_x: Encoder,
        encode_y: Encoder,
        inputs_x: Any,
        inputs_y: Any,
        ids: Tensor | None = None,
        *,
        negatives_x: Any = None,
        negatives_y: Any = None,
        modules: Iterable[nn.Module] = (),
        **arguments: Any,
    ) -> Tensor:
        """Compute the loss of a batch.

        Args:
            encode_x, encode_y: modules, compiled or not, or functions that call modules. The one argument is a
                micro-batch of the inputs; the result is floating ``[rows, D]``, or an output of which ``embedding``
                names such a field. A function must refer to its modules: in its closure, its defaults, an object or
                functions of its file that it names, or globals.
            inputs_x, inputs_y: tensors ``[B, ...]``, or dicts, lists, tuples or dataclasses of them, nested or not.
                The encoder gets them in the same classes: what a tokenizer of transformers returns, a BatchEncoding, as
                one, but without ``tokens()`` and the like. Values that are no tensors (strings, numbers, flags, None)
                are the same for every micro-batch. What each item has must be in a tensor: a list of B other values is
                refused if there is more than one micro-batch.
            ids: passed to the loss, unless None.
            negatives_x, negatives_y: inputs of candidates without a partner, any number of them, in the form of
                inputs_x and inputs_y; the encoders encode them, too, and the loss gets their embeddings under these
                names. For embeddings that are there already, such as a queue, wrap the loss:
                ``GradientCache(lambda x, y: loss(x, y, negatives_y=queue), ...)``.
            modules: modules that the encoders call, where a function hides them.
            arguments: passed to the loss, such as ``negative_ids_y``, or ``temperature``.

        Raises:
            TypeError, ValueError: the inputs, or the embeddings that an encoder returns, are not as described; or a
                function hides a module whose parameters it uses.
        """
        for name, encode in (("encode_x", encode_x), ("encode_y", encode_y)):
            if not callable(encode):
                raise TypeError(f"expected {name} to be a module or a function, got {type(encode).__name__}")
        x_batches = MicroBatches("inputs_x", inputs_x, self.micro_batch_size)
        y_batches = MicroBatches("inputs_y", inputs_y, self.micro_batch_size)
        if x_batches.B != y_batches.B:
            raise ValueError(f"expected inputs_x and inputs_y of one B, got {x_batches.B} and {y_batches.B}")
        modules = tuple(modules)
        x = self._embeddings("encode_x", encode_x, self.embedding_x, x_batches, modules)
        y = self._embeddings("encode_y", encode_y, self.embedding_y, y_batches, modules)
        for name, encode, field, inputs in (
            ("negatives_x", encode_x, self.embedding_x, negatives_x),
            ("negatives_y", encode_y, self.embedding_y, negatives_y),
        ):
            if inputs is not None:
                batches = MicroBatches(name, inputs, self.micro_batch_size)
                arguments[name] = self._embeddings(f"encode_{name[-1]}", encode, field, batches, modules)
        return self.loss(x, y, **arguments) if ids is None else self.loss(x, y, ids, **arguments)

    def _embeddings(
        self, name: str, encode: Encoder, field: str | None, inputs: MicroBatches, further: Iterable[nn.Module]
    ) -> Tensor:
        """Encode one micro-batch after the other; return the embeddings, ``[B, D]``."""
        modules, parameters = modules_of(encode, further)
        # checkpoint restores random states on the devices of its arguments. An encoder may draw random numbers on a GPU
        # although its inputs come from the CPU, so there is one more argument.
        device = torch.empty(0, device="cuda" if torch.cuda.is_initialized() else "cpu")

        def encode_tensors(_: Tensor, *micro_batch: Tensor) -> Any:
            return select_embedding(name, encode(inputs.nested(micro_batch)), field)

        def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
            return nullcontext(), _Recomputation(modules)

        embeddings: list[Tensor] = []
        for micro_batch in inputs:
            rows = checkpoint(encode_tensors, device, *micro_batch, use_reentrant=False, context_fn=contexts)
            if not isinstance(rows, Tensor) or not rows.is_floating_point():
                got = rows.dtype if isinstance(rows, Tensor) else type(rows).__name__
                raise TypeError(f"expected {name} to return a floating tensor, got {got}")
            if rows.dim() != 2 or len(rows) != len(micro_batch[0]):
                raise ValueError(f"expected {name} to return [{len(micro_batch[0])}, D], got {list(rows.shape)}")
            if not embeddings and not isinstance(encode, nn.Module):
                check_parameters(name, rows, parameters, inputs.tensors)
            embeddings.append(rows)
        return torch.cat(embeddings)

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``."""
        fields = self.embedding_x, self.embedding_y
        return f"micro_batch_size={self.micro_batch_size}" + (f", embedding={fields}" if any(fields) else "")

    __call__: Callable[..., Tensor]
