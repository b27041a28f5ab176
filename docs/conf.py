"""The documentation site, by Sphinx: Markdown pages, the API from docstrings, reference pages from the code itself."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent / "site"), str(Path(__file__).parents[1])]

from genie_cli.version import __version__

project = "genie"
author = "the authors of genie"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "reference_pages"]
exclude_patterns = ["site", "pictures"]

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"genie {__version__}"
# Nothing is loaded from elsewhere, when the site is built or when it is read: no fonts, no scripts of a network.
html_copy_source = False
html_show_sphinx = False
smartquotes = False
