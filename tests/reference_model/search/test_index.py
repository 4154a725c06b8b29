"""The index of a folder or a file: exact search, updates, damaged and interrupted writes."""

import itertools
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from runs import CommandLine
from safetensors.torch import save
from torch import Tensor

from reference_model import InputError
from reference_model.data.audio import load_waveform
from reference_model.models import encode
from reference_model.runtime.signals import EXIT_STOPPED
from reference_model.runtime.tensors import save_tensors
from reference_model.search import index, retriever
from reference_model.search.index import Index, ItemEmbeddings, SearchResult, index_path, load_or_update
from reference_model.search.retriever import Retriever

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["reference_model.training.trainer"])


@pytest.fixture
def searched(corpus: Path, tmp_path: Path) -> Path:
    """A folder with 6 clips in a subfolder."""
    return shutil.copytree(corpus / "Synthetic" / "waveforms" / "test", tmp_path / "recordings" / "of today").parent


@pytest.fixture
def model(trained: Path) -> Retriever:
    return Retriever.from_pretrained(trained)


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were decoded so far."""
    names = []

    def load(path: Path, seconds: float, rate: int) -> Tensor:
        names.append(path.name)
        return load_waveform(path, seconds, rate)

    monkeypatch.setattr(retriever, "load_waveform", load)
    return names


@st.composite
def embeddings_with_ties(draw: st.DrawFn) -> tuple[Tensor, Tensor, list[str], int]:
    """Small integers: every product is exact, and many are equal."""
    number, size = draw(st.integers(1, 40)), draw(st.integers(1, 5))
    values = st.lists(st.integers(-2, 2), min_size=size, max_size=size)
    rows = torch.tensor([draw(values) for _ in range(number)], dtype=torch.float32)
    names = draw(st.permutations([f"{n:02d}.wav" for n in range(number)]))
    return torch.tensor(draw(values), dtype=torch.float32), rows, list(names), draw(st.integers(1, number + 2))


@given(drawn=embeddings_with_ties())
def test_the_nearest_are_those_of_brute_force(drawn: tuple[Tensor, Tensor, list[str], int]) -> None:
    query, rows, names, top = drawn
    scores = [sum(float(a) * float(b) for a, b in zip(query, row, strict=True)) for row in rows]
    best = sorted(zip(scores, names, strict=True), key=lambda pair: (-pair[0], pair[1]))[:top]
    expected = [SearchResult(rank, score, name) for rank, (score, name) in enumerate(best, start=1)]
    assert Index(names, rows, {}).nearest(query, top) == expected


def test_the_nearest_of_many_items() -> None:
    """Compared with torch's product, for more items than FAISS processes at a time."""
    torch.manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(20_000, 64))
    names = [f"{n:05d}" for n in range(len(rows))]
    for query in torch.nn.functional.normalize(torch.randn(10, 64)):
        scores, best = (rows.double() @ query.double()).topk(300)
        found = Index(names, rows, {}).nearest(query, 300)
        assert [int(item) for _, _, item in found] == best.tolist()
        assert [score for _, score, _ in found] == pytest.approx(scores.tolist(), abs=1e-6)
    with pytest.raises(InputError, match="expected top >= 1, got 0"):
        Index(names, rows, {}).nearest(rows[0], 0)


def test_only_what_is_new_or_changed_is_embedded(model: Retriever, searched: Path, embedded: list[str]) -> None:
    today = searched / "of today"

    def changed() -> list[str]:
        """Return the names that an update embeds; the result equals an index made anew."""
        embedded.clear()
        found = model.audio_index(searched)
        names = sorted(embedded)
        embedded.clear()
        assert model.audio_index(searched).items == found.items
        assert not embedded
        expected = sorted(path.relative_to(searched).as_posix() for path in searched.rglob("*.*"))
        assert found.items == expected
        afresh = model.embed_audio([searched / name for name in expected])
        torch.testing.assert_close(found.embeddings, afresh, rtol=0, atol=1e-6)
        return names

    assert changed() == [f"0000{n}.wav" for n in range(6)]
    shutil.copy(today / "00000.wav", searched / "added.FLAC")  # by its suffix audio; by its content a WAV
    assert changed() == ["added.FLAC"]
    samples, rate = soundfile.read(today / "00001.wav")
    before = (today / "00001.wav").stat()
    soundfile.write(today / "00001.wav", samples[: len(samples) // 2], rate)
    os.utime(today / "00001.wav", ns=(0, before.st_mtime_ns))  # its size alone tells
    assert changed() == ["00001.wav"]
    os.utime(today / "00002.wav", ns=(0, (today / "00002.wav").stat().st_mtime_ns + 1))
    assert changed() == ["00002.wav"]
    assert (today / "00000.wav").stat().st_size == (today / "00005.wav").stat().st_size
    shutil.copy(today / "00005.wav", today / "00000.wav")  # other content of the same size
    assert changed() == ["00000.wav"]
    (today / "00003.wav").unlink()
    assert changed() == []
    (today / "00004.wav").rename(today / "renamed.wav")
    assert changed() == ["renamed.wav"]
    today.rename(searched / "of yesterday")
    assert len(changed()) == 5
    moved = searched.with_name("moved")  # with its index
    searched.rename(moved)
    searched.with_name("recordings.index").rename(searched.with_name("moved.index"))
    embedded.clear()
    assert len(model.audio_index(moved).items) == 6
    assert not embedded


def test_bad_files_are_skipped_with_a_warning(
    model: Retriever, searched: Path, embedded: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    (searched / "text.wav").write_text("no audio")
    (searched / "empty.ogg").touch()
    (searched / "nothing.wav").symlink_to(searched / "gone.wav")
    soundfile.write(searched / "nan.wav", torch.full((100,), torch.nan).numpy(), 32_000, subtype="FLOAT")
    soundfile.write(searched / "loud.wav", torch.full((32_000,), 1e30).numpy(), 32_000, subtype="FLOAT")
    skipped = {"text.wav", "empty.ogg", "nothing.wav", "nan.wav", "loud.wav"}
    found = model.audio_index(searched)
    assert len(found.items) == 6
    assert found.skipped.keys() == skipped
    assert sorted(message.split(" is left out")[0] for message in caplog.messages) == sorted(skipped)
    assert "not finite" in found.skipped["loud.wav"]
    assert "No such file" in found.skipped["nothing.wav"]
    caplog.clear()
    embedded.clear()
    assert model.audio_index(searched).skipped == found.skipped
    assert caplog.messages == ["nothing.wav is left out: No such file or directory"]
    assert not embedded
    shutil.copy(searched / "of today" / "00000.wav", searched / "text.wav")
    repaired = model.audio_index(searched)
    assert embedded == ["text.wav"]
    assert "text.wav" in repaired.items
    assert repaired.skipped.keys() == skipped - {"text.wav"}
    # A change of permissions does not change the modification time.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: path != searched / "text.wav")
        assert model.audio_index(searched).skipped["text.wav"] == "no permission to read it"
    assert model.audio_index(searched).items == repaired.items


def test_folders_without_readable_audio_are_refused(model: Retriever, tmp_path: Path) -> None:
    for name in ("none/notes.txt", "bad/a.wav", "bad/b.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no audio")
    unreadable = "a clip that can be read .* got 2 that cannot, such as a.wav: unr"
    for name, words in (
        ("absent", "expected a folder of audio at .*, got nothing"),
        ("none", r"expected audio files \(\.aif .*\.wav\) in .*, got none"),
        ("none/notes.txt", "expected a folder of audio at .*, got a file"),
        ("bad", unreadable),
        ("bad", unreadable),  # by its index
    ):
        with pytest.raises(InputError, match=words):
            model.audio_index(tmp_path / name)


def test_file_names_with_unusual_characters(
    model: Retriever, tmp_path: Path, corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / " of 'odd' \"names\"\n"
    clip = corpus / "Synthetic" / "waveforms" / "test" / "00000.wav"
    names = [" space.wav", "-dash.wav", "'\".wav", "näme 犬.WAV", "new\nline.wav", "per%20cent.Wav", "a.b.wav"]
    (folder / ".hidden").mkdir(parents=True)
    (folder / "round").symlink_to(folder)  # and round
    (tmp_path / "elsewhere").mkdir()
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    names.append("link/linked.wav")
    for name in (*names, ".hidden.wav", ".hidden/clip.wav", "no audio.txt", os.fsdecode(b"\xff.wav")):
        shutil.copy(clip, folder / name)
    found = model.audio_index(folder)
    assert found.items == sorted(names)
    assert dict(found.skipped) == {"\udcff.wav": "unreadable: its name is not UTF-8"}
    assert caplog.messages == ["'\\udcff.wav' is left out: unreadable: its name is not UTF-8"]
    assert model.audio_index(folder).items == sorted(names)
    assert index_path(folder, "key", None).parent.name == folder.name + ".index"
    other = folder.rename(tmp_path / os.fsdecode(b"\xff"))
    with pytest.raises(InputError, match=r"expected a path in UTF-8, got '.*\\udcff'"):
        model.audio_index(other)


def test_one_folder_holds_the_indices_of_many(
    model: Retriever, searched: Path, tmp_path: Path, embedded: list[str]
) -> None:
    """Two of them are of folders with the same name."""
    other = shutil.copytree(searched, tmp_path / "other" / "recordings")
    (other / "of today" / "00000.wav").unlink()
    place = tmp_path / "indexes"
    assert len(model.audio_index(searched, place).items) == 6
    assert len(model.audio_index(other, place).items) == 5
    embedded.clear()
    assert len(model.audio_index(searched, place).items) == 6
    assert not embedded
    assert not list(tmp_path.glob("*.index"))
    with pytest.raises(InputError, match="expected another folder for the index of /, got none; --index names it"):
        index_path(Path("/"), "key", None)


def test_an_index_that_cannot_be_written_is_refused_before_anything_is_embedded(
    model: Retriever, searched: Path, embedded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """/sys refuses even the superuser. An index that lacks nothing is not written."""
    with pytest.raises(InputError, match=r"expected to write an index in /sys/.*; --index names another folder"):
        model.audio_index(searched, "/sys/index")
    assert not embedded
    full = Mock(side_effect=OSError("No space left"))
    with monkeypatch.context() as patch:
        patch.setattr(index, "save_tensors", full)
        with pytest.raises(InputError, match=r"expected to write an index in .*: No space left; --index names"):
            model.audio_index(searched)
    model.audio_index(searched)
    for name in ("FileLock", "save_tensors"):
        monkeypatch.setattr(index, name, full)
    embedded.clear()
    assert len(model.audio_index(searched).items) == 6
    assert not embedded


def test_a_damaged_index_is_refused(model: Retriever, searched: Path) -> None:
    model.audio_index(searched)
    (path,) = searched.with_name("recordings.index").glob("*.safetensors")
    entries = torch.frombuffer(bytearray(b"[]"), dtype=torch.uint8)
    others = ({"embeddings": torch.ones(2, 3)}, {"embeddings": torch.ones(2, 3), "entries": entries})
    for content in (path.read_bytes()[:-1], *map(save, others)):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"expected an index at .*; without that file it is made again"):
            model.audio_index(searched)
    path.unlink()
    assert len(model.audio_index(searched).items) == 6


def _killed(run: Path, searched: Path) -> None:
    """Embed in batches of one, save after each, and be killed when the third file is written, but not in its place."""
    patch, replace_file, saves = pytest.MonkeyPatch(), os.replace, itertools.count(1)
    patch.setattr(index, "SECONDS_BETWEEN_SAVES", 0.0)
    patch.setattr(index, "SHARE_OF_SAVES", float("inf"))
    patch.setattr(encode, "ENCODING_BATCH", 1)

    def kill(*arguments: Any) -> None:
        if next(saves) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        replace_file(*arguments)

    patch.setattr(os, "replace", kill)
    Retriever.from_pretrained(run).audio_index(searched)


def test_an_update_that_was_killed_continues(
    trained: Path, model: Retriever, searched: Path, embedded: list[str]
) -> None:
    process = _context.Process(target=_killed, args=(trained, searched))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    found = model.audio_index(searched)
    assert len(embedded) == 6 - 2
    assert found.items == [f"of today/0000{n}.wav" for n in range(6)]
    expected = model.embed_audio([searched / name for name in found.items])
    torch.testing.assert_close(found.embeddings, expected, rtol=0, atol=1e-6)
    assert {path.suffix for path in searched.with_name("recordings.index").iterdir()} <= {".safetensors", ".lock"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_update_that_was_stopped_continues(
    trained: Path, searched: Path, monkeypatch: pytest.MonkeyPatch, command_line: CommandLine, number: signal.Signals
) -> None:
    """Everything embedded so far is saved, though the next save is far away."""
    monkeypatch.setattr(encode, "ENCODING_BATCH", 1)
    embedded = []

    def load(path: Path, seconds: float, rate: int) -> Tensor:
        embedded.append(path.name)
        if len(embedded) == 3:
            signal.raise_signal(number)
        return load_waveform(path, seconds, rate)

    monkeypatch.setattr(retriever, "load_waveform", load)
    command = ["search", "--run", trained, "--audio", searched, "a low tone"]
    stopped = command_line(*command, status=EXIT_STOPPED)
    assert EXIT_STOPPED == 75
    assert stopped.stderr.splitlines()[-1].endswith("stopped when asked to; the same command continues")
    assert len(embedded) == 3
    command_line(*command)
    assert embedded == ["00000.wav", "00001.wav", "00002.wav", "00002.wav", "00003.wav", "00004.wav", "00005.wav"]


def test_an_index_is_saved_at_intervals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short update is saved once; in a long one saving takes a small share of the time."""
    now = 0.0
    saves: list[float] = []

    def save(*arguments: Any) -> None:
        nonlocal now
        now += 60  # a large index on a slow disk
        saves.append(now)
        save_tensors(*arguments)

    def embed(names: list[str]) -> Iterator[ItemEmbeddings]:
        nonlocal now
        for name in names:
            now += 10
            yield [(name, torch.ones(2))]

    monkeypatch.setattr(index, "save_tensors", save)
    monkeypatch.setattr("reference_model.search.index.time.monotonic", lambda: now)
    load_or_update(tmp_path / "a" / "b.safetensors", {str(n): [] for n in range(2)}, embed)
    assert len(saves) == 1
    now, saves = 0.0, []
    load_or_update(tmp_path / "c.safetensors", {str(n): [] for n in range(400)}, embed)
    assert saves[0] == 90
    between = [later - earlier for earlier, later in itertools.pairwise(saves[:-1])]
    assert len(between) == 3
    assert min(between) == max(between) == 60 + 60 / 0.05


def test_of_two_updates_at_the_same_time_one_embeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, versions = tmp_path / "index" / "key.safetensors", {"a": [1], "b": [2]}
    begun, waiting, go_on = threading.Event(), threading.Event(), threading.Event()

    def first(names: list[str]) -> Iterator[ItemEmbeddings]:
        begun.set()
        go_on.wait()
        yield [(name, torch.ones(3)) for name in names]

    def warn(message: str, _: Path) -> None:
        assert "another process is at work on" in message
        waiting.set()

    monkeypatch.setattr(index.log, "warning", warn)
    with ThreadPoolExecutor() as threads:
        of_first = threads.submit(load_or_update, path, versions, first)
        assert begun.wait(60)
        of_second = threads.submit(load_or_update, path, versions, Mock(side_effect=AssertionError))
        assert waiting.wait(60)
        go_on.set()
    found, again = of_first.result(), of_second.result()
    assert found.items == again.items == ["a", "b"]
    assert torch.equal(found.embeddings, again.embeddings)


def test_only_new_captions_are_embedded(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal captions are one item."""
    tokenized: list[str] = []

    model = Retriever.from_pretrained(trained)
    tokenize = model.model.text_encoder.tokenize

    def listed(captions: list[str]) -> list[list[int]]:
        tokenized.extend(captions)
        return tokenize(captions)

    monkeypatch.setattr(model.model.text_encoder, "tokenize", listed)
    file = tmp_path / "captions.txt"
    file.write_text("\ufeffa low tone\r\n\n  a high tone \na low tone\n", encoding="utf-8")
    assert model.caption_index(file).items == tokenized == ["a low tone", "a high tone"]
    file.write_text("a loud hiss\na low tone\n")
    found = model.caption_index(file)
    assert found.items == ["a loud hiss", "a low tone"]
    assert tokenized[2:] == ["a loud hiss"]
    file.write_text("a low tone\na loud hiss\n")
    other_way_round = model.caption_index(file)
    assert other_way_round.items == ["a low tone", "a loud hiss"]
    assert torch.equal(other_way_round.embeddings, found.embeddings.flip(0))
    assert tokenized[2:] == ["a loud hiss"]
    torch.testing.assert_close(found.embeddings, model.embed_text(found.items), rtol=0, atol=1e-6)
    table = tmp_path / "captions.CSV"
    table.write_text('file_name,caption_1,caption_2\na.wav,"a low tone, and another",a hiss\n')
    assert model.caption_index(table).items == ["a low tone, and another", "a hiss"]


def test_files_without_captions_are_refused(model: Retriever, tmp_path: Path) -> None:
    for name, content, words in (
        ("a.txt", None, "expected a file of captions at .*, got no file"),
        ("a.txt", b"", "expected at least one caption in .*, got none"),
        ("a.txt", b"\n \n", "expected at least one caption in .*, got none"),
        ("a.txt", b"\xff\xfe", "expected captions in UTF-8, one a line, in .*, got "),
        ("a.csv", b"a low tone\n", "expected the header file_name,caption or .*, got a low tone"),
        ("a.csv", b"file_name,caption\n", "expected at least one caption in .*, got none"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=words):
            model.caption_index(tmp_path / name)
    assert not list(tmp_path.glob("*.index"))
