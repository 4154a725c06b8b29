"""All measurements on a GPU: ``python -m benchmarks.gpu`` writes files that end in -gpu; by default in bfloat16.

* roofline: how close to its matrix products every loss comes, B = 16384 and 65536;
* baselines: times beside what torch.compile makes of all of S, and Inf-CL, from B = 4096 while they fit;
* memory: the peak beyond inputs and gradients, up to B = 262144;
* million: one step at B = 1048576;
* ranks: where there are several GPUs, batches of 65536 over them, and of 16384 on each.

Before anything is measured, value and gradients of every loss, over all of S and in tiles, must be those of all of S in
float64 on the same embeddings.
"""

import dataclasses
import functools
from pathlib import Path

import click
import torch
from tqdm import tqdm

from benchmarks import losses, memory, options, ranks, roofline
from benchmarks.baselines import COMPILED, INF_CL
from benchmarks.batch import Conditions, gradients
from benchmarks.measure import deviation, repeated
from benchmarks.results import Record, write_table
from crossmodal_losses import LOSSES, cosine_similarity


def check(conditions: Conditions, B: int, tile_size: int) -> None:
    """Compare value and gradients of every loss, over all of S and in tiles, with all of S in float64.

    Raises:
        click.ClickException: a value or a gradient is further away than ``ranks.TOLERANCE`` allows for this dtype.
    """
    x, y = conditions.embeddings(B)
    x64, y64 = (e.detach().double().requires_grad_() for e in (x, y))
    allowed = ranks.TOLERANCE[conditions.dtype]
    for name in conditions.losses:
        expected = LOSSES[name]().of_similarities(cosine_similarity(x64, y64))
        expected_gradients = torch.autograd.grad(expected, (x64, y64))
        for t in (None, tile_size):
            value = LOSSES[name](tile_size=t)(x, y)
            of_value = deviation([value.detach()], [expected.detach()])
            of_gradients = deviation(torch.autograd.grad(value, (x, y)), expected_gradients)
            if not max(of_value, of_gradients) <= allowed:
                raise click.ClickException(
                    f"expected {name} at B = {B}, tile size {t}, within {allowed:g} of float64, "
                    f"got {of_value:.1e} away in the value and {of_gradients:.1e} in the gradients"
                )


def measure_million(conditions: Conditions, B: int, folder: Path) -> None:
    """Time one step of every loss at a large B, after one at a smaller B."""
    x, y = conditions.embeddings(B)
    small = conditions.embeddings(min(B, 16384))
    records: list[Record] = []
    for name in tqdm(conditions.losses, f"one step at B = {B}"):
        loss = LOSSES[name]()
        gradients(loss, *small)
        seconds = repeated(functools.partial(gradients, loss, x, y), 1)
        records.append({"loss": name, "B": B, "D": conditions.D, "s": round(seconds, 3)})
    write_table(folder, "million-gpu", records, f"one forward and backward, {conditions}")


def parts_of(divisor: int) -> dict[str, tuple[click.Command, list[str]]]:
    """Return the parts that are other benchmarks, each with its arguments."""

    def sizes(option: str, *of: int) -> list[str]:
        return [word for size in of for word in (option, str(max(1, size // divisor)))]

    processes = [W for W in (1, 2, 4, 8) if torch.cuda.device_count() >= W]
    only = ["--only", COMPILED, "--only", INF_CL]
    ranks_sizes = [*sizes("-b", 65536), *sizes("--rows", 16384), *sizes("--tile-size", roofline.SIDE["cuda"])]
    return {
        "roofline": (roofline.main, [*sizes("-b", 16384, 65536), *sizes("--side", roofline.SIDE["cuda"])]),
        "baselines": (losses.main, [*sizes("-b", 4096, 16384, 65536), "--seconds", "0.5", *only]),
        "memory": (memory.main, [*sizes("-b", 16384, 65536, 262144), *sizes("--largest-dense", 32768)]),
        "ranks": (ranks.main, [*ranks_sizes, *(word for W in processes for word in ("-w", str(W)))]),
    }


PARTS = ("roofline", "baselines", "memory", "million", "ranks")
DIVISORS = click.Choice(["1", "2", "4", "8", "16", "32", "64"])


@click.command()
@options.several("--part", "parts", type=click.Choice(PARTS), default=PARTS, help=f"A part; {options.TIMES}.")
@options.conditions(dimension=1024, dtype="bfloat16")
@options.option("--divisor", type=DIVISORS, default="1", help="Divides every B: for a small GPU, or a trial.")
@options.out
def main(conditions: Conditions, parts: tuple[str, ...], divisor: str, folder: Path) -> None:
    """Check the losses on a CUDA device, then measure roofline, baselines, memory, a million pairs, and ranks."""
    if not torch.cuda.is_available():
        raise click.ClickException(f"expected a CUDA device, got none: torch {torch.__version__} sees no GPU")
    conditions = dataclasses.replace(conditions, device="cuda")
    check(conditions, 4096 // int(divisor), 1024 // int(divisor))
    shared = ["--device", "cuda", "--dtype", str(conditions.dtype).removeprefix("torch."), "--suffix", "gpu"]
    shared += ["--dimension", str(conditions.D), "--out", str(folder)]
    shared += [word for name in conditions.losses for word in ("--loss", name)]
    for part in parts:
        if part == "million":
            measure_million(conditions, (1 << 20) // int(divisor), folder)
        elif part == "ranks" and torch.cuda.device_count() < 2:
            click.echo(f"ranks are left out: expected 2 GPUs or more, got {torch.cuda.device_count()}")
        else:
            command, arguments = parts_of(int(divisor))[part]
            command.main([*arguments, *shared], standalone_mode=False)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
