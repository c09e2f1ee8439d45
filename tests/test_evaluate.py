import json
import math
import sys
import tracemalloc
from contextlib import nullcontext

import h5py
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from sklearn.utils import Bunch
from torch import nn

from rheidae import FluxRegressor, evaluate, fourflux, load_dataset, mix
from rheidae import ablation as ablation_command
from rheidae.config import Config, TrainParms, check_config
from rheidae.estimator.networks import ResidualFFIModel
from rheidae.exceptions import FourFluxError, OutputError, RunError
from rheidae.mixing import sphere
from rheidae.mixing.box3d import box3d_survival
from rheidae.mixing.power import power_survival
from rheidae.mixing.quadrature import lebedev
from rheidae.mixing.survival import mixing_change, survival_probability
from rheidae.runs import ablation, score, train
from rheidae.runs import folder as runs
from rheidae.runs.report import markdown, notes, report_on
from rheidae.runs.score import cross_validate, mixing_parameters, score_run
from rheidae.scoring import figures, splits
from rheidae.scoring import scores as evaluation
from rheidae.scoring.metrics import coverage, flux_error
from rheidae.scoring.tally import Tallies, Tally
from tests.states import random_states
from tests.streams import STREAMS

ROWS = 12


@pytest.fixture(scope="module")
def folder(dozens):
    return dozens


@pytest.fixture(scope="module")
def small(folder):
    return load_dataset(folder / "preprocessed_all.h5")


@pytest.fixture(scope="module")
def run(folder):
    sections = {
        "data": {"processed_path": str(folder / "preprocessed_all.h5"), "holdout_groups": ["nsm_b", "three_d"]},
        "training": {"epochs": 1, "checkpoint_dir": str(folder / "runs"), "results_dir": str(folder / "results")},
    }
    return runs.load_run(train.train(check_config(sections, Config), TrainParms(), "first"))


def quick(seed):
    return FluxRegressor(random_state=seed, max_epochs=1)


def scored_example(seeds=2, n=14, std=None):
    """Predictions that differ from the truth by random numbers; two rows of each simulation."""
    rng = np.random.default_rng(3)
    init = random_states(n, seed=1, alike=True)
    true, box = (init * rng.uniform(0.9, 1.1, init.shape) for _ in range(2))
    data = Bunch(
        data=np.concatenate([init, box], axis=1).reshape(n, 48),
        target=true.reshape(n, 24),
        groups=np.array(["a", "b"])[np.arange(n) % 2],
        dirname=np.array([f"run{i // 2}" for i in range(n)]),
        filename="x.h5",
    )
    prediction = true.reshape(n, 24) * rng.uniform(0.95, 1.05, (seeds, n, 24))
    label = np.arange(n) // 2
    return evaluation.score(data, np.arange(n), np.full(n, "held out"), label, prediction, std), data, prediction


# --- numbers ---------------------------------------------------------------------------------------------


def by_hand(data, prediction):
    """Errors (n, 6, 4) over the total density, by loops over rows and species."""
    out = np.empty((len(prediction), 6, 4))
    for row, final in enumerate(prediction):
        init, true = data.data[row, :24].reshape(6, 4), data.target[row].reshape(6, 4).copy()
        for mu, tau in ((1, 2), (4, 5)):
            assert (init[mu] == init[tau]).all()
            true[mu] = true[tau] = (true[mu] + true[tau]) / 2
        out[row] = (final.reshape(6, 4) - true) / sum(init[:, 3])
    return out


def test_numbers_are_those_of_a_plain_calculation():
    scored, data, prediction = scored_example()
    chosen = data.groups == "b"
    summary = Tally().add(scored, chosen).summary(50)
    assert (summary["rows"], summary["simulations"]) == (7, 7)
    box = np.sqrt((by_hand(data, data.data[:, 24:])[chosen] ** 2).sum(axis=2)).mean(axis=1)
    for scheme, finals in {
        "none": [data.data[:, :24]],
        "box3d": [data.data[:, 24:]],
        "power": [mix(data.data[:, :24].reshape(-1, 6, 4), "power").reshape(-1, 24)],
        "model": list(prediction),
    }.items():
        found = summary["schemes"][scheme]
        differences = np.stack([by_hand(data, final)[chosen] for final in finals])
        lengths = np.sqrt((differences**2).sum(axis=3))
        errors = lengths.mean(axis=2)
        assert found["error"] == pytest.approx(errors.mean(), rel=1e-9)
        assert found["skill"] == pytest.approx(1 - errors.mean() / box.mean(), abs=1e-9)
        assert found["rows_better_than_box3d"] == pytest.approx((errors < box - 1e-12).mean())
        assert list(found["species_error"].values()) == pytest.approx(lengths.mean(axis=(0, 1)))
        assert found["component_error"]["y"] == pytest.approx(np.abs(differences[..., 1]).mean())
        if scheme == "model":
            spread = np.std([1 - error.mean() / box.mean() for error in errors], ddof=1)
            assert found["skill_spread"] == pytest.approx(spread)
        else:
            assert found["skill_spread"] is None
    assert set(summary["schemes"]) == set(evaluation.TITLES)
    expected = [flux_error(data.target, final, data.data[:, :24]) for final in prediction]
    np.testing.assert_allclose(scored.errors["model"], expected, rtol=1e-9)


def test_intervals_are_of_the_mean_over_seeds():
    scored, *_ = scored_example()
    one = Tally().add(scored, np.ones(14, dtype=bool)).summary(50)["schemes"]["model"]
    mean, box = scored.errors["model"].mean(axis=0), scored.errors["box3d"][0]
    assert one["error_interval"] == evaluation.ratio_interval(mean, np.ones(14), scored.simulation, 50)
    low, high = evaluation.ratio_interval(mean, box, scored.simulation, 50)
    assert one["skill_interval"] == [1 - high, 1 - low]


def test_coverage_of_normal_errors():
    rng = np.random.default_rng(0)
    std = rng.uniform(0.1, 2, (2, 500, 6, 4))
    assert coverage(std * rng.normal(size=std.shape), std) == pytest.approx(0.9, abs=0.01)
    prediction = scored_example()[2]
    scored, _, _ = scored_example(std=np.full_like(prediction, 10.0))
    every = np.ones(14, dtype=bool)
    assert Tally().add(scored, every).summary(20)["schemes"]["model"]["coverage"] == 1
    assert Tally().add(scored, every).summary(20)["schemes"]["box3d"]["coverage"] is None


def test_interval_of_the_coverage_draws_simulations():
    std = np.full_like(scored_example()[2], 10.0)
    covered = np.arange(14) % 4 > 0
    std[:, ~covered] = 0.0
    scored, _, _ = scored_example(std=std)
    one = Tally().add(scored, np.ones(14, dtype=bool)).summary(50)["schemes"]["model"]
    assert one["coverage"] == pytest.approx(covered.mean())
    expected = evaluation.ratio_interval(covered.astype(float), np.ones(14), scored.simulation, 50)
    assert one["coverage_interval"] == pytest.approx(expected)


def test_worst_rows_come_first():
    scored, data, _ = scored_example()
    found = evaluation.worst(scored, 5)
    errors = scored.errors["model"].mean(axis=0)
    assert [one["row"] for one in found] == np.argsort(-errors)[:5].tolist()
    first = found[0]
    assert first["error"]["model"] == pytest.approx(errors.max())
    assert first["simulation"] == data.dirname[first["row"]]
    state = data.data[first["row"], :24].reshape(6, 4)
    assert first["flux_factor"] == pytest.approx(max(np.linalg.norm(s[:3]) / s[3] for s in state))
    nodes, weights = lebedev(131)
    G = sphere.lepton_number(state, nodes)
    sides = [weights[G > 0] @ G[G > 0], -weights[G < 0] @ G[G < 0]]
    assert first["depth"] == pytest.approx(min(sides) / max(sides), rel=0.01)


# --- intervals -------------------------------------------------------------------------------------------


def test_bootstrap_intervals_cover_the_truth():
    rng = np.random.default_rng(1)
    hits, repeats = 0, 300
    for _ in range(repeats):
        reference = rng.gamma(3, 1, 60)
        error = 0.4 * reference * rng.gamma(5, 0.2, 60)  # the ratio of the means is 0.4
        low, high = evaluation.ratio_interval(error, reference, np.arange(60), 300)
        hits += low < 0.4 < high
    assert 0.9 < hits / repeats < 0.99


def test_rows_of_one_simulation_count_as_one():
    rng = np.random.default_rng(2)
    error, simulation = rng.gamma(2, 1, 30), np.arange(30)
    once = evaluation.ratio_interval(error, np.ones(30), simulation)
    twice = evaluation.ratio_interval(np.repeat(error, 4), np.ones(120), np.repeat(simulation, 4))
    apart = evaluation.ratio_interval(np.repeat(error, 4), np.ones(120), np.arange(120))
    assert once == pytest.approx(twice)
    assert apart[1] - apart[0] < 0.7 * (once[1] - once[0])


def test_bundles_of_simulations_give_the_same_interval(monkeypatch):
    error = np.random.default_rng(4).gamma(2, 1, 5000)
    low, high = evaluation.ratio_interval(error, np.ones(5000), np.arange(5000))
    monkeypatch.setattr(evaluation, "_BUNDLES", 500)
    bundled = evaluation.ratio_interval(error, np.ones(5000), np.arange(5000))
    assert bundled == pytest.approx([low, high], abs=0.1 * (high - low))
    assert bundled != [low, high]


def test_no_interval_where_there_is_none():
    assert evaluation.ratio_interval(np.ones(3), np.ones(3), np.zeros(3)) is None
    assert evaluation.ratio_interval(np.ones(3), np.zeros(3), np.arange(3)) is None


@pytest.mark.parametrize("n", [3, 7, 20, 60])
def test_widths_of_small_groups_are_those_of_plain_medians(n):
    rng = np.random.default_rng(n)
    for _ in range(20):
        std = 10 ** rng.uniform(-6, -1, (1, n, 6, 4))
        scored, _, _ = scored_example(seeds=1, n=n, std=std.reshape(1, n, 24))
        middle = np.median(scored.std), np.median(np.abs(scored.F["model"] - scored.F_seen))
        width = Tally().add(scored, np.full(n, True)).summary(2)["schemes"]["model"]["width"]
        assert width == pytest.approx(1.6448536 * middle[0] / middle[1], rel=1e-3)


# --- who is scored by whom -------------------------------------------------------------------------------


def test_folds_cover_every_row_once_and_keep_simulations_together(small):
    data = Bunch(**{**small, "dirname": np.array([f"{g}{i % 20}" for i, g in enumerate(small.groups)])})
    labels = splits.simulation_labels(data)
    parts = splits.cross_validation_parts(data, ["rows", "groups"], 4, 0, ["three_d"])
    trained = np.flatnonzero(data.groups != "three_d")
    for role, number in (("held out", 4), ("left out", 3)):
        found = [part for part in parts if part.role == role]
        assert len(found) == number
        np.testing.assert_array_equal(np.sort(np.concatenate([part.test for part in found])), trained)
        for part in found:
            np.testing.assert_array_equal(np.sort(np.concatenate([part.train, part.test])), trained)
            assert not set(labels[part.train]) & set(labels[part.test])
    assert all(len(set(data.groups[p.test])) == 1 for p in parts if p.role == "left out")
    assert parts[-1].role == "never trained on"
    assert set(data.groups[parts[-1].test]) == {"three_d"}
    np.testing.assert_array_equal(parts[-1].train, trained)
    other = splits.cross_validation_parts(data, ["rows"], 4, 1, ["three_d"])
    assert any(set(a.test) != set(b.test) for a, b in zip(parts[:4], other[:4], strict=True))


def test_three_dimensional_groups_are_known_by_the_names_of_their_simulations(small):
    assert splits.three_dimensional_groups(small) == ["three_d"]
    assert splits.three_dimensional_groups(Bunch(groups=small.groups)) == []
    one = np.where(small.dirname == small.dirname[small.groups == "three_d"][0], "random_1d_1", small.dirname)
    assert splits.three_dimensional_groups(Bunch(groups=small.groups, dirname=one)) == []


class Memory:
    """An estimator that knows what it was trained on, and predicts nothing but that number."""

    val_split = 0.0
    error_scale_ = None
    module_ = nn.Identity()

    def __init__(self, seed, log):
        self.seed, self.log = seed, log

    def fit(self, X, y):
        self.known = {row.tobytes() for row in X}
        self.log.append((self.seed, len(self.known)))
        return self

    def predict(self, X):
        assert not self.known & {row.tobytes() for row in X}
        return X[:, :24] * (1 + 0.01 * self.seed)


def test_no_row_is_predicted_by_a_model_that_has_seen_it(small):
    log = []
    scored = cross_validate(
        small, lambda seed: Memory(seed, log), ["rows", "groups"], folds=3, seeds=[0, 2], test_only=["three_d"]
    )
    assert log == [(seed, size) for seed in (0, 2) for size in [24] * 6 + [36]]
    assert scored.std is None
    assert scored.theta is None
    for role, rows in (("held out", 3 * ROWS), ("left out", 3 * ROWS), ("never trained on", ROWS)):
        assert (scored.role == role).sum() == rows
    # Every prediction stands beside its own row.
    for seed, F in zip((0, 2), scored.F["model"], strict=True):
        np.testing.assert_allclose(F, scored.F_init * (1 + 0.01 * seed), rtol=1e-6)
    np.testing.assert_array_equal(scored.group, small.groups[scored.row])
    total = small.data[scored.row, :24].reshape(-1, 6, 4)[:, :, 3].sum(axis=1)
    np.testing.assert_allclose(scored.F_init[:, 0, 3], small.data[scored.row, 3] / total, rtol=1e-5)
    log.clear()
    cross_validate(small, lambda seed: Memory(seed, log), ["rows"], folds=3, seeds=[1], train_rows=7)
    assert log == [(1, 7)] * 3


def test_copies_under_another_name_are_not_trained_on(small):
    """`random` is there again, in another order; two rows of every simulation. Vacuum is no copy."""
    kept = np.flatnonzero(small.groups != "nsm_b")
    copied = np.flatnonzero(small.groups == "random")[::-1]
    data = Bunch(**{name: small[name][np.r_[kept, copied]].copy() for name in ("data", "target", "dirname", "groups")})
    data.update(filename="f.h5", dirname=np.array([f"{name}{i // 2}" for i, name in enumerate(data.groups)]))
    data.groups[len(kept) :] = "again"
    cross_validate(data, lambda seed: Memory(seed, []), ["rows", "groups"], folds=3, test_only=["three_d"])
    for rows in np.flatnonzero(data.groups == "nsm_a")[:2], np.flatnonzero(data.groups == "three_d")[:2]:
        data.data[rows] = data.target[rows] = 0
    parts = splits.cross_validation_parts(data, ["rows", "groups"], 3, 0, ["three_d"])
    sizes = {tuple(np.unique(data.groups[part.test])): len(part.train) for part in parts if part.role == "left out"}
    assert len(parts[-1].train) == 3 * ROWS
    assert sizes == {("again",): ROWS, ("nsm_a",): 2 * ROWS, ("random",): ROWS}
    assert sorted(np.concatenate([part.test for part in parts if part.role == "held out"])) == list(
        np.flatnonzero(data.groups != "three_d")
    )
    for seed in range(5):
        config = Config(data={"test_split": 0.3, "val_split": 0.3, "seed": seed}).data
        homes = [
            {row.tobytes() for row in data.target[rows] if row.any()}
            for rows in train.split_rows(data, config).values()
        ]
        assert len(set.union(*homes)) == sum(map(len, homes))
    assert splits.rows_again(data).sum() == 2 * ROWS
    said = notes({"confidence_level": 0.95, "seeds": [0], "rows_again": 2 * ROWS})
    assert f"{2 * ROWS} rows are in the data more than once" in said


def test_a_validation_part_takes_whole_simulations(small):
    data = Bunch(**{**small, "dirname": np.array([f"{g}{i % 6}" for i, g in enumerate(small.groups)])})
    labels = splits.simulation_labels(data)
    by_row = {row.tobytes(): label for row, label in zip(data.data, labels, strict=True)}
    seen = []

    class Watched(Memory):
        val_split = 0.3

        def fit(self, X, y, groups):
            seen.append(groups.tolist() == [by_row[row.tobytes()] for row in X])
            return super().fit(X, y)

    cross_validate(data, lambda seed: Watched(seed, []), ["rows"], folds=3)
    assert seen == [True] * 3


def test_too_few_data_are_refused(small):
    def parts(rows, kinds, folds=3, test_only=()):
        keep = {name: small[name][rows] for name in ("data", "target", "groups", "dirname")}
        return splits.cross_validation_parts(Bunch(**keep, filename="f.h5"), kinds, folds, 0, test_only)

    first = np.flatnonzero(small.groups == "random")
    with pytest.raises(RunError, match=r"f\.h5: 1 rows are left to train on"):
        parts(first[:1], ["rows"])
    with pytest.raises(RunError, match=r"3 folds of 2 simulations .* choose folds"):
        parts(first[:2], ["rows"])
    with pytest.raises(RunError, match="1 row is left to train on beside the 1"):
        parts(first[:2], ["rows"], folds=2)
    with pytest.raises(RunError, match="there is only 'random' to train on"):
        parts(first, ["groups"])
    with pytest.raises(RunError, match=r"'nsm_c' is not in f\.h5; it holds random"):
        parts(first, ["rows"], test_only=["nsm_c"])
    with pytest.raises(RunError, match="0 rows are left to train on"):
        parts(first, ["rows"], test_only=["random"])
    one_simulation = Bunch(
        **{**small, "dirname": np.full(len(small.data), "x"), "groups": np.full(len(small.data), "a")}
    )
    with pytest.raises(RunError, match="3 folds of 1 simulations"):
        splits.cross_validation_parts(one_simulation, ["rows"], 3, 0, ())


# --- reports ---------------------------------------------------------------------------------------------


def check_plain(value):
    """Only what JSON knows, and no NaN."""
    if isinstance(value, dict):
        assert all(type(key) is str for key in value)
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            check_plain(one)
    else:
        assert value is None or type(value) in (str, int, bool, float)
        assert type(value) is not float or math.isfinite(value)


SUMMARY = {"group", "role", "rows", "simulations", "schemes"}
SCHEME = {
    "error", "skill", "rows_better_than_box3d", "error_spread", "skill_spread", "species_error", "component_error",
    "flavor_sum_change", "lepton_number_change", "physical_fraction", "coverage", "coverage_spread",
    "coverage_interval", "species_coverage", "width", "error_interval", "skill_interval",
}  # fmt: skip


def test_cross_validation_from_the_command_line(folder, tmp_path, capsys):
    config = tmp_path / "model.yaml"
    config.write_text("training: {epochs: 1}\ndata: {val_split: 0.2}\n")
    out = tmp_path / "out"
    status = evaluate.main(
        ["--cv", "rows", "groups", "--folds", "3", "--seeds", "2", "--data", str(folder / "preprocessed_all.h5"),
         "--config", str(config), "--resamples", "100", "--json", str(out / "r.json"), "--markdown", str(out / "r.md"),
         "--figures", str(out / "figures")]
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert status == 0
    report = json.loads((out / "r.json").read_text())
    check_plain(report)
    assert report["rows_again"] == 0
    assert (report["seeds"], report["folds"], report["test_only"]) == ([0, 1], 3, ["three_d"])
    roles = {(entry["group"], entry["role"]): entry for entry in report["groups"]}
    assert len(roles) == 7
    assert [entry["role"] for entry in report["roles"]] == ["held out", "left out", "never trained on"]
    for entry in [*report["groups"], *report["roles"]]:
        assert set(entry) == SUMMARY
        assert list(entry["schemes"]) == list(evaluation.TITLES)
        for one in entry["schemes"].values():
            assert set(one) == SCHEME
            assert one["physical_fraction"] == 1
            assert max(one["flavor_sum_change"], one["lepton_number_change"]) < 1e-6
        model = entry["schemes"]["model"]
        low, high = model["skill_interval"]
        assert low < model["skill"] < high
        assert 0 < model["coverage"] <= 1
    # What the file says of its Box3D, its default order in numbers.
    assert report["box3d"] == {"order": 23, "crossing": "shared", "mu_fraction": None}
    for shown in (printed, (out / "r.md").read_text()):
        assert "\nBox3D, as the data have it: order 23, crossing shared, mu fraction none.\n" in shown
    # The same as without the command.
    data = load_dataset(folder / "preprocessed_all.h5")

    def make(seed):
        return FluxRegressor(random_state=seed, max_epochs=1, val_split=0.2)

    scored = cross_validate(data, make, ["groups"], seeds=[0, 1], test_only=["three_d"])
    mine = Tally().add(scored, (scored.role == "left out") & (scored.group == "nsm_b")).summary(100)
    again = roles["nsm_b", "left out"]["schemes"]["power"]["skill"]
    assert mine["schemes"]["power"]["skill"] == pytest.approx(again)
    # Every table has every scheme.
    page = (out / "r.md").read_text()
    for title in evaluation.TITLES.values():
        assert f"| nsm_b | left out | {title} |" in printed
        assert page.count(f"| nsm_b | left out | {title} |") == 2  # scores, and errors by species
    assert page.count("\n| nsmB_1d_") >= ROWS - 2
    for name in ("errors", "species", "parity", "depth", "skill", "sphere"):
        assert (out / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_evaluation_of_a_run_counts_only_unseen_rows(run, folder, small):
    scored, about = score_run(run, small)
    left_out = about["rows_left_out"]
    assert left_out == len(run.rows["train"]) + len(run.rows["valid"])
    assert len(scored.row) == len(small.data) - left_out
    known = np.isin(runs.row_keys(small.data, small.target), np.concatenate([run.rows["train"], run.rows["valid"]]))
    assert not known[scored.row].any()
    unseen = scored.role == "unseen family"
    assert set(scored.group[unseen]) == {"nsm_b", "three_d"}
    assert set(scored.group[~unseen]) <= {"random", "nsm_a"}
    np.testing.assert_allclose(
        scored.errors["model"][0],
        flux_error(
            small.target[scored.row], run.regressor.predict(small.data[scored.row]), small.data[scored.row, :24]
        ),
        rtol=1e-9,
    )
    # The same rows from the file of their own are recognised too; rows without names are simulations of their own.
    family = scored.group[~unseen][0]
    alone = load_dataset(folder / f"{family}_preprocessed.h5")
    nameless = Bunch(data=alone.data, target=alone.target, groups=alone.groups, filename="x")
    again = score_run(run, nameless)[0]
    assert again.role.tolist() == ["held out"] * (scored.group == family).sum()
    assert len(set(again.simulation)) == len(again.simulation)
    seen = Bunch(data=small.data[known], target=small.target[known], groups=small.groups[known], filename="x")
    with pytest.raises(RunError, match="trained on every row"):
        score_run(run, seen)


def test_a_file_is_scored_in_blocks(run, folder, monkeypatch):
    """Numbers, and how many rows a figure shows, are those of all rows at once; medians to a part of a bin."""
    source = folder / "preprocessed_all.h5"

    def report_in(block):
        monkeypatch.setattr(score, "BLOCK_ROWS", block)
        tallies, some, about = score.score_folder(run.folder, source)
        return report_on(tallies, source, about, 20), some

    (whole, every), (parts, same) = report_in(1000), report_in(5)
    assert close(parts, whole)
    np.testing.assert_array_equal(same.row, every.row)
    monkeypatch.setattr(score, "SOME_ROWS", 12)
    few = report_in(7)[1]
    assert len(few.row) == -(-len(every.row) // 4)
    assert {len(F[0]) for F in few.F.values()} == {len(few.std[0])} == {len(few.theta)} == {len(few.row)}
    scored, _ = score_run(run, load_dataset(source))
    chosen = scored.role == "unseen family"
    middle = [np.median(values[:, chosen]) for values in (scored.std, np.abs(scored.F["model"] - scored.F_seen))]
    (one,) = (entry for entry in whole["roles"] if entry["role"] == "unseen family")
    assert one["schemes"]["model"]["width"] == pytest.approx(1.6448536 * middle[0] / middle[1], rel=2e-3)


def close(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    # A batch of other rows may round otherwise in single precision.
    return one == (pytest.approx(other, rel=1e-6, abs=1e-9) if isinstance(other, float) else other)


def test_memory_of_scoring_hardly_grows_with_the_rows(run, tmp_path, folder, monkeypatch):
    monkeypatch.setattr(score, "BLOCK_ROWS", 100)
    monkeypatch.setattr(score, "SOME_ROWS", 10)
    peaks = []
    for copies in (4, 24):
        path = tmp_path / f"{copies}.h5"
        with h5py.File(folder / "preprocessed_all.h5") as source, h5py.File(path, "w") as file:
            file.attrs.update(source.attrs)
            for name in ("input", "target", "sim_id", "dirname"):
                file[name] = np.concatenate([source[name][()]] * copies)
            rows = len(file["input"])
        tracemalloc.start()
        tallies, _, about = score.score_folder(run.folder, path)
        report_on(tallies, path, about, 2)
        peaks.append((rows, tracemalloc.get_traced_memory()[1]))
        tracemalloc.stop()
    (few, small), (many, large) = peaks
    assert (large - small) / (many - few) < 400  # bytes; 3300 with all states in memory


def test_a_run_from_the_command_line(run, folder, tmp_path, capsys):
    data = str(folder / "preprocessed_all.h5")
    assert evaluate.main(["--run", str(run.folder), "--data", data, "--json", str(tmp_path / "r.json")]) == 0
    printed = capsys.readouterr().out
    for title in evaluation.TITLES.values():
        assert f"| nsm_b | unseen family | {title} | {ROWS} |" in printed
    report = json.loads((tmp_path / "r.json").read_text())
    check_plain(report)
    assert report["rows_left_out"] == len(run.rows["train"]) + len(run.rows["valid"])
    assert f"{report['rows_left_out']} rows that the run was trained or selected on are left out" in printed
    row = report["worst"][0]["row"]
    arguments = ["--run", str(run.folder), "--data", data, "--figures", str(tmp_path / "f"), "--sample"]
    assert evaluate.main([*arguments, str(row)]) == 0
    assert evaluate.main([*arguments, "4711"]) == 2
    assert "row 4711 is not among" in capsys.readouterr().err


@pytest.mark.parametrize("name", STREAMS)
def test_files_are_written_whatever_becomes_of_the_words(name, run, folder, tmp_path, monkeypatch):
    make, status = STREAMS[name]
    files = {"--json": tmp_path / "r.json", "--markdown": tmp_path / "r.md"}
    options = [part for option, path in files.items() for part in (option, str(path))]
    data = str(folder / "preprocessed_all.h5")
    with make() as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        assert evaluate.main(["--run", str(run.folder), "--data", data, "--resamples", "10", *options]) == status
    assert all(path.stat().st_size for path in files.values())


def test_outputs_leave_run_and_data_alone(run, folder, tmp_path, capsys):
    data = folder / "preprocessed_all.h5"
    before = data.read_bytes(), (run.folder / "weights.safetensors").read_bytes()
    arguments = ["--run", str(run.folder), "--data", str(data)]
    (tmp_path / "f").mkdir()
    for outputs, message in (
        (["--json", str(data)], "preprocessed_all.h5: is an input"),
        (["--json", str(run.folder / "weights.safetensors")], "weights.safetensors: is an input"),
        (["--json", str(tmp_path / "x"), "--markdown", str(tmp_path / "x")], "x: is --json already"),
        (["--markdown", str(tmp_path / "f" / "skill.png"), "--figures", str(tmp_path / "f")], "is --markdown already"),
    ):
        assert evaluate.main([*arguments, *outputs]) == 2
        assert message in capsys.readouterr().err
    assert (data.read_bytes(), (run.folder / "weights.safetensors").read_bytes()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "x", "--cv", "rows"], "not allowed with"),
        (["--run", "x", "--seeds", "2"], "--seeds belongs to --cv"),
        (["--run", "x", "--test-only", "a"], "--test-only belongs to --cv"),
        (["--cv", "rows", "--seeds", "0"], "--seeds must be 1 or more"),
        (["--cv", "rows", "--resamples", "0"], "--resamples must be 1 or more"),
        (["--cv", "rows", "--sample", "3"], "say where to with --figures"),
        (["--cv", "simulations"], "invalid choice"),
        ([], "one of the arguments --run --cv is required"),
    ],
)
def test_contradictory_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluate.main([*arguments, "--data", "x.h5"])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_unusable_data_give_a_message(folder, capsys):
    alone = str(folder / "nsm_a_preprocessed.h5")
    for arguments, message in (
        (["--cv", "groups", "--data", alone], "there is only 'nsm_a'"),
        (["--cv", "rows", "--folds", "13", "--data", alone], "13 folds of 12 simulations"),
        (["--cv", "rows", "--folds", "1", "--data", alone], "1 folds of 12 simulations"),
        (["--cv", "rows", "--test-only", "nsm_x", "--data", alone], "'nsm_x' is not in"),
        (["--cv", "rows", "--data", "absent.h5"], "absent.h5: no such file"),
        (["--cv", "rows", "--config", "absent.yaml", "--data", alone], "absent.yaml: no such file"),
        (["--cv", "rows", "--json", str(folder), "--data", alone], "is a folder; name a file"),
        (["--cv", "rows", "--figures", alone, "--data", alone], "is a file; --figures takes a folder"),
        (["--cv", "rows", "--figures", "f", "--sample", "12", "--data", alone], "row 12 is not among the 12 of"),
    ):
        assert evaluate.main(arguments) == 2
        assert message in capsys.readouterr().err


def test_one_row_and_perfect_box3d_are_reported_without_numbers_that_do_not_exist(small):
    """One row has no interval; where Box3D makes no error there is no skill."""
    row = np.array([3])
    one = Bunch(**{name: small[name][row] for name in ("data", "target", "groups", "dirname")}, filename="x")
    one.target = one.data[:, 24:].copy()
    scored = evaluation.score(one, np.arange(1), np.array(["held out"]), np.zeros(1, int), one.data[None, :, 24:])
    report = report_on(Tallies().add(scored), "x", {"model": "m", "seeds": [0]}, resamples=10)
    check_plain(report)
    assert report["box3d"] == {}  # no such file
    model = report["groups"][0]["schemes"]["model"]
    assert model["error"] == 0
    assert model["skill"] is model["skill_interval"] is model["error_interval"] is None
    assert "| box3d" not in markdown(report)


def test_figures_of_one_perfect_row(small, tmp_path):
    row = np.array([3])
    one = Bunch(**{name: small[name][row] for name in ("data", "target", "groups", "dirname")}, filename="x")
    one.target = one.data[:, :24].copy()
    one.data[:, 24:] = one.data[:, :24]
    scored = evaluation.score(one, np.arange(1), np.array(["held out"]), np.zeros(1, int), one.data[None, :, 24:])
    report = report_on(Tallies().add(scored), "x", {"model": "m", "seeds": [0]}, resamples=10)
    written = figures.write_figures(scored, report, tmp_path)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


def test_figure_of_species_shows_the_report(small, tmp_path, monkeypatch):
    rows = np.arange(len(small.data))
    scored = evaluation.score(
        small, rows, np.full(len(rows), "held out"), rows, 0.9 * small.data[None, :, 24:] + 0.1 * small.target[None]
    )
    report = report_on(Tallies().add(scored), "x", {"model": "m", "seeds": [0]}, resamples=10)
    drawn = Figure()
    monkeypatch.setattr(figures, "saved_figure", lambda *_: nullcontext(drawn))
    figures.error_by_species(report, tmp_path / "species.png")
    (axes,) = drawn.axes
    for line, scheme in zip(axes.lines, evaluation.TITLES, strict=True):
        assert line.get_label() == evaluation.TITLES[scheme]
        expected = list(report["roles"][0]["schemes"][scheme]["species_error"].values())
        np.testing.assert_array_equal(line.get_ydata(), expected)
    assert [label.get_text() for label in axes.get_xticklabels()] == list(fourflux.SPECIES)


def test_unlike_mu_and_tau_are_compared_each_with_its_own():
    init = random_states(4, seed=5)
    final = init.copy()
    final[:, 1, 3] *= 1.1
    data = Bunch(
        data=np.concatenate([init, init], axis=1).reshape(4, 48),
        target=final.reshape(4, 24),
        groups=np.full(4, "a"),
        filename="x",
    )
    every = np.arange(4)
    scored = evaluation.score(data, every, np.full(4, "held out"), every, data.target[None])
    assert scored.errors["model"] == pytest.approx(np.zeros((1, 4)))
    expected = 0.1 * init[:, 1, 3] / init[:, :, 3].sum(axis=1) / 6
    assert scored.errors["none"][0] == pytest.approx(expected)


def test_unphysical_states_are_named(small):
    data = small.data[:3].copy()
    data[1, 3] = -1.0
    bad = Bunch(data=data, target=small.target[:3], groups=small.groups[:3], filename="x.h5")
    chosen = np.array([1, 2])  # rows are those of the file
    with pytest.raises(FourFluxError, match=r"x\.h5: row 1, nu_e: number density .* on_bad_rows: drop"):
        evaluation.score(bad, chosen, np.full(2, "held out"), chosen, small.target[None, 1:3])


# --- the survival probability ----------------------------------------------------------------------------


def moved(F, P, directions, weights):
    """What nu_e and nubar_e lose with a survival probability, by direct quadrature."""
    e, ebar, x, xbar = sphere.distributions(F, directions)
    four = np.vstack([directions, np.ones(directions.shape[1])])
    return np.concatenate([four @ (weights * (1 - P) * (e - x)), four @ (weights * (1 - P) * (ebar - xbar))])


@pytest.mark.parametrize("axial", [0.0, 0.4, 1.0])
def test_survival_probability_moves_what_the_scheme_moves(axial):
    nodes, weights = lebedev(131)
    rng = np.random.default_rng(1)
    for F in random_states(8, seed=4, alike=True):
        state = F / F[:, 3].sum()
        theta = np.array([-0.1, *rng.normal(0.2, 0.3, 2), 0.8, 0.5, axial, *rng.normal(0.2, 0.3, 2)])
        P = survival_probability(F, nodes, theta)
        assert P.min() >= 0
        assert P.max() <= 1
        expected = mixing_change(state[None], theta[None], order=131).D[0]
        np.testing.assert_allclose(moved(state, P, nodes, weights), expected, atol=1e-4)
        box = moved(state, box3d_survival(F, lebedev(31).nodes, crossing="sharp"), *lebedev(31))
        expected = (state - mix(state[None], crossing="sharp")[0])[[0, 3]].reshape(-1)
        np.testing.assert_allclose(box, expected, atol=1e-12)


def test_survival_probability_fades_with_the_crossing_and_with_the_axis():
    nodes, weights = lebedev(31)  # turned by the axis, which is one of the rule's own, they are the same
    F = np.zeros((6, 4))
    F[0, 3], F[3, 2:] = 1, [0.4 * 0.3685, 0.3685]  # nubar_e overtake nu_e in a small cap ahead, by little
    weak = np.zeros((6, 4))
    weak[:, 3] = [1, 0.3, 0.3, 0.9, 0.3, 0.3]
    weak[:, 1] = [0.2, 0.2, 0.2, -0.2, -0.2, -0.2]
    weak[0, 0], weak[3, 0] = 0.5, 0.51  # a crossing, and hardly a net flux
    for state, axial, tolerance in ((F, 0.0, 1e-9), (weak, 0.9, 1e-3)):
        state = state / state[:, 3].sum()
        theta = (0.0, 0.0, np.log(2), 0.0, 0.0, axial, 0.0, np.log(2))
        P = survival_probability(state, nodes, theta, power_law=True)
        expected = mixing_change(state[None], np.array([theta]), order=31, power_law=True).D[0]
        np.testing.assert_allclose(moved(state, P, nodes, weights), expected, atol=tolerance)
        assert np.abs(expected).max() > 1e-3


def test_without_a_crossing_everything_survives():
    F = np.zeros((6, 4))
    F[:, 3] = [2.0, 0.5, 0.5, 1.0, 0.5, 0.5]
    nodes = lebedev(7).nodes
    before = F.copy()
    assert (box3d_survival(F, nodes) == 1).all()
    assert (power_survival(F, nodes) == 1).all()
    np.testing.assert_array_equal(F, before)


def test_parameters_are_those_of_the_model(run, small):
    theta = mixing_parameters(run.regressor, small.data[:5])
    final = run.regressor.predict(small.data[:5].astype(float))
    nodes, weights = lebedev(131)
    for row in range(5):
        state = small.data[row, :24].reshape(6, 4).astype(float)
        lost = (state - final[row].reshape(6, 4))[[0, 3]].reshape(-1) / state[:, 3].sum()
        mine = moved(state / state[:, 3].sum(), survival_probability(state, nodes, theta[row]), nodes, weights)
        np.testing.assert_allclose(mine, lost, atol=1e-3)
    network = FluxRegressor(ResidualFFIModel).initialize()
    assert mixing_parameters(network, small.data[:5]) is None


# --- ablation --------------------------------------------------------------------------------------------


def test_variants_are_what_they_say():
    found = ablation.variants()
    assert len({(variant.section, variant.name) for variant in found}) == len(found)
    by_name = {variant.name: variant for variant in found if variant.section.startswith("Architecture")}
    lab = by_name["residual, lab frame, free"].make(3).initialize()
    assert isinstance(lab.module_, ResidualFFIModel)
    assert (lab.module_.frame, lab.module_.conserve, lab.random_state) == (None, False, 3)
    default = by_name["mixing (default)"].make(0)
    assert default.get_params()["max_epochs"] == FluxRegressor().max_epochs
    for variant in found:
        variant.make(0).initialize()


def test_ablation_command(folder, tmp_path, monkeypatch, capsys):
    chosen = [v for v in ablation.variants() if v.name in ("mixing (default)", "25 rows", "all rows", "fixed weights")]
    monkeypatch.setattr(ablation, "variants", lambda: chosen)
    page = tmp_path / "docs" / "ablation.md"
    arguments = ["--data", str(folder / "preprocessed_all.h5"), "--out", str(page), "--folds", "2", "--epochs", "1"]
    assert ablation_command.main([*arguments, "--seeds", "2"]) == 0
    assert str(page) in capsys.readouterr().out
    text = page.read_text()
    assert "--folds 2 --epochs 1" in text
    assert "defaults of `FluxRegressor`, but 1 epochs. The residual network has a setting of its own: 1 epochs," in text
    header = "|  | rows held out | nsm_a, left out | nsm_b, left out | random, left out | three_d, never trained on |"
    assert text.count(header) == 1 + len({variant.section for variant in chosen})
    # The same numbers as cross-validation gives, on the line of the default and on that of all rows.
    data = load_dataset(folder / "preprocessed_all.h5")
    scored = cross_validate(data, quick, ["rows", "groups"], folds=2, seeds=[0, 1], test_only=["three_d"])
    held_out = scored.role == "held out"
    ratio = scored.errors["model"][:, held_out].mean(axis=1) / scored.errors["box3d"][0, held_out].mean()
    expected = f"| {(1 - ratio).mean():.3f} ± {np.std(1 - ratio, ddof=1):.3f} |"
    assert f"| mixing (default) {expected}" in text
    assert f"| all rows {expected}" in text
    assert "| Box3D | 0.000 | 0.000 |" in text
    assert (page.parent / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert torch.get_num_threads() == 1
    assert ablation_command.main(["--data", str(folder / "random_preprocessed.h5"), "--out", str(page)]) == 2
    assert "there is only 'random'" in capsys.readouterr().err


def test_ablation_of_few_rows_where_box3d_is_right(small, tmp_path, monkeypatch):
    """A family whose skill is unknown has no panel, and no line claims more rows than there are to train on."""
    chosen = [v for v in ablation.variants() if v.section == "Training size: mixing network"]
    monkeypatch.setattr(ablation, "variants", lambda: chosen)
    few = Bunch(**small)
    rows = np.concatenate([np.flatnonzero(small.groups == group)[:12] for group in ("random", "nsm_a")])
    few.update(
        {name: small[name][rows] for name in ("data", "target", "groups", "dirname", "growth_rate", "has_crossing")}
    )
    few.target[few.groups == "random"] = few.data[few.groups == "random", 24:]
    monkeypatch.setattr(ablation, "load_dataset", lambda source: few)
    page = tmp_path / "page.md"
    written = ablation.ablate("few.h5", page, "command", seeds=1, folds=2, epochs=1)
    assert [path.name for path in written] == ["page.md", "learning_curve.png"]
    assert "| all rows |" in page.read_text()
    assert "| 25 rows |" not in page.read_text()
    with pytest.raises(SystemExit):
        ablation_command.main(["--epochs", "0"])
    (tmp_path / "file").touch()
    monkeypatch.setattr(ablation, "score_variants", None)
    with pytest.raises(OutputError, match="cannot be written"):
        ablation.ablate("few.h5", tmp_path / "file" / "page.md", "command", seeds=1, folds=2, epochs=1)
