"""Rows that are not physical: recognised, counted, named, and where that makes sense mended."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rheidae import fourflux
from rheidae.config import Tolerances
from rheidae.preprocess._badrows_kernels import (
    EMPTY,
    NEGATIVE,
    NOT_FINITE,
    OUT_OF_RANGE,
    TOO_FAST,
    TOTALS_DIFFER,
    classify_rows,
)

NO_FINAL = 7
"""All numbers of the final state are NaN, as where a file has none and the row is not stable."""

KINDS = {
    NOT_FINITE: "not finite",
    NEGATIVE: "negative density",
    TOO_FAST: "|F| > N",
    EMPTY: "all zero",
    OUT_OF_RANGE: "out of range",
    TOTALS_DIFFER: "totals differ",
    NO_FINAL: "no final state",
}
"""What can be wrong with a row. A row counts once, under the first of these that it shows."""

IN_FINAL = 16
"""Added to the kind if the final state shows it and the initial one does not."""

Kinds = NDArray[np.uint8]


def classify(F_init: fourflux.Float, F_true: fourflux.Float, tolerances: Tolerances) -> Kinds:
    """What is wrong with each row ``(n,)``: 0, or one of `KINDS`, plus `IN_FINAL` if the final state alone shows it.

    Initial and final four-fluxes are ``(n, 6, 4)``, 1/cm^3, float64, C-contiguous.
    """
    kinds = np.empty(len(F_init), dtype=np.uint8)
    # A hair below what Box3D itself accepts, whose check rounds in another order.
    classify_rows(F_init, F_true, fourflux.FLUX_TOLERANCE * (1 - 1e-9), tolerances.totals, kinds)
    suspects = np.flatnonzero(kinds == NOT_FINITE + IN_FINAL)
    kinds[suspects[np.isnan(F_true[suspects]).all(axis=(1, 2))]] = NO_FINAL
    return kinds


def counted(kinds: Kinds) -> dict[str, int]:
    """Number of bad rows by kind, the kinds that do not occur left out."""
    counts = np.bincount(kinds % IN_FINAL, minlength=len(KINDS) + 1)
    return {name: int(counts[kind]) for kind, name in KINDS.items() if counts[kind]}


class Clipped(NamedTuple):
    """Rows mended by `clip`, and what they were before; `left` is what could not be mended."""

    kinds: Kinds
    left: Kinds


def clip(F_init: fourflux.Float, F_true: fourflux.Float, tolerances: Tolerances) -> Clipped:
    """Mend, in place, the rows in which a number is slightly off.

    A flux longer than its density is shortened to it, whatever its excess. A negative density of at most
    ``tolerances.clip_negative`` of the row's total becomes 0, and its flux with it. Rows that are bad for another
    reason, or still bad afterwards, stay as they are.
    """
    kinds = classify(F_init, F_true, tolerances)
    bad = np.flatnonzero(kinds)
    if len(bad):
        init, true = (_clipped(F[bad], tolerances.clip_negative) for F in (F_init, F_true))
        after = classify(init, true, tolerances)
        mended = after == 0
        F_init[bad[mended]], F_true[bad[mended]] = init[mended], true[mended]
        left = np.zeros_like(kinds)
        left[bad] = after
        return Clipped(kinds, left)
    return Clipped(kinds, kinds)


def _clipped(F: fourflux.Float, clip_negative: float) -> fourflux.Float:
    F = F.copy()
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        N = F[..., fourflux.T]
        total = np.abs(N).sum(axis=1, keepdims=True)
        F[(N < 0) & (clip_negative * total >= -N)] = 0.0
        N = F[..., fourflux.T]
        # The largest component is taken out, so that squares stay in range.
        peak = np.abs(F[..., :3]).max(axis=-1)
        length = peak * np.linalg.norm(F[..., :3] / np.where(peak > 0, peak, 1.0)[..., None], axis=-1)
        too_fast = (length > N) & (N >= 0) & np.isfinite(length)
        F[..., :3] *= np.where(too_fast, N / np.where(length > 0, length, 1.0), 1.0)[..., None]
    return F


def describe(F_init: fourflux.Float, F_true: fourflux.Float, kind: int, row: int, tolerances: Tolerances) -> str:
    """Return one sentence on a bad row (both states of shape ``(6, 4)``), without file and dataset."""
    F = F_true if kind >= IN_FINAL else F_init
    kind %= IN_FINAL
    if kind == TOTALS_DIFFER:
        sums = [state[:, fourflux.T].reshape(2, 3).sum(axis=1) for state in (F_init, F_true)]
        share = np.abs(sums[1] - sums[0]) / sums[0].sum()
        which = int(np.argmax(share))
        return (
            f"row {row}: the {('neutrinos', 'antineutrinos')[which]} number {sums[1][which]:.6g} in all, "
            f"{sums[0][which]:.6g} before; the totals differ by {share[which]:.2g} of the row's density, more than "
            f"tolerances.totals = {tolerances.totals:g}"
        )
    if kind == NO_FINAL:
        return f"row {row}: there is no final state, nor is the row marked as stable (h5_paths.stable)"
    if kind in (EMPTY, OUT_OF_RANGE):
        total = fourflux.total_density(F[None])[0]
        why = "is that of an empty row" if kind == EMPTY else "is outside 1e-30 to 1e38, which single precision holds"
        return f"row {row}: the total density {total:g} {why}"
    unphysical = fourflux.first_unphysical(np.ascontiguousarray(_worst(F, kind)[None]))
    if unphysical is None:  # the two checks differ in the last digit only
        return f"row {row}: {KINDS[kind]}"
    return str(unphysical._replace(row=row))


def _worst(F: fourflux.Float, kind: int) -> fourflux.Float:
    """Blank the species that show another fault, so that the message speaks of the one that is counted."""
    finite = np.isfinite(F).all(axis=1)
    shows: Any = finite
    if kind == NOT_FINITE:
        shows = ~finite
    elif kind == NEGATIVE:
        shows = F[:, fourflux.T] < 0
    return np.where(shows[:, None], F, 0.0)
