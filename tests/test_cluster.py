"""The same files from a Dask cluster as from threads, also if a worker dies."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

import rheidae
from rheidae import fourflux
from rheidae.exceptions import ClusterError, DataError
from rheidae.preprocess import pipeline
from rheidae.system.cluster import Cluster, _greet
from tests.rawfiles import INIT, NAMES, TRUE, config_for, spoil_many
from tests.states import random_states

distributed = pytest.importorskip("distributed", reason="needs the extra `cluster`")
# Dask leaves sockets and event loops to the garbage collector when workers die.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),
]


def wait_until(condition):
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < 120
        time.sleep(0.01)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def raw(tmp_path):
    F = np.resize(random_states(300) * 1e33, (12_000, 6, 4)) * np.linspace(1, 2, 12_000)[:, None, None]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file[INIT] = file[TRUE] = fourflux.to_emu(F)
        file[NAMES] = [f"run{i}" for i in range(len(F))]
    return tmp_path


@pytest.fixture(scope="module")
def cluster():
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0", silence_logs=50
    ) as running:
        yield running


def test_a_worker_killed_in_the_middle_changes_nothing(raw, cluster, monkeypatch):
    config = config_for(raw, "a", chunk_rows=400, schemes=["box3d", "power"])
    pipeline.preprocess(config)
    expected = contents(raw / "out")
    with distributed.Client(cluster) as client:
        before = client.run(os.getpid)

        run = Cluster.run

        def killing(self, work, blocks):
            for number, result in enumerate(run(self, work, blocks)):
                if number == 5 and work is pipeline._process_block:
                    os.kill(next(iter(before.values())), signal.SIGKILL)
                yield result

        monkeypatch.setattr(Cluster, "run", killing)
        pipeline.preprocess(config, resume=False, scheduler=cluster.scheduler_address)
        client.wait_for_workers(2, timeout=30)
        after = client.run(os.getpid)
    assert set(before.values()) != set(after.values())
    assert contents(raw / "out") == expected


def test_local_processes_and_their_errors(raw):
    config = config_for(raw, "a", on_bad_rows="drop", compression="gzip")
    pipeline.preprocess(config)
    expected = contents(raw / "out")
    pipeline.preprocess(config, resume=False, scheduler="local:2")
    assert contents(raw / "out") == expected
    spoil_many(raw)
    with pytest.raises(DataError, match=r"a\.h5: dataset .*row 3, nu_tau.*6 of 50 rows are bad"):
        pipeline.preprocess(config_for(raw, "a"), scheduler="local:1")
    assert contents(raw / "out") == expected


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [("local:none", "such as local:4"), ("here", "tcp://host:port"), ("tcp://127.0.0.1:1", "cannot be reached")],
)
def test_schedulers_that_do_not_exist(raw, monkeypatch, scheduler, message):
    from rheidae.system import cluster

    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 2)
    with pytest.raises(ClusterError, match=message):
        pipeline.preprocess(config_for(raw, "a"), scheduler=scheduler)
    assert list((raw / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("greeting", "message"), [(b"", "no answer within 2 s"), (b"SSH-2.0-OpenSSH_9.2\r\n", "there is no Dask scheduler")]
)
def test_another_program_at_the_address(raw, monkeypatch, greeting, message):
    from rheidae.system import cluster

    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 2)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.sendall(greeting)
                while connection.recv(1000):
                    pass

        thread = threading.Thread(target=answer)
        thread.start()
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ClusterError, match=rf"{address}: cannot be reached \(.*{message}\); is it running"):
            pipeline.preprocess(config_for(raw, "a"), scheduler=address)
        thread.join()


INTERRUPTED = """
import os, signal, sys
from rheidae.preprocess.__main__ import main
from rheidae.system.cluster import Cluster

run = Cluster.run


def interrupted(self, work, blocks):
    for number, result in enumerate(run(self, work, blocks)):
        if number == 3:
            os.killpg(0, signal.SIGINT)
        yield result


Cluster.run = interrupted
sys.exit(main(sys.argv[1:]))
"""


def test_ctrl_c_with_processes(raw, python):
    """A terminal sends it to all of them; here the program does so itself, with most pieces still to come."""
    config = config_for(raw, "a", chunk_rows=1000)
    (raw / "config.yaml").write_text(yaml.safe_dump(config.model_dump()))
    done = subprocess.run(
        [python, "-c", INTERRUPTED, "--config", raw / "config.yaml", "--scheduler", "local:2"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert done.returncode == 130
    assert done.stderr.endswith("interrupted\n")
    assert "Traceback" not in done.stderr
    assert list((raw / "out").iterdir()) == []


def test_workers_have_to_see_the_same_files_and_version(tmp_path, monkeypatch, cluster):
    path = tmp_path / "a"
    path.write_bytes(b"1234")
    assert _greet(rheidae.__version__, {str(path): 4}) is None
    assert f"does not see {path}" in _greet(rheidae.__version__, {str(path): 5})
    assert f"does not see {path}x" in _greet(rheidae.__version__, {f"{path}x": 4})
    with Cluster(cluster.scheduler_address) as workers:
        workers.require([path])
        with pytest.raises(ClusterError, match=r"a worker does not see .*removed a; workers need"):
            list(workers.run(os.stat, [(str(tmp_path / "removed a"),)]))
        monkeypatch.setattr(rheidae, "__version__", "999")
        with pytest.raises(ClusterError, match=r"worker tcp://\S+ has rheidae \S+ and not 999; install the same"):
            workers.require([path])


def dask(*arguments):
    """A scheduler or a worker as a program of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "dask", *arguments, "--no-dashboard"], stderr=subprocess.DEVNULL, start_new_session=True
    )


def end(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_cluster_without_workers_and_one_whose_scheduler_dies(raw, monkeypatch, caplog):
    from rheidae.system import cluster

    monkeypatch.setattr(cluster, "SILENT_SECONDS", 0.2)
    caplog.set_level("INFO")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    address = f"tcp://127.0.0.1:{port}"
    with contextlib.ExitStack() as stack:

        def start(*arguments):
            process = dask(*arguments)
            stack.callback(end, process)
            return process

        scheduler = start("scheduler", "--host", "127.0.0.1", "--port", port)

        def disturb():
            while "no workers yet" not in caplog.text:
                time.sleep(0.01)
            first = start("worker", address, "--nthreads", "1")
            while not list((raw / "out").glob(".a_preprocessed.h5.*.tmp")):
                time.sleep(0.01)
            end(first)
            while "no worker is left; waiting for one" not in caplog.text:
                time.sleep(0.01)
            end(scheduler)

        thread = threading.Thread(target=disturb)
        thread.start()
        with pytest.raises(ClusterError, match=r"connection to the scheduler is lost; start it again, then run again"):
            pipeline.preprocess(config_for(raw, "a", chunk_rows=10), scheduler=address)
        thread.join()
    assert list((raw / "out").iterdir()) == []


# --- SLURM, played by a few lines of shell ---------------------------------------------------------------------

ROOT = Path(__file__).parents[1]

SBATCH = """#!/bin/bash
# The script is removed once it is submitted.
job=$(mktemp "$SLURM_FOLDER/job.XXXXXX")
cat "$1" > "$job"
setsid bash "$job" > "$job.log" 2>&1 &
echo "Submitted batch job $!"
"""
SCANCEL = """#!/bin/bash
for job in "$@"; do kill -- -"$job" 2> /dev/null; done
true
"""


def programs(folder, **scripts):
    """An environment in which these commands come first on the PATH."""
    folder.mkdir()
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "SLURM_FOLDER": str(folder)}


def write_config(raw, **options):
    (raw / "config").mkdir()
    config = config_for(raw, "a", **options)
    (raw / "config" / "pre_process.yaml").write_text(yaml.safe_dump(config.model_dump()))
    return config


def test_the_example_with_dask_jobqueue(raw):
    pytest.importorskip("dask_jobqueue", reason="needs the extra `cluster`")
    config = write_config(raw, chunk_rows=400)
    pipeline.preprocess(config)
    expected = contents(raw / "out")
    shutil.rmtree(raw / "out")
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "cluster.md").read_text(), re.DOTALL)
    (raw / "example.py").write_text(example)
    environment = programs(raw / "bin", sbatch=SBATCH, scancel=SCANCEL)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "example.py"],
        cwd=raw, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list((raw / "bin").glob("job.*"))
    assert contents(raw / "out") == expected


def test_the_batch_file_queues_itself_again_when_its_time_is_up(raw):
    write_config(raw)
    (raw / ".venv" / "bin").mkdir(parents=True)
    (raw / ".venv" / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (raw / ".venv" / "bin" / "python").chmod(0o755)

    def job(srun, **variables):
        environment = programs(raw / f"bin{len(list(raw.iterdir()))}", srun=srun, scontrol='#!/bin/sh\necho "$@"\n')
        return subprocess.run(
            ["bash", str(ROOT / "config" / "slurm" / "preprocess.sbatch")],
            cwd=raw, env={**environment, "SLURM_JOB_ID": "7", **variables}, capture_output=True, text=True,
        )  # fmt: skip

    done = job('#!/bin/sh\nexec "$@"\n')
    assert done.returncode == 0, done.stderr
    assert (raw / "out" / "preprocessed_all.h5").exists()
    time_is_up = "#!/bin/sh\nexit 143\n"
    assert (job(time_is_up).returncode, job(time_is_up).stdout) == (0, "requeue 7\n")
    assert (job(time_is_up, SLURM_RESTART_COUNT="5").returncode, job("#!/bin/sh\nexit 2\n").returncode) == (143, 2)
