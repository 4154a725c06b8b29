"""Files as people edit them and as disks damage them; the same ones for the same seed."""

import json
from random import Random
from typing import Any

NESTING = "[" * 100_000 + "]" * 100_000
_NESTED = "a nesting of 100,000 lists goes here"
HOSTILE: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 0.5, 2**31, 2**70, 10**400, -1e300, float("inf"), float("nan"), "", "x", "a\nb", "\0",
    "../../../etc/passwd", "/etc/passwd", "\ud800", "x" * 5000, [], {}, [[]], [None], {"a": 1}, ["x"], _NESTED,
)  # fmt: skip


def mutated_json(content: bytes, random: Random) -> bytes:
    """Change one place of a JSON text, or some of its bytes."""
    if random.random() < 0.25:
        return mutated_bytes(content, random)
    root = [json.loads(content)]
    holder, key = random.choice(list(_places(root)))
    action = random.choice(("replace", "replace", "replace", "remove", "add", "wrap"))
    if action == "replace":
        holder[key] = random.choice(HOSTILE)
    elif action == "remove" and holder is not root:
        del holder[key]
    elif action == "add" and isinstance(holder[key], dict):
        holder[key][random.choice(("more", "", "__class__"))] = random.choice(HOSTILE)
    else:
        holder[key] = [holder[key]]
    return json.dumps(root[0]).replace(json.dumps(_NESTED), NESTING).encode()


def _places(holder: Any) -> Any:
    """Yield every place in nested lists and dictionaries, as what holds it and its key."""
    for key in range(len(holder)) if isinstance(holder, list) else list(holder):
        yield holder, key
        if isinstance(holder[key], list | dict):
            yield from _places(holder[key])


def mutated_bytes(content: bytes, random: Random) -> bytes:
    """Cut, lengthen, or overwrite a part of a file, or flip single bits."""
    start = random.randrange(len(content) + 1)
    if random.random() < 0.5:
        start = min(start, random.randrange(200))  # the header
    length = random.choice((1, 2, 8, 100))
    action = random.choice(("cut", "remove", "zero", "noise", "insert", "flip", "flip"))
    if action == "cut":
        return content[:start]
    if action == "remove":
        return content[:start] + content[start + length :]
    if action == "zero":
        return content[:start] + bytes(length) + content[start + length :]
    if action == "noise":
        return content[:start] + random.randbytes(length) + content[start + length :]
    if action == "insert":
        return content[:start] + random.randbytes(length) + content[start:]
    flipped = bytearray(content)
    for _ in range(length):
        flipped[min(start + random.randrange(50), len(content) - 1)] ^= 1 << random.randrange(8)
    return bytes(flipped)


def mutated_safetensors(content: bytes, random: Random) -> bytes:
    """Change one place in the header of a safetensors file, or in the record within it, or some of its bytes."""
    size = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + size]
    if random.random() < 0.4:
        return mutated_bytes(content, random)
    parsed = json.loads(header)
    record = parsed.get("__metadata__", {}).get("record")
    if record is not None and random.random() < 0.7:
        changed = mutated_json(record.encode(), random).decode(errors="replace")
        header_bytes = json.dumps({**parsed, "__metadata__": {"record": changed}}).encode()
    else:
        header_bytes = mutated_json(header, random)
    return len(header_bytes).to_bytes(8, "little") + header_bytes + content[8 + size :]
