"""Searches over processes: the same results as without, and one thread for each."""

import multiprocessing
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor

import joblib
import numba
import numpy as np
import pytest
import torch
from sklearn.model_selection import GridSearchCV, GroupKFold
from skorch.callbacks import Callback

from rheidae import FluxRegressor
from rheidae.scoring.metrics import FluxScorer
from rheidae.system import threads as sharing
from rheidae.system.threads import default_threads, limited

GRID = {"lr": [1e-3, 1e-2], "module__hidden_dim": [4, 8]}
MANY = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "4")


class Threads(Callback):
    """Writes down where a model is trained, and by how many threads."""

    def on_batch_end(self, net, training=False, **kwargs):
        here = {"pid": os.getpid(), "torch": torch.get_num_threads(), "numba": numba.get_num_threads()}
        for name, value in here.items():
            net.history.record(name, value)


def scored(model, X, y):
    """A scorer's dict: skill, and where and by how many threads it was found."""
    return {
        "skill": FluxScorer("box3d_skill_score")(model, X, y),
        "torch": max(model.history[:, "torch"]),
        "numba": max(model.history[:, "numba"]),
        "pid": model.history[-1, "pid"],
        "schemes": default_threads(),
    }


@pytest.fixture(scope="module")
def rows(data):
    chosen = np.concatenate([np.flatnonzero(data.groups == group)[:25] for group in np.unique(data.groups)])
    return data.data[chosen], data.target[chosen], data.groups[chosen]


def search(rows, **options):
    X, y, groups = rows
    model = FluxRegressor(max_epochs=3, random_state=0, callbacks=[("threads", Threads())])
    found = GridSearchCV(
        model, GRID, scoring=scored, refit="skill", cv=GroupKFold(2), error_score="raise", **options
    ).fit(X, y, groups=groups)  # fmt: skip
    splits = {
        name: np.stack([found.cv_results_[f"split{fold}_test_{name}"] for fold in range(2)])
        for name in ("skill", "torch", "numba", "pid", "schemes")
    }
    return found, splits


@pytest.fixture(scope="module")
def here(rows):
    """The search in this process."""
    return search(rows)


def assert_same(found, splits, here):
    np.testing.assert_array_equal(splits["skill"], here[1]["skill"])
    assert found.best_params_ == here[0].best_params_
    ours, theirs = (model.best_estimator_.module_.state_dict() for model in (found, here[0]))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def assert_one_thread_each(splits, workers):
    assert os.getpid() not in splits["pid"]
    assert set(splits["pid"].ravel()) <= set(workers)
    assert (splits["torch"] == 1).all()
    assert (splits["numba"] == 1).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Dask leaves sockets to the garbage collector
def test_a_dask_cluster_searches_as_this_process_does(rows, here):
    distributed = pytest.importorskip("distributed", reason="needs the extra `cluster`")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0", silence_logs=50
        ) as cluster,
        distributed.Client(cluster) as client,
        joblib.parallel_config("dask", wait_for_workers_timeout=60),
    ):  # fmt: skip
        client.wait_for_workers(2)
        workers = client.run(os.getpid).values()
        # They would take four threads each, if nobody stopped them.
        client.run(torch.set_num_threads, 4)
        assert set(client.run(torch.get_num_threads).values()) == {4}
        found, splits = search(rows)
    assert_same(found, splits, here)
    assert_one_thread_each(splits, workers)
    assert len(set(splits["pid"].ravel())) == 2
    # Scorers and transformers too.
    assert (splits["schemes"] == 1).all()


@pytest.mark.slow
def test_jobs_of_joblib_search_as_this_process_does(rows, here, monkeypatch):
    for name, value in MANY.items():
        monkeypatch.setenv(name, value)
    with joblib.parallel_config("loky", n_jobs=2):
        found, splits = search(rows)
        # What was asked for in so many words, stays.
        assert (splits["schemes"] == 4).all()
    assert_same(found, splits, here)
    assert_one_thread_each(splits, splits["pid"].ravel())


def test_threads_of_the_training_alone(rows):
    X, y, _ = rows
    before = torch.get_num_threads(), numba.get_num_threads()
    with limited(numba.config.NUMBA_NUM_THREADS):
        for asked, expected in ((1, (1, 1)), (None, (numba.config.NUMBA_NUM_THREADS,) * 2)):
            model = FluxRegressor(max_epochs=1, threads=asked, callbacks=[Threads()]).fit(X, y)
            assert (model.history[-1, "torch"], model.history[-1, "numba"]) == expected
            assert (torch.get_num_threads(), numba.get_num_threads()) == (numba.config.NUMBA_NUM_THREADS,) * 2
        with pytest.raises(ValueError, match="threads=0 must be at least 1"):
            FluxRegressor(threads=0).fit(X, y)
    assert (torch.get_num_threads(), numba.get_num_threads()) == before


def test_threads_of_the_schemes(monkeypatch):
    used = []
    monkeypatch.setattr(sharing, "ThreadPoolExecutor", lambda count: used.append(count) or pytest.fail("asked"))
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    many = 1 << 20
    calls = []
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: object())
    sharing.share_rows(lambda start, stop: calls.append((start, stop)), many, None)
    assert (calls, used) == ([(0, many)], [])
    monkeypatch.setenv("NUMBA_NUM_THREADS", "2")
    assert default_threads() == numba.get_num_threads()


def test_models_fitted_in_threads_are_those_of_their_seeds(rows):
    X, y, _ = rows

    def predicted(seed):
        return FluxRegressor(max_epochs=3, random_state=seed).fit(X, y).predict(X)

    expected = [predicted(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(predicted, range(4)), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
    found = joblib.Parallel(4, backend="threading")(joblib.delayed(predicted)(seed) for seed in range(4))
    np.testing.assert_array_equal(found, expected)


# A process of its own: whatever goes wrong in a fork of this one would go on with the tests in its name.
FORK = """
import os, warnings
import numpy as np, torch
from rheidae import FluxRegressor, load_dataset
from rheidae.estimator.networks import ResidualFFIModel

data = load_dataset("@data")
X, y = data.data[::8], data.target[::8]
model = FluxRegressor(ResidualFFIModel, module__hidden_dim=64, max_epochs=1, random_state=0).fit(X, y)
many = np.tile(X, (-(-4096 // len(X)), 1))
torch.set_num_threads(2)
expected = model.predict(many)
torch.ones(1 << 20).exp()
warnings.simplefilter("ignore", DeprecationWarning)  # of forks of processes with threads
for model.threads in (1, 2, None):
    child = os.fork()
    if child == 0:
        status = 3
        try:
            status = 0 if np.allclose(model.predict(many), expected, rtol=1e-5) else 2
        finally:
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_process_predicts_after_torch_has_used_threads(processed, python):
    program = FORK.replace("@data", str(processed / "preprocessed_all.h5"))
    with subprocess.Popen([python, "-c", program], stdout=subprocess.PIPE, text=True) as run:
        try:
            printed, _ = run.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            run.kill()
            raise
    assert printed.split() == ["0", "0", "0"]
