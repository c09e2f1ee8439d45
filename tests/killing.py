"""Driver of the SIGKILL test: one process that has everything loaded forks a child per trial.

    python -m tests.killing CONFIG OLDER TRIALS

CONFIG is preprocessed once without disturbance, and its calls that change files are counted. Each trial starts from an
empty folder or from the finished outputs of the configuration OLDER, kills the command at one of these calls, evenly
spread over them, looks at what is there, runs it again, and compares.
"""

import itertools
import os
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

from rheidae.config import PreprocessConfig, read_config
from rheidae.preprocess.__main__ import main as command

CALLS = ("open", "pwrite", "ftruncate", "truncate", "fsync", "replace", "unlink", "close")
"""Functions of `os` at which a child may die."""


def count_calls(after):
    """Call `after(number)` once each of the `CALLS` is done."""
    numbers = itertools.count(1)

    def counted(function):
        def call(*arguments, **options):
            result = function(*arguments, **options)
            after(next(numbers))
            return result

        return call

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))


def start(work, after=None):
    """Call `work` in a child."""
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        if after is not None:
            count_calls(after)
        os._exit(work())
    return pid


def complete(work, after=None):
    _, status = os.waitpid(start(work, after), 0)
    assert status == 0, status


def count(work):
    """How many of the `CALLS` there are if nothing happens."""
    reading, writing = os.pipe()
    complete(work, lambda number: os.write(writing, b"."))
    return len(os.read(reading, 1 << 16))


def killed_at(work, last):
    """Whether `work` was killed at its call `last`."""

    def die(number):
        if number == last:
            os.kill(os.getpid(), signal.SIGKILL)

    _, status = os.waitpid(start(work, die), 0)
    return os.WIFSIGNALED(status)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def main(config, older, trials):
    out = Path(read_config(config, PreprocessConfig).output_root)
    # Loads and compiles everything that a child will need.
    assert command(["--config", str(older)]) == 0
    before = contents(out)
    shutil.rmtree(out)
    work = partial(command, ["--config", str(config)])
    calls = count(work)
    wanted = contents(out)
    assert before.keys() == wanted.keys()
    killed = leftovers = 0
    for trial in range(trials):
        shutil.rmtree(out)
        out.mkdir()
        first = before if trial % 2 else {}
        for name, data in first.items():
            (out / name).write_bytes(data)
        killed += killed_at(work, 1 + trial * calls // trials)
        left = contents(out)
        leftovers += any(name.startswith(".") for name in left)
        for name, data in left.items():
            if not name.startswith("."):
                assert data in (wanted[name], first.get(name)), f"trial {trial}: {name} is neither old nor new"
        assert left.keys() >= first.keys(), f"trial {trial}: an older file is gone"
        complete(work)
        assert contents(out) == wanted, f"trial {trial}: the second run did not make the same files"
    print(f"{trials} trials, {killed} killed, {leftovers} left something behind, {calls} calls in an undisturbed run")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
