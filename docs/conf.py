"""Sphinx configuration:  sphinx-build -W -b html docs docs/_build/html."""

import rheidae

project = "Rheidae"
author = copyright = "The Rheidae developers"
version = release = rheidae.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "numpydoc",
    "matplotlib.sphinxext.plot_directive",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "Rheidae"

myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 3

autodoc_typehints = "none"  # the docstrings give types, with shapes and units
autodoc_member_order = "bysource"
numpydoc_show_class_members = False

plot_formats = [("png", 110)]
plot_html_show_formats = False
plot_html_show_source_link = False
plot_working_directory = ".."

# Names that docstrings mention in backticks are plain text.
default_role = "code"
