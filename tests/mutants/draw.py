"""Draw mutants: copies of a module in which cosmic-ray changed one operator, number, keyword or decorator.

The draw follows from a seed and from the text of the changed lines alone. A change elsewhere in the package leaves the
drawn mutants as they are.
"""

import ast
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

# Replacements that say little: bits of floats, which is an error anywhere; the identity of equal numbers.
SKIPPED = re.compile(
    r"BinaryOperator_(Add|Sub|Mul|Div|FloorDiv|Mod|Pow)_(RShift|LShift|Bit\w+)$"
    r"|ComparisonOperator_(Eq|NotEq|Lt|LtE|Gt|GtE)_Is(Not)?$"
)


@dataclass(frozen=True)
class Mutant:
    """One change of one module."""

    file: str  # relative to the checkout
    function: str  # the function or class with the change, with what it stands in; empty outside of them
    before: str  # the changed lines, without indentation
    after: str
    line: int
    source: str  # of the whole module, with the change

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Identity of the mutant, which does not move with line numbers."""
        return self.file, self.function, self.before, self.after


class Place(NamedTuple):
    """A place in a module that can be changed, and the changes: an operator, and how many of its places come before."""

    file: str
    line: int
    function: str
    rank: str
    changes: list[tuple[str, int]]


def draw(root: Path, files: Iterable[str], count: int, seed: int) -> list[Mutant]:
    """Draw mutants, each at a place of its own; every place is as likely as any other."""
    mutants: dict[tuple[str, str, str, str], Mutant] = {}
    for place in sorted((place for file in files for place in places(root, file, seed)), key=lambda place: place.rank):
        if len(mutants) == count:
            break
        mutant = first_mutant(root, place)
        if mutant is not None:
            mutants.setdefault(mutant.key, mutant)
    return sorted(mutants.values(), key=lambda mutant: (mutant.file, mutant.line))


def places(root: Path, file: str, seed: int) -> Iterator[Place]:
    """Yield the places of a module that can be changed, with a rank that is random, and the same for the same seed."""
    source = (root / file).read_text(encoding="utf-8")
    lines, skipped, functions = source.splitlines(), without_values(source), functions_of(source)
    found: dict[tuple[int, int], list[tuple[str, int]]] = defaultdict(list)
    nodes = list(ast_nodes(get_ast(source)))
    for name in operator_names():
        operator = get_operator(name)
        if operator.arguments() or SKIPPED.search(name):
            continue
        positions = (start for node in nodes for start, _ in operator().mutation_positions(node))
        for occurrence, start in enumerate(positions):
            found[start].append((name, occurrence))
    seen: Counter[str] = Counter()
    for (line, column), changes in sorted(found.items()):
        if any(first <= (line, column) < last for first, last in skipped):
            continue
        text, function = lines[line - 1].strip(), functions[line]
        indent = len(lines[line - 1]) - len(lines[line - 1].lstrip())
        identity = f"{seed} {file} {function} {text} {column - indent}"
        seen[identity] += 1
        ranks = {change: digest(f"{identity} {seen[identity]} {change[0]}") for change in changes}
        yield Place(
            file, line, function, digest(f"{identity} {seen[identity]}"), sorted(changes, key=ranks.__getitem__)
        )


def digest(text: str) -> str:
    """A random number that follows from the text."""
    return hashlib.sha256(text.encode()).hexdigest()


def first_mutant(root: Path, place: Place) -> Mutant | None:
    """Return the first change of a place that Python can compile and that changes the program."""
    source = (root / place.file).read_text(encoding="utf-8")
    for name, occurrence in place.changes:
        mutated = mutate_code(source, get_operator(name)(), occurrence)
        try:
            changed = mutated is not None and ast.dump(ast.parse(mutated)) != ast.dump(ast.parse(source))
        except SyntaxError:
            continue
        if changed:
            before, after = changed_lines(source, mutated)
            return Mutant(place.file, place.function, before, after, place.line, mutated)
    return None


def changed_lines(old: str, new: str) -> tuple[str, str]:
    """The lines of both texts that differ, each text on one line."""
    a, b = old.splitlines(), new.splitlines()
    while a and b and a[-1] == b[-1]:
        a.pop(), b.pop()
    first = next((i for i, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1]), min(len(a), len(b)))
    return " ".join(map(str.strip, a[first:])).strip(), " ".join(map(str.strip, b[first:])).strip()


def without_values(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The begins and ends, (line, column), of annotations, of names for types, and of zip's checks: no values."""
    tree = ast.parse(source)
    found: list[ast.expr | None] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign | ast.arg):
            found.append(node.annotation)
        elif isinstance(node, ast.FunctionDef):
            found.append(node.returns)
        elif isinstance(node, ast.keyword) and node.arg == "strict":
            found.append(node.value)
    found += [node.value for node in tree.body if isinstance(node, ast.Assign) and is_type(node.value)]
    return [
        ((node.lineno, node.col_offset), (node.end_lineno or node.lineno, node.end_col_offset or 0))
        for node in found
        if node is not None
    ]


def is_type(node: ast.expr) -> bool:
    """Return whether an expression is a union of types or a generic type."""
    return isinstance(node, ast.Subscript) or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr))


def functions_of(source: str) -> dict[int, str]:
    """The function or class of every line, with what it stands in, as Python qualifies names."""
    found: dict[int, str] = defaultdict(str)

    def visit(node: ast.AST, outer: str) -> None:
        for child in ast.iter_child_nodes(node):
            name = outer
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                name = f"{outer}.{child.name}".lstrip(".")
                first = min([child.lineno, *(decorator.lineno for decorator in child.decorator_list)])
                found.update(dict.fromkeys(range(first, (child.end_lineno or first) + 1), name))
            visit(child, name)

    visit(ast.parse(source), "")
    return found
