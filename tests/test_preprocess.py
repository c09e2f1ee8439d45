import json
import subprocess
import sys

import h5py
import numpy as np
import pytest
import yaml

from rheidae import box3d, box3d_flux, fourflux, preprocess
from rheidae.config import PreprocessConfig, check_config
from rheidae.exceptions import DataError
from tests.states import conservation_error, random_states

INIT, TRUE, NAMES = "F4_initial(1|ccm)", "F4_final(1|ccm)", "directorynames"


def write_raw(path, n=20, seed=0, **replace):
    """A raw file as Emu writes it; `replace` overrides or (None) removes datasets."""
    F = random_states(n, seed) * 1e33
    content = {INIT: fourflux.to_emu(F), TRUE: fourflux.to_emu(box3d_flux(F)), NAMES: [f"run{i}" for i in range(n)]}
    content.update(replace)
    with h5py.File(path, "w") as file:
        for name, values in content.items():
            if values is not None:
                file[name] = values
    return F


def config_for(folder, *names, **options):
    files = [name if isinstance(name, dict) else {"name": name, "path": f"{name}.h5"} for name in names]
    data = {"data_root": str(folder), "output_root": str(folder / "out"), "files": files, **options}
    return check_config(data, PreprocessConfig)


def run(config):
    return preprocess.preprocess(config)


def read_all(path):
    with h5py.File(path) as file:
        return {name: values[()] for name, values in file.items()}, dict(file.attrs)


def test_output_is_what_the_design_says(tmp_path):
    F = write_raw(tmp_path / "a.h5", 30)
    run(config_for(tmp_path, "a", lebedev_order=17))
    values, attributes = read_all(tmp_path / "out" / "a_preprocessed.h5")
    other = {"sim_id": "S", "dirname": "S", "has_crossing": "b"}
    for name, array in values.items():
        assert array.dtype == np.float32 or array.dtype.kind == other[name], name
    result = box3d(F, order=17)
    np.testing.assert_array_equal(values["has_crossing"], result.has_crossing)
    np.testing.assert_allclose(values["growth_rate"], result.growth_rate, rtol=1e-6)
    box = box3d_flux(F, order=17)
    for name, expected in (("F_init", F), ("F_box", box), ("F_true", box3d_flux(F))):
        np.testing.assert_allclose(values[name], expected, rtol=1e-6, atol=1e24)
        np.testing.assert_array_equal(values[f"{name}_flat"], values[name].reshape(30, 24))
    np.testing.assert_array_equal(values["input"], np.hstack([values["F_init_flat"], values["F_box_flat"]]))
    np.testing.assert_array_equal(values["target"], values["F_true_flat"])
    np.testing.assert_allclose(values["residual"], values["F_true_flat"] - values["F_box_flat"], atol=1e27)
    np.testing.assert_array_equal(values["invariants"][:, ::2], values["F_init"][:, :, 3])
    np.testing.assert_allclose(values["invariants"][:, 1::2], np.linalg.norm(F[:, :, :3], axis=2), rtol=1e-6)
    assert set(values["sim_id"]) == {b"a"}
    assert list(values["dirname"][:2]) == [b"run0", b"run1"]
    assert attributes["units"] == "1/cm^3"
    assert list(attributes["species"]) == list(fourflux.SPECIES)
    assert json.loads(attributes["config"])["lebedev_order"] == 17
    assert json.loads(attributes["sources"]) == [str(tmp_path / "a.h5")]
    assert len(read_all(tmp_path / "out" / "preprocessed_all.h5")[0]["input"]) == 30


def test_box3d_on_real_data_conserves_and_is_better_than_no_change(processed):
    values, _ = read_all(processed / "preprocessed_all.h5")
    init, true, box = (values[name].astype(float) for name in ("F_init", "F_true", "F_box"))
    assert conservation_error(init, box) < 1e-6
    assert conservation_error(init, true) < 3e-6  # the simulations' own figure
    assert np.abs(true - box).mean() < 0.5 * np.abs(true - init).mean()


def test_shuffle_depends_on_the_seed_alone(tmp_path, monkeypatch):
    write_raw(tmp_path / "a.h5", 25, 1)
    write_raw(tmp_path / "b.h5", 15, 2)
    outputs = []
    for seed, chunk in ((5, 1 << 16), (5, 7), (6, 7)):
        monkeypatch.setattr(preprocess, "CHUNK_ROWS", chunk)
        run(config_for(tmp_path, "a", "b", seed=seed))
        outputs.append(read_all(tmp_path / "out" / "preprocessed_all.h5")[0])
    for name in outputs[0]:
        np.testing.assert_array_equal(outputs[0][name], outputs[1][name])
    assert (outputs[0]["input"] != outputs[2]["input"]).any()
    # all arrays move together, and no row is lost
    np.testing.assert_array_equal(outputs[2]["F_init_flat"], outputs[2]["input"][:, :24])
    plain = config_for(tmp_path, "a", "b", shuffle=False)
    run(plain)
    ordered = read_all(tmp_path / "out" / "preprocessed_all.h5")[0]
    assert list(ordered["sim_id"]) == [b"a"] * 25 + [b"b"] * 15
    np.testing.assert_array_equal(np.sort(ordered["input"][:, 3]), np.sort(outputs[2]["input"][:, 3]))


def test_max_rows_disabled_files_and_names(tmp_path):
    write_raw(tmp_path / "a.h5", 25)
    first = {"name": "a", "path": "a.h5", "max_rows": 4, "sim_id": "merger", "output_name": "first"}
    absent = {"name": "absent", "enabled": False}
    written = run(config_for(tmp_path, first, absent))
    assert [(entry.name, entry.rows) for entry in written] == [("a", 4), ("all", 4)]
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["first_preprocessed.h5", "preprocessed_all.h5"]
    assert set(read_all(written[0].path)[0]["sim_id"]) == {b"merger"}
    with pytest.raises(DataError, match="no file is enabled"):
        run(config_for(tmp_path, absent))


def test_flat_species_axis_single_precision_and_fixed_strings(tmp_path):
    F = (random_states(5) * 1e33).astype(np.float32)
    raw = fourflux.to_emu(F).reshape(5, 4, 6)
    write_raw(tmp_path / "a.h5", 5, **{INIT: raw, TRUE: raw, NAMES: np.array([b"x"] * 5)})
    run(config_for(tmp_path, "a"))
    np.testing.assert_array_equal(read_all(tmp_path / "out" / "a_preprocessed.h5")[0]["F_init"], F)


def test_missing_directory_names_stay_empty(tmp_path, caplog):
    write_raw(tmp_path / "a.h5", 5, **{NAMES: None})
    run(config_for(tmp_path, "a"))
    assert set(read_all(tmp_path / "out" / "a_preprocessed.h5")[0]["dirname"]) == {b""}
    assert "no dataset 'directorynames'" in caplog.text


def spoiled(index, value, n=20):
    raw = fourflux.to_emu(random_states(n) * 1e33)
    raw[index] = value
    return raw


BAD_FILES = {
    "missing dataset": ({TRUE: None}, [TRUE, "h5_paths.F_true", INIT]),
    "group instead of dataset": ({TRUE: None, f"{TRUE}/x": [1.0]}, [TRUE, "h5_paths.F_true"]),
    "wrong shape": ({INIT: np.ones((20, 3, 2, 3))}, [INIT, "(20, 3, 2, 3)", "(n, 4, 2, 3)"]),
    "wrong type": ({INIT: np.full((20, 4, 6), b"a")}, [INIT, "real numbers"]),
    "no rows": ({INIT: np.ones((0, 4, 2, 3)), TRUE: np.ones((0, 4, 2, 3))}, [INIT, "no rows", "disable"]),
    "row counts differ": ({TRUE: spoiled(0, 0, 19)}, ["20 rows", "19", TRUE]),
    "NaN": ({INIT: spoiled((7, 2, 0, 1), np.nan)}, [INIT, "row 7", "nu_mu", "not finite", "mend the row"]),
    "infinite": ({TRUE: spoiled((19, 3, 1, 2), np.inf)}, [TRUE, "row 19", "nubar_tau", "not finite"]),
    "negative density": ({TRUE: spoiled((3, 3, 1, 0), -1e30)}, [TRUE, "row 3", "nubar_e", "negative"]),
    "flux beyond light": ({INIT: spoiled((0, 0, 0, 0), 1e34)}, [INIT, "row 0", "nu_e", "exceeds N"]),
    "empty row": ({INIT: spoiled(11, 0.0)}, [INIT, "row 11", "total density 0"]),
    "beyond single precision": ({INIT: spoiled((4, 3), 1e38)}, [INIT, "row 4", "1e-30 to 1e38"]),
    "names of another length": ({NAMES: ["x"] * 3}, [NAMES, "(3,)", "h5_paths.dirnames"]),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_refused_with_file_dataset_row_and_remedy(tmp_path, monkeypatch, case):
    monkeypatch.setattr(preprocess, "CHUNK_ROWS", 6)
    replace, expected = BAD_FILES[case]
    write_raw(tmp_path / "good.h5")
    write_raw(tmp_path / "bad.h5", **replace)
    with pytest.raises(DataError) as error:
        run(config_for(tmp_path, "good", "bad"))
    for part in (str(tmp_path / "bad.h5"), *expected):
        assert part in str(error.value)
    # What was finished before the bad file came up is whole, and waits for the next run.
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names <= {"good_preprocessed.h5"}
    with pytest.raises(DataError):
        run(config_for(tmp_path, "bad", "good", output_root=str(tmp_path / "other")))
    assert list((tmp_path / "other").iterdir()) == []


def test_missing_truncated_and_foreign_files(tmp_path):
    with pytest.raises(DataError, match=r"a\.h5: no such file; check data_root and path"):
        run(config_for(tmp_path, "a"))
    write_raw(tmp_path / "a.h5", 200)
    whole = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "a.h5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a\.h5: cannot be opened as HDF5"):
        run(config_for(tmp_path, "a"))
    (tmp_path / "a.h5").write_text("not HDF5")
    with pytest.raises(DataError, match=r"a\.h5: cannot be opened as HDF5"):
        run(config_for(tmp_path, "a"))


def test_an_error_leaves_older_outputs_as_they_were(tmp_path):
    write_raw(tmp_path / "a.h5")
    run(config_for(tmp_path, "a"))
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    write_raw(tmp_path / "a.h5", **{INIT: spoiled((7, 2, 0, 1), np.nan)})
    with pytest.raises(DataError):
        run(config_for(tmp_path, "a"))
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def command(folder, name="a"):
    config = config_for(folder, name)
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump()))
    return subprocess.run(
        [sys.executable, "-m", "rheidae.preprocess", "--config", str(folder / "config.yaml")],
        capture_output=True,
        text=True,
    )


def test_command_succeeds_with_plain_lines_in_a_log(tmp_path):
    write_raw(tmp_path / "a.h5")
    done = command(tmp_path)
    assert done.returncode == 0
    assert "a: 20 rows" in done.stderr
    assert "\r" not in done.stderr
    assert str(tmp_path / "out" / "preprocessed_all.h5") in done.stdout


def test_command_fails_with_one_message_and_status_2(tmp_path):
    write_raw(tmp_path / "a.h5", **{TRUE: spoiled((3, 3, 1, 0), -1e30)})
    done = command(tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []
