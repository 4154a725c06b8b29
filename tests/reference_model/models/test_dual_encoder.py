"""The encoders of each model, the heads on them, frozen and fine-tuned, and one training step at full size."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

from crossmodal_losses import NTXent
from reference_model.config import Config
from reference_model.data.batches import pad_tokens
from reference_model.models.bert import train_tokenizer
from reference_model.models.dual_encoder import DualEncoder, Heads, new_model
from reference_model.models.resnet38 import ResNet38
from reference_model.models.text import TextEncoder

CAPTIONS = ["A low hum", "A high hum and a click", "Two clicks", "Nothing but hiss"]


def batch(tokens: list[list[int]], samples: int) -> dict[str, Any]:
    waveforms = 0.1 * torch.randn(len(tokens), samples, generator=torch.Generator().manual_seed(0))
    return {"audio": {"waveforms": waveforms}, "text": pad_tokens(tokens)}


def test_a_head_is_two_linear_layers_with_a_relu_between_them_and_a_norm_of_one() -> None:
    """Worked by hand: hidden values 3 and -4, of which the negative one becomes 0."""
    heads = Heads(2, 1, hidden_size=2, embedding_size=2)
    second = {"2.weight": [[1.0, 5.0], [0.0, 7.0]], "2.bias": [0.0, 4.0]}
    weights = {
        "audio": {"0.weight": [[1.0, 1.0], [-2.0, 1.0]], "0.bias": [0.0, 0.0], **second},
        "text": {"0.weight": [[2.0], [-5.0]], "0.bias": [1.0, 1.0], **second},
    }
    heads.load_state_dict({f"{m}.{n}": torch.tensor(value) for m, of in weights.items() for n, value in of.items()})
    audio, text = heads(torch.tensor([[7 / 3, 2 / 3]]), torch.tensor([[1.0]]))
    # Audio: 7/3 + 2/3 = 3 and -14/3 + 2/3 = -4; then 3 + 0 and 0 + 4, of length 5. Text: 2 + 1 = 3 and -5 + 1 = -4.
    torch.testing.assert_close((audio, text), (torch.tensor([[0.6, 0.8]]), torch.tensor([[0.6, 0.8]])))


@pytest.mark.parametrize("encoders", ["frozen", "fine-tuned"])
def test_frozen_encoders_stay_and_heads_learn(config: Config, encoders: Any) -> None:
    torch.manual_seed(0)
    model = new_model(replace(config, encoders=encoders), CAPTIONS)
    inputs = batch(model.text_encoder.tokenize(CAPTIONS), 16_000)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    x, y = model(**inputs)
    torch.testing.assert_close((x.norm(dim=1), y.norm(dim=1)), (torch.ones(4), torch.ones(4)))
    NTXent()(x, y).backward()
    torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2).step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {"heads.audio.0.weight", "heads.text.2.bias"} <= changed
    in_encoders = {name for name in changed if name.startswith(("audio_encoder", "text_encoder"))}
    if encoders == "frozen":
        assert not in_encoders  # neither weights nor batch-norm statistics
        model.heads.eval()
        assert torch.equal(model(inputs["audio"])[0], model(inputs["audio"])[0])
    else:
        assert {"audio_encoder.conv_block1.conv1.weight", "audio_encoder.bn0.running_mean"} <= in_encoders
        assert any(name.startswith("text_encoder.bert.encoder.layer.0") for name in in_encoders)


def test_one_training_step_at_full_size() -> None:
    """ResNet-38 and BERT-base with the paper's heads, new weights: every parameter is reached and moves."""
    torch.manual_seed(0)
    bert = BertModel(settings := BertConfig(), add_pooling_layer=False)
    audio = ResNet38()
    model = DualEncoder(audio, TextEncoder(bert, settings, train_tokenizer(CAPTIONS), "first"))
    assert sum(p.numel() for p in model.parameters()) > 180_000_000
    assert model.heads.audio[0].weight.shape == (2048, 2048)
    assert model.heads.audio[2].weight.shape == (1024, 2048)
    assert model.heads.text[0].weight.shape == (2048, 768)
    model.train()
    inputs = batch([[101, 2000, 3000, 102], [101, 4000, 102]], 32_000)
    x, y = model(**inputs)
    assert x.shape == y.shape == (2, 1024)
    NTXent()(x, y).backward()
    weight = audio.conv_block_after1.conv2.weight
    before = weight.detach().clone()
    torch.optim.Adam(model.parameters(), lr=1e-4).step()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert not torch.equal(before, weight)
