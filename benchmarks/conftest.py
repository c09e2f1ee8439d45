"""Benchmarks print one table at the end: rates, and ratios within this run."""

import pytest

_ROWS = []


@pytest.fixture
def rate(benchmark):
    """Time ``work()`` on `samples` samples and put a line into the table of `group`."""

    def measure(group, name, samples, work, rounds=7):
        benchmark.group = group
        benchmark.pedantic(work, rounds=rounds, warmup_rounds=1)
        _ROWS.append((group, name, samples / benchmark.stats["min"]))

    return measure


def pytest_terminal_summary(terminalreporter):
    """Print the table; the first entry of each group is what the others are compared with."""
    for group in dict.fromkeys(row[0] for row in _ROWS):
        rows = [row for row in _ROWS if row[0] == group]
        terminalreporter.section(group)
        terminalreporter.write_line("samples per second (best round), and the ratio to the first line")
        for _, name, value in rows:
            terminalreporter.write_line(
                f"{name:44s} {value:14,.0f} /s {1e6 / value:10.3f} us {value / rows[0][2]:8.2f} x"
            )
