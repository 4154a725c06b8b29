"""The promises of docs/architecture.md and CONTRIBUTING.md about the shape of the code."""

import ast
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
CODE = ("crossmodal_losses", "reference_model", "benchmarks", "docs")
LONGEST = {ast.ClassDef: 200, ast.FunctionDef: 60, ast.AsyncFunctionDef: 60}
LONGEST_FILE, REASON = 350, "# Long because "
# Modules of more lines than this have a test file, except these.
TRIVIAL = 40
WITHOUT_TESTS_OF_THEIR_OWN = {
    "crossmodal_losses.similarity": "equation 1 is tested beside equations 2 to 7, in losses/test_equations.py",
    **{
        f"crossmodal_losses.losses.triplet_{name}": "equations 2 to 6 are tested together, in losses/test_equations.py"
        for name in ("sum", "max", "weighted", "weighted_mined")
    },
    "crossmodal_losses.losses.hardest": "the three losses of the hardest negative use all of it, in test_equations.py",
    "crossmodal_losses": "what the package exports is tested in test_package.py",
    "crossmodal_losses.engine.dispatch": "every loss asks it, at all sizes, in test_tiles.py and test_tiled_cost.py",
    "crossmodal_losses.engine.formulas_triton": "they are tested with what calls them, in test_small_batch.py",
    "crossmodal_losses.engine.small_batch_triton": "they are tested with what launches them, in test_small_batch.py",
    "crossmodal_losses.engine.reference": "it is compared with the loops in losses/test_equations.py",
    "crossmodal_losses.engine.rows_fused": "it is tested with the kernels, in test_rows_triton.py",
    "crossmodal_losses.engine.epilogue_fused": "it is tested with the kernels, in test_epilogue_triton.py",
    "crossmodal_losses.engine.epilogue": "the plain epilogue is part of every loss in tiles, tested in test_tiles.py",
    "crossmodal_losses.engine.communication": "the losses on several processes use all of it, in test_distributed.py",
    "reference_model.data.corpus": "corpora are written, and interrupted, in test_synthetic.py and test_scenes.py",
    "reference_model.data.sources": "sounds are tested with what holds them, test_hugging_face.py and test_wavcaps.py",
    "reference_model.data.manifest": "the manifest is tested with what it tells of, in test_prepare.py",
    "reference_model.models.encoders": "runs with every kind of encoder are trained in test_other_encoders.py",
    "reference_model.models.bert": "the small BERT is tested with those of other sizes, in test_text.py",
    "reference_model.models.convolutional": "two networks share it: test_resnet38.py, test_cnn14.py",
    "reference_model.models.hugging_face": "encoders of text and of audio share it: test_text.py",
    "reference_model.training.setup": "data and seeds of a run are tested with the run, in test_trainer.py",
    "reference_model.training.curves": "the curves are drawn and tested with what is monitored, in test_monitor.py",
    "reference_model.search.model_card": "the card of a saved model is tested with it, in test_retriever.py",
    "reference_model.reproduction.launchers": "both launchers are tested, in test_local_jobs.py and test_slurm_jobs.py",
    "reference_model.reproduction.cost": "the runs of a grid are planned with their cost, in test_grid.py",
    "docs.conf": "the site is built with these settings in test_site.py",
    "reference_model.reproduction.table_formats": "the numbers and their formats are tested in test_tables.py",
}


def name_of(path: Path) -> str:
    """Return the module's dotted name."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for top in CODE for path in sorted((ROOT / top).rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
TESTS = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "tests").rglob("*.py"))}


def imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of everything that is imported, inside functions and for type checking too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: expected an absolute import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def imported_modules(name: str) -> dict[str, int]:
    """Return the modules of ours that a module imports, with the line."""
    found = {target if target in MODULES else target.rpartition(".")[0]: line for line, target in imports(TREES[name])}
    return {module: line for module, line in found.items() if module in MODULES and module != name}


# The page's table: a package or module, and the packages and modules that it may import.
ROWS = re.findall(r"^\| `([\w.]+)` \|(.*)\|$", PAGE, re.MULTILINE)
ALLOWED = {row: set(re.findall(r"`([\w.]+)`", allowed)) for row, allowed in ROWS}


def row_of(module: str) -> str:
    """Return the row of the table that a module belongs to: its own, or that of the nearest package around it."""
    while module not in ALLOWED:
        module, _, _ = module.rpartition(".")
        assert module, "expected a row for every package"
    return module


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md", "README.md", "CHANGELOG.md"])
def test_files_that_pages_name_are_there(page: str) -> None:
    named = set(re.findall(r"(?<![\w/])(?:\w+/)*\w+\.py\b", (ROOT / page).read_text(encoding="utf-8")))
    assert not [file for file in named if not any((ROOT / top / file).is_file() for top in (".", *CODE))]


def test_the_table_names_what_there_is() -> None:
    assert len(ALLOWED) > 15
    assert set(ALLOWED) <= set(MODULES)
    for row, allowed in ALLOWED.items():
        assert allowed <= set(ALLOWED), row
        assert row not in allowed
    assert set(ALLOWED) >= {name for name, path in MODULES.items() if path.name == "__init__.py"}


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_what_the_table_allows_and_no_less(package: str) -> None:
    imported = {
        row_of(target): f"{MODULES[name].relative_to(ROOT)}:{line} imports {target}"
        for name in MODULES
        if row_of(name) == package
        for target, line in imported_modules(name).items()
        if row_of(target) != package
    }
    assert not [imported[row] for row in imported.keys() - ALLOWED[package]]
    assert ALLOWED[package] <= imported.keys()


@pytest.mark.parametrize(
    "graph", [ALLOWED, {name: set(imported_modules(name)) for name in MODULES}], ids=["table", "code"]
)
def test_there_is_no_circle(graph: dict[str, set[str]]) -> None:
    TopologicalSorter(graph).prepare()  # an error names the circle


def test_crossmodal_losses_imports_nothing_but_torch() -> None:
    allowed = {"crossmodal_losses", "torch", "triton", *sys.stdlib_module_names}  # triton comes with torch
    for name, tree in TREES.items():
        if name.startswith("crossmodal_losses"):
            assert {target.split(".")[0] for _, target in imports(tree)} <= allowed, name


def test_torchaudio_is_imported_in_two_places_at_most() -> None:
    users = {name for name, tree in TREES.items() for _, target in imports(tree) if target.startswith("torchaudio")}
    assert len(users) <= 2, users


def private_torch(tree: ast.Module) -> Iterator[str]:
    """Yield uses of private names of torch: torch._x, torch.a._b, and what is imported under such names."""
    yield from (f"{line}: {name}" for line, name in imports(tree) if re.match(r"torch\.(.*\.)?_", name))
    names = {"torch"}  # under which torch and its modules are known in this file
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                if (getattr(node, "module", None) or alias.name).split(".")[0] == "torch":
                    names.add((alias.asname or alias.name).split(".")[0])
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr):
            whole = ast.unparse(node)
            if whole.split(".")[0] in names:
                yield f"{node.lineno}: {whole}"


def test_private_torch_is_used_in_one_module() -> None:
    """Benchmarks count operations with a dispatch mode, which torch has under a private name only."""
    allowed = ("benchmarks", "crossmodal_losses.engine.compat")
    for name, tree in TREES.items():
        assert name.startswith(allowed) or not list(private_torch(tree)), name


def tracked() -> list[Path]:
    """Return the files that git tracks; those of the packages and pages where this is no checkout of git."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        folders = [ROOT / name for name in (*CODE, "docs", "tests")]
        return [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_large_file_and_no_wheel_is_committed() -> None:
    assert not [path for path in tracked() if path.stat().st_size > 500_000 and "results" not in path.parts]
    assert not [path for path in tracked() if path.suffix == ".whl"]


def has_reason(lines: list[str], node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a comment directly above a definition, and above its decorators, says why it is long."""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) - 1
    above = itertools.takewhile(lambda line: line.startswith("#"), map(str.lstrip, reversed(lines[:first])))
    return any(line.startswith(REASON) for line in above)


def test_definitions_and_files_are_short() -> None:
    offences = []
    for path, tree in [*zip(MODULES.values(), TREES.values(), strict=True), *TESTS.items()]:
        lines = path.read_text(encoding="utf-8").splitlines()
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > LONGEST[type(node)] and not has_reason(lines, node):
                    offences.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {length} lines")
        if path not in TESTS and len(lines) > LONGEST_FILE and not any(x.startswith(REASON) for x in lines[:30]):
            offences.append(f"{path.relative_to(ROOT)}: {len(lines)} lines")
    assert not offences


def test_every_module_has_a_test_file_of_its_name() -> None:
    """Or its package has one: small packages do. Benchmarks are scripts, which tests/benchmarks runs together."""
    missing = []
    for name, path in MODULES.items():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > TRIVIAL and not name.startswith("benchmarks"):
            expected = ROOT / "tests" / path.relative_to(ROOT).with_name(f"test_{path.name}")
            of_package = expected.parent.with_name(f"test_{expected.parent.name}.py")
            if (expected.is_file() or of_package.is_file()) == (name in WITHOUT_TESTS_OF_THEIR_OWN):
                missing.append(f"{expected.relative_to(ROOT)}: {lines} lines to test")
    assert not missing
    assert set(WITHOUT_TESTS_OF_THEIR_OWN) <= set(MODULES)
