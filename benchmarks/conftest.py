"""Benchmarks print one table at the end: rates, and ratios within this run."""

import pytest

_ROWS = []


@pytest.fixture
def line():
    """Put a line into the table of `group`: samples per second, and a note behind it."""

    def write(group, name, per_second, note=""):
        _ROWS.append((group, name, per_second, note))

    return write


@pytest.fixture
def rate(benchmark, line):
    """Time ``work()`` on `samples` samples, put a line into the table, and return samples per second."""

    def measure(group, name, samples, work, rounds=7, note=""):
        benchmark.group = group
        benchmark.pedantic(work, rounds=rounds, warmup_rounds=1)
        per_second = samples / benchmark.stats["min"]
        line(group, name, per_second, note)
        return per_second

    return measure


def pytest_terminal_summary(terminalreporter):
    """Print the table; the first entry of each group is what the others are compared with."""
    for group in dict.fromkeys(row[0] for row in _ROWS):
        rows = [row for row in _ROWS if row[0] == group]
        terminalreporter.section(group)
        terminalreporter.write_line("samples per second (best round), and the ratio to the first line")
        for _, name, value, note in rows:
            ratio = value / rows[0][2]
            terminalreporter.write_line(
                f"{name:46s} {value:13,.0f} /s {1e6 / value:9.3f} us {ratio:8.2f} x  {note}".rstrip()
            )
