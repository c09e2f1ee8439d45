import os
import signal

# Lets scikit-learn's checks of estimators pass other libraries' arrays; SciPy looks when it is imported.
os.environ.setdefault("SCIPY_ARRAY_API", "1")
# Two processes share the tests, and BLAS's threads wait for the next product at full speed.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

from rheidae.config import PreprocessConfig, check_config
from rheidae.datasets import load_dataset, write_sample
from rheidae.preprocess import preprocess
from tests.warm import interpreter

# Kernels compile on their first call, and the machine may be busy: time is no property to test.
settings.register_profile("rheidae", deadline=None)
settings.load_profile("rheidae")
# A shell without job control starts what runs in its background deaf to Ctrl-C, and programs of tests with it.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Two threads gain nothing at these sizes, and lose much where other programs use the second core.
torch.set_num_threads(1)

FAMILIES = ("random", "nsm_a", "nsm_b", "three_d")


# The files that take longest, which begin: two processes that share the files then end together.
LONGEST = (
    "test_docs", "test_export", "test_cluster", "test_julia", "test_preprocess_fuzz", "test_distributed",
    "test_asymptotic", "test_search", "test_runs", "test_simulate", "test_predict",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope="session")
def python(tmp_path_factory):
    """Command that stands for a Python which has everything loaded."""
    with interpreter(tmp_path_factory.mktemp("python")) as command:
        yield command


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    """Folder with the raw sample files."""
    folder = tmp_path_factory.mktemp("raw")
    write_sample(folder)
    return folder


def preprocessed(sample, folder, **options):
    files = [{"name": family, "path": f"emu_{family}.h5", **options} for family in FAMILIES]
    preprocess(check_config({"data_root": str(sample), "output_root": str(folder), "files": files}, PreprocessConfig))
    return folder


@pytest.fixture(scope="session")
def processed(sample, tmp_path_factory):
    """Folder with the preprocessed sample."""
    return preprocessed(sample, tmp_path_factory.mktemp("processed"))


@pytest.fixture(scope="session")
def dozens(sample, tmp_path_factory):
    """Folder with preprocessed files of a dozen rows of each family."""
    return preprocessed(sample, tmp_path_factory.mktemp("dozens"), max_rows=12)


@pytest.fixture(scope="session")
def data(processed):
    """The combined sample as a Bunch."""
    return load_dataset(processed / "preprocessed_all.h5")
