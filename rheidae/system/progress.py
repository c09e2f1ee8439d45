"""How far a long command is: a bar where a person watches, a line now and then in a log."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from rheidae.system import commands
from rheidae.system.outputs import size

log = logging.getLogger(__name__)

LINE_EVERY = 10.0
"""Seconds between two lines in a log."""


class Progress:
    """Rows done of all there are, rows per second and time left; a context manager."""

    def __init__(self, name: str, rows: int) -> None:
        self.name = name
        self.rows = rows
        self.done = 0
        self.started = self._spoke = time.perf_counter()
        watched = commands.on_terminal()
        self._bar = tqdm(total=rows, desc=name, unit="row", unit_scale=True, leave=False) if watched else None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def finish(self, summary: str) -> None:
        """Say in a log what was done, and how fast."""
        if self._bar is None:
            seconds = max(time.perf_counter() - self.started, 1e-9)
            log.info("%s, %.1f s, %.0f rows/s", summary, seconds, self.done / seconds)

    def advance(self, rows: int) -> None:
        """Count more rows as done."""
        self.done += rows
        if self._bar is not None:
            self._bar.update(rows)
            return
        now = time.perf_counter()
        if now - self._spoke >= LINE_EVERY and self.done < self.rows:
            self._spoke = now
            rate = self.done / (now - self.started)
            left = (self.rows - self.done) / rate
            log.info("%s: %d of %d rows, %.0f rows/s, %.0f s left", self.name, self.done, self.rows, rate, left)


class Stages:
    """Bytes and seconds by stage. Stages overlap: their seconds are those of all threads together."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.bytes: Counter[str] = Counter()

    def add(self, stage: str, seconds: float, count: int = 0) -> None:
        """Count seconds and bytes in."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        self.bytes[stage] += count

    def update(self, other: Stages) -> None:
        """Count in what another thread or process did."""
        for stage, seconds in other.seconds.items():
            self.add(stage, seconds, other.bytes[stage])

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the seconds of a block in."""
        started = time.perf_counter()
        yield
        self.add(stage, time.perf_counter() - started)

    def lines(self) -> list[str]:
        """Return the report, a line for each stage."""
        return [
            f"{stage:10s} {size(self.bytes[stage]) if self.bytes[stage] else '':>10s} {seconds:9.2f} s"
            for stage, seconds in self.seconds.items()
        ]
