"""Cnn14: its published names and sizes, and its forward pass against an independent computation."""

from pathlib import Path
from typing import Any

import pytest
import torch
from published import panns
from torch.nn import functional as F

from reference_model import InputError
from reference_model.models.cnn14 import Cnn14
from reference_model.models.panns import from_panns
from reference_model.models.resnet38 import ResNet38


def test_the_published_names_and_sizes() -> None:
    """Of the published 80,753,615 parameters, front-end apart, the two linear layers have 5,276,175."""
    encoder = Cnn14()
    assert sum(p.numel() for p in encoder.parameters()) == 80_753_615 - 5_276_175
    names = {f"conv_block{k}.{part}" for k in range(1, 7) for part in ("conv1.weight", "conv2.weight")}
    state = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    norms = {"bn0", *(f"conv_block{k}.bn{n}" for k in range(1, 7) for n in (1, 2))}
    assert encoder.state_dict().keys() == names | {f"{norm}.{part}" for norm in norms for part in state}
    assert encoder.output_size == 2048


def test_the_features_by_hand() -> None:
    torch.manual_seed(0)
    encoder, waveforms = Cnn14(width=1 / 16).eval(), 0.1 * torch.randn(2, 32_000)
    for name, tensor in encoder.state_dict().items():
        if "running_var" in name:
            tensor.uniform_(0.5, 1.5)

    def norm(x: torch.Tensor, name: str) -> Any:
        of: Any = dict(encoder.named_modules())[name]
        shape = (1, -1, 1, 1)
        scale = (of.weight / (of.running_var + 1e-5).sqrt()).view(shape)
        return (x - of.running_mean.view(shape)) * scale + of.bias.view(shape)

    with torch.no_grad():
        x = encoder.logmel(waveforms)[:, None].transpose(1, 3)
        x = norm(x, "bn0").transpose(1, 3)
        for k in range(1, 7):
            for n in (1, 2):
                weight = encoder.state_dict()[f"conv_block{k}.conv{n}.weight"]
                x = F.conv2d(x, weight, padding=1)
                x = norm(x, f"conv_block{k}.bn{n}").clamp(min=0)
            if k < 6:
                B, C, T, f = x.shape
                x = x[:, :, : T // 2 * 2, : f // 2 * 2].reshape(B, C, T // 2, 2, f // 2, 2).mean((3, 5))
        x = x.mean(3)
        expected = x.max(2).values + x.mean(2)
        torch.testing.assert_close(encoder(waveforms), expected, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_is_loaded_strictly(tmp_path: Path) -> None:
    encoder = Cnn14(width=1 / 16)
    torch.save(panns(encoder), tmp_path / "Cnn14.pth")
    torch.testing.assert_close(
        from_panns(Cnn14(width=1 / 16), tmp_path / "Cnn14.pth").state_dict(), encoder.state_dict()
    )
    with pytest.raises(InputError, match=r"expected the 239 arrays of ResNet38 in .*, got 77; "):
        from_panns(ResNet38(width=1 / 16), tmp_path / "Cnn14.pth")
