"""Keeping rows physical: ``N >= 0`` and ``|F| <= N`` of every species."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rheidae.mixing._physical_kernels import limit_rows
from rheidae.system.threads import share_rows


def keep_physical(F_init: NDArray[np.float64], F_final: NDArray[np.float64], threads: int | None = 1) -> None:
    """Shorten, in place, the change of each row that would leave ``N >= 0`` and ``|F| <= N``.

    Parameters
    ----------
    F_init : ndarray, shape (n, 6, 4)
        Physical four-fluxes, float64 and C-contiguous, any one unit.
    F_final : ndarray, shape (n, 6, 4)
        Likewise; becomes ``F_init + t (F_final - F_init)`` with the largest t in [0, 1] that keeps all six species
        physical. One t for the row, so that every linear conservation law survives. Rows that are physical stay as they
        are, bit for bit; a species that `F_init` has outside, by rounding or more, does not get further out. One that
        is outside by less than 1e-13 of the total density is put inside by that much density instead.
    threads : int, optional
        To share the rows among.
    """
    share_rows(lambda start, stop: limit_rows(F_init, F_final, start, stop), len(F_init), threads)
