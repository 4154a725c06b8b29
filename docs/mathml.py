"""Formulas as MathML, which browsers draw themselves: no script, no network, the colours of the page."""

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert


def visit_inline(translator: Any, node: nodes.math) -> None:
    """Write a formula within a line."""
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def visit_display(translator: Any, node: nodes.math_block) -> None:
    r"""Write a formula of its own; ``\\`` ends a line of it. It scrolls where the page is too narrow."""
    lines = [convert(line, display="block") for line in node.astext().split(r"\\")]
    translator.body.append(f'<div class="formula">{"".join(lines)}</div>')
    raise nodes.SkipNode
