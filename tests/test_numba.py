"""Kernels work where Numba's cache is missing, damaged, full or another user's, and without the compiler."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import rheidae
from rheidae import mix
from tests.states import random_states

FIRST_UNPHYSICAL = """
import numpy as np
import rheidae.fourflux
from rheidae.mixing import _box3d_kernels, _closure_kernels, _physical_kernels, _survival_kernels
from rheidae.preprocess import _badrows_kernels
F = np.ones((3, 6, 4))
F[..., :3] = 0
rheidae.fourflux.require_physical(F, "F")
print("done")
"""


def run(script, folder=Path(rheidae.__file__).parents[1], limit=None, **environment):
    def no_bytes():
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    left = {name: value for name, value in os.environ.items() if not name.startswith(("NUMBA", "XDG"))}
    return subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False,
        env={**left, "PYTHONPATH": str(folder), **environment}, preexec_fn=no_bytes if limit else None,
    )  # fmt: skip


def test_without_a_folder_for_the_cache(tmp_path):
    package = tmp_path / "rheidae"
    shutil.copytree(Path(rheidae.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__", "data"))
    for folder in {path.parent for path in package.rglob("*.py")}:
        (folder / "__pycache__").touch()  # no folder can be made there, not even by root
    done = run(FIRST_UNPHYSICAL, tmp_path, HOME=os.devnull)
    assert done.stdout == "done\n", done.stderr
    assert done.stderr.count("NUMBA_CACHE_DIR") == 1


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
def test_damaged_cache_is_made_anew(ending, tmp_path):
    assert run(FIRST_UNPHYSICAL, NUMBA_CACHE_DIR=str(tmp_path)).stderr == ""
    files = list(tmp_path.rglob(f"*.{ending}"))
    assert files
    for place, file in enumerate(files):
        file.write_bytes(b"" if place % 2 else file.read_bytes()[:-20])
    done = run(FIRST_UNPHYSICAL, NUMBA_CACHE_DIR=str(tmp_path))
    assert done.stdout == "done\n", done.stderr
    assert done.stderr.count("is damaged") == 1
    assert str(tmp_path) in done.stderr
    assert run(FIRST_UNPHYSICAL, NUMBA_CACHE_DIR=str(tmp_path)).stderr == ""


def test_full_disk_of_the_cache_is_named(tmp_path):
    done = run(FIRST_UNPHYSICAL, limit=True, NUMBA_CACHE_DIR=str(tmp_path))
    assert done.stdout == "done\n", done.stderr
    assert done.stderr.count("cannot be written") == 1
    assert str(tmp_path) in done.stderr
    assert "NUMBA_CACHE_DIR" in done.stderr


def test_unknown_place_of_the_cache(tmp_path):
    done = run(FIRST_UNPHYSICAL, NUMBA_CACHE_LOCATOR_CLASSES="NoSuchLocator")
    assert done.stdout == "done\n", done.stderr


def test_without_the_compiler(tmp_path):
    F = random_states(2)
    np.save(tmp_path / "F.npy", F)
    script = f"""
import numpy as np
from rheidae import mix
F = np.load({str(tmp_path / "F.npy")!r})
np.save({str(tmp_path / "out.npy")!r}, np.stack([mix(F), mix(F, crossing="sharp"), mix(F, "power")]))
"""
    done = run(script, NUMBA_DISABLE_JIT="1")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1
    assert "NUMBA_DISABLE_JIT" in done.stderr
    out = np.load(tmp_path / "out.npy")
    expected = np.stack([mix(F), mix(F, crossing="sharp"), mix(F, "power")])
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-12 * F[..., 3].sum(axis=1).max())
