"""Every loss forward and backward, embeddings in, beside public implementations of the same loss.

``python -m benchmarks.losses`` writes results/losses.md and results/losses.csv. Normalisation is counted on both
sides. Peers: open_clip and sentence-transformers (NT-Xent), pytorch-metric-learning (NT-Xent and triplets; its triplets
hold O(B^3) indices, so that it stops at B = 128), and for the mined polynomial loss a Python loop over the anchors, as
its published implementation has it. Errors are of the gradient against float64, relative to its largest entry.
"""

import csv
from collections.abc import Callable
from pathlib import Path

import click
import open_clip
import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import NTXentLoss, TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.reducers import SumReducer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from benchmarks.measure import interleaved, machine
from crossmodal_losses import LOSSES

RESULTS = Path(__file__).parent / "results"
TEMPERATURE, MARGIN = 0.07, 0.2
Loss = Callable[[Tensor, Tensor], Tensor]


def open_clip_loss(x: Tensor, y: Tensor) -> Tensor:
    loss: Tensor = open_clip.ClipLoss()(normalize(x), normalize(y), 1 / TEMPERATURE)
    return 2 * loss


def sentence_transformers_loss(x: Tensor, y: Tensor) -> Tensor:
    loss = MultipleNegativesRankingLoss(
        torch.nn.Identity(),  # type: ignore[arg-type]  # the model, which is not used
        scale=1 / TEMPERATURE,
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )
    return 2 * loss.compute_loss_from_embeddings([x, y], None)


def metric_learning(loss: Callable[..., Tensor], miner: Callable[..., object] | None = None) -> Loss:
    """Both directions of a loss of pytorch-metric-learning; the copies of the labels are what it needs."""

    def both_ways(x: Tensor, y: Tensor) -> Tensor:
        labels = torch.arange(len(x), device=x.device)
        total = torch.zeros((), device=x.device)
        for a, b in ((x, y), (y, x)):
            mined = miner(a, labels, b, labels.clone()) if miner else None
            total = total + loss(a, labels, mined, ref_emb=b, ref_labels=labels.clone())
        return total

    return both_ways


def per_pair(loss: Loss) -> Loss:
    """A sum over pairs made the mean that equations 2 and 3 ask for."""
    return lambda x, y: loss(x, y) / len(x)


def loop_over_anchors(x: Tensor, y: Tensor) -> Tensor:
    """The mined polynomial loss one anchor at a time, with a mask and a maximum for each."""
    S = normalize(x) @ normalize(y).T
    total = S.new_zeros(())
    for T in (S, S.T):
        for i in range(len(T)):
            positive = T[i, i]
            if positive >= 1 - 1e-5:
                continue
            hardest = torch.cat([T[i, :i], T[i, i + 1 :]]).max()
            if hardest + MARGIN > positive:
                total = total + (0.5 - 0.7 * positive + 0.2 * positive**2).relu()
                total = total + (0.03 - 0.4 * hardest + 0.9 * hardest**2).relu()
    return total / len(S)


def triplets() -> TripletMarginLoss:
    return TripletMarginLoss(margin=MARGIN, distance=CosineSimilarity(), reducer=SumReducer())


# Loss: its peers, and the largest B at which each is run.
PEERS: dict[str, dict[str, tuple[Loss, int]]] = {
    "nt_xent": {
        "open_clip": (open_clip_loss, 4096),
        "sentence-transformers": (sentence_transformers_loss, 4096),
        "pytorch-metric-learning": (metric_learning(NTXentLoss(temperature=TEMPERATURE)), 1024),
    },
    "triplet_sum": {"pytorch-metric-learning": (per_pair(metric_learning(triplets())), 128)},
    "triplet_max": {
        "pytorch-metric-learning": (
            per_pair(metric_learning(triplets(), BatchHardMiner(distance=CosineSimilarity()))),
            4096,
        )
    },
    "triplet_weighted_mined": {"loop over anchors": (loop_over_anchors, 128)},
}


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
        shared = torch.randn(B, dimension, generator=generator)
        x, y = ((shared + torch.randn(B, dimension, generator=generator)).to(device).requires_grad_() for _ in range(2))
        exact = x.detach().double().requires_grad_(), y.detach().double().requires_grad_()
        for name, module in tqdm(LOSSES.items(), f"B = {B}", leave=False):
            ours = module()
            candidates = {"crossmodal_losses": ours} | {
                peer: loss for peer, (loss, largest) in PEERS.get(name, {}).items() if largest >= B
            }
            timings = interleaved(
                {peer: lambda loss=loss: gradients(loss, x, y) for peer, loss in candidates.items()},  # type: ignore[misc]
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
