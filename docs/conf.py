"""Settings of Sphinx: ``python -m sphinx -W -n docs build/docs``."""

import sys
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the packages are documented from the checkout

from crossmodal_losses import __version__  # noqa: E402
from docs.mathml import visit_display, visit_inline  # noqa: E402
from docs.pages import complete  # noqa: E402

project = "crossmodal_losses"
author = copyright = "The crossmodal_losses authors"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["**/__pycache__"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4  # headings can be linked as on a forge

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say more: shapes and ranges
autosummary_generate = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True
# Types and errors of Python and torch: their pages are elsewhere, and the site is built without a network.
nitpick_ignore_regex = [("py:(class|exc|obj)", r"(torch\.|TypeError|ValueError|optional|abc\.).*")]

doctest_global_setup = "import torch\nfrom crossmodal_losses import *\ntorch.manual_seed(0)"

html_theme = "furo"
html_title = f"crossmodal_losses {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def setup(app: Sphinx) -> None:
    """Register the formulas, and the parts of pages that are made when the site is built."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_display, None))
    app.connect("source-read", complete)
