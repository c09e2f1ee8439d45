"""The same files from a Dask cluster as from threads, also if a worker dies."""

import os
import signal
import threading
import time

import h5py
import numpy as np
import pytest

from rheidae import fourflux, preprocess
from rheidae.exceptions import ClusterError, DataError
from tests.states import random_states
from tests.test_preprocess import INIT, NAMES, TRUE, config_for, spoil_many

distributed = pytest.importorskip("distributed", reason="needs the extra `cluster`")
# Dask leaves sockets and event loops to the garbage collector when workers die.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),
]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def raw(tmp_path):
    F = np.resize(random_states(300) * 1e33, (60_000, 6, 4)) * np.linspace(1, 2, 60_000)[:, None, None]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file[INIT] = file[TRUE] = fourflux.to_emu(F)
        file[NAMES] = [f"run{i}" for i in range(len(F))]
    return tmp_path


@pytest.fixture
def cluster():
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
    ) as running:
        yield running


def test_a_worker_killed_in_the_middle_changes_nothing(raw, cluster):
    config = config_for(raw, "a", chunk_rows=500, schemes=["box3d", "power"])
    preprocess.preprocess(config)
    expected = contents(raw / "out")
    with distributed.Client(cluster) as client:
        before = client.run(os.getpid)

        def kill():
            # The file is there, under its temporary name, once the first rows are about to be written.
            while not list((raw / "out").glob(".a_preprocessed.h5.*.tmp")):
                time.sleep(0.005)
            time.sleep(0.3)
            os.kill(next(iter(before.values())), signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        preprocess.preprocess(config, resume=False, scheduler=cluster.scheduler_address)
        killer.join()
        client.wait_for_workers(2, timeout=30)
        after = client.run(os.getpid)
    assert set(before.values()) != set(after.values())
    assert contents(raw / "out") == expected


def test_local_processes_and_their_errors(raw):
    config = config_for(raw, "a", on_bad_rows="drop", compression="gzip")
    preprocess.preprocess(config)
    expected = contents(raw / "out")
    preprocess.preprocess(config, resume=False, scheduler="local:2")
    assert contents(raw / "out") == expected
    spoil_many(raw)
    with pytest.raises(DataError, match=r"a\.h5: dataset .*row 3, nu_tau.*6 of 50 rows are bad"):
        preprocess.preprocess(config_for(raw, "a"), scheduler="local:1")
    assert contents(raw / "out") == expected


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [("local:none", "such as local:4"), ("here", "tcp://host:port"), ("tcp://127.0.0.1:1", "cannot be reached")],
)
def test_schedulers_that_do_not_exist(raw, monkeypatch, scheduler, message):
    from rheidae import cluster

    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 2)
    with pytest.raises(ClusterError, match=message):
        preprocess.preprocess(config_for(raw, "a"), scheduler=scheduler)
    assert list((raw / "out").iterdir()) == []
