"""Numbers in the place of ids."""

import pytest
import torch

from crossmodal_losses.engine.problem import numbered


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32])
@pytest.mark.parametrize(
    "ids",
    [[], [7], [3, -1, 3, 2**62, -(2**62), -1], [5, 5 + 2**32, 5 + 2**33, 5], [2**24, 2**24 + 1, 2**24 + 2, 2**24 + 1]],
)
def test_numbers_are_equal_where_ids_are(ids: list[int], dtype: torch.dtype) -> None:
    """Those that a cast to 32 bits, or to a float, takes for equal too."""
    found = numbered(torch.tensor(ids, dtype=torch.int64), dtype)
    assert found.dtype == dtype
    assert found.tolist() == [sorted(set(ids)).index(value) for value in ids]
