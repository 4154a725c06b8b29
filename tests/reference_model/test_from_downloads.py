"""The documented commands, unchanged but for small models, from raw downloads to metrics.json."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import miniature
import pytest
import torch
from published import panns, save_bert
from runs import CommandLine
from safetensors.torch import load_file

from reference_model.evaluation.evaluate import evaluate_run
from reference_model.models.resnet38 import ResNet38
from reference_model.paper import PROTOCOLS

SMALL = ("--epochs", 1, "--batch-size", 6, "--workers", 0, "--clip-seconds", 1)


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Downloads as people have them: Clotho as published, AudioCaps from aac-datasets without one of its clips."""
    folder = tmp_path_factory.mktemp("downloads")
    miniature.clotho(folder / "Clotho")
    miniature.aac_datasets_audiocaps(folder)
    next((folder / "AUDIOCAPS").glob("audio_*/test/*")).unlink()
    return folder


@pytest.fixture
def prepared(
    downloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command_line: CommandLine
) -> Callable[[str], Path]:
    """Return a function that prepares a data set in the folder data of an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def prepare(dataset: str) -> Path:
        raw = downloads / "Clotho" if dataset == "Clotho" else downloads
        arguments = ["prepare", "--dataset", dataset, "--raw", raw, "--workers", 0]
        if dataset == "AudioCaps":
            assert "missing: no file of this clip" in command_line(*arguments, status=1).output
            arguments.append("--allow-missing")
        done = command_line(*arguments)
        assert f"next: python -m reference_model train --experiment {dataset.lower()}-frozen-triplet_sum" in done.output
        return tmp_path / "data" / dataset

    return prepare


@pytest.mark.parametrize("encoders", ["frozen", "fine-tuned"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dataset", ["Clotho", "AudioCaps"])
def test_from_raw_downloads_to_metrics(
    prepared: Callable[[str], Path], command_line: CommandLine, dataset: str, protocol: str, encoders: str
) -> None:
    folder = prepared(dataset)
    name, suffix = f"{dataset.lower()}-{encoders}-triplet_weighted", "-released" if protocol == "released" else ""
    done = command_line("train", "--experiment", name, "--seed", 1, "--protocol", protocol, "--model", "tiny", *SMALL)
    metrics = json.loads(Path(f"runs/{name}{suffix}-seed-1/metrics.json").read_text())
    assert {**PROTOCOLS[protocol], "direction_weights": [1, 1]}.items() <= metrics["config"].items()
    test_clips = 4 if dataset == "Clotho" else 3
    assert metrics["clips"] == {"train": 12, "val": 4, "test": test_clips}
    assert metrics["test"]["text_to_audio"]["pool"] == test_clips
    assert metrics["test"]["audio_to_text"]["pool"] == 5 * test_clips
    paper = 1045 if dataset == "Clotho" else 957
    assert f"test, {test_clips} clips (the paper: {paper}): text to audio" in done.output
    assert f"{dataset}, test: {test_clips} clips, where the paper had {paper}" in done.output
    assert f": 1 epochs of {10 if dataset == 'Clotho' else 2} steps on " in done.output
    assert (folder / "features").exists() == (protocol == "paper" and encoders == "frozen")


def test_with_the_published_encoders(prepared: Callable[[str], Path], command_line: CommandLine) -> None:
    """ResNet-38 has its real size and comes from a file in PANNs' layout; a small BERT comes from a folder."""
    folder, audio, bert = prepared("Clotho"), Path("ResNet38_mAP=0.434.pth"), Path("bert")
    torch.save(panns(ResNet38()), audio)
    save_bert(bert, ["a tone of 200 hertz, hissing"] * 2)
    encoders = ("--audio-checkpoint", audio, "--text-encoder", bert, *SMALL)
    command_line("train", "--experiment", "clotho-frozen-nt_xent", *encoders)
    run, name = Path("runs/clotho-frozen-nt_xent-seed-0"), "conv_block_after1.conv2.weight"
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["config"]["model"] == "full"
    assert load_file(run / "best.safetensors")["heads.audio.2.weight"].shape == (1024, 2048)
    kept = load_file(run / "frozen.safetensors")[f"audio_encoder.{name}"]
    assert torch.equal(kept, torch.load(audio, weights_only=True)["model"][name])
    manifest = folder / "manifest.csv"
    checksum = manifest.read_text().splitlines()[1].split(",")[-2]
    manifest.write_text(manifest.read_text().replace(checksum, "0" * 64))  # another clip makes other features
    before = len(list((folder / "features").glob("audio-*")))
    command_line("train", "--experiment", "clotho-frozen-triplet_max", *encoders)
    assert len(list((folder / "features").glob("audio-*"))) == before + 1
    audio.unlink()
    shutil.rmtree(bert)
    assert evaluate_run(run, split="test", data=None) == metrics["test"]  # the run's folder is enough


def test_from_raw_downloads_to_both_tables_and_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command_line: CommandLine
) -> None:
    """The commands of reference_model/README.md, with one loss, one seed, and enough clips for the largest batch."""
    downloads = tmp_path / "downloads"
    miniature.clotho(downloads / "Clotho")
    miniature.aac_datasets_audiocaps(downloads, (130, 4, 4))
    monkeypatch.chdir(tmp_path)
    for dataset, raw in (("Clotho", downloads / "Clotho"), ("AudioCaps", downloads)):
        command_line("prepare", "--dataset", dataset, "--raw", raw, "--workers", 0)
    made = command_line(
        "reproduce", "--seeds", 0, "--losses", "triplet_max", "--model", "tiny",
        "--epochs", 1, "--workers", 0, "--clip-seconds", 1, "--jobs", 2,
    )  # fmt: skip
    results = Path("results")
    runs = {path.parent.name.removesuffix("-seed-0") for path in results.glob("runs/*/metrics.json")}
    assert len(runs) == 5
    for table, rows in (("1", 4), ("2", 2)):
        found = json.loads((results / f"table_{table}.json").read_text())
        assert len(found["rows"]) == rows
        assert {row["experiment"] for row in found["rows"]} <= runs
        assert all(row["paper"] is not None for row in found["rows"])
        assert found["pools"]["AudioCaps"] == {"clips": 4, "captions": 20, "clips in the paper": 957}
        text = (results / f"table_{table}.md").read_text()
        assert text in made.output
        assert "AudioCaps: 4 test clips (957 in the paper), 20 captions" in text
        assert "| paper | 19.9 ± 0.2 |" in text
    assert "Clotho: 4 test clips (1045 in the paper), 20 captions" in (results / "table_1.md").read_text()
    assert "Triplet-max\\*" in (results / "table_1.md").read_text()  # its learning rate on Clotho
    assert (results / "report.html").read_text().count("<audio") > 20
