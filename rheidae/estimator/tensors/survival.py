"""Mixing by the parameterised survival probability as tensor operations of fixed length.

Derivation and arithmetic are those of `rheidae.mixing._survival_kernels`, but for two things. Where the kernels stop
Newton's method by tolerance, a graph has a fixed number of steps. As ``1/[r (r + x)] = 1 - x/r``, both sides have
``v = (1 - x/r)^P``, P = p on the larger and 1 on the smaller, and s obeys ``sum W v = (1 + lift) I_small`` with
positive weights W. ``log(sum W v / sum W (1 - v))`` is nearly linear in log s, since both sums go like powers of s at
its ends. Newton's steps on it stay in a bracket; where one would leave it, or be longer than half the one before, the
bracket is halved instead, so that they converge for every input. In single precision, narrow beams would hide the root
behind a plateau. And where the kernels branch, all branches are computed and one is chosen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rheidae.estimator.tensors.minerbo import distributions, exponents, four_vectors, moments_of, peak, polynomial
from rheidae.fourflux import ALIKE, FLAT
from rheidae.mixing import _survival_kernels as kernels
from rheidae.mixing.quadrature import lebedev
from rheidae.mixing.survival import AXIAL_POINTS

STEPS = 20
"""Steps for log s; of 24,000 random states, most of them narrow beams, one is off by 1e-7 of the total density."""

# Scalars may pass through single precision on their way into a graph; smaller ones would become zero there.
_TINY = 1e-30
_LEAST = kernels.NO_DIRECTION
# Ends of log s for the parameters that a network sets.
_LOW, _HIGH = -250.0, 120.0


class SurvivalMixing(nn.Module):
    """Invariants of states and their change by mixing, on the nodes of one Lebedev rule.

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
        """The numbers ``(n, 5)`` of `rheidae.mixing.survival.invariants`."""
        _, _, G_sphere, _, _, G_axis, net_flux, net = prepared
        both = G_axis.abs().sum(dim=1, keepdim=True).clamp(min=_TINY)
        quadrupole = (G_axis * (1.5 * self.axis * self.axis - 0.5)).sum(dim=1, keepdim=True)
        number = net / both
        return torch.cat([_depth(G_axis), _depth(G_sphere), number, net_flux / both, number * quadrupole / both], dim=1)

    def change(self, prepared: tuple[Tensor, ...], theta: Tensor) -> Tensor:
        """What nu_e and nubar_e lose, ``(n, 2, 4)`` over the total density, at parameters ``theta (n, 8)``."""
        basis, on_sphere, G_sphere, on_axis, odd, G_axis, net_flux, _ = prepared
        log_c, log_p, log_a, b, rho, beta, log_p_axial, log_a_axial = theta.split(1, dim=1)
        q0 = 2.0 / 3.0 * log_c.exp()
        lift = b * (1.0 - q0) / q0
        # Both components in one loop: the shorter rule is padded with nodes of no weight.
        size = max(len(self.sphere_weights), len(self.axis_weights))
        G, weights = (
            torch.stack([_padded(table, size, rest) for table in pair], dim=-2)
            for pair, rest in (((G_sphere, G_axis), 0.0), ((self.sphere_weights, self.axis_weights), 1.0))
        )
        p, a = (torch.stack(pair, dim=1).exp() for pair in ((log_p, log_p_axial), (log_a, log_a_axial)))
        h_sphere, h_axis = _survival(G, weights, p, a, lift[:, None], rho[:, None]).unbind(dim=1)
        h_sphere, h = h_sphere[:, : len(self.sphere_weights)], h_axis[:, : len(self.axis_weights)]
        moved = (on_sphere[:, :2] - on_sphere[:, 2:]) * h_sphere[:, None]
        by_sphere = moved @ self.sphere.T
        moved = (on_axis[:, :2] - on_axis[:, 2:]) * h[:, None]
        across = ((odd[:, :2] - odd[:, 2:]) * h[:, None, None]).sum(dim=3)
        along = moved @ self.axis[:, None]
        by_axis = torch.cat([across, along, moved.sum(dim=2, keepdim=True)], dim=2)
        ratio = net_flux / (kernels.AXIS * G_axis.abs().sum(dim=1, keepdim=True).clamp(min=_TINY))
        beta = (beta * (1.0 - torch.exp(-ratio.square())))[:, :, None]
        total = q0[:, :, None] * ((1.0 - beta) * by_sphere + beta * by_axis)
        density = total[:, :, 3:].mean(dim=1, keepdim=True).expand(-1, 2, -1)
        return torch.cat([total[:, :, :3] @ basis, density], dim=2)


class MixingGraph(nn.Module):
    """`rheidae.estimator.networks.MixingModel` with the quadrature as tensor operations.

    Rows whose mu and tau differ come out as NaN: the scheme for three flavors has no graph.
    """

    refuses_unlike = True

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.mixing = SurvivalMixing(model.order)

    def forward(self, x: Tensor) -> Tensor:
        """Change ``(n, 24)`` of normalised states ``x (n, 24)``, float32 as the estimator's module returns it."""
        state = x.double().reshape(-1, 6, 4)
        prepared = self.mixing.prepare(state)
        theta = self.model._theta(self.mixing.invariants(prepared).to(x.dtype))
        D = self.mixing.change(prepared, theta.double()).to(x.dtype)[:, :, None]
        change = torch.cat([-D, 0.5 * D, 0.5 * D], dim=2).reshape(-1, FLAT)
        nu, nubar = (state[:, s] - state[:, s + 1] for s in (1, 4))
        unlike = torch.cat([nu, nubar], dim=1).abs().amax(dim=1, keepdim=True)
        return torch.where(unlike > ALIKE, float("nan"), change)


def _survival(G: Tensor, weights: Tensor, p: Tensor, a: Tensor, lift: Tensor, rho: Tensor) -> Tensor:
    """``h (n, 2, nodes)`` with ``int h G = 0``, faded; `G` with the `weights`, the parameters ``(n, 2, 1)``."""
    larger = G > 0.0
    size = G.abs()
    large, small = ((side * G).clamp(min=0.0).sum(dim=-1, keepdim=True) for side in (1.0, -1.0))
    L = (size / weights.abs()).clamp(min=_TINY).log() - torch.where(larger, 0.0, kernels.LN2 * rho)
    power, weight = torch.where(larger, p, 1.0), torch.where(larger, 1.0, lift) * size
    # Both sides alike: there is no s, and h is what it is at infinity.
    wanted = ((1.0 + lift) * small).clamp(min=_TINY).log() - (large - small).clamp(min=_TINY).log()
    # Where it would be if all of G had its mean value.
    u = ((large / kernels.FOUR_PI).clamp(min=_TINY).log() + wanted / (2.0 * p * a)).clamp(_LOW, _HIGH)
    low, high = torch.full_like(u, _LOW), torch.full_like(u, _HIGH)
    step = high - low
    for _ in range(STEPS):
        log_c, rise = _complement(a * (L - u))
        log_v = power * log_c
        v = weight * torch.exp(log_v)
        above = v.sum(dim=-1, keepdim=True).clamp(min=_TINY)
        below = (-(weight * torch.expm1(log_v)).sum(dim=-1, keepdim=True)).clamp(min=_TINY)
        slope = a * (power * v * rise * (1.0 + rise)).sum(dim=-1, keepdim=True) * (1.0 / above + 1.0 / below)
        length = (wanted - above.log() + below.log()) / slope.clamp(min=1e-6)
        rising = length > 0.0
        low, high = torch.where(rising, u, low), torch.where(rising, high, u)
        new, length = u + length, length.abs()
        good = ((new > low) & (new < high) & (2.0 * length < step)) | (length < 2e-14 * (1.0 + u.abs()))
        u, step = torch.where(good, new, 0.5 * (low + high)), torch.where(good, length, high - low)
    log_c, rise = _complement(a * (L - u))
    fade = torch.where(small > kernels.NOISE, 1.0 - torch.exp(-small / kernels.FADE), 0.0)
    fade = fade / (large + small).clamp(min=1.0)
    return fade * torch.where(larger, torch.exp(power * log_c), 1.0 + lift * rise)


def _padded(table: Tensor, size: int, value: float) -> Tensor:
    return torch.nn.functional.pad(table, (0, size - table.shape[-1]), value=value)


def _complement(y: Tensor) -> tuple[Tensor, Tensor]:
    """``log(1 - x/r)`` and ``x/r`` of ``x = exp(y)``, ``r = sqrt(1 + x^2)``; written in ``exp(-|y|)``."""
    t = torch.exp(-y.abs())
    root = (1.0 + t * t).sqrt()
    part = torch.where(y > 0.0, 1.0, t)
    return (y + y.abs()).neg() - (root * (root + part)).log(), part / root


def _turned(G: Tensor) -> Tensor:
    """Make the larger side of the quadrature the positive one; after a beam between the nodes it may not be."""
    return G * torch.where(G.sum(dim=1, keepdim=True) < 0.0, -1.0, 1.0)


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
