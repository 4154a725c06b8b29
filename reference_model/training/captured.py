"""The step of training on a GPU as a CUDA graph: captured once, replayed for every batch after."""

import logging
import math
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from reference_model.config import Config
from reference_model.models.dual_encoder import Heads
from reference_model.training.step import Step

log = logging.getLogger(__name__)

EAGER_STEPS = 3  # before the capture: they make the state of Adam, and compile and load kernels, which no capture may


def new_step(module: nn.Module, config: Config, accelerator: Accelerator) -> Step:
    """Return the step that trains the module: a captured one for heads alone, on one GPU, else an eager one.

    A gradient scaler, a queue and a gradient cache decide on the CPU which kernels come next: with them it is eager.
    """
    decided_on_the_cpu = accelerator.scaler is not None or config.queue or config.gradient_cache_micro_batch is not None
    on_one_gpu = accelerator.device.type == "cuda" and accelerator.distributed_type == DistributedType.NO
    is_captured = on_one_gpu and isinstance(module, Heads) and not decided_on_the_cpu
    return (CapturedStep if is_captured else Step)(module, config, accelerator)


class CapturedStep(Step):
    """A step of which Python issues the kernels once, as a CUDA graph; its batches are features, all of one shape.

    Every call trains on its batch: the first ones eagerly, the next one captures the graph and replays it, those after
    it replay it. A replay takes seed and offset of the generator as an eager step does, so it draws the same numbers.
    The gradients lie in memory of the graph, which every replay overwrites. If CUDA refuses the capture, all are eager.
    """

    warm_up = EAGER_STEPS + 1

    def __init__(self, module: nn.Module, config: Config, accelerator: Accelerator) -> None:
        super().__init__(module, config, accelerator)
        for group in self.optimizer.param_groups:
            group["lr"] = torch.tensor(config.learning_rate, device=accelerator.device)  # the graph reads it there
        self.stream = torch.cuda.Stream(accelerator.device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.eager_steps: float = EAGER_STEPS  # to come

    def __call__(self, batch: dict[str, Any]) -> Tensor:
        """Update the weights, and return the loss before the update: see :class:`Step`."""
        if self.eager_steps == 0 and self.graph is None:
            try:
                self.graph = self._capture(batch)
            except RuntimeError as error:
                log.warning("training goes on without a CUDA graph, which was refused: %s", error)
                self.eager_steps = math.inf
        if self.graph is None:
            self.eager_steps -= 1
            return self._call_eagerly(batch)
        for of_graph, given in zip(_tensors(self.batch), _tensors(batch), strict=True):
            of_graph.copy_(given)
        self.graph.replay()
        return self.loss_of_batch.clone()

    def _call_eagerly(self, batch: dict[str, Any]) -> Tensor:
        """Train on the stream of the capture: what torch keeps for a stream is then there already."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            loss = super().__call__(batch)
        torch.cuda.current_stream().wait_stream(self.stream)
        return loss

    def _capture(self, batch: dict[str, Any]) -> torch.cuda.CUDAGraph:
        """Record the kernels of a step, none of which runs yet."""
        audio, text, ids = (tensor.clone() for tensor in _tensors(batch))
        self.batch = {"audio": {"audio": audio}, "text": {"text": text}, "ids": ids}
        self.optimizer.zero_grad()  # gradients of the eager steps: those of the graph are made in its own memory
        for group in self.optimizer.param_groups:
            group["capturable"] = True
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            self.loss_of_batch = super().__call__(self.batch)
        return graph

    def set_learning_rate(self, rate: float) -> None:
        """Set the learning rate of the next steps, in the memory that the graph reads."""
        for group in self.optimizer.param_groups:
            group["lr"].fill_(rate)


def _tensors(batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    return batch["audio"]["audio"], batch["text"]["text"], batch["ids"]
