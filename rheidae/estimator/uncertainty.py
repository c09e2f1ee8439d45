"""How far off a prediction may be, learned from the errors on rows whose answer is known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rheidae import fourflux
from rheidae.estimator import _uncertainty_kernels as kernels
from rheidae.mixing.asymptotic import levels_of, three_flavors
from rheidae.mixing.variation import VARIATIONS, variation_rules
from rheidae.scoring.metrics import COVERAGE, DEVIATIONS

# Rows that the scale is learned from, at most; it has two dozen coefficients.
_ROWS = 4_000
_STEPS = 200
# Part of the rows seen that are near each other, and differences of densities over the total that are none.
_NEAR, _BLUR = 0.95, 0.02
# Part of what unlike mu and tau change that is in doubt, where all rows seen have them alike; and of the change by a
# shallow crossing, at least, since few rows have one.
_UNLIKE, _LAST = 0.15, len(VARIATIONS)
_SHALLOW = 0.5
_SHAPES: dict[str, tuple[int, ...]] = {
    "mean": (12,), "whitening": (12, 12), "distance": (1,), "near": (6, 2, _LAST + 2), "far": (6, 2, _LAST + 2),
    "odd": (1,),
}  # fmt: skip
_HEAVY = (fourflux.NU_MU, fourflux.NU_TAU, fourflux.NUBAR_MU, fourflux.NUBAR_TAU)
_CLASSES = ((fourflux.NU_E, fourflux.NUBAR_E), _HEAVY)
# Densities count once, fluxes by their three components.
_COMPONENTS = np.array([3.0, 1.0])
Array = NDArray[np.float64]


class ErrorScale:
    """Standard deviation of a prediction from what is known before the answer.

    What simulations leave open is how steep the survival probability is, how far it falls on the smaller side, and how
    much a shallow crossing changes at all. What each would change, `rheidae.mixing.variation.variations`, is known for
    every state, whatever its family. The variance of an error is a sum of their squares and a constant, with
    coefficients of the greatest likelihood on the rows seen, for electron and heavy flavors apart. One such sum is for
    the model, one for the scheme that it falls back to, whose errors are no smaller on the rows seen than elsewhere.
    Where mu and tau are unlike, 0.15 of what that changes is in doubt, too, unless rows seen tell.

    Either counts with a probability, and the variance is that of the mixture about the prediction, so that it holds the
    difference between both answers, too. Far from the rows seen, by densities, fluxes and differences of fluxes
    (Mahalanobis distance, with neutrinos and antineutrinos exchanged where that is nearer), the scheme alone counts.
    Near them it has half of the probability at which it would do alone. A factor makes `COVERAGE` of the errors seen
    lie within `DEVIATIONS` standard deviations, and half a standard error of that number more, since new errors are a
    little larger.

    Attributes
    ----------
    arrays : dict of str to ndarray
        Everything that was learned, by name.
    """

    def __init__(self, arrays: dict[str, Array]) -> None:
        self.arrays = arrays

    @classmethod
    def fit(
        cls, F_init: fourflux.Float, F_pred: fourflux.Float, F_true: fourflux.Float, F_far: fourflux.Float | None = None
    ) -> ErrorScale:
        """Learn from rows whose answer is known.

        Parameters
        ----------
        F_init, F_pred, F_true, F_far : ndarray, shape (n, 6, 4)
            Initial four-fluxes, and final ones: predicted, simulated (mu and tau as they are) and of the scheme, in
            units of the row's total density. Without the last, the scheme is the asymptotic one on the nodes on which
            it is varied, where mu and tau are alike.

        Returns
        -------
        ErrorScale
        """
        if len(F_init) > _ROWS:
            chosen = np.sort(np.random.default_rng(0).choice(len(F_init), _ROWS, replace=False))
            F_init, F_pred, F_true = (F[chosen] for F in (F_init, F_pred, F_true))
            F_far = None if F_far is None else F_far[chosen]
        arrays = _nearness(np.ascontiguousarray(F_init))
        mixed = (F_pred != F_init).any(axis=(1, 2))
        mixed |= not mixed.any()
        F_init, F_pred, F_true = (F[mixed] for F in (F_init, F_pred, F_true))
        terms, F_far = _terms(F_init, F_pred, None if F_far is None else F_far[mixed])
        arrays["near"], arrays["far"] = (_variance_of(_mean_square(F_true, F), terms) for F in (F_pred, F_far))
        # One factor to the mixture, so that it covers what it promises; half of that is the scheme's.
        _, learned, other, _ = cls({**arrays, "odd": np.zeros(1)})._parts(F_init, F_pred, F_far, terms)
        level = min(COVERAGE + 0.5 * np.sqrt(COVERAGE * (1 - COVERAGE) / len(F_init)), 1.0)
        square = np.square((F_true - F_pred) / DEVIATIONS)
        odd = min(0.5 * np.quantile(square / _by_component(other), level), 0.5)
        wanted = (square - odd * _by_component(other)) / ((1 - odd) * _by_component(learned))
        for species in _CLASSES:
            arrays["near"][list(species)] *= max(np.quantile(wanted[:, species], level), 0.0)
        return cls({**arrays, "odd": np.array([odd])})

    def std(self, F_init: fourflux.Float, F_pred: fourflux.Float, F_far: fourflux.Float | None = None) -> Array:
        """Standard deviations ``(n, 6, 4)`` of `F_pred`; all as of `fit`."""
        return self.judge(F_init, F_pred, F_far)[0]

    def judge(
        self, F_init: fourflux.Float, F_pred: fourflux.Float, F_far: fourflux.Float | None = None
    ) -> tuple[Array, NDArray[np.bool_]]:
        """What `std` and `outside` return, at the cost of the former."""
        terms, F_far = _terms(F_init, F_pred, F_far)
        share, learned, other, beyond = self._parts(F_init, F_pred, F_far, terms)
        std = np.empty(F_init.shape)
        kernels.deviation_rows(F_init, F_pred, share, learned, other, std)
        return std, beyond > 0

    def _parts(self, F_init: Array, F_pred: Array, F_far: Array, terms: Array) -> tuple[Array, Array, Array, Array]:
        """Share ``(n)`` of what was learned, the variances ``(n, 6, 2)`` by it and by the scheme, and ``beyond (n)``.

        See `rheidae.estimator._uncertainty_kernels.part_rows`.
        """
        n = len(F_init)
        share, learned, other, beyond = np.empty(n), np.empty((n, 6, 2)), np.empty((n, 6, 2)), np.empty(n)
        kernels.part_rows(F_init, F_pred, F_far, terms, *self.constants(), share, learned, other, beyond)
        return share, learned, other, beyond

    def constants(self) -> tuple[Array, ...]:
        """What was learned as the kernels want it."""
        return tuple(self.arrays[name] for name in _SHAPES)

    def outside(self, F_init: fourflux.Float) -> NDArray[np.bool_]:
        """Whether states ``(n, 6, 4)`` are farther from the rows seen than 95 of 100 of these, by `describe_rows`."""
        distance = _distance(F_init, self.arrays["mean"], self.arrays["whitening"])
        outside: NDArray[np.bool_] = distance > self.arrays["distance"]
        return outside

    def to_bytes(self) -> bytes:
        """As safetensors."""
        from safetensors.numpy import save

        return save(self.arrays)

    @classmethod
    def from_bytes(cls, content: bytes) -> ErrorScale:
        """Read what `to_bytes` returned.

        Raises
        ------
        ValueError
            If it holds other arrays, or what is no number.
        """
        from safetensors.numpy import load

        arrays = load(content)
        if {name: array.shape for name, array in arrays.items()} != _SHAPES:
            raise ValueError(f"no error scale: {', '.join(sorted(arrays)) or 'nothing'}, or other shapes")
        if not all(array.dtype == np.float64 and np.isfinite(array).all() for array in arrays.values()):
            raise ValueError("an error scale whose numbers are none")
        return cls(arrays)


def _nearness(F: Array) -> dict[str, Array]:
    """What `ErrorScale` knows of where the rows seen lie."""
    numbers = np.empty((len(F), kernels.DESCRIPTION))
    kernels.describe_rows(F, numbers)
    mean = numbers.mean(axis=0)
    covariance = np.atleast_2d(np.cov(numbers.T, bias=True)) + _BLUR**2 * np.eye(numbers.shape[1])
    whitening = np.linalg.inv(np.linalg.cholesky(covariance)).T
    distance = _distance(F, mean, whitening)
    return {"mean": mean, "whitening": np.ascontiguousarray(whitening), "distance": np.quantile(distance, [_NEAR])}


def _distance(F: Array, mean: Array, whitening: Array) -> Array:
    """Mahalanobis distances ``(n)``."""
    out = np.empty(len(F))
    kernels.distance_rows(F, mean, whitening, out)
    return out


def _terms(F: Array, F_pred: Array, F_far: Array | None) -> tuple[Array, Array]:
    """Squares of what each variation changes, and unlike mu and tau, ``(n, 6, 2, 4)``: species, flux and density.

    And the scheme's answer: `F_far`, or else the asymptotic scheme's, the prediction where that is none.
    """
    F = np.ascontiguousarray(F)
    terms, far = np.empty((len(F), 6, 2, _LAST + 1)), np.empty(F.shape)
    kernels.term_rows(F, *variation_rules(), *levels_of(levels=1), three_flavors(F), terms, far)
    return terms, far if F_far is None else np.where(np.isfinite(F_far), F_far, F_pred)


def _variance_of(square: Array, terms: Array) -> Array:
    """Coefficients ``(6, 2, 4)`` of the terms and of one, from mean squares of errors ``(n, 6, 2)``.

    Maximum likelihood of a normal distribution under ``v = sum_j c_j x_j``, ``c_j >= 0``, by the steps ``c_j *=
    sqrt(sum x_j e^2/v^2 / sum x_j/v)``: majorisation by separate terms, so that no step lowers the likelihood.
    """
    coefficients = np.empty((6, 2, terms.shape[3] + 1))
    for species in map(list, _CLASSES):
        x, y = terms[:, species], square[:, species]
        # Constants of their own for fluxes and densities.
        one = np.broadcast_to(np.eye(2), (*y.shape, 2))
        x = np.concatenate([x, one], axis=3).reshape(-1, x.shape[3] + 2)
        y, weight = y.reshape(-1), np.tile(_COMPONENTS, y.size // 2)
        told = np.asarray(x.any(axis=0))
        x, c = np.ascontiguousarray(x[:, told].T), np.zeros(len(told))
        y, part = weight * y, (weight @ y + kernels.TINY) / (x @ weight)
        for _ in range(_STEPS):
            inverse = 1 / (part @ x + kernels.TINY)
            part *= np.sqrt(x @ (y * inverse**2) / (x @ (weight * inverse)))
        c[told] = part
        c[_LAST - 1] = max(c[_LAST - 1], _SHALLOW**2)
        if not told[_LAST]:
            c[_LAST] = _UNLIKE**2
        coefficients[species, 0], coefficients[species, 1] = c[:-1], np.append(c[:-2], c[-1])
    return coefficients


def _mean_square(A: Array, B: Array) -> Array:
    """Of ``A - B``: of fluxes, by component, and of densities, ``(n, 6, 2)``."""
    out = np.empty((len(A), 6, 2))
    kernels.mean_square_rows(A, B, out)
    return out


def _by_component(values: Array) -> Array:
    """``(n, 6, 2)`` as ``(n, 6, 4)``: the components of a flux are alike, since one alone knows the frame."""
    return np.repeat(values, [3, 1], axis=2)
