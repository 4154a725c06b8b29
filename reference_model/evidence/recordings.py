"""The folder of labelled recordings that :mod:`reference_model.data.recordings` reads, made of Debian packages.

``labels.csv`` says what each label is called, and which files of which packages are its recordings: patterns such as
``minetest-data:tnt_explode.ogg``, where ``;`` separates several. A pattern is matched from the end of a path, so it
begins with the name of a file or a folder.
"""

import dataclasses
import hashlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

from reference_model import InputError
from reference_model.data.dataset import SPLITS, csv_rows, write_csv
from reference_model.data.recordings import HEADER
from reference_model.evidence.packages import Package, fetch, read_packages, unpack
from reference_model.runtime.files import atomic_folder, require_same_settings, write_json
from reference_model.runtime.records import read_json
from reference_model.runtime.signals import raise_if_stop_requested

LABELS = Path(__file__).with_name("labels.csv")
MADE_FROM = "made_from.json"  # packages and table of labels of a folder
SOUNDS, PHRASES, SOURCES, LICENCES = "recordings", "phrases.csv", "sources.csv", "licences"  # in that folder


@dataclass(frozen=True)
class LabelSources:
    """A label, what captions call it, and the files that are its recordings."""

    label: str
    category: str
    phrases: str
    sources: tuple[tuple[str, str], ...]  # name of a package, and a pattern of files


def read_label_sources(table: Path = LABELS) -> list[LabelSources]:
    """Return the labels of the table, in its order.

    Raises:
        InputError: the table has another form.
    """
    rows = csv_rows(table)
    if (header := next(rows, (1, []))[1]) != [*HEADER, "sources"]:
        raise InputError(f"expected the header {','.join([*HEADER, 'sources'])} in {table}, got {','.join(header)}")
    labels = []
    for line, (label, category, phrases, sources) in rows:
        pairs = [tuple(map(str.strip, source.split(":", 1))) for source in sources.split(";")]
        if any(len(pair) != 2 or not all(pair) for pair in pairs):
            raise InputError(f"expected PACKAGE:PATTERN in the sources in line {line} of {table}, got {sources}")
        labels.append(LabelSources(label, category, phrases, tuple((pair[0], pair[1]) for pair in pairs)))
    return labels


def make_recordings(out: Path, debs: Path, *, packages: Path | None = None, labels: Path = LABELS) -> Path:
    """Make the folder of labelled recordings, unless it is there; return it.

    ``out`` receives ``recordings/LABEL/...``, ``phrases.csv`` for them, ``sources.csv`` with the origin of each, and
    the statements of copyright of all packages in ``licences/``.

    Args:
        debs: the folder of the packages' files, to which those that are missing are downloaded.
        packages, labels: other tables than those of this package.

    Raises:
        InputError: a package cannot be had, a pattern matches no file, a label has too few recordings or shares one
            with another label, or ``out`` holds something else.
    """
    needed, sources = read_packages(*([packages] if packages else [])), read_label_sources(labels)
    made_from: dict[str, Any] = {"labels": hashlib.sha256(labels.read_bytes()).hexdigest()}
    made_from |= {package.name: dataclasses.asdict(package) for package in needed}
    if out.exists():
        if not (out / MADE_FROM).is_file():
            raise InputError(f"expected {out} to be new or a folder of recordings, got one without {MADE_FROM}")
        stored = read_json(out / MADE_FROM, dict[str, Any], "the origin of recordings")
        require_same_settings(out, stored, made_from, expected="made from these packages", got="others: {}")
        return out
    unknown = {name for label in sources for name, _ in label.sources} - {package.name for package in needed}
    if unknown:
        raise InputError(f"expected sources in packages of the table, got {', '.join(sorted(unknown))} in {labels}")
    files = {package: fetch(package, debs) for package in tqdm(needed, "getting packages", unit="package")}

    def write(folder: Path) -> None:
        rows: list[tuple[str, ...]] = []
        for package, file in tqdm(files.items(), "unpacking", unit="package"):
            raise_if_stop_requested()
            with TemporaryDirectory(dir=debs, prefix=".") as part:
                rows += _take(package, file, Path(part), sources, folder)
        _check(rows, sources)
        write_csv(folder / SOURCES, [["label", "recording", "package", "path", "sha256"], *sorted(rows)])
        write_csv(folder / PHRASES, [HEADER, *([one.label, one.category, one.phrases] for one in sources)])
        write_json(folder / MADE_FROM, made_from)

    atomic_folder(out, write)
    return out


def _take(
    package: Package, file: Path, unpacked: Path, labels: Sequence[LabelSources], out: Path
) -> Iterator[tuple[str, ...]]:
    """Copy the recordings of one package to their labels, and yield the rows of the table of sources."""
    paths = unpack(package, file, unpacked)
    for label in labels:
        for pattern in (pattern for name, pattern in label.sources if name == package.name):
            matching = [path for path in paths if path.match(pattern)]
            if not matching:
                raise InputError(f"expected recordings of {label.label} at {pattern} in {package.name}, got none")
            folder = out / SOUNDS / label.label
            folder.mkdir(parents=True, exist_ok=True)
            for path in matching:
                name = f"{package.name} {len(list(folder.iterdir())):02d} {path.name}"
                shutil.copyfile(unpacked / path, folder / name)
                checksum = hashlib.sha256((folder / name).read_bytes()).hexdigest()
                yield label.label, name, package.name, str(path), checksum
    (out / LICENCES).mkdir(exist_ok=True)
    statement = unpacked / "usr/share/doc" / package.name / "copyright"
    shutil.copyfile(statement, out / LICENCES / f"{package.name}.txt")


def _check(rows: Sequence[tuple[str, ...]], labels: Sequence[LabelSources]) -> None:
    """Refuse a recording that is there twice, and labels that cannot be divided among the splits."""
    seen: dict[str, tuple[str, ...]] = {}
    for row in rows:
        if (other := seen.setdefault(row[-1], row)) is not row:
            twice = f"{other[3]} of {other[2]} as {other[0]}, and {row[3]} of {row[2]} as {row[0]}"
            raise InputError(f"expected every recording once, got {twice}")
    numbers = {one.label: sum(row[0] == one.label for row in rows) for one in labels}
    if few := [f"{number} of {label}" for label, number in numbers.items() if number < len(SPLITS)]:
        raise InputError(f"expected at least {len(SPLITS)} recordings of each label, got {', '.join(few)}")
