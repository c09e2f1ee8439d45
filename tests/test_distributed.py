"""Two processes train what one does."""

import json
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from sklearn.base import clone

from rheidae import FluxRegressor
from rheidae.config import TrainParms
from rheidae.exceptions import RunError
from rheidae.runs import folder as runs
from rheidae.runs import train
from tests.distributed_program import CASES, fit, result, rows
from tests.runs import config_for

accelerate = pytest.importorskip("accelerate", reason="needs the extra `distributed`")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
PARMS = TrainParms()


def launch(python, *arguments):
    """Two processes on this machine's processors, as launchers start them; those have tests of their own below."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [python, "-m", *map(str, arguments)], cwd=ROOT, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in "01"
    ]  # fmt: skip


def ended(processes, timeout=300):
    """What the processes printed, together, and their statuses."""
    try:
        texts = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return "".join(out for out, _ in texts), "".join(err for _, err in texts), {p.returncode for p in processes}


@pytest.fixture(scope="module")
def two(processed, tmp_path_factory, python):
    """What each of the two processes has, what they printed, and where they left files."""
    folder = tmp_path_factory.mktemp("two")
    out, err, status = ended(launch(python, "tests.distributed_program", processed / "preprocessed_all.h5", folder))
    assert status == {0}, err
    return [torch.load(folder / f"process{rank}.pt", weights_only=False) for rank in (0, 1)], out, folder


def assert_alike(one, other, **tolerances):
    for part in ("module", "criterion"):
        assert one[part].keys() == other[part].keys()
        for name, tensor in one[part].items():
            torch.testing.assert_close(other[part][name], tensor, **tolerances, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_one(two, processed, name):
    first, second = (results[name] for results in two[0])
    assert first["history"] == second["history"]
    assert_alike(first, second, rtol=0, atol=0)
    alone = result(fit(FluxRegressor(**CASES[name]), name, *rows(processed / "preprocessed_all.h5")))
    assert len(alone["history"]) == len(first["history"])
    for ours, theirs in zip(first["history"], alone["history"], strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            # The bias before a batch norm has no gradient but rounding, which AdamW makes into steps: training does
            # not see it, running averages trail behind it.
            loose = name == "batch-norm" and (key.startswith("valid") or key == "skill")
            assert ours[key] == pytest.approx(value, rel=2e-2 if loose else 1e-4, abs=1e-6), key
    if name != "batch-norm":
        assert_alike(alone, first, rtol=1e-4, atol=1e-5)
    if name.endswith(("pcgrad", "batch-norm")) and not name.startswith("mixing"):
        assert sum(row["conflicts"] for row in first["history"]) > 0
    if name.startswith(("residual", "lab", "batch-norm")):
        assert first["history"][-1]["multiplier_superluminal"] > 0


def test_processes_agree_where_chance_is_involved(two):
    for name in ("no seed", "dropout", "in parts"):
        assert_alike(*(results[name] for results in two[0]), rtol=0, atol=0)
        assert two[0][0][name]["history"] == two[0][1][name]["history"]
    drawn = [results["dropout"]["drawn"] for results in two[0]]
    assert torch.equal(*drawn)


def test_only_the_first_prints(two):
    _, printed, _ = two
    assert printed.count("train_loss") == 1  # the table goes on in partial_fit
    assert len([line for line in printed.splitlines() if line.split()[:1] in (["1"], ["2"], ["3"], ["4"])]) == 4


def test_the_model_leaves_the_processes(two, processed):
    _, _, folder = two
    model = torch.load(folder / "plain.pt", weights_only=False)
    assert type(model) is FluxRegressor
    X, y, _ = rows(processed / "preprocessed_all.h5")
    np.testing.assert_array_equal(model.predict(X), np.load(folder / "predicted.npy"))
    assert len(pickle.loads(pickle.dumps(model)).partial_fit(X, y).history) == 6
    expected = FluxRegressor(max_epochs=2, random_state=0, module__hidden_dim=8).fit(X, y).partial_fit(X, y)
    np.testing.assert_allclose(model.predict(X), expected.predict(X), rtol=1e-4, atol=1e-6 * X.max())


def test_rows_have_to_be_the_same_everywhere(two):
    for results in two[0]:
        assert "process 1 was given 100 rows other than the 101 rows of process 0" in results["message"]


# --- one process, with an accelerator --------------------------------------------------------------------


@pytest.fixture
def accelerator():
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

    yield Accelerator(cpu=True)
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def test_alone_it_is_the_estimator(accelerator, data, capsys):
    from rheidae.estimator.distributed import DistributedFluxRegressor

    X, y = data.data[:60], data.target[:60]
    options = {"random_state": 0, "max_epochs": 2, "batch_size": 16, "weighting": "gradnorm", "val_split": 0.2}
    model = DistributedFluxRegressor(accelerator=accelerator, **options).fit(X, y)
    expected = FluxRegressor(**options).fit(X, y)
    np.testing.assert_array_equal(model.predict(X), expected.predict(X))
    assert capsys.readouterr().out == ""
    assert clone(model).get_params()["weighting"] == "gradnorm"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps has to be 1"),
        ({"mixed_precision": "bf16"}, "set that of the estimator"),
    ],
)
def test_accelerators_that_would_be_ignored(accelerator, data, settings, message):
    from rheidae.estimator.distributed import DistributedFluxRegressor

    for name, value in settings.items():
        if name == "mixed_precision":
            accelerator.state._mixed_precision = value
        else:
            accelerator.gradient_state.plugin_kwargs["num_steps"] = value
    with pytest.raises(ValueError, match=message):
        DistributedFluxRegressor(accelerator=accelerator).fit(data.data, data.target)


def test_processes_that_do_not_know_each_other(accelerator, data, monkeypatch):
    from rheidae.estimator.distributed import DistributedFluxRegressor

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunError, match="2 processes were started, but the accelerator knows of one"):
        DistributedFluxRegressor(accelerator=accelerator).fit(data.data, data.target)


# --- python -m rheidae.train -----------------------------------------------------------------------------


def write_config(folder, config):
    for name, section in (("model.yaml", config), ("parms.yaml", PARMS)):
        (folder / name).write_text(yaml.safe_dump(section.model_dump()))
    return ["rheidae.train", "--config", folder / "model.yaml", "--train-parms", folder / "parms.yaml"]


def weights(folder):
    return load_file(folder / "weights.safetensors")


def test_the_command_leaves_the_run_folder_of_one_process(processed, tmp_path, python):
    config = config_for(processed, tmp_path)
    alone = train.train(config, PARMS, "alone")
    out, err, status = ended(launch(python, *write_config(tmp_path, config), "--run-id", "two"))
    assert status == {0}, err
    folder = alone.parent / "two"
    assert out.split() == [str(folder)]
    assert {path.name for path in folder.iterdir()} == {path.name for path in alone.iterdir()}
    assert list(weights(folder)) == list(weights(alone))
    for name, tensor in weights(alone).items():
        torch.testing.assert_close(weights(folder)[name], tensor, rtol=1e-4, atol=1e-5)
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    assert type(runs.load_run(folder).regressor) is FluxRegressor


def wait_for_epochs(process, log, epochs):
    started = time.monotonic()
    while not (log.exists() and log.read_text().count("\n") >= epochs):
        assert process.poll() is None
        assert time.monotonic() - started < 120
        time.sleep(0.05)


def test_a_signal_stops_all_and_one_process_goes_on(processed, tmp_path, python):
    written = write_config(tmp_path, config_for(processed, tmp_path, training={"epochs": 100_000}))
    folder = tmp_path / "runs" / "two"
    log = folder / "history.jsonl"
    processes = launch(python, *written, "--run-id", "two")
    try:
        wait_for_epochs(processes[0], log, 3)
        processes[1].send_signal(signal.SIGUSR1)  # only one of them hears of it
    finally:
        ended(processes, timeout=120)
    assert json.loads((folder / "run.json").read_text())["status"] == f"stopped by signal {int(signal.SIGUSR1)}"
    epoch = runs.load_state(folder)["epoch"]
    assert epoch >= 3
    before = log.read_text().splitlines()[:epoch]
    command = [python, "-m", *map(str, written), "--resume-from", str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        wait_for_epochs(process, log, epoch + 3)
        process.terminate()
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert f"going on after epoch {epoch}" in err
    assert runs.load_state(folder)["epoch"] >= epoch + 3
    after = log.read_text().splitlines()
    assert after[:epoch] == before
    # It went on where the two were: no jump back to an untrained network.
    losses = [json.loads(line)["train_loss"] for line in after]
    assert max(losses[epoch:]) < losses[0]


# --- the page, and SLURM played by a few lines of shell --------------------------------------------------


def page():
    return (ROOT / "docs" / "distributed.md").read_text()


def environment(**variables):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **variables}


def test_the_program_of_the_page(processed, tmp_path):
    (program,) = re.findall(r"```python\n(.*?)```", page(), re.DOTALL)
    (command,) = re.findall(r"^    (ACCELERATE_USE_CPU.*)$", page(), re.MULTILINE)
    (tmp_path / "program.py").write_text(program)
    (tmp_path / ".pdata").symlink_to(processed)
    # Others may use the default port.
    command = command.replace("launch", "launch --main_process_port 0")
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("train_loss") == 1
    model = pickle.loads((tmp_path / "model.pkl").read_bytes())
    assert type(model) is FluxRegressor
    assert len(model.history) == 5


SRUN = """#!/bin/bash
for (( task = 0; task < SLURM_NTASKS; task++ )); do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" &
    tasks+=($!)
done
for task in "${tasks[@]}"; do wait "$task" || status=$?; done
exit "${status:-0}"
"""
SCONTROL = """#!/bin/bash
[ "$1" = show ] && echo 127.0.0.1 || echo "$@"
"""


def test_the_batch_file_starts_all_and_queues_itself_again(processed, tmp_path, python):
    config = config_for(processed, tmp_path)
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "model.yaml").write_text(yaml.safe_dump(config.model_dump()))
    (tmp_path / "config" / "train_parms.yaml").write_text(yaml.safe_dump(PARMS.model_dump()))
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(python)
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def job(**variables):
        path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
        slurm = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "here", "RUN_ID": "nodes"}
        return subprocess.run(
            ["bash", str(ROOT / "config" / "slurm" / "train-nodes.sbatch")],
            cwd=tmp_path, env=environment(PATH=path, **slurm, **variables), capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    done = job()
    folder = tmp_path / "runs" / "nodes"
    assert (done.returncode, done.stdout) == (0, f"{folder}\n"), done.stderr
    assert len(json.loads((folder / "history.json").read_text())) == 4
    (tmp_path / "srun").write_text("#!/bin/sh\nexit 138\n")
    done = job()
    assert (done.returncode, done.stdout) == (0, "requeue 7\n")
