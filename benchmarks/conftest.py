"""Benchmarks print one table at the end: rates, and ratios within this run.

``RHEIDAE_BENCH_ROUNDS=1 pytest benchmarks`` runs each once, with a sixteenth of the rows, to see that it runs.
"""

import os
import time

import numpy as np
import pytest

_ROWS = []
ROUNDS = int(os.environ.get("RHEIDAE_BENCH_ROUNDS", 0))


def many(number):
    """So many, or a sixteenth where nothing is measured."""
    return number // 16 if ROUNDS == 1 else number


@pytest.fixture
def line():
    """Put a line into the table of `group`: samples per second, and a note behind it."""

    def write(group, name, per_second, note="", ratio=None):
        _ROWS.append((group, name, per_second, note, ratio))

    return write


@pytest.fixture
def rate(benchmark, line):
    """Time ``work()`` on `samples` samples, put a line into the table, and return samples per second."""

    def measure(group, name, samples, work, rounds=7, note=""):
        benchmark.group = group
        benchmark.pedantic(work, rounds=ROUNDS or rounds, warmup_rounds=ROUNDS != 1)
        per_second = samples / benchmark.stats["min"]
        line(group, name, per_second, note)
        return per_second

    return measure


@pytest.fixture
def in_turns(line):
    """Time several ways to do the same in turns, so that a load on the machine hits all of them.

    The rate is the median over the rounds, the ratio the median of each round's ratio to the first way.
    """

    def measure(group, samples, works, rounds=5):
        seconds = {name: [] for name in works}
        for turn in range((ROUNDS or rounds) + 1):
            for name, work in works.items():
                wall, cpu = time.perf_counter(), time.process_time()
                work()
                if turn:  # the first is for warming up
                    seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
        first = np.array(seconds[next(iter(works))])
        for name, found in seconds.items():
            ratio, ratio_cpu = np.median(first / np.array(found), axis=0)
            line(group, name, samples / np.median(found, axis=0)[0], f"{ratio_cpu:.2f} x in processor time", ratio)

    return measure


def pytest_terminal_summary(terminalreporter):
    """Print the table; the first entry of each group is what the others are compared with."""
    for group in dict.fromkeys(row[0] for row in _ROWS):
        rows = [row for row in _ROWS if row[0] == group]
        terminalreporter.section(group)
        terminalreporter.write_line("samples per second, and the ratio to the first line")
        for _, name, value, note, ratio in rows:
            ratio = value / rows[0][2] if ratio is None else ratio
            terminalreporter.write_line(
                f"{name:46s} {value:13,.0f} /s {1e6 / value:9.3f} us {ratio:8.2f} x  {note}".rstrip()
            )
