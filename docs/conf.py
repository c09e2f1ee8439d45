"""Sphinx configuration:  sphinx-build -W -b html docs docs/_build/html."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert

import rheidae

project = "Rheidae"
author = copyright = "The Rheidae developers"
version = release = rheidae.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "numpydoc",
]
exclude_patterns = ["_build", "_gallery"]
html_theme = "furo"
html_title = "Rheidae"
html_static_path = ["_static"]
html_css_files = ["wrap.css"]
html_math_renderer = "mathml"  # browsers draw it by themselves: the pages need no network

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


def _mathml(equation, display):
    """An equation as MathML. Browsers leave out `mathvariant`; bold letters of their own they draw."""
    equation = re.sub(r"\\\\\[\d+pt\]", r"\\\\", equation)  # heights of rows, which the converter prints
    return re.sub(r'<mi mathvariant="bold">([A-Za-z])</mi>', _bold, convert(equation, display=display))


def _bold(match):
    letter = match[1]
    return f"<mi>{chr((0x1D41A if letter.islower() else 0x1D400) + ord(letter.lower()) - ord('a'))}</mi>"


def _inline(translator, node):
    translator.body.append(_mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def _block(translator, node):
    translator.body.append(f'<div class="math">{_mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def setup(app):
    """Draw before the pages are read; write equations as MathML."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.connect("builder-inited", draw_gallery)
