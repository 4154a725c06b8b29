"""The losses as one would write them by hand: all of S, natural operations, gradients by autograd.

There are several forms of each, because none is the fastest everywhere. Pairs are distinct, settings are the default
ones, and the value is the mean over anchors.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, softplus

from benchmarks.batch import Loss

MARGIN = 0.2
TEMPERATURE = 0.07
SIGMOID_TEMPERATURE, SIGMOID_BIAS = 0.1, -10.0
PERFECT = 1 - 1e-5


def similarities(x: Tensor, y: Tensor) -> Tensor:
    """Compute S, ``[B, B]``."""
    return normalize(x) @ normalize(y).T


def diagonal(S: Tensor) -> Tensor:
    """Return the mask of the positives, bool ``[B, B]``."""
    return torch.eye(len(S), dtype=torch.bool, device=S.device)


def logits(x: Tensor, y: Tensor) -> Tensor:
    """Compute S / temperature, ``[B, B]``, by a division of x, which is smaller than S."""
    return (normalize(x) / TEMPERATURE) @ normalize(y).T


def nt_xent_cross_entropy(x: Tensor, y: Tensor) -> Tensor:
    """Compute equation 7."""
    S = logits(x, y)
    labels = torch.arange(len(S), device=S.device)
    return cross_entropy(S, labels) + cross_entropy(S.T, labels)


def nt_xent_logsumexp(x: Tensor, y: Tensor) -> Tensor:
    """Compute equation 7."""
    S = logits(x, y)
    return (S.logsumexp(1) + S.logsumexp(0) - 2 * S.diagonal()).mean()


def triplet_sum_masked(x: Tensor, y: Tensor) -> Tensor:
    """Compute equation 2."""
    S = similarities(x, y)
    shift = MARGIN - S.diagonal()
    hinges = (S + shift[:, None]).relu() + (S + shift).relu()
    return (hinges * ~diagonal(S)).sum() / len(S)


def triplet_sum_subtracted(x: Tensor, y: Tensor) -> Tensor:
    """Compute equation 2; on the diagonal a hinge is the margin, whatever the similarity."""
    S = similarities(x, y)
    shift = MARGIN - S.diagonal()
    return ((S + shift[:, None]).relu().sum() + (S + shift).relu().sum()) / len(S) - 2 * MARGIN


def sigmoid(x: Tensor, y: Tensor) -> Tensor:
    """Compute the sigmoid loss: -log sigma(z) is softplus(z) - z."""
    z = similarities(x, y) / SIGMOID_TEMPERATURE + SIGMOID_BIAS
    return (softplus(z).sum() - z.diagonal().sum()) / len(z)


def hardest_by_max(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the positives, ``[B]``, and the hardest negatives of rows and columns, ``[2, B]``."""
    S = similarities(x, y)
    negatives = S.clone().fill_diagonal_(-torch.inf)
    return S.diagonal(), torch.stack([negatives.max(1).values, negatives.max(0).values])


def hardest_by_amax(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same; ``amax`` divides the gradient among ties."""
    S = similarities(x, y)
    negatives = S.masked_fill(diagonal(S), -torch.inf)
    return S.diagonal(), torch.stack([negatives.amax(1), negatives.amax(0)])


def triplet_max(positive: Tensor, hardest: Tensor) -> Tensor:
    """Compute equation 3 of the positives and the hardest negatives."""
    return (MARGIN + hardest - positive).relu().sum() / len(positive)


def _g_positive(s: Tensor) -> Tensor:
    return 0.5 - 0.7 * s + 0.2 * s**2


def _g_negative(s: Tensor) -> Tensor:
    return 0.03 - 0.4 * s + 0.9 * s**2


def triplet_weighted(positive: Tensor, hardest: Tensor) -> Tensor:
    """Compute equation 6 of the positives and the hardest negatives."""
    return (_g_positive(positive) + _g_negative(hardest)).relu().sum() / len(positive)


def triplet_weighted_mined(positive: Tensor, hardest: Tensor) -> Tensor:
    """Compute the mined rule of Wei et al. 2020 of the positives and the hardest negatives."""
    counts = (hardest + MARGIN > positive) & (positive < PERFECT)
    return ((_g_positive(positive).relu() + _g_negative(hardest).relu()) * counts).sum() / len(positive)


def of_hardest(rule: Callable[..., Tensor], hardest: Callable[..., tuple[Tensor, Tensor]]) -> Loss:
    """Return a loss of x and y from a rule above and the way in which its hardest negatives are found."""
    return lambda x, y: rule(*hardest(x, y))
