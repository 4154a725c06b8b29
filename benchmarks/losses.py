"""Every loss forward and backward, embeddings in, beside public implementations of the same loss.

``python -m benchmarks.losses`` writes results/losses.md and results/losses.csv. Normalisation is counted on both
sides. The peers are those of peers.py. Errors are of the gradient against float64, relative to its largest entry.
"""

import csv
import functools
from pathlib import Path

import click
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.measure import interleaved, machine
from benchmarks.peers import PEERS, Loss
from crossmodal_losses import LOSSES

RESULTS = Path(__file__).parent / "results"


def gradients(loss: Loss, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss(x, y), (x, y))


@click.command()
@click.option("--batch-sizes", "-b", multiple=True, type=int, default=(32, 128, 1024, 4096), show_default=True)
@click.option("--dimension", type=int, default=1024, show_default=True)
@click.option("--seconds", type=float, default=1.0, show_default=True, help="Of measuring per candidate and size.")
def main(batch_sizes: tuple[int, ...], dimension: int, seconds: float) -> None:
    """Forward and backward of every loss beside its peers, float32, medians and quartiles of interleaved runs."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for B in tqdm(batch_sizes, "batch sizes"):
        generator = torch.Generator().manual_seed(B)
        # Positives around 0.1, as early in training: every loss has violations, and gradients.
        shared = torch.randn(B, dimension, generator=generator)
        x, y = (
            (shared + 3 * torch.randn(B, dimension, generator=generator)).to(device).requires_grad_() for _ in range(2)
        )
        exact = x.detach().double().requires_grad_(), y.detach().double().requires_grad_()
        for name, module in tqdm(LOSSES.items(), f"B = {B}", leave=False):
            ours = module()
            candidates = {"crossmodal_losses": ours} | {
                peer: loss for peer, (loss, largest) in PEERS.get(name, {}).items() if largest >= B
            }
            timings = interleaved(
                {peer: functools.partial(gradients, loss, x, y) for peer, loss in candidates.items()},
                seconds=seconds,
            )
            expected = gradients(ours, *exact)
            scale = max(float(g.abs().max()) for g in expected)
            for peer, loss in candidates.items():
                error = max(
                    float((g.double() - e).abs().max()) for g, e in zip(gradients(loss, x, y), expected, strict=True)
                )
                t = timings[peer]
                rows.append(
                    {"loss": name, "B": B, "D": dimension, "implementation": peer, "ms": round(t.median, 3),
                     "lower quartile": round(t.lower, 3), "upper quartile": round(t.upper, 3),
                     "times ours": round(t.median / timings["crossmodal_losses"].median, 2),
                     "error": f"{error / (scale or 1):.0e}"}
                )  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "losses.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    header = list(rows[0])
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    lines += [f"| {' | '.join(str(value) for value in row.values())} |" for row in rows]
    text = f"{machine()}; forward and backward, float32\n\n" + "\n".join(lines) + "\n"
    (RESULTS / "losses.md").write_text(text, encoding="utf-8")
    click.echo(text)


if __name__ == "__main__":
    main()
