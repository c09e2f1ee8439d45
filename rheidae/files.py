"""Opening and finishing files: every HDF5 file of the package goes through here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import h5py

from rheidae.exceptions import DataError

# Archives often lie on read-only or network file systems that refuse locks; nothing here depends on one,
# because outputs are written under a name of their own and renamed when complete.
_LOCKING = "best-effort"


@contextmanager
def open_h5(path: str | Path, remedy: str = "check the path") -> Iterator[h5py.File]:
    """Open an HDF5 file for reading.

    Parameters
    ----------
    path : path
        The file.
    remedy : str
        What the message advises where the file does not exist.

    Raises
    ------
    DataError
        If the file does not exist, is not HDF5 or is cut short.
    """
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file; {remedy}")
    try:
        file = h5py.File(path, "r", locking=_LOCKING)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be opened as HDF5 ({error}); the file is not HDF5 or cut short: fetch it again"
        ) from error
    with file:
        yield file


def dataset(file: h5py.File, name: str, remedy: str = "check the name") -> h5py.Dataset:
    """Return a dataset of an open file, or raise `DataError` that lists what the file holds."""
    found = file.get(name)
    if not isinstance(found, h5py.Dataset):
        held = ", ".join(sorted(file)) or "nothing"
        raise DataError(f"{file.filename}: no dataset {name!r}; {remedy}. The file holds: {held}")
    return found


def read(source: h5py.Dataset, start: int, stop: int, axis: int = 0) -> Any:
    """Read ``start:stop`` along the row axis; a damaged chunk raises `DataError` naming file, dataset and rows."""
    try:
        return source[(slice(None),) * axis + (slice(start, stop),)]
    except OSError as error:
        raise DataError(
            f"{source.file.filename}: dataset {source.name.lstrip('/')!r}, rows {start} to {stop - 1}: "
            f"cannot be read ({error}); fetch the file again"
        ) from error


class Outputs:
    """Output files that appear under their names together, when all of them are complete.

    Each is written under a temporary name in its own folder. Leaving the ``with`` block without an error
    syncs and renames all of them; an error removes them and leaves what was there before.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[Path, Path]] = []
        self._open = ExitStack()

    def __enter__(self) -> Outputs:
        return self

    def path(self, target: str | Path) -> Path:
        """Return the temporary path under which the file `target` is to be written."""
        target = Path(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        self._pending.append((temporary, target))
        return temporary

    def create_h5(self, target: str | Path) -> h5py.File:
        """Create the HDF5 file `target`, open for writing and reading until the block ends."""
        return self._open.enter_context(h5py.File(self.path(target), "w", libver="v110", locking=_LOCKING))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._open.close()
            if kind is None:
                for temporary, _target in self._pending:
                    _sync(temporary)
                for temporary, target in self._pending:
                    os.replace(temporary, target)
                for folder in {target.parent for _, target in self._pending}:
                    _sync(folder)
        finally:
            for temporary, _target in self._pending:
                temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(target: str | Path, text: str) -> None:
    """Write a text file under its name only once it is complete."""
    with Outputs() as outputs:
        outputs.path(target).write_text(text, encoding="utf-8")
