"""JSON records, which people may edit and disks may damage: read, and compared with the form that they should have."""

import functools
import json
import reprlib
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from reference_model import InputError, reason_of
from reference_model.runtime.files import require_file


def read_json(path: Path, form: Any, kind: str) -> Any:
    """Read a JSON file whose content has a form, a type hint such as a TypedDict; ``kind`` names it in messages.

    Raises:
        InputError: the file cannot be read, or its content has another form.
    """
    require_file(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"expected {kind} in {path}, got {reason_of(error)}") from error
    content = parse_json(text, kind, path)
    check_form(content, form, kind, path)
    return content


def parse_json(text: str | bytes, kind: str, source: Path) -> Any:
    """Return the content of a JSON text; the source is named in messages."""
    try:
        content = json.loads(text)
        json.dumps(content, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        reason = "a nesting that is too deep" if isinstance(error, RecursionError) else reason_of(error)
        raise InputError(f"expected {kind} as JSON in {source}, got {reason}") from error
    return content


def check_form(content: Any, form: Any, kind: str, source: Path) -> None:
    """Refuse content of another form than a type hint says; keys that a TypedDict does not name may be there."""
    if fault := fault_of_form(content, form):
        raise InputError(f"expected {kind} in {source}, got {fault}")


def fault_of_form(content: Any, form: Any) -> str | None:
    """Return the first deviation of content from a type hint in words; None if there is none."""
    try:
        _adapter(form).validate_python(content, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        if first["type"] == "missing":
            return f"no entry {place}"
        of_place = f" as {place}" if place else ""
        return f"{reprlib.repr(first['input'])}{of_place}, which {first['msg'].replace('Input ', '')}"
    return None


@functools.cache
def _adapter(form: Any) -> TypeAdapter[Any]:
    return TypeAdapter(form)
