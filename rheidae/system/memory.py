"""How much memory is left."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path

from rheidae.exceptions import DataError, RheidaeError
from rheidae.system.outputs import size

try:
    import resource
except ImportError:  # pragma: no cover - outside Unix
    resource = None  # type: ignore[assignment]


LEAST = 600 << 20
"""Bytes of address space that compiled kernels and what they are compiled with take."""


def free_memory() -> float:
    """Bytes that this process can still take; infinite where the system does not say."""
    free = math.inf
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    # Of a container or a batch job; its page cache gives way.
    with suppress(OSError, ValueError, StopIteration):
        group = Path("/sys/fs/cgroup")
        lines = (group / "memory.stat").read_text().splitlines()
        cache = int(next(line for line in lines if line.startswith("inactive_file ")).split()[1])
        used = int((group / "memory.current").read_text()) - cache
        free = min(free, int((group / "memory.max").read_text()) - used)
    with suppress(OSError, ValueError):
        limit = resource.getrlimit(resource.RLIMIT_AS)[0] if resource else -1
        if limit >= 0:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            free = min(free, limit - pages * resource.getpagesize())
    return max(free, 0.0)


def require_address_space() -> None:
    """Raise `RheidaeError` under a limit in which the compiler of kernels would end the process without a word."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0] if resource else -1
    if 0 <= limit < LEAST:
        raise RheidaeError(
            f"ulimit -v leaves {size(limit)} of address space, and {size(LEAST)} are the least (with torch twice as "
            "much): raise it, or limit the memory by a control group"
        )


def require_memory(
    needed: float, what: str, remedy: str = "take fewer rows", error: type[RheidaeError] = DataError
) -> None:
    """Raise `error` if `what` takes more bytes than there are, before any is taken."""
    free = free_memory()
    if needed > free:
        raise error(f"{what} takes {size(needed)} of memory, and {size(free)} are free; {remedy}")
