"""Every code block of the documentation runs, page by page, in a folder with the configuration and the sample."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

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
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", example.parsed],
            capture_output=True, text=True, check=False, env={**os.environ, "PATH": path},
        )  # fmt: skip
        return None if done.returncode == 0 else f"{example.parsed}\n{done.stdout}\n{done.stderr}"


SYBIL = Sybil([PythonCodeBlockParser(), BashParser()])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(ROOT / "config", folder / "config")
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("build"))
    (folder / ".data").symlink_to(ROOT / "rheidae" / "datasets" / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert preprocess(["--config", "config/pre_process.yaml"]) == 0
    (folder / ".data").unlink()
    return folder


# Optuna's search still reports to a module that Optuna gives up; Dask leaves sockets to the garbage collector.
@pytest.mark.filterwarnings("ignore:.optuna.terminator:FutureWarning", "default::ResourceWarning")
@pytest.mark.parametrize("page", RUN_HERE, ids=lambda page: page.name)
def test_code_blocks_run(page, prepared, tmp_path, monkeypatch):
    folder = shutil.copytree(prepared, tmp_path / "work")
    monkeypatch.chdir(folder)
    for example in SYBIL.parse(page).examples():
        example.evaluate()


def test_gallery_shows_what_its_commands_draw(prepared, tmp_path, monkeypatch):
    page = ROOT / "docs" / "gallery.md"
    monkeypatch.chdir(shutil.copytree(prepared, tmp_path / "work"))
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
