"""How far a predicted state is from the simulated one, how much nearer than Box3D's, and how physical it is.

The functions take four-fluxes in any one unit; every score of the package is one of them. `FluxScorer` makes each a
scorer of scikit-learn: ``cross_val_score(..., scoring=FluxScorer("box3d_skill_score"))``. `get_scorer` knows them by
name, too: the metric's, with ``neg_`` before an error, as there larger is better, and a species, a component or both
behind, such as ``neg_flux_error_nu_e``, ``box3d_skill_score_t`` and ``neg_flux_error_nubar_mu_z``.
"""

from __future__ import annotations

import copy
import difflib
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.metadata_routing import MetadataRequest

from rheidae import fourflux
from rheidae.exceptions import FourFluxError
from rheidae.fourflux import INPUT

COVERAGE = 0.9
"""A model's own interval: this part of the errors lies within `DEVIATIONS` of its standard deviations."""

DEVIATIONS = 1.6448536269514722
"""Of a normal distribution that hold `COVERAGE` between them."""

Numbers = NDArray[np.float64]


def flux_error(
    F_true: fourflux.Float,
    F_pred: fourflux.Float,
    F_init: fourflux.Float,
    *,
    species: str | None = None,
    component: str | None = None,
) -> Numbers:
    """Error of each row: mean over species of the four-flux distance, relative to the total density.

    Parameters
    ----------
    F_true, F_pred, F_init : array_like, shape (n, 6, 4) or (n, 24)
        Final four-fluxes, simulated and predicted, and the initial ones; one common unit. Where the initial
        state has mu and tau alike, the truth is averaged over them: which of them ends up larger is chance.
    species : str, optional
        One of `rheidae.fourflux.SPECIES`, in place of the mean over them.
    component : str, optional
        One of `rheidae.fourflux.COMPONENTS`: its absolute error, in place of the distance.

    Returns
    -------
    ndarray, shape (n,)
        float64, dimensionless.

    Raises
    ------
    FourFluxError
        If shapes differ, a number is not finite, or a row has no neutrinos.
    """
    true, pred, init = _states(F_true=F_true, F_pred=F_pred, F_init=F_init)
    total = _total(init)[:, None, None]
    difference = (pred - fourflux.average_heavy(true, init)) / total
    rows, columns = _chosen(species, fourflux.SPECIES), _chosen(component, fourflux.COMPONENTS)
    return np.linalg.norm(difference[:, rows, columns], axis=2).mean(axis=1)


def skill(error: Numbers, error_of_box3d: Numbers) -> float:
    """``1 - mean error / mean error of Box3D``: 1 is perfect, 0 is Box3D, negative is worse than Box3D.

    NaN where there is no row, or where Box3D makes no error.
    """
    reference = float(np.mean(error_of_box3d)) if len(error_of_box3d) else 0.0
    return 1.0 - float(np.mean(error)) / reference if reference > 0 else float("nan")


def box3d_skill_score(
    F_true: fourflux.Float,
    F_pred: fourflux.Float,
    F_init: fourflux.Float,
    F_box: fourflux.Float | None = None,
    *,
    sample_weight: Any = None,
    species: str | None = None,
    component: str | None = None,
) -> float:
    """How much nearer than Box3D the prediction is: ``1 - mean error / mean error of Box3D`` by `flux_error`.

    Parameters
    ----------
    F_true, F_pred, F_init, species, component
        As of `flux_error`.
    F_box : array_like, shape (n, 6, 4) or (n, 24), optional
        Box3D's answer; computed from `F_init` if not given.
    sample_weight : array_like, shape (n,), optional
        Weights of the rows in both means.

    Returns
    -------
    float
        1 is perfect, 0 is Box3D, negative is worse than Box3D.

    Raises
    ------
    FourFluxError
        As of `flux_error`, and where Box3D makes no error, so that there is no skill over it.
    """
    if F_box is None:
        from rheidae.mixing.box3d import box3d_flux

        F_box = box3d_flux(_states(F_init=F_init)[0])
    which = {"species": species, "component": component}
    ours, theirs = (_mean(flux_error(F_true, F, F_init, **which), sample_weight) for F in (F_pred, F_box))
    if not theirs > 0:
        raise FourFluxError(
            "Box3D makes no error in these rows (are they without a crossing?): there is no skill over it; use "
            "flux_error"
        )
    return 1.0 - ours / theirs


def conservation_error(F_pred: fourflux.Float, F_init: fourflux.Float, *, component: str | None = None) -> Numbers:
    """Largest change, per row, of what the instability conserves, relative to the total density.

    Conserved are the sums over flavors of every component, for neutrinos and antineutrinos apart, and the lepton number
    ``N - Nbar`` of every flavor.

    Parameters
    ----------
    F_pred, F_init : array_like, shape (n, 6, 4) or (n, 24)
        Predicted final four-fluxes and the initial ones, one unit.
    component : str, optional
        One of `rheidae.fourflux.COMPONENTS`; lepton numbers belong to "t".

    Returns
    -------
    ndarray, shape (n,)
        float64, dimensionless; 0 is perfect.

    Raises
    ------
    FourFluxError
        As of `flux_error`.
    """
    sums = flavor_sum_change(F_pred, F_init, component=component)
    return np.maximum(sums, lepton_number_change(F_pred, F_init)) if component in (None, "t") else sums


def flavor_sum_change(F_pred: fourflux.Float, F_init: fourflux.Float, *, component: str | None = None) -> Numbers:
    """Largest change of a sum over flavors in each row, as of `conservation_error`."""
    sums = np.abs(_change(F_pred, F_init).sum(axis=2))
    return sums[:, :, _chosen(component, fourflux.COMPONENTS)].max(axis=(1, 2))


def lepton_number_change(F_pred: fourflux.Float, F_init: fourflux.Float) -> Numbers:
    """Largest change of a flavor's ``N - Nbar`` in each row, as of `conservation_error`."""
    change = _change(F_pred, F_init)[..., fourflux.T]
    return np.abs(change[:, 0] - change[:, 1]).max(axis=1)


def _change(F_pred: fourflux.Float, F_init: fourflux.Float) -> Numbers:
    """``(n, 2, 3, 4)``: neutrinos and antineutrinos, flavors, components, over the total density."""
    pred, init = _states(F_pred=F_pred, F_init=F_init)
    return ((pred - init) / _total(init)[:, None, None]).reshape(-1, 2, 3, 4)


def coverage(difference: Numbers, std: Numbers) -> float:
    """Fraction of the errors within `DEVIATIONS` standard deviations, of one shape; `COVERAGE` is promised."""
    return float((np.abs(difference) <= DEVIATIONS * std).mean())


def physicality_rate(F_pred: fourflux.Float, *, sample_weight: Any = None, species: str | None = None) -> float:
    """Fraction of predicted four-fluxes that are physical: ``N >= 0`` and ``|F| <= N`` to 1e-6.

    Parameters
    ----------
    F_pred : array_like, shape (n, 6, 4) or (n, 24)
        Four-fluxes, any unit.
    sample_weight : array_like, shape (n,), optional
        Weights of the rows.
    species : str, optional
        One of `rheidae.fourflux.SPECIES`.

    Returns
    -------
    float
        1 is all of them.

    Raises
    ------
    FourFluxError
        If a shape is another, or a number is not finite.
    """
    (pred,) = _states(F_pred=F_pred)
    density = pred[..., fourflux.T]
    length = np.linalg.norm(pred[..., : fourflux.T], axis=2)
    physical = (density >= 0) & (length <= density * (1 + fourflux.FLUX_TOLERANCE))
    return _mean(physical[:, _chosen(species, fourflux.SPECIES)].mean(axis=1), sample_weight)


def _states(**arrays: Any) -> list[Numbers]:
    """Arrays as finite float64 ``(n, 6, 4)`` of one n: squares of 1e33, which float32 holds, fit there."""
    states: list[Numbers] = []
    for name, array in arrays.items():
        state = np.asarray(array, dtype=np.float64)
        if state.ndim not in (2, 3) or state.shape[1:] not in ((fourflux.FLAT,), (6, 4)):
            raise FourFluxError(f"{name} has shape {state.shape}; expected (n, 6, 4) or (n, 24)")
        state = state.reshape(-1, 6, 4)
        if states and len(state) != len(states[0]):
            raise FourFluxError(f"{name} has {len(state)} rows, {next(iter(arrays))} has {len(states[0])}")
        finite = np.isfinite(state).all(axis=(1, 2))
        if not finite.all():
            raise FourFluxError(f"{name}, row {int(np.argmin(finite))}: a number is not finite (NaN or infinity)")
        states.append(state)
    if not len(states[0]):
        raise FourFluxError(f"{next(iter(arrays))} has no rows; there is nothing to score")
    return states


def _total(init: Numbers) -> Numbers:
    total = fourflux.total_density(init)
    if not (total > 0).all():
        raise FourFluxError(f"F_init, row {int(np.argmin(total > 0))}: the total number density must be positive")
    return total


def _chosen(name: str | None, names: tuple[str, ...]) -> slice:
    if name is None:
        return slice(None)
    if name not in names:
        raise ValueError(f"{name!r} is not one of {', '.join(names)}")
    index = names.index(name)
    return slice(index, index + 1)


def _mean(values: Any, sample_weight: Any) -> float:
    return float(np.average(values, weights=sample_weight))


# --- scorers ---------------------------------------------------------------------------------------------


class FluxScorer:
    """A metric of this module as ``scorer(estimator, X, y)``, larger is better.

    The first 24 columns of X are the initial four-fluxes, in the unit of y and of the predictions; the next 24, where
    there are 48, Box3D's answer. Else Box3D is computed, if it is needed.

    Parameters
    ----------
    metric : {"flux_error", "box3d_skill_score", "conservation_error", "physicality_rate"}
        Errors are averaged over rows and change their sign.
    species, component : str, optional
        As of the metric.

    Examples
    --------
    >>> from rheidae.scoring.metrics import FluxScorer
    >>> FluxScorer("flux_error", species="nu_e")
    FluxScorer('flux_error', species='nu_e')
    """

    def __init__(self, metric: str, species: str | None = None, component: str | None = None) -> None:
        if metric not in _PARTS:
            raise ValueError(f"metric={metric!r} is not one of {', '.join(_PARTS)}")
        given = {"species": species, "component": component}
        self.metric = metric
        self.which = {part: name for part, name in given.items() if name is not None}
        for part, name in self.which.items():
            if part not in _PARTS[metric]:
                raise ValueError(f"{metric} is not told apart by {part}")
            _chosen(name, fourflux.SPECIES if part == "species" else fourflux.COMPONENTS)
        self.set_score_request()

    def set_score_request(self, *, sample_weight: bool | str | None = None) -> FluxScorer:
        """Say whether scikit-learn's metadata routing shall hand over `sample_weight`, as of its own scorers."""
        self._request = MetadataRequest(owner=self)
        self._request.score.add_request(param="sample_weight", alias=sample_weight)
        return self

    def get_metadata_routing(self) -> MetadataRequest:
        """Return what was said by `set_score_request`; scikit-learn asks."""
        return self._request

    @property
    def __name__(self) -> str:
        return "_".join([self.metric, *self.which.values()])

    def __repr__(self) -> str:
        return f"FluxScorer({', '.join([repr(self.metric), *(f'{k}={v!r}' for k, v in self.which.items())])})"

    def __call__(self, estimator: Any, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return the score of ``estimator.predict(X)``."""
        table = np.asarray(X)
        if table.ndim != 2 or table.shape[1] < fourflux.FLAT:
            raise FourFluxError(f"X has shape {table.shape}; its first 24 columns have to be the initial four-fluxes")
        init = table[:, INPUT["F_init"]]
        box = table[:, INPUT["F_box"]] if table.shape[1] >= INPUT.width else None
        pred, which = estimator.predict(X), self.which
        if self.metric == "physicality_rate":
            return physicality_rate(pred, sample_weight=sample_weight, **which)
        if self.metric == "conservation_error":
            return -_mean(conservation_error(pred, init, **which), sample_weight)
        if self.metric == "flux_error":
            return -_mean(flux_error(y, pred, init, **which), sample_weight)
        return box3d_skill_score(y, pred, init, box, sample_weight=sample_weight, **which)


_PARTS = {
    "flux_error": ("species", "component"),
    "box3d_skill_score": ("species", "component"),
    "conservation_error": ("component",),
    "physicality_rate": ("species",),
}


def _named_scorers() -> dict[str, FluxScorer]:
    choices = {"species": (None, *fourflux.SPECIES), "component": (None, *fourflux.COMPONENTS)}
    scorers = {}
    for metric, parts in _PARTS.items():
        prefix = "neg_" if metric.endswith("error") else ""
        for names in product(*(choices[part] for part in parts)):
            scorers["_".join(filter(None, (prefix + metric, *names)))] = FluxScorer(
                metric, **dict(zip(parts, names, strict=True))
            )
    return scorers


SCORERS = _named_scorers()
"""Every scorer, by the name that `get_scorer` knows it by."""


def get_scorer(name: str) -> FluxScorer:
    """Return the scorer of a name; ``scoring=`` of scikit-learn's functions takes it.

    Raises
    ------
    ValueError
        If there is none.

    Examples
    --------
    >>> from rheidae.scoring.metrics import get_scorer
    >>> get_scorer("neg_flux_error_nu_e_t")
    FluxScorer('flux_error', species='nu_e', component='t')
    """
    if name not in SCORERS:
        near = difflib.get_close_matches(name, SCORERS, n=1, cutoff=0.0)
        raise ValueError(f"scorer {name!r} is not one of ours; the nearest is {near[0]!r}")
    return copy.deepcopy(SCORERS[name])
