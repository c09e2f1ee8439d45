from importlib import resources

import h5py
import numpy as np
import pytest
import yaml
from matplotlib import image

from rheidae import FluxRegressor, fourflux, mix, moments, pretrained
from rheidae.__main__ import main
from rheidae.datasets import write_sample
from rheidae.estimator.networks import ResidualFFIModel
from rheidae.exceptions import ConfigError, DataError, ExportError
from rheidae.export import export_regressor
from rheidae.export.endings import ENDINGS, SUFFIXES
from rheidae.linear import growth_rate
from rheidae.mixing.asymptotic import crossings
from rheidae.mixing.physical import keep_physical
from rheidae.mixing.schemes import SCHEMES
from rheidae.mixing.transition import transition_matrix
from rheidae.predict.snapshot import Snapshot, read_layout
from rheidae.predict.stream import FLAGS, predict_file
from tests.killing import complete, contents, count, killed_at
from tests.states import random_states

GRID = (5, 4, 3)
SHIPPED = str(resources.files("rheidae.pretrained") / "model" / "model.onnx")


def three_species(seed=0):
    """A grid of three species with vacuum and cells that are not physical; and their four-fluxes of six."""
    F = random_states(60, seed).reshape(*GRID, 6, 4)
    F[..., 1:3, :] = F[..., [1], :]
    F[..., 4:6, :] = F[..., [1], :]
    density, flux = moments.from_six(F)
    density[:, 0, 0, 0], flux[:, :, 0, 0, 0] = 0, 0
    flux[1, 2, 1, 2, 0] = np.nan
    density[0, 3, 1, 1] = -1
    return density, flux, moments.to_six(density, flux)


def write_snapshot(path, density, flux, dtype=np.float64):
    with h5py.File(path, "w") as file:
        for name, n, f in zip("eax", density, flux, strict=True):
            file[f"n_{name}"], file[f"fn_{name}"] = n.astype(dtype), f.astype(dtype)
    return path


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("cells", [1, 5, 7, 1000])
def test_snapshots_of_three_species(tmp_path, scheme, cells):
    density, flux, six = three_species()
    data = write_snapshot(tmp_path / "data.h5", density, flux)
    done = predict_file(scheme, data, tmp_path / "out.h5", block_cells=cells, threads=1)
    expected = mix(six, scheme, invalid="pass")
    rows = expected.reshape(-1, 6, 4)
    good = np.isfinite(rows).all(axis=(1, 2))
    start, end = six.reshape(-1, 6, 4)[good], rows[good]
    keep_physical(start, end)
    rows[good] = end
    mixed = moments.from_six(expected)
    rate = growth_rate(start, method="fast")
    assert done.cells == 60
    assert done.flags["vacuum"] == 1
    assert done.flags["not physical"] == 2
    with h5py.File(tmp_path / "out.h5") as file:
        for index, name in enumerate("eax"):
            np.testing.assert_allclose(file[f"mixed/n_{name}"][()], mixed.density[index], rtol=1e-13, atol=1e-15)
            np.testing.assert_allclose(file[f"mixed/fn_{name}"][()], mixed.flux[index], rtol=1e-13, atol=1e-14)
            change = file[f"mixed/n_{name}"][()] - density[index]
            np.testing.assert_allclose(file[f"change/n_{name}"][()], change, rtol=0, atol=1e-14)
        flag = file["flag"][()]
        assert flag[0, 0, 0] == FLAGS["vacuum"]
        assert flag[1, 2, 0] == flag[3, 1, 1] == FLAGS["not physical"]
        np.testing.assert_allclose(file["growth_rate"][()].ravel()[good], rate, rtol=1e-6)
        np.testing.assert_array_equal(file["has_crossing"][()].reshape(-1, 3)[good], crossings(start))
        assert np.isnan(file["growth_rate"][1, 2, 0])
        assert "std" not in file


@pytest.mark.parametrize("scheme", ["box3d", "power"])
def test_matrices_are_those_of_what_was_written(tmp_path, scheme):
    # Unlike mu and tau: half of the change empties one of them.
    F = random_states(60, 5)
    F[:, 1] *= 1e-3
    data = tmp_path / "data.h5"
    with h5py.File(data, "w") as file:
        file["F_init"] = F
    done = predict_file(scheme, data, tmp_path / "out.h5", full=True)
    assert done.flags["shortened to stay physical"] > 20
    with h5py.File(tmp_path / "out.h5") as file:
        mixed, matrices = file["mixed/F"][..., 3], file["transition"][:, 0]
    assert np.abs(np.einsum("nab,nb->na", matrices, F[..., 3]) - mixed).max() < 2e-3
    assert np.abs(mixed - F[..., 3]).max() > 0.1


def test_rows_that_were_shortened_are_flagged(tmp_path):
    # Unlike mu and tau: half of the change empties one of them.
    F = random_states(400)
    F[:, 1] *= 1e-3
    data = tmp_path / "data.h5"
    with h5py.File(data, "w") as file:
        file["F_init"] = F
    done = predict_file("box3d", data, tmp_path / "out.h5")
    raw = mix(F, "box3d")
    kept = raw.copy()
    keep_physical(F, kept)
    shortened = (raw != kept).any(axis=(1, 2))
    assert done.flags["shortened to stay physical"] == shortened.sum() > 0
    with h5py.File(tmp_path / "out.h5") as file:
        np.testing.assert_array_equal(file["flag"][()] == FLAGS["shortened to stay physical"], shortened)
        np.testing.assert_array_equal(file["mixed/F"][()], kept)


def test_exported_models(tmp_path):
    density, flux, six = three_species(1)
    data = write_snapshot(tmp_path / "data.h5", density, flux)
    predict_file(SHIPPED, data, tmp_path / "out.h5", block_cells=7)
    expected = moments.from_six(pretrained().predict(six, invalid="pass"))
    with h5py.File(tmp_path / "out.h5") as file:
        np.testing.assert_allclose(file["mixed/n_e"][()], expected.density[0], rtol=0, atol=1e-6)
    for name in ("absent", str(tmp_path / "model.onnx")):
        assert main(["predict", "--model", name, "--data", str(data), "--out", str(tmp_path / "no.h5")]) == 2
        assert not (tmp_path / "no.h5").exists()


def test_every_ending_of_an_export_is_known(tmp_path):
    F = random_states(60, alike=True)
    data = tmp_path / "data.h5"
    with h5py.File(data, "w") as file:
        file["F_init"] = F
    model = FluxRegressor(ResidualFFIModel, module__hidden_dim=4, max_epochs=1, random_state=0).fit(F, mix(F))
    export_regressor(model, tmp_path / "model.ts", "torchscript", box3d_order=7)
    for ending in SUFFIXES["torchscript"]:
        (tmp_path / f"copy{ending}").write_bytes((tmp_path / "model.ts").read_bytes())
        predict_file(tmp_path / f"copy{ending}", data, tmp_path / "out.h5")
        with h5py.File(tmp_path / "out.h5") as file:
            assert np.abs(file["mixed/F"][()] - model.predict(F)).max() < 0.05
    for ending in ENDINGS:
        with pytest.raises(ExportError, match="no such file"):
            predict_file(tmp_path / f"absent{ending}", data, tmp_path / "out.h5")


def test_everything_that_a_network_says(tmp_path):
    density, flux, six = three_species(3)
    data = write_snapshot(tmp_path / "data.h5", density, flux)
    model = pretrained()
    done = predict_file("pretrained", data, tmp_path / "out.h5", full=True, block_cells=17, threads=2)
    mixed, std = model.predict(six, return_std=True, invalid="pass")
    outside = model.outside(six, invalid="pass") & (mixed != six).any(axis=(3, 4))
    assert outside.shape == GRID
    assert done.flags["outside the training domain"] == outside.sum() > 0
    with h5py.File(tmp_path / "out.h5") as file:
        flag, matrices = file["flag"][()], file["transition"][()]
        found = np.array([file[f"std/n_{name}"][()] for name in "eax"])
        after = np.array([file[f"mixed/n_{name}"][()] for name in "eax"])
    np.testing.assert_array_equal(flag & FLAGS["outside the training domain"] > 0, outside & np.isfinite(after[0]))
    np.testing.assert_allclose(found, moments.from_six(std).density, rtol=1e-5, atol=1e-12)
    assert matrices.shape == (*GRID, 2, 3, 3)
    by_matrix = np.einsum("xyzab,bxyz->axyz", matrices[..., 0, :, :], density)
    np.testing.assert_array_equal(np.isnan(by_matrix), np.isnan(after))
    assert np.nanmax(np.abs(by_matrix - after)) < 2e-3 * np.nanmax(density.sum(axis=0))
    assert np.nanmax(np.abs(after - density)) > 0.01
    # A scheme has the matrices of its own, and was not trained.
    done = predict_file("box3d", data, tmp_path / "out.h5", full=True)
    assert done.flags["outside the training domain"] == 0
    with h5py.File(tmp_path / "out.h5") as file:
        cell = six[2, 2, 2]
        expected = np.stack(transition_matrix(cell, "box3d", species=3))
        np.testing.assert_allclose(file["transition"][2, 2, 2], expected, rtol=1e-6)
    with pytest.raises(ConfigError, match="--full"):
        predict_file(SHIPPED, data, tmp_path / "out.h5", full=True)


@pytest.mark.parametrize("kind", ["grid", "rows"])
def test_slices_are_drawn(tmp_path, kind):
    density, flux, six = three_species(4)
    data = tmp_path / "data.h5"
    if kind == "grid":
        write_snapshot(data, density, flux)
    else:
        with h5py.File(data, "w") as file:
            file["F_init"] = six.reshape(-1, 6, 4)
    picture = tmp_path / "out.png"
    arguments = ["predict", "--model", "box3d", "--data", str(data), "--out", str(tmp_path / "out.h5"), "--plot"]
    assert main([*arguments, str(picture)]) == 0
    pixels = image.imread(picture)
    assert pixels.shape[:2] == (900, 1950)
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 50
    assert main([*arguments, str(data)]) == 2


def test_sigkill_leaves_the_old_file_or_the_new_one(tmp_path):
    density, flux, _ = three_species(5)
    write_snapshot(tmp_path / "data.h5", density, flux)
    work = tmp_path / "work"
    work.mkdir()

    def run():
        predict_file("box3d", tmp_path / "data.h5", work / "out.h5", block_cells=7, threads=2)
        return 0

    run()  # compiles
    new = contents(work)
    old = {"out.h5": b"what was there"}
    calls = count(run)
    places = range(1, calls + 1, max(1, calls // 16))
    for trial, place in enumerate(places):
        (work / "out.h5").unlink()
        first = old if trial % 2 else {}
        for name, data in first.items():
            (work / name).write_bytes(data)
        assert killed_at(run, place)
        found = {name: data for name, data in contents(work).items() if not name.startswith(".")}
        assert found in (first, new)
        complete(run)
        assert contents(work) == new
    assert trial > 12


def test_raw_and_preprocessed_files(tmp_path):
    write_sample(tmp_path)
    raw = tmp_path / "asymptotic_random.h5"
    assert main(["predict", "--model", "power", "--data", str(raw), "--out", str(tmp_path / "out.h5")]) == 0
    with h5py.File(raw) as file, h5py.File(tmp_path / "out.h5") as out:
        F = fourflux.from_emu(file["F4_initial(1|ccm)"][()])
        np.testing.assert_allclose(out["mixed/F"][()], mix(F, "power"), rtol=2e-7)
        assert out.attrs["source"] == raw.name


def test_other_names_by_a_layout(tmp_path, capsys):
    F = random_states(12)[:, [0, 3, 1, 4]].reshape(3, 4, 4, 4)  # (x, y, species, component)
    names = ["Ne", "Na", "Nx", "Nax"]
    with h5py.File(tmp_path / "data.h5", "w") as file:
        for index, name in enumerate(names):
            file[name], file[f"F{name}"] = F[:, :, index, 3], F[:, :, index, :3]
    arguments = ["predict", "--model", "box3d", "--data", str(tmp_path / "data.h5"), "--out", str(tmp_path / "o.h5")]
    assert main(arguments) == 2
    assert "none of the layouts" in capsys.readouterr().err
    layout = {"species": 4, "density": names, "flux": [f"F{name}" for name in names], "component_axis": -1}
    (tmp_path / "layout.yaml").write_text(yaml.safe_dump(layout))
    assert main([*arguments, "--layout", str(tmp_path / "layout.yaml")]) == 0
    six = moments.to_six(F, species=4)
    with h5py.File(tmp_path / "o.h5") as file:
        np.testing.assert_allclose(file["mixed/FNx"].shape, (3, 4, 3))
        expected = moments.from_six(mix(six), species=4)
        np.testing.assert_allclose(file["mixed/Nax"][()], expected.density[3], rtol=1e-13)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"density": ["n_e"], "flux": ["fn_e"]}, "3 datasets each"),
        ({"density": ["a", "b", "c"]}, "density and flux, or four_flux"),
        ({"density": ["a", "b", "c"], "flux": ["d", "e", "f"], "heavy_sum": 3}, "heavy_sum"),
        ({"densities": []}, "densities"),
        ({"density": ["a", "b", "b"], "flux": ["d", "e", "f"]}, "density names 'b' a second time"),
        ({"density": ["a", "b", "c"], "flux": ["d", "e", "/c"]}, "flux names '/c' a second time"),
    ],
)
def test_wrong_layouts(tmp_path, wrong, message):
    (tmp_path / "layout.yaml").write_text(yaml.safe_dump(wrong))
    with h5py.File(tmp_path / "x.h5", "w") as file, pytest.raises(ConfigError, match=message):
        read_layout(tmp_path / "layout.yaml", file)


def test_shapes_that_do_not_fit(tmp_path):
    density, flux, _ = three_species()
    write_snapshot(tmp_path / "data.h5", density, np.moveaxis(flux, 1, -1))
    with pytest.raises(DataError, match=r"'fn_e' has shape \(5, 4, 3, 3\).*\(3, 5, 4, 3\) is expected"):
        predict_file("box3d", tmp_path / "data.h5", tmp_path / "out.h5")
    assert not (tmp_path / "out.h5").exists()


@pytest.mark.parametrize(("axis", "place"), [(0, 0), (3, 3), (-1, 3), (-4, 0), (4, None), (-5, None)])
def test_component_axes(tmp_path, axis, place):
    density, flux, six = three_species()
    with h5py.File(write_snapshot(tmp_path / "data.h5", density, np.moveaxis(flux, 1, (place or 0) + 1))) as file:
        layout = read_layout("snapshot", file).model_copy(update={"component_axis": axis})
        if place is None:
            with pytest.raises(DataError, match=rf"component_axis: {axis} is none of the 4 axes.* from -4 to 3"):
                Snapshot(file, layout)
            return
        found = Snapshot(file, layout).read(())
        np.testing.assert_array_equal(found, six.reshape(-1, 6, 4))


def test_blocks_cover_the_grid_once(tmp_path):
    density, flux, _ = three_species()
    with h5py.File(write_snapshot(tmp_path / "data.h5", density, flux)) as file:
        snapshot = Snapshot(file, read_layout(None, file))
        for cells in (1, 2, 3, 11, 12, 30, 100):
            seen = np.zeros(GRID, dtype=int)
            for block in snapshot.blocks(cells):
                assert seen[block].size <= cells
                seen[block] += 1
            assert (seen == 1).all()


def test_threads_change_nothing_and_an_error_leaves_what_was_there(tmp_path):
    density, flux, _ = three_species(2)
    data = write_snapshot(tmp_path / "data.h5", density, flux)
    for threads in (1, 3):
        predict_file("asymptotic", data, tmp_path / f"{threads}.h5", block_cells=7, threads=threads)
    one, three = ((tmp_path / f"{threads}.h5").read_bytes() for threads in (1, 3))
    assert one == three

    def stop(done, _total):
        if done > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_file("box3d", data, tmp_path / "1.h5", block_cells=7, threads=3, report=stop)
    assert (tmp_path / "1.h5").read_bytes() == one
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.h5", "3.h5", "data.h5"]
    with pytest.raises(ValueError, match="threads=0 must be at least 1"):
        predict_file("box3d", data, tmp_path / "1.h5", threads=0)
