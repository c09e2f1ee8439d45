"""Numba against the Julia reference: its golden files, and Julia itself where it is installed."""

from __future__ import annotations

import csv
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import lebedev_rule

import rheidae
from rheidae.mixing.asymptotic import ORDER, asymptotic_flux
from rheidae.mixing.closure import inverse_langevin
from rheidae.mixing.physical import keep_physical
from rheidae.mixing.survival import calm, mixing_change
from tests.states import conservation_error

REFERENCE = Path(__file__).parents[1] / "reference_julia"
GOLDEN = Path(__file__).parent / "golden"
ORDERS = (13, 17, 31, 53)
TOLERANCE = 1e-10  # of each sample's total density
BEAMS = {"large_flux_factor", "flux_factor_0.999999"}  # kinds with a species narrower than the node spacing

POWER_PARAMETERS = ("c", "p", "a", "axial", "p_axial", "a_axial")
ORBIT_SIZE = {"a1": 6, "a2": 12, "a3": 8, "b": 24, "c": 24, "d": 48}

# Starts in a quarter of the time.
INTERPRETED = ("--compile=min", "-O0")

needs_julia = [
    pytest.mark.julia,
    pytest.mark.skipif(shutil.which("julia") is None, reason="julia is not on the PATH"),
]


def read_golden(name):
    """Rows of a golden file as dictionaries of column name to text."""
    with (GOLDEN / name).open(newline="") as file:
        return list(csv.DictReader(file))


def four_flux(rows, prefix):
    """The (n, 6, 4) array in the columns that start with the prefix."""
    columns = [name for name in rows[0] if name.startswith(prefix)]
    return np.array([[float(row[name]) for name in columns] for row in rows]).reshape(-1, 6, 4)


def relative_error(F, expected, F_init):
    """Largest difference in each sample over its total number density."""
    return np.abs(F - expected).max(axis=(1, 2)) / F_init[:, :, 3].sum(axis=1)


def assert_agrees(F, expected, F_init, kinds=None):
    error = relative_error(F, expected, F_init)
    worst = int(error.argmax())
    label = "" if kinds is None else f" ({kinds[worst]})"
    assert error.max() <= TOLERANCE, f"row {worst}{label} is off by {error[worst]:.1e} of the total density"


def power_scheme(F_init, c=1.0, p=1.0, a=2.0, axial=0.0, p_axial=None, a_axial=None):
    """The power scheme at order 17, which the package makes physical where mu and tau differ, and Julia does not."""
    p_axial, a_axial = p if p_axial is None else p_axial, a if a_axial is None else a_axial
    columns = np.broadcast_arrays(c, p, a, 1.0, 1.0, 1.0, p_axial, a_axial, np.ones(len(F_init)))[:-1]
    theta = np.log(columns).T
    theta[:, 5] = axial
    D = mixing_change(F_init, theta, order=17, power_law=True).D.reshape(-1, 2, 1, 4)
    D = D * F_init[:, :, 3].sum(axis=1)[:, None, None, None]
    F_final = F_init + np.concatenate([-D, D / 2, D / 2], axis=2).reshape(F_init.shape)
    parameters = {"c": c, "p": p, "a": a, "axial": axial, "p_axial": p_axial, "a_axial": a_axial}
    limited = F_final.copy()
    keep_physical(F_init, limited)
    found = rheidae.mix(F_init, "power", order=17, **parameters)
    np.testing.assert_allclose(found, limited, rtol=0, atol=1e-12 * F_init.max())
    return F_final


# ------------------------------------------------------------ golden files


@pytest.mark.parametrize("beams", [False, True], ids=["resolved", "beams"])
@pytest.mark.parametrize("order", ORDERS)
def test_box3d_equals_golden(order, beams):
    rows = [row for row in read_golden(f"box3d_order{order}.csv") if (row["kind"] in BEAMS) == beams]
    F_init = four_flux(rows, "in_")
    F_box = rheidae.box3d_flux(F_init, order=order, crossing="sharp")
    assert_agrees(F_box, four_flux(rows, "out_"), F_init, [row["kind"] for row in rows])


@pytest.mark.parametrize("order", ORDERS)
def test_box3d_without_crossing_returns_the_input_exactly(order):
    rows = [row for row in read_golden(f"box3d_order{order}.csv") if float(row["P_plus"]) == 1]
    F_init = four_flux(rows, "in_")
    assert {"no_crossing", "all_isotropic", "symmetric"} <= {row["kind"] for row in rows}
    np.testing.assert_array_equal(four_flux(rows, "out_"), F_init)
    np.testing.assert_array_equal(rheidae.box3d_flux(F_init, order=order, crossing="sharp"), F_init)


@pytest.mark.parametrize("kind", ["random", "merger", "no_crossing"])
def test_mu_fraction_equals_golden(kind):
    rows = [row for row in read_golden("mu_fraction_order17.csv") if row["kind"] == kind]
    assert [float(row["mu_fraction"]) for row in rows] == [0, 0.3, 0.5, 1]
    for row in rows:
        F_init = four_flux([row], "in_")
        F_box = rheidae.box3d_flux(F_init, order=17, crossing="sharp", mu_fraction=float(row["mu_fraction"]))
        assert_agrees(F_box, four_flux([row], "out_"), F_init)


@pytest.mark.parametrize("axial", [False, True], ids=["sphere", "axial"])
def test_power_scheme_equals_golden(axial):
    rows = [row for row in read_golden("power_order17.csv") if (float(row["axial"]) > 0) == axial]
    assert len(rows) >= 10
    # Julia has a plain rule; here beams bring nodes of their own.
    plain = calm(four_flux(rows, "in_")) == 1
    assert plain.sum() >= 8
    rows = [row for row, keep in zip(rows, plain, strict=True) if keep]
    F_init = four_flux(rows, "in_")
    parameters = {name: np.array([float(row[name]) for row in rows]) for name in POWER_PARAMETERS}
    F_power = power_scheme(F_init, **parameters)
    expected = four_flux(rows, "out_")
    error = relative_error(F_power, expected, F_init)
    # Numba has Bessel functions to 1e-7 where Julia sums over the azimuth.
    assert error.max() <= (3e-8 if axial else TOLERANCE), rows[int(error.argmax())]["kind"]
    without = np.isin([row["kind"] for row in rows], ["no_crossing", "all_isotropic", "symmetric"])
    np.testing.assert_array_equal(F_power[without], F_init[without])
    np.testing.assert_array_equal(expected[without], F_init[without])
    assert (relative_error(expected[~without], F_init[~without], F_init[~without]) > 1e-4).all()


def assert_asymptotic_agrees(F_init, expected, order, percentile_95, largest):
    error = relative_error(asymptotic_flux(F_init, order=order), expected, F_init)
    assert np.percentile(error, 95) < percentile_95
    assert error.max() < largest, int(error.argmax())


@pytest.mark.parametrize(("order", "percentile_95", "largest"), [(ORDER, 1e-4, 2e-4), (131, 5e-5, 1e-4)])
def test_asymptotic_equals_golden(order, percentile_95, largest):
    rows = read_golden("asymptotic.csv")
    F_init, expected = four_flux(rows, "in_"), four_flux(rows, "out_")
    assert_asymptotic_agrees(F_init, expected, order, percentile_95, largest)
    without = np.array([row["kind"] == "no_crossing" for row in rows])
    np.testing.assert_array_equal(expected[without], F_init[without])
    assert (relative_error(expected[~without], F_init[~without], F_init[~without]) > 1e-4).all()


def test_golden_outputs_conserve():
    for name in [*(f"box3d_order{order}.csv" for order in ORDERS), "power_order17.csv", "asymptotic.csv"]:
        rows = read_golden(name)
        rounding = 1e-7 if name == "asymptotic.csv" else 1e-14
        F_init, F_box = four_flux(rows, "in_"), four_flux(rows, "out_")
        total = F_init[:, :, 3].sum(axis=1)
        change = (F_box - F_init) / total[:, None, None]
        assert np.abs(change[:, :3].sum(axis=1)).max() < rounding
        assert np.abs(change[:, 3:].sum(axis=1)).max() < rounding
        assert np.abs(change[:, :3, 3] - change[:, 3:, 3]).max() < rounding


def test_inverse_langevin_equals_golden():
    rows = read_golden("inverse_langevin.csv")
    f = np.array([float(row["f"]) for row in rows])
    Z = np.array([float(row["Z"]) for row in rows])
    assert f[0] == 0
    assert f[-1] == np.nextafter(1, 0)
    # A rounding error of f moves Z by a fraction eps / (1 - f). It is allowed for
    # up to a few ulp of f, although 1 - f itself is exact near 1.
    tolerance = 1e-13 + 2 * np.finfo(float).eps / (1 - f)
    assert (np.abs(inverse_langevin(f) - Z) <= tolerance * Z).all()


def test_golden_files_are_small():
    assert sum(path.stat().st_size for path in GOLDEN.iterdir()) < 240_000


def test_orbit_table_holds_the_points_of_scipy():
    with (REFERENCE / "lebedev_orbits.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len({row["order"] for row in table}) == 32
    for order in sorted({int(row["order"]) for row in table}):
        points, weights = lebedev_rule(order)
        # The generator of an orbit is its point with x >= y >= z >= 0.
        generators = -np.sort(-np.abs(points.T), axis=1)
        found, counts = np.unique(np.column_stack([generators, weights]), axis=0, return_counts=True)
        rows = sorted(
            ([float(row[name]) for name in ("x", "y", "z", "weight")], ORBIT_SIZE[row["class"]])
            for row in table
            if int(row["order"]) == order
        )
        np.testing.assert_array_equal([row for row, _ in rows], found)
        np.testing.assert_array_equal([size for _, size in rows], counts)


# -------------------------------------------------------------- live Julia


def julia(*arguments, reference=REFERENCE, stdin=b"", status=0, options=("-O1",)):
    """Run the reference's command and return (stdout, stderr).

    At -O1 it starts sooner; without, it computes more quickly, and golden files have the last digits that they have.
    """
    command = ["julia", "--startup-file=no", *options, str(reference / "main.jl"), *map(str, arguments)]
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=600, check=False)
    hint = "julia crashed; reference_julia/install.sh mends Debian's build" if done.returncode < 0 else ""
    assert done.returncode == status, hint or done.stderr.decode()
    return done.stdout, done.stderr.decode()


def julia_box3d(F_init, *arguments):
    stdout, _ = julia("box3d", *arguments, stdin=F_init.astype("<f8").tobytes())
    return np.frombuffer(stdout, dtype="<f8").reshape(F_init.shape)


def random_four_flux(n, largest_flux_factor, seed):
    rng = np.random.default_rng(seed)
    N = 1e33 * rng.uniform(0.05, 1, (n, 6, 1))
    f = rng.uniform(0, largest_flux_factor, (n, 6, 1))
    direction = rng.normal(size=(n, 6, 3))
    direction /= np.linalg.norm(direction, axis=2, keepdims=True)
    return np.concatenate([N * f * direction, N], axis=2)


class TestLive:
    pytestmark = needs_julia

    def test_golden_files_are_reproduced_byte_for_byte(self, tmp_path):
        stdout, _ = julia("golden", tmp_path / "new" / "folder", options=())
        written = sorted(Path(line) for line in stdout.decode().splitlines())
        assert [path.name for path in written] == sorted(path.name for path in GOLDEN.glob("*.csv"))
        for path in written:
            assert path.read_bytes() == (GOLDEN / path.name).read_bytes(), path.name

    def test_rules_and_closure_pass_the_check(self):
        stdout, _ = julia("check", options=())
        lines = stdout.decode().splitlines()
        assert len(lines) == 33
        assert all(line.endswith("ok") for line in lines)

    def test_check_finds_a_wrong_digit_in_the_table(self, tmp_path):
        copy = shutil.copytree(REFERENCE, tmp_path / "reference")
        table = copy / "lebedev_orbits.csv"
        lines = table.read_text().splitlines()
        lines[1:] = [line for line in lines[1:] if int(line.split(",")[0]) <= 31]  # what takes long is of high orders
        at = next(i for i, line in enumerate(lines) if line.startswith("31,d,"))
        fields = lines[at].split(",")
        fields[5] = repr(float(fields[5]) * (1 + 1e-9))
        lines[at] = ",".join(fields)
        table.write_text("\n".join(lines) + "\n")
        stdout, _ = julia("check", reference=copy, status=1, options=())
        failed = [line for line in stdout.decode().splitlines() if line.endswith("FAILED")]
        assert len(failed) == 1
        assert failed[0].startswith("order  31,")

    def test_box3d_agrees_on_fresh_samples(self):
        F_init = random_four_flux(10_000, 0.99, seed=20_24)
        F_box = rheidae.box3d_flux(F_init, order=31, crossing="sharp")
        expected = julia_box3d(F_init, "--order", 31)
        assert_agrees(F_box, expected, F_init)
        # Most of such samples have a crossing, or the comparison would show little.
        assert (relative_error(expected, F_init, F_init) > 1e-3).mean() > 0.5

    @pytest.mark.parametrize("order", [3, 25, 131])
    def test_box3d_agrees_at_other_orders(self, order):
        F_init = random_four_flux(50, 0.9, seed=order)
        F_box = rheidae.box3d_flux(F_init, order=order, crossing="sharp")
        assert_agrees(F_box, julia_box3d(F_init, "--order", order), F_init)

    def test_mu_fraction_agrees(self):
        F_init = random_four_flux(200, 0.9, seed=1)
        F_box = rheidae.box3d_flux(F_init, order=31, crossing="sharp", mu_fraction=0.4)
        assert_agrees(F_box, julia_box3d(F_init, "--order", 31, "--mu-fraction", 0.4), F_init)

    @pytest.mark.parametrize("parameters", [{}, {"c": 0.8, "p": 0.5, "a": 3.0, "axial": 0.6, "a_axial": 1.5}])
    def test_power_scheme_agrees_on_fresh_samples(self, parameters):
        F_init = random_four_flux(200, 0.8, seed=20_25)  # above, beams bring nodes of their own here
        arguments = [text for name, value in parameters.items() for text in (f"--{name.replace('_', '-')}", value)]
        stdout, _ = julia("power", "--order", 17, *arguments, stdin=F_init.astype("<f8").tobytes())
        expected = np.frombuffer(stdout, dtype="<f8").reshape(F_init.shape)
        F_power = power_scheme(F_init, **parameters)
        assert relative_error(F_power, expected, F_init).max() <= (3e-8 if "axial" in parameters else TOLERANCE)
        assert (relative_error(expected, F_init, F_init) > 1e-3).mean() > 0.5

    def test_asymptotic_scheme_agrees_on_fresh_samples(self):
        seed = np.random.SeedSequence().generate_state(1)[0]
        F_init = random_four_flux(12, 0.95, seed=seed)
        F_init[:7, [2, 5]] = F_init[:7, [1, 4]]
        stdout, _ = julia("asymptotic", "--points", 32, options=(), stdin=F_init.astype("<f8").tobytes())
        expected = np.frombuffer(stdout, dtype="<f8").reshape(F_init.shape)
        # Any state may come, and now and then one is off by more than 1e-3.
        for order in (ORDER, 131):
            error = relative_error(asymptotic_flux(F_init, order=order), expected, F_init)
            assert np.median(error) < 2e-4, seed
            assert error.max() < 5e-3, (seed, int(error.argmax()))
        assert conservation_error(F_init, expected) < 1e-12, seed

    def test_no_sample_gives_no_output(self):
        stdout, _ = julia("box3d", "--order", 31, options=INTERPRETED)
        assert stdout == b""

    def test_time_prints_microseconds(self):
        stdout, _ = julia("time", "--order", 13, 100)
        number, unit = stdout.decode().split()[:2]
        assert float(number) > 0
        assert unit == "us"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "no command"),
            (["mix"], "unknown command mix"),
            (["golden"], "golden takes 1"),
            (["check", "--order", "31"], "check has no option --order"),
            (["box3d"], "--order is required"),
            (["box3d", "--order"], "--order needs a value"),
            (["box3d", "--order", "14"], "no Lebedev order"),
            (["box3d", "--order", "many"], "no Lebedev order"),
            (["box3d", "--order", "31", "--mu-fraction", "1.5"], "not a number in [0, 1]"),
            (["box3d", "--order", "31", "--mu-fraction", "NaN"], "not a number in [0, 1]"),
            (["power", "--order", "31", "--p", "0"], "--p 0 is not a number in"),
            (["power", "--order", "31", "--axial", "2"], "--axial 2 is not a number in [0, 1]"),
            (["power", "--order", "31", "--mu-fraction", "1"], "power has no option --mu-fraction"),
            (["asymptotic", "--points", "1"], "--points 1 is not an integer from 2"),
            (["time", "--order", "31", "0"], "positive integer"),
        ],
    )
    def test_wrong_arguments_exit_with_status_2(self, arguments, message):
        stdout, stderr = julia(*arguments, status=2, options=INTERPRETED)
        assert message in stderr
        assert "usage:" in stderr
        assert stdout == b""

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (np.nan, "sample 2: four-flux"),
            (-1.0, "negative density"),
            (1e-3, "above its density"),
        ],
    )
    def test_unphysical_sample_exits_with_status_1(self, value, message):
        F_init = random_four_flux(4, 0.9, seed=3)
        F_init[2, 4, 3] = value
        stdout, stderr = julia("box3d", "--order", 13, stdin=F_init.tobytes(), status=1, options=INTERPRETED)
        assert message in stderr
        assert stdout == b""

    def test_truncated_input_exits_with_status_1(self):
        _, stderr = julia("box3d", "--order", 13, stdin=b"\0" * 100, status=1, options=INTERPRETED)
        assert "multiple of 192" in stderr

    def test_installer_leaves_an_installed_julia_alone(self):
        command = ["sh", str(REFERENCE / "install.sh")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "nothing to do" in done.stdout
