"""Continuous mixing as tensor operations of fixed length; derivation and arithmetic of `rheidae.mixing._power_kernels`.

Two things are done in another way. Where the kernels stop Newton's method by tolerance, a graph has a fixed number of
steps; they are taken in a variable in which the equation for s is nearly linear. With ``q = (H/H_total)^(1/p)``, H the
integral of h G over the larger side, a single value of G gives ``y = log(q/(1 - q)) = a (log s - log G)`` exactly, and
many values a curve that is nowhere steeper and has that slope at both ends. So ``y - a log s`` never grows, and its
limits enclose the root: h ~ (G/s)^(-a p) for small s, 1 - h ~ p (G/s)^a for large s. The first steps, within these
bounds, are in single precision, in which exponentials cost a fraction. And where the kernels branch, all branches are
computed and one is chosen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rheidae.estimator.tensors.minerbo import distributions, exponents, four_vectors, moments_of, peak, polynomial
from rheidae.mixing import _power_kernels as kernels
from rheidae.mixing.power import AXIAL_POINTS
from rheidae.mixing.quadrature import lebedev

STEPS = (7, 1)
"""Newton steps for log s, in single and in double precision; 1e-13 of the total density on 90,000 random states."""

# Scalars may pass through single precision on their way into a graph; smaller ones would become zero there.
_TINY = 1e-30
_LEAST = kernels.NO_DIRECTION
# Where the kernels' brackets end for the parameters that a network sets, to base e.
_LOW, _HIGH = -900.0 * kernels.LN2, 100.0 * kernels.LN2


class ContinuousMixing(nn.Module):
    """Invariants of states and their change by continuous mixing, on the nodes of one Lebedev rule.

    Parameters
    ----------
    order : int
        Of the Lebedev rule.
    """

    sphere: Tensor
    sphere_weights: Tensor
    axis: Tensor
    axis_weights: Tensor
    axis_root: Tensor

    def __init__(self, order: int) -> None:
        super().__init__()
        nodes, weights = lebedev(order)
        zeta, axial_weights, root = kernels.axial_rule(AXIAL_POINTS)
        self.register_buffer("sphere", four_vectors(nodes))
        for name, values in (
            ("sphere_weights", weights),
            ("axis", zeta), ("axis_weights", axial_weights), ("axis_root", root),
        ):  # fmt: skip
            self.register_buffer(name, torch.from_numpy(np.array(values)))

    def prepare(self, state: Tensor) -> tuple[Tensor, ...]:
        """What invariants and change share, from states ``(n, 6, 4)`` in any unit, float64.

        Returns the frame ``(n, 3, 3)``; at the nodes of the sphere, then of the axis: g of e, ebar, x, xbar
        with weights, their part across the axis, and G counted positive on the larger side; size of the net flux
        ``(n, 1)`` and of the net number ``(n, 1)``.
        """
        total = state[:, :, 3].sum(dim=1)
        filled = total > 0.0
        inverse = torch.where(filled, 1.0 / torch.where(filled, total, 1.0), 0.0)
        moments = moments_of(state) * inverse[:, None, None]
        net = moments[:, 0] - moments[:, 1] - moments[:, 2] + moments[:, 3]
        sign = torch.where(net[:, 3:] >= 0.0, 1.0, -1.0)
        net_flux = net[:, :3].square().sum(dim=1, keepdim=True).sqrt()
        basis = _frame(moments, sign * net[:, :3])
        net_flux = torch.where(net_flux > _LEAST, net_flux, 0.0)
        vectors, Z, density = exponents(moments)
        vectors = vectors @ basis.transpose(1, 2)
        amplitude = density * peak(Z) / kernels.FOUR_PI
        on_sphere = self._on_sphere(vectors, Z, amplitude)
        on_axis, odd = self._on_axis(vectors, Z, amplitude)
        G_sphere, G_axis = (_turned(sign * (g[:, 0] - g[:, 1] - g[:, 2] + g[:, 3])) for g in (on_sphere, on_axis))
        return basis, on_sphere, G_sphere, on_axis, odd, G_axis, net_flux, net[:, 3:].abs()

    def _on_sphere(self, vectors: Tensor, Z: Tensor, amplitude: Tensor) -> Tensor:
        """Weighted g at the nodes, ``(n, 4, nodes)``."""
        return distributions(vectors, Z, amplitude, self.sphere) * self.sphere_weights

    def _on_axis(self, vectors: Tensor, Z: Tensor, amplitude: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted azimuthal integrals ``(n, 4, points)`` of g, and vectors ``(n, 4, 2, points)`` of g n_perp."""
        across = vectors[..., :2].square().sum(dim=-1, keepdim=True).sqrt()
        rho = across * self.axis_root
        value = torch.exp(vectors[..., 2:] * self.axis + rho - Z[..., None])
        value = self.axis_weights * amplitude[..., None] * value
        near, far = 0.25 * rho - 1.0, 16.0 / rho.clamp(min=8.0) - 1.0
        root = 1.0 / rho.clamp(min=8.0).sqrt()
        zero, one = (
            torch.where(rho <= 8.0, polynomial(near, close), root * polynomial(far, distant))
            for close, distant in ((kernels._NEAR_0, kernels._FAR_0), (kernels._NEAR_1, kernels._FAR_1))
        )
        direction = vectors[..., :2] / across.clamp(min=_TINY)
        return value * zero, (value * one * self.axis_root)[:, :, None] * direction[..., None]

    def invariants(self, prepared: tuple[Tensor, ...]) -> Tensor:
        """The numbers ``(n, 5)`` of `rheidae.mixing.power.power_invariants`."""
        _, _, G_sphere, _, _, G_axis, net_flux, net = prepared
        both = G_axis.abs().sum(dim=1, keepdim=True).clamp(min=_TINY)
        quadrupole = (G_axis * (1.5 * self.axis * self.axis - 0.5)).sum(dim=1, keepdim=True)
        number = net / both
        return torch.cat([_depth(G_axis), _depth(G_sphere), number, net_flux / both, number * quadrupole / both], dim=1)

    def change(self, prepared: tuple[Tensor, ...], theta: Tensor) -> Tensor:
        """What nu_e and nubar_e lose, ``(n, 2, 4)`` over the total density, at parameters ``theta (n, 6)``."""
        basis, on_sphere, G_sphere, on_axis, odd, G_axis, net_flux, _ = prepared
        log_c, log_p, log_a, b, log_p_axial, log_a_axial = theta.split(1, dim=1)
        h = self._share(G_sphere, self.sphere_weights, log_p.exp(), log_a.exp())
        moved = (on_sphere[:, :2] - on_sphere[:, 2:]) * h[:, None]
        by_sphere = moved @ self.sphere.T
        h = self._share(G_axis, self.axis_weights, log_p_axial.exp(), log_a_axial.exp())
        moved = (on_axis[:, :2] - on_axis[:, 2:]) * h[:, None]
        across = ((odd[:, :2] - odd[:, 2:]) * h[:, None, None]).sum(dim=3)
        along = moved @ self.axis[:, None]
        by_axis = torch.cat([across, along, moved.sum(dim=2, keepdim=True)], dim=2)
        ratio = net_flux / (kernels.AXIS * G_axis.abs().sum(dim=1, keepdim=True).clamp(min=_TINY))
        b = (b * (1.0 - torch.exp(-ratio.square())))[:, :, None]
        total = 2.0 / 3.0 * log_c.exp()[:, :, None] * ((1.0 - b) * by_sphere + b * by_axis)
        density = total[:, :, 3:].mean(dim=1, keepdim=True).expand(-1, 2, -1)
        return torch.cat([total[:, :, :3] @ basis, density], dim=2)

    def _share(self, G: Tensor, weights: Tensor, p: Tensor, a: Tensor) -> Tensor:
        """``h (n, nodes)`` with ``int h G = 0``, faded; `G` with the `weights`."""
        above = G.clamp(min=0.0)
        large = above.sum(dim=1, keepdim=True)
        small = (-G).clamp(min=0.0).sum(dim=1, keepdim=True)
        # Minus infinity on the smaller side: h is 1 there.
        L = (above / weights.abs()).log()
        log_large = large.clamp(min=_TINY).log()
        # Both sides alike: there is no s, and h = 1 everywhere.
        goal = small.clamp(min=_TINY).log() - log_large
        feasible = goal < 0.0
        wanted = _log_odds(torch.where(feasible, goal, -1.0) / p)
        known = (L, above, log_large, p, a, wanted)
        single = [value.float() for value in known]
        low, high = _bracket(*single)
        u = 0.5 * (low + high)
        for _ in range(STEPS[0]):
            u = torch.clamp(_newton(u, *single), low, high)
        u = u.double()
        for _ in range(STEPS[1]):
            u = _newton(u, *known)
        u = torch.where(feasible, u, _HIGH)
        fade = torch.where(small > kernels.NOISE, 1.0 - torch.exp(-small / kernels.FADE), 0.0)
        return fade * torch.exp(-p * (1.0 + torch.exp(a * (L - u))).log())


class MixingGraph(nn.Module):
    """`rheidae.estimator.networks.MixingModel` with the quadrature as tensor operations."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.mixing = ContinuousMixing(model.order)

    def forward(self, x: Tensor) -> Tensor:
        """Change ``(n, 24)`` of normalised states ``x (n, 24)``, float32 as the estimator's module returns it."""
        prepared = self.mixing.prepare(x.double().reshape(-1, 6, 4))
        theta = self.model._theta(self.mixing.invariants(prepared).to(x.dtype))
        D = self.mixing.change(prepared, theta.double()).to(x.dtype)[:, :, None]
        return torch.cat([-D, 0.5 * D, 0.5 * D], dim=2).reshape(-1, 24)


def _bracket(
    L: Tensor, above: Tensor, log_large: Tensor, p: Tensor, a: Tensor, wanted: Tensor
) -> tuple[Tensor, Tensor]:
    """Bounds of ``log s``, each ``(n, 1)``."""

    def log_mean(exponent: Tensor) -> Tensor:
        return (above * torch.exp(exponent)).sum(dim=1, keepdim=True).clamp(min=_TINY).log() - log_large

    # A side without nodes has no bounds; whatever comes out is finite.
    largest = L.amax(dim=1, keepdim=True).clamp(min=_LOW)
    positive = torch.where(above > 0.0, L, -_LOW)
    smallest = positive.amin(dim=1, keepdim=True)
    for_small_s = log_mean(-a * p * (positive - smallest)) / p - a * smallest
    for_large_s = -log_mean(a * (L - largest)) - a * largest
    return ((wanted - for_small_s) / a).clamp(_LOW, _HIGH), ((wanted - for_large_s) / a).clamp(_LOW, _HIGH)


def _newton(u: Tensor, L: Tensor, above: Tensor, log_large: Tensor, p: Tensor, a: Tensor, wanted: Tensor) -> Tensor:
    """Return a better ``u = log s (n, 1)``; `L` is log G, `wanted` the log-odds y to reach."""
    # (G/s)^a may be infinite; every term has its limit then.
    one_and_r = 1.0 + torch.exp(a * (L - u))
    weighted = above * torch.exp(-p * one_and_r.log())
    H = weighted.sum(dim=1, keepdim=True).clamp(min=_TINY)
    slope = H - (weighted / one_and_r).sum(dim=1, keepdim=True)
    log_q = (H.log() - log_large) / p
    # d log(q/(1-q)) = d log q / (1 - q), and d log q/du = a slope/H.
    gradient = a * slope / (H * _complement(log_q))
    return (u + (wanted - _log_odds(log_q)) / gradient.clamp(min=_TINY)).clamp(_LOW, _HIGH)


def _turned(G: Tensor) -> Tensor:
    """Make the larger side of the quadrature the positive one; after a beam between the nodes it may not be."""
    return G * torch.where(G.sum(dim=1, keepdim=True) < 0.0, -1.0, 1.0)


def _log_odds(log_q: Tensor) -> Tensor:
    """``log(q/(1 - q))`` from ``log q < 0``."""
    return log_q - _complement(log_q).log()


def _complement(log_q: Tensor) -> Tensor:
    """``1 - q``, at least the spacing of numbers near 1."""
    return (-torch.expm1(log_q)).clamp(min=0.5 * torch.finfo(log_q.dtype).eps)


def _depth(G: Tensor) -> Tensor:
    small, large = ((side * G).clamp(min=0.0).sum(dim=1, keepdim=True) for side in (-1.0, 1.0))
    return (small / large.clamp(min=_TINY) + 1e-3).log()


def _frame(moments: Tensor, net: Tensor) -> Tensor:
    """Rows across, across, axis: ``(n, 3, 3)``; the axis is along ``net (n, 3)``, or else another flux of the state."""
    e, ebar, x, xbar = moments[..., :3].unbind(dim=1)
    axis = torch.zeros_like(net) + _unit(net, 2)
    # The later one is preferred.
    fluxes = (e - ebar, x + xbar, e + ebar)
    for flux in (*fluxes, net):
        length = flux.square().sum(dim=1, keepdim=True).sqrt()
        axis = torch.where(length > _LEAST, flux / length.clamp(min=_LEAST), axis)
    other = torch.where(axis[:, :1].abs() < 0.6, _unit(net, 0), _unit(net, 1))
    first = other - (other * axis).sum(dim=1, keepdim=True) * axis
    for flux in fluxes:
        across = flux - (flux * axis).sum(dim=1, keepdim=True) * axis
        first = torch.where(across.square().sum(dim=1, keepdim=True) > _LEAST**2, across, first)
    first = first / first.square().sum(dim=1, keepdim=True).sqrt()
    a, b = axis, first
    second = torch.stack(
        [a[:, 1] * b[:, 2] - a[:, 2] * b[:, 1], a[:, 2] * b[:, 0] - a[:, 0] * b[:, 2],
         a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]], dim=1,
    )  # fmt: skip
    return torch.stack([first, second, axis], dim=1)


def _unit(like: Tensor, component: int) -> Tensor:
    return torch.eye(3, dtype=like.dtype, device=like.device)[component]
