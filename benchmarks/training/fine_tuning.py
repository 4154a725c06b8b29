"""How fast does the full model train, everything of it, beside a plain loop in the manner of the published code?

ResNet-38 and BERT-base with new weights, clips of noise, captions of 20 tokens, NT-Xent. The plain loop computes the
spectrogram of each clip on its own, with torchaudio's transforms, keeps PyTorch's default layout of images, takes the
loss from the dense matrix and updates parameter by parameter, in float32.
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
from torchaudio.transforms import AmplitudeToDB, MelSpectrogram
from tqdm import tqdm
from transformers import BertConfig, BertModel

from benchmarks import options
from benchmarks.measure import Call, interleaved, peak_memory
from benchmarks.results import Row, write_table
from benchmarks.training.frozen_runs import Setting, config
from reference_model.data.audio import SAMPLE_RATE
from reference_model.models.bert import TextEncoder
from reference_model.models.dual_encoder import DualEncoder
from reference_model.models.resnet38 import ResNet38
from reference_model.training.step import Step

TOKENS = 20
PLAIN = "plain loop"


class EachClip(nn.Module):
    """The front-end, clip by clip."""

    def __init__(self) -> None:
        super().__init__()
        self.mel = MelSpectrogram(
            SAMPLE_RATE,
            n_fft=1024,
            hop_length=320,
            f_min=50,
            f_max=14_000,
            n_mels=64,
            norm="slaney",
            mel_scale="slaney",
        )
        self.decibels = AmplitudeToDB("power")

    def forward(self, waveforms: Tensor) -> Tensor:
        return torch.stack([self.decibels(self.mel(waveform)).T for waveform in waveforms])


class Autocast(nn.Module):
    """The model in mixed precision, as ``--precision bf16`` has it."""

    def __init__(self, model: DualEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, waveforms: Tensor, **tokens: Tensor) -> Any:
        with torch.autocast(waveforms.device.type, torch.bfloat16):
            return self.model(waveforms, **tokens)


def new_model() -> DualEncoder:
    torch.manual_seed(0)
    bert = BertModel(BertConfig(), add_pooling_layer=False)
    return DualEncoder(ResNet38(), TextEncoder(bert), frozen=False, constant=False).train()


def batch(size: int, seconds: float, device: str) -> dict[str, Any]:
    return {
        "audio": {"waveforms": 0.1 * torch.randn(size, round(seconds * SAMPLE_RATE), device=device)},
        "text": {
            "input_ids": torch.randint(1000, 30_000, (size, TOKENS), device=device),
            "attention_mask": torch.ones(size, TOKENS, dtype=torch.int64, device=device),
        },
        "ids": torch.arange(size, device=device),
    }


def plain(size: int, seconds: float, device: str) -> Call:
    model = new_model()
    model.audio_encoder.logmel = EachClip()  # type: ignore[assignment]
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
    model = new_model().to(device)
    if compiled:
        model.audio_encoder.compile()
        model.text_encoder.compile()
    module: nn.Module = Autocast(model) if bf16 else model
    step = Step(module, config(Setting("AudioCaps", size, 1e-4), "nt_xent"), Accelerator(cpu=device == "cpu"))
    call = functools.partial(step, batch(size, seconds, device))
    call()
    return call


CANDIDATES: dict[str, Callable[[int, float, str], Call]] = {
    PLAIN: plain,
    "ours, float32": functools.partial(ours, bf16=False, compiled=False),
    "ours, bf16": functools.partial(ours, bf16=True, compiled=False),
    "ours, bf16, encoders compiled": functools.partial(ours, bf16=True, compiled=True),
    "ours, float32, encoders compiled": functools.partial(ours, bf16=False, compiled=True),
}


def measure(
    names: list[str], size: int, seconds_a_clip: float, *, device: str, seconds: float, rounds: int
) -> list[Row]:
    """A row for each; their steps in one interleaved run, their memory each in a fresh process."""
    calls = {name: CANDIDATES[name](size, seconds_a_clip, device) for name in tqdm(names, "warming up")}
    timings = interleaved(calls, seconds=seconds, rounds=rounds)
    del calls
    rows: list[Row] = []
    for name in tqdm(names, "memory"):
        peak = peak_memory(CANDIDATES[name], size, seconds_a_clip, device, device=device)
        rows.append(
            {"step": name, "batch": size, "s, a clip": seconds_a_clip, **timings[name].columns(),
             "clips a second": f"{1e3 * size / timings[name].median:.3g}",
             f"times the {PLAIN}'s speed": round(timings[PLAIN].median / timings[name].median, 2),
             "GiB above the weights": round(peak / 2**30, 2)}
        )  # fmt: skip
    return rows


@click.command()
@click.option("--batch-size", type=click.IntRange(2), help="Clips.  [default: 4, on a GPU 32]")
@click.option("--seconds-a-clip", type=float, default=10.0, show_default=True, help="Length of a clip.")
@click.option("--no-compile", is_flag=True, help="Leave out what has to be compiled, which takes minutes.")
@options.device
@options.repetitions(seconds=10.0, rounds=5)
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
    names = [name for name in CANDIDATES if not (no_compile and "compiled" in name)]
    rows = measure(names, size, seconds_a_clip, device=device, seconds=seconds, rounds=rounds)
    about = f"{device}; ResNet-38 and BERT-base, {TOKENS} tokens, everything trained"
    write_table(folder, "fine_tuning" + ("" if device == "cpu" else "-gpu"), rows, about)


if __name__ == "__main__":
    main()
