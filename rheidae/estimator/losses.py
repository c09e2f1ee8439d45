"""The loss terms, each evaluated on the physical four-flux and known by its name."""

from __future__ import annotations

import inspect
from copy import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

TERMS = ("density", "magnitude", "direction", "unphysical", "residual_l1", "distance")


def as_states(y: Tensor) -> NDArray[Any]:
    """``(n, 24)`` on the CPU as an array ``(n, 6, 4)``."""
    return y.detach().contiguous().numpy().reshape(-1, 6, 4)


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
        w_distance: float = 1.0,
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
        """Return the terms by name, each a scalar tensor without its own weight; `weight` ``(n,)`` is that of rows."""

        def mean(per_row: Tensor) -> Tensor:
            return per_row.mean() if weight is None else _weighted(weight, per_row)

        pred, true = y_pred.reshape(-1, 6, 4), y_true.reshape(-1, 6, 4)
        length_pred = (pred[..., :3].square().sum(dim=-1) + self.eps).sqrt()
        length_true = (true[..., :3].square().sum(dim=-1) + self.eps).sqrt()
        values = {}
        for name in self.weights:
            if name == "density":
                values[name] = mean((pred[..., 3] - true[..., 3]).square())
            elif name == "magnitude":
                values[name] = mean((length_pred - length_true).square())
            elif name == "direction":
                cos = (pred[..., :3] * true[..., :3]).sum(dim=-1) / (length_pred * length_true)
                has_direction = (length_true > self.density_floor).to(cos.dtype)
                if weight is not None:
                    has_direction = has_direction * weight.to(cos.dtype)[:, None]
                values[name] = ((1 - cos) * has_direction).sum() / has_direction.sum().clamp(min=1)
            elif name == "unphysical":
                factor = length_pred / pred[..., 3].clamp(min=self.density_floor)
                values[name] = mean(torch.relu(factor - self.speed_of_light))
            elif name == "residual_l1":
                values[name] = mean((pred - true).abs())
            elif name == "distance":
                distance = ((pred - true).square().sum(dim=-1) + self.eps).sqrt()
                values[name] = mean(distance - self.eps**0.5)
        return values

    def values_and_gradients(
        self, y_pred: Tensor, y_true: Tensor, weight: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the terms ``(T,)`` of `terms` and their derivatives ``(T, n, 24)`` by `y_pred`, in closed form.

        The same numbers as `terms` and autograd give, in a small part of the time: the training step asks for the
        derivative of every term in every batch.
        """
        if y_pred.device.type == "cpu":
            return self._by_kernel(y_pred, y_true, weight)
        if weight is not None:
            return _by_autograd(self, y_pred, y_true, weight)
        return self._by_tensors(y_pred, y_true)

    def _by_kernel(self, y_pred: Tensor, y_true: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        from rheidae.estimator._loss_kernels import four_flux_terms

        places = np.full(len(TERMS), -1)
        for place, name in enumerate(self.weights):
            places[TERMS.index(name)] = place
        gradients = y_pred.new_empty(len(self.weights), *y_pred.shape)
        values = np.empty(len(self.weights))
        weights = np.ones(len(y_pred)) if weight is None else weight.double().numpy()
        four_flux_terms(
            as_states(y_pred), as_states(y_true), weights, places, self.eps, self.density_floor, self.speed_of_light,
            values, gradients.numpy().reshape(-1, len(y_pred), 6, 4),
        )  # fmt: skip
        return torch.from_numpy(values).to(y_pred.dtype), gradients

    def _by_tensors(self, y_pred: Tensor, y_true: Tensor) -> tuple[Tensor, Tensor]:
        """The same on an accelerator."""
        pred, true = y_pred.detach().reshape(-1, 6, 4), y_true.reshape(-1, 6, 4)
        N, flux, flux_true = pred[..., 3], pred[..., :3], true[..., :3]
        count = N.numel()
        difference = pred - true
        length = (flux.square().sum(dim=-1) + self.eps).sqrt()
        length_true = (flux_true.square().sum(dim=-1) + self.eps).sqrt()
        unit = flux / length[..., None]
        values, gradients = [], pred.new_zeros(len(self.weights), *pred.shape)
        for name, gradient in zip(self.weights, gradients, strict=True):
            if name == "density":
                error = difference[..., 3]
                values.append(error.square().mean())
                torch.mul(error, 2 / count, out=gradient[..., 3])
            elif name == "magnitude":
                error = length - length_true
                values.append(error.square().mean())
                torch.mul(unit, error[..., None] * (2 / count), out=gradient[..., :3])
            elif name == "direction":
                unit_true = flux_true / length_true[..., None]
                cos = (unit * unit_true).sum(dim=-1)
                has_direction = (length_true > self.density_floor).to(cos.dtype)
                directions = has_direction.sum().clamp(min=1)
                values.append(((1 - cos) * has_direction).sum() / directions)
                slope = (has_direction / (length * directions))[..., None]
                torch.mul(slope, cos[..., None] * unit - unit_true, out=gradient[..., :3])
            elif name == "unphysical":
                floored = N.clamp(min=self.density_floor)
                excess = length / floored - self.speed_of_light
                values.append(torch.relu(excess).mean())
                slope = (excess > 0) / (floored * count)
                torch.mul(unit, slope[..., None], out=gradient[..., :3])
                torch.mul(-slope * (length / floored), self.density_floor <= N, out=gradient[..., 3])
            elif name == "residual_l1":
                values.append(difference.abs().mean())
                torch.mul(difference.sign(), 1 / difference.numel(), out=gradient)
            elif name == "distance":
                distance = (difference.square().sum(dim=-1) + self.eps).sqrt()
                values.append(distance.mean() - self.eps**0.5)
                torch.mul(difference, 1 / (count * distance[..., None]), out=gradient)
        return torch.stack(values), gradients.reshape(-1, *y_pred.shape)

    def combine(self, terms: dict[str, Tensor]) -> Tensor:
        """Return the weighted sum of `terms`, the scalar that is minimised."""
        return torch.stack([self.weights[name] * value for name, value in terms.items()]).sum()

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        """Return the weighted sum of the terms of ``(n, 24)`` predictions and targets."""
        return self.combine(self.terms(y_pred, y_true))


class SingleTerm(nn.Module):
    """A plain loss of torch, such as `torch.nn.MSELoss`, as the one named term.

    Parameters
    ----------
    loss : Module
        From predictions and targets to a scalar.
    """

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


def as_terms(criterion: nn.Module) -> nn.Module:
    """Return a criterion with named terms: `criterion` itself, or a `SingleTerm` of it."""
    return criterion if hasattr(criterion, "terms") else SingleTerm(criterion)


def takes_weights(criterion: Any) -> bool:
    """Whether a criterion's ``terms`` takes weights of rows."""
    return "weight" in inspect.signature(criterion.terms).parameters


def values_and_gradients(
    criterion: Any, y_pred: Tensor, y_true: Tensor, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return a criterion's terms ``(T,)`` and their derivatives ``(T, n, 24)`` by `y_pred`.

    Parameters
    ----------
    criterion : Module
        With ``terms(y_pred, y_true)``, which names scalar tensors; a method ``values_and_gradients`` of its own is
        used where it has one.
    y_pred, y_true : Tensor, shape (n, 24)
        Final four-fluxes.
    weight : Tensor, shape (n,), optional
        Weights of the rows, for a criterion with ``terms(y_pred, y_true, weight)``.
    """
    closed_form: Any = getattr(criterion, "values_and_gradients", None)
    weights = () if weight is None else (weight,)
    if closed_form is not None and (weight is None or "weight" in inspect.signature(closed_form).parameters):
        return closed_form(y_pred, y_true, *weights)
    return _by_autograd(criterion, y_pred, y_true, *weights)


def _by_autograd(criterion: Any, y_pred: Tensor, y_true: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
    leaf = y_pred.detach().requires_grad_()
    with torch.enable_grad():
        values = list(criterion.terms(leaf, y_true, *weights).values())
    gradients = [
        torch.autograd.grad(value, leaf, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
        if value.requires_grad
        else torch.zeros_like(leaf)
        for value in values
    ]
    return torch.stack([value.detach() for value in values]), torch.stack(gradients)
