"""The splits of a download: the names that they have there, and a share that is held out where some are missing."""

import hashlib
import os
from collections.abc import Iterable, Mapping

from reference_model import InputError
from reference_model.data.dataset import SPLITS
from reference_model.data.sources import DownloadedClip

_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_DEVELOPMENT = ("dev", "development")  # Clotho trains on it; others call so what they validate on, beside a train split

Clips = dict[str, list[DownloadedClip]]


def is_split(name: str) -> bool:
    """Return whether a split may have this name in a download."""
    return name.lower() in _NAMES or name.lower() in _DEVELOPMENT


def name_splits(names: Iterable[str], where: object) -> dict[str, str]:
    """Return the name that each split has in a download, by train, val and test; those that it lacks are not there.

    Raises:
        InputError: another name, two names for one split, or no split to train on.
    """
    given = list(names)
    development = "val" if any(_NAMES.get(name.lower()) == "train" for name in given) else "train"
    splits: dict[str, str] = {}
    for name in given:
        split = development if name.lower() in _DEVELOPMENT else _NAMES.get(name.lower())
        if split is None or split in splits:
            raise InputError(f"expected splits train, val and test in {where}, got {', '.join(given)}")
        splits[split] = name
    if "train" not in splits:
        raise InputError(f"expected a split train in {where}, got {', '.join(given) or 'none'}")
    return {split: splits[split] for split in SPLITS if split in splits}


def complete(download: Mapping[str, list[DownloadedClip]], percent: float | None, where: object) -> Clips:
    """Return train, val and test; for each that a download lacks, a share of its training clips is held out.

    A checksum of its name decides about a clip, so the same clips are held out wherever and whenever it is done, also
    when others join them.

    Args:
        download: the clips of the splits that there are, train among them.
        percent: the share for each split that is missing; None: a split that is missing is refused.
        where: names the download in messages.
    """
    lacking = [split for split in SPLITS if split not in download]
    there = f"{', '.join(split for split in SPLITS if split in download)} alone" if lacking else "all three"
    if not lacking and percent is not None:
        raise InputError(f"expected --hold-out for a download without val or test, got {there} in {where}")
    if not lacking:
        return {split: download[split] for split in SPLITS}
    if percent is None:
        remedy = f"--hold-out 5 takes 5 % of the clips of train for {' and as many for '.join(lacking)}"
        raise InputError(f"expected train, val and test in {where}, got {there}; {remedy}")
    if not 0 < percent * len(lacking) < 100:
        raise InputError(f"expected --hold-out between 0 and {100 / len(lacking):g} percent, got {percent:g}")
    parts: Clips = {split: [] if split in lacking else download[split] for split in SPLITS}
    parts["train"] = []
    for clip in download["train"]:
        part = int(_position(clip.file_name) * 100 / percent)
        parts[lacking[part] if part < len(lacking) else "train"].append(clip)
    if empty := [split for split in SPLITS if not parts[split]]:
        got = f"none in {' and '.join(empty)} of {len(download['train'])} clips with --hold-out {percent:g}"
        raise InputError(f"expected a clip in every split of {where}, got {got}; another share gives some")
    return parts


def _position(name: str) -> float:
    """Return a number in [0, 1) that follows from a name."""
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:6], "big") / 2**48
