"""Mixing by the parameterised survival probability as tensor operations, quick and of fixed length.

Derivation and arithmetic are those of `rheidae.mixing._survival_kernels`. As ``1/[r (r + x)] = 1 - x/r``, both sides
have ``v = (1 - x/r)^P``, P = p on the larger and 1 on the smaller, h = v on the larger and ``1 + lift (1 - v)`` on the
smaller side, and s obeys ``sum W v = (1 + lift) I_small`` with positive weights W. ``log(sum W v / sum W (1 - v))`` is
nearly linear in log s, since both sums go like powers of s at its ends: Newton's method on it, from the s that all of
G would have at its (logarithmic) mean, has all digits of single precision after two steps and a line along the
derivative for nearly every state.

The sphere and the axis are one table of nodes, ``n x (sphere + axis)``, on which everything is done at once; sums over
either are products with a matrix of ones and zeros. Distributions and G are in double precision (G is a difference,
and what its crossing holds may be a small one), the steps in single precision.

Rows that these steps do not settle, or whose s depends on the last digits (narrow beams make plateaus in the equation
for s), are done again, alone, in double precision, by Newton's steps in a bracket that is halved where one would leave
it or is longer than half the one before: that converges for every input.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.polynomial import chebyshev
from scipy.special import ive
from torch import Tensor, nn

from rheidae.estimator.tensors.control import instead, newton_in_bracket, repeat, unfinished
from rheidae.estimator.tensors.minerbo import exponents, four_vectors, moments_of, peak, smoothstep
from rheidae.mixing import _survival_kernels as kernels
from rheidae.mixing._nodes_kernels import VANISHING
from rheidae.mixing.quadrature import lebedev
from rheidae.mixing.survival import AXIAL_POINTS

STEPS = 2
"""Newton's steps of all rows."""

# Scalars may pass through single precision on their way into a graph; smaller ones would become zero there.
_TINY = 1e-30
_LEAST = kernels.NO_DIRECTION
# log x, and log s of the rows that are left, over int |G|.
_REACH, _LOW, _HIGH = 40.0, -250.0, 120.0
# A row is settled if the line along the derivative is this short (its error is a hundredth of the square), and if the
# equation for s is steeper than this.
_SETTLED, _STEEP = 3e-3, 0.05
# Mean of log s over the start, by the logarithm of the wanted ratio: a fit to random states, which saves a step.
_SHIFT = (0.04, 0.083, -0.01)


class Nodes(NamedTuple):
    """What invariants and change share, on the nodes of sphere and axis; see `SurvivalMixing.prepare`."""

    basis: Tensor
    """Rows across, across, axis, ``(n, 3, 3)``."""
    g: Tensor
    """Weighted distributions of e, ebar, x, xbar, ``(4, n, nodes)``."""
    moved: Tensor
    """``g_e - g_x`` and that of antineutrinos, ``(2, n, nodes)``."""
    odd: Tensor
    """Weighted parts across the axis ``(4, n, axis)`` of e, ebar, x, xbar; along `directions (4, n, 2)`."""
    directions: Tensor
    along: Tensor
    """Unit vectors of the fluxes in the frame, ``(4, n, 3)``."""
    G: Tensor
    """Weighted, positive on the larger side, ``(n, nodes)``."""
    small: Tensor
    """Integral over the smaller side, on the sphere and on the axis, ``(n, 2)``."""
    both: Tensor
    """Integral of abs(G), likewise."""
    quadrupole: Tensor
    """``int Gbar P2(zeta)``, ``(n, 1)``."""
    net_flux: Tensor
    net: Tensor
    """Sizes of the net flux and of the net number, ``(n, 1)``."""
    calm: Tensor
    """See `rheidae.mixing.survival.calm`; ``(n, 1)``."""
    least: Tensor
    most: Tensor
    """Bounds of the density that e and ebar can lose, ``(n, 1)``."""


class SurvivalMixing(nn.Module):
    """Invariants of states and their change by mixing, on the nodes of one Lebedev rule.

    Parameters
    ----------
    order : int
        Of the Lebedev rule.
    """

    to_sphere: Tensor
    to_axis: Tensor
    log_weights: Tensor
    signs: Tensor
    bessel: Tensor
    parts: Tensor
    spread: Tensor
    with_quadrupole: Tensor
    inverse_weights: Tensor
    to_moments: Tensor

    def __init__(self, order: int) -> None:
        super().__init__()
        nodes, weights = lebedev(order)
        # Both halves of the axis in one order, since functions of sqrt(1 - zeta^2) are the same on both.
        zeta, axial, root = kernels.axial_rule(AXIAL_POINTS)
        self.sphere, self.axis = len(weights), AXIAL_POINTS
        everywhere = np.concatenate([weights, axial])
        self.has_negative_weights = bool((everywhere < 0).any())
        parts = np.zeros((self.sphere + self.axis, 2))
        parts[: self.sphere, 0] = parts[self.sphere :, 1] = 1.0
        quadrupole = np.concatenate([np.zeros(self.sphere), 1.5 * zeta * zeta - 0.5])
        # From x, y, z, the length across the axis and an offset, to exponents.
        empty, ones = np.zeros((2, self.axis)), np.ones((1, self.axis))
        to_sphere = np.vstack([four_vectors(nodes).numpy()[:3], np.zeros((1, self.sphere)), np.ones((1, self.sphere))])
        to_axis = np.vstack([empty, zeta[None], root[None], ones])
        # By the nodes: x, y, z, 1 on the sphere, zeta and 1 on the axis.
        to_moments = np.zeros((self.sphere + self.axis, 6))
        to_moments[: self.sphere, :4] = four_vectors(nodes).numpy().T
        to_moments[self.sphere :, 4], to_moments[self.sphere :, 5] = zeta, 1.0
        tables = {
            "to_sphere": to_sphere, "to_axis": to_axis, "to_moments": to_moments, "parts": parts, "spread": parts.T,
            "with_quadrupole": np.c_[parts, quadrupole], "log_weights": np.log(np.abs(everywhere)),
            "signs": np.sign(everywhere), "inverse_weights": 1.0 / np.abs(everywhere),
            "bessel": _bessel_table(root[: self.axis // 2]),
        }  # fmt: skip
        for name, values in tables.items():
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(values)))

    def prepare(self, state: Tensor) -> Nodes:
        """What invariants and change share, from states ``(n, 6, 4)`` in any unit, float64."""
        total = state[:, :, 3].sum(dim=1)
        filled = total > 0.0
        inverse = torch.where(filled, 1.0 / torch.where(filled, total, 1.0), 0.0)
        moments = moments_of(state) * inverse[:, None, None]
        net = moments[:, 0] - moments[:, 1] - moments[:, 2] + moments[:, 3]
        net_flux = net[:, :3].square().sum(dim=1, keepdim=True).sqrt()
        basis = _frame(moments, torch.where(net[:, 3:] >= 0.0, 1.0, -1.0) * net[:, :3])
        net_flux = torch.where(net_flux > _LEAST, net_flux, 0.0)
        vectors, Z, density, f = exponents(moments)
        resolved = 1.0 - smoothstep(f, *kernels.FADED)
        seen = smoothstep(f, *kernels.CALM) * (density / (density + VANISHING))
        calm = (1.0 - seen[:, :2]) * (1.0 - seen[:, 2:])
        vectors = (vectors[:, :, None] * basis[:, None]).sum(dim=3).transpose(0, 1)
        # Peak and Z go into the exponent; log 0 must not meet an infinity there.
        offset = ((density * resolved * peak(Z) / kernels.FOUR_PI).log().clamp(min=-1e5) - Z).T[..., None]
        across = vectors[..., :2].square().sum(dim=2, keepdim=True).sqrt()
        table = torch.cat([vectors, across, offset], dim=2).reshape(-1, 5)
        on_sphere = torch.exp(torch.addmm(self.log_weights[: self.sphere], table, self.to_sphere))
        on_axis = torch.exp(torch.addmm(self.log_weights[self.sphere :], table, self.to_axis))
        zero, ratio = self._bessel(across.reshape(-1, 1))
        half = self.axis // 2
        on_axis = on_axis.reshape(-1, 2, half) * zero[:, None]
        odd = (on_axis * ratio[:, None]).reshape(4, -1, self.axis)
        g = torch.cat([on_sphere, on_axis.reshape(-1, self.axis)], dim=1).reshape(4, -1, self.sphere + self.axis)
        if self.has_negative_weights:
            g = g * self.signs
        moved = g[:2] - g[2:]
        G = moved[0] - moved[1]
        sums = G @ self.with_quadrupole
        # The larger side of the quadrature is the positive one.
        flip = 1.0 - 2.0 * (sums[:, :2] < 0.0).to(G.dtype)
        G = G * (flip @ self.spread)
        small = 0.5 * (G.abs() - G) @ self.parts
        return Nodes(
            basis=basis, g=g, moved=moved, odd=odd, directions=vectors[..., :2] / across.clamp(min=_TINY),
            along=vectors / Z.T[..., None].clamp(min=_TINY), G=G, small=small, both=2.0 * small + sums[:, :2].abs(),
            quadrupole=sums[:, 2:] * flip[:, 1:], net_flux=net_flux, net=net[:, 3:].abs(),
            calm=calm[:, :1] * calm[:, 1:], least=-2.0 * moments[:, 2:, 3].amin(dim=1, keepdim=True),
            most=moments[:, :2, 3].amin(dim=1, keepdim=True),
        )  # fmt: skip

    def _bessel(self, across: Tensor) -> tuple[Tensor, Tensor]:
        """``exp(-rho) I0(rho)`` and ``I1/I0 sqrt(1 - zeta^2)`` at ``rho = across sqrt(1 - zeta^2)``, half the axis."""
        t = 2.0 * across / (across + _BESSEL_AT) - 1.0
        # Chebyshev polynomials, by T_(m+k) = 2 T_m T_k - T_(m-k), twice as many at a time.
        T = torch.cat([torch.ones_like(t), t], dim=1)
        while T.shape[1] <= _BESSEL_DEGREE:
            m = T.shape[1] - 1
            T = torch.cat([T, 2.0 * T[:, m:] * T[:, 1:] - T[:, :-1].flip(1)], dim=1)
        both = T @ self.bessel
        half = self.axis // 2
        return both[:, :half] / (1.0 + across).sqrt(), both[:, half:]

    def invariants(self, nodes: Nodes) -> Tensor:
        """The numbers ``(n, 5)`` of `rheidae.mixing.survival.invariants`."""
        small, both = nodes.small, nodes.both.clamp(min=_TINY)
        depth = (small / (both - small).clamp(min=_TINY) + 1e-3).log()
        on_axis = both[:, 1:]
        number = (nodes.net / on_axis).clamp(max=kernels.UNSEEN)
        flux = (nodes.net_flux / on_axis).clamp(max=kernels.UNSEEN)
        return torch.cat([depth[:, 1:], depth[:, :1], number, flux, number * nodes.quadrupole / on_axis], dim=1)

    def mixed(self, nodes: Nodes, theta: Tensor) -> tuple[Tensor, Tensor]:
        """``h (n, nodes)`` at parameters ``theta (n, 8)``, and the factors ``(n, 2)`` of sphere and axis to 1 - P."""
        log_c, log_p, log_a, b, rho, beta, log_p_axial, log_a_axial = theta.split(1, dim=1)
        q0 = 2.0 / 3.0 * log_c.exp()
        lift = b * (1.0 - q0) / q0
        p, a = (torch.cat(pair, dim=1).exp() for pair in ((log_p, log_p_axial), (log_a, log_a_axial)))
        ratio = nodes.net_flux / (kernels.AXIS * nodes.both[:, 1:].clamp(min=_TINY))
        beta = beta * (1.0 - torch.exp(-ratio.square()))
        factor = q0 * torch.cat([1.0 - beta, beta], dim=1) * faded(nodes.small) / nodes.both.clamp(min=1.0)
        return self._survival(nodes, Shape(p, a, lift, rho), factor), factor

    def change(self, nodes: Nodes, h: Tensor, factor: Tensor) -> Tensor:
        """What nu_e and nubar_e lose, ``(n, 2, 4)`` over the total density, with what `mixed` gave."""
        by_sphere, by_axis = self._moments(nodes.moved * h)
        across = (nodes.odd * h[:, self.sphere :]).sum(dim=2, keepdim=True) * nodes.directions
        by_axis = torch.cat([across[:2] - across[2:], by_axis], dim=2)
        total = factor[:, :1] * by_sphere + factor[:, 1:] * by_axis
        # As in the kernel: what an empty species does not have is not asked of it.
        density = torch.minimum(torch.maximum(total[..., 3:].mean(dim=0), nodes.least), nodes.most)
        flux = (total[..., :3, None] * nodes.basis).sum(dim=2)
        return torch.stack([torch.cat([flux[nu], density], dim=1) for nu in (0, 1)], dim=1)

    def averages(self, nodes: Nodes, h: Tensor, factor: Tensor) -> Tensor:
        """Averages ``(2, 4, n)`` of 1 - P over e, ebar, x, xbar: by their numbers, and along their fluxes."""
        lost: list[Tensor] = []
        there: list[Tensor] = []
        for weight, into in ((h, lost), (torch.ones_like(h), there)):
            by_sphere, by_axis = self._moments(nodes.g * weight)
            across = (nodes.odd * weight[:, self.sphere :]).sum(dim=2, keepdim=True) * nodes.directions
            for part in (by_sphere, torch.cat([across, by_axis], dim=2)):
                into.append(torch.stack([part[..., 3], (part[..., :3] * nodes.along).sum(dim=2)]))
        shares = [over / torch.where(under.abs() > _TINY, under, 1.0) for over, under in zip(lost, there, strict=True)]
        number, along = factor[:, 0] * shares[0] + factor[:, 1] * shares[1]
        has_flux = there[0][1].abs() > 1e-6 * there[0][0]
        return torch.stack([number, torch.where(has_flux, along, number)])

    def _moments(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """Sums ``(s, n, 4)`` of ``(s, n, nodes)`` over the sphere by x, y, z, 1, and ``(s, n, 2)`` by zeta, 1."""
        species = table.shape[0]
        sums = (table.reshape(-1, self.sphere + self.axis) @ self.to_moments).reshape(species, -1, 6)
        return sums[..., :4], sums[..., 4:]

    def _survival(self, nodes: Nodes, shape: Shape, factor: Tensor) -> Tensor:
        """``h (n, nodes)`` with ``int h G = 0`` on sphere and axis, which the answer holds times `factor (n, 2)`."""
        small, both = nodes.small, nodes.both.clamp(min=_TINY)
        goal = _goal(small, both, shape.lift).float()
        parts, spread = self.parts.float(), self.spread.float()
        G = (nodes.G * ((1.0 / both) @ self.spread)).float()
        sides = _sides(G, shape, self.inverse_weights.float(), parts, spread)
        x = torch.exp(sides.log_x(sides.start(goal)).clamp(-_REACH, _REACH))
        for step in range(STEPS + 1):
            v, slope = _fall(x, sides.power)
            above, rising = (sides.weight * v) @ parts, (sides.weight * slope) @ parts
            # Not less than rounding leaves of a difference, which would look like a root.
            below = torch.maximum(sides.total - above, 1e-6 * sides.total).clamp(min=_TINY)
            above = above.clamp(min=_TINY)
            steep = (sides.total / above) * (rising / below)
            length = ((goal - above.log() + below.log()) / steep.clamp(min=1e-3)).clamp(-8.0, 8.0)
            if step < STEPS:
                x = x * (torch.exp(-length) @ spread)
        h = sides.survival(v + slope * (length @ spread)).double()
        weight = factor.float()
        # A beam on a node holds more than there is: then single precision leaves too much of the rest.
        seen = (steep > _STEEP) & (both < 1.1)
        error = torch.where(seen, length.square() * shape.p.float().clamp(min=1.0), 1.0)
        hard = (weight * error > _SETTLED**2).any(dim=1, keepdim=True)
        rules = (self.inverse_weights, self.parts, self.spread)
        h = instead(h, hard, _bracketed, (nodes.G, both, small, *shape), rules)
        return _balanced(h, nodes.G, self.parts, self.spread)


def _bracketed(
    G: Tensor, both: Tensor, small: Tensor, p: Tensor, a: Tensor, lift: Tensor, rho: Tensor, *rules: Tensor
) -> Tensor:
    """``h`` in double precision."""
    sides = _sides(G * ((1.0 / both) @ rules[2]), Shape(p, a, lift, rho), *rules)
    goal = _goal(small, both, lift)
    start = sides.start(goal).clamp(_LOW, _HIGH)
    low, high = torch.full_like(start, _LOW), torch.full_like(start, _HIGH)
    u = repeat(unfinished, _bracketed_step, (start, low, high, high - low), (goal, *sides))
    return sides.survival(sides.evaluate(u)[0])


def _bracketed_step(u: Tensor, low: Tensor, high: Tensor, before: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
    goal, sides = given[0], _Sides(*given[1:])
    v, slope = sides.evaluate(u)
    above, below = (sides.weight * v) @ sides.parts, (sides.weight * (1.0 - v)) @ sides.parts
    above, below = above.clamp(min=_TINY), torch.maximum(below, 1e-15 * sides.total).clamp(min=_TINY)
    steep = sides.a * ((sides.weight * slope) @ sides.parts) * (1.0 / above + 1.0 / below)
    length = (goal - above.log() + below.log()) / steep.clamp(min=1e-6)
    return newton_in_bracket(u, length, low, high, before)


class Shape(NamedTuple):
    """Parameters ``(n, 2)`` of sphere and axis, ``(n, 1)`` where they have them in common."""

    p: Tensor
    a: Tensor
    lift: Tensor
    rho: Tensor


class _Sides(NamedTuple):
    """Nodes ``(n, nodes)`` by their side."""

    larger: Tensor
    power: Tensor
    weight: Tensor
    L: Tensor
    total: Tensor
    a: Tensor
    lift: Tensor
    parts: Tensor
    spread: Tensor

    def start(self, goal: Tensor) -> Tensor:
        """Log s ``(n, 2)`` if G were the same everywhere."""
        mean = (self.weight * self.L) @ self.parts / self.total.clamp(min=_TINY)
        power = (self.weight * self.power) @ self.parts / self.total.clamp(min=_TINY)
        # v = 1/(1 + exp(-goal)); 1/v^(1/power) = r (r + x) = (exp(2 asinh x) + 1)/2.
        log_b = ((torch.exp(-goal.abs()) + 1.0).log() + (-goal).clamp(min=0.0)) / power.clamp(min=_TINY)
        arc = 0.5 * (log_b + (2.0 - torch.exp(-log_b)).log())
        log_x = arc + (0.5 - 0.5 * torch.exp(-2.0 * arc)).clamp(min=_TINY).log()
        inside = goal.clamp(-12.0, 4.0)
        shift = _SHIFT[0] + inside * (_SHIFT[1] + inside * _SHIFT[2])
        return mean + shift - log_x / self.a

    def log_x(self, u: Tensor) -> Tensor:
        """At log s = u."""
        return (self.a @ self.spread) * self.L - (self.a * u) @ self.spread

    def evaluate(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """``v`` at log s = u, and its derivative by -log x."""
        return _fall(torch.exp(self.log_x(u).clamp(-300.0, 300.0)), self.power)

    def survival(self, v: Tensor) -> Tensor:
        """H of v."""
        return torch.where(self.larger, v, 1.0 + self.lift * (1.0 - v))


def _sides(G: Tensor, shape: Shape, inverse_weights: Tensor, parts: Tensor, spread: Tensor) -> _Sides:
    """In the precision of `G`, which is over ``int |G|``."""
    p, a, lift, rho = (parameter.to(G.dtype) for parameter in shape)
    larger, size = G > 0.0, G.abs()
    weight = torch.where(larger, size, lift * size)
    log_size = (size * inverse_weights).clamp(min=_TINY).log()
    L = torch.where(larger, log_size, log_size - kernels.LN2 * rho)
    return _Sides(larger, torch.where(larger, p @ spread, 1.0), weight, L, weight @ parts, a, lift, parts, spread)


def _goal(small: Tensor, both: Tensor, lift: Tensor) -> Tensor:
    return ((1.0 + lift) * small).clamp(min=_TINY).log() - (both - 2.0 * small).clamp(min=_TINY).log()


def _fall(x: Tensor, power: Tensor) -> tuple[Tensor, Tensor]:
    """``v = (1 - x/r)^power`` and its derivative by -log x."""
    r = (x * x + 1.0).sqrt()
    v = torch.exp(-power * (r * (r + x)).log())
    rise = x / r
    return v, power * v * (rise + rise * rise)


# Functions of the length across the axis
# ---------------------------------------
_BESSEL_DEGREE, _BESSEL_AT = 32, 12.0


def _bessel_table(root: Any) -> Any:
    """Chebyshev coefficients of both functions of `SurvivalMixing._bessel` in ``across/(across + 12)``, to 4e-9."""
    t = np.cos(np.pi * (np.arange(_BESSEL_DEGREE + 1) + 0.5) / (_BESSEL_DEGREE + 1))
    across = _BESSEL_AT * (1 + t) / (1 - t)
    rho = across[:, None] * root
    zero = ive(0, rho)
    values = np.hstack([zero * np.sqrt(1 + across)[:, None], ive(1, rho) / zero * root])
    return np.linalg.solve(chebyshev.chebvander(t, _BESSEL_DEGREE), values)


def faded(small: Tensor) -> Tensor:
    """Share of a crossing with this integral of its smaller side: a last node leaves it with its whole weight."""
    return torch.where(small > kernels.NOISE, 1.0 - torch.exp(-small / kernels.FADE), 0.0)


def _balanced(h: Tensor, G: Tensor, parts: Tensor, spread: Tensor) -> Tensor:
    """``h (n, nodes)`` with ``int h G = 0`` to rounding: the side that the root's error makes lose too much loses less.

    The difference would else be made up by densities alone, which a beam cannot spare without its flux.
    """
    lost = h * G
    plus, minus = lost.clamp(min=0.0) @ parts, (-lost).clamp(min=0.0) @ parts
    least = torch.minimum(plus, minus)
    up, down = ((least / side.clamp(min=_TINY)) @ spread for side in (plus, minus))
    return h * torch.where(G > 0.0, up, down)


def matrices_of(averages: Tensor) -> Tensor:
    """Matrices ``(n, 72)`` of `rheidae.mixing.transition` from averages ``(2, 4, n)``: kind, species out, in."""
    zero = torch.zeros_like(averages[0, 0])
    rows = []
    for kind in (0, 1):
        for e, x in ((0, 2), (1, 3)):
            q_e, q_x = averages[kind, e], averages[kind, x]
            block = (
                (1.0 - q_e, 0.5 * q_x, 0.5 * q_x),
                (0.5 * q_e, 1.0 - 0.25 * q_x, -0.25 * q_x),
                (0.5 * q_e, -0.25 * q_x, 1.0 - 0.25 * q_x),
            )
            for row in block:
                rows += [*row, zero, zero, zero] if e == 0 else [zero, zero, zero, *row]
    return torch.stack(rows, dim=1)


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
