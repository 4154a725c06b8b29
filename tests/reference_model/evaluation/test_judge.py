"""Other models judged: clips and captions of the split alone, tables of relevance, records for the tables."""

import json
import re
from pathlib import Path

import oracles
import pytest
import torch
from runs import CommandLine
from torch import Tensor
from torch.nn.functional import normalize

from reference_model import InputError
from reference_model.data.dataset import read_split, write_csv
from reference_model.evaluation.embedded import EmbeddedSplit, StoredClip, read_embeddings
from reference_model.evaluation.judge import embeddings_of_split, judge
from reference_model.evaluation.metrics import split_metrics
from reference_model.evaluation.others import read_other, write_other
from reference_model.evaluation.relevance import read_relevance
from reference_model.runtime.files import write_json
from reference_model.runtime.tensors import load_tensors, save_tensors

CLIPS: list[StoredClip] = [
    {"file_name": "a.wav", "captions": ["a dog", "barks, twice"]},
    {"file_name": " b.wav", "captions": ["a cat", "a dog"]},
    {"file_name": "c.wav", "captions": ["rain"]},
]
OWNER = torch.tensor([0, 0, 1, 1, 2])


def table(path: Path, *rows: tuple[str, ...]) -> Path:
    write_csv(path, [("caption", "file_name"), *rows])
    return path


def test_a_table_gives_captions_further_clips(tmp_path: Path) -> None:
    """To all captions of its text; a clip may be the caption's own, or named twice."""
    path = table(tmp_path / "t.csv", ("a dog", "c.wav"), ("rain", " b.wav"), ("rain", "c.wav"), ("rain", " b.wav"))
    assert read_relevance(path, CLIPS).tolist() == [[0, 2], [3, 2], [4, 1], [4, 2], [4, 1]]
    assert read_relevance(table(tmp_path / "empty.csv"), CLIPS).shape == (0, 2)


def test_metrics_with_further_clips_equal_a_loop(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    audio, text = (normalize(torch.randn(rows, 3, generator=generator).double()) for rows in (3, 5))
    embedded = EmbeddedSplit(audio, text, OWNER, CLIPS)
    assert judge(embedded, table(tmp_path / "empty.csv")) == judge(embedded, None)
    found = judge(embedded, table(tmp_path / "t.csv", ("a dog", "c.wav"), ("barks, twice", " b.wav")))
    relevance = [[clip == owner or (caption, clip) in ((0, 2), (3, 2), (1, 1)) for clip in range(3)]
                 for caption, owner in enumerate(OWNER.tolist())]  # fmt: skip
    S = oracles.cosine_similarity(text, audio)
    both = (("text_to_audio", S, relevance), ("audio_to_text", S.T, list(zip(*relevance, strict=True))))
    for direction, scores, relevant in both:
        for k in (1, 10):
            expected = oracles.retrieval_metrics(scores, relevant, k)
            assert found[direction][f"R@{k}"] == pytest.approx(100 * expected["recall"])
        assert found[direction]["mAP@10"] == found[direction]["mAP@16"] == pytest.approx(100 * expected["map"])
        assert found[direction]["median_rank"] == expected["median_rank"]
    assert found != judge(embedded, None)


@pytest.mark.parametrize(
    "words, content",
    [
        ("expected a table of relevance at {}, got no file", None),
        ("expected the header caption,file_name in {}, got file_name,caption", "file_name,caption\n"),
        ("expected the header caption,file_name in {}, got nothing", ""),
        (
            "expected a caption of the split in line 3 of {}, got 'a Dog'",
            "caption,file_name\nrain,a.wav\na Dog,a.wav\n",
        ),
        ("expected a clip of the split in line 2 of {}, got 'b.wav'", "caption,file_name\nrain,b.wav\n"),
        ("expected 2 fields with text in line 2 of {}, got ['rain']", "caption,file_name\nrain\n"),
    ],
)
def test_a_table_that_is_refused(words: str, content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=re.escape(words.format(path))) as refused:
        read_relevance(path, CLIPS)
    assert len(str(refused.value).splitlines()) == 1


def test_a_table_that_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"expected a file at {tmp_path}, got a folder"):
        read_relevance(tmp_path, CLIPS)


def test_names_of_files_may_have_any_bytes(tmp_path: Path) -> None:
    metrics, name = split_metrics(torch.eye(5), torch.eye(5), torch.arange(5)), "\udc80"
    about = {"model": "x", "dataset": "A", "split": "test"}
    write_other(tmp_path / "o.json", metrics, source=f"{name}.npz", relevance=Path(f"{name}.csv"), **about)
    record = read_other(tmp_path / "o.json")
    assert (record["source"], record["relevance"]) == ("?.npz", "?.csv")


def test_embeddings_have_to_be_those_of_the_split(trained: Path, corpus: Path, tmp_path: Path) -> None:
    tensors, record = load_tensors(trained / "test_embeddings.safetensors")
    expected, clips = json.loads((trained / "metrics.json").read_text())["test"], record["clips"]
    place = (str(corpus), "Synthetic", "test")

    def stored(clips: list[StoredClip] | None = None, **changes: Tensor) -> Path:
        record = None if clips is None else {"clips": clips}
        save_tensors(path := tmp_path / "e.safetensors", {**tensors, **changes}, record)
        return path

    reordered = stored(
        clips[::-1], audio=tensors["audio"].flip(0), text=tensors["text"].view(6, 5, -1).flip(0).flatten(0, 1)
    )
    for direction, metrics in judge(embeddings_of_split(reordered, *place), None).items():
        assert metrics == pytest.approx(expected[direction])  # added up in another order
    owner = torch.arange(6).repeat_interleave(5)
    found = embeddings_of_split(stored(clip_of_caption=owner), *place)
    assert found.clips == clips
    assert judge(found, None) == expected
    start = f"expected the clips and captions of Synthetic, test, in {tmp_path / 'e.safetensors'}"
    fewer: dict[str, Tensor] = {"audio": tensors["audio"][:5], "text": tensors["text"][:25]}
    renamed: StoredClip = {"file_name": "x", "captions": clips[5]["captions"]}
    changed: StoredClip = {"file_name": clips[0]["file_name"], "captions": [*clips[0]["captions"][:4], "x"]}
    wrong: list[tuple[str, list[StoredClip] | None, dict[str, Tensor]]] = [
        (", 6 and 30, got 6 and 30, or captions in another order", None, {"clip_of_caption": owner.flip(0)}),
        (", 6 and 30, got 5 and 25, or", None, {**fewer, "clip_of_caption": owner[:25]}),
        (", got a file without the clip '00005.wav'", clips[:5], fewer),
        (", got a file without the clip '00005.wav'", [*clips[:5], renamed], {}),
        (", got a file with other captions of the clip '00000.wav'", [changed, *clips[1:]], {}),
    ]
    for words, others, changes in wrong:
        path = stored(others, **changes)
        with pytest.raises(InputError, match=re.escape(start + words)):
            embeddings_of_split(path, *place)
    both = {name: torch.cat([rows, rows[:1]]) for name, rows in tensors.items()}
    path = stored([*clips, {"file_name": "more", "captions": ["x"]}], **both)
    with pytest.raises(InputError, match="got a file with the clip 'more'"):
        embeddings_of_split(path, *place)


def test_a_run_and_its_embeddings_are_judged_alike(
    trained: Path, corpus: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    clips = read_split(corpus, "Synthetic", "test")
    relevance = table(tmp_path / "t.csv", *((caption, clips[1].path.name) for caption in clips[0].captions))
    file, out = trained / "test_embeddings.safetensors", tmp_path / "results/others/mine.json"
    plain = command_line("evaluate", "--embeddings", file)
    assert json.loads(plain.stdout) == json.loads((trained / "metrics.json").read_text())["test"]
    of_run = command_line("evaluate", "--run", trained, "--relevance", relevance)
    of_file = command_line("evaluate", "--embeddings", file, "--relevance", relevance)
    assert json.loads(of_run.stdout) == json.loads(of_file.stdout) != json.loads(plain.stdout)
    place = ["--data", corpus, "--dataset", "Synthetic", "--out", out]
    for _ in range(2):  # again in the same place
        command_line("evaluate", "--embeddings", file, *place, "--relevance", relevance, "--name", "Mine & yours")
    record = read_other(out)
    assert {name: record[name] for name in ("model", "source", "dataset", "split", "relevance", "metrics")} == {
        "model": "Mine & yours", "source": str(file), "dataset": "Synthetic", "split": "test", "relevance": "t.csv",
        "metrics": json.loads(of_file.stdout),
    }  # fmt: skip
    refused = command_line("evaluate", "--embeddings", file, *place, status=1)
    assert "to be the metrics of test_embeddings on Synthetic, test, got those of Mine & yours" in refused.output
    assert read_other(out) == record
    write_json(out, {"model": "x"})
    assert (
        "expected the metrics of another model"
        in command_line("evaluate", "--embeddings", file, *place, status=1).output
    )


def test_wrong_options_end_in_one_line(tmp_path: Path, command_line: CommandLine) -> None:
    file = tmp_path / "e.safetensors"
    save_tensors(file, {"audio": torch.eye(2), "text": torch.eye(2), "clip_of_caption": torch.arange(2)})
    evaluate, out = ["evaluate", "--embeddings", file], ["--out", tmp_path / "o.json", "--dataset", "A"]
    for arguments, words in (
        (["evaluate"], "one of --run, --model, --embeddings, got none"),
        ([*evaluate, "--run", tmp_path], "one of --run, --model, --embeddings, got --run and --embeddings"),
        (["evaluate", "--run", tmp_path, "--out", "o.json"], "--out with --model or --embeddings, got it with --run"),
        ([*evaluate, "--out", "o.json"], "--dataset with --out, got none"),
        ([*evaluate, *out[2:], "--out", "o.txt"], "a name that ends in .json as --out, got o.txt"),
        ([*evaluate, *out, "--name", " "], "a text in UTF-8 as --name, got ' '"),
        ([*evaluate, *out, "--name", "\udc80"], "a text in UTF-8 as --name, got '\\udc80'"),
        ([*evaluate, *out, "--data", tmp_path], "the captions of the test split at"),
        ([*evaluate, "--relevance", tmp_path / "t.csv"], "names and captions of the clips for --relevance, got none"),
        (["evaluate", "--model", "clap:x"], "--dataset with --model, got none"),
        (["evaluate", "--model", "clip:x", "--dataset", "A"], "clap:NAME or clap:FOLDER as --model, got clip:x"),
        (["evaluate", "--model", "clap:", "--dataset", "A"], "clap:NAME or clap:FOLDER as --model, got clap:"),
        ([*evaluate, "--clip-seconds", 3], "--clip-seconds with --model, got it with --embeddings"),
        ([*evaluate, "--workers", 0], "--workers with --model, got it with --embeddings"),
        (["evaluate", "--run", tmp_path, "--workers", 0], "--workers with --model, got it with --run"),
        ([*evaluate, "--name", "x"], "--name with --out, got it alone"),
        (["evaluate", "--model", "clap:x", "--dataset", "A"], "--clip-seconds for a data set other than"),
    ):
        result = command_line(*arguments, status=1)
        assert result.stderr.startswith(f"Error: expected {words}"), result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "o.json").exists()


def test_embeddings_may_be_any_model_s(tmp_path: Path, command_line: CommandLine) -> None:
    """Without a data set they are measured, and nothing is written."""
    save_tensors(
        tmp_path / "e.safetensors", {"audio": torch.eye(2), "text": torch.eye(2), "clip_of_caption": torch.arange(2)}
    )
    result = command_line("evaluate", "--embeddings", tmp_path / "e.safetensors")
    assert json.loads(result.stdout) == split_metrics(torch.eye(2), torch.eye(2), torch.arange(2))
    assert read_embeddings(tmp_path / "e.safetensors").clips is None
    assert len(list(tmp_path.iterdir())) == 1
