"""The published encoders, with random weights: a checkpoint in the layout of PANNs, and a small BERT in a folder."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertModel

from reference_model.models.bert import train_tokenizer
from reference_model.models.convolutional import PannsEncoder
from reference_model.models.resnet38 import ResNet38


def panns(encoder: PannsEncoder, sampler: Any = None) -> dict[str, Any]:
    """A checkpoint as PANNs writes it: of ResNet-38 246 entries in the model, and the sampler's state beside it."""
    front_end = {
        "spectrogram_extractor.stft.conv_real.weight": torch.zeros(513, 1, 1024),
        "spectrogram_extractor.stft.conv_imag.weight": torch.zeros(513, 1, 1024),
        "logmel_extractor.melW": torch.zeros(513, 64),
    }
    classifier = {"fc1.weight": torch.zeros(8, 2048), "fc1.bias": torch.zeros(8)}
    classifier |= {"fc_audioset.weight": torch.zeros(527, 8), "fc_audioset.bias": torch.zeros(527)}
    model = OrderedDict({**front_end, **encoder.state_dict(), **classifier})
    assert len(model) == 246 or not isinstance(encoder, ResNet38)
    return {"iteration": 600_000, "model": model, "sampler": sampler}


def save_bert(folder: Path, captions: list[str]) -> BertModel:
    """A folder in the layout of the published ones, with its tokenizer."""
    tokenizer = train_tokenizer(captions)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    bert = BertModel(BertConfig(vocab_size=len(tokenizer), **sizes))  # with the pooling layer, as published
    bert.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return bert
