"""Sphinx' configuration of the manual; ``make docs`` builds it into build/docs."""

from __future__ import annotations

import sys
from pathlib import Path

import anacor_dials

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "anacor_dials"
author = "the authors of anacor_dials"
version = release = anacor_dials.__version__
html_title = f"anacor_dials {version}"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "generated_pages",
    "mathml",
]
# types are in words in the docstrings, with shapes and units
autodoc_typehints = "none"
napoleon_google_docstring = False
napoleon_use_param = False
napoleon_use_rtype = False
myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["extensions"]
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]  # what docstrings name need not be on the page of the API
highlight_language = "none"  # of listings that do not say

html_theme = "furo"
html_math_renderer = "mathml"
html_copy_source = False
html_show_copyright = False
html_static_path = ["static"]
html_css_files = ["manual.css"]
