"""Preprocessing under SIGKILL, on a full disk and with damaged input: the right files, or a message and none."""

import contextlib
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from rheidae import fourflux
from rheidae.preprocess import pipeline
from rheidae.preprocess.__main__ import main
from tests.rawfiles import INIT, NAMES, TRUE, config_for, read_all
from tests.states import random_states

pytestmark = pytest.mark.slow


def write_config(path, config):
    path.write_text(yaml.safe_dump(config.model_dump()))
    return path


def many_rows(path, n, **options):
    """A raw file of `n` good rows, made from a few states."""
    F = np.resize(random_states(500) * 1e33, (n, 6, 4)) * np.linspace(1, 2, n)[:, None, None]
    raw = fourflux.to_emu(F)
    with h5py.File(path, "w") as file:
        file.create_dataset(INIT, data=raw, **options)
        file.create_dataset(TRUE, data=raw, **options)
        file[NAMES] = np.array([b"run%d" % i for i in range(n)])


def test_sigkill_at_any_moment_leaves_nothing_wrong_and_nothing_in_the_way(tmp_path, python):
    many_rows(tmp_path / "a.h5", 2000)
    many_rows(tmp_path / "b.h5", 1200)
    config = write_config(tmp_path / "new.yaml", config_for(tmp_path, "a", "b", lebedev_order=17, chunk_rows=500))
    older = write_config(tmp_path / "old.yaml", config_for(tmp_path, "a", "b", lebedev_order=7))
    done = subprocess.run(
        [python, "-m", "tests.killing", str(config), str(older), "40"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)
    trials, killed, leftovers = map(int, re.findall(r"(\d+) (?:trials|killed|left)", done.stdout))
    assert trials == killed == 40
    assert leftovers > 20


# --- a full disk -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_file_system(folder, kilobytes):
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs the right to mount: {error}; the same tests ran with a limit on the size of files")
    try:
        yield r"disk full: needs .*B, .* free; make room"
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextlib.contextmanager
def small_files(folder, kilobytes):
    """What ``ulimit -f`` does; needs no rights."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * kilobytes, before[1]))
    try:
        yield r"\S+: cannot be written \(File too large\); see to the disk"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(params=[small_files, small_file_system])
def small_disk(request, tmp_path):
    """Folders in which only so much can be written, and how the message about that goes on."""

    @contextlib.contextmanager
    def limited(kilobytes):
        folder = tmp_path / f"disk{kilobytes}"
        folder.mkdir()
        with request.param(folder, kilobytes) as message:
            yield folder, message

    return limited


WITHOUT_ASKING_FIRST = """
import sys
from pathlib import Path
from rheidae.preprocess import pipeline
from rheidae.preprocess.__main__ import main
pipeline.require_space = lambda *_: None
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("options", "asks"),
    [({}, True), ({}, False), ({"compression": "gzip"}, False), ({"shuffle": False, "diagnostics": "minimal"}, False)],
)
def test_a_full_disk_is_an_error_and_leaves_no_partial_file(tmp_path, small_disk, capfd, monkeypatch, options, asks):
    many_rows(tmp_path / "a.h5", 1500)
    many_rows(tmp_path / "b.h5", 500)
    reference = config_for(tmp_path, "a", "b", chunk_rows=250, **options)
    assert main(["--config", str(write_config(tmp_path / "c.yaml", reference))]) == 0
    wanted = {path.name: read_all(path)[0] for path in (tmp_path / "out").iterdir()}
    total = sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) // 1024
    if not asks:
        # What fills up is found when it happens: someone else may need the space meanwhile.
        monkeypatch.setattr(pipeline, "require_space", lambda *_: None)
    outcomes = set()
    for share in (0, 0.02, 0.3, 0.37, 0.52, 0.7, 0.95, 2):
        with small_disk(max(4, int(total * share))) as (disk, expected):
            config = write_config(tmp_path / "c.yaml", reference.model_copy(update={"output_root": str(disk)}))
            capfd.readouterr()
            status = main(["--config", str(config)])
            message = capfd.readouterr().err
            outcomes.add(status)
            assert status in (0, 2)
            assert "Traceback" not in message
            if status == 2:
                assert re.search(rf"error: {disk}.*{expected}", message), message
            assert_whole(disk, wanted, status)
    assert outcomes == {0, 2}


def assert_whole(disk, wanted, status):
    """What lies there is complete, and all of it does if the command says so."""
    for path in disk.iterdir():
        values = read_all(path)[0]
        assert values.keys() == wanted[path.name].keys()
        for name, value in values.items():
            np.testing.assert_array_equal(value, wanted[path.name][name])
    if status == 0:
        assert {path.name for path in disk.iterdir()} == set(wanted)


@pytest.mark.parametrize("options", [{}, {"compression": "gzip"}])
def test_a_full_disk_ends_the_process_as_cleanly(tmp_path, small_disk, options):
    """HDF5 tries to write once more when the process ends, and complains, if it holds anything unwritten then."""
    many_rows(tmp_path / "a.h5", 1500)
    with small_disk(600) as (disk, expected):
        config = config_for(tmp_path, "a", output_root=str(disk), **options)
        path = write_config(tmp_path / "c.yaml", config)
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_ASKING_FIRST, "--config", str(path)], capture_output=True, text=True
        )
        assert done.returncode == 2
        assert re.fullmatch(rf"(compiling kernels.*\n)?error: {disk}.*{expected}.*\n", done.stderr)
        assert list(disk.iterdir()) == []


# --- files that arrived half ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"chunks": (64, 4, 2, 3)}, {"chunks": (50, 4, 2, 3), "compression": "gzip", "shuffle": True}]
)
def test_a_file_truncated_anywhere_is_an_error(tmp_path, capfd, options):
    many_rows(tmp_path / "a.h5", 300, **options)
    whole = (tmp_path / "a.h5").read_bytes()
    config = str(write_config(tmp_path / "c.yaml", config_for(tmp_path, "a", chunk_rows=50)))
    rng = np.random.default_rng(3)
    for length in [0, 1, 8, 96, len(whole) - 1, *rng.integers(0, len(whole), 25).tolist()]:
        (tmp_path / "a.h5").write_bytes(whole[:length])
        capfd.readouterr()
        assert main(["--config", config]) == 2
        message = capfd.readouterr().err
        assert message.startswith(f"error: {tmp_path / 'a.h5'}: ")
        assert len(message.splitlines()) == 1
        assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "a.h5").write_bytes(whole)
    assert main(["--config", config]) == 0


def test_a_file_cut_short_while_it_is_read_is_an_error(tmp_path, monkeypatch):
    many_rows(tmp_path / "a.h5", 2000)
    size = (tmp_path / "a.h5").stat().st_size
    work = pipeline._process_block

    def cut(block):
        if block.start >= 1000:
            os.truncate(tmp_path / "a.h5", size // 3)
        return work(block)

    monkeypatch.setattr(pipeline, "_process_block", cut)
    with pytest.raises(pipeline.DataError, match=r"a\.h5: dataset .*, rows \d+ to \d+: cannot be read|a\.h5: cannot"):
        pipeline.preprocess(config_for(tmp_path, "a", chunk_rows=100))
    assert list((tmp_path / "out").iterdir()) == []
