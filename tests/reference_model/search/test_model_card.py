"""The model card: its front matter, tables and warnings."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from reference_model.config import Config
from reference_model.run_folder import stored_metrics
from reference_model.search.model_card import model_card


def test_the_model_card(trained: Path, config: Config) -> None:
    metrics: dict[str, Any] = stored_metrics(trained)
    for direction, rank in (("text_to_audio", 1.25), ("audio_to_text", 2.5)):
        for split, recall in (("val", 11.14), ("test", 22.26)):
            metrics[split][direction] |= {"R@1": recall, "mAP@10": recall + 50, "median_rank": rank}

    def card(**changes: Any) -> str:
        return model_card(config, {**metrics, **changes}, parameters=1_550_000, embedding_size=256)

    text = card(collapsed=False)
    front, rest = text.removeprefix("---\n").split("---\n", 1)
    assert "library_name: crossmodal_losses\npipeline_tag: feature-extraction\ntags:\n- audio\n" in front
    assert "license" not in front
    assert rest.startswith("\n# nt_xent on Synthetic")
    for words in ("1.6 million parameters", "as 256 numbers", "knows no sound of the world", "https://arxiv.org/abs/2203",
                  "from_pretrained", "| batch_size | 16 |", "| frozen_mode | eval |", "padded to 0.5 s", "## Limits",
                  "16 to train on, 6 to select on, 6 to test"):  # fmt: skip
        assert words in rest
    lines = rest.splitlines()
    of_val, of_test = (next(x.split("|") for x in lines if x.startswith(s)) for s in ("| val | Text", "| test | Audio"))
    assert (of_val[3], of_val[-5:]) == (" 11.1 ", [" 100.0 ", " 61.1 ", " 1.2 ", " 6 ", ""])
    assert (of_test[3], of_test[-4:]) == (" 22.3 ", [" 72.3 ", " 2.5 ", " 30 ", ""])
    assert "| test, chance | Text to audio | 16.7 | 83.3 | 100.0 |" in rest
    assert "has collapsed" not in text
    assert "**Warning: this model has collapsed.**" in card(collapsed=True)
    assert "The run was not finished" in model_card(config, None, parameters=1, embedding_size=1)
    full = replace(config, model="full", audio_checkpoint="/home/me/a.pth", bert="google/bert", dataset="a\n|b")
    text = model_card(full, None, parameters=1, embedding_size=1)
    for words in ("| audio_checkpoint | a.pth |", "| bert | google/bert |", "| dataset | a \\|b |"):
        assert words in text
    for words in ("knows no sound", "/home", config.data):
        assert words not in text
