import json
import shutil

import numpy as np
import pytest
import yaml
from sklearn.utils import Bunch

from rheidae import evaluate, fourflux, load_dataset, plots
from rheidae import train as train_command
from rheidae.config import DataConfig, TrainParms, check_config
from rheidae.exceptions import RunError
from rheidae.runs import build, train
from rheidae.runs import folder as runs
from rheidae.scoring.metrics import flux_error, skill
from rheidae.scoring.plots import loss_curve
from tests.runs import PARMS, config_for


@pytest.fixture(scope="module")
def trained(processed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    return train.train(config_for(processed, folder), PARMS, "first"), folder


def test_parts_are_disjoint_and_leave_the_held_out_groups_alone(data):
    config = split_config(0.2, 0.1, ["nsm_b"])
    parts = train.split_rows(data, config)
    rows = np.concatenate(list(parts.values()))
    assert len(np.unique(rows)) == len(rows) == 576 - 181
    assert "nsm_b" not in data.groups[rows]
    assert [len(parts[part]) for part in ("test", "valid")] == [79, 40]
    again = train.split_rows(data, config)
    assert all((again[part] == parts[part]).all() for part in parts)
    other = train.split_rows(data, config.model_copy(update={"seed": 1}))
    assert set(other["test"]) != set(parts["test"])


def test_rows_of_one_simulation_stay_together(data):
    names = np.array([f"run{i % 40}" for i in range(400)])
    few = Bunch(data=data.data[:400], target=data.target[:400], groups=np.full(400, "a"), dirname=names, filename="x")
    parts = train.split_rows(few, split_config(0.2, 0.2))
    homes = [set(names[rows]) for rows in parts.values()]
    assert sum(len(home) for home in homes) == 40
    assert sum(len(rows) for rows in parts.values()) == 400
    nameless = Bunch(**few | {"dirname": np.full(400, "")})
    assert len(train.split_rows(nameless, split_config(0.2, 0.2))["test"]) == 80


def test_copies_of_held_out_rows_are_left_out(data, caplog):
    """Rows of a group that is held out are in another one too, in another order and in simulations of three rows."""
    held_out = np.flatnonzero(data.groups == "nsm_b")
    kept, copied = np.flatnonzero(data.groups == "nsm_a")[:30], held_out[7::-1]
    rows = np.r_[held_out, kept, copied]
    several = Bunch(**{name: data[name][rows].copy() for name in ("data", "target", "groups", "dirname")}, filename="x")
    other = np.arange(len(held_out), len(rows))
    several.groups[other] = "nsm_a"
    several.dirname[other] = [f"run{i // 3}" for i in range(len(other))]
    parts = train.split_rows(several, split_config(0.2, 0.2, ["nsm_b"]))
    assert set(np.concatenate(list(parts.values()))) == set(other[:30])
    assert "x: 8 rows of other groups" in caplog.text
    # A simulation with one copy in it is left out as a whole.
    several.dirname[other] = [f"run{(i + 1) // 3}" for i in range(len(other))]
    parts = train.split_rows(several, split_config(0.2, 0.2, ["nsm_b"]))
    assert set(np.concatenate(list(parts.values()))) == set(other[:29])
    with pytest.raises(RunError, match="0 rows are left to train on"):
        train.split_rows(several, split_config(0.0, 0.0, ["nsm_a", "nsm_b"]))


def split_config(test, val, holdout=()):
    return check_config({"val_split": val, "test_split": test, "holdout_groups": list(holdout)}, DataConfig)


def test_impossible_splits(data):
    with pytest.raises(RunError, match=r"'nsm_c' is not in .* nearest is 'nsm_"):
        train.split_rows(data, split_config(0.1, 0.1, ["nsm_c"]))
    with pytest.raises(RunError, match="left to train on"):
        train.split_rows(data, split_config(0.0, 0.0, sorted(set(data.groups))))
    with pytest.raises(RunError, match="too few for a test part"):
        train.split_rows(data, split_config(0.0005, 0.1))
    few = Bunch(**{name: data[name][:3] for name in ("data", "target", "groups", "dirname")}, filename="x")
    with pytest.raises(RunError, match="x: 3 rows are too few for a valid part"):
        train.split_rows(few, split_config(0.45, 0.5))


def test_run_folder_reproduces_the_model(trained, data):
    folder, _ = trained
    assert {path.name for path in folder.iterdir()} >= {
        "model.yaml", "train_parms.yaml", "weights.safetensors", "history.json", "rows.npz", "run.json",
    }  # fmt: skip
    first, second = runs.load_run(folder), runs.load_run(folder)
    np.testing.assert_array_equal(first.regressor.predict(data.data), second.regressor.predict(data.data))
    assert (first.regressor.predict(data.data) != data.data[:, 24:]).any()
    about = json.loads((folder / "run.json").read_text())
    assert about["train_rows"] + about["valid_rows"] + about["test_rows"] == 363
    assert about["groups"] == ["nsm_a", "random"]
    assert yaml.safe_load((folder / "train_parms.yaml").read_text())["predict_residual"] is True


def test_two_runs_with_one_seed_are_identical(trained, processed, tmp_path, data):
    folder, _ = trained
    again = train.train(config_for(processed, tmp_path), PARMS, "again")
    assert (again / "weights.safetensors").read_bytes() == (folder / "weights.safetensors").read_bytes()


def test_row_keys_tell_rows_apart(data):
    keys = runs.row_keys(data.data, data.target)
    assert len(np.unique(keys)) == 576
    moved = data.target.copy()
    moved[5, 7] = np.nextafter(moved[5, 7], 1, dtype=np.float32)
    assert np.flatnonzero(runs.row_keys(data.data, moved) != keys).tolist() == [5]


def test_errors_by_hand():
    F = np.ones((1, 6, 4))
    F[..., :3] = 0
    pred = F.copy()
    pred[0, 0] += [0.3, 0, 0.4, 0]
    assert flux_error(F, pred, F) == pytest.approx([0.5 / 6 / 6])
    truth = F.copy()
    truth[0, 1, 3], truth[0, 2, 3] = 1.2, 0.8  # mu and tau split by chance
    assert flux_error(truth, F, F) == pytest.approx([0])
    different = F.copy()
    different[0, 1, 3] = 1.2
    assert flux_error(truth, truth * 1.1, different)[0] > 0
    assert skill(np.array([1.0, 2.0]), np.array([4.0, 2.0])) == 0.5
    assert np.isnan(skill(np.array([]), np.array([])))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "run.json").unlink(), r"not a finished run \(no run\.json\)"),
        (lambda folder: (folder / "weights.safetensors").unlink(), r"weights\.safetensors: is missing"),
        (lambda folder: (folder / "weights.safetensors").write_bytes(b"x" * 100), "damaged"),
    ],
)
def test_damaged_runs(trained, tmp_path, damage, message):
    copy = tmp_path / "copy"
    shutil.copytree(trained[0], copy)
    damage(copy)
    with pytest.raises(RunError, match=message):
        runs.load_run(copy)


def test_weights_of_another_architecture_are_refused(trained, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(trained[0], copy)
    config = yaml.safe_load((copy / "model.yaml").read_text())
    config["model"]["hidden_dim"] = 8
    (copy / "model.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(RunError, match=r"model\.yaml: .*not what the run wrote"):
        runs.load_run(copy)
    about = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps({**about, "digests": runs.digests(copy)}))
    with pytest.raises(RunError, match=r"does not fit the run's model\.yaml"):
        runs.load_run(copy)


def test_early_stop_needs_validation_rows(processed, tmp_path):
    parms = check_config({"early_stop": {"enabled": True}}, TrainParms)
    with pytest.raises(RunError, match="val_split"):
        train.train(config_for(processed, tmp_path, data={"val_split": 0.0}), parms, "x")
    assert not (tmp_path / "runs").exists()


def test_early_stop_keeps_the_best_epoch(processed, tmp_path):
    config = config_for(processed, tmp_path, training={"epochs": 60}, optimizer={"lr": 0.05})
    off = {"lr_scheduler": {"type": "none"}, "bn_recalibrate": {"enabled": False}}
    parms = check_config({"early_stop": {"enabled": True, "patience": 3}, **off}, TrainParms)
    run = runs.load_run(train.train(config, parms, "x"))
    losses = run.regressor.history[:, "valid_loss"]
    assert len(losses) < 60
    data = load_dataset(config.data.processed_path)
    rows = train.split_rows(data, config.data)["valid"]
    dataset = run.regressor.get_dataset(data.data[rows], data.target[rows])
    loss = run.regressor.validation_step((dataset.x, dataset.target))["loss"]
    assert float(loss) == pytest.approx(min(losses), rel=1e-5)


@pytest.mark.parametrize(
    ("cuda", "mps", "best"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu"), (True, False, "cuda")]
)
def test_devices(monkeypatch, cuda, mps, best):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert build.resolve_device("auto") == best
    assert build.resolve_device("cpu") == "cpu"
    for name, there in (("cuda", cuda), ("mps", mps)):
        if there:
            assert build.resolve_device(name) == name
        else:
            with pytest.raises(RunError, match=f"{name} is not available"):
                build.resolve_device(name)


def test_device_and_precision_reach_the_estimator(processed, tmp_path):
    config = config_for(processed, tmp_path, training={"device": "cpu", "mixed_precision": True})
    regressor = build.build_regressor(config, PARMS)
    assert (regressor.device, regressor.mixed_precision) == ("cpu", True)


def test_loss_curve_is_an_image(trained):
    assert (trained[1] / "results" / "first" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_loss_plot_of_a_run_folder(trained, tmp_path, capsys):
    folder, _ = trained
    assert plots.main(["--run", str(folder), "--output", str(tmp_path / "x.png")]) == 0
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert plots.main(["--run", str(tmp_path)]) == 2
    assert "no history.jsonl" in capsys.readouterr().err


def test_loss_plot_draws_every_number(tmp_path, monkeypatch):
    """With weights and multipliers, a term of zero, and an epoch that lacks a number."""
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: (drawn.append(figure), path.write(b"x")))
    row = {
        "epoch": 1, "train_loss": 1.0, "valid_loss": 2.0, "box3d_valid_loss": 3.0, "train_density": 0.5, "lr": 0.1,
        "valid_density": 0.6, "train_unphysical": 0.0, "weight_density": 40.0, "multiplier_superluminal": 0.0,
        "train_objective": -3.0, "skill": 0.1,
    }  # fmt: skip
    partial = {name: value for name, value in row.items() if name != "skill"}
    loss_curve([row, {**partial, "epoch": 2}], tmp_path / "x.png")
    labels = [line.get_label() for axes in drawn[0].axes for line in axes.get_lines()]
    expected = {"training", "validation", "Box3D, validation rows", "density", "unphysical", "learning rate"}
    assert expected | {"weight density", "multiplier superluminal"} <= set(labels)


def test_commands(processed, tmp_path, monkeypatch, capsys):
    for name, section in (("model", config_for(processed, tmp_path)), ("parms", TrainParms())):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(section.model_dump()))
    monkeypatch.chdir(tmp_path)
    arguments = ["--config", "model.yaml", "--train-parms", "parms.yaml"]
    assert train_command.main([*arguments, "--smoke"]) == 0
    assert "one batch forward and backward: loss" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
    assert train_command.main([*arguments, "--predict-residual", "--run-id", "a"]) == 2
    assert "does nothing for architecture mixing" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    arguments += ["--architecture", "residual"]
    assert train_command.main([*arguments, "--predict-residual", "--run-id", "a"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'runs' / 'a'}\n"
    assert yaml.safe_load((tmp_path / "runs" / "a" / "train_parms.yaml").read_text())["predict_residual"] is True
    assert evaluate.main(["--run", "absent", "--data", "x"]) == 2
    assert capsys.readouterr().err.startswith("error: absent: not a finished run")


def test_default_model_beats_box3d_on_held_out_rows_and_is_physical(data):
    """The claim of the package, on a fifth of the rows of the two trained families."""
    from rheidae import FluxRegressor

    rows = np.flatnonzero(np.isin(data.groups, ["random", "nsm_a"]))
    rows = np.random.default_rng(0).permutation(rows)
    test, rest = rows[: len(rows) // 5], rows[len(rows) // 5 :]
    model = FluxRegressor(random_state=0).fit(data.data[rest], data.target[rest])
    init, box = data.data[test, :24], data.data[test, 24:]
    prediction = model.predict(data.data[test])
    for family in ("random", "nsm_a"):
        chosen = data.groups[test] == family
        gained = skill(
            flux_error(data.target[test], prediction, init)[chosen], flux_error(data.target[test], box, init)[chosen]
        )
        assert gained > 0.3, family
    assert fourflux.first_unphysical(fourflux.unflatten(prediction), tolerance=1e-3) is None
