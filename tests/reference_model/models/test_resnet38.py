"""ResNet-38: its published names and sizes, and its forward pass against an independent computation."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_model.data.audio import SHORTEST
from reference_model.models.resnet38 import ResNet38

PUBLISHED_NAMES = {
    *(f"bn0.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
    *("conv_block1.conv1.weight", "conv_block1.bn2.running_var"),
    *("resnet.layer1.0.conv1.weight", "resnet.layer1.2.bn2.bias", "resnet.layer2.3.conv2.weight"),
    *("resnet.layer2.0.downsample.1.weight", "resnet.layer2.0.downsample.2.running_mean"),
    *("resnet.layer3.5.bn1.weight", "resnet.layer4.0.downsample.2.bias", "resnet.layer4.2.conv2.weight"),
    *("conv_block_after1.conv2.weight", "conv_block_after1.bn1.weight"),
}


def test_published_architecture() -> None:
    encoder = ResNet38()
    state = encoder.state_dict()
    assert len(state) == 239
    assert state.keys() >= PUBLISHED_NAMES
    assert "resnet.layer1.0.downsample.1.weight" not in state
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 68_507_072
    assert state["conv_block_after1.conv2.weight"].shape == (2048, 2048, 3, 3)
    ends = [value for name, value in state.items() if name.startswith("resnet") and name.endswith("bn2.weight")]
    assert len(ends) == 16
    assert all((end == 0).all() for end in ends)  # a new block is the identity


def naive_resnet38(state: dict[str, Tensor], logmel: Tensor) -> Tensor:
    """The network in eval mode as a list of functions of its arrays."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        scale = state[f"{name}.weight"] / torch.sqrt(variance + 1e-5)
        return (x - mean[:, None, None]) * scale[:, None, None] + state[f"{name}.bias"][:, None, None]

    def conv_block(x: Tensor, name: str) -> Tensor:
        for k in (1, 2):
            x = norm(F.conv2d(x, state[f"{name}.conv{k}.weight"], padding=1), f"{name}.bn{k}").clamp(min=0)
        return x

    x = norm(logmel[:, None].transpose(1, 3).transpose(1, 1), "bn0").transpose(1, 3)
    x = F.avg_pool2d(conv_block(x, "conv_block1"), 2)
    for layer, depth in enumerate((3, 4, 6, 3), start=1):
        for index in range(depth):
            name = f"resnet.layer{layer}.{index}"
            shortcut = x
            if layer > 1 and index == 0:
                x = F.avg_pool2d(x, 2)
                shortcut = norm(F.conv2d(x, state[f"{name}.downsample.1.weight"]), f"{name}.downsample.2")
            y = norm(F.conv2d(x, state[f"{name}.conv1.weight"], padding=1), f"{name}.bn1").clamp(min=0)
            y = norm(F.conv2d(y, state[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
            x = (y + shortcut).clamp(min=0)
    x = conv_block(F.avg_pool2d(x, 2), "conv_block_after1")
    over_frequency = x.mean(3)
    return over_frequency.max(2).values + over_frequency.mean(2)


def test_forward_equals_an_independent_computation() -> None:
    torch.manual_seed(0)
    encoder = ResNet38(width=1 / 16)
    for name, value in encoder.state_dict().items():  # as after training: no scale 0, no statistics 0 and 1
        if "bn" in name or "downsample.2" in name:
            value.copy_(torch.rand(value.shape) + 0.5 if value.is_floating_point() else value)
    encoder.eval()
    waveforms = 0.1 * torch.randn(2, 24_000)
    with torch.no_grad():
        expected = naive_resnet38(encoder.state_dict(), encoder.logmel(waveforms))
        torch.testing.assert_close(encoder(waveforms), expected, rtol=1e-4, atol=1e-4)


def test_width_and_shortest_clip() -> None:
    encoder = ResNet38(width=1 / 8).eval()
    assert encoder(torch.zeros(2, SHORTEST)).shape == (2, 256)
    assert encoder.output_size == 256
    words = r"expected waveforms of shape \[B, samples\] with at least 9920 samples .*got"
    with pytest.raises(ValueError, match=words):
        encoder(torch.zeros(2, SHORTEST - 1))
    with pytest.raises(ValueError, match=r"got \[9920\]"):
        encoder(torch.zeros(SHORTEST))


def test_the_stripes_stand_after_bn0() -> None:
    torch.manual_seed(0)
    encoder, waveforms = ResNet38(width=1 / 16, spec_augment=True).train(), torch.randn(4, 32_000)
    seen: dict[str, Tensor] = {}
    encoder.spec_augment.register_forward_hook(lambda _, inputs, output: seen.update(before=inputs[0], after=output))
    encoder(waveforms)
    decibels = encoder.logmel(waveforms)
    normalised = (decibels - decibels.mean((0, 1))) / decibels.var((0, 1), unbiased=False).add(1e-5).sqrt()
    torch.testing.assert_close(seen["before"][:, 0], normalised, rtol=1e-3, atol=1e-3)
    assert (seen["after"] == 0).any()
    assert isinstance(ResNet38(width=1 / 16).spec_augment, nn.Identity)
