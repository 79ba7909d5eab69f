"""Sphinx settings: MyST pages, API pages from the installed packages, no network."""

from __future__ import annotations

import re
from importlib.metadata import version as installed_version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "omics"
author = "The omics developers"
copyright = "The omics developers"
version = release = installed_version("omics-data")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "sphinx_book_theme"
html_title = "omics"
html_theme_options = {
    "show_navbar_depth": 2,
    "use_download_button": False,
    "navbar_persistent": [],  # the search field is in the sidebar
}
html_copy_source = False


def code_as_literal(*event: Any) -> None:
    """Turn the single backticks of our docstrings into the double ones of reStructuredText."""
    lines: list[str] = event[-1]
    lines[:] = [re.sub(r"(?<![`:])`([^`]+)`(?!`)", r"``\1``", line) for line in lines]


def short_signature(*event: Any) -> tuple[str | None, str | None]:
    """Shorten the types in the signature of a dataclass as autodoc shortens those of a function."""
    signature, returns = event[-2:]
    return signature and re.sub(r"~(?:\w+\.)+", "", signature), returns


def setup(app: Sphinx) -> None:
    """Connect the two, the first before napoleon, which would take a colon in code for a type."""
    app.connect("autodoc-process-docstring", code_as_literal, priority=100)
    app.connect("autodoc-process-signature", short_signature)
