"""Sphinx configuration:  sphinx-build -W -b html docs docs/_build/html."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import rheidae

project = "Rheidae"
author = copyright = "The Rheidae developers"
version = release = rheidae.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "numpydoc",
]
exclude_patterns = ["_build", "_gallery"]
html_theme = "furo"
html_title = "Rheidae"

myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 3

autodoc_typehints = "none"  # the docstrings give types, with shapes and units
autodoc_member_order = "bysource"
numpydoc_show_class_members = False

# Names that docstrings mention in backticks are plain text.
default_role = "code"

DOCS = Path(__file__).parent
GALLERY = DOCS / "_gallery"


def draw_gallery(app):
    """Run the commands that ``gallery.md`` shows, in a folder of their own; a second build finds what they drew."""
    if (GALLERY / "results").is_dir():
        return
    shutil.copytree(DOCS.parent / "config", GALLERY / "config", dirs_exist_ok=True)
    (script,) = re.findall(r"```bash\n(.*?)```", (DOCS / "gallery.md").read_text(encoding="utf-8"), re.DOTALL)
    for line in script.splitlines():
        command = line.replace("python", sys.executable, 1).split()
        subprocess.run(command, cwd=GALLERY, check=True, stdout=subprocess.DEVNULL)


def setup(app):
    """Draw before the pages are read."""
    app.connect("builder-inited", draw_gallery)
