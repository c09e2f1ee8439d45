"""Run folders: opened only as they were written, written by one run at a time, and never into other things."""

import io
import json
import os
import resource
import shutil
import stat
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
import safetensors.numpy
import torch

from rheidae.config import TrainParms
from rheidae.estimator.regressor import FluxRegressor
from rheidae.exceptions import OutputError, RunError
from rheidae.runs import folder as runs
from rheidae.runs import modelcard, train
from rheidae.scoring import plots
from rheidae.system import outputs
from rheidae.train import main
from tests.runs import PARMS, config_for


@pytest.fixture(scope="module")
def finished(processed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    return train.train(config_for(processed, folder, training={"epochs": 2}), PARMS, "a")


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.mark.parametrize("name", runs.DIGESTED)
def test_a_flipped_bit_is_refused(copy, name):
    path = copy / name
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for bit in rng.integers(0, 8 * len(whole), 40).tolist():
        path.write_bytes(whole)
        flip(path, bit)
        with pytest.raises(RunError, match=rf"{name}: .*not what the run wrote"):
            runs.load_run(copy)
    path.write_bytes(whole)
    runs.load_run(copy)


def tensors(state):
    return {f"{part}.{name}": tensor for part in ("module", "criterion") for name, tensor in state[part].items()}


def test_a_flipped_bit_of_a_checkpoint_is_refused_or_changes_nothing(copy):
    whole, rng = (copy / "state.pt").read_bytes(), np.random.default_rng(0)
    expected = tensors(runs.load_state(copy))
    refused = 0
    for bit in rng.integers(0, 8 * len(whole), 40).tolist():
        (copy / "state.pt").write_bytes(whole)
        flip(copy / "state.pt", bit)
        try:
            read = tensors(runs.load_state(copy))
        except RunError:
            refused += 1
        else:  # names and padding of the archive
            assert all((read[name] == tensor).all() for name, tensor in expected.items())
    assert refused > 10


def test_parts_of_another_run_are_refused(finished, copy, processed, tmp_path):
    config = config_for(processed, tmp_path, training={"epochs": 1}, data={"seed": 5})
    other = train.train(config, PARMS, "other")
    for name in ("weights.safetensors", "error_scale.safetensors", "rows.npz", "history.json"):
        shutil.copyfile(other / name, copy / name)
        with pytest.raises(RunError, match=name):
            runs.load_run(copy)
        shutil.copyfile(finished / name, copy / name)
        (copy / name).unlink()
        with pytest.raises(RunError, match=rf"{name}: .*No such file"):
            runs.load_run(copy)
        shutil.copyfile(finished / name, copy / name)


@pytest.mark.parametrize("status", ["running", "stopped by signal 15", "failed: x", None, 3])
def test_only_complete_runs_are_opened(copy, status):
    about = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps({**about, "status": status}))
    with pytest.raises(RunError, match="not a finished run"):
        runs.load_run(copy)


class Killed(BaseException):
    """The process ends."""


@pytest.mark.slow
def test_a_resumed_run_that_dies_anywhere_leaves_no_mixture(processed, tmp_path, monkeypatch, data):
    """Interrupted after two epochs, resumed, killed at each of the renames."""
    config, step = config_for(processed, tmp_path), FluxRegressor.train_step
    # Most of a run of a few epochs is its figure and what its card says; here it matters when they are written.
    monkeypatch.setattr(plots, "loss_curve", lambda history, path: outputs.write_text(path, ""))
    monkeypatch.setattr(modelcard, "model_card", lambda *arguments: "")

    def interrupted(self, batch, **kwargs):
        if len(self.history) == 3:
            raise KeyboardInterrupt
        return step(self, batch, **kwargs)

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(FluxRegressor, "train_step", interrupted)
        train.train(config, PARMS, "start")
    start = tmp_path / "runs" / "start"
    before = runs.load_run(start)
    assert len(before.regressor.history) == 2

    def resume(folder):
        training = config.training.model_copy(update={"resume_from": str(folder)})
        train.train(config.model_copy(update={"training": training}), PARMS, "x")
        return runs.load_run(folder)

    after = resume(shutil.copytree(start, tmp_path / "whole"))
    expected = [run.regressor.predict(data.data[:50], return_std=True) for run in (before, after)]
    replace, opened, trials = os.replace, [], 0
    while True:
        folder = shutil.copytree(start, tmp_path / f"killed{trials}")
        calls = iter(range(trials))

        def die(*paths, calls=calls):
            if next(calls, None) is None:
                raise Killed
            replace(*paths)

        with monkeypatch.context() as patch:
            patch.setattr(outputs.os, "replace", die)
            try:
                resume(folder)
                break
            except Killed:
                trials += 1
        with suppress(RunError):
            found = runs.load_run(folder).regressor.predict(data.data[:50], return_std=True)
            opened.append(trials)
            assert any(np.array_equal(found, whole) for whole in expected)
        assert np.array_equal(resume(folder).regressor.predict(data.data[:50], return_std=True), expected[1])
    assert trials > 10
    assert opened == [1, trials]  # before the first rename, and after run.json's; then the figure's


# --- where a run writes --------------------------------------------------------------------------------------


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_one_run_writes_into_a_folder(finished, processed, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "runs" / "a")
    before = contents(folder)
    config = config_for(processed, tmp_path, training={"epochs": 1})
    again = config.model_copy(update={"training": config.training.model_copy(update={"resume_from": str(folder)})})
    with runs.own_folder(folder):
        for settings in (config, again):
            with pytest.raises(OutputError, match=r"a: another run is writing there \(process \d+"):
                train.train(settings, PARMS, "a")
        assert {name: data for name, data in contents(folder).items() if name != ".rheidae.lock"} == before
    train.train(config, PARMS, "a")
    assert ".rheidae.lock" not in contents(folder)


@pytest.mark.parametrize("run_id", ["../../x", "a/b", ".", "..", "", "a\0b"])
def test_run_ids_are_names(processed, tmp_path, run_id):
    with pytest.raises(RunError, match="must be the name of a folder"):
        train.train(config_for(processed, tmp_path), PARMS, run_id)
    assert list(tmp_path.iterdir()) == []


def test_folders_of_other_things_are_left_alone(processed, tmp_path):
    mine = tmp_path / "runs" / "mine"
    mine.mkdir(parents=True)
    for name in ("model.yaml", "history.csv"):
        (mine / name).write_text("mine")
    before = contents(mine)
    with pytest.raises(RunError, match=r"mine: holds 'history\.csv' and no run; give another --run-id"):
        train.train(config_for(processed, tmp_path), PARMS, "mine")
    assert contents(mine) == before


def test_a_configuration_in_the_run_folder_is_not_overwritten(finished, copy, processed, capsys):
    before = contents(copy)
    sections = {"training": {"epochs": 1, "checkpoint_dir": str(copy.parent)}}
    config = config_for(processed, copy.parent, **sections)
    for name, section in (("model", config), ("train_parms", TrainParms())):
        (copy / f"{name}.yaml").write_text(json.dumps(section.model_dump()))
    changed = contents(copy)
    arguments = ["--config", str(copy / "model.yaml"), "--train-parms", str(copy / "train_parms.yaml")]
    assert main([*arguments, "--run-id", "copy"]) == 2
    assert "model.yaml: is an input" in capsys.readouterr().err
    assert contents(copy) == changed != before


def test_runs_without_a_name_have_folders_of_their_own(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: runs.new_folder(tmp_path / "runs"), range(40)))
    assert len(set(folders)) == 40


def test_files_have_the_mode_of_the_umask(processed, tmp_path):
    before = os.umask(0o027)
    try:
        folder = train.train(config_for(processed, tmp_path, training={"epochs": 1}), PARMS, "a")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o640}


def test_a_full_disk_is_one_message(finished, processed, tmp_path, capsys):
    """Of eight sizes; each file of a run is the one that does not fit."""
    config = config_for(processed, tmp_path, training={"epochs": 2})
    for name, section in (("model", config), ("parms", TrainParms())):
        (tmp_path / f"{name}.yaml").write_text(json.dumps(section.model_dump()))
    arguments = ["--config", str(tmp_path / "model.yaml"), "--train-parms", str(tmp_path / "parms.yaml")]
    largest = sorted(path.stat().st_size - 1 for path in finished.iterdir())[-7:]
    before, named = resource.getrlimit(resource.RLIMIT_FSIZE), set()
    for number, size in enumerate([10, *largest]):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            status = main([*arguments, "--run-id", f"run{number}"])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        assert status == 2
        assert len(errors) == 1
        name = errors[0].partition(f"runs/run{number}/")[2].partition(":")[0]
        named.add(name)
        assert errors[0].endswith("or choose another output_root, run id or file")
        assert not [path for path in (tmp_path / "runs" / f"run{number}").iterdir() if path.suffix == ".tmp"]
        with pytest.raises(RunError, match="not a finished run"):
            runs.load_run(tmp_path / "runs" / f"run{number}")
    assert {"run.json", "state.pt"} <= named <= set(runs.FILES)


def savez(**arrays):
    table = io.BytesIO()
    np.savez(table, **arrays)
    return table.getvalue()


KEYS = np.ones(3, np.uint64)


def archived(header, data=b"", compression=zipfile.ZIP_STORED):
    """``rows.npz`` whose part "train" says that it has a shape."""
    table, head = io.BytesIO(savez(valid=KEYS, test=KEYS)), io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<u8", "fortran_order": False, "shape": header})
    with zipfile.ZipFile(table, "a", compression) as archive:
        archive.writestr("train.npy", head.getvalue() + data)
    return table.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # 30 kB that unpack to 30 MB, and 1 kB that declares 8 TB.
        (archived((4_000_000,), bytes(32_000_000), zipfile.ZIP_DEFLATED), "unpacks to 32 MB from"),
        (archived((10**12,)), "expected 0 keys"),
        (savez(train=KEYS, valid=KEYS), "holds train, valid; expected train, valid, test"),
        (savez(train=np.ones(3), valid=KEYS, test=KEYS), "float64"),
        (savez(train=KEYS, valid=KEYS[:, None], test=KEYS), "expected 3 keys"),
        (savez(), "holds nothing"),
        (b"", "not a zip file"),
    ],
)
def test_rows_that_are_none(copy, content, message):
    with_content(copy, "rows.npz", content)
    with pytest.raises(RunError, match=rf"rows\.npz: .*{message}"):
        runs.load_run(copy)


def with_content(folder, name, content):
    """A run whose digests say that it was written so."""
    (folder / name).write_bytes(content)
    about = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**about, "digests": runs.digests(folder)}))


def test_error_scales_that_are_none(copy):
    known = safetensors.numpy.load((copy / "error_scale.safetensors").read_bytes())
    for name, array in known.items():
        others = {key: value for key, value in known.items() if key != name}
        for wrong in (others, {**others, name: array * np.nan}, {**others, name: np.ones(9 + len(array))}):
            with_content(copy, "error_scale.safetensors", safetensors.numpy.save(wrong))
            with pytest.raises(RunError, match=r"error_scale\.safetensors: is missing or damaged"):
                runs.load_run(copy)


@pytest.mark.parametrize("name", ["digests", "groups", "feature_names", "target_names", "data"])
@pytest.mark.parametrize("value", ["abc", None, 3, [[1]], {"a": 1}])
def test_run_json_with_odd_values(copy, name, value):
    if (name, value) == ("data", "abc"):
        value = []
    about = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps({**about, name: value}))
    with pytest.raises(RunError, match="is missing or damaged"):
        runs.load_run(copy)


@pytest.mark.parametrize("text", ["3", "[1]", "{}", '{"epoch": "x"}', "[" * 100_000])
def test_history_lines_that_are_no_epochs(tmp_path, text):
    (tmp_path / "history.jsonl").write_text(text + "\n")
    with pytest.raises(RunError, match=r"history\.jsonl: is missing or damaged"):
        runs.read_history(tmp_path)


def test_checkpoints_that_are_none(copy, processed, tmp_path):
    state = torch.load(copy / "state.pt", weights_only=True)
    about = json.loads((copy / "run.json").read_text())
    training = {"epochs": 3, "resume_from": str(copy)}
    config = config_for(processed, copy.parent, training=training)
    then = config.model_copy(update={"training": config.training.model_copy(update={"resume_from": None})})
    runs.save_config(copy, then, PARMS)
    odd_callbacks = {name: {"folder": str(tmp_path / "elsewhere")} for name in state["callbacks"]}
    odd = [{name: wrong} for name in set(state) - {"format"} for wrong in ("abc", 3.5)]
    odd += [
        {"epoch": 10**30}, {"history": [{"a": 1}] * 7}, {"callbacks": odd_callbacks}, {"rng": {"cpu": torch.ones(3)}},
        {"optimizer": {**state["optimizer"], "state": {0: {"x": torch.ones(3)}}}}, {"module": {"x": torch.ones(3)}},
    ]  # fmt: skip
    for changes in odd:
        if changes.keys() == {"box3d_valid"}:
            continue
        torch.save({**state, **changes}, copy / "state.pt")
        (copy / "run.json").write_text(json.dumps({**about, "status": "stopped by signal 15"}))
        with pytest.raises(RunError):
            train.train(config, PARMS)
    for missing in set(state) - {"format", "box3d_valid"}:
        torch.save({name: part for name, part in state.items() if name != missing}, copy / "state.pt")
        with pytest.raises(RunError):
            train.train(config, PARMS)
    assert not (tmp_path / "elsewhere").exists()
