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


_GROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# By the name of the controller in the latter, version 2 and 1: folder of the groups, files of the limit and of the use,
# and what of that is cache, which gives way.
_VERSIONS = {
    "": ("", "memory.max", "memory.current", "inactive_file"),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}

LEAST = 600 << 20
"""Bytes of address space that compiled kernels and what they are compiled with take."""


def free_memory() -> float:
    """Bytes that this process can still take; infinite where the system does not say."""
    free = math.inf
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    free = min(free, _free_in_groups())
    with suppress(OSError, ValueError):
        limit = resource.getrlimit(resource.RLIMIT_AS)[0] if resource else -1
        if limit >= 0:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            free = min(free, limit - pages * resource.getpagesize())
    return max(free, 0.0)


def _free_in_groups() -> float:
    """The same of the control groups of the process, a container's or a batch job's, and of those around them."""
    free = math.inf
    with suppress(OSError):
        for line in _OWN_GROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers not in _VERSIONS:
                continue
            folder, limit, use, cache = _VERSIONS[controllers]
            group = _GROUPS / folder / path.lstrip("/")
            for place in (group, *group.parents):
                # In a container the path may be that of its host, and not be there.
                with suppress(OSError, ValueError, StopIteration):
                    lines = (place / "memory.stat").read_text().splitlines()
                    gives_way = int(next(line for line in lines if line.startswith(f"{cache} ")).split()[1])
                    used = int((place / use).read_text()) - gives_way
                    free = min(free, int((place / limit).read_text()) - used)
                if place == _GROUPS / folder:
                    break
    return free


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
