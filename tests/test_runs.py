"""Runs that are stopped, killed and go on."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from rheidae.config import Config, PreprocessConfig, TrainParms, check_config
from rheidae.estimator.regressor import FluxRegressor
from rheidae.exceptions import ConfigError, DataError, FourFluxError, RunError, RunStopped
from rheidae.preprocess import preprocess
from rheidae.runs import folder as runs
from rheidae.runs import train
from tests.runs import config_for

PARMS = {
    "predict_residual": True,
    "weighting": {"scheme": "kendall_gal"},
    "pcgrad": True,
    "constraints": {"enabled": True},
    "logging": {"save_every": 2},
    "lr_scheduler": {"patience": 1},
}


def settings(processed, folder, **sections):
    sections = {"model": {"architecture": "residual", "dropout": 0.1}, "training": {"epochs": 8}} | sections
    return config_for(processed, folder, **sections)


def parms(**changes):
    return check_config({**PARMS, **changes}, TrainParms)


def resumed(config, folder, **training):
    update = {"resume_from": str(folder), **training}
    return config.model_copy(update={"training": config.training.model_copy(update=update)})


@pytest.fixture(scope="module")
def whole(processed, tmp_path_factory):
    """A run that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    config = settings(processed, folder)
    return config, train.train(config, parms(), "run")


def same_weights(first, second):
    for name in ("weights.safetensors", "last.safetensors"):
        ours, theirs = load_file(first / name), load_file(second / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name


def test_a_run_folder_tells_all_about_the_run(whole):
    _, folder = whole
    assert {path.name for path in folder.iterdir()} == {
        "model.yaml", "train_parms.yaml", "run.json", "weights.safetensors", "last.safetensors", "state.pt",
        "history.json", "history.jsonl", "history.csv", "rows.npz", "error_scale.safetensors", "MODEL_CARD.md",
    }  # fmt: skip
    about = json.loads((folder / "run.json").read_text())
    assert about["status"] == "finished"
    assert about["seed"] == 0
    assert about["versions"]["torch"] == torch.__version__.split("+")[0] or about["versions"]["torch"]
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, 9))
    header, first, *_ = (folder / "history.csv").read_text().splitlines()
    table = dict(zip(header.split(","), first.split(","), strict=True))
    for name in (
        "train_density",
        "weight_density",
        "conflicts",
        "multiplier_superluminal",
        "box3d_valid_loss",
        "skill",
    ):
        assert float(table[name]) == rows[0][name]


def test_a_checkpoint_is_data_alone(whole, tmp_path):
    _, folder = whole
    state = torch.load(folder / "state.pt", weights_only=True)
    assert {"module", "criterion", "optimizer", "callbacks", "rng", "history", "epoch"} <= set(state)
    assert "weighting.s" in state["criterion"]
    assert "constraints.multipliers" in state["criterion"]

    class Code:
        def __reduce__(self):
            return (print, ("code of a stranger",))

    (tmp_path / "state.pt").write_bytes(b"")
    with pytest.raises(RunError, match="damaged"):
        runs.load_state(tmp_path)
    torch.save({"epoch": 1, "module": Code()}, tmp_path / "state.pt", pickle_module=pickle)
    with pytest.raises(RunError, match="more than data"):
        runs.load_state(tmp_path)


def test_resuming_a_finished_run_changes_nothing(whole, tmp_path):
    config, folder = whole
    before = load_file(folder / "weights.safetensors")
    assert train.train(resumed(config, folder), parms(), "ignored") == folder
    after = load_file(folder / "weights.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signals_save_before_leaving(whole, processed, tmp_path, python, number):
    """The signal comes in the middle of an epoch whose number is not one to save at."""
    config = settings(processed, tmp_path)
    script = textwrap.dedent(
        f"""
        import os, sys, torch
        from rheidae.train import main
        from rheidae.estimator.callbacks import EpochProgress
        from rheidae.estimator.regressor import FluxRegressor
        step = FluxRegressor.train_step
        def interrupted(self, batch, **kwargs):
            if len(self.history) == 4 and not getattr(self, "sent_", False):
                self.sent_ = True
                os.kill(os.getpid(), {int(number)})
            return step(self, batch, **kwargs)
        FluxRegressor.train_step = interrupted
        sys.exit(main(sys.argv[1:]))
        """
    )
    for name, section in (("model", config), ("parms", parms())):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(section.model_dump()))
    files = ["--config", str(tmp_path / "model.yaml"), "--train-parms", str(tmp_path / "parms.yaml"), "--run-id", "a"]
    done = subprocess.run([python, "-c", script, *files], capture_output=True, text=True)
    folder = tmp_path / "runs" / "a"
    status = json.loads((folder / "run.json").read_text())["status"]
    assert runs.load_state(folder)["epoch"] == 3
    assert f"go on with: --resume-from {folder}\n" in done.stderr
    if number == signal.SIGINT:
        assert (done.returncode, status) == (130, "interrupted")
        run = runs.load_run(folder)
        assert len(run.regressor.history) == 3
    else:
        assert (done.returncode, status) == (128 + number, f"stopped by signal {int(number)}"), done.stderr
        with pytest.raises(RunError, match="not a finished run"):
            runs.load_run(folder)
    train.train(resumed(config, folder), parms(), "a")
    same_weights(folder, whole[1])


def test_a_signal_in_the_first_epoch_leaves_nothing_to_go_on_with(processed, tmp_path, monkeypatch, caplog):
    step = FluxRegressor.train_step

    def interrupted(self, batch, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, **kwargs)

    monkeypatch.setattr(FluxRegressor, "train_step", interrupted)
    caplog.set_level("INFO")
    with pytest.raises(RunStopped):
        train.train(settings(processed, tmp_path), parms(), "x")
    assert not (tmp_path / "runs" / "x" / "state.pt").exists()
    assert caplog.records[-1].message == f"stopped by signal {int(signal.SIGTERM)}; no epoch had ended"


@pytest.mark.parametrize(
    ("sections", "changes", "message"),
    [
        ({"optimizer": {"lr": 0.5}}, {}, r"optimizer\.lr \(then 0\.01, now 0\.5\)"),
        (
            {"model": {"architecture": "residual", "dropout": 0.0}},
            {"pcgrad": False},
            r"model\.dropout .*, pcgrad \(then True, now False\)",
        ),
        ({"data": {"seed": 4}}, {}, r"data\.seed"),
        ({}, {"weighting": {"scheme": "dwa"}}, r"weighting\.scheme"),
    ],
)
def test_another_configuration_is_refused_by_its_keys(whole, processed, tmp_path, sections, changes, message):
    _, folder = whole
    config = settings(processed, tmp_path, **sections)
    with pytest.raises(RunError, match=message):
        train.train(resumed(config, folder), parms(**changes), "x")


def test_other_data_are_refused(whole, processed):
    config, folder = whole
    about = folder / "run.json"
    text = about.read_text()
    about.write_text(text.replace(json.loads(text)["data_fingerprint"], "0" * 32))
    try:
        with pytest.raises(RunError, match="not those that the run was started with"):
            train.train(resumed(config, folder), parms(), "x")
    finally:
        about.write_text(text)


def test_folders_that_hold_no_run(whole, processed, tmp_path):
    config, folder = whole
    with pytest.raises(RunError, match="not a run folder"):
        train.train(resumed(config, tmp_path), parms(), "x")
    for name in ("run.json", "model.yaml", "train_parms.yaml"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(RunError, match=r"no state\.pt"):
        train.train(resumed(config, tmp_path), parms(), "x")


def without_box3d(source, target):
    import h5py

    shutil.copy(source, target)
    with h5py.File(target, "r+") as file:
        del file["F_box"], file["F_box_flat"]


def with_a_number(dataset, row, column, value):
    """A damage that puts a number into a dataset."""

    def damage(source, target):
        import h5py

        shutil.copy(source, target)
        with h5py.File(target, "r+") as file:
            file[dataset][row, column] = value

    return damage


def no_neutrinos(source, target):
    import h5py

    shutil.copy(source, target)
    with h5py.File(target, "r+") as file:
        file["input"][:] = 0


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("sections", "changes", "damage", "error", "message"),
    [
        ({"data": {"batch_size": 1}}, {}, None, FourFluxError, "batch norm has no variance in a batch of one row"),
        ({"data": {"val_split": 0.001}}, {}, None, RunError, "too few for a valid part"),
        ({"data": {"holdout_groups": ["nsm_c"]}}, {}, None, RunError, "'nsm_c' is not in"),
        ({}, {}, without_box3d, DataError, "no dataset 'F_box'"),
        ({}, {}, with_a_number("input", 7, 3, np.nan), DataError, "dataset 'input', row 7: a number is not finite"),
        ({}, {}, with_a_number("target", 9, 3, np.inf), DataError, "dataset 'target', row 9: a number is not finite"),
        ({}, {}, no_neutrinos, FourFluxError, "row 0: the total number density is 0"),
        ({"data": {"val_split": 0.0}}, {"early_stop": {"enabled": True}}, None, RunError, "set data.val_split"),
    ],
)
def test_what_cannot_be_trained_leaves_an_older_run_alone(
    whole, processed, tmp_path, sections, changes, damage, error, message
):
    """Refused before training starts, and before a run folder is made or changed."""
    path = processed / "preprocessed_all.h5"
    if damage is not None:
        damage(path, tmp_path / "x.h5")
        path = tmp_path / "x.h5"
    # On top of the model that `settings` gives.
    sections = {**sections, "data": {"processed_path": str(path), **sections.get("data", {})}}
    config = settings(processed, tmp_path, **sections)
    with pytest.raises(error, match=message):
        train.train(config, parms(**changes), "new")
    assert not (tmp_path / "runs").exists()
    shutil.copytree(whole[1], tmp_path / "runs" / "old")
    before = contents(tmp_path / "runs")
    with pytest.raises(error, match=message):
        train.train(config, parms(**changes), "old")
    assert contents(tmp_path / "runs") == before


def test_no_loss_at_all_is_refused_by_the_configuration():
    weights = dict.fromkeys(("density", "magnitude", "direction", "unphysical", "residual_l1", "distance"), 0.0)
    with pytest.raises(ConfigError, match=r"loss: .*at least one loss term is needed"):
        check_config({"loss": {f"w_{name}": value for name, value in weights.items()}}, Config)


def test_a_minimal_file_is_enough(sample, whole, tmp_path):
    files = [{"name": family, "path": f"emu_{family}.h5"} for family in ("random", "nsm_a")]
    options = {"data_root": str(sample), "output_root": str(tmp_path), "files": files, "diagnostics": "minimal"}
    preprocess(check_config(options, PreprocessConfig))
    config = settings(tmp_path, tmp_path, training={"epochs": 1}, data={"holdout_groups": []})
    assert (train.train(config, parms(), "x") / "weights.safetensors").exists()


def test_a_diverging_run_names_its_last_checkpoint(processed, tmp_path, monkeypatch):
    step = FluxRegressor.train_step

    def poisoned(self, batch, **kwargs):
        if len(self.history) == 6:
            torch.nn.init.constant_(self.module_.head.bias, np.nan)
        return step(self, batch, **kwargs)

    monkeypatch.setattr(FluxRegressor, "train_step", poisoned)
    with pytest.raises(RunError, match=r"epoch 6, batch 1: .*last good checkpoint: .*state\.pt"):
        train.train(settings(processed, tmp_path), parms(), "x")
    assert runs.load_state(tmp_path / "runs" / "x")["epoch"] == 4
    status = json.loads((tmp_path / "runs" / "x" / "run.json").read_text())["status"]
    assert status.startswith("failed: epoch 6, batch 1: the loss is not finite")


CHILDREN = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from rheidae.config import Config, TrainParms, read_config
from rheidae.runs import modelcard
from rheidae.runs.folder import load_state
from rheidae.runs.train import train
from rheidae.scoring import plots
from rheidae.system import outputs

# Most of a run of a few epochs is its figure and what its card says, and here the training counts.
plots.loss_curve = modelcard.model_card = lambda *arguments: ""

base = Path(sys.argv[1])
config, parms = read_config(base / "model.yaml", Config), read_config(base / "parms.yaml", TrainParms)
runs_folder = Path(config.training.checkpoint_dir)


def child(work):
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    try:
        work()
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)


def go_on(folder):
    if (folder / "state.pt").exists():
        training = config.training.model_copy(update={"resume_from": str(folder)})
        train(config.model_copy(update={"training": training}), parms, folder.name)
    else:
        train(config, parms, folder.name)
    for name in ("weights.safetensors", "last.safetensors"):
        assert (folder / name).read_bytes() == (runs_folder / "whole" / name).read_bytes(), name
"""

KILLED = """
calls = 0


def count(frame, event, argument):
    global calls
    calls += 1


def die_at(moment):
    def profile(frame, event, argument):
        count(frame, event, argument)
        if calls == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    return profile


def killed(folder, moment):
    global calls
    calls = 0
    sys.setprofile(die_at(moment))
    train(config, parms, folder.name)


# The first in the parent, so that the children find everything loaded.
train(config, parms, "warm")
sys.setprofile(count)
train(config, parms, "whole")
sys.setprofile(None)
length, number = calls, int(sys.argv[2])
for part in range(number):
    folder = runs_folder / f"killed{part}"
    status = child(lambda: killed(folder, round((part + 0.5) / number * length)))
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
    epoch = load_state(folder)["epoch"] if (folder / "state.pt").exists() else 0
    go_on(folder)
    print(epoch, flush=True)
"""


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_ends_with_the_same_weights(processed, tmp_path, python):
    """The moments are calls of functions, evenly spaced over a run: the same ones however busy the machine is."""
    written = settings_of(processed, tmp_path, epochs=5)
    done = subprocess.run([python, "-c", CHILDREN + KILLED, written, "10"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    epochs = [int(line) for line in done.stdout.split()]
    assert len(epochs) == 10
    assert len(set(epochs)) >= 3, epochs


def settings_of(processed, folder, **training):
    """Write model.yaml and parms.yaml of a run that saves every epoch; return their folder."""
    config = settings(processed, folder, training=training)
    for name, section in (("model", config), ("parms", parms(logging={"save_every": 1}))):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(section.model_dump()))
    return str(folder)


KILLED_BETWEEN = """
replace, moved = os.replace, []


def count(*paths):
    moved.append(paths)
    return replace(*paths)


outputs.os.replace = count
train(config, parms, "whole")
steps = len(moved)


def killed(folder, number):
    moved.clear()

    def die(*paths):
        count(*paths)
        if len(moved) == number:
            os._exit(9)

    outputs.os.replace = die
    train(config, parms, folder.name)


for number in range(1, steps + 1):
    folder = runs_folder / f"killed{number}"
    assert os.waitstatus_to_exitcode(child(lambda: killed(folder, number))) == 9, number
    go_on(folder)
print(steps)
"""


@pytest.mark.slow
def test_killed_after_any_rename_and_resumed_ends_with_the_same_weights(processed, tmp_path, python):
    written = settings_of(processed, tmp_path, epochs=2)
    done = subprocess.run([python, "-c", CHILDREN + KILLED_BETWEEN, written], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 10


def test_stop_signals_restores_the_handlers():
    before = signal.getsignal(signal.SIGUSR1)
    with train.stop_signals() as asked:
        assert asked() is None
        os.kill(os.getpid(), signal.SIGUSR1)
        assert asked() == signal.SIGUSR1
    assert signal.getsignal(signal.SIGUSR1) == before


def test_tensorboard_without_its_package(processed, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(RunError, match=r"rheidae\[tensorboard\]"):
        train.train(settings(processed, tmp_path), parms(logging={"tensorboard": True}), "x")
    assert not (tmp_path / "runs").exists()


def test_tensorboard_gets_what_the_history_has(processed, tmp_path, monkeypatch):
    written = []

    class Writer:
        def __init__(self, folder):
            self.folder = folder

        def add_scalar(self, tag, scalar_value, global_step):
            written.append((self.folder, tag.rpartition("/")[2], float(scalar_value), global_step))

        def close(self):
            pass

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    config = settings(processed, tmp_path, training={"epochs": 2})
    folder = train.train(config, parms(logging={"tensorboard": True}), "x")
    assert {entry[0] for entry in written} == {str(folder / "tensorboard")}
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    for name in ("weight_density", "conflicts", "multiplier_superluminal", "lr", "valid_loss", "skill"):
        found = {step: value for _, tag, value, step in written if tag == name}
        assert list(found.values()) == [row[name] for row in history], name
