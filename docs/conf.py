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

extensions = ["myst_parser", "generated_pages", "mathml"]
myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["extensions"]
nitpicky = True
highlight_language = "none"  # of listings that do not say

html_theme = "furo"
html_math_renderer = "mathml"
html_copy_source = False
html_show_copyright = False
html_static_path = ["static"]
html_css_files = ["manual.css"]
