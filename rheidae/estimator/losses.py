"""The loss terms, each evaluated on the physical four-flux and known by its name."""

from __future__ import annotations

from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rheidae.estimator.gradients import jacobian
from rheidae.fourflux import TARGET

TERMS = ("density", "magnitude", "direction", "unphysical", "residual_l1", "distance")


class FourFluxLoss(nn.Module):
    """Weighted sum of named terms that compare predicted with true final four-fluxes.

    Predictions and targets are ``(n, 24)`` in units of the row's total number density, so that every row
    counts alike whatever its density. The terms are

    - ``density``: mean squared error of N;
    - ``magnitude``: mean squared error of ``|F|``;
    - ``direction``: mean of ``1 - cos`` of the angle between the fluxes, over those whose true length exceeds
      `density_floor` (a vanishing flux has no direction);
    - ``unphysical``: mean of ``relu(|F|/N - c)``, zero where the flux moves no faster than light;
    - ``residual_l1``: mean absolute error of all 24 numbers. Whether the network predicts final moments or what
      Box3D leaves unexplained, the difference of prediction and truth is the same;
    - ``distance``: mean four-flux distance ``|dF|`` over rows and species, what `rheidae.scoring.metrics.flux_error`
      measures.

    Parameters
    ----------
    w_density, w_magnitude, w_direction, w_unphysical, w_residual_l1, w_distance : float
        Weights of the terms; a term of weight zero is not computed.
    density_floor : float
        In units of the total density: shorter fluxes take no part in ``direction``, and N is raised to it in
        ``unphysical``. A smaller floor lets nearly empty species dominate both terms.
    speed_of_light : float
        Largest physical ``|F|/N``; 1 in the units of the four-flux.
    eps : float
        Added under square roots, whose derivative at zero is infinite.
    """

    def __init__(
        self,
        w_density: float = 1.0,
        w_magnitude: float = 1.0,
        w_direction: float = 0.01,
        w_unphysical: float = 1.0,
        w_residual_l1: float = 1.0,
        w_distance: float = 100.0,
        density_floor: float = 1e-3,
        speed_of_light: float = 1.0,
        eps: float = 1e-12,
    ) -> None:
        super().__init__()
        weights = (w_density, w_magnitude, w_direction, w_unphysical, w_residual_l1, w_distance)
        self.weights = {name: weight for name, weight in zip(TERMS, weights, strict=True) if weight != 0}
        if not self.weights:
            raise ValueError("every weight is zero: at least one loss term is needed")
        self.density_floor = density_floor
        self.speed_of_light = speed_of_light
        self.eps = eps

    def terms(self, y_pred: Tensor, y_true: Tensor, weight: Tensor | None = None) -> dict[str, Tensor]:
        """Return the terms by name, each a scalar tensor without its own weight; `weight` ``(n,)`` is that of rows.

        On a CPU, without a graph, they come from a compiled kernel with sums in double precision, else from `formulas`.
        """
        if y_pred.device.type != "cpu" or y_pred.requires_grad:
            return self.formulas(y_pred, y_true, weight)
        values, _ = self.values_and_gradients(y_pred, y_true, weight)
        return dict(zip(self.weights, values.unbind(), strict=True))

    def values_and_gradients(
        self, y_pred: Tensor, y_true: Tensor, weight: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the terms ``(T,)`` and their derivatives ``(T, n, 24)`` by `y_pred`, on a CPU, without a graph."""
        from rheidae.estimator._loss_kernels import four_flux_terms

        names = list(self.weights)
        places = np.array([names.index(name) if name in names else -1 for name in TERMS])
        weights = np.ones(len(y_pred)) if weight is None else weight.double().numpy()
        values = np.empty(len(names))
        gradients = y_pred.new_empty(len(names), *y_pred.shape)
        four_flux_terms(
            states(y_pred), states(y_true), weights, places, self.eps, self.density_floor, self.speed_of_light,
            values, gradients.numpy().reshape(-1, len(y_pred), 6, 4),
        )  # fmt: skip
        return torch.from_numpy(values).to(y_pred.dtype), gradients

    def formulas(self, y_pred: Tensor, y_true: Tensor, weight: Tensor | None = None) -> dict[str, Tensor]:
        """Return the `terms` from tensor operations, as they are defined."""

        def mean(per_row: Tensor) -> Tensor:
            return per_row.mean() if weight is None else _weighted(weight, per_row)

        pred, true = TARGET.part(y_pred, "F_true"), TARGET.part(y_true, "F_true")
        N, N_true = pred[..., 3], true[..., 3]
        flux, flux_true = pred[..., :3], true[..., :3]
        length = (flux.square().sum(dim=-1) + self.eps).sqrt()
        length_true = (flux_true.square().sum(dim=-1) + self.eps).sqrt()

        def direction() -> Tensor:
            cos = (flux * flux_true).sum(dim=-1) / (length * length_true)
            counts = (length_true > self.density_floor).to(cos.dtype)
            if weight is not None:
                counts = counts * weight.to(cos.dtype)[:, None]
            return ((1 - cos) * counts).sum() / counts.sum().clamp(min=1)

        def distance() -> Tensor:
            return mean(((pred - true).square().sum(dim=-1) + self.eps).sqrt() - self.eps**0.5)

        formulas = {
            "density": lambda: mean((N - N_true).square()),
            "magnitude": lambda: mean((length - length_true).square()),
            "direction": direction,
            "unphysical": lambda: mean(torch.relu(length / N.clamp(min=self.density_floor) - self.speed_of_light)),
            "residual_l1": lambda: mean((pred - true).abs()),
            "distance": distance,
        }
        return {name: formulas[name]() for name in self.weights}

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        """Return the weighted sum of the terms of ``(n, 24)`` predictions and targets."""
        return torch.stack([self.weights[name] * value for name, value in self.terms(y_pred, y_true).items()]).sum()


class SingleTerm(nn.Module):
    """A plain loss of torch, such as `torch.nn.MSELoss`, as the one named term."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss
        self.weights = {type(loss).__name__.lower().removesuffix("loss"): 1.0}

    def terms(self, y_pred: Tensor, y_true: Tensor, weight: Tensor | None = None) -> dict[str, Tensor]:
        """Return the loss by its name; with weights of rows ``(n,)``, of the loss's parts per row."""
        (name,) = self.weights
        if weight is None:
            return {name: self.loss(y_pred, y_true)}
        parts: Any = copy(self.loss)
        parts.reduction = "none"
        return {name: _weighted(weight, parts(y_pred, y_true))}

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        """Return the loss."""
        return self.loss(y_pred, y_true)


def _weighted(weight: Tensor, per_row: Tensor) -> Tensor:
    """Mean over rows and everything else, each row times its weight."""
    return weight.to(per_row.dtype) @ per_row.flatten(1).mean(dim=1) / len(weight)


# --- derivatives by the predictions ----------------------------------------------------------------------


def states(y: Tensor) -> Any:
    """Four-fluxes ``(n, 24)`` on the CPU as an array ``(n, 6, 4)``."""
    return y.detach().contiguous().numpy().reshape(-1, 6, 4)


def values_and_gradients(
    criterion: Any, y_pred: Tensor, y_true: Tensor, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return a criterion's terms ``(T,)`` and their derivatives ``(T, n, m)`` by `y_pred`, without a graph."""
    if y_pred.device.type == "cpu" and getattr(type(criterion), "terms", None) is FourFluxLoss.terms:
        return criterion.values_and_gradients(y_pred, y_true, weight)
    leaf = y_pred.detach().requires_grad_()
    values = torch.stack(list(criterion.terms(leaf, y_true, *(() if weight is None else (weight,))).values()))
    # Without a network these passes are short, and torch has nothing to gain from taking them together.
    gradients = jacobian(values, torch.eye(len(values)).to(values), [leaf], together=False)
    return values.detach(), gradients.view(-1, *y_pred.shape)
