"""What an output was made from, in a few hundred bytes: whether it is still up to date."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import rheidae
from rheidae.config import PreprocessConfig, RawFile
from rheidae.exceptions import DataError
from rheidae.preprocess.rows import Column
from rheidae.system.h5 import H5_ERRORS, dataset, open_h5

FORMAT = 1
"""Raised when the same version of the package begins to write other numbers or names."""

ATTRIBUTE = "fingerprint"

# 64 pieces of 64 KiB, evenly spread, the first and the last bytes included: 4 MiB whatever the size, so that looking
# at an archive of terabytes takes a second. A smaller file is read whole. What changes a file elsewhere without
# touching its size and its time to the nanosecond goes unnoticed; --force is for that.
_PIECES, _PIECE = 64, 1 << 16

# How the work is done, and what other files hold, does not change the rows of one simulation.
_NOT_ROWS = {
    "data_root", "output_root", "output_filename", "files", "shuffle", "seed", "chunk_rows", "threads",
    "allow_external",
}  # fmt: skip


def of_source(path: Path) -> dict[str, Any]:
    """Size, time and content of a source file; raises `DataError` if it cannot be read."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            digest = hashlib.blake2b(digest_size=16)
            if status.st_size <= _PIECES * _PIECE:
                digest.update(file.read())
            else:
                for index in range(_PIECES):
                    file.seek((status.st_size - _PIECE) * index // (_PIECES - 1))
                    digest.update(file.read(_PIECE))
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}); see to its permissions, or fetch it again"
        ) from error
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "blake2b": digest.hexdigest()}


def of_simulation(sources: Sequence[dict[str, Any]], raw: RawFile, config: PreprocessConfig) -> str:
    """Fingerprint of one simulation's output: source (a raw file and those it links to), configuration and version."""
    return _text(
        source=sources,
        config=config.model_dump(exclude=_NOT_ROWS),
        file=raw.model_dump(include={"sim_id", "max_rows", "axes", "output_name"}),
    )


def of_combined(parts: list[str], config: PreprocessConfig) -> str:
    """Fingerprint of the combined file: those of its parts, in order, and the order of its rows."""
    digests = [hashlib.blake2b(part.encode(), digest_size=16).hexdigest() for part in parts]
    seed = config.seed if config.shuffle else None
    return _text(parts=digests, shuffle=config.shuffle, seed=seed, config=config.model_dump(exclude=_NOT_ROWS))


def _text(**content: Any) -> str:
    return json.dumps({"format": FORMAT, "rheidae_version": rheidae.__version__, **content}, sort_keys=True)


def up_to_date(path: Path, fingerprint: str, columns: Sequence[Column]) -> bool:
    """Whether the output `path` is whole and was made from what `fingerprint` says.

    It has to hold `columns`, strings of any length. Their numbers are not read: an output that another program has
    changed by hand needs ``--force``.
    """
    try:
        with open_h5(path) as file:
            return bool(file.attrs.get(ATTRIBUTE) == fingerprint) and _holds(file, columns)
    except (DataError, *H5_ERRORS):
        return False


def _holds(file: h5py.File, columns: Sequence[Column]) -> bool:
    rows = len(dataset(file, "sim_id"))
    for column in columns:
        stored, kind = dataset(file, column.name), np.dtype(column.dtype)
        alike = stored.dtype.kind == "S" if kind.kind == "S" else stored.dtype == kind
        if stored.shape != (rows, *column.shape) or not alike:
            return False
    return True
