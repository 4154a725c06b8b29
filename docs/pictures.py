"""Pictures of what a loss looks at: the similarities S of a small batch, and the gradient of the loss for each of them.

A picture is SVG text within a page. It takes its ink, ``currentColor``, from the page: it is readable in light and in
dark.
"""

import torch
from torch import Tensor

import crossmodal_losses
from crossmodal_losses import cosine_similarity

B, CELL, TOP, LEFT, BETWEEN = 8, 26, 44, 28, 52
SIDE = B * CELL
LOWERED, RAISED = "#D55E00", "#0072B2"  # Okabe and Ito's, which colour-blind readers can tell apart
# Losses whose picture has items that belong together: the first three pairs.
IDS = {"sup_con": torch.tensor([0, 0, 0, 1, 2, 3, 4, 5])}


def similarities() -> Tensor:
    """Return S of a batch, ``[B, B]``, as in the middle of training: most positives exceed most negatives."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(B, 12, generator=generator, dtype=torch.float64)
    return cosine_similarity(x, x + 0.9 * torch.randn(B, 12, generator=generator, dtype=torch.float64))


def gradient(loss: str) -> Tensor:
    """Return dL/dS of a loss with its default settings, ``[B, B]``."""
    S = similarities().requires_grad_()
    (grad,) = torch.autograd.grad(getattr(crossmodal_losses, loss)(S, ids=IDS.get(loss)), S)
    return grad


def _text(x: float, y: float, content: str, rest: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" {rest}>{content}</text>'


def _frame(left: float, title: str, below: str) -> list[str]:
    """The words around a panel, its frame, and squares around the positives."""
    middle, anchor = left + SIDE / 2, 'text-anchor="middle"'
    upright = f'transform="translate({left - 8} {TOP + SIDE / 2}) rotate(-90)"'
    square = 'fill="none" stroke="currentColor"'
    return [
        _text(middle, 14, title, f'{anchor} font-weight="bold"'),
        _text(middle, TOP - 8, "candidates y", f'{anchor} font-size="12"'),
        _text(0, 0, "anchors x", f'{anchor} font-size="12" {upright}'),
        _text(left, TOP + SIDE + 18, below, 'font-size="12"'),
        f'<rect x="{left}" y="{TOP}" width="{SIDE}" height="{SIDE}" {square} stroke-opacity="0.4"/>',
        *(
            f'<rect x="{left + i * CELL}" y="{TOP + i * CELL}" width="{CELL}" height="{CELL}" {square}/>'
            for i in range(B)
        ),
    ]  # fmt: skip


def _cells(left: float, values: Tensor, strength: Tensor) -> list[str]:
    """A panel's cells: raised, lowered, or without gradient; ink alone for similarities, which have no sign here."""
    cells = []
    for i in range(B):
        for j in range(B):
            value, opacity = float(values[i, j]), float(strength[i, j])
            x, y = left + j * CELL, TOP + i * CELL
            if value == 0:
                dot = f'cx="{x + CELL / 2}" cy="{y + CELL / 2}" r="1.5"'
                cells.append(f'<circle {dot} fill="currentColor" fill-opacity="0.5"/>')
                continue
            fill = "currentColor" if values is strength else LOWERED if value > 0 else RAISED
            box = f'x="{x + 1}" y="{y + 1}" width="{CELL - 2}" height="{CELL - 2}"'
            cells.append(f'<rect {box} fill="{fill}" fill-opacity="{opacity:.2f}"><title>{value:.2g}</title></rect>')
    return cells


def picture(loss: str) -> str:
    """Return the picture of a loss: S on the left; on the right, what a step of descent raises and lowers of it."""
    grad = gradient(loss)
    shown = similarities().clamp(min=0.01)
    right = LEFT + SIDE + BETWEEN
    legend = f'<tspan fill="{RAISED}">■</tspan> raised <tspan fill="{LOWERED}">■</tspan> lowered · no gradient'
    parts = [
        *_frame(LEFT, "S", "the stronger, the more similar"),
        *_cells(LEFT, shown, shown),
        *_frame(right, "what a step does to S", legend),
        *_cells(right, grad, 0.15 + 0.85 * grad.abs() / grad.abs().max()),
    ]
    width, height = right + SIDE + 6, TOP + SIDE + 26
    label = f"S of {B} pairs, and which of them {loss} raises and lowers"
    return (
        f'<svg class="picture" role="img" aria-label="{label}" viewBox="0 0 {width} {height}" width="{width}" '
        f'font-family="sans-serif" font-size="14" fill="currentColor">{"".join(parts)}</svg>'
    )


def reached(loss: str) -> tuple[int, int]:
    """Return how many of the positives, and of the other pairs, have a gradient in the picture."""
    moved = gradient(loss) != 0
    positive = int(moved.diagonal().sum())
    return positive, int(moved.sum()) - positive
