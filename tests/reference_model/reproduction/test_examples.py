"""The examples and the similarities of a test set equal loops; sounds are MP3."""

import base64
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reference_model.config import Config
from reference_model.reproduction import examples
from reference_model.reproduction.examples import EmbeddedTestSet, captions_as_queries, clips_as_queries


def test_clips_that_are_gone_are_silent(trained: Path, config: Config, tmp_path: Path) -> None:
    test = EmbeddedTestSet.read(trained)
    assert examples.sound(config, test.file_names[0]) is not None
    gone = replace(config, data=str(tmp_path))
    assert [example.sound for example in clips_as_queries(test, gone)] == [None] * 4
    assert all(c.sound is None for example in captions_as_queries(test, gone) for c in example.candidates)


def test_a_sound_is_a_whole_mp3(config: Config) -> None:
    kind, _, content = str(examples.sound(config, "00000.wav")).partition(",")
    assert kind == "data:audio/mpeg;base64"
    assert base64.b64decode(content)[:1] == b"\xff"


def random_test_set(clips: int, captions: int, seed: int) -> EmbeddedTestSet:
    """Return random embeddings of length 1, whose products are multiples of 1/4: exact, so that ties are ties.

    A row has one entry of +-1, or four of +-1/2.
    """
    generator = torch.Generator().manual_seed(seed)

    def rows(number: int) -> Tensor:
        signs = torch.randint(2, (number, 5), generator=generator) * 2.0 - 1
        place = torch.randint(5, (number, 1), generator=generator)
        one = torch.zeros(number, 5).scatter(1, place, signs)
        return torch.where(torch.rand(number, 1, generator=generator) < 0.5, one, signs.scatter(1, place, 0) / 2)

    return EmbeddedTestSet(
        audio=rows(clips),
        text=rows(clips * captions),
        clip_of_caption=torch.arange(clips).repeat_interleave(captions),
        file_names=[f"clip {k}" for k in range(clips)],
        captions=[f"caption {k}" for k in range(clips * captions)],
    )


TEST_SETS = st.builds(random_test_set, st.integers(2, 9), st.integers(1, 3), st.integers(0, 2**20))


@given(TEST_SETS)
def test_similarities_equal_loops(test: EmbeddedTestSet) -> None:
    positive, hardest = examples.similarities(test)
    S = (test.text @ test.audio.T).tolist()
    own = test.clip_of_caption.tolist()
    assert positive.tolist() == pytest.approx([S[m][own[m]] for m in range(len(S))], abs=1e-5)
    of_captions = [max(S[m][n] for n in range(len(S[m])) if n != own[m]) for m in range(len(S))]
    of_clips = [max(S[m][n] for m in range(len(S)) if n != own[m]) for n in range(len(test.audio))]
    assert hardest.tolist() == pytest.approx([*of_captions, *of_clips], abs=1e-5)


@given(TEST_SETS)
def test_examples_equal_loops(config: Config, test: EmbeddedTestSet) -> None:
    """A candidate that ties with the target ranks before it; equal candidates keep their order."""
    own = test.clip_of_caption.tolist()
    S = (test.text @ test.audio.T).tolist()
    for example in captions_as_queries(test, replace(config, data="nowhere")):
        m = test.captions.index(example.query)
        assert example.rank == sum(S[m][n] >= S[m][own[m]] for n in range(len(S[m])) if n != own[m]) + 1
        order = sorted(range(len(S[m])), key=lambda n, m=m: -S[m][n])[:3]  # type: ignore[misc]
        assert [c.file_name for c in example.candidates] == [test.file_names[n] for n in order]
        assert [c.right for c in example.candidates] == [n == own[m] for n in order]
        assert all(own[test.captions.index(c.text)] == n for c, n in zip(example.candidates, order, strict=True))
        assert example.pool == len(test.file_names)
    S = (test.audio @ test.text.T).tolist()
    for example in clips_as_queries(test, replace(config, data="nowhere")):
        n = test.file_names.index(example.query)
        best = max(S[n][m] for m in range(len(own)) if own[m] == n)
        assert example.rank == sum(S[n][m] >= best for m in range(len(own)) if own[m] != n) + 1
        order = sorted(range(len(own)), key=lambda m, n=n: -S[n][m])[:3]  # type: ignore[misc]
        assert [c.text for c in example.candidates] == [test.captions[m] for m in order]
        assert [c.right for c in example.candidates] == [own[m] == n for m in order]
        assert example.pool == len(test.captions)
