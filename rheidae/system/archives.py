"""Zip archives of numbers, such as NumPy and torch write."""

from __future__ import annotations

import zipfile

from rheidae.system.outputs import size

_SMALL = 16 << 20
"""Bytes that may be unpacked from however few."""


def require_small(archive: zipfile.ZipFile) -> None:
    """Raise `ValueError` if an archive unpacks to much more than its own size; numbers are hardly compressible."""
    unpacked = sum(member.file_size for member in archive.infolist())
    packed = sum(member.compress_size for member in archive.infolist())
    if unpacked > max(_SMALL, 4 * packed):
        raise ValueError(f"unpacks to {size(unpacked)} from {size(packed)}")
