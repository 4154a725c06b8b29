"""Every file that the program reads may be edited or damaged: it is read, or refused in one line that names it.

A door is a function that reads a file. Each gets 1,000 files that are mutated from a good one, the same every time.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from grids import small_grid
from mutations import mutated_bytes, mutated_json, mutated_safetensors
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, BertModel, ClapFeatureExtractor

from reference_model import InputError
from reference_model.config import Config
from reference_model.data.batches import FrontEnd
from reference_model.data.dataset import Clip
from reference_model.data.manifest import ManifestRow, read_manifest, write_manifest
from reference_model.evaluation.embedded import read_embeddings
from reference_model.evaluation.judge import judge
from reference_model.evaluation.metrics import split_metrics
from reference_model.evaluation.others import write_other
from reference_model.models import bert, panns, text
from reference_model.models.features import cached_features
from reference_model.models.hugging_face_audio import read_extractor
from reference_model.paper import select_rows
from reference_model.reproduction.examples import EmbeddedTestSet, captions_as_queries, clips_as_queries, similarities
from reference_model.reproduction.grid import Grid, plan
from reference_model.reproduction.table_formats import latex, markdown
from reference_model.reproduction.tables import make_table
from reference_model.run_folder import stored_metrics, stored_reason, stored_time
from reference_model.runtime.files import write_json
from reference_model.runtime.records import read_json
from reference_model.runtime.tensors import load_tensors, load_weights, save_tensors
from reference_model.search.index import ItemEmbeddings, load_or_update
from reference_model.search.model_card import model_card
from reference_model.training.checkpoint import load_checkpoint, save_checkpoint

MUTATIONS = 1000
Mutate = Callable[[bytes, Random], bytes]


def try_all(path: Path, mutate: Mutate, read: Callable[[], object], *, number: int = MUTATIONS) -> None:
    """Put mutations of a file in its place; each is read, or refused in one line that names the file or its folder."""
    random, good, refused = Random(0), path.read_bytes(), 0
    for _ in range(number):
        path.write_bytes(content := mutate(good, random))
        try:
            read()
        except InputError as error:
            refused += 1
            message = str(error)
            assert message.startswith("expected ")
            assert "got" in message
            assert len(message.splitlines()) == 1
            assert str(path) in message or str(path.parent) in message
            assert len(message) < 2000
        except BaseException as error:
            raise AssertionError(f"{type(error).__name__} for {content[:3000]!r}") from error
    path.write_bytes(good)
    read()
    assert refused > number / 10


def test_config(trained: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(trained / "config.json", tmp_path))
    try_all(path, mutated_json, lambda: Config.read(path))


def test_metrics(trained: Path, config: Config, tmp_path: Path) -> None:
    shutil.copy(trained / "metrics.json", tmp_path)

    def read() -> None:
        metrics = stored_metrics(tmp_path)
        model_card(config, metrics, parameters=1, embedding_size=1)
        ", ".join(f"{name} {version}" for name, version in metrics["versions"].items())

    try_all(tmp_path / "metrics.json", mutated_json, read)


def test_small_records(tmp_path: Path, trained: Path) -> None:
    time = Path(shutil.copy(trained / "time.json", tmp_path))
    try_all(time, mutated_json, lambda: f"{stored_time(tmp_path)['seconds'] / 60:.1f}")
    write_json(reason := tmp_path / "diverged.json", {"reason": "the loss is nan", "best_epoch": None})
    try_all(reason, mutated_json, lambda: stored_reason(reason).splitlines())
    write_json(settings := tmp_path / "corpus.json", {"train": 600, "seconds": 1.5})
    try_all(settings, mutated_json, lambda: read_json(settings, dict[str, Any], "the settings of a corpus").items())


def test_grid(tmp_path: Path) -> None:
    small_grid(select_rows(["1"], datasets=["Clotho"], encoders=["frozen"]), [0, 1]).write(tmp_path)
    try_all(tmp_path / "grid.json", mutated_json, lambda: plan(Grid.read(tmp_path), tmp_path))


def test_test_embeddings(trained: Path, config: Config, tmp_path: Path) -> None:
    shutil.copy(trained / "test_embeddings.safetensors", tmp_path)
    elsewhere = replace(config, data=str(tmp_path))  # without sounds, which take long to encode

    def read() -> None:
        test = EmbeddedTestSet.read(tmp_path)
        similarities(test)
        captions_as_queries(test, elsewhere)
        clips_as_queries(test, elsewhere)

    try_all(tmp_path / "test_embeddings.safetensors", mutated_safetensors, read)


def test_embeddings_of_numpy(tmp_path: Path) -> None:
    record = json.dumps({"clips": [{"file_name": "a.wav", "captions": ["a", "b"]}]})
    arrays: dict[str, Any] = {"audio": np.ones((1, 2)), "text": np.ones((2, 2)), "clip_of_caption": np.zeros(2, int)}
    np.savez(path := tmp_path / "a.npz", **arrays, record=record)
    try_all(path, mutated_bytes, lambda: judge(read_embeddings(path), None))


def test_other_models(tmp_path: Path) -> None:
    metrics = split_metrics(torch.eye(2), torch.eye(2), torch.arange(2))
    about: dict[str, Any] = {"model": "CLAP", "source": "clap:it", "dataset": "Clotho", "split": "test"}
    write_other(path := tmp_path / "others/clap.json", metrics, **about, relevance=None)
    grid = small_grid(select_rows(["1"], datasets=["Clotho"], encoders=["frozen"]), [0])

    def read() -> None:
        table = make_table(grid, "1", tmp_path)
        markdown(table)
        latex(table)

    try_all(path, mutated_json, read)


def test_feature_extractor_of_clap(tmp_path: Path) -> None:
    ClapFeatureExtractor(max_length_s=1).save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    try_all(path, mutated_json, lambda: read_extractor(tmp_path), number=300)


def test_weights(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    save_tensors(path := tmp_path / "weights.safetensors", model.state_dict())
    try_all(path, mutated_safetensors, lambda: load_weights(path, model.state_dict()))


def test_checkpoint(trained: Path, tmp_path: Path) -> None:
    model = nn.Linear(2, 3)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    record = {
        "epoch": 2, "step": 2, "total": 1.5, "history": stored_metrics(trained)["history"], "seconds": 3.5,
        "scaler": None, "data": "a", "frozen": "b", "versions": {"torch": "2"},
    }  # fmt: skip
    save_checkpoint(path := tmp_path / "checkpoint.safetensors", model.state_dict(), optimizer, record)

    def read() -> None:
        load_checkpoint(path, model.state_dict(), optimizer)
        optimizer.step()

    try_all(path, mutated_safetensors, read)


def test_features(config: Config, tmp_path: Path) -> None:
    """Of one clip and one caption: all features are there, and the encoders have no weights."""
    encoder: Any = nn.Identity()
    encoder.output_size, encoder.settings, encoder.front_end = 3, [], FrontEnd()
    model: Any = SimpleNamespace(audio_encoder=encoder, text_encoder=encoder, constant=["audio", "text"])
    model.eval = lambda: model
    model.encoder = lambda _: encoder
    clips, accelerator = [Clip(tmp_path / "a.wav", ("a",))], Accelerator(cpu=True)

    def read() -> None:
        cached_features(tmp_path, model, clips, ["checksum"], [[1, 2]], config, accelerator)

    for kind in ("audio", "text"):
        with pytest.raises((InputError, TypeError)):  # nothing can be computed, but the folder is made
            read()
        (folder,) = tmp_path.glob(f"{kind}-*")
        save_tensors(folder / "000000.safetensors", {"features": torch.ones(1, 3)})
    try_all(folder / "000000.safetensors", mutated_safetensors, read)


def test_index(tmp_path: Path) -> None:
    path, versions = tmp_path / "index.safetensors", {f"{k}.wav": [k, 7] for k in range(4)}

    def embed(names: list[str]) -> Iterator[ItemEmbeddings]:
        yield [(name, torch.ones(3)) for name in names]

    load_or_update(path, versions, embed)
    try_all(path, mutated_safetensors, lambda: load_or_update(path, versions, embed).nearest(torch.ones(3), 2))


def test_manifest(tmp_path: Path) -> None:
    rows = [ManifestRow("train", f"{k}.wav", "ok", 1.5, 32_000, 1, 0.5, "a" * 64) for k in range(5)]
    write_manifest(path := tmp_path / "manifest.csv", rows)
    try_all(path, mutated_bytes, lambda: read_manifest(path))


def test_panns(tmp_path: Path) -> None:
    checkpoint = {"iteration": 1, "model": {"bn0.weight": torch.ones(3), "fc.bias": torch.ones(2)}, "sampler": {}}
    torch.save(checkpoint, path := tmp_path / "ResNet38.pth")
    try_all(path, mutated_bytes, lambda: panns.read_panns(path))


@pytest.fixture
def bert_folder(tmp_path: Path) -> Path:
    """A very small BERT."""
    tokenizer = bert.train_tokenizer(["a dog barks", "a car passes by"])
    sizes: dict[str, Any] = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 4}
    settings = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes)
    folder = tmp_path / "bert"
    folder.mkdir()
    bert.save_pretrained(folder, BertModel(settings, add_pooling_layer=False), tokenizer)
    return folder


def encode_with(folder: Path) -> None:
    encoder = text.published(str(folder))
    for sentence in encoder.tokenize(["a dog barks (loud)", "zebra"]):
        encoder(torch.tensor([sentence]), torch.ones(1, len(sentence)))


BERT_FILES = {
    "config.json": mutated_json,
    "tokenizer.json": mutated_json,
    "tokenizer_config.json": mutated_json,
    "model.safetensors": mutated_safetensors,
}


@pytest.mark.parametrize("name", BERT_FILES)
def test_bert(bert_folder: Path, name: str) -> None:
    try_all(bert_folder / name, BERT_FILES[name], lambda: encode_with(bert_folder), number=MUTATIONS // 4)


def test_an_index_of_weights(bert_folder: Path) -> None:
    text.published(str(bert_folder)).model.save_pretrained(bert_folder, max_shard_size=500)
    (bert_folder / "model.safetensors").unlink()
    assert len(list(bert_folder.glob("*.safetensors"))) > 2
    index = bert_folder / "model.safetensors.index.json"
    try_all(index, mutated_json, lambda: encode_with(bert_folder), number=MUTATIONS // 4)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_saved_bert(bert_folder: Path, name: str) -> None:
    (bert_folder / "model.safetensors").unlink()
    try_all(bert_folder / name, mutated_json, lambda: text.saved(bert_folder, pooling="first"), number=MUTATIONS // 4)


@pytest.mark.parametrize(
    "name, value",
    [
        ("clip_seconds", float("inf")), ("clip_seconds", 1e12), ("learning_rate", float("inf")), ("workers", 1.5),
        ("learning_rate", float("nan")), ("seed", 2**70), ("epochs", 10**400), ("workers", 10**6), ("data", 5),
        ("dataset", None), ("data", "a\0b"), ("text_encoder", "\ud800"), ("loss", []), ("precision", {}),
        ("spec_augment", 1),
        ("clip_norm", 1e39), ("batch_size", True), ("encoders", ["frozen"]),
    ],
)  # fmt: skip
def test_impossible_settings_of_a_run(config: Config, name: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^expected .*{name}"):
        replace(config, **{name: value})


def test_weights_that_are_not_finite(bert_folder: Path, tmp_path: Path) -> None:
    for bad in (float("nan"), float("inf")):
        weights = load_file(bert_folder / "model.safetensors")
        weights["embeddings.word_embeddings.weight"][1, 2] = bad
        save_file(weights, bert_folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(InputError, match=r"got .*/bert: a file with NaN or inf in embeddings\.word_embeddings"):
            text.published(str(bert_folder))
        with pytest.raises(InputError, match=r"expected finite weights in .*, got NaN or inf in embeddings\.word_emb"):
            load_weights(bert_folder / "model.safetensors", weights)
        torch.save({"model": {"bn0.weight": torch.tensor([1.0, bad])}}, tmp_path / "a.pth")
        with pytest.raises(InputError, match=r"expected finite arrays with names in .*a\.pth, got 'bn0\.weight'"):
            panns.read_panns(tmp_path / "a.pth")


@pytest.mark.parametrize("model", [{1: torch.ones(1)}, {"a": 1}, {"a": None}, {("a",): torch.ones(1)}, {"a": "b"},
                                   {"a": torch.ones(1).to_sparse()}, {"a": torch.ones(1) * 1j}])  # fmt: skip
def test_a_panns_checkpoint_of_other_things(tmp_path: Path, model: dict[Any, Any]) -> None:
    torch.save({"model": model}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"expected .*a\.pth, got "):
        panns.read_panns(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer.0.exp_avg": None}, {"optimizer.1.step": None}, {"optimizer.0.exp_avg": torch.zeros(2, 2)},
        {"optimizer.1.exp_avg_sq": torch.zeros(())}, {"optimizer.2.step": torch.zeros(())},
        {"optimizer.first.step": torch.zeros(())}, {"optimizer.0.more": torch.zeros(2, 3)},
    ],
)  # fmt: skip
def test_a_checkpoint_with_another_state_of_the_optimizer(tmp_path: Path, change: dict[str, Any]) -> None:
    model, path = nn.Linear(2, 3), tmp_path / "checkpoint.safetensors"
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    record = {"epoch": 1, "step": 1, "total": 1.5, "history": [], "seconds": 3.5, "scaler": None}
    save_checkpoint(path, model.state_dict(), optimizer, record | {"data": "a", "frozen": "b", "versions": {}})
    load_checkpoint(path, model.state_dict(), optimizer)
    tensors, stored = load_tensors(path)
    tensors = {name: tensor for name, tensor in (tensors | change).items() if tensor is not None}
    save_tensors(path, tensors, stored)
    with pytest.raises(InputError, match=r"expected a checkpoint of this run in .*got another's: the state of param"):
        load_checkpoint(path, model.state_dict(), optimizer)
    save_tensors(path, load_tensors(path)[0], {**stored, "epoch": 9})
    with pytest.raises(InputError, match=r"expected a record of each finished epoch in .*, got 0 in epoch 9"):
        load_checkpoint(path, model.state_dict(), optimizer)
