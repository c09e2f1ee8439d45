"""The default network with its quadrature as tensor operations, for exports."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rheidae.estimator.tensors.asymptotic import AsymptoticMixing
from rheidae.estimator.tensors.control import instead
from rheidae.estimator.tensors.minerbo import exponents, peak
from rheidae.estimator.tensors.survival import SurvivalMixing, matrices_of
from rheidae.estimator.tensors.uncertainty import Neighbours
from rheidae.fourflux import ALIKE, FLAT
from rheidae.mixing._box3d_kernels import FOUR_PI
from rheidae.mixing.quadrature import lebedev


class Full(NamedTuple):
    """What full exports need beside the change, over the total density."""

    matrices: Tensor
    """Transition matrices of densities and of fluxes, ``(n, 72)``."""
    scheme: Tensor
    """The change by the asymptotic scheme, ``(n, 24)``."""
    sizes: Tensor
    """Of its neighbours, ``(n, 3, kinds, 2, 2)``, see `rheidae.mixing.variation.variations`."""
    unlike: Tensor
    """Mean square of what unlike mu and tau change, ``(n, 2, 2)``: neutrinos and antineutrinos, flux and density."""
    apart: Tensor
    """In which rows they are, ``(n, 1)``."""


class MixingGraph(nn.Module):
    """`rheidae.estimator.networks.MixingModel` with the quadrature as tensor operations.

    `full`: returns also what `Full` has, float64.
    """

    directions: Tensor
    weights: Tensor

    def __init__(self, model: Any, full: bool = False) -> None:
        super().__init__()
        self.model = model
        self.mixing = SurvivalMixing(model.order)
        self.alike, self.unlike = AsymptoticMixing(2, full), AsymptoticMixing(3, full)
        self.neighbours = nn.ModuleList(Neighbours(flavors) for flavors in (2, 3)) if full else None
        for name, table in zip(("directions", "weights"), lebedev(model.order), strict=True):
            self.register_buffer(name, torch.from_numpy(table.copy()))

    def forward(self, x: Tensor) -> Any:
        """Change ``(n, 24)`` of normalised states ``x (n, 24)``, both float64 as of the estimator's module."""
        state = x.reshape(-1, 6, 4)
        nodes = self.mixing.prepare(state)
        theta = self.model._theta(self.mixing.invariants(nodes).to(self.model.mean.dtype))
        h, factor = self.mixing.mixed(nodes, theta.double())
        unlike = differ(state)
        apart = (nodes.calm < 1.0) | unlike
        alike, own = self.alike(state, apart), self.unlike(state, unlike)
        rules = (self.directions, self.weights)
        weight = nodes.calm * instead(1.0 + 0.0 * nodes.calm, unlike, _likeness, (state, nodes.basis), rules)

        def right(answer: Tensor, on_mean: Tensor, scheme: Tensor) -> Tensor:
            """In rows with beams, and with unlike mu and tau, from the scheme by what the network changes of it."""
            return torch.where(apart, torch.where(unlike, scheme, on_mean) + weight * (answer - on_mean), answer)

        on_mean, scheme = of_all(alike[:, :8]), own[:, :FLAT]
        change = right(of_all(self.mixing.change(nodes, h, factor).reshape(-1, 8)), on_mean, scheme)
        if self.neighbours is None:
            return change
        averages = self.mixing.averages(nodes, h, factor)
        matrices = right(matrices_of(averages), matrices_of(alike[:, 8:].T.reshape(2, 4, -1)), own[:, FLAT : FLAT + 72])
        (of_like, D), (of_unlike, _) = (
            found(state, rows) for found, rows in zip(self.neighbours, (~unlike, unlike), strict=True)
        )
        far = torch.where(unlike, scheme, of_all(D))
        moved = torch.where(unlike, scheme - on_mean, 0.0).square().reshape(-1, 2, 3, 4).mean(dim=2)
        moved = torch.stack([moved[..., :3].mean(dim=2), moved[..., 3]], dim=2)
        return change, Full(matrices, far, of_like + of_unlike, moved, unlike)


def differ(state: Tensor) -> Tensor:
    """In which rows ``(n, 1)`` of ``state (n, 6, 4)``, over the total density, mu and tau differ."""
    nu, nubar = (state[:, s] - state[:, s + 1] for s in (1, 4))
    return torch.cat([nu, nubar], dim=1).abs().amax(dim=1, keepdim=True) > ALIKE


def of_all(D: Tensor) -> Tensor:
    """Change ``(n, 24)`` of all species from what nu_e and nubar_e lose, ``(n, 8)``."""
    lost = D.reshape(-1, 2, 1, 4)
    return torch.cat([-lost, 0.5 * lost, 0.5 * lost], dim=2).reshape(-1, FLAT)


def _likeness(state: Tensor, basis: Tensor, directions: Tensor, weights: Tensor) -> Tensor:
    """`rheidae.mixing.survival.likeness`, ``(n, 1)``, on nodes that are turned into the basis."""
    vectors, Z, density, _ = exponents(state)
    here = [(vectors * basis[:, None, k]).sum(dim=2, keepdim=True) for k in range(3)]
    along = here[0] * directions[0] + here[1] * directions[1] + here[2] * directions[2]
    g = (density * peak(Z) / FOUR_PI)[..., None] * torch.exp((along - Z[..., None]).clamp(min=-690.0))
    e, mu, tau = (g[:, :3] - g[:, 3:]).unbind(dim=1)
    heavy, electron = (
        (weights * part).sum(dim=1, keepdim=True) for part in ((mu - tau).abs(), (e - mu).abs() + (e - tau).abs())
    )
    return torch.where(
        electron > 0.0, (1.0 - 2.0 * heavy / torch.where(electron > 0.0, electron, 1.0)).clamp(min=0.0), 0.0
    )
