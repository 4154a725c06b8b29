"""The epilogue on CUDA, in fused kernels (epilogue_triton.py): one launch reads a tile, and one merges its states.

Only this module and the kernels import triton, and the engine imports them only for tensors on CUDA.
"""

import torch
import triton
from torch import Tensor

from crossmodal_losses.engine import epilogue_triton as kernels
from crossmodal_losses.engine.aggregation import Aggregation, State
from crossmodal_losses.engine.epilogue import Epilogue, Place, tile_memory
from crossmodal_losses.engine.objective import Directions

# A block: 32 entries a thread, which its registers hold; 16 where there is most to know of each.
BLOCK_ROWS, BLOCK_COLUMNS, WARPS, WARPS_OF_SEVERAL = 64, 64, 4, 8

LN_2 = 0.6931471805599453


def supports(dtype: torch.dtype, aggregation: Aggregation) -> bool:
    """Return whether there are kernels for an aggregation over tiles of inner products of that dtype."""
    return dtype == torch.float32 and "kernel" in vars(type(aggregation)) and aggregation.kernel is not None


def _check_contiguous(**tensors: Tensor | None) -> None:
    """Raise ValueError where a kernel would read other numbers than those of a tensor."""
    for name, values in tensors.items():
        if values is not None and not values.is_contiguous():
            raise ValueError(f"expected {name} to be contiguous, got strides {values.stride()}")


class Fused(Epilogue):
    """Fused kernels, for what :func:`supports`; gradients in float32 take the place of inner products, if they may."""

    alignment = 64  # of which the sides of a block are divisors
    wide = True

    def __init__(self, aggregation: Aggregation, directions: Directions, positive: Tensor, dtype: torch.dtype) -> None:
        super().__init__(aggregation, directions, positive, dtype)
        assert aggregation.kernel is not None
        self.kind, settings = aggregation.kernel
        # On the device, whether numbers or tensors: then nothing has to wait for their values.
        on_device = [
            value.detach().to(positive).view(1) if isinstance(value, Tensor) else positive.new_full((1,), float(value))
            for value in settings
        ]
        # Where there are none the kernel takes other memory, which it does not read.
        self.settings = torch.cat(on_device) if len(on_device) > 1 else (*on_device, positive)[0]
        _check_contiguous(positive=positive)
        self._merged: State = ()
        self._factors: Tensor | None = None
        self._given: tuple[Tensor | None, ...] = ()
        self._seen: dict[int, slice] = {}  # the anchors of each direction that have met a tile

    def take(self, products: Tensor, place: Place, *, may_overwrite: bool = True) -> None:
        super().take(products, place, may_overwrite=may_overwrite)
        of_rows, of_columns = place.row, place.column
        _check_contiguous(inv_norm_x=of_rows.inv_norm, inv_norm_y=of_columns.inv_norm)
        _check_contiguous(ids_x=of_rows.ids, ids_y=of_columns.ids)
        (rows, columns), (stride, step), start = products.shape, products.stride(), products.storage_offset()
        whole_rows, whole_columns = (triton.cdiv(n, self.alignment) * self.alignment for n in (rows, columns))
        end = start + (whole_rows - 1) * stride + whole_columns
        room = products.untyped_storage().nbytes() // products.element_size()
        if step != 1 or stride % self.alignment or stride < whole_columns or end > room:
            expected = f"expected rows that are contiguous, in memory of {whole_rows} x a multiple of {self.alignment}"
            raise ValueError(f"{expected}, got strides {products.stride()} and {room - start} entries")

    @property
    def _grid(self) -> tuple[int, int]:
        rows, columns = self.products.shape
        return triton.cdiv(rows, BLOCK_ROWS), triton.cdiv(columns, BLOCK_COLUMNS)

    def _launch(self, with_states: bool, state: State = (), factors: Tensor | None = None) -> Tensor:
        """Launch the kernels for what is wanted: the states of the tile, and, given factors, its gradient."""
        row, I, column, J, directions, diagonal = self.place  # noqa: E741
        with_ids = row.ids is not None and column.ids is not None
        exclude = "ids" if with_ids else "diagonal" if diagonal else "nothing"
        ids = (row.ids, column.ids) if with_ids else (None, None)
        products, shape, grid = self.products, self.products.shape, self._grid
        tensors = products, products.stride(0), row.inv_norm, column.inv_norm, *ids, self.positive, self.settings
        numbers = row.local(I).start, column.local(J).start, I.start, J.start, *shape
        parts: list[Tensor | None] = [None, None]
        if with_states:
            for k in directions:
                anchors = grid[k] * (BLOCK_COLUMNS if k else BLOCK_ROWS)
                count = len(self._running()) + (self.kind in ("logarithm", "several"))  # each sum with a shift
                parts[k] = self.positive.new_empty(count, grid[1 - k], anchors)
        gradient, grad_parameters, at = products, None, (0, 0)
        of_anchors: tuple[Tensor | None, ...] = (None, None, None)
        if factors is not None:
            slots = self.directions.slots
            at = tuple(slots.get(k, 0) * factors.shape[1] + self.place.anchors(k).start for k in (0, 1))
            of_anchors = self._of_anchors(state, factors)
            if self.dtype != products.dtype or not self.may_overwrite:
                gradient = tile_memory(products.new_empty(0, dtype=self.dtype), shape, self.alignment)[1]
            if self.aggregation.parameter is not None:
                grad_parameters = products.new_empty(1 + (self.kind == "pairs"), *grid)
        others = *parts, *of_anchors, *at, None if factors is None else gradient, grad_parameters
        blocks = {"KIND": self.kind, "BLOCK_ROWS": BLOCK_ROWS, "BLOCK_COLUMNS": BLOCK_COLUMNS}
        blocks["num_warps"] = WARPS_OF_SEVERAL if self.kind == "several" else WARPS
        used = {"ROWS": 0 in directions, "COLUMNS": 1 in directions}
        with torch.cuda.device_of(products):  # triton goes by the current device
            kernels.tile[grid](*tensors, *numbers, *others, EXCLUDE=exclude, **used, **blocks)
            if with_states:
                running = (*self._running(), None, None)[:3]
                kernels.merge[max(grid), 2](
                    *parts, *running, len(self.positive), I.start, J.start, *shape, *grid, **blocks
                )
        if grad_parameters is not None:
            self._sums = grad_parameters.sum((1, 2))
        return gradient

    def _of_anchors(self, state: State, factors: Tensor) -> tuple[Tensor | None, ...]:
        """The logarithms, the shares of the positives and the factors of all anchors: found once for all tiles."""
        if self._factors is not factors:
            logarithm, share = None, None
            if self.kind in ("logarithm", "several"):
                logarithm = state[0]
            if self.kind == "several":
                logarithm = torch.logaddexp(state[0], self.positive / self.settings[0])
                share = factors / (state[2] + 1)
            given = logarithm, share, factors
            self._factors, self._given = factors, tuple(None if part is None else part.contiguous() for part in given)
        return self._given

    def _running(self) -> tuple[Tensor, ...]:
        """The merged states of all anchors, each part ``[2, B]``; at first those of no candidate."""
        if not self._merged:
            lowest = 0.0 if self.kind in ("hinges", "exponentials", "pairs") else -torch.inf
            first = self.positive.new_full((2, len(self.positive)), lowest)
            others = {"hardest": 1, "hinges": 1, "several": 2}.get(self.kind, 0)
            dtype = torch.int64 if self.kind == "hardest" else first.dtype
            self._merged = first, *(torch.zeros_like(first, dtype=dtype) for _ in range(others))
        return self._merged

    def add_states(self) -> None:
        self._see()
        self._launch(True)

    def _see(self) -> None:
        for k in self.place.directions:
            anchors = self.place.anchors(k)
            seen = self._seen.get(k, anchors)
            self._seen[k] = slice(min(seen.start, anchors.start), max(seen.stop, anchors.stop))

    def state_of(self, direction: int) -> State | None:
        if direction not in self._seen:
            return None
        state = tuple(part[direction, self._seen[direction]] for part in self._running())
        return (state[0] * LN_2, *state[1:]) if self.kind in ("logarithm", "several") else state

    def one_pass(self, factors: Tensor) -> Tensor:
        self._see()
        return self._launch(True, (), factors)

    def grad_products(self, state: State, factors: Tensor) -> Tensor:
        if self.aggregation.selects:
            raise NotImplementedError("expected a fold of many pairs: one that selects a pair has no tile of weights")
        return self._launch(False, state, factors)

    def any_gradient(self) -> bool:
        return True

    def grad_parameter(self) -> Tensor:
        if self.kind != "pairs":
            return self._sums[0]
        temperature, bias = self.settings.unbind()
        of_z, total = self._sums.unbind()
        return torch.stack([of_z + bias * total, temperature * total])
