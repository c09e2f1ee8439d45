"""The loss terms, each evaluated on the physical four-flux and known by its name."""

from __future__ import annotations

import torch
from torch import Tensor, nn

TERMS = ("density", "magnitude", "direction", "unphysical", "residual_l1")


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
      Box3D leaves unexplained, the difference of prediction and truth is the same.

    Parameters
    ----------
    w_density, w_magnitude, w_direction, w_unphysical, w_residual_l1 : float
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
        density_floor: float = 1e-3,
        speed_of_light: float = 1.0,
        eps: float = 1e-12,
    ) -> None:
        super().__init__()
        weights = (w_density, w_magnitude, w_direction, w_unphysical, w_residual_l1)
        self.weights = {name: weight for name, weight in zip(TERMS, weights, strict=True) if weight != 0}
        if not self.weights:
            raise ValueError("every weight is zero: at least one loss term is needed")
        self.density_floor = density_floor
        self.speed_of_light = speed_of_light
        self.eps = eps

    def terms(self, y_pred: Tensor, y_true: Tensor) -> dict[str, Tensor]:
        """Return the unweighted terms by name, each a scalar tensor."""
        pred, true = y_pred.reshape(-1, 6, 4), y_true.reshape(-1, 6, 4)
        length_pred = (pred[..., :3].square().sum(dim=-1) + self.eps).sqrt()
        length_true = (true[..., :3].square().sum(dim=-1) + self.eps).sqrt()
        values = {}
        for name in self.weights:
            if name == "density":
                values[name] = (pred[..., 3] - true[..., 3]).square().mean()
            elif name == "magnitude":
                values[name] = (length_pred - length_true).square().mean()
            elif name == "direction":
                cos = (pred[..., :3] * true[..., :3]).sum(dim=-1) / (length_pred * length_true)
                has_direction = (length_true > self.density_floor).to(cos.dtype)
                values[name] = ((1 - cos) * has_direction).sum() / has_direction.sum().clamp(min=1)
            elif name == "unphysical":
                values[name] = torch.relu(
                    length_pred / pred[..., 3].clamp(min=self.density_floor) - self.speed_of_light
                ).mean()
            elif name == "residual_l1":
                values[name] = (pred - true).abs().mean()
        return values

    def combine(self, terms: dict[str, Tensor]) -> Tensor:
        """Return the weighted sum of `terms`, the scalar that is minimised."""
        return torch.stack([self.weights[name] * value for name, value in terms.items()]).sum()

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        """Return the weighted sum of the terms of ``(n, 24)`` predictions and targets."""
        return self.combine(self.terms(y_pred, y_true))
