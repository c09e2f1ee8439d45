"""Models as machine code: against the estimator and the schemes, and linked into C and Fortran."""

import ctypes
import json
import os
import platform
import shutil
import subprocess
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rheidae
from rheidae import mix, moments
from rheidae.estimator.networks import MixingModel, ResidualFFIModel
from rheidae.exceptions import ExportError
from rheidae.export import __main__ as command
from rheidae.export import compiled, export_regressor, export_scheme, load_exported
from rheidae.export.graph import OUTPUTS, FluxGraph, transitions
from rheidae.linear import growth_rate
from rheidae.mixing.asymptotic import crossings
from rheidae.predict.stream import predict_file
from tests.estimators import check_single_state
from tests.states import random_states, states

CPP = Path(__file__).parents[1] / "examples" / "cpp"
X86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="levels of x86-64 processors")
FLAGS = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror")


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    path = tmp_path_factory.mktemp("compiled") / "full.o"
    export_regressor(rheidae.pretrained(), path, "object", full=True)
    return path


@pytest.fixture(scope="module")
def library(full):
    """The object as a library of its own, linked without anything but libm: its functions of C."""
    path = full.with_name("full.so")
    subprocess.run(["gcc", "-shared", "-Wl,--no-undefined", full, "-o", path, "-lm"], check=True)
    library = ctypes.CDLL(str(path))
    for name, tables in (("rheidae_mix", 2), ("rheidae_mix_full", 7)):
        getattr(library, name).argtypes = [ctypes.c_size_t, *[ctypes.c_void_p] * tables]
    return library


def total(F):
    return F.reshape(len(F), 6, 4)[:, :, 3].sum(axis=1)[:, None]


@given(states(max_flux_factor=1 - 1e-9), st.sampled_from([1.0, 1e33, 1e-50]))
@settings(max_examples=200)
def test_says_what_the_estimator_says(full, F, unit):
    """Of any state, beams and unlike mu and tau among them: all outputs, to rounding."""
    F = unit * F.reshape(1, 24)
    expected, found = rheidae.pretrained().predict_all(F), load_exported(full).predict_all(F)
    for name in ("F_final", "std"):
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-13 * total(F)[0, 0])
    assert found["outside"] == expected["outside"]
    # Equal sides of a crossing: rounding says which is the larger one, and to the regression that matters by a percent.
    # Where but one species has more than a trace of flux, it says how nodes are turned about it.
    L = F.reshape(2, 3, 4)[0, :, 3] - F.reshape(2, 3, 4)[1, :, 3]
    equal = np.abs(L - L[[1, 2, 0]]).min() < 1e-12 * total(F)[0, 0]
    np.testing.assert_allclose(found["growth_rate"], growth_rate(F, method="fast"), rtol=0.05 if equal else 1e-5)
    np.testing.assert_array_equal(found["has_crossing"], crossings(F.reshape(1, 6, 4)))


def test_matrices_turn_what_was_into_what_is(full):
    """Matrices of densities, of which the graph has the same by another quadrature of the axis."""
    F = np.concatenate([random_states(200, 3, 0.97), random_states(200, 4, 0.75, alike=True), random_states(600, 8)])
    F[400 + np.arange(600), np.arange(600) % 6] = 0.0  # the change of some is shortened, and the matrices with it
    found, N = load_exported(full).predict_all(F), F[:, :, 3].sum(axis=1)[:, None]
    matrices = found["transition"]
    np.testing.assert_allclose(matrices, transitions(rheidae.pretrained())(F), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(matrices.sum(axis=2), 1, atol=1e-12)
    by_matrix = np.einsum("nab,nb->na", matrices[:, 0], F[:, :, 3])
    assert np.abs((found["F_final"] - F)[:, :, 3] / N).max() > 0.05
    off = np.abs(by_matrix - found["F_final"][:, :, 3]) / N
    assert np.quantile(off, 0.99) < 1e-3
    assert off[200:].max() < 1e-6
    # Averages over a flux that nearly vanishes are large.
    graph = FluxGraph(rheidae.pretrained(), full=True).eval()
    with torch.no_grad():
        expected = graph(torch.from_numpy(F.reshape(-1, 24)))[3].numpy().reshape(-1, 2, 6, 6)
    by_graph = np.abs(matrices - expected) / (1 + np.abs(matrices))
    assert np.quantile(by_graph, 0.98) < 1e-5
    assert by_graph[200:400].max() < 2e-6
    by_matrix = np.einsum("nab,nb->na", expected[:, 0], F[:, :, 3])
    assert (np.abs(by_matrix - found["F_final"][:, :, 3]) / N)[200:].max() < 1e-6


@pytest.mark.parametrize("shape", [(6, 4), (24,)])
def test_full_outputs_of_a_single_state(full, shape):
    check_single_state(load_exported(full), shape)


def test_asymptotic_scheme_is_there_with_all_its_levels(tmp_path):
    path = tmp_path / "scheme.o"
    metadata = export_scheme("asymptotic", path, "object")
    assert metadata["scheme"] == {"name": "asymptotic", "lebedev_order": 29}
    F = 1e33 * np.concatenate([random_states(200, 5, 0.999), random_states(200, 6, 0.999, alike=True)])
    expected = mix(F, "asymptotic")
    assert np.abs(mix(F, "asymptotic", levels=1) - expected).max() > 1e30
    np.testing.assert_allclose(load_exported(path).predict(F), expected, rtol=0, atol=1e20)


def test_cells_of_any_kind(library, full):
    """Vacuum stays, what is not finite is NaN alone, outputs may be missing, and the answer may lie where F does."""
    F = 1e33 * random_states(150, 7, 0.97).reshape(150, 24)
    F[3], F[70, 5], F[71, 3] = 0.0, np.nan, np.inf
    expected = load_exported(full).predict_all(F, invalid="pass")
    tables = {name: np.empty((150, columns)) for name, (columns, _) in OUTPUTS.items()}
    assert library.rheidae_mix_full(150, F.ctypes.data, *(table.ctypes.data for table in tables.values())) == 0
    for name, table in tables.items():
        assert np.isnan(table[70:72]).all()
        known = np.delete(table, [70, 71], axis=0)
        np.testing.assert_array_equal(known, np.delete(expected[name].reshape(150, -1), [70, 71], axis=0))
    np.testing.assert_array_equal(tables["F_final"][3], 0)
    np.testing.assert_array_equal(tables["transition"][3].reshape(2, 6, 6), [np.eye(6)] * 2)
    assert all(not tables[name][3].any() for name in ("growth_rate", "has_crossing", "std", "outside"))
    for name in OUTPUTS:
        alone = np.empty_like(tables[name])
        given = [alone.ctypes.data if name == other else None for other in OUTPUTS]
        assert library.rheidae_mix_full(150, F.ctypes.data, *given) == 0
        np.testing.assert_array_equal(alone, tables[name])
    assert library.rheidae_mix(0, None, None) == 0
    assert library.rheidae_mix(150, F.ctypes.data, F.ctypes.data) == 0
    np.testing.assert_array_equal(F, tables["F_final"])


def test_several_threads(library):
    F = 1e33 * random_states(500, 8, 0.97)
    answers = np.empty((4, *F.shape))
    threads = [threading.Thread(target=library.rheidae_mix, args=(500, F.ctypes.data, a.ctypes.data)) for a in answers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(answers, np.broadcast_to(answers[0], answers.shape))
    np.testing.assert_allclose(answers[0], rheidae.pretrained().predict(F), rtol=0, atol=1e20)


def test_snapshots(full, tmp_path):
    """`rheidae predict` by an object writes what it does by the estimator."""
    F = 1e33 * random_states(300, 12, 0.97)
    with h5py.File(tmp_path / "data.h5", "w") as file:
        for name, species in (("n_e", [0]), ("n_a", [3]), ("n_x", [1, 2, 4, 5])):
            table = F[:, species].sum(axis=1).T.reshape(4, 3, 10, 10)
            file[name], file[f"f{name}"] = table[3], table[:3]
    for name, model in (("object", full), ("estimator", "pretrained")):
        predict_file(model, tmp_path / "data.h5", tmp_path / f"{name}.h5", full=True)
    with h5py.File(tmp_path / "object.h5") as one, h5py.File(tmp_path / "estimator.h5") as other:
        for name in ("mixed/n_x", "mixed/fn_e", "std/n_a", "transition", "flag", "growth_rate", "has_crossing"):
            np.testing.assert_allclose(one[name][()], other[name][()], rtol=1e-12, atol=1e-12, err_msg=name)


PROGRAM = """
#define _GNU_SOURCE
#include "rheidae_mix.h"
#include <fenv.h>
#include <stdio.h>

int main(void) {
    static double F[200][24];
    for (int i = 0; i < 200; ++i)
        for (int k = 0; k < 24; ++k)
            if (scanf("%lf", &F[i][k]) != 1) return 2;
    feenableexcept(FE_INVALID | FE_DIVBYZERO | FE_OVERFLOW);
    feraiseexcept(FE_INEXACT);
    if (rheidae_mix(200, &F[0][0], &F[0][0])) return 3;
    if (!fetestexcept(FE_INEXACT) || fegetexcept() != (FE_INVALID | FE_DIVBYZERO | FE_OVERFLOW)) return 4;
    for (int i = 0; i < 200 * 24; ++i) printf("%.17g\\n", F[0][i]);
    fprintf(stderr, "%s", rheidae_mix_metadata);
    return 0;
}
"""


def test_c_program_with_traps(full):
    """Nothing is needed but libm, and traps on floating-point exceptions, as codes have them, don't go off."""
    folder = full.parent
    (folder / "main.c").write_text(PROGRAM)
    # As position-independent executables, which is how compilers link today.
    subprocess.run(["gcc", *FLAGS, "-pie", "-fPIE", "main.c", full.name, "-o", "main", "-lm"], cwd=folder, check=True)
    F = 1e33 * random_states(200, 9, 0.999)
    F[7], F[8, 1] = 0, 0
    text = "\n".join(map(repr, F.ravel().tolist()))
    done = subprocess.run([folder / "main"], input=text, capture_output=True, text=True, check=True)
    found = np.array(done.stdout.split(), dtype=float).reshape(200, 24)
    np.testing.assert_array_equal(found, load_exported(full).predict(F).reshape(200, 24))
    beside = json.loads(full.with_name("full.o.json").read_text())
    assert json.loads(done.stderr) == {name: value for name, value in beside.items() if name != "sha256"}


FORTRAN = """
program main
  use rheidae_compiled
  implicit none
  real(c_double) :: F(4, 6, 3), G(4, 6, 3), rate(3), crossing(3, 3), matrix(6, 6, 2, 3), deviation(4, 6, 3), outside(3)
  integer :: i
  read *, F
  if (rheidae_mix(3_c_size_t, F, G) /= 0) error stop 1
  print '(24es25.16e3)', G
  if (rheidae_mix_full(3_c_size_t, F, G, rate, crossing, matrix, deviation, outside) /= 0) error stop 2
  do i = 1, 3
    print '(125es25.16e3)', G(:, :, i), rate(i), crossing(:, i), matrix(:, :, :, i), deviation(:, :, i), outside(i)
  end do
end program
"""


@pytest.mark.skipif(shutil.which("gfortran") is None, reason="gfortran is not on the PATH")
def test_fortran(full):
    folder = full.parent
    (folder / "main.f90").write_text(FORTRAN)
    flags = ["-std=f2008", "-Wall", "-Wextra", "-Werror", "-ffpe-trap=invalid,zero,overflow"]
    command = ["gfortran", *flags, "rheidae_mix.f90", "main.f90", full.name, "-o", "main_f"]
    subprocess.run(command, cwd=folder, check=True)
    F = 1e33 * random_states(3, 10, 0.97)
    F[0], F[1] = [0, 0, 0.79e33, 1e33], 0
    F[0, 0] *= 2  # no crossing, no neutrinos: nothing is put on their nodes
    text = " ".join(map(repr, F.ravel().tolist()))
    # glibc fills memory that it gives away, here by numbers whose sums are infinite.
    environment = os.environ | {"MALLOC_PERTURB_": "128"}
    done = subprocess.run([folder / "main_f"], input=text, capture_output=True, text=True, check=True, env=environment)
    numbers = [np.array(line.split(), dtype=float) for line in done.stdout.splitlines()]
    everything = load_exported(full).predict_all(F)
    np.testing.assert_array_equal(everything["transition"][:2], np.broadcast_to(np.eye(6), (2, 2, 6, 6)))
    np.testing.assert_allclose(np.array(numbers[:3]), everything["F_final"].reshape(3, 24), rtol=1e-15)
    expected = np.hstack([table.reshape(3, -1) for table in everything.values()])
    np.testing.assert_allclose(np.array(numbers[3:]), expected, rtol=1e-15)


@X86
def test_two_models_for_other_processors_in_one_place(full, tmp_path):
    """Code for any x86-64 has the same answers; functions of one object are not those of another."""
    path = tmp_path / "old.o"
    export_scheme("asymptotic", path, "object", cpu="x86-64-v2")
    F = random_states(100, 11, 0.97)
    np.testing.assert_allclose(load_exported(path).predict(F), mix(F, "asymptotic"), rtol=0, atol=1e-12)
    symbols = subprocess.run(["nm", "--defined-only", "-g", path], capture_output=True, text=True, check=True).stdout
    assert {line.split()[-1] for line in symbols.splitlines()} == {compiled.MIX, compiled.ABOUT}
    both = (load_exported(full), load_exported(path))
    np.testing.assert_array_equal(both[1].predict(F), load_exported(path).predict(F))
    np.testing.assert_array_equal(both[0].predict(F), load_exported(full).predict(F))


@pytest.fixture
def fitted():
    """Estimators of two networks, as they are before they learn."""

    def of(module, **options):
        regressor = rheidae.FluxRegressor(module, **options)
        regressor.initialize()
        return regressor

    return of


def test_what_has_no_kernel_is_refused(fitted, tmp_path):
    for regressor in (fitted(ResidualFFIModel), fitted(MixingModel, module__activation="relu")):
        with pytest.raises(ExportError, match="take the format onnx"):
            export_regressor(regressor, tmp_path / "model.o", "object")
    with pytest.raises(ExportError, match="not of power; take the format onnx"):
        export_scheme("power", tmp_path / "model.o", "object")
    assert not list(tmp_path.iterdir())


def test_processors_are_checked(full, tmp_path, capsys, monkeypatch):
    with pytest.raises(ValueError, match="cpu='abacus' is not one of native"):
        export_scheme("asymptotic", tmp_path / "model.o", "object", cpu="abacus")
    with pytest.raises(ValueError, match="for the format object"):
        export_regressor(rheidae.pretrained(), tmp_path / "model.onnx", cpu="x86-64-v3")
    with pytest.raises(SystemExit):
        command.main(["--pretrained", "--cpu", "x86-64-v3", "--out", str(tmp_path / "model.onnx")])
    assert "--format object" in capsys.readouterr().err
    monkeypatch.setitem(compiled.CPUS, "x86-64-v4", ("avx1024",))
    with pytest.raises(ExportError, match="this machine has no avx1024"):
        export_scheme("asymptotic", tmp_path / "model.o", "object", cpu="x86-64-v4")
    assert not list(tmp_path.iterdir())


def test_code_that_asks_for_python_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "_MEMORY", "declare ptr @malloc(i64)")
    with pytest.raises(ExportError, match="asks for NRT_MemInfo"):
        export_scheme("asymptotic", tmp_path / "model.o", "object")
    assert not list(tmp_path.iterdir())


def test_damaged_objects_are_refused(full, tmp_path):
    """LLVM would crash with the process."""
    path, about = tmp_path / "full.o", full.with_name("full.o.json").read_bytes()
    path.write_bytes(full.read_bytes()[:100_000])
    with pytest.raises(ExportError, match=r"full\.o\.json has to lie beside it"):
        load_exported(path)
    path.with_name("full.o.json").write_bytes(about)
    with pytest.raises(ExportError, match=r"full\.o: is damaged"):
        load_exported(path)
    (tmp_path / "other.c").write_text("int rheidae_mix(void) { return 0; }")
    subprocess.run(["gcc", "-c", "other.c", "-o", path.name], cwd=tmp_path, check=True)
    path.with_name("full.o.json").write_text(json.dumps(compiled.digest(path.read_bytes())))
    with pytest.raises(ExportError, match="was not written by rheidae"):
        load_exported(path)


def block():
    """Three species of the block in `examples/cpp/block.cpp`: densities ``(3, cells)``, fluxes ``(3, 3, cells)``."""
    cell = np.arange(6**3)
    a, b = cell % 7 / 7, cell % 5 / 5
    n = np.where(cell % 11 == 0, 0, [1e33 * (1 + 0.2 * a), 1e33 * (0.9 + 0.2 * b), 1.5e33 + 0 * a])
    factor = np.array([0.1 + 0.1 * b, 0.3 + 0.2 * a, 0.5 + 0 * a])
    return n, (factor * n)[:, None] * np.array([0.3 * a, 0.3 * b, 0.9 + 0 * a])


def check_block(text, predict):
    n, f = block()
    expected = moments.from_six(predict(moments.to_six(n, f)))
    found = np.array(text.split(), dtype=float).reshape(-1, 3, 4).transpose(1, 2, 0)
    assert (np.abs(expected.density - n).max(axis=0) > 0.01 * n.sum(axis=0)).sum() > 50
    for mixed, is_it in ((expected.density, found[:, 3]), (expected.flux, found[:, :3])):
        np.testing.assert_allclose(is_it, mixed, atol=1e-12 * n.sum(axis=0).max())
    assert (found[:, :, ::11] == 0).all()


@pytest.mark.parametrize("compiler", ["g++", "gfortran"])
def test_blocks_with_vacuum(full, compiler):
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not on the PATH")
    sources = {"g++": [CPP / "block.cpp"], "gfortran": ["rheidae_mix.f90", CPP / "block.f90"]}[compiler]
    flags = ["-Wall", "-Wextra", "-Werror", "-I."]
    program = f"block_{compiler}"
    subprocess.run([compiler, *flags, *sources, full.name, "-o", program, "-lm"], cwd=full.parent, check=True)
    done = subprocess.run([full.parent / program], capture_output=True, text=True, check=True)
    check_block(done.stdout, rheidae.pretrained().predict)
