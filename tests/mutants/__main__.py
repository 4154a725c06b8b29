"""Test the tests: change the package in many ways, one at a time, and see whether a test fails each time.

Run by ``make mutants``. Stopped and started again, it continues. Nothing is changed in the checkout itself, except the
page of results.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from mutants import results
from mutants.draw import Mutant, draw
from mutants.seeing import Measured, file_of
from mutants.worker import import_once, run_tests

ROOT = Path(__file__).resolve().parents[2]
PACKAGE, TESTS, TESTS_OF_PACKAGE = "crossmodal_losses", "tests", "tests/crossmodal_losses"
# Their tests need a GPU, or Triton's interpreter.
LEFT_OUT = ("crossmodal_losses/engine/epilogue_fused.py", "crossmodal_losses/engine/epilogue_triton.py")

# The longest time for the tests of a mutant: so many times what they took without it, and seconds to start.
SLOWER, STARTING = 4, 60


def files_of(root: Path, *folders: str) -> list[str]:
    """The files in folders of a checkout that git does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *folders]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.splitlines()
    return [file for file in listed if (root / file).is_file()]


def hash_of(root: Path, files: Iterable[str]) -> str:
    """A hash of the contents of files."""
    found = hashlib.sha256()
    for file in files:
        found.update(file.encode() + b"\0" + (root / file).read_bytes())
    return found.hexdigest()[:12]


def copy_checkout(root: Path, folder: Path) -> None:
    """Copy a checkout into a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    for file in files_of(root, "."):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / file, folder / file)


def outcome_of(folder: Path, mutant: Mutant, tests: Sequence[str], timeout: float) -> tuple[str, str]:
    """Run tests of a mutant in a copy of the checkout. Return the outcome, and the test that failed."""
    path = folder / mutant.file
    source = path.read_text(encoding="utf-8")
    path.write_text(mutant.source, encoding="utf-8")
    try:
        outcome = run_tests(folder, ["-x", *dict.fromkeys(map(file_of, tests))], tests, timeout)
    finally:
        path.write_text(source, encoding="utf-8")
    if outcome.code is None:
        return results.TIMEOUT, ""
    if outcome.code == 0:
        return results.SURVIVED, f"{len(outcome.seconds)} tests passed"
    if outcome.code < 0:  # by a signal, as after an error in C++
        return results.KILLED, f"exit status {outcome.code}"
    if not outcome.failed:
        log = (folder / "log.txt").read_text(encoding="utf-8")
        raise RuntimeError(f"expected tests to run with {mutant.key}, got exit status {outcome.code}: {log[-2000:]}")
    return results.KILLED, " ".join(outcome.failed)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="mutants", description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="how many mutants to draw")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--session", type=Path, default=ROOT / ".mutants", help="folder of the copy, and what is done")
    return parser.parse_args()


def measured_tests(session: Path, copy: Path) -> Measured:
    """Find which tests execute each line. While the package is the same, only files of tests that changed are run."""
    helpers = [file for file in files_of(ROOT, TESTS) if file.endswith(".py") and file.count("/") == 1]
    files = [file for file in files_of(ROOT, TESTS_OF_PACKAGE) if Path(file).name.startswith("test_")]
    path = session / f"measured-{hash_of(copy, files_of(ROOT, PACKAGE))}.json"
    measured = Measured.load(path)
    print("Running the tests without a mutant", flush=True)
    measured.update(copy, {file: hash_of(copy, [file, *helpers]) for file in files})
    measured.save(path)
    return measured


def run_mutants(
    mutants: Sequence[Mutant], copy: Path, measured: Measured, explained: results.Explanations, done_at: Path
) -> list[tuple[Mutant, str]]:
    """Run the mutants that were not run yet, and return the outcomes of all.

    A killed mutant stays killed while its module is the same, and a survivor that is explained as the same as the
    package is not run again; other survivors are tried again when their tests change, too.
    """
    lines = done_at.read_text(encoding="utf-8").splitlines() if done_at.exists() else []
    done = {tuple(entry["key"]): entry for entry in map(json.loads, lines)}
    for number, mutant in enumerate(mutants, 1):
        tests = measured.tests_that_see(mutant, (copy / mutant.file).read_text(encoding="utf-8"))
        state = {"module": hash_of(copy, [mutant.file]), "tests": measured.hash_of(tests)}
        known = done.get(mutant.key, {})
        same = [known.get(name) == value for name, value in state.items()]
        if all(same) or (same[0] and (known["outcome"] != results.SURVIVED or results.is_same(mutant, explained))):
            continue
        started, expected = time.monotonic(), sum(measured.seconds.get(test, 0) for test in tests)
        outcome, by = outcome_of(copy, mutant, tests, SLOWER * expected + STARTING)
        done[mutant.key] = {"key": mutant.key, "outcome": outcome, "by": by, **state}
        with done_at.open("a", encoding="utf-8") as log:
            log.write(json.dumps(done[mutant.key]) + "\n")
        seconds = time.monotonic() - started
        print(f"{number}/{len(mutants)} {mutant.file}:{mutant.line} {outcome}, {seconds:.0f} s: {by}", flush=True)
        if outcome == results.SURVIVED:
            print(f"    {mutant.before}\n    {mutant.after}", flush=True)
    return [(mutant, done[mutant.key]["outcome"]) for mutant in mutants]


def main() -> int:
    """Run the mutants that were not run yet, and write the page of results."""
    options = arguments()
    session, copy = options.session, options.session / "checkout"
    copy_checkout(ROOT, copy)
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(describe, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    os.environ |= {"HYPOTHESIS_PROFILE": "mutants", "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    import_once()

    measured = measured_tests(session, copy)
    files = [file for file in files_of(ROOT, PACKAGE) if file.endswith(".py") and file not in LEFT_OUT]
    mutants = draw(ROOT, files, options.count, options.seed)
    outcomes = run_mutants(mutants, copy, measured, results.explanations(), session / "done.jsonl")

    explained = results.explanations()
    page = results.page(outcomes, explained, commit, options.seed, LEFT_OUT)
    (results.HERE / "results.md").write_text(page, encoding="utf-8")
    print(results.summary(outcomes, explained))
    left = results.unexplained(outcomes, explained)
    for mutant in left:
        print(f"not explained: {mutant.file}:{mutant.line}: {mutant.before}  ->  {mutant.after}")
    return int(bool(left) or results.percent_killed(outcomes, explained) < results.ENOUGH)


if __name__ == "__main__":
    sys.exit(main())
