"""Raw simulation files, good and bad, and configurations that preprocess them."""

import h5py
import numpy as np

from rheidae import box3d_flux, fourflux
from rheidae.config import PreprocessConfig, check_config
from tests.states import random_states

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


def read_all(path):
    with h5py.File(path) as file:
        arrays = {name: values[()] for name, values in file.items() if isinstance(values, h5py.Dataset)}
        return arrays, dict(file.attrs)


def spoil_many(folder, n=50):
    """a.h5 with one row of each kind, and their numbers."""
    init = random_states(n) * 1e33
    true = init.copy()
    init[3, 2, 1] = np.nan
    true[7, 0, 3] = -1e33
    init[11, 4, :3] = init[11, 4, 3]
    true[11] = init[11]
    init[20] = true[20] = 0
    init[21, :, 3] = true[21, :, 3] = 1e-40
    init[21, :, :3] = true[21, :, :3] = 0
    true[30, :3, 3] *= 1.01
    write_raw(folder / "a.h5", n, **{INIT: fourflux.to_emu(init), TRUE: fourflux.to_emu(true), NAMES: None})
    counts = {
        "not finite": 1,
        "negative density": 1,
        "|F| > N": 1,
        "all zero": 1,
        "out of range": 1,
        "totals differ": 1,
    }
    return init, counts, [3, 7, 11, 20, 21, 30]
