"""Splits have the names that circulate; those that are missing are held out, the same clips each time."""

import pytest

from reference_model import InputError
from reference_model.data.sources import DownloadedClip
from reference_model.data.splits import complete, name_splits


@pytest.mark.parametrize(
    "names",
    [
        ("train", "val", "test"), ("Training", "Validation", "Testing"), ("train", "dev", "eval"),
        ("development", "validation", "evaluation"), ("dev", "valid", "test"), ("train", "development", "evaluation"),
    ],
)  # fmt: skip
def test_names_that_circulate(names: tuple[str, ...]) -> None:
    assert name_splits(reversed(names), "there") == dict(zip(("train", "val", "test"), names, strict=True))
    assert name_splits(names[:1], "there") == {"train": names[0]}


@pytest.mark.parametrize(
    "names, got",
    [((), "none"), (("test",), "test"), (("train", "val", "dev"), "train, val, dev"), (("train", "x"), "train, x")],
)
def test_other_names_are_refused(names: tuple[str, ...], got: str) -> None:
    with pytest.raises(InputError, match=f"expected .*train.* in there, got {got}$"):
        name_splits(names, "there")


def clips(number: int) -> list[DownloadedClip]:
    return [DownloadedClip(f"{k}.wav", None, ("x",)) for k in range(number)]


def test_a_share_is_held_out_for_each_split_that_is_missing() -> None:
    parts = complete({"train": clips(4_000)}, 5, "there")
    assert list(parts) == ["train", "val", "test"]
    assert sorted(clip.file_name for of_split in parts.values() for clip in of_split) == sorted(
        clip.file_name for clip in clips(4_000)
    )
    assert 160 < len(parts["val"]) < 240
    assert 160 < len(parts["test"]) < 240
    held_out = [[clip.file_name for clip in parts[split] if clip in set(clips(60))] for split in ("val", "test")]
    assert held_out == [["11.wav", "17.wav", "34.wav"], ["43.wav"]]  # by SHA-256
    # Clips that join change nothing about the others, and keep their order.
    fewer, few = complete({"train": clips(400)}, 5, "there"), set(clips(400))
    for split, of_split in fewer.items():
        assert of_split == [clip for clip in parts[split] if clip in few]
    with_test = complete({"train": clips(400), "test": clips(3)}, 5, "there")
    assert with_test["test"] == clips(3)
    assert with_test["val"] == fewer["val"]
    whole = {split: clips(2) for split in ("test", "val", "train")}
    assert complete(whole, None, "there") == whole


@pytest.mark.parametrize(
    "percent, words",
    [
        (None, r"train, val and test in there, got train alone; --hold-out 5 takes 5 % of .* val and as many for"),
        (0.0, "expected --hold-out between 0 and 50 percent, got 0"),
        (50.0, "expected --hold-out between 0 and 50 percent, got 50"),
        (float("nan"), "expected --hold-out between 0 and 50 percent, got nan"),
        (0.001, "expected a clip in every split of there, got none in val and test of 10 clips with --hold-out 0.001"),
    ],
)  # fmt: skip
def test_shares_that_do_not_fit_are_refused(percent: float | None, words: str) -> None:
    with pytest.raises(InputError, match=words):
        complete({"train": clips(10)}, percent, "there")
