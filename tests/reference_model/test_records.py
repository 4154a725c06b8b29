"""JSON records are compared with their form, and refused in words."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import FiniteFloat
from typing_extensions import NotRequired, TypedDict

from reference_model import InputError
from reference_model.config import Config
from reference_model.data.manifest import read_manifest
from reference_model.models import text
from reference_model.models.panns import read_panns
from reference_model.runtime.records import read_json
from reference_model.runtime.tensors import load_record, load_tensors


class Form(TypedDict):
    """A form with all that forms have."""

    number: FiniteFloat
    names: list[str]
    remark: NotRequired[str]


@pytest.mark.parametrize(
    "text, got",
    [
        ('{"number": 1, "names": []}', None),
        ('{"number": 1.5, "names": ["a"], "remark": "b", "more": {}}', None),
        ('{"names": []}', "got no entry number"),
        ('{"number": "1", "names": []}', "got '1' as number, which should be a valid number"),
        ('{"number": true, "names": []}', "got True as number, which should be"),
        ('{"number": 1e999, "names": []}', "got inf as number, which should be a finite number"),
        ('{"number": 1, "names": ["a", 2]}', "got 2 as names.1, which should be a valid string"),
        ("[]", r"got \[\], which should be a valid dictionary"),
        ('{"number": 1, "names": ["\\ud800"]}', "a number with names as JSON in .*surrogates not allowed"),
        ('{"number": ', "a number with names as JSON in .*got Expecting value: line 1"),
        ("[" * 100_000, "a number with names as JSON in .*got a nesting that is too deep"),
        ('{"number": ' + "1" * 5000 + ', "names": []}', "a number with names as JSON in .*limit"),
    ],
)  # fmt: skip
def test_the_first_deviation_is_named(tmp_path: Path, text: str, got: str | None) -> None:
    (path := tmp_path / "a.json").write_text(text)
    if got is None:
        assert read_json(path, Form, "a number with names")["names"] in ([], ["a"])
    else:
        with pytest.raises(
            InputError, match=f"expected .*a number with names .*a\\.json.*{got}" if "JSON" not in got else got
        ):
            read_json(path, Form, "a number with names")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"\xff")
    for name in ("nothing", "latin", "n" * 300, "\0"):
        with pytest.raises(InputError, match=r"expected a number with names in .*, got "):
            read_json(tmp_path / name, Form, "a number with names")


READERS: dict[str, Callable[[Path], Any]] = {
    "a.json": lambda path: read_json(path, Any, "a record"),
    "config.json": Config.read,
    "manifest.csv": read_manifest,
    "a.safetensors": load_tensors,
    "b.safetensors": load_record,
    "ResNet38.pth": read_panns,
    "bert/config.json": lambda path: text.published(str(path.parent)),
    "bert/model.safetensors": lambda path: text.saved(path.parent, pooling="first"),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path, name: str, kind: str) -> None:
    def too_long(*_: Any) -> None:
        raise TimeoutError

    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if name == "bert/model.safetensors":
        (path.parent / "config.json").write_text('{"model_type": "bert"}')
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(30)
    try:
        with pytest.raises(InputError, match=r"expected .*, got .*(a pipe or a device|a folder|directory|no file)"):
            READERS[name](path)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
