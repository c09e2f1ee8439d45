"""Nodes that follow the species of a state, as tensor operations.

The arithmetic is that of `rheidae.mixing._nodes_kernels`. Where that branches by row, both ways are computed and one is
chosen. Rows are never reshaped, since graphs do not know how many there are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rheidae.estimator.tensors.control import instead, repeat
from rheidae.estimator.tensors.minerbo import langevin_ratio, peak, smoothstep
from rheidae.mixing import _nodes_kernels as kernels
from rheidae.mixing._box3d_kernels import FOUR_PI
from rheidae.mixing._nodes_kernels import LATITUDES, spiral_rule, symmetric_rule
from rheidae.mixing.quadrature import lebedev

_TINY = 1e-30


class StateNodes(NamedTuple):
    """Species in the frame of their state, and their distributions on its nodes; see `fill_nodes`."""

    axes: tuple[Tensor, ...]
    """The three axes of the frame, ``(n, 3)`` each."""
    N: Tensor
    f: Tensor
    """Densities, over the total, and flux factors ``(n, species)``."""
    x: Tensor
    y: Tensor
    z: Tensor
    w: Tensor
    """Nodes and weights ``(n, nodes)``."""
    g: Tensor
    along: Tensor
    """Distributions, and cosines to their species' own directions, ``(n, species, nodes)``."""


class _Species(NamedTuple):
    """Species in the frame, ``(n, species)``."""

    hx: Tensor
    hy: Tensor
    hz: Tensor
    Z: Tensor
    N: Tensor
    amplitude: Tensor
    f: Tensor


class OnNodes(nn.Module):
    """Functions of states, on nodes that follow each state.

    Parameters
    ----------
    flavors : {2, 3}
        With 2, mu and tau enter as their mean.
    order : int
        Of the Lebedev rule.
    latitudes : int
        Of the rule of beams.
    """

    base: Tensor
    beam: Tensor
    counts: Tensor

    def __init__(self, flavors: int, order: int, latitudes: int = LATITUDES) -> None:
        super().__init__()
        self.flavors = flavors
        base, beam = symmetric_rule(*lebedev(order)), spiral_rule(latitudes)
        # Halves of the rules, and how often each species counts.
        arrays = {
            "base": base[:, : base.shape[1] // 2],
            "beam": beam[:, :latitudes],
            "counts": np.array([[1.0, 2.0] * 2 if flavors == 2 else [1.0] * 6]),
        }
        for name, values in arrays.items():
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(values)))

    def of_rows(self, state: Tensor, rows: Tensor, columns: int, function: Callable[..., Tensor]) -> Tensor:
        """``function(state, base, beam, counts)`` ``(n, columns)`` in the rows that are marked, ``(n, 1)``, else 0."""
        out = torch.cat([0.0 * state[:, :1, 3]] * columns, dim=1)
        return instead(out, rows, function, (state,), (self.base, self.beam, self.counts))


def total_of(state: Tensor) -> Tensor:
    """Total densities ``(n, 1)``, in the order of `rheidae.fourflux.total_density`."""
    N = state[:, :, 3]
    total = N[:, 0]
    for species in range(1, 6):
        total = total + N[:, species]
    return total[:, None]


def average_heavy(state: Tensor) -> Tensor:
    """The mean of mu and tau in the place of both."""
    e, mu, tau, ebar, mubar, taubar = state.unbind(dim=1)
    nu, nubar = 0.5 * (mu + tau), 0.5 * (mubar + taubar)
    return torch.stack([e, nu, nu, ebar, nubar, nubar], dim=1)


def take_moments(state: Tensor, flavors: int) -> tuple[Tensor, Tensor]:
    """Four-fluxes over the total density, ``(n, 2 flavors, 4)``, of the species of a state, and that, ``(n, 1)``."""
    if flavors == 2:
        state = average_heavy(state)
    total = total_of(state)
    inverse = torch.where(total > 0.0, 1.0 / torch.where(total > 0.0, total, 1.0), 0.0)
    kept = state if flavors == 3 else torch.cat([state[:, :2], state[:, 3:5]], dim=1)
    return inverse[..., None] * kept, total


def fill_nodes(moments: Tensor, base: Tensor, beam: Tensor, counts: Tensor) -> StateNodes:
    """Nodes of states from the four-fluxes ``(n, 2 flavors, 4)`` of their species, over the total density.

    Of neutrinos, then of antineutrinos. The rules of species are left out where no row has a beam.
    """
    own, axes, Q = _enter(moments, counts)
    share = smoothstep(own.f, *kernels.BEAM) * (own.N / (own.N + kernels.VANISHING)) * counts
    c = (kernels.KAPPA / own.Z.clamp(min=_TINY)).clamp(max=1.0)
    beams = (share > 0.0).any(dim=1, keepdim=True)
    u, v = _across(own, Q)
    x, y, z, w = _nodes(own, u, v, c, share, base, beam, beams.any())
    p, q, r = (n[:, None] - h[..., None] for n, h in ((x, own.hx), (y, own.hy), (z, own.hz)))
    t = 0.5 * (p * p + q * q + r * r)
    inverse = 1.0 / (c[..., None] + (1.0 - c)[..., None] * t)
    density = 1.0 + ((share * c * (2.0 - c))[..., None] * inverse * inverse).sum(dim=1)
    w = torch.where(beams, w / density, w)
    g = own.amplitude[..., None] * torch.exp(-(own.Z[..., None] * t).clamp(max=690.0))
    g = _represent(own, beams, u, v, (p, q, r), t, w, g)
    along = p * own.hx[..., None] + q * own.hy[..., None] + r * own.hz[..., None] + 1.0
    return StateNodes(axes, own.N, own.f, x, y, z, w, g, along)


def plain_distributions(moments: Tensor, base: Tensor, counts: Tensor, narrowest: float) -> Tensor:
    """Distributions ``(n, species, nodes)`` on the sphere's rule alone, with Z at most `narrowest`."""
    own, _, _ = _enter(moments, counts)
    Z = own.Z.clamp(max=narrowest)
    x, y, z = torch.cat([base[:3], -base[:3]], dim=1).unbind(dim=0)
    along = own.hx[..., None] * x + own.hy[..., None] * y + own.hz[..., None] * z
    return (own.N / FOUR_PI * peak(Z))[..., None] * torch.exp(Z[..., None] * (along - 1.0))


def _enter(moments: Tensor, counts: Tensor) -> tuple[_Species, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Species, the three axes ``(n, 3)``, and Q along them ``(n, 1)``."""
    x, y, z, N = moments[..., 0], moments[..., 1], moments[..., 2], moments[..., 3]
    flux = (x * x + y * y + z * z).sqrt()
    axes, Q = _frame(_tensor(x, y, z, counts))
    x, y, z = ((moments[..., :3] * axis[:, None]).sum(dim=2) for axis in axes)
    # Across a line on which all fluxes nearly are.
    plane = _tensor(x, y, z, counts)
    half, b = 0.5 * (plane[1] - plane[0]), plane[3]
    turned = (Q[1] < kernels.NARROW * Q[2]) & (b.abs() > 0.0)
    t = torch.where(turned, _tangent(half, b), 0.0)
    c = 1.0 / (t * t + 1.0).sqrt()
    s = t * c
    found = Q[1] < kernels.NARROW * Q[2]
    q0, q1 = torch.where(found, plane[0] - t * b, Q[0]), torch.where(found, plane[1] + t * b, Q[1])
    x, y = c * x - s * y, s * x + c * y
    a0, a1 = c * axes[0] - s * axes[1], s * axes[0] + c * axes[1]
    swap = found & (q0 > q1)
    x, y = torch.where(swap, y, x), torch.where(swap, x, y)
    a0, a1 = torch.where(swap, a1, a0), torch.where(swap, a0, a1)
    q0, q1 = torch.where(swap, q1, q0), torch.where(swap, q0, q1)
    filled, moving = N > 0.0, flux > 0.0
    f = torch.where(filled, flux / torch.where(filled, N, 1.0), 0.0).clamp(max=kernels.CLOSEST)
    inverse = torch.where(moving, 1.0 / torch.where(moving, flux, 1.0), 0.0)
    Z = f * langevin_ratio(f)
    hz = torch.where(moving, z * inverse, 1.0)
    species = _Species(x * inverse, y * inverse, hz, Z, N, N / FOUR_PI * peak(Z), f)
    third = torch.where(found, plane[2], Q[2])
    return species, (a0, a1, axes[2]), (q0, q1, third)


def _frame(Q: tuple[Tensor, ...]) -> tuple[list[Tensor], list[Tensor]]:
    """Axes and eigenvalues of Q (00, 11, 22, 01, 02, 12), by growing eigenvalue."""
    one = torch.ones_like(Q[0])
    none = torch.zeros_like(one)
    start = torch.cat([*Q, one, none, none, none, one, none, none, none, one], dim=1)
    columns = repeat(_not_diagonal, _sweep, (start,), ()).split(1, dim=1)
    values, axes = list(columns[:3]), [torch.cat(columns[k : k + 3], dim=1) for k in (6, 9, 12)]
    for i, j in ((0, 1), (1, 2), (0, 1)):
        swap = values[i] > values[j]
        for table in (values, axes):
            table[i], table[j] = torch.where(swap, table[j], table[i]), torch.where(swap, table[i], table[j])
    return axes, values


def _tensor(x: Tensor, y: Tensor, z: Tensor, counts: Tensor) -> tuple[Tensor, ...]:
    """Entries 00, 11, 22, 01, 02, 12 of Q ``(n, 1)`` of fluxes ``(n, species)``."""
    parts, flavors = [], x.shape[1] // 2
    for a, b in ((x, x), (y, y), (z, z), (x, y), (x, z), (y, z)):
        p, q = a[:, :flavors] - a[:, flavors:], b[:, :flavors] - b[:, flavors:]
        weights = counts[:, :flavors]
        own = (counts * a * b).sum(dim=1, keepdim=True)
        product = (weights * p * q).sum(dim=1, keepdim=True)
        sums = (weights * p).sum(dim=1, keepdim=True) * (weights * q).sum(dim=1, keepdim=True)
        parts.append(own + 3.0 * product - sums)
    return tuple(parts)


def _tangent(half: Tensor, b: Tensor) -> Tensor:
    root = (half * half + b * b).sqrt()
    bottom = torch.where(half >= 0.0, half + root, half - root)
    return b / torch.where(bottom.abs() > 0.0, bottom, 1.0)


def _left(columns: Any) -> Tensor:
    """Which rows ``(n, 1)`` are not diagonal yet."""
    off: Tensor = columns[3].abs() + columns[4].abs() + columns[5].abs()
    return off > kernels.TURNED * (columns[0] + columns[1] + columns[2])


def _not_diagonal(table: Tensor) -> Tensor:
    return _left(table.split(1, dim=1)).any()


def _sweep(table: Tensor) -> tuple[Tensor]:
    """Three of Jacobi's rotations; columns are Q's entries 00, 11, 22, 01, 02, 12 and the three axes."""
    columns = table.split(1, dim=1)
    left, trace = _left(columns), columns[0] + columns[1] + columns[2]
    values, off = list(columns[:3]), [columns[5], columns[4], columns[3]]
    axes = [table[:, k : k + 3] for k in (6, 9, 12)]
    for p, q in ((0, 1), (0, 2), (1, 2)):
        r = 3 - p - q
        turned = left & (off[r].abs() > 1e-15 * trace)
        t = torch.where(turned, _tangent(0.5 * (values[q] - values[p]), off[r]), 0.0)
        c = 1.0 / (t * t + 1.0).sqrt()
        values[p], values[q] = values[p] - t * off[r], values[q] + t * off[r]
        off[r] = torch.where(turned, 0.0, off[r])
        # By off[q] is meant the entry of the other two, p and r.
        a, b = torch.cat([off[q], axes[p]], dim=1), torch.cat([off[p], axes[q]], dim=1)
        a, b = c * (a - t * b), c * (t * a + b)
        off[q], axes[p], off[p], axes[q] = a[:, :1], a[:, 1:], b[:, :1], b[:, 1:]
    return (torch.cat([*values, off[2], off[1], off[0], *axes], dim=1),)


def _across(own: _Species, Q: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Two axes across each direction, in which the part of the diagonal Q across it is diagonal."""
    x, y, z = own.hx, own.hy, own.hz
    sign = torch.where(z >= 0.0, 1.0, -1.0)
    a = -1.0 / (sign + z)
    b = x * y * a
    u = (1.0 + sign * x * x * a, sign * b, -sign * x)
    v = (b, sign + y * y * a, -y)
    half, uv = torch.zeros_like(x), torch.zeros_like(x)
    for value, p, q in zip(Q, u, v, strict=True):
        half = half + 0.5 * (p * (value * p) - q * (value * q))
        uv = uv + q * (value * p)
    norm = (half * half + uv * uv).sqrt()
    safe = torch.where(norm > 0.0, norm, 1.0)
    first = (0.5 * (1.0 + half.abs() / safe)).sqrt()
    second = 0.5 * uv / safe / first
    ahead = half >= 0.0
    # With half < 0, s has the sign of uv and c is positive.
    c = torch.where(ahead, first, second.abs())
    s = torch.where(ahead, second, torch.where(uv >= 0.0, first, -first))
    level = norm > 0.0
    c, s = torch.where(level, c, 0.5**0.5), torch.where(level, s, 0.5**0.5)
    along = tuple(c * p + s * q for p, q in zip(u, v, strict=True))
    return along, tuple(c * q - s * p for p, q in zip(u, v, strict=True))


def _nodes(
    own: _Species, u: tuple[Tensor, ...], v: tuple[Tensor, ...], c: Tensor, share: Tensor, base: Tensor,
    beam: Tensor,
    any_beam: Tensor,
) -> list[Tensor]:  # fmt: skip
    """Nodes and weights ``(n, nodes)``, before the division by the density.

    Rules come as the half, or the quarter, that reflections make the rest of.
    """
    x, y, z, w = beam.unbind(dim=0)
    parts = [x, x, -x, -x], [y, -y, y, -y], [z] * 4, [w] * 4
    beam = torch.stack([torch.cat(part) for part in parts])
    beam = beam[:, ((beam[3] > 0.0) & any_beam).nonzero().squeeze(1)]
    base = torch.cat([base, torch.cat([-base[:3], base[3:]])], dim=1)
    b = (1.0 - c)[..., None]
    inverse = 1.0 / (1.0 + b * beam[2])
    t = c[..., None] * (1.0 - beam[2]) * inverse
    across = (c * (2.0 - c)).sqrt()[..., None] * inverse
    p, q = across * beam[0], across * beam[1]
    none = torch.zeros_like(c[:, :1])
    tables = []
    for k, h in enumerate((own.hx, own.hy, own.hz)):
        here = p * u[k][..., None] + q * v[k][..., None] - t * h[..., None] + h[..., None]
        tables.append(torch.cat([none + base[k], *here.unbind(dim=1)], dim=1))
    weight = share[..., None] * beam[3]
    return [*tables, torch.cat([none + base[3], *weight.unbind(dim=1)], dim=1)]


def _represent(own: _Species, beams: Tensor, u: Any, v: Any, away: Any, t: Tensor, w: Tensor, g: Tensor) -> Tensor:
    """Distributions ``(n, species, nodes)`` with their species' moments."""
    scale = 1.0 + own.Z
    root = scale.sqrt()
    weight = w[:, None]
    a, b = (sum(n * (root * axis)[..., None] for n, axis in zip(away, axes, strict=True)) for axes in (u, v))
    r = scale[..., None] * t
    value = weight * g
    basis = (None, a, b, r)
    gram = [[_moment(value, basis[i], basis[j]) for j in range(i + 1)] for i in range(4)]
    deficit = own.N * (1.0 - own.f)
    wanted = [own.N, torch.zeros_like(deficit), torch.zeros_like(deficit), scale * deficit]
    filled = gram[0][0] > 1e-30
    goal = [torch.where(filled, n - row[0], 0.0) for n, row in zip(wanted, gram, strict=True)]
    b0, b1, b2, b3 = _solve_gram(gram, goal, filled)
    factor = (1.0 + b0)[..., None] + (b1[..., None] * a + b2[..., None] * b + b3[..., None] * r)
    right = g * factor.clamp(min=0.0)
    value = weight * right
    sums = [_moment(value, None, n) for n in basis]
    off = torch.stack([(n - s).abs() for n, s in zip(wanted, sums, strict=True)]).sum(dim=0)
    # The largest part of a species whose rest is physical.
    s1, s2, s3 = sums[1] / root, sums[2] / root, sums[3] / scale
    inside = deficit * (2.0 * own.N - deficit)
    half = deficit * (sums[0] - s3) + s3 * own.N
    square = s3 * (2.0 * sums[0] - s3) - (s1 * s1 + s2 * s2)
    bottom = half + (half * half - square * inside).clamp(min=0.0).sqrt()
    theta = torch.where(bottom > 0.0, inside / torch.where(bottom > 0.0, bottom, 1.0), 1.0).clamp(max=1.0)
    theta = torch.where(off > kernels.RIGHT * own.N, theta, 1.0)
    return torch.where((beams & filled)[..., None], right * theta[..., None], g)


def _moment(value: Tensor, a: Tensor | None, b: Tensor | None) -> Tensor:
    for factor in (a, b):
        value = value if factor is None else value * factor
    return value.sum(dim=2)


def _solve_gram(s: Any, goal: Any, filled: Tensor) -> list[Tensor]:
    """As the kernel of that name, of a lower triangle; rows that are not `filled` have zeros."""
    ridge = torch.where(filled, kernels.RIDGE * (s[0][0] + s[1][1] + s[2][2] + s[3][3]), 1.0)
    L: list[list[Tensor]] = []
    for i in range(4):
        row: list[Tensor] = []
        for j in range(i + 1):
            value = s[i][j]
            for k in range(j):
                value = value - row[k] * (row[k] if j == i else L[j][k])
            row.append((value.clamp(min=0.0) + ridge).sqrt() if j == i else value / L[j][j])
        L.append(row)
    b = _by_factor(L, goal)
    # Once more, of what is left.
    rest = []
    for i in range(4):
        value = goal[i]
        for k in range(4):
            value = value - s[max(i, k)][min(i, k)] * b[k]
        rest.append(value)
    return [old + new for old, new in zip(b, _by_factor(L, rest), strict=True)]


def _by_factor(L: Any, goal: Any) -> list[Tensor]:
    """Forwards and back through the lower triangle L."""
    y: list[Tensor] = []
    for i in range(4):
        value = goal[i]
        for k in range(i):
            value = value - L[i][k] * y[k]
        y.append(value / L[i][i])
    for i in (3, 2, 1, 0):
        value = y[i]
        for k in range(i + 1, 4):
            value = value - L[k][i] * y[k]
        y[i] = value / L[i][i]
    return y
