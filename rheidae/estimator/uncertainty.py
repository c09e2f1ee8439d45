"""How far off a prediction may be, learned from the errors on rows whose answer is known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rheidae import fourflux
from rheidae.mixing.schemes import mix
from rheidae.mixing.variation import VARIATIONS, neighbours
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
_TINY = 1e-20
_SHAPES: dict[str, tuple[int, ...]] = {
    "mean": (12,), "whitening": (12, 12), "distance": (1,), "near": (6, 2, _LAST + 2), "far": (6, 2, _LAST + 2),
    "odd": (1,),
}  # fmt: skip
_HEAVY = (fourflux.NU_MU, fourflux.NU_TAU, fourflux.NUBAR_MU, fourflux.NUBAR_TAU)
_CLASSES = ((fourflux.NU_E, fourflux.NUBAR_E), _HEAVY)
# Densities count once, fluxes by their three components.
_COMPONENTS = np.array([3.0, 1.0])
# Of what e loses, to each flavor.
_SHARES = np.array([-1.0, 0.5, 0.5])[:, None]
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
    (Mahalanobis distance), the scheme alone counts. Near them it has half of the probability at which it would do
    alone. A factor makes `COVERAGE` of the errors seen lie within `DEVIATIONS` standard deviations, and half a standard
    error of that number more, since new errors are a little larger.

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
        arrays = _nearness(_description(F_init))
        mixed = (F_pred != F_init).any(axis=(1, 2))
        mixed |= not mixed.any()
        F_init, F_pred, F_true = (F[mixed] for F in (F_init, F_pred, F_true))
        terms, F_far = _terms(F_init, F_pred, None if F_far is None else F_far[mixed])
        arrays["near"], arrays["far"] = (_variance_of(F_true - F, terms) for F in (F_pred, F_far))
        # One factor to the mixture, so that it covers what it promises; half of that is the scheme's.
        _, learned, other = cls({**arrays, "odd": np.zeros(1)})._parts(F_init, F_pred, F_far, terms)
        level = min(COVERAGE + 0.5 * np.sqrt(COVERAGE * (1 - COVERAGE) / len(F_init)), 1.0)
        square = np.square((F_true - F_pred) / DEVIATIONS)
        odd = min(0.5 * np.quantile(square / _by_component(other), level), 0.5)
        wanted = (square - odd * _by_component(other)) / ((1 - odd) * _by_component(learned))
        for species in _CLASSES:
            arrays["near"][list(species)] *= max(np.quantile(wanted[:, species], level), 0.0)
        return cls({**arrays, "odd": np.array([odd])})

    def std(self, F_init: fourflux.Float, F_pred: fourflux.Float, F_far: fourflux.Float | None = None) -> Array:
        """Standard deviations ``(n, 6, 4)`` of `F_pred`; all as of `fit`."""
        terms, F_far = _terms(F_init, F_pred, F_far)
        share, learned, other = self._parts(F_init, F_pred, F_far, terms)
        std = np.sqrt(share * learned + (1 - share) * other)
        # Where nothing changes, nothing is in doubt.
        std[(F_pred == F_init).all(axis=(1, 2))] = 0.0
        return _by_component(std)

    def _parts(self, F_init: Array, F_pred: Array, F_far: Array, terms: Array) -> tuple[Array, Array, Array]:
        """Share of what was learned ``(n, 1, 1)``, and the variances ``(n, 6, 2)`` by it and by the scheme."""
        known = self.arrays
        near = np.exp(-0.5 * np.square(self._beyond(F_init)))
        learned, other = (_sum(known[name], terms) for name in ("near", "far"))
        return (1 - known["odd"]) * near[:, None, None], learned, other + _mean_square(F_pred - F_far)

    def outside(self, F_init: fourflux.Float) -> NDArray[np.bool_]:
        """Whether states ``(n, 6, 4)`` are farther from the rows seen than 95 of 100 of these, by `_description`."""
        outside: NDArray[np.bool_] = self._beyond(F_init) > 0
        return outside

    def _beyond(self, F_init: Array) -> Array:
        """By how much the distance from the rows seen exceeds that of 95 of 100 of these."""
        known = self.arrays
        distance = np.sqrt(np.square((_description(F_init) - known["mean"]) @ known["whitening"]).sum(axis=1))
        beyond: Array = np.maximum(distance - known["distance"], 0.0)
        return beyond

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


def _description(F: Array) -> Array:
    """What tells near rows from far ones, ``(n, 12)``: densities, fluxes, and how far the species differ."""
    e, x, ebar, xbar = F[:, 0], 0.5 * (F[:, 1] + F[:, 2]), F[:, 3], 0.5 * (F[:, 4] + F[:, 5])
    nu, nubar = e - ebar, x - xbar
    vectors = np.stack([e, x, ebar, xbar, nu, nubar, nu - nubar], axis=1)[:, :, :3]
    unlike = np.square(F[:, 1::3] - F[:, 2::3]).sum(axis=(1, 2))
    lengths = np.sqrt(np.square(vectors).sum(axis=2))
    densities = np.stack([e[:, 3], x[:, 3], ebar[:, 3], xbar[:, 3]], axis=1)
    return np.column_stack([densities, lengths, np.sqrt(unlike)])


def _nearness(numbers: Array) -> dict[str, Array]:
    """What `ErrorScale` knows of where the rows seen lie."""
    mean = numbers.mean(axis=0)
    covariance = np.atleast_2d(np.cov(numbers.T, bias=True)) + _BLUR**2 * np.eye(numbers.shape[1])
    whitening = np.linalg.inv(np.linalg.cholesky(covariance)).T
    distance = np.sqrt(np.square((numbers - mean) @ whitening).sum(axis=1))
    return {"mean": mean, "whitening": np.ascontiguousarray(whitening), "distance": np.quantile(distance, [_NEAR])}


def _terms(F: Array, F_pred: Array, F_far: Array | None) -> tuple[Array, Array]:
    """Squares of what each variation changes, and unlike mu and tau, ``(n, 6, 2, 4)``: species, flux and density.

    And the scheme's answer: `F_far`, or else the asymptotic scheme's, the prediction where that is none.
    """
    F = np.ascontiguousarray(F)
    sizes, lost = neighbours(F, threads=1)
    e_mu, e_tau, mu_tau = np.moveaxis(sizes, 1, 0)
    flavors = np.stack([e_mu + e_tau, e_mu + mu_tau, e_tau + mu_tau], axis=1)  # n, flavor, kind, nu or nubar, component
    terms = np.zeros((len(F), 6, 2, _LAST + 1))
    terms[..., :_LAST] = np.square(0.5 * flavors).transpose(0, 3, 1, 4, 2).reshape(-1, 6, 2, _LAST)
    far = F + (lost[:, :, None] * _SHARES).reshape(F.shape)
    rows = (F[:, 1::3] != F[:, 2::3]).any(axis=(1, 2))
    if rows.any():
        unlike, mean = F[rows], F[rows]
        for mu in (fourflux.NU_MU, fourflux.NUBAR_MU):
            mean[:, mu : mu + 2] = mean[:, mu : mu + 2].mean(axis=1, keepdims=True)
        far[rows] = _settled(unlike)
        change = np.nan_to_num(far[rows] - unlike - (_settled(mean) - mean))
        terms[rows, :, :, _LAST] = np.repeat(_mean_square(change).reshape(-1, 2, 3, 2).mean(axis=2), 3, axis=1)
    far = far if F_far is None else F_far
    return terms, np.where(np.isfinite(far), far, F_pred)


def _settled(F: Array) -> Array:
    """The asymptotic scheme's answer; NaN for rows that are not physical."""
    settled: Array = mix(F, "asymptotic", threads=1, invalid="pass")
    return settled


def _sum(coefficients: Array, terms: Array) -> Array:
    """Variances ``(n, 6, 2)`` of fluxes and densities."""
    return np.einsum("nscv,scv->nsc", terms, coefficients[:, :, :-1]) + coefficients[:, :, -1] + _TINY


def _variance_of(error: Array, terms: Array) -> Array:
    """Coefficients ``(6, 2, 4)`` of the terms and of one, from errors ``(n, 6, 4)``.

    Maximum likelihood of a normal distribution under ``v = sum_j c_j x_j``, ``c_j >= 0``, by the steps ``c_j *=
    sqrt(sum x_j e^2/v^2 / sum x_j/v)``: majorisation by separate terms, so that no step lowers the likelihood.
    """
    square = _mean_square(error)
    coefficients = np.empty((6, 2, terms.shape[3] + 1))
    for species in map(list, _CLASSES):
        x, y = terms[:, species], square[:, species]
        # Constants of their own for fluxes and densities.
        one = np.broadcast_to(np.eye(2), (*y.shape, 2))
        x = np.concatenate([x, one], axis=3).reshape(-1, x.shape[3] + 2)
        y, weight = y.reshape(-1), np.tile(_COMPONENTS, y.size // 2)
        told = np.asarray(x.any(axis=0))
        x, c = np.ascontiguousarray(x[:, told].T), np.zeros(len(told))
        y, part = weight * y, (weight @ y + _TINY) / (x @ weight)
        for _ in range(_STEPS):
            inverse = 1 / (part @ x + _TINY)
            part *= np.sqrt(x @ (y * inverse**2) / (x @ (weight * inverse)))
        c[told] = part
        c[_LAST - 1] = max(c[_LAST - 1], _SHALLOW**2)
        if not told[_LAST]:
            c[_LAST] = _UNLIKE**2
        coefficients[species, 0], coefficients[species, 1] = c[:-1], np.append(c[:-2], c[-1])
    return coefficients


def _mean_square(error: Array) -> Array:
    """Of fluxes, by component, and of densities, ``(n, 6, 2)``."""
    square = np.square(error)
    return np.stack([square[:, :, :3].mean(axis=2), square[:, :, 3]], axis=2)


def _by_component(values: Array) -> Array:
    """``(n, 6, 2)`` as ``(n, 6, 4)``: the components of a flux are alike, since one alone knows the frame."""
    return np.repeat(values, [3, 1], axis=2)
