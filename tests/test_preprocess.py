import ast
import errno
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

import rheidae
from rheidae import box3d_flux, fourflux, load_dataset, mix
from rheidae.config import PreprocessConfig, RawFile
from rheidae.exceptions import ConfigError, DataError, OutputError
from rheidae.linear import growth_rate
from rheidae.mixing.asymptotic import crossings
from rheidae.predict.snapshot import Snapshot, read_layout
from rheidae.preprocess import pipeline, trainingset
from rheidae.preprocess.__main__ import main
from rheidae.scoring.splits import simulation_labels, three_dimensional_groups
from rheidae.system import commands, outputs, progress
from tests.rawfiles import INIT, NAMES, TRUE, config_for, read_all, spoil_many, write_raw
from tests.states import conservation_error, random_states


def run(config):
    return pipeline.preprocess(config)


def test_output_is_what_the_design_says(tmp_path):
    F = write_raw(tmp_path / "a.h5", 30)
    run(config_for(tmp_path, "a", lebedev_order=17, box3d_order=15, schemes=["box3d", "power"]))
    values, attributes = read_all(tmp_path / "out" / "a_preprocessed.h5")
    other = {"sim_id": "S", "dirname": "S", "has_crossing": "b"}
    for name, array in values.items():
        assert array.dtype == np.float32 or array.dtype.kind == other[name], name

    np.testing.assert_array_equal(values["has_crossing"], crossings(F).any(axis=1))
    np.testing.assert_allclose(values["growth_rate"], growth_rate(F, method="fast"), rtol=1e-6)
    box = box3d_flux(F, order=15)
    np.testing.assert_array_equal(values["F_power"], mix(F, "power", order=17).astype(np.float32))
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
    assert "regression" in json.loads(attributes["axes"])["growth_rate, growth_rate_simulated"]
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
        monkeypatch.setattr(pipeline, "CHUNK_ROWS", chunk)
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
    monkeypatch.setattr(pipeline, "CHUNK_ROWS", 6)
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
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


# --- axes, carried-along arrays, diagnostics, storage -------------------------------------------------------


def test_axes_that_the_shape_leaves_open_must_be_said(tmp_path):
    F = write_raw(tmp_path / "a.h5", 4)
    with pytest.raises(DataError, match=r"\(4, 4, 2, 3\), which can be read as .*\n  axes: \[row, component, nu_nubar"):
        run(config_for(tmp_path, "a"))
    for options in ({"axes": ["row", "component", "nu_nubar", "flavor"]}, {}):
        file = {"name": "a", "path": "a.h5"}
        if not options:
            file["axes"] = ["row", "component", "nu_nubar", "flavor"]
        run(config_for(tmp_path, file, **options))
        np.testing.assert_allclose(read_all(tmp_path / "out" / "a_preprocessed.h5")[0]["F_init"], F, rtol=1e-6)
    with pytest.raises(DataError, match=r"axes: \[flavor, nu_nubar, component, row\] does not fit"):
        run(config_for(tmp_path, "a", axes=["flavor", "nu_nubar", "component", "row"]))


AXES = ("component", "row", "nu_nubar", "flavor")


@pytest.mark.parametrize(
    "said", [", ".join(AXES), np.bytes_(", ".join(AXES)), ",".join(AXES), list(AXES), np.array(AXES, dtype="S")]
)
def test_axes_by_an_attribute(tmp_path, said):
    """As h5py, C and Fortran write texts; both by preprocessing and by prediction."""
    F = random_states(4)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name in (INIT, TRUE):
            file[name] = fourflux.to_emu(F).swapaxes(0, 1)
            file[name].attrs["axes"] = said
        np.testing.assert_array_equal(Snapshot(file, read_layout(None, file)).read((slice(0, 4),)), F)
    run(config_for(tmp_path, "a"))
    np.testing.assert_array_equal(read_all(tmp_path / "out" / "a_preprocessed.h5")[0]["F_init"], F.astype(np.float32))


@pytest.mark.parametrize("options", [{}, {"chunks": True}, {"chunks": True, "compression": "gzip"}])
@pytest.mark.parametrize("dtype", [">f8", "<f4", ">f4"])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 0, 3, 2)])
def test_every_order_and_number_format_gives_the_same(tmp_path, options, dtype, order):
    F = (random_states(50) * 1e33).astype(np.float32)
    raw = fourflux.to_emu(F).transpose(order)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name in (INIT, TRUE):
            file.create_dataset(name, data=raw, dtype=dtype, **options)
    run(config_for(tmp_path, "a", chunk_rows=16))
    np.testing.assert_array_equal(read_all(tmp_path / "out" / "a_preprocessed.h5")[0]["F_true"], F)


def test_schemes_to_store(tmp_path):
    F = write_raw(tmp_path / "a.h5")
    run(config_for(tmp_path, "a", schemes=["box3d", "power"]))
    full = read_all(tmp_path / "out" / "preprocessed_all.h5")[0]
    run(config_for(tmp_path, "a"))
    for name in ("a_preprocessed.h5", "preprocessed_all.h5"):
        values = read_all(tmp_path / "out" / name)[0]
        assert full.keys() - values.keys() == {"F_power"}
    np.testing.assert_array_equal(full["F_box"], values["F_box"])
    # In the combined file, too, each row has the answer to its own initial state.
    order = [int(name.removeprefix(b"run")) for name in full["dirname"]]
    np.testing.assert_array_equal(full["F_power"], mix(F, "power").astype(np.float32)[order])
    for schemes in (["power"], ["box3d", "box3d"]):
        with pytest.raises(ConfigError, match=r"schemes: must name box3d, .* and each scheme once"):
            config_for(tmp_path, "a", schemes=schemes)


def test_growth_rate_and_spread_are_carried_along_where_present(tmp_path):
    rate, spread = np.linspace(0, 1e10, 20), fourflux.to_emu(random_states(20, 7) * 1e30)
    write_raw(tmp_path / "a.h5", 20, **{"growthRate(1|s)": rate, "F4_final_stddev(1|ccm)": spread})
    write_raw(tmp_path / "b.h5", 10, 5)
    run(config_for(tmp_path, "a", "b", chunk_rows=8))
    values, _ = read_all(tmp_path / "out" / "a_preprocessed.h5")
    np.testing.assert_array_equal(values["growth_rate_simulated"], rate.astype(np.float32))
    np.testing.assert_array_equal(values["F_true_stddev"], fourflux.from_emu(spread).astype(np.float32))
    assert "growth_rate_simulated" not in read_all(tmp_path / "out" / "b_preprocessed.h5")[0]
    combined, _ = read_all(tmp_path / "out" / "preprocessed_all.h5")
    from_a = combined["sim_id"] == b"a"
    np.testing.assert_array_equal(
        np.sort(combined["growth_rate_simulated"][from_a]), np.sort(values["growth_rate_simulated"])
    )
    assert np.isnan(combined["growth_rate_simulated"][~from_a]).all()
    assert np.isnan(combined["F_true_stddev"][~from_a]).all()


def test_minimal_files_hold_what_training_needs(tmp_path, caplog):
    names = np.array([f"run{i // 2}_3d_" for i in range(30)], dtype="S")
    write_raw(tmp_path / "a.h5", 30, directorynames=names)
    run(config_for(tmp_path, "a"))
    full = read_all(tmp_path / "out" / "preprocessed_all.h5")[0]
    run(config_for(tmp_path, "a", diagnostics="minimal"))
    for name in ("a_preprocessed.h5", "preprocessed_all.h5"):
        minimal = read_all(tmp_path / "out" / name)[0]
        assert list(minimal) == ["dirname", "input", "sim_id", "target"]
    for name, values in minimal.items():
        np.testing.assert_array_equal(values, full[name])
    path = tmp_path / "out" / "preprocessed_all.h5"
    data = load_dataset(path)
    assert set(data.groups) == {"a"}
    assert len(set(simulation_labels(data))) == 15
    assert three_dimensional_groups(data) == ["a"]
    assert not caplog.records
    with h5py.File(path, "a") as file:  # as older ones are
        del file["dirname"]
    assert set(load_dataset(path).dirname) == {""}
    assert [record.message.split(";")[0] for record in caplog.records] == [f"{path}: no dataset 'dirname'"]


def test_compressed_and_chunked_files_hold_the_same_numbers(tmp_path):
    write_raw(tmp_path / "a.h5", 100)
    run(config_for(tmp_path, "a"))
    plain = {name: read_all(tmp_path / "out" / name)[0] for name in ("a_preprocessed.h5", "preprocessed_all.h5")}
    for options in ({"compression": "gzip", "compression_level": 4}, {"h5_chunk_rows": 7}):
        run(config_for(tmp_path, "a", chunk_rows=16, **options))
        for name, expected in plain.items():
            values, _ = read_all(tmp_path / "out" / name)
            for key in expected:
                np.testing.assert_array_equal(values[key], expected[key])
    with h5py.File(tmp_path / "out" / "preprocessed_all.h5") as file:
        assert file["input"].chunks == (7, 48)


def test_output_bytes_depend_neither_on_chunk_rows_nor_on_threads(tmp_path):
    write_raw(tmp_path / "a.h5", 300)
    outputs = []
    for options in ({}, {"chunk_rows": 17, "threads": 3}, {"chunk_rows": 1000, "threads": 1}):
        pipeline.preprocess(config_for(tmp_path, "a", **options), resume=False)
        outputs.append({path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()})
    assert outputs[0] == outputs[1] == outputs[2]


# --- bad rows ----------------------------------------------------------------------------------------------


def test_error_names_the_first_bad_row_and_counts_all(tmp_path):
    spoil_many(tmp_path)
    with pytest.raises(DataError, match=r"row 3, nu_tau: .*not finite") as error:
        run(config_for(tmp_path, "a", chunk_rows=10))
    assert "6 of 50 rows are bad: 1 not finite, 1 negative density, 1 |F| > N, 1 all zero" in str(error.value)


def test_drop_records_what_it_dropped(tmp_path, caplog):
    init, counts, bad = spoil_many(tmp_path)
    written = run(config_for(tmp_path, "a", on_bad_rows="drop", chunk_rows=10))
    assert [(entry.rows, entry.bad_rows) for entry in written] == [(44, counts), (44, {})]
    values, attributes = read_all(tmp_path / "out" / "a_preprocessed.h5")
    np.testing.assert_array_equal(values["F_init"], np.delete(init, bad, axis=0).astype(np.float32))
    assert json.loads(attributes["bad_rows"]) == counts
    for name in ("a_preprocessed.h5", "preprocessed_all.h5"):
        with h5py.File(tmp_path / "out" / name) as file:
            assert list(file["dropped_rows/a"]) == bad
    assert json.loads(read_all(tmp_path / "out" / "preprocessed_all.h5")[1]["bad_rows"]) == {"a": counts}
    assert "dropped (6 of 50 rows are bad: 1 not finite" in caplog.text
    again = run(config_for(tmp_path, "a", on_bad_rows="drop"))
    assert again[0].bad_rows == counts
    assert again[0].up_to_date


def test_drop_of_all_rows_is_an_error(tmp_path):
    zero = np.zeros((5, 4, 2, 3))
    write_raw(tmp_path / "a.h5", 5, **{INIT: zero, TRUE: zero})
    with pytest.raises(DataError, match=r"a\.h5: all 5 rows are bad"):
        run(config_for(tmp_path, "a", on_bad_rows="drop"))
    assert list((tmp_path / "out").iterdir()) == []


def test_clip_mends_what_is_slightly_off_and_nothing_else(tmp_path):
    F = random_states(20) * 1e33
    F[4, 1, :3] = [3e33, 0, 4e33]
    F[4, 1, 3] = 1e33
    F[9, 5] = [1e20, 0, 0, -1e24]
    raw = fourflux.to_emu(F)
    write_raw(tmp_path / "a.h5", 20, **{INIT: raw, TRUE: raw})
    (entry, _) = run(config_for(tmp_path, "a", on_bad_rows="clip"))
    assert entry.bad_rows == {"negative density": 1, "|F| > N": 1}
    values, _ = read_all(entry.path)
    np.testing.assert_allclose(values["F_init"][4, 1], [6e32, 0, 8e32, 1e33], rtol=1e-6)
    np.testing.assert_array_equal(values["F_true"][9, 5], 0)
    good = np.delete(np.arange(20), [4, 9])
    np.testing.assert_array_equal(values["F_init"][good], F[good].astype(np.float32))
    raw[13, 0, 0, 0] = np.nan
    write_raw(tmp_path / "a.h5", 20, **{INIT: raw, TRUE: raw})
    with pytest.raises(DataError, match=r"row 13, nu_e: .*not finite.*clip cannot mend this one"):
        run(config_for(tmp_path, "a", on_bad_rows="clip"))


# --- resuming, and other runs ------------------------------------------------------------------------------


def test_a_second_run_makes_only_what_is_out_of_date(tmp_path):
    write_raw(tmp_path / "a.h5", 20)
    write_raw(tmp_path / "b.h5", 20, 1)

    def made(resume=True, **options):
        written = pipeline.preprocess(config_for(tmp_path, "a", "b", **options), resume=resume)
        return [entry.name for entry in written if not entry.up_to_date]

    assert made() == ["a", "b", "all"]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert made() == made(chunk_rows=3) == []
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    assert made(resume=False) == ["a", "b", "all"]
    write_raw(tmp_path / "b.h5", 20, 2)
    assert made() == ["b", "all"]
    assert made(seed=3) == ["all"]
    assert made(seed=3, lebedev_order=17) == ["a", "b", "all"]
    (tmp_path / "out" / "preprocessed_all.h5").unlink()
    assert made(seed=3, lebedev_order=17) == ["all"]
    damaged = tmp_path / "out" / "a_preprocessed.h5"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    assert made(seed=3, lebedev_order=17) == ["a", "all"]


OTHERWISE = {
    "allow_external": True,
    "h5_paths": {"F_true": "other"},
    "axes": ["row", "component", "nu_nubar", "flavor"],
    "on_bad_rows": "clip",
    "tolerances": {"totals": 1e-6},
    "lebedev_order": 17,
    "box3d_order": 17,
    "box3d_crossing": "sharp",
    "box3d_mu_fraction": 0.5,
    "schemes": ["box3d", "power"],
    "output_filename": "other.h5",
    "shuffle": False,
    "seed": 1,
    "diagnostics": "minimal",
    "compression": "gzip",
    "compression_level": 9,
    "h5_chunk_rows": 4,
    "chunk_rows": 3,
    "threads": 1,
}
OF_A_FILE = {"sim_id": "other", "max_rows": 7, "output_name": "other", "axes": OTHERWISE["axes"]}


@pytest.mark.parametrize("key", [*OTHERWISE, *(f"files.{key}" for key in OF_A_FILE)])
def test_a_second_run_with_another_value_gives_what_a_first_run_gives(tmp_path, key):
    assert {*OTHERWISE, "data_root", "output_root", "files"} == set(PreprocessConfig.model_fields)
    assert {*OF_A_FILE, "name", "path", "enabled"} == set(RawFile.model_fields)
    F = random_states(20) * 1e33
    true = box3d_flux(F)
    true[4, 0, 3] *= 1.0001  # within the tolerance
    true[9, 1, :3] = 2 * true[9, 1, 3]  # to be dropped or clipped
    write_raw(tmp_path / "a.h5", 20, **{TRUE: fourflux.to_emu(true), "other": fourflux.to_emu(F)})
    options = {"on_bad_rows": "drop"} | ({"compression": "gzip"} if key == "compression_level" else {})
    file = {"name": "a", "path": "a.h5"}
    run(config_for(tmp_path, file, **options))
    if key.startswith("files."):
        file |= {key.removeprefix("files."): OF_A_FILE[key.removeprefix("files.")]}
    else:
        options |= {key: OTHERWISE[key]}
    again = run(config_for(tmp_path, file, **options))
    fresh = run(config_for(tmp_path, file, **options, output_root=str(tmp_path / "fresh")))
    for entry, wanted in zip(again, fresh, strict=True):
        assert entry.bad_rows == wanted.bad_rows
        assert described(entry.path) == described(wanted.path)


def described(path):
    """What a file holds, and how."""
    with h5py.File(path) as file:
        return {
            name: (held.shape, held.dtype, held.chunks, held.compression_opts, held[()].tobytes())
            for name, held in file.items()
            if isinstance(held, h5py.Dataset)
        }


def test_same_size_and_time_but_other_content_is_another_source(tmp_path):
    write_raw(tmp_path / "a.h5", 20)
    status = (tmp_path / "a.h5").stat()
    run(config_for(tmp_path, "a"))
    F = write_raw(tmp_path / "a.h5", 20, 1)
    os.utime(tmp_path / "a.h5", ns=(status.st_atime_ns, status.st_mtime_ns))
    run(config_for(tmp_path, "a"))
    np.testing.assert_allclose(read_all(tmp_path / "out" / "a_preprocessed.h5")[0]["F_init"], F, rtol=1e-6)


def test_what_is_up_to_date_is_said_with_its_bad_rows(tmp_path, capsys):
    spoil_many(tmp_path)
    config = config_for(tmp_path, "a", on_bad_rows="drop")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump()))
    said = []
    for _ in range(2):
        assert main(["--config", str(tmp_path / "config.yaml")]) == 0
        said.append(capsys.readouterr().out)
    out = tmp_path / "out"
    kinds = "1 not finite, 1 negative density, 1 |F| > N, 1 all zero, 1 out of range, 1 totals differ"
    assert said[0].splitlines() == [
        f"{'a':16s} {44:9d} rows  {out / 'a_preprocessed.h5'}, {kinds}",
        f"{'all':16s} {44:9d} rows  {out / 'preprocessed_all.h5'}",
    ]
    assert said[1] == re.sub(r"\.h5", ".h5, up to date", said[0])


def test_two_runs_in_one_folder(tmp_path):
    write_raw(tmp_path / "a.h5")
    with (
        outputs.only_writer(tmp_path / "out"),
        pytest.raises(OutputError, match=rf"out: another run is writing there \(process {os.getpid()} on "),
    ):
        run(config_for(tmp_path, "a"))
    run(config_for(tmp_path, "a"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a_preprocessed.h5", "preprocessed_all.h5"]


def test_the_output_folder_may_be_relative_and_a_link(tmp_path, monkeypatch):
    write_raw(tmp_path / "a.h5")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    monkeypatch.chdir(tmp_path)
    run(config_for(tmp_path, "a", output_root="link"))
    assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == [
        "a_preprocessed.h5", "preprocessed_all.h5",
    ]  # fmt: skip


def test_an_output_that_would_overwrite_an_input_is_refused(tmp_path):
    write_raw(tmp_path / "a_preprocessed.h5")
    with pytest.raises(DataError, match=r"a_preprocessed\.h5 is an input and would be an output"):
        run(config_for(tmp_path, {"name": "a", "path": "a_preprocessed.h5"}, output_root=str(tmp_path)))


def test_places_that_cannot_be_written(tmp_path):
    write_raw(tmp_path / "a.h5")
    (tmp_path / "file").write_text("")
    for root in ("file", "file/below"):
        with pytest.raises(OutputError, match=rf"{root}: cannot be written \(.*\); .* or choose another output_root"):
            run(config_for(tmp_path, "a", output_root=str(tmp_path / root)))
    (tmp_path / "out" / "preprocessed_all.h5").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"preprocessed_all\.h5 is a folder and would be an output"):
        run(config_for(tmp_path, "a"))


@pytest.mark.parametrize("name", ["", "..", "sub/a", "a\0b", "x" * 200])
def test_outputs_are_files_of_the_output_folder(tmp_path, name):
    with pytest.raises(ConfigError, match=r"output_filename: must be"):
        config_for(tmp_path, "a", output_filename=name)
    with pytest.raises(ConfigError, match=r"files\.0\.output_name: must be"):
        config_for(tmp_path, {"name": "a", "output_name": name})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_clean_up_and_tell_by_the_status(tmp_path, number):
    n = 50_000
    with h5py.File(tmp_path / "a.h5", "w") as file:
        raw = np.resize(fourflux.to_emu(random_states(50)), (n, 4, 2, 3))
        file[INIT], file[TRUE] = raw, raw
    config = config_for(tmp_path, "a", chunk_rows=50)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump()))
    command = [sys.executable, "-m", "rheidae.preprocess", "--config", str(tmp_path / "config.yaml")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not list((tmp_path / "out").glob(".a_preprocessed.h5.*.tmp")):
            time.sleep(0.01)
            assert process.poll() is None
        process.send_signal(number)
        message = process.communicate()[1]
    assert process.returncode == 128 + number
    assert "Traceback" not in message
    assert message.splitlines()[-1] == {signal.SIGTERM: "stopped by SIGTERM", signal.SIGINT: "interrupted"}[number]
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("options", [{}, {"diagnostics": "minimal"}, {"schemes": ["box3d", "power"]}])
def test_what_is_made_is_what_the_file_has_place_for(tmp_path, options):
    config = config_for(tmp_path, "a", **options)
    F = random_states(3)
    made, wanted = trainingset.evaluate(F, F, config), trainingset.example(config)
    assert list(made) == [name for name in wanted if name not in ("sim_id", "dirname")]
    for name, values in made.items():
        assert (values.dtype, values.shape[1:]) == (wanted[name].dtype, wanted[name].shape[1:])


def test_want_of_memory_is_said(tmp_path, monkeypatch, capsys):
    def too_much(block):
        return np.empty(1 << 56)

    write_raw(tmp_path / "a.h5")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config_for(tmp_path, "a").model_dump()))
    monkeypatch.setattr(pipeline, "_process_block", too_much)
    assert main(["--config", str(tmp_path / "config.yaml")]) == 2
    assert re.search(r"error: out of memory \(Unable to allocate 512\. PiB .*chunk_rows", capsys.readouterr().err)
    assert list((tmp_path / "out").iterdir()) == []


def test_compilation_is_said_and_counts_as_no_work(tmp_path, caplog, monkeypatch):
    write_raw(tmp_path / "a.h5", 300)
    caplog.set_level("INFO")
    evaluate, waits = pipeline.evaluate, iter([1.5])

    def compiled_when_first_called(*arguments):
        time.sleep(next(waits, 0.0))
        return evaluate(*arguments)

    monkeypatch.setattr(pipeline, "evaluate", compiled_when_first_called)
    monkeypatch.setattr(pipeline, "COMPILING_AFTER", 0.2)
    run(config_for(tmp_path, "a"))
    assert caplog.text.index("compiling kernels") < caplog.text.index("a: 300 rows")
    assert float(re.search(r"a: 300 rows .*, ([\d.]+) s", caplog.text)[1]) < 1.5
    assert float(re.search(r"mixing .* ([\d.]+) s", caplog.text)[1]) < 1.5
    caplog.clear()
    pipeline.preprocess(config_for(tmp_path, "a"), resume=False)
    assert "compiling" not in caplog.text


def test_report_and_progress(tmp_path, caplog, monkeypatch, capsys):
    write_raw(tmp_path / "a.h5", 300)
    caplog.set_level("INFO")
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    run(config_for(tmp_path, "a", chunk_rows=100))
    assert re.search(r"a: 100 of 300 rows, \d+ rows/s, \d+ s left", caplog.text)
    for stage in ("read", "mixing", "write", "sync", "scatter", "gather"):
        assert re.search(rf"{stage} +([\d.]+ [kMG]?B +)?[\d.]+ s", caplog.text)
    monkeypatch.setattr(commands, "on_terminal", lambda: True)
    pipeline.preprocess(config_for(tmp_path, "a", chunk_rows=100), resume=False)
    assert "row/s" in capsys.readouterr().err


# --- what is not the program's own doing -----------------------------------------------------------------------


def test_another_version_makes_everything_anew(tmp_path, monkeypatch):
    write_raw(tmp_path / "a.h5")
    run(config_for(tmp_path, "a"))
    monkeypatch.setattr(rheidae, "__version__", "999")
    assert [entry.up_to_date for entry in run(config_for(tmp_path, "a"))] == [False, False]
    assert read_all(tmp_path / "out" / "a_preprocessed.h5")[1]["rheidae_version"] == "999"


def delete_input(file):
    del file["input"]


def delete_what_the_combined_file_is_made_of(file):
    del file["F_init"]


def shorten(file):
    values = file["target"][:-1]
    del file["target"]
    file["target"] = values


def widen(file):
    values = file["input"][()].astype("f8")
    del file["input"]
    file["input"] = values


@pytest.mark.parametrize("damage", [delete_input, delete_what_the_combined_file_is_made_of, shorten, widen])
@pytest.mark.parametrize("name", ["a_preprocessed.h5", "preprocessed_all.h5"])
def test_an_output_that_lacks_something_is_made_anew(tmp_path, name, damage):
    write_raw(tmp_path / "a.h5")
    run(config_for(tmp_path, "a"))
    wanted = {path.name: read_all(path)[0] for path in (tmp_path / "out").iterdir()}
    with h5py.File(tmp_path / "out" / name, "a") as file:
        damage(file)
    run(config_for(tmp_path, "a"))
    for path in (tmp_path / "out").iterdir():
        values = read_all(path)[0]
        assert values.keys() == wanted[path.name].keys()
        for key in values:
            np.testing.assert_array_equal(values[key], wanted[path.name][key])


def test_what_others_add_to_an_output_stays_out_of_the_combined_file(tmp_path):
    write_raw(tmp_path / "a.h5")
    run(config_for(tmp_path, "a"))
    wanted = (tmp_path / "out" / "preprocessed_all.h5").read_bytes()
    with h5py.File(tmp_path / "out" / "a_preprocessed.h5", "a") as file:
        file["notes"], file["Ye"] = "mine", np.zeros(20)
    (tmp_path / "out" / "preprocessed_all.h5").unlink()
    run(config_for(tmp_path, "a"))
    assert (tmp_path / "out" / "preprocessed_all.h5").read_bytes() == wanted


@pytest.mark.parametrize("shuffle", [True, False])
def test_compressed_bytes_do_not_depend_on_the_blocks(tmp_path, shuffle):
    write_raw(tmp_path / "a.h5", 700)
    write_raw(tmp_path / "b.h5", 90)
    options = {"compression": "gzip", "h5_chunk_rows": 64, "shuffle": shuffle}
    written = []
    for rows in (7, 64, 129, None):
        pipeline.preprocess(config_for(tmp_path, "a", "b", **options, chunk_rows=rows), resume=False)
        written.append({path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()})
    assert all(files == written[0] for files in written)
    assert len(written[0]) == 3


def test_a_damaged_output_is_named_with_the_way_out(tmp_path):
    write_raw(tmp_path / "a.h5")
    config = config_for(tmp_path, "a", compression="gzip")
    run(config)
    with h5py.File(tmp_path / "out" / "a_preprocessed.h5", "a") as file:
        file["F_true"].id.write_direct_chunk((0, 0, 0), b"this is not what zlib writes")
    (tmp_path / "out" / "preprocessed_all.h5").unlink()
    with pytest.raises(DataError, match=r"a_preprocessed\.h5: dataset 'F_true', rows 0 to 19: .* with --force"):
        run(config)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a_preprocessed.h5"]
    pipeline.preprocess(config, resume=False)
    assert (tmp_path / "out" / "preprocessed_all.h5").exists()


def linked(file, part, name, shape):
    file[name] = h5py.ExternalLink(part.name, name)


def virtual(file, part, name, shape):
    layout = h5py.VirtualLayout(shape=shape, dtype="f8")
    layout[...] = h5py.VirtualSource(part.name, name, shape=shape)
    file.create_virtual_dataset(name, layout)


def link_to_virtual(file, part, name, shape):
    between = part.with_name("between.h5")
    with h5py.File(between, "a") as other:
        virtual(other, part, name, shape)
    linked(file, between, name, shape)


def external(file, part, name, shape):
    with h5py.File(part) as whole:
        place = whole[name].id.get_offset()
    file.create_dataset(name, shape=shape, dtype="f8", external=[(str(part), place, 8 * int(np.prod(shape)))])


@pytest.mark.parametrize("how", [linked, virtual, link_to_virtual, external])
def test_rows_that_lie_in_other_files(tmp_path, monkeypatch, how):
    """What these files hold counts as the source: a change there, also while it is read, does not go unnoticed."""
    part, whole = tmp_path / "part.h5", tmp_path / "a.h5"
    write_raw(part)
    with h5py.File(whole, "w") as file:
        for name in (INIT, TRUE):
            how(file, part, name, (20, 4, 2, 3))
    config = config_for(tmp_path, "a")
    run(config)
    assert all(entry.up_to_date for entry in run(config))
    F = write_raw(part, seed=1)
    run(config)
    np.testing.assert_allclose(read_all(tmp_path / "out" / "a_preprocessed.h5")[0]["F_init"], F, rtol=1e-6)
    older = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    work = pipeline._process_block

    def changed(block):
        os.utime(part, ns=(0, 0))
        return work(block)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "_process_block", changed)
        with pytest.raises(DataError, match=r"part\.h5: changed while it was read"):
            pipeline.preprocess(config, resume=False)
    with pytest.raises(DataError, match=r"part\.h5 is an input and would be an output"):
        run(config_for(tmp_path, "a", output_root=str(tmp_path), output_filename="part.h5"))
    part.unlink()
    with pytest.raises(DataError, match=r"a\.h5: .*F4_initial.*part\.h5.* not there; fetch that file too"):
        run(config)
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == older


@pytest.mark.parametrize("how", [linked, virtual, link_to_virtual, external])
def test_rows_outside_of_data_root_are_read_only_if_the_configuration_says_so(tmp_path, how):
    part, root = tmp_path / "part.h5", tmp_path / "root"
    root.mkdir()
    write_raw(part)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name in (INIT, TRUE):
            how(file, part, name, (20, 4, 2, 3))
    # A link among the files changes nothing about where they lie.
    for name in ("a.h5", "part.h5"):
        (root / name).symlink_to(tmp_path / name)
    if how is link_to_virtual:
        (root / "between.h5").symlink_to(tmp_path / "between.h5")
    config = {"data_root": str(root), "output_root": str(tmp_path / "out")}
    with pytest.raises(DataError, match=r"a\.h5: .*F4_initial.* outside of data_root; .*allow_external: true"):
        run(config_for(tmp_path, "a", **config))
    assert list((tmp_path / "out").iterdir()) == []
    run(config_for(tmp_path, "a", **config, allow_external=True))
    run(config_for(tmp_path, "a"))


def test_a_link_to_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    write_raw(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file[INIT]
        file[INIT] = h5py.ExternalLink("pipe", "/x")
    with pytest.raises(DataError, match=r"a\.h5: .* is a link to .*pipe, which is not a file"):
        run(config_for(tmp_path, "a"))


def test_virtual_rows_of_the_same_file_and_of_themselves(tmp_path):
    write_raw(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["rows"] = file[INIT][()]
        del file[INIT]
        virtual(file, tmp_path / "a.h5", "again", (20, 4, 2, 3))
        layout = h5py.VirtualLayout(shape=(20, 4, 2, 3), dtype="f8")
        layout[...] = h5py.VirtualSource(".", "rows", shape=(20, 4, 2, 3))
        file.create_virtual_dataset(INIT, layout)
    run(config_for(tmp_path, "a"))
    with pytest.raises(DataError, match=r"a\.h5: dataset 'again' takes its rows from itself"):
        run(config_for(tmp_path, "a", h5_paths={"F_init": "again"}))


@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_a_source_that_changes_while_it_is_read(tmp_path, monkeypatch, change):
    write_raw(tmp_path / "a.h5")

    def after(simulation, *arguments, **options):
        """Once the file was looked at, before or after its rows are read."""
        if change == "removed":
            (tmp_path / "a.h5").unlink()
        else:
            write_raw(tmp_path / "a.h5", seed=1)
        return original(simulation, *arguments, **options)

    for name in ("inspect", "_require_unchanged"):
        if change == "removed" and name == "inspect":
            continue
        with monkeypatch.context() as patch:
            original = getattr(pipeline, name)
            patch.setattr(pipeline, name, after)
            with pytest.raises(DataError, match=r"a\.h5: (changed|gone) while it was read.*; (wait until|fetch)"):
                run(config_for(tmp_path, "a"))
        assert list((tmp_path / "out").iterdir()) == []


def test_a_file_system_that_does_not_sync_folders(tmp_path, monkeypatch):
    write_raw(tmp_path / "a.h5")
    fsync = os.fsync

    def as_samba_does(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(outputs.os, "fsync", as_samba_does)
    run(config_for(tmp_path, "a"))
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_one_place_opens_hdf5_files():
    """One locking policy: see `rheidae.system.h5`."""
    package = Path(rheidae.__file__).parent
    openers = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("h5py.File", "File")
    }
    assert openers == {"system/h5.py"}
