import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

import rheidae

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "numba", "matplotlib", "sklearn", "skorch", "scipy")


def loaded_after(statement):
    code = f"{statement}\nimport sys\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_import_loads_nothing_heavy():
    assert loaded_after("import rheidae") == []


def test_preprocessing_does_not_load_torch_or_matplotlib():
    loaded = loaded_after("import rheidae.preprocess, rheidae.datasets")
    assert "torch" not in loaded
    assert "matplotlib" not in loaded


def test_top_level_names():
    assert set(rheidae.__all__) <= set(dir(rheidae))
    for name in rheidae.__all__:
        assert getattr(rheidae, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'box4d'"):
        rheidae.box4d  # noqa: B018


def test_version_and_constraints_agree_with_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == rheidae.__version__
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    names = {re.split(r"[<>=\[]", need)[0].lower() for need in project["dependencies"]}
    assert names <= {name.lower() for name in pinned}


def test_public_functions_have_docstrings():
    for info in pkgutil.iter_modules(rheidae.__path__, "rheidae."):
        module = importlib.import_module(info.name)
        assert module.__doc__, info.name
        for name, value in vars(module).items():
            if callable(value) and getattr(value, "__module__", None) == info.name and not name.startswith("_"):
                assert value.__doc__, f"{info.name}.{name}"


def test_doctests():
    import doctest

    from rheidae.mixing import box3d as mixing

    assert doctest.testmod(mixing).failed == 0


@pytest.mark.slow
def test_readme_example_runs(processed, tmp_path, monkeypatch):
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / ".pdata").symlink_to(processed)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(block, names)
    assert names["F_final"].shape == (576, 24)
    assert len(names["scores"]) == 3
