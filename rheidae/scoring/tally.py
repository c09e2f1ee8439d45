"""Scores added up over any number of rows: a block of them at a time, of which a few numbers a row are kept."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rheidae import fourflux
from rheidae.scoring.metrics import (
    DEVIATIONS,
    coverage,
    flavor_sum_change,
    flux_error,
    lepton_number_change,
    physicality_rate,
)
from rheidae.scoring.scores import RESAMPLES, Entry, Scored, ratio_interval, seed_deviation, worst

Numbers = NDArray[np.float64]

# Medians are read from counts of logarithms: 2500 bins a decade, over the total density.
_LOWEST, _DECADES, _BINS = -15, 17, 2500


class Tally:
    """What is known of the rows of one group in one role, or of several tallies together.

    Kept are sums, largest values and counts, and of each row its error by scheme and its simulation, for the bootstrap.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._sums: dict[str, dict[str, Numbers]] = {}
        self._largest: dict[str, Numbers] = {}
        self._errors: dict[str, list[Numbers]] = {}
        self._covered: list[Numbers] = []
        self._simulations: list[NDArray[Any]] = []

    def add(self, scored: Scored, chosen: NDArray[np.bool_]) -> Tally:
        """Count the chosen rows in, at least one; return itself."""
        count = int(chosen.sum())
        reference = scored.errors["box3d"][0, chosen]
        self.rows += count
        self._simulations.append(scored.simulation[chosen])
        for scheme, F in scored.F.items():
            error, seeds = scored.errors[scheme][:, chosen], len(F)
            # Rows of all seeds, one behind another.
            pred = F[:, chosen].reshape(-1, 6, 4)
            init, true = (np.tile(table[chosen], (seeds, 1, 1)) for table in (scored.F_init, scored.F_true))
            sums = {
                "error": error.sum(axis=1),
                "better": np.array((error < reference).sum() / seeds),
                "species": np.array([flux_error(true, pred, init, species=s).sum() for s in fourflux.SPECIES]) / seeds,
                "component": np.array([flux_error(true, pred, init, component=c).sum() for c in fourflux.COMPONENTS])
                / seeds,
                "physical": np.array(count * physicality_rate(pred)),
            }
            if scheme == "model" and scored.std is not None:
                difference, std = np.abs(F[:, chosen] - scored.F_seen[chosen]), scored.std[:, chosen]
                self._covered.append((difference <= DEVIATIONS * std).mean(axis=(0, 2, 3)))
                sums |= {
                    "covered": np.array([count * coverage(*pair) for pair in zip(difference, std, strict=True)]),
                    "species covered": count
                    * np.array([coverage(difference[:, :, i], std[:, :, i]) for i in range(len(fourflux.SPECIES))]),
                    "difference": _counts(difference),
                    "std": _counts(std),
                }
            largest = np.array([flavor_sum_change(pred, init).max(), lepton_number_change(pred, init).max()])
            self._take(scheme, sums, largest, [error.mean(axis=0)])
        return self

    def merge(self, other: Tally) -> Tally:
        """Count all rows of another tally in; return itself."""
        self.rows += other.rows
        self._simulations += other._simulations
        self._covered += other._covered
        for scheme, sums in other._sums.items():
            self._take(scheme, sums, other._largest[scheme], other._errors[scheme])
        return self

    def _take(self, scheme: str, sums: dict[str, Numbers], largest: Numbers, errors: list[Numbers]) -> None:
        known = self._sums.get(scheme)
        self._sums[scheme] = dict(sums) if known is None else {name: known[name] + sums[name] for name in known}
        self._largest[scheme] = np.maximum(self._largest.get(scheme, largest), largest)
        self._errors.setdefault(scheme, []).extend(errors)

    def summary(self, resamples: int = RESAMPLES) -> Entry:
        """Numbers of every scheme, JSON-safe: what cannot be known is None, never NaN.

        Parameters
        ----------
        resamples : int
            Of the bootstrap.

        Returns
        -------
        dict
            ``rows``, ``simulations``, and ``schemes``: for each, means over rows and seeds of

            - ``error``, ``species_error`` (four-flux distance of each species) and ``component_error`` (absolute error
              of x, y, z, t, mean over species), all over the total density;
            - ``skill``, one minus the error over Box3D's, and ``rows_better_than_box3d``, a fraction;
            - ``error_interval``, ``skill_interval``: bootstrap over simulations at the level
              `rheidae.scoring.scores.CONFIDENCE`, of the mean over seeds; ``error_spread``, ``skill_spread``: standard
              deviation between seeds;
            - ``flavor_sum_change``, ``lepton_number_change``: the largest of all rows and seeds;
            - ``physical_fraction`` of the four-fluxes, to rounding;
            - ``coverage``: the fraction of the 24 numbers that lie within the model's 90 % interval, mu and tau as they
              are; ``coverage_spread``; ``coverage_interval``, bootstrap over simulations; ``species_coverage``; and
              ``width``, half of the interval over the error, medians to 0.1 %.
        """
        schemes, simulation = {}, np.concatenate(self._simulations)
        reference, box_errors = self._sums["box3d"]["error"][0], np.concatenate(self._errors["box3d"])
        for scheme, sums in self._sums.items():
            mean, error = {name: values / self.rows for name, values in sums.items()}, sums["error"]
            skills = 1 - error / reference if reference > 0 else None
            row_errors = np.concatenate(self._errors[scheme])
            one: Entry = {
                "error": float(mean["error"].mean()),
                "skill": None if skills is None else float(skills.mean()),
                "rows_better_than_box3d": float(mean["better"]),
                "error_spread": seed_deviation(mean["error"]),
                "skill_spread": None if skills is None else seed_deviation(skills),
                "species_error": dict(zip(fourflux.SPECIES, mean["species"].tolist(), strict=True)),
                "component_error": dict(zip(fourflux.COMPONENTS, mean["component"].tolist(), strict=True)),
                "flavor_sum_change": float(self._largest[scheme][0]),
                "lepton_number_change": float(self._largest[scheme][1]),
                "physical_fraction": float(mean["physical"]),
                **dict.fromkeys(("coverage", "coverage_spread", "coverage_interval", "species_coverage", "width")),
                "error_interval": ratio_interval(row_errors, np.ones_like(row_errors), simulation, resamples),
            }
            # Box3D's skill is zero by definition.
            measured = skills is not None and scheme != "box3d"
            ratio = ratio_interval(row_errors, box_errors, simulation, resamples) if measured else None
            one["skill_interval"] = None if ratio is None else [1 - ratio[1], 1 - ratio[0]]
            if "covered" in mean:
                middle, covered = _median(sums["difference"]), np.concatenate(self._covered)
                one |= {
                    "coverage": float(mean["covered"].mean()),
                    "coverage_spread": seed_deviation(mean["covered"]),
                    "coverage_interval": ratio_interval(covered, np.ones_like(covered), simulation, resamples),
                    "species_coverage": dict(zip(fourflux.SPECIES, mean["species covered"].tolist(), strict=True)),
                    "width": DEVIATIONS * _median(sums["std"]) / middle if middle > 0 else None,
                }
            schemes[scheme] = one
        return {"rows": self.rows, "simulations": len(np.unique(simulation)), "schemes": schemes}


class Tallies:
    """Tallies by role and group, and the worst rows of each role."""

    WORST = 10
    """Rows that are named in each role."""

    def __init__(self) -> None:
        self._parts: dict[tuple[str, str], Tally] = {}
        self._worst: list[Entry] = []

    def add(self, scored: Scored) -> Tallies:
        """Count scored rows in; return itself."""
        for role, group in sorted(set(zip(scored.role.tolist(), scored.group.tolist(), strict=True))):
            chosen = (scored.role == role) & (scored.group == group)
            self._parts.setdefault((role, group), Tally()).add(scored, chosen)
        found = [*self._worst, *worst(scored, self.WORST)]
        found.sort(key=lambda entry: -entry["error"]["model"])
        self._worst = [
            entry
            for role in sorted({entry["role"] for entry in found})
            for entry in [entry for entry in found if entry["role"] == role][: self.WORST]
        ]
        return self

    def summaries(self, resamples: int = RESAMPLES) -> dict[str, list[Entry]]:
        """Return ``groups``, ``roles`` and ``worst`` of `rheidae.runs.report.report_on`."""
        groups, roles = [], []
        for role in sorted({role for role, _ in self._parts}):
            whole = Tally()
            for (other, group), tally in sorted(self._parts.items()):
                if other == role:
                    groups.append({"group": group, "role": role, **tally.summary(resamples)})
                    whole.merge(tally)
            roles.append({"group": "all", "role": role, **whole.summary(resamples)})
        return {"groups": groups, "roles": roles, "worst": self._worst}


def _counts(values: Numbers) -> Numbers:
    """How many values, not negative, lie in each bin of the logarithm; what is smaller lies in the first."""
    place = (np.log10(np.maximum(values, 10.0**_LOWEST)) - _LOWEST) * _BINS
    bins = _DECADES * _BINS
    return np.bincount(np.minimum(place, bins - 1).astype(np.intp).ravel(), minlength=bins).astype(np.float64)


def _median(counts: Numbers) -> float:
    """The median of what was counted, of an even number the mean of the middle two; what the first bin holds is 0."""
    total = np.cumsum(counts)
    middle = np.searchsorted(total, [(total[-1] - 1) // 2, total[-1] // 2], side="right")
    return float(np.where(middle > 0, 10.0 ** (_LOWEST + (middle + 0.5) / _BINS), 0.0).mean())
