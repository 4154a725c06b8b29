"""The model card, README.md of a saved model: its use, metrics, training settings and limits."""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from reference_model.config import AUDIO_CHECKPOINTS, Config
from reference_model.evaluation.metrics import DIRECTIONS
from reference_model.runtime.markdown import escape

NAMES = {"panns-resnet38": "ResNet-38", "panns-cnn14": "Cnn14", "bert-base-uncased": "BERT", None: "a small BERT"}
MEASURES = {**{name: name for name in ("R@1", "R@5", "R@10", "mAP@10", "mAP@16")}, "median_rank": "Median rank"}
TONES = "Its sounds are rendered tones, noises and clicks: it shows how things work, and knows no sound of the world."
COLLAPSED = """> **Warning: this model has collapsed.** At the end of training all similarities of the validation \
pairs were alike, so that its rankings are little better than chance.

"""
PAPER = "[On Metric Learning for Audio-Text Cross-Modal Retrieval](https://arxiv.org/abs/2203.15537) (Mei et al. 2022)"


# Long because it is one text, from top to bottom.
def model_card(config: Config, metrics: dict[str, Any] | None, *, parameters: int, embedding_size: int) -> str:
    """Return the card as Markdown with the front matter that Hugging Face reads; an unfinished run has no metrics."""
    synthetic = f" {TONES}" if config.dataset == "Synthetic" else ""
    millions = parameters / 1e6
    dataset = escape(config.dataset)
    encoders = _encoders(config)
    settings = "\n".join(f"| {name} | {escape(value)} |" for name, value in _settings(config).items())
    return f"""---
{_front_matter(config, metrics)}
---

# {config.loss} on {dataset}: sounds and their descriptions in one space

{encoders}, {millions:.1f} million parameters, embed audio clips and captions as {embedding_size} numbers each, \
so that a clip and its description have a high cosine similarity. Trained on {dataset} with the loss `{config.loss}`, \
after {PAPER}.{synthetic}

## Use

In a checkout of `crossmodal_losses`, with this folder as `MODEL`:

```python
from reference_model.search.retriever import Retriever
retriever = Retriever.from_pretrained("MODEL")
print(retriever.find_audio("a dog barks twice", "folder/of/recordings"))
```

`retriever.embed_audio(paths)` and `retriever.embed_text(captions)` give embeddings, \
`retriever.find_captions(clip, file)` searches the other way. On the command line: \
`python -m reference_model search --run MODEL --audio FOLDER "a dog barks twice"`.

## Metrics

{_metrics(metrics)}

## Training

| Setting | Value |
|---|---|
{settings}

## Limits

* A clip is cut or zero-padded to {config.clip_seconds:g} s: what comes later is not heard.
* It knows the sounds, the language and the style of the captions of {dataset}, with their gaps and their bias, and \
cannot tell what is said, nor who says it.
* A score is a similarity to be compared with other scores of the same query. It is no probability, and the best of a \
bad lot comes first too.
* Not for identifying or watching people, nor for anything where a missed or mistaken sound does harm, such as alarms, \
medicine or evidence.
* Under which conditions it may be passed on depends on the weights it started from and on the clips it was trained \
on; see their licences.
"""


def _encoders(config: Config) -> str:
    """Return the names of both encoders, as a sentence begins."""
    settings = _settings(config)
    audio, text = (NAMES.get(settings[name], escape(settings[name])) for name in ("audio_encoder", "text_encoder"))
    small = "A small " if config.model == "tiny" and config.audio_encoder in AUDIO_CHECKPOINTS else ""
    return f"{small}{audio} and {text}"


def _front_matter(config: Config, metrics: dict[str, Any] | None) -> str:
    """Return what Hugging Face indexes, as YAML: the licence, tags, and the recalls on the test set."""
    results = [
        EvalResult(
            task_type="audio-text-retrieval",
            dataset_type=config.dataset,
            dataset_name=config.dataset,
            dataset_split="test",
            metric_type=f"recall_at_{k}",
            metric_name=f"{direction.replace('_', ' ').capitalize()} R@{k}, %",
            metric_value=round(metrics["test"][direction][f"R@{k}"], 2),
        )
        for direction in DIRECTIONS
        for k in (1, 5, 10)
        if metrics is not None
    ]
    data = ModelCardData(
        license="other",  # it depends on weights and clips; the card says so
        license_name="see-limits",
        library_name="crossmodal_losses",
        pipeline_tag="feature-extraction",
        tags=["audio", "audio-text-retrieval", "cross-modal-retrieval", "metric-learning"],
        model_name=f"{config.loss} on {config.dataset}" if results else None,
        eval_results=results or None,
    )
    return str(data.to_yaml()).strip()


def _metrics(metrics: dict[str, Any] | None) -> str:
    """Return the metrics section."""
    if metrics is None:
        return "The run was not finished when this model was saved: there are none."
    rows = []
    for row, measured, split in (("val", "val", "val"), ("test", "test", "test"), ("test, chance", "chance", "test")):
        for direction in DIRECTIONS:
            values = metrics[measured][direction]
            cells = [f"{values[name]:.1f}" if name in values else "" for name in MEASURES]
            cells = [row, direction.replace("_", " ").capitalize(), *cells, str(metrics[split][direction]["pool"])]
            rows.append(f"| {' | '.join(cells)} |")
    table, clips = "\n".join(rows), metrics["clips"]
    return f"""{COLLAPSED if metrics["collapsed"] else ""}\
Epoch {metrics["best_epoch"]}, the best on the validation set; R@k and mAP@k in %. Candidates: the clips or \
captions that are ranked for each query.

| Split | Direction | {" | ".join(MEASURES.values())} | Candidates |
|---|---|{"---:|" * (len(MEASURES) + 1)}
{table}

Clips: {clips["train"]} to train on, {clips["val"]} to select on, {clips["test"]} to test."""


def _settings(config: Config) -> dict[str, Any]:
    """Return the settings that decide the result; of absolute paths only the file names."""
    settings = config.as_dict()
    for where in ("data", "workers"):
        del settings[where]
    for name in ("audio_checkpoint", "audio_encoder", "text_encoder"):
        if settings[name] is not None and Path(settings[name]).is_absolute():
            settings[name] = Path(settings[name]).name
    return settings
