"""How fast does the full model train, everything of it, beside a plain loop in the manner of the published code?

ResNet-38 and BERT-base with new weights, clips of noise, captions of 20 tokens, NT-Xent. The plain loop computes the
spectrogram of each clip on its own, keeps PyTorch's default layout of images, takes the loss from the dense matrix and
updates parameter by parameter, in float32. Its front-end is the one of the reference model, called once for each clip,
so both loops train on the same spectrograms.

``python -m benchmarks.training.fine_tuning`` writes fine_tuning.csv and .md.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from tqdm import tqdm
from transformers import BertConfig, BertModel

from benchmarks import options
from benchmarks.measure import Call, interleaved, peak_memory
from benchmarks.results import Record, write_table
from benchmarks.training.frozen_runs import config
from reference_model.data.audio import SAMPLE_RATE
from reference_model.models.bert import train_tokenizer
from reference_model.models.dual_encoder import DualEncoder, Inputs
from reference_model.models.logmel import LogMel
from reference_model.models.resnet38 import ResNet38
from reference_model.models.text import TextEncoder
from reference_model.training.step import Step

TOKENS = 20
PLAIN = "plain loop"


class LogMelOfEachClip(LogMel):
    """The front-end, clip by clip."""

    def forward(self, waveforms: Tensor) -> Tensor:
        """Return the spectrograms, ``[B, frames, 64]``."""
        return torch.cat([super(LogMelOfEachClip, self).forward(waveform[None]) for waveform in waveforms])


class Autocast(nn.Module):
    """The model in mixed precision, as with ``--precision bf16``."""

    def __init__(self, model: DualEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, audio: Inputs, text: Inputs) -> Any:
        """Return the embeddings of clips and captions."""
        with torch.autocast(audio["waveforms"].device.type, torch.bfloat16):
            return self.model(audio, text)


def new_model() -> DualEncoder:
    """Return the full model with new weights, always the same, in train mode."""
    torch.manual_seed(0)
    bert = BertModel(config := BertConfig(), add_pooling_layer=False)
    return DualEncoder(ResNet38(), TextEncoder(bert, config, train_tokenizer([""]), "first")).train()


def batch(size: int, seconds: float, device: str) -> dict[str, Any]:
    """Return a batch of noise and random tokens."""
    tokens = {
        "input_ids": torch.randint(1000, 30_000, (size, TOKENS), device=device),
        "attention_mask": torch.ones(size, TOKENS, dtype=torch.int64, device=device),
    }
    waveforms = 0.1 * torch.randn(size, round(seconds * SAMPLE_RATE), device=device)
    ids = torch.arange(size, device=device)
    return {"audio": {"audio": {"waveforms": waveforms}}, "text": {"text": tokens}, "ids": ids}


def plain(size: int, seconds: float, device: str) -> Call:
    """Return a step of the plain loop, after one such step."""
    model = new_model()
    model.audio_encoder.logmel = LogMelOfEachClip()
    model.to(device, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, foreach=False)
    given, target = batch(size, seconds, device), torch.arange(size, device=device)

    def step() -> None:
        x, y = model(**given["audio"], **given["text"])
        S = normalize(x) @ normalize(y).T / 0.07
        optimizer.zero_grad()
        (cross_entropy(S, target) + cross_entropy(S.T, target)).backward()
        optimizer.step()

    step()
    return step


def ours(size: int, seconds: float, device: str, *, bf16: bool, compiled: bool) -> Call:
    """Return a step of the reference model's training, after one such step."""
    model = new_model().to(device)
    if compiled:
        model.audio_encoder.compile()
        model.text_encoder.compile()
    module: nn.Module = Autocast(model) if bf16 else model
    step = Step(module, config("AudioCaps", size, "nt_xent"), Accelerator(cpu=device == "cpu"))
    call = functools.partial(step, batch(size, seconds, device))
    call()
    return call


IMPLEMENTATIONS: dict[str, Callable[[int, float, str], Call]] = {
    PLAIN: plain,
    "ours, float32": functools.partial(ours, bf16=False, compiled=False),
    "ours, bf16": functools.partial(ours, bf16=True, compiled=False),
    "ours, bf16, encoders compiled": functools.partial(ours, bf16=True, compiled=True),
    "ours, float32, encoders compiled": functools.partial(ours, bf16=False, compiled=True),
}


def measure(
    names: list[str], size: int, seconds_a_clip: float, *, device: str, seconds: float, rounds: int
) -> list[Record]:
    """Return a record for each implementation: steps timed in one interleaved run, memory each in a new process."""
    calls = {name: IMPLEMENTATIONS[name](size, seconds_a_clip, device) for name in tqdm(names, "warming up")}
    timings = interleaved(calls, seconds=seconds, rounds=rounds)
    del calls
    records: list[Record] = []
    for name in tqdm(names, "memory"):
        peak = peak_memory(IMPLEMENTATIONS[name], size, seconds_a_clip, device, device=device)
        record = {"step": name, "batch": size, "s, a clip": seconds_a_clip, **timings[name].columns()}
        record["clips a second"] = f"{1e3 * size / timings[name].median:.3g}"
        record[f"times the {PLAIN}'s speed"] = round(timings[PLAIN].median / timings[name].median, 2)
        record["GiB above the weights"] = round(peak / 2**30, 2)
        records.append(record)
    return records


@click.command()
@click.option("--batch-size", type=click.IntRange(2), help="Clips.  [default: 4, on a GPU 32]")
@options.option("--seconds-a-clip", type=float, default=10.0, help="Length of a clip.")
@click.option("--no-compile", is_flag=True, help="Leave out what has to be compiled, which takes minutes.")
@options.device
@options.seconds(10.0)
@options.rounds(5)
@options.out
def main(
    batch_size: int | None,
    seconds_a_clip: float,
    no_compile: bool,
    device: str,
    seconds: float,
    rounds: int,
    folder: Path,
) -> None:
    """Time steps of fine-tuning at full size, and their peak memory."""
    size = batch_size or (4 if device == "cpu" else 32)
    names = [name for name in IMPLEMENTATIONS if not (no_compile and "compiled" in name)]
    records = measure(names, size, seconds_a_clip, device=device, seconds=seconds, rounds=rounds)
    about = f"{device}; ResNet-38 and BERT-base, {TOKENS} tokens, everything trained"
    write_table(folder, "fine_tuning" + ("" if device == "cpu" else "-gpu"), records, about)


if __name__ == "__main__":
    main()
