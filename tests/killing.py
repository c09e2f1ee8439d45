"""Driver of the SIGKILL test: one process that has everything loaded forks a child per trial.

    python -m tests.killing CONFIG OLDER TRIALS SEED

CONFIG is preprocessed once without disturbance. Each trial starts from an empty folder or from the finished outputs of
the configuration OLDER, kills the command at a random moment, looks at what is there, runs it again, and compares.
"""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from rheidae.config import PreprocessConfig, read_config
from rheidae.preprocess.__main__ import main as command


def start(config):
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os._exit(command(["--config", str(config)]))
    return pid


def complete(config):
    pid = start(config)
    _, status = os.waitpid(pid, 0)
    assert status == 0, status


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def main(config, older, trials, seed):
    out = Path(read_config(config, PreprocessConfig).output_root)
    choose = random.Random(seed)
    # Loads and compiles everything that a child will need.
    assert command(["--config", str(older)]) == 0
    before = contents(out)
    shutil.rmtree(out)
    started = time.perf_counter()
    complete(config)
    took = time.perf_counter() - started
    wanted = contents(out)
    assert before.keys() == wanted.keys()
    killed = leftovers = 0
    for trial in range(trials):
        shutil.rmtree(out)
        out.mkdir()
        first = before if trial % 2 else {}
        for name, data in first.items():
            (out / name).write_bytes(data)
        pid = start(config)
        time.sleep(choose.uniform(0, 1.1 * took))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        killed += os.WIFSIGNALED(status)
        found = contents(out)
        leftovers += any(name.startswith(".") for name in found)
        for name, data in found.items():
            if not name.startswith("."):
                assert data in (wanted[name], first.get(name)), f"trial {trial}: {name} is neither old nor new"
        assert found.keys() >= first.keys(), f"trial {trial}: an older file is gone"
        complete(config)
        assert contents(out) == wanted, f"trial {trial}: the second run did not make the same files"
    print(f"{trials} trials, {killed} killed, {leftovers} left something behind, undisturbed run {took:.2f} s")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
