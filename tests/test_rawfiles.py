"""Raw files that are not quite as Emu writes them today."""

import h5py
import numpy as np
import pytest

from rheidae import fourflux
from rheidae.config import RawFile, check_config
from rheidae.exceptions import DataError
from rheidae.preprocess import preprocess
from tests.rawfiles import INIT, NAMES, TRUE, config_for, read_all, write_raw

STABLE = np.arange(20) % 3 != 0


@pytest.mark.parametrize(
    "form", [STABLE, STABLE.astype(np.int32), STABLE.astype(float)[None]], ids=["bool", "int", "row"]
)
def test_stable_rows_stay_as_they_are_and_others_need_a_final_state(tmp_path, form):
    F = write_raw(tmp_path / "a.h5", **{TRUE: None, "stable": form})
    with pytest.raises(DataError, match=r"row 0: there is no final state, nor .* stable.*drop.*7 of 20 .* no final"):
        preprocess(config_for(tmp_path, "a"))
    written, _ = preprocess(config_for(tmp_path, "a", on_bad_rows="drop"))
    assert written.rows == STABLE.sum()
    assert written.bad_rows == {"no final state": 7}
    arrays, _ = read_all(written.path)
    np.testing.assert_array_equal(arrays["F_true"], arrays["F_init"])
    np.testing.assert_array_equal(arrays["F_init"], F[STABLE].astype(np.float32))


def test_all_rows_stable(tmp_path):
    write_raw(tmp_path / "a.h5", **{TRUE: None, "stable": np.ones(20, dtype=bool)})
    assert preprocess(config_for(tmp_path, "a"))[0].rows == 20


def test_final_states_count_where_there_are_some(tmp_path):
    write_raw(tmp_path / "a.h5", stable=np.zeros(20, dtype=bool))
    assert preprocess(config_for(tmp_path, "a"))[0].rows == 20


@pytest.mark.parametrize("joined", [False, True])
def test_a_leading_axis_of_length_one(tmp_path, joined):
    F = write_raw(tmp_path / "a.h5")
    expected, _ = read_all(preprocess(config_for(tmp_path, "a"))[0].path)
    emu = fourflux.to_emu(F)
    with h5py.File(tmp_path / "a.h5") as file:
        final = file[TRUE][()]
    shape = (1, 20, 4, 6) if joined else (1, 20, 4, 2, 3)
    write_raw(tmp_path / "b.h5", **{INIT: emu.reshape(shape), TRUE: final.reshape(shape), NAMES: None})
    arrays, _ = read_all(preprocess(config_for(tmp_path, "b"))[0].path)
    for name in ("F_init", "F_true", "F_box"):
        np.testing.assert_array_equal(arrays[name], expected[name])


def test_older_names(tmp_path):
    F = write_raw(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        for name in (INIT, TRUE):
            file[name.replace("(1|ccm)", "_Nsum1")] = file[name][()] / 1e33
            del file[name]
    arrays, _ = read_all(preprocess(config_for(tmp_path, "a"))[0].path)
    np.testing.assert_allclose(arrays["F_init"], F / 1e33, rtol=1e-6)


@pytest.mark.parametrize("shape", [(20, 4, 2, 2), (20, 4, 4)])
def test_two_flavors_are_named(tmp_path, shape):
    write_raw(tmp_path / "a.h5", **{INIT: np.ones(shape)})
    with pytest.raises(DataError, match=r"two flavors \(nf = 2\)"):
        preprocess(config_for(tmp_path, "a"))


@pytest.mark.parametrize(
    ("name", "label"), [("3.5ms", "3.5ms"), ("run.v2.h5", "run.v2"), ("folder/run.hdf5", "run"), ("plain", "plain")]
)
def test_names_with_dots_are_not_cut(name, label):
    file = check_config({"name": name}, RawFile)
    assert (file.sim_id, file.output_name, file.path) == (label, label, name)
