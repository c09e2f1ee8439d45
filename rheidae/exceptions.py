"""Errors that a user can act on: each message says what was found, where, and what to do."""

from __future__ import annotations


class RheidaeError(Exception):
    """Base of the package's own errors; the commands print it as one line and leave with status 2."""


class ConfigError(RheidaeError):
    """A configuration file has an unknown, mistyped or not yet supported entry."""


class DataError(RheidaeError):
    """A data file is missing, malformed or holds values that are not physical."""


class FourFluxError(RheidaeError, ValueError):
    """An array is not an array of physical four-fluxes."""


class RunError(RheidaeError):
    """A training run cannot be started, read or evaluated."""


class ExportError(RheidaeError):
    """A model cannot be exported, or an exported file cannot be used."""


class OutputError(RheidaeError):
    """Outputs cannot be written: the disk is full, or another run is at work in the same folder."""


class ClusterError(RheidaeError):
    """A Dask cluster cannot be reached, or lost its workers; or a process that helps this one was killed."""


class RunStopped(RheidaeError):  # noqa: N818 - nothing went wrong
    """A signal asked a training run to leave; what it had is saved.

    Attributes
    ----------
    signal : int
        Which one.
    """

    def __init__(self, signal: int) -> None:
        super().__init__(f"stopped by signal {signal}")
        self.signal = signal
