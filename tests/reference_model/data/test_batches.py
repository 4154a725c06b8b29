"""Batches hold the waveforms, tokens and clips that belong together, for any number of workers and processes."""

import gc
import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import BatchSampler, RandomSampler

from reference_model import InputError
from reference_model.data import batches
from reference_model.data.audio import load_waveform
from reference_model.data.batches import (
    CaptionsOfClips,
    DistributedBatchSampler,
    Pairs,
    Waveforms,
    data_loader,
    read_batches,
)
from reference_model.data.dataset import Clip, clip_of_caption, read_split


def test_tokens_are_padded() -> None:
    padded = batches.pad_tokens([[5, 6, 7], [8]])
    assert padded["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert padded["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_every_pair_is_a_caption_with_its_clip(corpus: Path) -> None:
    """Neither the number of workers nor a beginning in the middle of an epoch, as of a run that continues, matters."""
    clips = read_split(corpus, "Synthetic", "val")
    pairs = Pairs(clips, [[k] for k in range(30)], 0.5)
    assert len(pairs) == 30

    def sentences_and_clips(workers: int, step: int) -> list[tuple[list[int], list[int], torch.Tensor]]:
        order = RandomSampler(pairs, generator=torch.Generator().manual_seed(1))
        sampler = DistributedBatchSampler(BatchSampler(order, 8, drop_last=True), 0, 1)
        loader = batches.WaveformBatches(pairs, sampler, workers, torch.device("cpu"))
        return [
            (
                batch["text"]["text"]["input_ids"].flatten().tolist(),
                batch["ids"].tolist(),
                batch["audio"]["audio"]["waveforms"],
            )
            for batch in loader.from_step(step)
        ]

    expected = sentences_and_clips(0, 0)
    assert len(expected) == 3
    for captions, ids, waveforms in expected:
        assert ids == [caption // 5 for caption in captions]
        assert torch.equal(waveforms, torch.stack([load_waveform(clips[clip].path, 0.5) for clip in ids]))
    for workers, step in ((2, 0), (0, 1), (2, 2)):
        torch.testing.assert_close(sentences_and_clips(workers, step), expected[step:], rtol=0, atol=0)


def test_a_clip_with_several_captions_has_one_row_where_asked() -> None:
    pairs = [
        {"id": clip, "caption": n, "audio": {"waveforms": torch.full((2,), clip)}}
        for n, clip in enumerate([7, 3, 7, 7, 5])
    ]
    batch = batches.collate(pairs, each_clip_once=True)
    assert batch["audio"]["audio"]["waveforms"][:, 0].tolist() == [7, 3, 5]
    assert batch["audio"]["audio_rows"].tolist() == [0, 1, 0, 0, 2]
    assert batch["ids"].tolist() == [7, 3, 7, 7, 5]
    assert "audio_rows" not in batches.collate(pairs)["audio"]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_worker_keeps_its_message_and_ends_the_workers(tmp_path: Path, workers: int) -> None:
    """DataLoader would add the traceback of the worker, and end the workers when the garbage collector runs."""
    gc.collect()  # ends the workers of other tests that a cycle keeps
    loader = data_loader(Waveforms([Clip(tmp_path / "none.wav", ("x",))], 0.5), workers, torch.device("cpu"))
    gc.disable()
    try:
        with pytest.raises(InputError, match=r"^expected readable audio, got .*none\.wav: .*$"):
            list(read_batches(loader))
        assert not multiprocessing.active_children()
    finally:
        gc.enable()


def test_a_batch_is_divided_without_remainder() -> None:
    first, second = [3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 9, 7]
    sampler = BatchSampler([*first, *second], batch_size=7, drop_last=True)
    parts = [list(DistributedBatchSampler(sampler, process, 3)) for process in range(3)]
    assert [[pair for part in parts for pair in part[k]] for k in range(2)] == [first, second]
    assert {len(batch) for part in parts for batch in part} == {2, 3}
    assert len(DistributedBatchSampler(sampler, 0, 3)) == 2


def test_captions_follow_those_of_their_clip() -> None:
    clips = [Clip(Path(str(number)), ("a caption",) * number) for number in (2, 1, 3)]
    captions = CaptionsOfClips(clips, [2, 0, 1])
    assert [*captions] == [3, 4, 5, 0, 1, 2]
    assert clip_of_caption(clips)[[*captions]].tolist() == [2, 2, 2, 0, 0, 1]
    assert len(captions) == 6


PROGRAM = """
from pathlib import Path
import torch
from reference_model.data.batches import Waveforms, data_loader, read_batches
from reference_model.data.dataset import Clip

clips = [Clip(Path("none.wav"), ("a tone",))] * 64
loader = data_loader(Waveforms(clips, 0.5), 2, torch.device("cpu"), batch_size=32, persistent_workers=True)
list(read_batches(loader))
"""


def test_a_process_whose_worker_raises_ends() -> None:
    """The workers ignore SIGTERM, and wait for work as long as something refers to the loader."""
    command, root = [sys.executable, "-c", PROGRAM], Path(__file__).parents[3]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=120)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("reference_model.InputError: expected readable audio, got none.wav")
