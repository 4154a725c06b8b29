"""Sound catalogues that the tests write, whole and damaged."""

import pytest
from archives import catalogue

from reference_model import InputError
from reference_model.evidence.sound_catalogue import read_catalogue

SOUNDS = [(b'"Heavy wind". By somebody. License: CC0.', b"RIFF first"), (b"A title", b"RIFF2"), (b'"X"', b"RIFF third")]


def test_every_sound_is_read_under_its_number_and_title() -> None:
    assert list(read_catalogue(catalogue(SOUNDS))) == [
        ("00-heavy-wind.wav", b"RIFF first"), ("01-a-title.wav", b"RIFF2"), ("02-x.wav", b"RIFF third")
    ]  # fmt: skip


def test_what_is_no_catalogue_is_refused() -> None:
    whole = catalogue(SOUNDS)
    for data in (b"", b"abc", whole[:30], whole[:-10], whole.replace(b"RIFF2", b"OggS2")):
        with pytest.raises(InputError, match=r"expected a (sound catalogue|WAV file of \d+ bytes)"):
            list(read_catalogue(data))
