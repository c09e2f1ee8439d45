"""Physical predictions by an augmented Lagrangian."""

from __future__ import annotations

import numpy as np
import torch
from skorch.callbacks import Callback
from torch import Tensor, nn

from rheidae.estimator.gradients import jacobian
from rheidae.estimator.losses import states
from rheidae.fourflux import TARGET

VIOLATIONS = ("negative_density", "superluminal")


class Multipliers(nn.Module):
    """Violations of a batch and the multipliers that answer them; see `LagrangianConstraints`."""

    def __init__(self, lr_lambda: float, rho: float, density_floor: float) -> None:
        super().__init__()
        self.lr_lambda = lr_lambda
        self.rho = rho
        self.density_floor = density_floor
        self.register_buffer("multipliers", torch.zeros(len(VIOLATIONS)))
        self.multipliers: Tensor

    def violations(self, y_pred: Tensor) -> Tensor:
        """``(c0, c1)`` of predicted final four-fluxes ``(n, 24)``."""
        pred = TARGET.part(y_pred, "F_true")
        N = pred[..., 3]
        factor = torch.linalg.vector_norm(pred[..., :3], dim=-1) / N.clamp(min=self.density_floor)
        return torch.stack([torch.relu(-N).mean(), torch.relu(factor - 1).mean()])

    def values_and_gradients(self, y_pred: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(c0, c1)`` and their derivatives ``(2, n, 24)`` by `y_pred`, without a graph."""
        if y_pred.device.type != "cpu":
            leaf = y_pred.detach().requires_grad_()
            values = self.violations(leaf)
            gradients = jacobian(values, torch.eye(len(values)).to(values), [leaf], together=False)
            return values.detach(), gradients.view(-1, *y_pred.shape)
        from rheidae.estimator._loss_kernels import violations

        by_kernel, gradients = np.empty(len(VIOLATIONS)), y_pred.new_empty(len(VIOLATIONS), *y_pred.shape)
        out = gradients.numpy().reshape(-1, len(y_pred), 6, 4)
        violations(states(y_pred), self.density_floor, by_kernel, out)
        return torch.from_numpy(by_kernel).to(y_pred.dtype), gradients

    def penalty(self, violations: Tensor) -> Tensor:
        """``sum_k lambda_k c_k + rho c_k^2 / 2``."""
        return (self.multipliers * violations + 0.5 * self.rho * violations.square()).sum()

    def slopes(self, violations: Tensor) -> Tensor:
        """Derivatives ``(2,)`` of `penalty` by the violations."""
        return self.multipliers + self.rho * violations

    @torch.no_grad()
    def ascend(self, violations: Tensor) -> None:
        """One step of dual ascent."""
        self.multipliers.add_(violations, alpha=self.lr_lambda).clamp_(min=0)


class LagrangianConstraints(Callback):
    """Drive predictions towards physical ones: no negative density, no flux faster than light.

    The violations ``c0 = mean relu(-N)`` and ``c1 = mean relu(|F|/N - 1)`` of the predicted final four-flux (not of the
    residual) enter the objective as ``sum_k lambda_k c_k + rho c_k^2 / 2``; after each batch
    ``lambda_k <- max(0, lambda_k + lr_lambda c_k)``. For `PCGrad` the penalty is one more task.

    Parameters
    ----------
    lr_lambda : float
        Rate of the dual ascent. Larger: violations are answered sooner, and may be overdone.
    rho : float
        Weight of the squared violations; acts at once, but lets small ones live.
    density_floor : float
        In ``c1``, N counts at least this much, in units of the row's total density: nearly empty species
        would dominate otherwise.

    Notes
    -----
    Multipliers change once per batch rather than after an inner minimisation, which a network does not reach.
    """

    def __init__(self, lr_lambda: float = 1e-2, rho: float = 1.0, density_floor: float = 1e-3) -> None:
        self.lr_lambda = lr_lambda
        self.rho = rho
        self.density_floor = density_floor

    def make_module(self) -> Multipliers:
        """Return the module that goes into the criterion as ``constraints``."""
        for name in ("lr_lambda", "rho"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"LagrangianConstraints: {name}={getattr(self, name)!r} must not be negative")
        return Multipliers(self.lr_lambda, self.rho, self.density_floor)
