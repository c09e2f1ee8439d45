"""Every code block of the documentation runs, page by page, in a folder with the configuration and the sample."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sklearn.metrics import r2_score
from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

from rheidae import FluxRegressor, load_dataset
from rheidae.config import Config, read_config
from rheidae.preprocess.__main__ import main as preprocess

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
# Programs of two pages run in tests/test_cluster.py and tests/test_distributed.py, beside stand-ins for SLURM.
# The gallery has a test of its own below.
RUN_HERE = [page for page in PAGES if page.name not in ("cluster.md", "distributed.md", "gallery.md")]


class BashParser(CodeBlockParser):
    language = "bash"

    def evaluate(self, example):
        if "\ngfortran " in example.parsed and shutil.which("gfortran") is None:
            return None
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", example.parsed], capture_output=True, text=True, check=False
        )
        return None if done.returncode == 0 else f"{example.parsed}\n{done.stdout}\n{done.stderr}"


SYBIL = Sybil([PythonCodeBlockParser(), BashParser()])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(ROOT / "config", folder / "config")
    config = folder / "config" / "model.yaml"  # whole trainings are for `make demo`
    config.write_text(re.sub(r"(?m)^  epochs: 300 ", "  epochs: 6 ", config.read_text()))
    assert read_config(config, Config).training.epochs == 6
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("build"))
    (folder / ".data").symlink_to(ROOT / "rheidae" / "datasets" / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert preprocess(["--config", "config/pre_process.yaml"]) == 0
    (folder / ".data").unlink()
    return folder


@pytest.fixture
def work(prepared, tmp_path, monkeypatch, python):
    """A copy to work in; commands of the pages find what they need loaded, and whole trainings are for `make demo`."""
    monkeypatch.setitem(FluxRegressor.__init__.__kwdefaults__, "max_epochs", 30)
    monkeypatch.chdir(shutil.copytree(prepared, tmp_path / "work"))
    path = [str(python.parent), str(Path(sys.executable).parent), os.environ["PATH"]]
    monkeypatch.setenv("PATH", os.pathsep.join(path))


# Optuna's search still reports to a module that Optuna gives up; Dask leaves sockets to the garbage collector.
@pytest.mark.filterwarnings("ignore:.optuna.terminator:FutureWarning", "default::ResourceWarning")
@pytest.mark.parametrize("page", RUN_HERE, ids=lambda page: page.name)
@pytest.mark.usefixtures("work")
def test_code_blocks_run(page):
    for example in SYBIL.parse(page).examples():
        example.evaluate()


@pytest.mark.usefixtures("work")
def test_gallery_shows_what_its_commands_draw():
    page = ROOT / "docs" / "gallery.md"
    for example in SYBIL.parse(page).examples():
        example.evaluate()
    shown = set(re.findall(r"\(_gallery/(.*?)\)", page.read_text()))
    assert shown == {str(path) for path in Path("results").glob("*.png")}
    assert {"loss", "species", "parity", "skill", "sphere"} <= {Path(path).stem for path in shown}


def test_blocks_are_found_and_failures_reported(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n```\n\n```bash\nfalse\n```\n")
    first, second = SYBIL.parse(page).examples()
    first.evaluate()
    with pytest.raises(AssertionError, match="false"):
        second.evaluate()


RUNNING = {"python", "bash"}
TEXT = {"", "yaml", "{toctree}", "{eval-rst}", "{plot}", "{literalinclude}"}


def test_no_language_but_those_that_run():
    for page in PAGES:
        languages = {line[3:].split(" ")[0].strip() for line in page.read_text().splitlines() if line.startswith("```")}
        assert languages <= RUNNING | TEXT, page


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The pages as HTML, with empty pictures in the gallery."""
    folder = tmp_path_factory.mktemp("html")
    docs = folder / "docs"
    shutil.copytree(ROOT / "docs", docs, ignore=shutil.ignore_patterns("_build", "_gallery"))
    (folder / "benchmarks").mkdir()
    shutil.copy(ROOT / "benchmarks" / "box3d.png", folder / "benchmarks")
    for name in re.findall(r"\((_gallery/.*?)\)", (docs / "gallery.md").read_text()):
        (docs / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(docs / "learning_curve.png", docs / name)
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", docs, folder / "html"],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "html"


def test_every_page_of_the_sources_is_in_the_html(built):
    """Sphinx writes pages of its own, such as search.html, over others of that name."""
    for page in (ROOT / "docs").glob("*.md"):
        source = page.read_text()
        html = (built / f"{page.stem}.html").read_text()
        headings = re.findall(r"^#+ ([A-Za-z ]+)$", re.sub(r"```.*?```", "", source, flags=re.DOTALL), re.MULTILINE)
        assert headings
        for heading in headings:
            assert f">{heading}<a" in html, (page.name, heading)
    assert "optuna" in (built / "hyperparameter-search.html").read_text().lower()


def test_equations_need_no_network(built):
    physics = (built / "physics.html").read_text()
    blocks = len(re.findall(r"^\$\$", (ROOT / "docs" / "physics.md").read_text(), re.MULTILINE)) // 2
    assert physics.count('display="block"') == blocks > 5
    equations = re.findall(r"<math.*?</math>", physics, re.DOTALL)
    assert all("\\" not in equation and "pt]" not in equation for equation in equations)
    for page in built.rglob("*.html"):
        loaded = re.findall(r'<(?:script|link|img)\b[^>]*?(?:src|href)="(https?:[^"]*)"', page.read_text())
        assert loaded == [], page.name


def test_long_lines_of_code_are_not_cut(built):
    assert "pre-wrap" in (built / "_static" / "wrap.css").read_text()
    for page in PAGES[1:]:
        assert "wrap.css" in (built / f"{page.stem}.html").read_text(), page.name


def test_index_says_how_to_install_and_to_begin(built):
    index = (built / "index.html").read_text()
    assert "pip install" in index
    assert "box3d_skill_score" in index


def test_scores_are_skill_and_r2_is_explained(prepared):
    """R2 hides what a model is worth: of Box3D alone it is nearly one."""
    for page in PAGES:
        for call in re.findall(r"(?:cross_val_score|SearchCV)\(\n?.*?\n(?:```|\))", page.read_text(), re.DOTALL):
            assert "scoring=" in call, (page.name, call)
    sample = load_dataset(prepared / ".pdata" / "preprocessed_all.h5")
    box3d = r2_score(sample.target, sample.data[:, 24:])
    pages = [(ROOT / name).read_text() for name in ("README.md", "docs/tutorial.md")]
    for text in (*pages, FluxRegressor.score.__doc__):
        (number,) = re.findall(r"Box3D\s+alone\s+(?:already\s+)?has\s+more\s+than\s+(0\.\d+)", text)
        assert box3d > float(number) > 0.9
