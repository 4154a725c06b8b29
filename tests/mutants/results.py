"""The page of results, and the explanations of survivors."""

import json
import os
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from mutants.draw import Mutant

HERE = Path(__file__).parent
KILLED, TIMEOUT, SURVIVED = "killed", "timeout", "survived"
ENOUGH = 95.0  # per cent


@dataclass(frozen=True)
class Explanation:
    """Why no test kills a mutant."""

    same: bool  # the mutant does what the package does
    reason: str


Explanations = dict[tuple[str, str, str, str], Explanation]  # by the keys of mutants


def explanations(path: Path = HERE / "explanations.json") -> Explanations:
    """Read the explanations of survivors, by the mutants' keys."""
    entries = json.loads(path.read_text(encoding="utf-8"))
    return {
        (entry["file"], entry["function"], entry["before"], entry["after"]): Explanation(entry["same"], entry["reason"])
        for entry in entries
    }


def summary(outcomes: Sequence[tuple[Mutant, str]], explained: Explanations) -> str:
    """The counts, in one line."""
    count = Counter(outcome for _, outcome in outcomes)
    same = sum(outcome == SURVIVED and is_same(mutant, explained) for mutant, outcome in outcomes)
    return (
        f"{len(outcomes)} mutants: {count[KILLED]} killed, {count[TIMEOUT]} ran too long, {count[SURVIVED]} survived, "
        f"{same} of these the same as the package; killed of those that change something: "
        f"{percent_killed(outcomes, explained):.1f} %"
    )


def is_same(mutant: Mutant, explained: Explanations) -> bool:
    """Return whether a survivor is explained as doing what the package does."""
    return mutant.key in explained and explained[mutant.key].same


def percent_killed(outcomes: Sequence[tuple[Mutant, str]], explained: Explanations) -> float:
    """Per cent of the mutants that change something which a test killed; one that runs too long is killed."""
    survived = sum(outcome == SURVIVED and not is_same(mutant, explained) for mutant, outcome in outcomes)
    killed = sum(outcome != SURVIVED for _, outcome in outcomes)
    return 100 * killed / max(1, killed + survived)


def unexplained(outcomes: Sequence[tuple[Mutant, str]], explained: Explanations) -> list[Mutant]:
    """The survivors without an explanation."""
    return [mutant for mutant, outcome in outcomes if outcome == SURVIVED and mutant.key not in explained]


def page(
    outcomes: Sequence[tuple[Mutant, str]], explained: Explanations, commit: str, seed: int, left_out: Sequence[str]
) -> str:
    """The page of results, in Markdown."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "pytest", "hypothesis", "cosmic-ray"))
    rows = []
    for file in sorted({mutant.file for mutant, _ in outcomes}):
        count = Counter(outcome for mutant, outcome in outcomes if mutant.file == file)
        rows.append(f"| `{file}` | {sum(count.values())} | {count[KILLED]} | {count[TIMEOUT]} | {count[SURVIVED]} |")
    survivors = []
    for mutant, outcome in outcomes:
        if outcome == SURVIVED:
            explanation = explained.get(mutant.key)
            reason = "not explained" if explanation is None else explanation.reason
            survivors.append(
                f"* `{mutant.file}`, `{mutant.function or 'module'}`{', the same' * is_same(mutant, explained)}:\n"
                f"  `{mutant.before}` became `{mutant.after}`.\n  {reason}"
            )
    return "\n".join(
        [
            "# Mutants of crossmodal_losses",
            "",
            "Made by `make mutants`: one operator, number, keyword or decorator of the package is changed, and the",
            "tests that execute the line are run. A mutant is killed if a test fails. Annotations and docstrings are",
            f"not changed, nor {' and '.join(f'`{file}`' for file in left_out)}, whose tests need a GPU.",
            "A mutant is not run again while its module is the same, unless it survived without an explanation.",
            "",
            f"{summary(outcomes, explained)}.",
            "",
            f"Commit {commit}; seed {seed}; Python {platform.python_version()}, {versions}; {platform.machine()}, "
            f"{os.cpu_count()} cores.",
            "",
            "| module | mutants | killed | ran too long | survived |",
            "|---|---|---|---|---|",
            *rows,
            "",
            "## Survivors",
            "",
            *(survivors or ["None."]),
            "",
        ]
    )
