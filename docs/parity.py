"""The losses of other libraries, and the lines that take their place.

One table makes the pages "coming from", and is what the tests run: ``old`` and ``new`` are Python, evaluated with the
names that :func:`names` returns. ``python -m docs.parity`` writes the values that the pages show.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

VALUES = Path(__file__).with_name("parity.json")
B, D = 48, 32


@dataclass(frozen=True)
class Line:
    """A line of another library, and ours.

    Attributes:
        library: page that the line stands on.
        loss: our loss, a key of ``LOSSES``.
        imports: what the old line needs.
        old, new: expressions with the value of the loss.
        factor: new = factor x old; an expression of B, or "none": there is no constant.
        differs: what is different, apart from the factor.
    """

    library: str
    loss: str
    imports: str
    old: str
    new: str
    factor: str
    differs: str

    @property
    def name(self) -> str:
        """Both lines: what its values are known by."""
        return f"{self.old} -> {self.new}"


PML, ST, OPEN_CLIP, HF, VSEPP = LIBRARIES = (
    "pytorch_metric_learning", "sentence_transformers", "open_clip", "transformers", "vsepp"
)  # fmt: skip
_LOSSES = "from pytorch_metric_learning.losses import "
_RANKING = "from sentence_transformers.sentence_transformer.losses import "
_TRIPLET = (
    "from pytorch_metric_learning.distances import CosineSimilarity\n"
    "from pytorch_metric_learning.miners import BatchHardMiner\n"
    "from pytorch_metric_learning.reducers import SumReducer\n"
    f"{_LOSSES}TripletMarginLoss"
)
_PAIR = "x, labels, ref_emb=y, ref_labels=labels.clone()"
_OTHER_PAIR = "y, labels, ref_emb=x, ref_labels=labels.clone()"
_TRIPLET_LOSS = "TripletMarginLoss(margin=0.2, distance=CosineSimilarity(), reducer=SumReducer())"
_MINED = "BatchHardMiner(distance=CosineSimilarity())(x, labels, y, labels.clone())"

LINES = (
    Line(
        PML, "nt_xent", f"{_LOSSES}NTXentLoss", f"NTXentLoss(temperature=0.07)({_PAIR})",
        "NTXent(temperature=0.07, direction_weights=(1, 0))(x, y)", "1", "One direction, x to y.",
    ),
    Line(
        PML, "nt_xent", f"{_LOSSES}NTXentLoss",
        f"NTXentLoss(temperature=0.07)({_PAIR}) + NTXentLoss(temperature=0.07)({_OTHER_PAIR})",
        "NTXent(temperature=0.07)(x, y)", "1", "Both directions: S is computed once, not twice.",
    ),
    Line(
        PML, "sup_con", f"{_LOSSES}SupConLoss",
        "SupConLoss(temperature=0.1)(x, ids, ref_emb=y, ref_labels=ids.clone())",
        "SupCon(temperature=0.1, direction_weights=(1, 0))(x, y, ids)", "1", "One direction, several positives.",
    ),
    Line(
        PML, "triplet_sum", _TRIPLET, f"{_TRIPLET_LOSS}({_PAIR})",
        "TripletSum(margin=0.2, direction_weights=(1, 0))(x, y)", "1 / B",
        "A sum there, a mean over anchors here. It makes B x B x B triplets. Without `SumReducer` it is the mean over "
        "the triplets above 0, whose number changes from step to step: no constant.",
    ),
    Line(
        PML, "triplet_max", _TRIPLET, f"{_TRIPLET_LOSS}(x, labels, {_MINED}, ref_emb=y, ref_labels=labels.clone())",
        "TripletMax(margin=0.2, direction_weights=(1, 0))(x, y)", "1 / B", "A sum there, a mean over anchors here.",
    ),
    Line(
        ST, "nt_xent", f"{_RANKING}MultipleNegativesRankingLoss",
        "MultipleNegativesRankingLoss(model)([anchors, positives], None)",
        "NTXent(temperature=0.05, direction_weights=(1, 0))(x, y)", "1",
        "One direction by default: y as anchors are not trained. Its scale 20 is temperature 1 / 20.",
    ),
    Line(
        ST, "nt_xent", f"{_RANKING}MultipleNegativesRankingLoss",
        "MultipleNegativesRankingLoss(model)([anchors, positives, others], None)",
        "NTXent(temperature=0.05, direction_weights=(1, 0))(x, y, negatives_y=negatives)", "1",
        "Columns of negatives are candidates without a partner here, and need not be as many as the pairs.",
    ),
    Line(
        ST, "nt_xent", f"{_RANKING}MultipleNegativesRankingLoss",
        "MultipleNegativesRankingLoss(model, directions=('query_to_doc', 'doc_to_query'), "
        "partition_mode='per_direction')([anchors, positives], None)",
        "NTXent(temperature=0.05, direction_weights=(0.5, 0.5))(x, y)", "1",
        "The mean of both directions, known as `MultipleNegativesSymmetricRankingLoss` before; "
        "`NTXent(temperature=0.05)` is their sum.",
    ),
    Line(
        ST, "nt_xent", f"{_RANKING}CachedMultipleNegativesRankingLoss",
        "CachedMultipleNegativesRankingLoss(model, mini_batch_size=16)([anchors, positives], None)",
        "GradientCache(NTXent(temperature=0.05, direction_weights=(1, 0)), micro_batch_size=16)(encode, encode, x, y)",
        "1", "`encode` is any function or module; the negatives go through it too.",
    ),
    Line(
        OPEN_CLIP, "nt_xent", "from open_clip.loss import ClipLoss",
        "ClipLoss()(normalize(x), normalize(y), logit_scale)",
        "NTXent(direction_weights=(0.5, 0.5))(x, y, temperature=1 / logit_scale)", "1",
        "The mean of both directions. Rows need not be normalised here.",
    ),
    Line(
        OPEN_CLIP, "nt_xent", "from open_clip.loss import ClipLoss",
        "ClipLoss()(normalize(x), normalize(y), logit_scale)", "NTXent()(x, y, temperature=1 / logit_scale)", "2",
        "The default is equation 7, the sum of both directions.",
    ),
    Line(
        OPEN_CLIP, "sigmoid", "from open_clip.loss import SigLipLoss",
        "SigLipLoss()(normalize(x), normalize(y), logit_scale, logit_bias)",
        "Sigmoid()(x, y, temperature=1 / logit_scale, bias=logit_bias)", "1", "Nothing.",
    ),
    Line(
        HF, "nt_xent", "", "clip(**images_and_texts, return_loss=True).loss",
        "NTXent(direction_weights=(0.5, 0.5))(out.image_embeds, out.text_embeds, "
        "temperature=(-clip.logit_scale).exp())", "1", "`out` is what the model returns. The mean of both directions.",
    ),
    Line(
        HF, "nt_xent", "", "clap(**sounds_and_texts, return_loss=True).loss",
        "NTXent(direction_weights=(1, 0))(heard.text_embeds, heard.audio_embeds, "
        "temperature=(-clap.logit_scale_t).exp())", "1",
        "`heard` is what the model returns. It takes one direction twice, from text to audio: sounds as anchors are "
        "not trained. Its two scales, equal at first, share it.",
    ),
    Line(
        HF, "nt_xent", "", "clap(**sounds_and_texts, return_loss=True).loss",
        "NTXent(direction_weights=(0.5, 0.5))(heard.audio_embeds, heard.text_embeds, "
        "temperature=(-clap.logit_scale_t).exp())", "none", "Both directions.",
    ),
    Line(
        HF, "sigmoid", "", "siglip(**images_and_words, return_loss=True).loss",
        "Sigmoid()(seen.image_embeds, seen.text_embeds, temperature=(-siglip.logit_scale).exp(), "
        "bias=siglip.logit_bias)", "1", "`seen` is what the model returns.",
    ),
    Line(
        VSEPP, "triplet_sum", "", "ContrastiveLoss(margin=0.2, measure='cosine')(normalize(x), normalize(y))",
        "TripletSum(margin=0.2)(x, y)", "1 / B", "A sum over anchors there, a mean here.",
    ),
    Line(
        VSEPP, "triplet_max", "",
        "ContrastiveLoss(margin=0.2, measure='cosine', max_violation=True)(normalize(x), normalize(y))",
        "TripletMax(margin=0.2)(x, y)", "1 / B", "A sum over anchors there, a mean here.",
    ),
)  # fmt: skip


class Features(torch.nn.Module):
    """In place of the one module of a SentenceTransformer: its embeddings are its inputs."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the features that are the embedding."""
        return {"sentence_embedding": features["sentence_embedding"]}


class ContrastiveLoss:
    """The loss of VSE++ (Faghri et al. 2018), which is no package; ``margin`` and ``max_violation`` have its names."""

    def __init__(self, margin: float, measure: str, max_violation: bool = False) -> None:
        assert measure == "cosine"
        self.margin, self.max_violation = margin, max_violation

    def __call__(self, im: Tensor, s: Tensor) -> Tensor:
        """Compute the loss of normalised embeddings of images and of texts."""
        scores = im @ s.T
        own = scores.diagonal()
        others = 1 - torch.eye(len(im))
        of_images = (self.margin + scores - own[:, None]).clamp(min=0) * others
        of_texts = (self.margin + scores - own[None, :]).clamp(min=0) * others
        if self.max_violation:
            return of_images.amax(1).sum() + of_texts.amax(0).sum()
        return of_images.sum() + of_texts.sum()


def _models() -> dict[str, Any]:
    """Return small models of transformers with random weights, their inputs, and what they make of them."""
    from transformers import ClapConfig, ClapModel, CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = small | {"vocab_size": 99, "max_position_embeddings": 8}
    image = small | {"image_size": 8, "patch_size": 4}
    ends = {"bos_token_id": 0, "eos_token_id": 98, "pad_token_id": 1}
    torch.manual_seed(0)
    clip = CLIPModel(CLIPConfig(text_config=text | ends, vision_config=image, projection_dim=16)).eval()
    siglip = SiglipModel(SiglipConfig(text_config=text | ends | {"projection_size": 16}, vision_config=image)).eval()
    sound = {
        "hidden_size": 16, "patch_embeds_hidden_size": 8, "depths": [1, 1], "num_attention_heads": [1, 2],
        "spec_size": 32, "num_mel_bins": 8, "window_size": 4, "patch_size": 4, "patch_stride": [4, 4],
        "num_hidden_layers": 2, "projection_dim": 16, "enable_fusion": False,
    }  # fmt: skip
    words = text | {"projection_dim": 16, "max_position_embeddings": 16}
    clap = ClapModel(ClapConfig(text_config=words, audio_config=sound, projection_dim=16)).eval()
    ids = torch.randint(2, 98, (B, 6))
    pictures = {"input_ids": ids, "pixel_values": torch.randn(B, 3, 8, 8)}
    sounds = {"input_ids": ids, "input_features": torch.randn(B, 1, 32, 8)}
    return {
        "clip": clip, "images_and_texts": pictures, "out": clip(**pictures),
        "clap": clap, "sounds_and_texts": sounds, "heard": clap(**sounds),
        "siglip": siglip, "images_and_words": pictures, "seen": siglip(**pictures),
    }  # fmt: skip


def names(library: str) -> dict[str, Any]:
    """Return what the lines of a library refer to: a batch of 48 pairs, our package, and models where they are used."""
    import crossmodal_losses

    generator = torch.Generator().manual_seed(0)
    x, y, negatives = torch.randn(3, B, D, generator=generator, dtype=torch.float64)
    x, y = x.requires_grad_(), (y + 0.2 * x).detach().requires_grad_()
    features = [{"sentence_embedding": part} for part in (x, y, negatives)]
    return {
        "B": B, "x": x, "y": y, "negatives": negatives, "labels": torch.arange(B), "ids": torch.arange(B) // 2,
        "logit_scale": torch.tensor(14.0), "logit_bias": torch.tensor(-8.0), "model": torch.nn.Sequential(Features()),
        **dict(zip(("anchors", "positives", "others"), features, strict=True)),
        "encode": torch.nn.Identity(), "normalize": torch.nn.functional.normalize, "ContrastiveLoss": ContrastiveLoss,
        **{name: getattr(crossmodal_losses, name) for name in crossmodal_losses.__all__},
        **(_models() if library == HF else {}),
    }  # fmt: skip


def values(line: Line, known: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return what the old and the new line give."""
    exec(line.imports, known)
    return eval(line.old, known), eval(line.new, known)


def main() -> None:
    """Write the values of all lines, as the pages show them."""
    found: dict[str, list[str]] = {}
    for library in LIBRARIES:
        known = names(library)
        for line in LINES:
            if line.library == library:
                found[line.name] = [f"{value.item():.4f}" for value in values(line, known)]
    VALUES.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
