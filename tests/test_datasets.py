import os
import resource
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import h5py
import numpy as np
import pytest

from rheidae import load_dataset, mix
from rheidae.config import PreprocessConfig, check_config
from rheidae.datasets import EMU, PROTOTYPE, SETTLED, write_sample
from rheidae.exceptions import DataError
from rheidae.preprocess import preprocess
from rheidae.system import memory


def test_sample_is_written_as_shipped(tmp_path):
    written = write_sample(tmp_path / "new" / "folder")
    assert [path.name for path in written] == [*SETTLED, *PROTOTYPE, *EMU, "README.md"]
    for path in written:
        assert path.read_bytes() == (resources.files("rheidae.datasets") / "data" / path.name).read_bytes()
    rows = {path.name: h5py.File(path)["F4_initial(1|ccm)"].shape for path in written if path.suffix == ".h5"}
    assert rows["emu_random.h5"] == (211, 4, 2, 3)


def test_sample_command(tmp_path):
    done = subprocess.run([sys.executable, "-m", "rheidae.datasets", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*SETTLED, *PROTOTYPE, *EMU, "README.md"])


def test_bunch(data):
    assert data.data.shape == (576, 48)
    assert data.target.shape == (576, 24)
    assert data.data.dtype == data.target.dtype == np.float32
    assert {name: int((data.groups == name).sum()) for name in set(data.groups)} == {
        "random": 211, "nsm_a": 152, "nsm_b": 181, "three_d": 32,
    }  # fmt: skip
    assert len(data.feature_names) == 48
    assert data.feature_names[3] == "F_init_nu_e_t"
    assert data.feature_names[24] == "F_box_nu_e_x"
    assert data.target_names[23] == "F_true_nubar_tau_t"
    assert len(set(data.dirname)) == 576
    assert "nsm_a: 152 rows" in data.DESCR


def test_scale_and_bare_arrays(processed, data):
    path = processed / "preprocessed_all.h5"
    X, y = load_dataset(path, target_scale=1.0, return_X_y=True)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(X, file["input"][()])
        np.testing.assert_array_equal(y, file["target"][()])
    np.testing.assert_allclose(data.data, X.astype(float) * 1e-33, rtol=1e-6)
    np.testing.assert_allclose(data.target, y.astype(float) * 1e-33, rtol=1e-6)


def write(path, n, reverse=False, layout=None, **replace):
    rng = np.random.default_rng(n)
    content = {
        "input": rng.normal(size=(n, 48)), "target": rng.normal(size=(n, 24)), "F_init": rng.normal(size=(n, 6, 4)),
        "sim_id": [f"s{i % 2}" for i in range(n)], "dirname": ["d"] * n, **replace,
    }  # fmt: skip
    with h5py.File(path, "w") as file:
        if layout:
            file.attrs["layout"] = layout
        for name, values in content.items():
            if values is not None:
                values = np.asarray(values)
                values = values.T if reverse else values
                file[name] = values.astype(h5py.string_dtype()) if values.dtype.kind == "U" else values
    return content


def test_every_scheme_that_the_file_holds(sample, tmp_path):
    file = {"name": "nsm_a", "path": "emu_nsm_a.h5"}
    config = {"data_root": str(sample), "output_root": str(tmp_path), "files": [file]}
    for schemes in (["box3d"], ["box3d", "power"]):
        preprocess(check_config({**config, "schemes": schemes}, PreprocessConfig))
        bunch = load_dataset(tmp_path / "preprocessed_all.h5")
        assert ("F_power" in bunch) == ("power" in schemes)
    F_init = bunch.data[:, :24].reshape(-1, 6, 4)
    assert bunch.F_power.dtype == np.float32
    np.testing.assert_allclose(bunch.F_power, mix(F_init.astype(float), "power"), rtol=1e-4, atol=1e-5 * F_init.max())


@pytest.mark.parametrize("n", [1, 7, 24, 48])
def test_reversed_axes_as_julia_writes_them(tmp_path, n):
    content = write(tmp_path / "a.h5", n, F_power=np.random.default_rng(1).normal(size=(n, 6, 4)))
    write(tmp_path / "b.h5", n, reverse=True, F_power=content["F_power"])
    one, other = load_dataset(tmp_path / "a.h5", 2.0), load_dataset(tmp_path / "b.h5", 2.0)
    for loaded in (one, other):
        np.testing.assert_allclose(loaded.data, 2 * content["input"], rtol=1e-6)
        np.testing.assert_allclose(loaded.target, 2 * content["target"], rtol=1e-6)
        np.testing.assert_allclose(loaded.F_power, 2 * content["F_power"], rtol=1e-6)
        assert list(loaded.groups) == content["sim_id"]


def test_growth_rate_and_crossing(processed, data, tmp_path):
    with h5py.File(processed / "preprocessed_all.h5") as file:
        np.testing.assert_array_equal(data.growth_rate, file["growth_rate"][()])  # 1/s, whatever target_scale
        np.testing.assert_array_equal(data.has_crossing, file["has_crossing"][()])
    assert data.has_crossing.dtype == np.bool_
    write(tmp_path / "a.h5", 3)
    assert "growth_rate" not in load_dataset(tmp_path / "a.h5")


def test_numbers_as_sim_id(tmp_path):
    write(tmp_path / "a.h5", 3, sim_id=[3, 3, 7])
    assert list(load_dataset(tmp_path / "a.h5").groups) == ["3", "3", "7"]


@pytest.mark.parametrize("fixed", [True, False])
def test_names_that_are_not_utf_8_come_through(sample, tmp_path, fixed):
    name = b"run-\xff\xfe"
    shutil.copy(sample / "emu_three_d.h5", tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        rows = len(file["directorynames"])
        del file["directorynames"]
        kind = f"S{len(name)}" if fixed else h5py.string_dtype()
        file.create_dataset("directorynames", data=[name] * rows, dtype=kind)
    config = {"data_root": str(tmp_path), "output_root": str(tmp_path / "out"), "files": [{"name": "a.h5"}]}
    preprocess(check_config(config, PreprocessConfig))
    bunch = load_dataset(tmp_path / "out" / "preprocessed_all.h5")
    assert {os.fsencode(each) for each in bunch.dirname} == {name}


def test_48_rows_without_another_clue_are_refused_unless_the_file_says(tmp_path):
    write(tmp_path / "a.h5", 48, F_init=None)
    with pytest.raises(DataError, match=r"'input' has shape \(48, 48\)"):
        load_dataset(tmp_path / "a.h5")
    content = write(tmp_path / "b.h5", 48, F_init=None, layout="row-major")
    np.testing.assert_allclose(load_dataset(tmp_path / "b.h5", 1.0).data, content["input"], rtol=1e-6)


@pytest.mark.parametrize(
    ("replace", "message"),
    [
        ({"target": None}, "no dataset 'target'.*python -m rheidae.preprocess"),
        ({"input": np.ones((5, 47))}, r"'input' has shape \(5, 47\)"),
        ({"target": np.ones((5, 23))}, r"'target' has shape \(5, 23\)"),
        ({"target": np.ones((4, 24))}, "'input' has 5 rows, 'target' 4"),
        ({"input": np.where(np.arange(5)[:, None] == 3, np.nan, np.ones((5, 48)))}, "'input', row 3: a number is not"),
        ({"input": np.where(np.arange(5)[:, None] == 2, 1e39, np.ones((5, 48)))}, "'input', row 2: .*smaller target_"),
        ({"F_power": np.ones((4, 6, 4))}, "'input' has 5 rows, 'F_power' 4"),
        ({"F_power": np.ones((5, 24))}, r"'F_power' has shape \(5, 24\).*expected real numbers \(n, 6, 4\)"),
        ({"sim_id": ["a"] * 4}, r"'sim_id' has shape \(4,\)"),
    ],
)
def test_bad_files(tmp_path, replace, message):
    write(tmp_path / "a.h5", 5, **replace)
    with pytest.raises(DataError, match=message):
        load_dataset(tmp_path / "a.h5", target_scale=1.0)


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"no such file; make it with: python -m rheidae\.preprocess"):
        load_dataset(tmp_path / "absent.h5")


def test_more_rows_than_memory_are_refused_before_they_are_read(processed, monkeypatch):
    path = processed / "preprocessed_all.h5"
    monkeypatch.setattr(memory, "free_memory", lambda: 1000.0)
    with pytest.raises(DataError, match=r"dataset 'input' takes .* of memory, and 1 kB are free; take fewer rows"):
        load_dataset(path)


def test_free_memory_knows_the_limit_of_the_process():
    before, free = resource.getrlimit(resource.RLIMIT_AS), memory.free_memory()
    assert free > 0
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 28), before[1]))
    try:
        assert memory.free_memory() < min(free, 1 << 29)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize(
    ("own", "folder", "files"),
    [
        ("0::/slurm/job_7/task_0", "slurm/job_7", ("memory.max", "memory.current", "inactive_file")),
        ("0::/host/docker/1f", "", ("memory.max", "memory.current", "inactive_file")),
        (
            "5:memory:/slurm/job_7", "memory/slurm/job_7",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ],
)  # fmt: skip
def test_free_memory_knows_the_limit_of_a_batch_job(tmp_path, monkeypatch, own, folder, files):
    """Of a group, or one around it, in both versions of control groups; a container does not see its host's."""
    (tmp_path / "own").write_text(f"3:cpuset:/\n{own}\n")
    group = tmp_path / folder
    (group / "task_0").mkdir(parents=True)
    limit, use, cache = files
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)
    monkeypatch.setattr(memory, "_OWN_GROUPS", tmp_path / "own")
    without = memory.free_memory()
    (group / limit).write_text("8000000\n")
    (group / use).write_text("7000000\n")
    (group / "memory.stat").write_text(f"cache 1\n{cache} 500000\n")
    assert memory.free_memory() == 1_500_000 < without
    (group / limit).write_text("max\n")
    assert memory.free_memory() > 1_500_000
