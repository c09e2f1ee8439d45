"""Opening and reading HDF5 files that something is odd about."""

import os

import h5py
import numpy as np
import pytest

from rheidae.exceptions import DataError
from rheidae.system.h5 import dataset, open_h5, present, read

ZSTD = 32015


def test_a_folder_in_the_place_of_a_file_is_called_one(tmp_path):
    with pytest.raises(DataError, match="is a folder; name a file in it"), open_h5(tmp_path):
        pass
    with pytest.raises(DataError, match=r"absent\.h5: no such file; check the path"), open_h5(tmp_path / "absent.h5"):
        pass


def test_a_missing_filter_is_named(tmp_path):
    """As h5py reads what a program with the plugin has written: the file is sound."""
    assert not h5py.h5z.filter_avail(ZSTD)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_chunk((10,))
        creation.set_filter(ZSTD, h5py.h5z.FLAG_OPTIONAL, ())
        made = h5py.h5d.create(file.id, b"x", h5py.h5t.NATIVE_DOUBLE, h5py.h5s.create_simple((10,)), dcpl=creation)
        made.write_direct_chunk((0,), b"compressed")
    with open_h5(tmp_path / "a.h5") as file, pytest.raises(DataError, match=rf"{ZSTD}.*hdf5plugin"):
        read(dataset(file, "x"), 0, 10)


@pytest.mark.parametrize("swmr", [True, False])
def test_a_file_left_open_by_a_crashed_writer(tmp_path, swmr):
    with h5py.File(tmp_path / "a.h5", "w", libver="latest") as file:
        file["x"] = np.arange(3.0)
        if swmr:
            file.swmr_mode = True
        file.flush()
        (tmp_path / "b.h5").write_bytes((tmp_path / "a.h5").read_bytes())
    with (
        pytest.raises(DataError, match=r"b\.h5: is marked as open for writing; .*h5clear -s"),
        open_h5(tmp_path / "b.h5"),
    ):
        pass


def test_rows_that_were_never_written_are_not_read(tmp_path):
    """A file of 2 kB that declares 1e15 rows, or as many as fill the memory."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, rows in (("input", 10**15), ("target", 2 * 10**7)):
            file.create_dataset(name, shape=(rows, 48), dtype="f4", chunks=(1024, 48), compression="gzip")
        file.create_dataset("zeros", data=np.zeros((500_000, 48), "f4"), chunks=(10_000, 48), compression="gzip")
    with open_h5(tmp_path / "a.h5") as file:
        for name in ("input", "target"):
            with pytest.raises(DataError, match=rf"a\.h5: dataset '{name}' declares .* 0 bytes were written; fetch"):
                dataset(file, name)
        assert dataset(file, "zeros").shape == (500_000, 48)


def test_a_dataset_in_one_piece_that_was_never_written(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("input", (10**13, 48), "f4")
    with open_h5(tmp_path / "a.h5") as file, pytest.raises(DataError, match="0 bytes were written"):
        dataset(file, "input")


def test_links_to_pipes_down_a_chain(tmp_path):
    """HDF5 would wait for somebody to write into them."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["x"] = h5py.ExternalLink("pipe", "x")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["soft"], file["x"] = h5py.SoftLink("/x"), h5py.ExternalLink("c.h5", "x")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["linked"], file["group"] = h5py.ExternalLink("b.h5", "soft"), h5py.ExternalLink("pipe", "/")
        file["round"], file["soft"] = h5py.ExternalLink("a.h5", "round"), h5py.SoftLink("/group/x")
        rows = h5py.VirtualLayout((3,), "f8")
        rows[:] = h5py.VirtualSource(pipe, "x", (3,))
        file.create_virtual_dataset("virtual", rows)
        file.create_dataset("stored", (3,), "f8", external=[(str(pipe), 0, 24)])
    with open_h5(tmp_path / "a.h5") as file:
        for name in ("linked", "group/x", "soft", "virtual", "stored"):
            with pytest.raises(DataError, match="which is not a file"):
                dataset(file, name)
        for name in ("linked", "group/x", "soft"):
            with pytest.raises(DataError, match="which is not a file"):
                present(file, name)
        with pytest.raises(DataError, match="not there"):
            dataset(file, "round")


def test_a_file_that_changes_while_it_is_read(tmp_path):
    """HDF5 itself reads zeros beyond the new end."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.ones(100_000)

    def read_while_cut_short():
        with open_h5(path) as file:
            os.truncate(path, 4096)
            assert (file["x"][50_000:] == 0).all()

    with pytest.raises(DataError, match=r"a\.h5: was changed while it was read"):
        read_while_cut_short()
    with h5py.File(path, "w") as file:
        file["x"] = np.ones(3)
    with open_h5(path) as file:  # replaced, as writers do that rename: what is open stays
        (tmp_path / "b.h5").write_bytes(b"another")
        os.replace(tmp_path / "b.h5", path)
