"""Exported models against the estimator, in every format, and from C++, C and Fortran."""

import copy
import ctypes
import errno
import functools
import io
import json
import pickle
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rheidae import FluxRegressor, box3d_flux, mix, relaxation
from rheidae.estimator.networks import MixingModel, ResidualFFIModel
from rheidae.estimator.tensors import flavors
from rheidae.estimator.tensors.asymptotic import AsymptoticMixing
from rheidae.estimator.tensors.control import newton_in_bracket
from rheidae.estimator.tensors.survival import SurvivalMixing
from rheidae.exceptions import ExportError, FourFluxError, OutputError
from rheidae.export import __main__ as command
from rheidae.export import export_regressor, export_scheme, load_exported
from rheidae.export.box3d import Box3DTerms
from rheidae.export.graph import OUTPUTS, FluxGraph, keep_physical
from rheidae.export.scheme import SCHEME_ORDERS, SchemeGraph
from rheidae.export.states import made_states, sample_states
from rheidae.linear import growth_rate
from rheidae.mixing.asymptotic import asymptotic_flux, crossings
from rheidae.mixing.physical import keep_physical as keep_physical_of_kernels
from rheidae.mixing.survival import calm, invariants, mixing_change
from rheidae.runs import folder as runs
from rheidae.runs import train
from tests.estimators import check_single_state
from tests.runs import PARMS, config_for
from tests.states import random_rotation, random_states, states, turn

CPP = Path(__file__).parents[1] / "examples" / "cpp"
MAKE = ("make", "-C", str(CPP), f"PYTHON={sys.executable}", "CXXFLAGS=-O1 -Wall -Wextra -Werror")


def total(F):
    return F.reshape(len(F), 6, 4)[:, :, 3].sum(axis=1)


def difference(F_init, found, expected):
    """Largest difference over the total density of the row; NaN agrees with NaN."""
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    return (np.abs(np.nan_to_num(found - expected)).reshape(len(F_init), -1).max(axis=1) / total(F_init)).max()


def with_box3d(F_init):
    return np.concatenate([F_init, box3d_flux(F_init.reshape(-1, 6, 4)).reshape(-1, 24)], axis=1)


# --- the tensor operations against the kernels -----------------------------------------------------------


def change_by_graph(F, theta, order):
    mixing = SurvivalMixing(order)
    with torch.no_grad():
        prepared = mixing.prepare(torch.from_numpy(F))
        change = mixing.change(prepared, *mixing.mixed(prepared, torch.from_numpy(theta)))
    return mixing.invariants(prepared).numpy(), change.numpy().reshape(-1, 8)


def parameters(n, seed=0):
    """Parameters over and beyond the range that `MixingModel` can set."""
    rng = np.random.default_rng(seed)
    ends = np.array([(-0.2, 0.2), (-1.6, 1.6), (-1.1, 1.1), (0, 1), (-2.1, 2.1), (0, 1), (-1.6, 1.6), (-1.1, 1.1)]).T
    return rng.uniform(*ends, (n, 8))


@pytest.mark.parametrize("order", [13, 17])  # 13 has a negative weight
def test_continuous_mixing(order):
    # Narrow beams make plateaus in the equation for s, over which a plain Newton step jumps out of reach.
    F = np.concatenate([random_states(400, 5), random_states(3000, 6, max_flux_factor=0.9999)])
    F /= total(F)[:, None, None]
    theta = parameters(len(F))
    numbers, change = change_by_graph(F, theta, order)
    np.testing.assert_allclose(numbers, invariants(F, order=order), atol=1e-7)
    np.testing.assert_allclose(change, mixing_change(F, theta, order=order, tolerance=1e-12, beams=False).D, atol=3e-7)


@given(states())
@settings(max_examples=60)
def test_continuous_mixing_of_any_state(F):
    F = F / total(F)[:, None, None]
    theta = parameters(1, int(1e6 * abs(F).sum()) % 1000)
    _, change = change_by_graph(F, theta, 17)
    np.testing.assert_allclose(change, mixing_change(F, theta, order=17, tolerance=1e-12, beams=False).D, atol=5e-7)


def three_flavors(F):
    """Final states by the graph, and the matrix of densities."""
    with torch.no_grad():
        found = AsymptoticMixing(3, full=True)(torch.from_numpy(F), torch.ones(len(F), 1, dtype=torch.bool)).numpy()
    return F + found[:, :24].reshape(F.shape), found[:, 24:96].reshape(-1, 2, 6, 6)[:, 0]


def test_three_flavors(monkeypatch):
    """Plain states, and narrow beams and traces along a line, where Newton's method does not do."""
    F = np.concatenate([random_states(40, 11), random_states(160, 12)])
    rng = np.random.default_rng(14)
    narrow = 1 - 10 ** -rng.uniform(0, 12, (160, 6))
    factor = np.where(rng.random((160, 6)) < 0.5, narrow, rng.random((160, 6)))
    F[40:, :, :3] = (factor * F[40:, :, 3])[..., None] * np.array([0.6, 0.0, 0.8])
    F[40:] *= 10 ** -(rng.uniform(0, 6, (160, 6, 1)) * (rng.random((160, 6, 1)) < 0.4))
    F /= total(F)[:, None, None]
    search, modes = flavors._search, []

    def watched(*tables):
        (state,) = search(*tables)
        modes.append(state[:, 14])
        return (state,)

    monkeypatch.setattr(flavors, "_search", watched)
    found, matrix = three_flavors(F)
    assert (torch.stack(modes) == 1.0).any()
    expected = asymptotic_flux(F, levels=1)
    assert np.abs(expected - F).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-8)
    assert matrix.min() > -1e-12
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(np.einsum("nab,nb->na", matrix, F[..., 3]), found[..., 3], atol=1e-8)


def test_a_root_that_is_found_stays_while_others_are_looked_for():
    """Where both sides are nearly equal rounding leaves steps that grow, and halving the bracket would follow."""
    found, open_ = 2.0, 7.0
    columns = [[found, open_], [3e-13, 0.5], [found - 1e-6, 0.0], [140.0, 140.0], [1e-13, 4.0]]
    u, _, _, before = newton_in_bracket(*torch.tensor(columns, dtype=torch.float64))
    assert u.tolist() == [found, 7.5]
    assert before.tolist() == [1e-13, 0.5]


@given(states())
@settings(max_examples=60)
def test_three_flavors_of_any_state(F):
    F = (F / total(F)[:, None, None]).reshape(-1, 6, 4)
    np.testing.assert_allclose(three_flavors(F)[0], asymptotic_flux(F, levels=1), atol=1e-6)


@pytest.mark.parametrize("crossing", ["shared", "sharp"])
@pytest.mark.parametrize(("order", "mu_fraction"), [(13, None), (None, None), (17, 0.5)])
def test_box3d(order, crossing, mu_fraction):
    F = np.concatenate([random_states(300, 1), made_states()[:60].reshape(-1, 6, 4) / 1e33])
    options = {"order": order, "crossing": crossing, "mu_fraction": mu_fraction}
    with torch.no_grad():
        found = Box3DTerms(**options)(torch.from_numpy(F)).numpy()
    assert difference(F, found, box3d_flux(F, **options)) < 1e-13


@pytest.mark.parametrize("unit", [1.0, 1e33, 1e-40])
def test_staying_physical(unit):
    F = unit * random_states(500, 2)
    F[::7, 2] = 0.0
    rng = np.random.default_rng(3)
    final = F + unit * rng.normal(scale=0.3, size=F.shape) * rng.uniform(size=(500, 1, 1)) ** 4
    expected = final.copy()
    keep_physical_of_kernels(F, expected)
    flat = [torch.from_numpy(table.reshape(-1, 24)) for table in (F, final)]
    found = keep_physical(*flat, torch.from_numpy(total(F))[:, None]).numpy().reshape(-1, 6, 4)
    changed = (expected != final).any(axis=(1, 2))
    assert 50 < changed.sum() < 450
    np.testing.assert_array_equal(found[~changed], final[~changed])
    assert difference(F, found, expected) < 1e-9


@pytest.mark.parametrize("scheme", SCHEME_ORDERS)
def test_schemes(scheme):
    """Against `mix`: to rounding, but where that one has more nodes, to the error of those that there are."""
    unlike, F = random_states(200, 31), random_states(1000, 32, max_flux_factor=0.99, alike=True)
    F[0] = 0.0
    graph = SchemeGraph(scheme, SCHEME_ORDERS[scheme])
    with torch.no_grad():
        found, other = (
            graph(torch.from_numpy(1e33 * G.reshape(-1, 24))).numpy().reshape(-1, 6, 4) / 1e33 for G in (F, unlike)
        )
    np.testing.assert_array_equal(found[0], 0.0)
    off = np.linalg.norm(found - mix(F, scheme), axis=2).max(axis=1)[1:] / total(F)[1:]
    if scheme == "asymptotic":
        assert off.max() < 3e-3
        assert np.quantile(off, [0.5, 0.95, 0.99]) == pytest.approx(0, abs=2e-4)
        assert difference(unlike, other, mix(unlike, scheme)) < 2e-3
    else:
        # The graph of power leaves beams alone.
        assert off[(calm(F) == 1)[1:] | (scheme == "box3d")].max() < 1e-10
        assert difference(unlike, other, mix(unlike, scheme)) < 1e-10


# --- files -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixing(data):
    return FluxRegressor(MixingModel, random_state=0, max_epochs=8).fit(data.data, data.target)


@pytest.fixture(scope="module")
def residual(data):
    options = {"module__hidden_dim": 16, "module__hidden_layers": 1, "lr": 2e-3}
    return FluxRegressor(ResidualFFIModel, random_state=0, max_epochs=8, **options).fit(data.data, data.target)


@pytest.fixture(scope="module")
def exported(mixing, residual, tmp_path_factory):
    """Path of an export, made when first asked for."""
    folder = tmp_path_factory.mktemp("exports")

    def of(name, format, with_box3d=True):
        path = folder / f"{name}-{with_box3d}.{'o' if format == 'object' else format}"
        if not path.exists():
            export_regressor({"mixing": mixing, "residual": residual}[name], path, format, with_box3d=with_box3d)
        return path

    return of


@pytest.fixture(scope="module")
def opened(exported):
    """Such an export, opened when first asked for."""
    return functools.cache(lambda *case: load_exported(exported(*case)))


CASES = (
    ("mixing", "onnx", True), ("mixing", "object", True), ("mixing", "pt2", True), ("mixing", "torchscript", True),
    ("residual", "onnx", True), ("residual", "pt2", False), ("residual", "torchscript", False),
)  # fmt: skip


@pytest.mark.parametrize(("name", "format", "inside"), CASES)
def test_predicts_what_the_estimator_predicts(name, format, inside, opened, request):
    regressor = request.getfixturevalue(name)
    model = opened(name, format, inside)
    F = np.concatenate([random_states(250, 7, alike=True), random_states(50, 7)]).reshape(-1, 24)
    # Far outside of the training data, and where the limiter has to act.
    far = random_states(30, 8, max_flux_factor=0.95)
    far[:, 2] *= 1e-3
    F = np.concatenate([F, far.reshape(-1, 24)])
    for unit in (1.0, 1e33, 1e-20):
        X = with_box3d(unit * F)
        expected = regressor.predict(X)
        assert np.max(np.abs(expected - X[:, :24])) > 0.01 * unit
        given = (X[:, :24], X[:, 24:]) if "F_box" in model.inputs else (X[:, :24],)
        for rows in (slice(None), slice(0, 1), slice(3, 10)):
            found = model.predict(*(table[rows] for table in given), invalid="pass")
            assert found.dtype == np.float64
            assert difference(F[rows], found / unit, expected[rows] / unit) < 1e-6
        cubes = model.predict(*(table.reshape(-1, 6, 4) for table in given), invalid="pass")
        np.testing.assert_array_equal(cubes.reshape(-1, 24), model.predict(*given, invalid="pass"))


@given(states(), st.sampled_from([1.0, 1e33, 1e-20]), st.sampled_from([np.float32, np.float64]))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_agrees_on_any_state(opened, mixing, residual, F, unit, dtype):
    """Empty species, no crossing, beams: as float32 and as float64, in units whose squares overflow float32."""
    F = (unit * F.reshape(1, 24)).astype(dtype)
    regressors = {"mixing": mixing, "residual": residual}
    X = with_box3d(F.astype(np.float64))
    for case in CASES:
        name, model = case[0], opened(*case)
        given = (X[:, :24], X[:, 24:]) if "F_box" in model.inputs else (F,)
        found = model.predict(*given, invalid="pass")
        assert found.dtype == np.float64
        assert difference(X[:, :24] / unit, found / unit, regressors[name].predict(X) / unit) < 1e-6
        cubes = found.reshape(6, 4) / unit
        assert not (np.linalg.norm(cubes[:, :3], axis=1) > cubes[:, 3] + 1e-7).any()  # float32's own rounding


def test_the_limiter_of_the_answer_is_part_of_the_graph(residual, tmp_path):
    """A network whose raw answers are far from physical."""
    wild = copy.deepcopy(residual)
    with torch.no_grad():
        wild.module_.head.weight.mul_(30.0)
        wild.module_.head.bias.add_(3.0)
    export_regressor(wild, tmp_path / "wild.onnx", with_box3d=False)
    X = 1e33 * with_box3d(random_states(300, 21, alike=True).reshape(-1, 24))
    expected = wild.predict(X)
    with torch.no_grad():
        change = wild.module_(torch.from_numpy(X / total(X[:, :24])[:, None]).float()).double().numpy()
    raw = X[:, 24:] + total(X[:, :24])[:, None] * change
    assert (np.abs(raw - expected).max(axis=1) > 1e-3 * total(X[:, :24])).mean() > 0.5
    found = load_exported(tmp_path / "wild.onnx").predict(X[:, :24], X[:, 24:])
    assert difference(X[:, :24], found, expected) < 1e-6


@pytest.mark.parametrize(("predict_residual", "format"), [(True, "onnx"), (False, "torchscript")])
def test_networks_of_ones_own(predict_residual, format, data, tmp_path):
    network = torch.nn.Sequential(
        torch.nn.Linear(48, 16),
        torch.nn.BatchNorm1d(16),
        torch.nn.Tanh(),
        torch.nn.Dropout(0.5),
        torch.nn.Linear(16, 24),
    )
    model = FluxRegressor(network, predict_residual=predict_residual, max_epochs=2).fit(data.data, data.target)
    path = tmp_path / {"onnx": "own.onnx", "torchscript": "own.ts"}[format]
    metadata = export_regressor(model, path, format, box3d_order=17)
    assert metadata["network"]["base_state"] == ("box3d" if predict_residual else "initial")
    F = random_states(50, 22).reshape(-1, 24)
    X = np.concatenate([F, box3d_flux(F.reshape(-1, 6, 4), order=17).reshape(-1, 24)], axis=1)
    assert difference(F, load_exported(path).predict(F), model.predict(X)) < 1e-6


@pytest.mark.parametrize("format", ["onnx", "torchscript"])
def test_rows_that_do_not_change(format, exported):
    model = load_exported(exported("mixing", format))
    F = np.zeros((3, 6, 4))
    F[1, :, 3] = [2e33, 1e33, 1e33, 1e33, 1e33, 1e33]  # no crossing
    F[2, 0] = [1e33, 0, 0, 2e33]  # a single species; F[0] has none
    np.testing.assert_array_equal(model.predict(F), F)


@pytest.fixture(scope="module")
def full(mixing, tmp_path_factory):
    path = tmp_path_factory.mktemp("full") / "full.onnx"
    export_regressor(mixing, path, full=True)
    return path


def test_full_outputs(full, mixing):
    """Growth rates and crossings as of the package; matrices that turn the initial densities into the final ones."""
    model = load_exported(full)
    F = 1e33 * np.concatenate([random_states(200, 23, alike=True), random_states(100, 24)])
    F[3], F[4, 1, 0] = 0.0, np.nan
    found = model.predict_all(F.reshape(3, 100, 24), invalid="pass")
    assert tuple(found) == tuple(OUTPUTS) == model.outputs
    F_final, rate, crossing, matrix, std, outside = (
        found[name].reshape(300, *found[name].shape[2:]) for name in OUTPUTS
    )
    np.testing.assert_array_equal(F_final.reshape(300, 6, 4), model.predict(F, invalid="pass"))
    np.testing.assert_allclose(rate, growth_rate(F, method="fast", invalid="pass"), rtol=1e-9)
    assert np.isnan(matrix[4]).all()
    assert not crossing[4].any()
    np.testing.assert_array_equal(matrix[3], [np.eye(6)] * 2)
    expected = mixing.predict(F, return_std=True, invalid="pass")[1].reshape(300, 24)
    np.testing.assert_array_equal(np.isnan(std), np.isnan(expected))
    np.testing.assert_array_equal(std == 0, expected == 0)
    np.testing.assert_array_equal(outside, mixing.outside(F, invalid="pass"))
    assert 0 < outside.sum() < 298
    np.testing.assert_allclose(std, expected, rtol=1e-4)
    F, F_final, matrix = (np.delete(table, [3, 4], axis=0) for table in (F, F_final.reshape(300, 6, 4), matrix))
    np.testing.assert_array_equal(np.delete(crossing, [3, 4], axis=0), crossings(F))
    N = total(F)[:, None]
    by_matrix = np.einsum("nab,nb->na", matrix[:, 0], F[:, :, 3])
    assert np.abs(F_final - F).max() > 0.01 * N.max()
    assert (np.abs(by_matrix - F_final[:, :, 3]) / N).max() < 2e-3
    np.testing.assert_allclose(matrix.sum(axis=2), 1, atol=1e-12)
    # All fluxes along one line: there the matrix of fluxes is exact too.
    line = np.zeros((50, 6, 4))
    line[..., 3] = F[:50, :, 3]
    line[..., 2] = np.linalg.norm(F[:50, :, :3], axis=2)
    answer = model.predict_all(line)
    flux = np.einsum("nab,nb->na", answer["transition"][:, 1], line[:, :, 2])
    assert (np.abs(flux - answer["F_final"][:, :, 2]) / total(line)[:, None]).max() < 2e-3


@pytest.mark.parametrize("alike", [True, False])
def test_beams_and_crossings_in_full_files(full, mixing, alike):
    """As of the estimator; mu and tau that are alike do not cross, though onnxruntime's vectors round them apart."""
    F = random_states(600, 31, alike=alike)
    f = 1 - np.array([[1e-2], [1e-9], [1e-9], [1e-4], [1e-6], [1e-6]])
    F[:100, :, :3] *= f * F[:100, :, 3:] / np.linalg.norm(F[:100, :, :3], axis=2, keepdims=True)
    found = load_exported(full).predict_all(F)
    np.testing.assert_array_equal(found["has_crossing"], crossings(F))
    np.testing.assert_allclose(found["std"], mixing.predict(F, return_std=True)[1], rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("shape", [(6, 4), (24,)])
def test_full_outputs_of_a_single_state(full, shape):
    check_single_state(load_exported(full), shape)


def test_full_outputs_are_of_the_mixing_model(residual, tmp_path):
    with pytest.raises(ExportError, match="no survival probabilities"):
        export_regressor(residual, tmp_path / "model.onnx", full=True)


def test_full_outputs_by_the_c_interface(library, full, exported):
    model, F = ctypes.c_void_p(), 1e33 * random_states(300, 24, alike=True).reshape(300, 24)
    assert library.rheidae_create(str(full).encode(), 1, ctypes.byref(model)) == 0
    assert library.rheidae_is_full(model) == 1
    tables = [np.empty((300, columns)) for columns, _ in OUTPUTS.values()]
    assert library.rheidae_run_full(model, 300, pointer(F), *map(pointer, tables)) == 0
    for table, expected in zip(tables, load_exported(full).predict_all(F).values(), strict=True):
        np.testing.assert_allclose(table, expected.reshape(300, -1), rtol=1e-12)
    again = F.copy()
    assert library.rheidae_run_full(model, 300, pointer(again), pointer(again), *[None] * 5) == 0
    np.testing.assert_array_equal(again, tables[0])
    library.rheidae_destroy(model)
    assert library.rheidae_create(str(exported("mixing", "onnx")).encode(), 1, ctypes.byref(model)) == 0
    assert library.rheidae_is_full(model) == 0
    assert library.rheidae_run_full(model, 1, pointer(F), pointer(F), *[None] * 5) != 0
    assert b"--full" in library.rheidae_error()
    library.rheidae_destroy(model)


def test_what_is_not_finite_stays_in_its_row(exported):
    model = load_exported(exported("mixing", "onnx"))
    F = random_states(4, 9, alike=True)
    expected = model.predict(F)
    F[2, 1, 0] = np.nan
    found = model.predict(F, invalid="pass")
    assert np.isnan(found[2]).all()
    # The file by itself, as C and Fortran have it: of a flux, of a density.
    for place in ((2, 1, 0), (2, 0, 3)):
        F[2] = 1.0
        F[place] = np.nan
        (bare,) = model._function(F.reshape(4, 24))
        assert np.isnan(bare[2]).all()
        np.testing.assert_array_equal(bare[[0, 1, 3]], expected[[0, 1, 3]].reshape(3, 24))
    np.testing.assert_array_equal(found[[0, 1, 3]], expected[[0, 1, 3]])


@pytest.mark.parametrize("graph", [SchemeGraph("asymptotic", 17), None])
def test_what_is_not_finite_keeps_no_search_going(graph, mixing, monkeypatch):
    """One cell that went wrong took 500 times as long as its whole block, up to the last turn that is allowed."""
    turns, search = [], flavors._search
    monkeypatch.setattr(flavors, "_search", lambda *tables: turns.append(1) or search(*tables))
    F = torch.from_numpy(random_states(3, 9).reshape(3, 24))
    F[1, 2] = torch.nan
    with torch.no_grad():
        answer = (graph or FluxGraph(mixing)).eval()(F)
    np.testing.assert_array_equal(torch.isnan(answer).any(dim=1), [False, True, False])
    assert 1 < len(turns) < 100


def test_rows_that_a_file_answers_by_nan_are_named(opened, monkeypatch):
    model, F = opened("mixing", "onnx", True), random_states(6, 9)
    expected = model.predict(F)
    damaged = expected.copy()
    damaged[[2, 4]] = np.nan
    monkeypatch.setattr(model, "_function", lambda rows: [damaged.reshape(6, 24)])
    with pytest.raises(FourFluxError, match=r"answers NaN for row 2, as for 1 more rows"):
        model.predict(F)
    np.testing.assert_array_equal(model.predict(F, invalid="pass"), damaged)


def test_compared_states_hold_what_they_say():
    F = made_states().reshape(-1, 6, 4)
    N, size = F[:, :, 3], np.linalg.norm(F[:, :, :3], axis=2)
    assert (N >= 0).all()
    assert (size <= N).all()
    assert (total(F) > 0).all()
    assert total(F).min() < 1e-40
    assert total(F).max() > 1e40
    assert (N == 0).any(axis=1).sum() > 20
    assert (size > 0.999 * N)[N > 0].any()
    assert ((box3d_flux(F) == F).all(axis=(1, 2)) & (N > 0).all(axis=1)).sum() > 20
    assert len(sample_states()) == 576


def test_metadata(exported, mixing, residual):
    path = exported("mixing", "onnx")
    inside = load_exported(path).metadata
    assert json.loads(Path(f"{path}.json").read_text()) == inside
    assert inside["species"] == ["nu_e", "nu_mu", "nu_tau", "nubar_e", "nubar_mu", "nubar_tau"]
    assert inside["components"] == ["x", "y", "z", "t"]
    assert "1/cm^3" in inside["units"]
    assert [entry["name"] for entry in inside["inputs"]] == ["F_init"]
    assert inside["outputs"][0]["shape"] == ["n", 24]
    assert inside["versions"]["torch"] == torch.__version__
    assert inside["network"]["class"] == "MixingModel"
    assert inside["network"]["lebedev_order"] == mixing.module_.order
    assert inside["box3d"] == "not used"
    states = np.concatenate([sample_states(), made_states()])
    reached = difference(
        states, load_exported(path).predict(states, invalid="pass"), mixing.predict(with_box3d(states))
    )
    assert inside["tolerance"]["reached"] == pytest.approx(reached, rel=0.3)
    assert inside["tolerance"]["rows_compared"] == len(states)
    for format in ("pt2", "torchscript"):
        metadata = load_exported(exported("residual", format, False)).metadata
        assert [entry["name"] for entry in metadata["inputs"]] == ["F_init", "F_box"]
        assert metadata["box3d"] == {"inside": False}
        assert metadata["network"]["base_state"] == "box3d"
        assert metadata["format"] == format
    within = load_exported(exported("residual", "onnx")).metadata["box3d"]
    assert within == {"inside": True, "crossing": "shared", "order": 23, "mu_fraction": None}


def test_onnx_file_names_nothing_of_the_machine(exported):
    content = exported("mixing", "onnx").read_bytes() + exported("residual", "pt2", False).read_bytes()
    assert str(Path(__file__).parents[1]).encode() not in content
    assert b".py" not in content


def test_inputs_are_checked(exported):
    model = load_exported(exported("residual", "torchscript", False))
    F = random_states(3).reshape(-1, 24)
    with pytest.raises(FourFluxError, match="got F_init; this export takes F_init, F_box"):
        model.predict(F)
    with pytest.raises(FourFluxError, match=r"F_box has shape \(2, 24\)"):
        model.predict(F, F[:2])
    assert model.predict(F[:0], F[:0]).shape == (0, 24)


def test_a_file_that_misses_the_tolerance_is_not_handed_over(residual, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_text("of before")
    with pytest.raises(ExportError, match=r"differs from the estimator by .*e-.* nothing was written"):
        export_regressor(residual, path, with_box3d=False, tolerance=1e-16)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_text() == "of before"


def test_a_file_that_holds_nan_is_not_handed_over(residual, tmp_path, monkeypatch):
    poisoned = FluxRegressor(ResidualFFIModel, module__hidden_dim=8).initialize()
    monkeypatch.setattr(poisoned, "predict", residual.predict)
    with torch.no_grad():
        poisoned.module_.head.bias.fill_(torch.nan)
    with pytest.raises(ExportError, match="differs from the estimator by nan"):
        export_regressor(poisoned, tmp_path / "model.onnx", with_box3d=False)
    assert list(tmp_path.iterdir()) == []


class Branching(torch.nn.Module):
    """A network that no graph can hold."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(48, 24)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else -self.layer(x)


def test_what_cannot_be_exported(residual, tmp_path, data):
    branching = FluxRegressor(Branching, max_epochs=1).fit(data.data[:64], data.target[:64])
    with pytest.raises(ExportError, match="cannot be turned into a graph"):
        export_regressor(branching, tmp_path / "model.pt2", "pt2")
    with pytest.raises(ValueError, match="format='tflite' is not one of onnx, object, pt2, torchscript"):
        export_regressor(residual, tmp_path / "model", "tflite")
    generic = FluxRegressor(layout="generic", max_epochs=1).fit(data.data[:64], data.target[:64])
    with pytest.raises(ExportError, match="layout='generic'"):
        export_regressor(generic, tmp_path / "model.pt2", "pt2")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_what_was_there(residual, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_text("of before")
    written = []

    def write_half(file, content):
        written.append(file)
        with file.open("wb") as out:
            out.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(OutputError, match=r"model\.onnx: disk full"):
        export_regressor(residual, path, with_box3d=False)
    # Never under its own name before it is complete and compared.
    assert written[0].name != path.name
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "of before"


def test_a_folder_of_that_name_is_said_before_the_work(residual, tmp_path):
    (tmp_path / "model.onnx.json").mkdir()
    (tmp_path / "folder.onnx").mkdir()
    for name in (tmp_path / "folder.onnx", tmp_path / "model.onnx"):
        with pytest.raises(ExportError, match="is a folder; name a file"):
            export_regressor(residual, name, "onnx")


def test_missing_packages_are_named(residual, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ExportError, match=r"needs onnx; .* rheidae\[export\]"):
        export_regressor(residual, tmp_path / "model.onnx", "onnx")


def test_files_that_are_no_exports(tmp_path):
    with pytest.raises(ExportError, match="no such file"):
        load_exported(tmp_path / "nothing.onnx")
    (tmp_path / "text.onnx").write_text("nothing of the kind")
    with pytest.raises(ExportError, match="cannot be read"):
        load_exported(tmp_path / "text.onnx")
    with (tmp_path / "archive.pt2").open("wb") as file:
        np.savez(file, x=1)
    with pytest.raises(ExportError, match=r"holds 'x\.npy', which may run code"):
        load_exported(tmp_path / "archive.pt2")


# --- files of strangers ----------------------------------------------------------------------------------


class Mischief:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def rewritten(path, target, change):
    """Copy a zip archive; `change(part, content)` gives the new content of each part."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as copy:
        for name in source.namelist():
            copy.writestr(name, change(name.partition("/")[2], source.read(name)))
    return target


def pickled(thing):
    buffer = io.BytesIO()
    torch.save(thing, buffer, pickle_module=pickle)
    return buffer.getvalue()


def test_pt2_files_that_run_code_are_refused(exported, opened, tmp_path):
    """A pickle as sample inputs, a pickled weight, an operator that is none, an expression that is a call."""
    mark, sound = tmp_path / "ran", exported("residual", "pt2", False)

    def pickled_weight(part, content):
        if part == "data/weights/model_weights_config.json":
            return content.replace(b'"use_pickle": false', b'"use_pickle": true', 1)
        return pickled(Mischief(mark)) if part == "data/weights/weight_0" else content

    def call(part, content):
        code = json.dumps(f"__import__('pathlib').Path({str(mark)!r}).touch()").encode()
        return re.sub(rb'"expr_str": "[^"]*"', lambda _: b'"expr_str": ' + code, content)

    def system(part, content):
        return re.sub(rb'"torch\.ops\.aten\.[^"]*"', b'"torch.os.system"', content)

    def sample(part, content):
        return pickled(Mischief(mark)) if part == "data/sample_inputs/model.pt" else content

    for change in (sample, pickled_weight, call, system):
        path = rewritten(sound, tmp_path / f"{change.__name__}.pt2", change)
        with pytest.raises(ExportError, match="may run code"):
            load_exported(path)
        shutil.copyfile(path, tmp_path / "model.onnx")
        with pytest.raises(ExportError, match=r"format pt2 has to end in \.pt2; it is not what its name says"):
            load_exported(tmp_path / "model.onnx")
    assert not mark.exists()
    again = rewritten(sound, tmp_path / "same.pt2", lambda part, content: content)
    F = random_states(5)
    np.testing.assert_array_equal(load_exported(again).predict(F, F), opened("residual", "pt2", False).predict(F, F))


@pytest.mark.parametrize("inputs", [None, "abc", [], [{}], [1], [{"name": "x"}], [{"name": "F_init"}] * 2])
def test_odd_metadata_are_refused(exported, tmp_path, inputs):
    known = json.loads(onnx.load(exported("mixing", "onnx")).metadata_props[0].value)
    same = onnx.helper.make_node("Identity", ["F_init"], ["F_final"])
    load_exported(graph(tmp_path / "a.onnx", [same], [], json.dumps(known)))
    for value in ("[1]", "3", "null", json.dumps({**known, "inputs": inputs})):
        path = graph(tmp_path / "a.onnx", [same], [], value)
        with pytest.raises(ExportError, match=r"a\.onnx: has no metadata of version 1"):
            load_exported(path)


def graph(path, nodes, constants, metadata):
    number = onnx.TensorProto.DOUBLE
    tensors = [onnx.helper.make_tensor_value_info(name, number, None) for name in ("F_init", "F_final")]
    made = onnx.helper.make_graph(nodes, "g", tensors[:1], tensors[1:], constants)
    model = onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    entry = model.metadata_props.add()
    entry.key, entry.value = "rheidae", metadata
    path.write_bytes(model.SerializeToString())
    return path


def test_onnx_files_that_read_others_are_refused(exported, tmp_path):
    metadata = onnx.load(exported("mixing", "onnx")).metadata_props[0].value
    (tmp_path / "secret").write_bytes(np.arange(24.0).tobytes())
    constant = onnx.TensorProto(name="w", data_type=onnx.TensorProto.DOUBLE, dims=[24])
    constant.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "secret"), ("length", "192")):
        entry = constant.external_data.add()
        entry.key, entry.value = key, value
    add = onnx.helper.make_node("Add", ["F_init", "w"], ["F_final"])
    path = graph(tmp_path / "a.onnx", [add], [constant], metadata)
    with pytest.raises(ExportError, match="has weights in other files"):
        load_exported(path)
    # As other programs may write the same.
    content = path.read_bytes().replace(b"\x0a\x08location", b"\x0a\x88\x80\x00location")
    path.write_bytes(content)
    with pytest.raises(ExportError):
        load_exported(path)


def test_small_onnx_files_take_no_large_memory(exported, tmp_path):
    """Constants and operations end at a part of the free memory; what the runtime unpacks by itself is refused."""
    metadata = onnx.load(exported("mixing", "onnx")).metadata_props[0].value
    numbers, helper = onnx.numpy_helper.from_array, onnx.helper
    many = numbers(np.array([1 << 37]), "many")  # a terabyte
    one = numbers(np.ones(1), "one")
    top = helper.make_node("ReduceMax", ["F_init"], ["top"], keepdims=0)
    end = [
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Add", ["F_init", "m"], ["F_final"]),
    ]
    for nodes, constants in (
        ([helper.make_node("ConstantOfShape", ["many"], ["x"], value=helper.make_tensor("v", 11, [1], [0.0]))], [many]),
        ([helper.make_node("Expand", ["one", "many"], ["x"])], [one, many]),
        ([top, helper.make_node("Expand", ["top", "many"], ["x"])], [many]),
    ):
        model = load_exported(graph(tmp_path / "a.onnx", [*nodes, *end], constants, metadata))
        with pytest.raises(ExportError, match=r"a\.onnx: cannot be evaluated \(.*Available memory of"):
            model.predict(random_states(5))
    value, place = helper.make_tensor("s", 11, [1], [1.0]), helper.make_tensor("i", 7, [1], [0])
    sparse = helper.make_sparse_tensor(value, place, [1 << 37])
    inside = helper.make_node("Constant", [], ["x"], sparse_value=sparse)
    branch = helper.make_graph([inside], "b", [], [helper.make_tensor_value_info("x", 11, [1 << 37])])
    choice = helper.make_node("If", ["yes"], ["x"], then_branch=branch, else_branch=branch)
    function = onnx.FunctionProto(name="f", domain="own", output=["x"], node=[inside])
    for nodes, change, found in (
        (end, lambda model: model.graph.sparse_initializer.append(sparse), "sparse tensors"),
        ([inside, *end], lambda model: None, "sparse tensors"),
        ([choice, *end], lambda model: None, "sparse tensors"),
        (end, lambda model: model.functions.append(function), "functions of its own"),
    ):
        model = onnx.load(graph(tmp_path / "b.onnx", nodes, [], metadata))
        change(model)
        onnx.save(model, tmp_path / "b.onnx")
        with pytest.raises(ExportError, match=rf"b\.onnx: has {found}"):
            load_exported(tmp_path / "b.onnx")


def test_onnx_graphs_that_answer_something_else(exported, tmp_path):
    metadata = onnx.load(exported("mixing", "onnx")).metadata_props[0].value
    total = onnx.helper.make_node("ReduceSum", ["F_init"], ["F_final"])
    with pytest.raises(ExportError, match=r"a\.onnx: answers \(5, 24\) numbers by \(1, 1\)"):
        load_exported(graph(tmp_path / "a.onnx", [total], [], metadata)).predict(random_states(5))
    shape = onnx.numpy_helper.from_array(np.array([7, 24]), "s")
    reshape = onnx.helper.make_node("Reshape", ["F_init", "s"], ["F_final"])
    with pytest.raises(ExportError, match=r"b\.onnx: cannot be evaluated"):
        load_exported(graph(tmp_path / "b.onnx", [reshape], [shape], metadata)).predict(random_states(5))


@pytest.mark.parametrize("format", ["pt2", "torchscript"])
def test_archives_that_unpack_to_more_are_refused(exported, tmp_path, format):
    sound = exported("mixing", format)
    path = tmp_path / sound.name
    with zipfile.ZipFile(sound) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as copy:
        for name in source.namelist():
            copy.writestr(name, bytes(32_000_000) if name.endswith("extra/rheidae") else source.read(name))
    with pytest.raises(ExportError, match=r"unpacks to 3.* MB from"):
        load_exported(path)


def test_name_and_content_have_to_agree(exported, residual, tmp_path):
    for format, name in (("torchscript", "x.onnx"), ("torchscript", "x.pt2"), ("onnx", "x.ts"), ("pt2", "x.pt")):
        shutil.copyfile(exported("mixing", format), tmp_path / name)
        with pytest.raises(ExportError, match=f"of format {format} has to end in .* not what its name says"):
            load_exported(tmp_path / name)
    with pytest.raises(ExportError, match=r"of format torchscript has to end in \.ts or \.pt or \.torchscript"):
        export_regressor(residual, tmp_path / "y.onnx", "torchscript")


def test_onnx_comes_without_the_words_of_its_optimizer(processed, tmp_path, python):
    model = {"architecture": "residual", "hidden_dim": 8, "hidden_layers": 1}
    config = config_for(processed, tmp_path, model=model, training={"epochs": 1})
    folder = train.train(config, PARMS, "quiet")
    arguments = ["--run", str(folder), "--out", str(tmp_path / "model.onnx")]
    done = subprocess.run([python, "-m", "rheidae.export", *arguments], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1


def test_command(processed, tmp_path, capsys):
    model = {"architecture": "residual", "hidden_dim": 8, "hidden_layers": 1}
    run = train.train(config_for(processed, tmp_path, model=model, training={"epochs": 2}), PARMS, "run")
    out = tmp_path / "models" / "model.onnx"
    arguments = ["--run", str(run), "--out", str(out)]
    assert command.main([*arguments, "--without-box3d"]) == 0
    assert "F_init (n, 24), F_box (n, 24) -> F_final (n, 24)" in capsys.readouterr().out
    assert command.main(arguments) == 0
    exported = load_exported(out)
    about = json.loads((run / "run.json").read_text())
    assert exported.metadata["training_range"] == about["training_range"]
    assert exported.metadata["run"]["data"] == "preprocessed_all.h5"
    assert exported.metadata["run"]["data_fingerprint"] == about["data_fingerprint"]
    assert exported.metadata["box3d"]["order"] == 23
    F = random_states(20, 4).reshape(-1, 24)
    expected = runs.load_run(run).regressor.predict(with_box3d(F))
    assert difference(F, exported.predict(F), expected) < 1e-6
    assert command.main([*arguments, "--box3d-order", "17"]) == 0
    assert load_exported(out).metadata["box3d"]["order"] == 17
    for wrong, message in (("4", "no Lebedev rule of order 4; the nearest are"), ("x", "invalid literal")):
        with pytest.raises(SystemExit, match="2"):
            command.main([*arguments, "--box3d-order", wrong])
        assert message in capsys.readouterr().err
    arguments[1] = str(tmp_path / "nowhere")
    assert command.main(arguments) == 2
    assert "not a finished run" in capsys.readouterr().err


NEEDED = ("model.yaml", "train_parms.yaml", "run.json", "rows.npz", "weights.safetensors")


def test_command_on_damaged_run_folders(processed, tmp_path, capsys):
    run = train.train(config_for(processed, tmp_path, training={"epochs": 1}), PARMS, "run")
    out = tmp_path / "model.onnx"
    for name in (*NEEDED, "history.json", "error_scale.safetensors"):
        for damage in ("missing", "cut") if name in NEEDED else ("cut",):
            copied = shutil.copytree(run, tmp_path / f"{damage}-{name}")
            content = (copied / name).read_bytes()
            (copied / name).unlink()
            if damage == "cut":
                (copied / name).write_bytes(content[:20])
            assert command.main(["--run", str(copied), "--out", str(out)]) == 2
            message = capsys.readouterr().err
            assert message.startswith("error: ")
            assert name in message
            assert not out.exists()


# --- C++, C and Fortran ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Folder with the program and the library."""
    folder = tmp_path_factory.mktemp("cpp")
    subprocess.run([*MAKE, f"BUILD={folder}"], check=True, capture_output=True)
    return folder


def predict(built, *arguments, text=None):
    command = [built / "predict", *map(str, arguments)]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


def as_text(table):
    return "\n".join(["# a comment", "", *(" ".join(map(repr, row)) for row in table.tolist())])


def numbers(text):
    return np.array([line.split() for line in text.splitlines()], dtype=np.float64)


def test_program(built, exported, mixing, residual, tmp_path):
    F = 1e33 * random_states(300, 12, alike=True).reshape(-1, 24)  # more than a block
    F = np.concatenate([F, sample_states()[::20], made_states()])
    (tmp_path / "input.txt").write_text(as_text(F))
    for name, regressor in (("mixing", mixing), ("residual", residual)):
        done = predict(built, exported(name, "onnx"), tmp_path / "input.txt")
        assert done.returncode == 0, done.stderr
        assert difference(F, numbers(done.stdout), regressor.predict(with_box3d(F))) < 1e-6


def test_program_says_what_is_wrong(built, exported, tmp_path):
    model = exported("mixing", "onnx")
    for arguments, text, message in (
        ([tmp_path / "no.onnx"], "", "no.onnx"),
        ([model, tmp_path / "no.txt"], "", "no.txt: cannot be opened"),
        ([model], "1 2 3", "line 1 has 3 numbers; expected 24"),
        ([model], "# table\n" + "1 " * 23 + "1x", "line 2: '1x' is not a number"),
        ([], "", "usage"),
    ):
        done = predict(built, *arguments, text=text)
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stdout == ""
    assert "us per cell in a batch of 2" in predict(built, "--time", 2, model, text=as_text(sample_states()[:2])).stdout


@pytest.fixture(scope="module")
def library(built):
    library = ctypes.CDLL(str(built / "librheidae.so"))
    table, model = ctypes.POINTER(ctypes.c_double), ctypes.c_void_p
    library.rheidae_create.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.POINTER(model)]
    library.rheidae_run.argtypes = [model, ctypes.c_size_t, table, table, table]
    library.rheidae_run_full.argtypes = [model, ctypes.c_size_t, *[table] * 7]
    for name, result in (
        ("needs_box3d", ctypes.c_int),
        ("is_full", ctypes.c_int),
        ("metadata", ctypes.c_char_p),
        ("destroy", None),
    ):
        getattr(library, f"rheidae_{name}").argtypes = [model]
        getattr(library, f"rheidae_{name}").restype = result
    library.rheidae_error.restype = ctypes.c_char_p
    return library


def pointer(table):
    return None if table is None else table.ctypes.data_as(ctypes.POINTER(ctypes.c_double))


def test_c_interface(library, exported, residual, tmp_path):
    path = tmp_path / "model.onnx"
    export_regressor(residual, path, "onnx", with_box3d=False)
    model = ctypes.c_void_p()
    assert library.rheidae_create(str(path).encode(), 1, ctypes.byref(model)) == 0
    assert library.rheidae_needs_box3d(model) == 1
    assert json.loads(library.rheidae_metadata(model)) == load_exported(path).metadata
    X = with_box3d(random_states(700, 13).reshape(-1, 24))
    init, box = (np.ascontiguousarray(table) for table in (X[:, :24], X[:, 24:]))
    expected = residual.predict(X)
    assert library.rheidae_run(model, 700, pointer(init), None, pointer(init.copy())) != 0
    assert b"F_box is null" in library.rheidae_error()
    in_place = init.copy()
    assert library.rheidae_run(model, 700, pointer(in_place), pointer(box), pointer(in_place)) == 0
    assert difference(init, in_place, expected) < 1e-6
    assert library.rheidae_run(model, 0, None, pointer(box), None) == 0

    answers = [np.empty_like(init) for _ in range(4)]

    def work(out):
        library.rheidae_run(model, 700, pointer(init), pointer(box), pointer(out))

    threads = [threading.Thread(target=work, args=(out,)) for out in answers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((out == in_place).all() for out in answers)
    library.rheidae_destroy(model)
    library.rheidae_destroy(None)


ANTINEUTRINOS, TAU_FIRST = [3, 4, 5, 0, 1, 2], [0, 2, 1, 3, 5, 4]


@pytest.fixture(scope="module")
def forms(opened, library, exported):
    """Files of every form as functions, one of them by the C interface."""
    model = ctypes.c_void_p()
    assert library.rheidae_create(str(exported("mixing", "onnx")).encode(), 1, ctypes.byref(model)) == 0

    def by_c(F):
        final = np.empty_like(F)
        assert library.rheidae_run(model, len(F), pointer(F), None, pointer(final)) == 0
        return final

    # With Box3D inside a file turns as Box3D does, whose nodes are at rest.
    yield [by_c, *(opened(*case) for case in CASES if case != ("residual", "onnx", True))]
    library.rheidae_destroy(model)


def asymmetry(form, seed, reflect=False, exponent=0.0):
    """How far a file is from turned, reflected and scaled states, antineutrinos for neutrinos, tau for mu."""
    F, rotation, unit = random_states(12, seed, 0.99), random_rotation(seed) * (-1 if reflect else 1), 10**exponent
    takes_box = "F_box" in getattr(form, "inputs", ())
    if not takes_box:
        F[:, [2, 5]] = F[:, [1, 4]]

    def images(F):
        return np.concatenate([F, turn(F, rotation), F[:, ANTINEUTRINOS], F[:, TAU_FIRST], unit * F])

    found = form(*(images(table) for table in ((F, box3d_flux(F)) if takes_box else (F,))))
    found[-12:] /= unit
    assert np.abs(found[:12] - F).max() > 1e-3
    expected = images(found[:12])
    expected[-12:] = found[:12]
    return difference(np.tile(F, (5, 1, 1)), found, expected)


@given(seed=st.integers(0, 10**6), reflect=st.booleans(), exponent=st.floats(-30, 40))
@settings(max_examples=6)
def test_symmetries_of_files(forms, seed, reflect, exponent):
    for form in forms:
        assert asymmetry(form, seed, reflect, exponent) < 1e-6


def test_scheme_files(library, tmp_path, capsys):
    path, F = tmp_path / "scheme.onnx", 1e33 * random_states(50, 33, alike=True).reshape(-1, 24)
    assert command.main(["--scheme", "asymptotic", "--order", "17", "--out", str(path)]) == 0
    assert "differs from the scheme by at most" in capsys.readouterr().out
    opened = load_exported(path)
    assert opened.metadata["scheme"] == {"name": "asymptotic", "lebedev_order": 17}
    assert opened.metadata["tolerance"]["reached"] < 1e-6
    assert max(asymmetry(opened, seed, seed > 2) for seed in range(5)) < 1e-6
    assert difference(F, opened.predict(F), mix(F, "asymptotic")) < 5e-3
    model, final = ctypes.c_void_p(), np.empty_like(F)
    assert library.rheidae_create(str(path).encode(), 1, ctypes.byref(model)) == 0
    assert library.rheidae_run(model, len(F), pointer(F), None, pointer(final)) == 0
    np.testing.assert_allclose(final, opened.predict(F), rtol=1e-12)
    library.rheidae_destroy(model)
    export_scheme("power", path, order=11)
    assert difference(F, load_exported(path).predict(F), mix(F, "power", order=11)) < 1e-10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pretrained", "--order", "17"], "--order is that of --scheme"),
        (["--scheme", "box3d", "--full"], "are for models"),
        (["--scheme", "none"], "invalid choice"),
    ],
)
def test_options_of_schemes(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main([*arguments, "--out", "x.onnx"])
    assert message in capsys.readouterr().err


def test_c_interface_refuses_other_files(library, tmp_path):
    model = ctypes.c_void_p(1)
    assert library.rheidae_create(str(tmp_path / "no.onnx").encode(), 1, ctypes.byref(model)) != 0
    assert model.value is None
    assert b"no.onnx" in library.rheidae_error()
    from onnx import TensorProto, helper, save

    tensors = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, ["n", 24]) for name in ("F_init", "F_final")]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["F_init"], ["F_final"])], "other", tensors[:1], tensors[1:]
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "other.onnx")
    assert library.rheidae_create(str(tmp_path / "other.onnx").encode(), 1, ctypes.byref(model)) != 0
    assert b"was not written by" in library.rheidae_error()


def test_header_is_plain_c():
    command = ["gcc", "-x", "c", "-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"]
    subprocess.run([*command, CPP / "rheidae.h"], check=True)


def test_relaxation_in_c(tmp_path):
    (tmp_path / "relax.c").write_text(
        '#include "relax.h"\n'
        "void relax(size_t n, double *F, const double *G, const double *rate, double dt)"
        "{ rheidae_relax(n, 24, F, G, rate, dt); }\n"
    )
    flags = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{CPP}", "-shared", "-fPIC", "-lm"]
    subprocess.run(["gcc", "relax.c", "-o", "relax.so", *flags], cwd=tmp_path, check=True)
    relax = ctypes.CDLL(str(tmp_path / "relax.so")).relax
    table = ctypes.POINTER(ctypes.c_double)
    relax.argtypes = [ctypes.c_size_t, table, table, table, ctypes.c_double]
    F, mixed = (1e33 * random_states(50, seed) for seed in (1, 2))
    rate = np.concatenate([[0.0, 1e-30, 1e30], np.geomspace(1e5, 1e12, 47)])
    for dt in (1e-8, np.inf):
        after = F.copy()
        relax(50, pointer(after), pointer(mixed), pointer(rate), dt)
        np.testing.assert_allclose(after, relaxation.relax(F, mixed, rate, dt), rtol=1e-13)
        np.testing.assert_array_equal(after[0], F[0])


FORTRAN = """
program main
  use rheidae
  implicit none
  type(c_ptr) :: model
  real(c_double) :: F(4, 6, 3), G(4, 6, 3), rate(3), crossing(3, 3), matrix(6, 6, 2, 3), deviation(4, 6, 3), outside(3)
  integer :: i
  character(1000) :: path
  call get_command_argument(1, path)
  if (rheidae_create(trim(path) // ".no" // c_null_char, 1_c_int, model) == 0) error stop 1
  if (index(rheidae_message(), ".no") == 0) error stop 2
  if (rheidae_create(trim(path) // c_null_char, 1_c_int, model) /= 0) error stop 3
  if (rheidae_needs_box3d(model) /= 0) error stop 4
  read *, F
  if (rheidae_run(model, 3_c_size_t, F, c_null_ptr, G) /= 0) error stop 5
  print '(24es25.16e3)', G
  call rheidae_destroy(model)
  call get_command_argument(2, path)
  if (rheidae_create(trim(path) // c_null_char, 1_c_int, model) /= 0) error stop 6
  if (rheidae_is_full(model) /= 1) error stop 7
  if (rheidae_run_full(model, 3_c_size_t, F, G, rate, crossing, matrix, deviation, outside) /= 0) error stop 8
  do i = 1, 3
    print '(125es25.16e3)', G(:, :, i), rate(i), crossing(:, i), matrix(:, :, :, i), deviation(:, :, i), outside(i)
  end do
  call rheidae_destroy(model)
end program
"""


@pytest.mark.skipif(shutil.which("gfortran") is None, reason="gfortran is not on the PATH")
def test_fortran(built, exported, full, tmp_path):
    (tmp_path / "main.f90").write_text(FORTRAN)
    command = ["gfortran", "-std=f2008", "-Wall", "-Wextra", "-Werror", CPP / "rheidae.f90", "main.f90", "-o", "main"]
    link = [f"-L{built}", "-lrheidae", "-lonnxruntime", f"-Wl,-rpath,{built}"]
    subprocess.run([*command, *link], cwd=tmp_path, check=True)
    F = sample_states()[:3]
    text = " ".join(map(repr, F.ravel().tolist()))
    path = exported("mixing", "onnx")
    done = subprocess.run([tmp_path / "main", path, full], input=text, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert difference(F, numbers("\n".join(lines[:3])), load_exported(path).predict(F)) < 1e-14
    everything = [table.reshape(3, -1) for table in load_exported(full).predict_all(F).values()]
    np.testing.assert_allclose(numbers("\n".join(lines[3:])), np.hstack(everything), rtol=1e-12)
