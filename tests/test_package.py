import ast
import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from graphlib import TopologicalSorter
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


def test_prediction_by_a_scheme_does_not_load_torch(tmp_path):
    code = f"""from rheidae.predict.__main__ import main
assert main(["--model", "none", "--data", "absent.h5", "--out", {str(tmp_path / "out.h5")!r}]) == 2"""
    loaded = loaded_after(code)
    assert {"torch", "sklearn", "matplotlib"}.isdisjoint(loaded)


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


MODULES = [info.name for info in pkgutil.walk_packages(rheidae.__path__, "rheidae.") if "__main__" not in info.name]


@pytest.mark.parametrize("name", MODULES)
def test_docstrings_and_their_examples(name):
    module = importlib.import_module(name)
    assert module.__doc__
    for member, value in vars(module).items():
        if callable(value) and getattr(value, "__module__", None) == name and not member.startswith("_"):
            assert value.__doc__, f"{name}.{member}"
    assert doctest.testmod(module).failed == 0


# --- the shape of the code -------------------------------------------------------------------------------

ORDER = (
    ("exceptions",), ("system",), ("fourflux", "_fourflux_kernels"), ("cells", "moments", "relaxation"), ("mixing",),
    ("config",), ("linear",), ("simulate", "preprocess"), ("datasets",), ("scoring",), ("estimator",),
    ("runs",), ("export", "pretrained"), ("predict",), ("init", "train", "evaluate", "plots", "ablation"),
    ("__main__",),
)  # fmt: skip
"""Imports go to the left, or stay where they are."""

RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}


def imports():
    """Modules and what each imports of the package, at its top or inside of a function."""
    package = ROOT / "rheidae"
    files = {path: path.relative_to(ROOT).with_suffix("").parts for path in package.rglob("*.py")}
    names = {path: ".".join(parts[:-1] if parts[-1] == "__init__" else parts) for path, parts in files.items()}
    known = set(names.values())
    for path, name in names.items():
        wanted = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: a relative import"
                wanted |= {
                    full if (full := f"{node.module}.{alias.name}") in known else node.module for alias in node.names
                }
        yield name, {module for module in wanted & known if module != "rheidae"} - {name}


def test_imports_go_one_way():
    graph = {name: wanted for name, wanted in imports() if name != "rheidae"}
    stage = {name: RANK[name.split(".")[1]] for name in graph}
    upward = [f"{name} -> {other}" for name, wanted in graph.items() for other in wanted if stage[other] > stage[name]]
    assert sorted(upward) == []
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_no_file_is_long():
    """But a kernel, whose derivation stands above it."""
    long = {
        str(path.relative_to(ROOT)): lines
        for path in (ROOT / "rheidae").rglob("*.py")
        if not (path.name.startswith("_") and path.name.endswith("_kernels.py"))
        and (lines := len(path.read_text().splitlines())) > 500
    }
    assert long == {}


def test_no_test_module_imports_another():
    pattern = re.compile(r"^\s*(?:from|import) (?:tests|benchmarks)[. ](?:import )?(test_\w+)", re.MULTILINE)
    borrowed = {
        path.stem for folder in ("tests", "benchmarks") for path in (ROOT / folder).glob("*.py")
        if pattern.search(path.read_text())
    }  # fmt: skip
    assert not borrowed
