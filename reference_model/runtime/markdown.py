"""Names that people chose, such as those of data sets, in Markdown, which may hold HTML and links."""

import html
import re


def escape(text: object) -> str:
    r"""Return a text on one line that Markdown and HTML show as it is.

    >>> escape("<b> [a](b)|c")
    '&lt;b&gt; \\[a\\](b)\\|c'
    """
    return re.sub(r"([\\`*\[\]|])", r"\\\1", html.escape(" ".join(str(text).split()), quote=False))
