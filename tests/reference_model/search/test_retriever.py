"""A trained model in use: embeddings equal to those of the evaluation, search, export with a card, refused input."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import soundfile
import torch
from accelerate.state import AcceleratorState
from huggingface_hub import ModelCard
from runs import CommandLine
from safetensors.torch import load_file

from reference_model import InputError
from reference_model.config import Config
from reference_model.data.dataset import captions_of, clip_of_caption, read_split
from reference_model.evaluation.evaluate import evaluate_run
from reference_model.evaluation.metrics import split_metrics
from reference_model.run_folder import TEST_EMBEDDINGS, stored_metrics
from reference_model.search import retriever
from reference_model.search.model_card import model_card
from reference_model.search.retriever import Retriever
from reference_model.training.trainer import train


@pytest.fixture(scope="module", params=["fine-tuned", "frozen", "fine-tuned in bf16"])
def run(request: pytest.FixtureRequest, config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one epoch."""
    AcceleratorState._reset_state(reset_partial_state=True)
    encoders, _, precision = request.param.partition(" in ")
    folder = tmp_path_factory.mktemp("runs")
    config = replace(config, encoders=encoders, precision=precision or "no", epochs=1)
    train(config, folder / "run", features=folder / "features")
    return folder / "run"


@pytest.fixture
def model(trained: Path) -> Retriever:
    return Retriever.from_pretrained(trained)


@pytest.fixture
def clips(corpus: Path, tmp_path: Path) -> Path:
    """The six clips of the test split."""
    return shutil.copytree(corpus / "Synthetic" / "waveforms" / "test", tmp_path / "clips")


def test_embeddings_and_metrics_equal_those_of_the_run(run: Path, tmp_path: Path) -> None:
    model = Retriever.from_pretrained(run)
    metrics = stored_metrics(run)
    clips = read_split(model.config.data, model.config.dataset, "test")
    captions, owner = captions_of(clips), clip_of_caption(clips)
    audio, text = model.embed_audio([clip.path for clip in clips]), model.embed_text(captions)
    assert split_metrics(audio, text, owner) == metrics["test"]

    # And they are the very embeddings that training ranked.
    stored = load_file(run / TEST_EMBEDDINGS)
    assert torch.equal(audio, stored["audio"])
    assert torch.equal(text, stored["text"])

    # A search ranks as the metrics do.
    ranks = []
    for caption, clip in zip(captions, owner.tolist(), strict=True):
        found = model.find_audio(caption, clips[0].path.parent, index=tmp_path)
        assert [result.rank for result in found] == list(range(1, 7))
        ranks += [result.rank for result in found if result.item == clips[clip].path.name]
    assert len(ranks) == len(captions) == 30
    expected = metrics["test"]["text_to_audio"]
    for k in (1, 5, 10):
        assert 100 * sum(rank <= k for rank in ranks) / len(ranks) == pytest.approx(expected[f"R@{k}"])
    assert sum(ranks) / len(ranks) == pytest.approx(expected["mean_rank"])

    file = tmp_path / "captions.txt"
    file.write_text("\n".join(captions), encoding="utf-8")
    unique = list(dict.fromkeys(captions))
    for clip, row in zip(clips, audio, strict=True):
        scores = {caption: float(row @ text[captions.index(caption)]) for caption in unique}
        every = model.find_captions(clip.path, file, top=100)
        assert [result.item for result in every] == sorted(unique, key=lambda caption: (-scores[caption], caption))
        assert [result.score for result in every] == pytest.approx([scores[item] for _, _, item in every], abs=1e-6)
        assert model.find_captions(clip.path, file) == every[:10]


def test_a_saved_model_gives_the_same_embeddings_to_the_bit(run: Path, tmp_path: Path, clips: Path) -> None:
    paths, captions = sorted(clips.iterdir()), ["a low tone", "a loud hiss and a click"]
    model = Retriever.from_pretrained(str(run))
    saved = tmp_path / "models" / "saved"
    model.embed_text(captions)  # leaves its mark in the tokenizer
    model.save_pretrained(saved)
    files = {"model.safetensors", "config.json", "text_encoder", "metrics.json", "README.md"}
    assert {path.name for path in saved.iterdir()} == files
    again = Retriever.from_pretrained(saved)
    assert torch.equal(again.embed_audio(paths), model.embed_audio(paths))
    assert torch.equal(again.embed_text(captions), model.embed_text(captions))
    assert again.config == model.config
    assert again.metrics == model.metrics == stored_metrics(run)
    assert evaluate_run(saved, split="test", data=None) == stored_metrics(run)["test"]
    # They share an index.
    assert again.find_audio("a low tone", clips) == model.find_audio("a low tone", clips)
    file = tmp_path / "captions.txt"
    file.write_text("\n".join(captions))
    assert again.find_captions(paths[0], file) == model.find_captions(paths[0], file)
    Retriever.from_pretrained(run).find_captions(paths[0], file)  # with a tokenizer that was not used before
    for folder in (clips, file):
        assert len(list(folder.with_name(f"{folder.name}.index").glob("*.safetensors"))) == 1
    # A saved model can be saved, in its own place too.
    content = {path.name: path.read_bytes() for path in saved.glob("*.*")}
    again.save_pretrained(saved)
    assert content == {path.name: path.read_bytes() for path in saved.glob("*.*")}
    assert torch.equal(Retriever.from_pretrained(saved).embed_text(captions), model.embed_text(captions))
    assert [path.name for path in saved.parent.iterdir()] == ["saved"]
    # And through a link.
    (saved.parent / "link").symlink_to(saved)
    again.save_pretrained(saved.parent / "link")
    assert sorted(path.name for path in saved.parent.iterdir()) == ["link", "saved"]
    assert (saved.parent / "link").is_symlink()
    Retriever.from_pretrained(saved.parent / "link")


def test_other_weights_have_another_index(run: Path, clips: Path) -> None:
    model = Retriever.from_pretrained(run)
    before = model.find_audio("a low tone", clips)
    other = Retriever.from_pretrained(run)
    with torch.no_grad():
        other.model.heads.audio.get_parameter("2.bias").add_(1)
    assert other.find_audio("a low tone", clips) != before
    longer = Retriever(model.model, replace(model.config, clip_seconds=1.0))
    longer.find_audio("a low tone", clips)
    assert len(list(clips.with_name("clips.index").glob("*.safetensors"))) == 3
    assert model.find_audio("a low tone", clips) == before


def test_a_folder_is_saved_whole_or_not_at_all(
    model: Retriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = tmp_path / "saved"
    saved.mkdir()  # empty
    model.save_pretrained(saved)
    card = (saved / "README.md").read_bytes()

    full = Mock(side_effect=OSError("No space left"))
    for name in ("write_text", "save_tensors"):
        with monkeypatch.context() as patch:
            patch.setattr(retriever, name, full)
            for folder in (saved, tmp_path / "new"):
                with pytest.raises(InputError, match=rf"expected to write {folder}, got: No space left"):
                    model.save_pretrained(folder)
    replaced = os.replace

    def broken(source: Path, target: Path) -> None:
        """At the last of the moves."""
        if target == saved:
            monkeypatch.setattr(os, "replace", replaced)
            raise OSError("No space left")
        replaced(source, target)

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(InputError, match="No space left"):
        model.save_pretrained(saved)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    assert (saved / "README.md").read_bytes() == card
    Retriever.from_pretrained(saved)
    # Killed between the two moves: what there was is back the next time, whether or not that one succeeds.
    saved.rename(tmp_path / ".saved.old")
    monkeypatch.setattr(retriever, "save_tensors", full)
    with pytest.raises(InputError, match="No space left"):
        model.save_pretrained(saved)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    assert (saved / "README.md").read_bytes() == card


def content(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_a_folder_that_is_no_saved_model_is_not_replaced(model: Retriever, trained: Path, tmp_path: Path) -> None:
    saved, edited, file, beside = (tmp_path / name for name in ("saved", "edited", "file", ".new.old"))
    model.save_pretrained(saved)
    shutil.copytree(saved, edited)
    with (edited / "README.md").open("a") as card:
        card.write("\nMy notes.")
    (saved / ".git").mkdir()
    file.touch()
    beside.mkdir()
    (beside / "thesis.txt").touch()
    before = content(tmp_path), content(trained)
    for folder, expected in (
        (saved, f"{saved} to be .* got a folder with .git"),
        (edited, f"{edited} to be .* got a folder with another README.md"),
        (file, f"{file} to be .* got a file"),
        (trained, f"{trained} to be .* got a folder with .*"),
        (tmp_path / "new", f"{beside} to be .* got a folder with thesis.txt"),
    ):
        with pytest.raises(InputError, match=f"expected {expected}$") as refused:
            model.save_pretrained(folder)
        assert "to be new, empty or a saved model and nothing else, got " in str(refused.value)
        assert (content(tmp_path), content(trained)) == before
    with pytest.raises(InputError, match="expected to write /sys/model, got"):
        model.save_pretrained("/sys/model")


def test_a_folder_that_is_no_model_is_refused(trained: Path, tmp_path: Path) -> None:
    start = "expected a saved model, or a run with a finished epoch, in .*, got "

    def refused(words: str, folder: Path, device: str = "cpu") -> None:
        with pytest.raises(InputError, match=words):
            Retriever.from_pretrained(folder, device=device)

    refused(f"{start}nothing", tmp_path / "nowhere")
    refused(f"{start}no model.safetensors or best.safetensors", tmp_path)
    refused(f"{start}a file", trained / "config.json")
    for name in ("config.json", "text_encoder/config.json", "text_encoder/tokenizer.json"):
        run = shutil.copytree(trained, tmp_path / name.replace("/", "-"))
        (run / name).unlink()
        refused(f"{start}no {name}", run)
        (run / name).write_text("{}")
        refused("expected ", run)
    shutil.copy(trained / "text_encoder" / "tokenizer.json", run / "text_encoder" / "tokenizer.json")
    (run / "best.safetensors").write_bytes(b"no weights")
    refused("expected a safetensors file at", run)
    for device in ("toaster", "cuda:99"):
        refused(f"expected a device of this machine, got {device}", trained, device)


def test_half_precision_without_a_gpu_is_float32(model: Retriever, clips: Path) -> None:
    half = Retriever(model.model, replace(model.config, precision="fp16"), device="cpu")
    paths = sorted(clips.iterdir())
    assert torch.equal(half.embed_audio(paths), model.embed_audio(paths))


def test_embeddings_have_unit_length_and_the_order_of_their_inputs(model: Retriever, clips: Path) -> None:
    """Any number of clips or captions; a clip is cut to the length of training."""
    paths = sorted(clips.iterdir())
    audio = model.embed_audio([str(path) for path in paths] * 7)  # more than a batch
    assert audio.shape == (42, 256)
    torch.testing.assert_close(audio, model.embed_audio(paths).repeat(7, 1), rtol=0, atol=1e-6)
    torch.testing.assert_close(audio.norm(dim=1), torch.ones(42))
    for path, row in zip(paths, audio, strict=False):
        torch.testing.assert_close(model.embed_audio([path])[0], row, rtol=0, atol=1e-6)
    captions = [f"{n} low tones" for n in range(40)] + ["0 low tones"]
    text = model.embed_text(captions)
    assert torch.equal(text[0], text[40])
    for caption, row in zip(captions, text, strict=True):
        torch.testing.assert_close(model.embed_text([caption])[0], row, rtol=0, atol=1e-6)
    assert model.embed_audio([]).shape == model.embed_text([]).shape == (0, 256)

    samples, rate = soundfile.read(paths[0], dtype="float32")
    assert len(samples) == 0.5 * rate
    soundfile.write(clips / "longer.wav", [*samples, *samples[::-1]], rate, subtype="FLOAT")
    soundfile.write(clips / "itself.wav", samples, rate, subtype="FLOAT")
    longer, itself = model.embed_audio([clips / "longer.wav", clips / "itself.wav"])
    assert torch.equal(longer, itself)


def test_files_and_captions_that_cannot_be_embedded_are_named(model: Retriever, clips: Path) -> None:
    good = sorted(clips.iterdir())
    text, absent, nan, loud = (clips / name for name in ("text.wav", "absent.wav", "nan.wav", "loud.wav"))
    text.write_text("no audio")
    soundfile.write(nan, torch.full((100,), torch.nan).numpy(), 32_000, subtype="FLOAT")
    soundfile.write(loud, torch.full((32_000,), 1e30).numpy(), 32_000, subtype="FLOAT")
    two_bad = "got 2 bad of 8 files:\n  .*text.wav: unreadable.*\n  .*absent.wav: missing"
    refused: list[tuple[Callable[..., Any], Any, str]] = [
        (model.embed_audio, [*good, text, absent], two_bad),
        (model.embed_audio, [text], "^expected readable audio, got .*text.wav: unreadable: not readable as audio"),
        (model.embed_audio, [*good, nan], "^expected readable audio, got .*nan.wav: expected finite samples"),
        (model.embed_audio, [*good, loud], "expected finite embeddings, got NaN or inf for .*loud.wav"),
        (model.embed_audio, str(text), "expected a list of audio files, got one: "),
        (model.embed_text, "a tone", "expected a list of captions, got one: a tone"),
        (model.embed_text, ["\udcff"], r"expected a caption in UTF-8, got '\\udcff'"),
    ]
    for embed, what, words in refused:
        with pytest.raises(InputError, match=words):
            embed(what)
    with pytest.raises(InputError, match="expected a caption with text, got ' '"):
        model.find_audio(" ", clips)


def test_an_unfinished_run_can_be_used(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "metrics.json").unlink()
    Retriever.from_pretrained(run).save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "metrics.json").exists()
    assert "The run was not finished" in (tmp_path / "saved" / "README.md").read_text()
    assert Retriever.from_pretrained(tmp_path / "saved").metrics is None


def test_the_model_card(trained: Path, config: Config) -> None:
    metrics: dict[str, Any] = stored_metrics(trained)
    for direction, rank in (("text_to_audio", 1.25), ("audio_to_text", 2.5)):
        for split, recall in (("val", 11.14), ("test", 22.26)):
            recalls = {"R@1": recall, "R@5": 80, "R@10": 90}
            precisions = {"mAP@10": recall + 50, "mAP@16": recall + 52}
            metrics[split][direction] |= {**recalls, **precisions, "median_rank": rank}
    card, collapsed = (
        model_card(config, {**metrics, "collapsed": value}, parameters=1_550_000, embedding_size=256)
        for value in (False, True)
    )
    front, rest = card.removeprefix("---\n").split("---\n", 1)
    data: Any = ModelCard(card).data
    assert data.to_yaml().strip() == front.strip()
    assert (data.license, data.library_name) == ("other", "crossmodal_losses")
    assert [(found.metric_name, found.metric_value) for found in data.eval_results][:2] == [
        ("Text to audio R@1, %", 22.26),
        ("Text to audio R@5, %", 80),
    ]
    assert len(data.eval_results) == 6
    assert rest.startswith("\n# nt_xent on Synthetic")
    for words in ("A small ResNet-38 and a small BERT, 1.6 million parameters", "as 256 numbers",
                  "knows no sound of the world", "https://arxiv.org/abs/2203",
                  "from_pretrained", "| batch_size | 16 |", "| frozen_mode | eval |", "padded to 0.5 s", "## Limits",
                  "16 to train on, 6 to select on, 6 to test"):  # fmt: skip
        assert words in rest
    for row in (
        "| val | Text to audio | 11.1 | 80.0 | 90.0 | 61.1 | 63.1 | 1.2 | 6 |",
        "| test | Audio to text | 22.3 | 80.0 | 90.0 | 72.3 | 74.3 | 2.5 | 30 |",
        "| test, chance | Text to audio | 16.7 | 83.3 | 100.0 |",
    ):
        assert row in rest
    assert "has collapsed" not in card
    assert "**Warning: this model has collapsed.**" in collapsed
    full = replace(config, model="full", audio_checkpoint="/home/me/a.pth", text_encoder="google/bert", dataset="a\n|b")
    text = model_card(full, None, parameters=1, embedding_size=1)
    for words in (
        "ResNet-38 and google/bert, 0.0 million",
        "| audio_checkpoint | a.pth |",
        "| text_encoder | google/bert |",
        "| dataset | a \\|b |",
    ):
        assert words in text
    for words in ("knows no sound", "/home", config.data):
        assert words not in text
    others = replace(config, audio_encoder="/home/me/clap_[1]", text_encoder="bert-base-uncased")
    assert "\n\nclap_\\[1\\] and BERT, 0.0 million" in model_card(others, None, parameters=1, embedding_size=1)


def test_the_command_line(trained: Path, clips: Path, tmp_path: Path, command_line: CommandLine) -> None:
    saved, captions = tmp_path / "saved", tmp_path / "captions.txt"
    captions.write_text("a low tone\na loud hiss\na low tone\n")
    (clips / "00005.wav").rename(clips / "new\nline.wav")
    exported = command_line("export", "--run", trained, "--out", saved)
    assert f"{saved}/README.md describes it" in exported.output
    model = Retriever.from_pretrained(saved)
    for run in (trained, saved):
        found = command_line("search", "--run", run, "--audio", clips, "a low tone", "--top", 3)
        expected = [[str(rank), f"{score:.4f}"] for rank, score, _ in model.find_audio("a low tone", clips, top=3)]
        assert [line.split()[:2] for line in found.stdout.splitlines()] == expected
        assert len(expected) == 3
    assert "'new\\nline.wav'" in command_line("search", "--run", saved, "--audio", clips, "a low tone").stdout
    found = command_line("search", "--run", saved, "--captions", captions, clips / "00000.wav")
    assert sorted(line.split(maxsplit=2)[2] for line in found.stdout.splitlines()) == ["a loud hiss", "a low tone"]

    (clips / "text.wav").write_text("no audio")
    out = tmp_path / "embedded"
    done = command_line("embed", "--run", saved, "--audio", clips, "--out", out, "--index", tmp_path / "indexes")
    assert "left out, unreadable: 1, such as text.wav: unreadable" in done.stderr
    assert f"{out}/embeddings.safetensors holds 6 clips x 256" in done.stdout
    names = json.loads((out / "index.json").read_text())
    assert names == [*(f"0000{n}.wav" for n in range(5)), "new\nline.wav"]
    rows = load_file(out / "embeddings.safetensors")["embeddings"]
    torch.testing.assert_close(rows, model.embed_audio([clips / name for name in names]), rtol=0, atol=1e-6)
    command_line("embed", "--run", saved, "--captions", captions, "--out", out)
    texts = json.loads((out / "index.json").read_text())
    assert texts == ["a low tone", "a loud hiss", "a low tone"]
    rows = load_file(out / "embeddings.safetensors")["embeddings"]
    torch.testing.assert_close(rows, model.embed_text(texts), rtol=0, atol=1e-6)


def test_wrong_input_is_one_line(trained: Path, clips: Path, tmp_path: Path, command_line: CommandLine) -> None:
    captions, nothing = tmp_path / "captions.txt", tmp_path / "nothing.txt"
    captions.write_text("a low tone\n")
    search = ["search", "--run", trained]
    for arguments, words in (
        ([*search, "a tone"], "expected --audio or --captions, got neither"),
        ([*search, "--audio", clips, "--captions", captions, "a tone"], "expected --audio or --captions, got both"),
        (["embed", "--run", trained, "--out", tmp_path / "out"], "expected --audio or --captions, got neither"),
        ([*search, "--audio", clips, ""], "expected a caption with text, got ''"),
        ([*search, "--captions", nothing, clips / "00000.wav"], "expected a file of captions at"),
        ([*search, "--captions", captions, tmp_path / "gone.wav"], "expected readable audio, got"),
        ([*search, "--audio", clips, "a tone", "--index", "/sys/index"], "expected to write an index in /sys/index"),
        (["export", "--run", trained, "--out", clips], "expected "),
    ):
        *bars, last = command_line(*arguments, status=1).stderr.splitlines()
        assert last.split("\r")[-1].strip().startswith(f"Error: {words}")
        assert all("%|" in line or not line.strip() for line in bars)
    assert not list(tmp_path.glob("*.index"))


def test_search_runs_as_a_program(trained: Path, clips: Path) -> None:
    """The command runs in a new process, which loads torch and FAISS, with two worker processes."""
    for copy in range(6):  # more than a batch
        shutil.copytree(clips, clips / f"copy-{copy}", ignore=lambda folder, names: [n for n in names if "copy" in n])
    config = json.loads((trained / "config.json").read_text())
    run = shutil.copytree(trained, clips.parent / "run")
    (run / "config.json").write_text(json.dumps({**config, "workers": 2}))
    arguments: list[str | Path] = ["-m", "reference_model", "search", "--run", run, "--audio", clips, "a low tone"]
    command = [sys.executable, *arguments, "--top", "42"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 42
    best = [line.split()[2] for line in done.stdout.splitlines()[:7]]
    assert len({name.split("/")[-1] for name in best}) == 1  # the copies of one clip


# What a user may have put where a model is to be saved, under names that a saved model has: what is not there of it
# ("": everything), and the files that are there instead, with their texts; a name that ends in a slash is a folder.
OWN_FILES: dict[str, tuple[str, dict[str, str]]] = {
    "nothing but a README": ("", {"README.md": "notes"}),
    "nothing but a thesis": ("", {"text_encoder/thesis.txt": "years of work"}),
    "nothing but a config": ("", {"config.json": "{}"}),
    "nothing but a folder": ("", {"text_encoder/": ""}),
    "another README": ("README.md", {"README.md": "notes"}),
    "no README": ("README.md", {}),
    "a README that is a folder": ("README.md", {"README.md/": ""}),
    "other metrics": ("metrics.json", {"metrics.json": '{"mine": 1}'}),
    "another config": ("config.json", {"config.json": '{"mine": 1}'}),
    "other weights": ("model.safetensors", {"model.safetensors": "mine"}),
    "a file in text_encoder": ("metrics.json", {"text_encoder/thesis.txt": "years of work"}),
    "a folder in text_encoder": ("metrics.json", {"text_encoder/mine/": ""}),
    "a hidden file": ("metrics.json", {".gitignore": "*"}),
    "no text_encoder": ("text_encoder", {}),
}


@pytest.mark.parametrize("own", OWN_FILES)
def test_files_of_the_user_are_never_replaced(model: Retriever, tmp_path: Path, own: str) -> None:
    saved = tmp_path / "saved"
    model.save_pretrained(saved)
    removed, files = OWN_FILES[own]
    if (saved / removed).is_dir():
        shutil.rmtree(saved / removed)
    else:
        (saved / removed).unlink()
    for name, text in files.items():
        path = saved / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_text(text)
    before = content(tmp_path)
    with pytest.raises(InputError, match=r"to be new, empty or a saved model and nothing else, got "):
        model.save_pretrained(saved)
    assert content(tmp_path) == before


@pytest.mark.parametrize("text", ["{}", "[]", '{"a": 1,', "[" * 100_000])
def test_search_does_not_need_metrics_and_export_refuses_damaged_ones(
    trained: Path, clips: Path, tmp_path: Path, command_line: CommandLine, text: str
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "metrics.json").write_text(text)
    assert command_line("search", "--run", run, "--audio", clips, "a low tone").stdout
    refused = command_line("export", "--run", run, "--out", tmp_path / "saved", status=1)
    assert refused.stderr.splitlines()[-1].startswith("Error: expected ")
    assert f"{run}/metrics.json" in refused.stderr
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("name", ["index.json", "embeddings.safetensors"])
def test_embed_replaces_its_own_files_alone(
    trained: Path, tmp_path: Path, command_line: CommandLine, name: str
) -> None:
    (tmp_path / "captions.txt").write_text("a low tone\n")
    arguments = ["embed", "--run", trained, "--captions", tmp_path / "captions.txt", "--out", tmp_path / "out"]
    command_line(*arguments)
    command_line(*arguments)
    (tmp_path / "out" / "index.json").unlink()  # killed before it was written
    command_line(*arguments)
    for mine in ('{"my": "index"}', "notes"):
        (tmp_path / "out" / name).write_text(mine)
        refused = command_line(*arguments, status=1)
        assert "expected " in refused.stderr.splitlines()[-1]
        assert "to have no file but those of embed, got another: " in refused.stderr.splitlines()[-1]
        assert (tmp_path / "out" / name).read_text() == mine


def test_an_answer_that_cannot_be_written_is_an_error_unless_its_reader_has_gone(trained: Path, clips: Path) -> None:
    """As with ``search | head -1``, and with a full disk."""
    program: list[str | Path] = [sys.executable, "-m", "reference_model"]
    command = [*program, "search", "--run", trained, "--audio", clips, "a low tone"]
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as gone, open("/dev/full", "w") as full:
        for stream, status, words in ((gone, 0, ""), (full, 1, "Error: [Errno 28] No space left on device\n")):
            done = subprocess.run(
                command, stdout=stream, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3], check=False
            )
            assert done.returncode == status, done.stderr
            assert done.stderr.endswith(words)
            assert "Traceback" not in done.stderr
