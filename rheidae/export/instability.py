"""Growth rate and crossings as tensor operations: `rheidae.linear.regression`, and which pairs of flavors cross."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from rheidae.estimator.tensors.control import instead
from rheidae.estimator.tensors.minerbo import exponents
from rheidae.estimator.tensors.nodes import StateNodes, fill_nodes, tables
from rheidae.linear import regression
from rheidae.linear.distributions import LATITUDES
from rheidae.linear.stability import POTENTIAL, SPEED_OF_LIGHT
from rheidae.mixing._nodes_kernels import ALIKE, BEAM, VANISHING
from rheidae.mixing.asymptotic import ORDER
from rheidae.mixing.quadrature import lebedev

# Least part of a side of a crossing, over the total density, as in `rheidae.mixing.asymptotic`.
_NOISE = 1e-14
# Largest flux factor on nodes at rest, and least ratio of the integrals that the regression knows.
_MOST, _LEAST = 0.99, 1e-4


class Instability(nn.Module):
    """Growth rate ``(n, 1)`` and crossings ``(n, 3)`` of states ``(n, 6, 4)`` over their total density, float64."""

    nodes: Tensor
    weights: Tensor
    products: Tensor
    W: Tensor
    b: Tensor
    v: Tensor

    def __init__(self) -> None:
        super().__init__()
        nodes, weights = lebedev(regression.RULE)
        x, y, z = nodes
        products = np.array([np.ones_like(x), x, y, z, x * x, x * y, x * z, y * y, y * z, z * z]).T
        W, b, v, self.c = regression._coefficients()
        constants = {
            "nodes": nodes, "weights": weights, "products": products, "W": W, "b": b, "v": v[:, None],
        }  # fmt: skip
        for name, values in constants.items():
            self.register_buffer(name, torch.from_numpy(np.array(values, dtype=np.float64)))
        for name, rules in (("few", tables(3, regression.RULE, LATITUDES)), ("fine", tables(3, ORDER))):
            for part, values in rules.items():
                self.register_buffer(f"{name}_{part}", values)

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Growth rate in 1/s for a total density of 1/cm^3, and 1 for pairs e-mu, e-tau, mu-tau that cross, else 0."""
        N = state[..., 3]
        long = state[..., :3].square().sum(dim=2) > BEAM[0] * BEAM[0] * N * N
        beams = ((VANISHING * N.sum(dim=1, keepdim=True) < N) & long).any(dim=1, keepdim=True)
        few, fine = (
            [getattr(self, f"{name}_{part}") for part in ("base", "beam", "counts")] for name in ("few", "fine")
        )
        coarse = self._differences(state, self.nodes, _MOST) * self.weights
        sums = torch.cat([side.reshape(-1, coarse.shape[2]) @ self.products for side in _sides(coarse)], dim=1)
        sums = instead(sums.reshape(-1, 60), beams, _beam_sums, (state,), few)
        # Rows without beams do not take the nodes of others.
        crossing = instead(torch.zeros_like(state[:, :3, 3]), ~beams, _cross, (state,), fine)
        crossing = instead(crossing, beams, _cross, (state,), fine)
        first = crossing[:, :1]
        # Between equals rounding alone crosses.
        crossing = torch.where(_apart(state) > ALIKE, crossing, torch.cat([first, first, 0.0 * first], dim=1))
        return self._rate(sums.reshape(-1, 3, 20)), crossing

    def _differences(self, state: Tensor, nodes: Tensor, most: float) -> Tensor:
        """Differences ``(n, 3, nodes)`` of the lepton numbers of each pair of flavors."""
        N = state[..., 3:]
        size = state[..., :3].square().sum(dim=2, keepdim=True).sqrt()
        # Narrower beams as the narrowest.
        flux = state[..., :3] * (most * N / size.clamp(min=1e-30)).clamp(max=1.0)
        vectors, Z, density, _ = exponents(torch.cat([flux, N], dim=2))
        cut = Z.clamp(min=1e-4)
        peak = density / (4.0 * np.pi) * torch.where(Z > 1e-4, 2.0 * cut / (1.0 - torch.exp(-2.0 * cut)), 1.0 + Z)
        shape = (vectors.reshape(-1, 3) @ nodes).reshape(-1, 6, nodes.shape[1])
        g = peak[..., None] * torch.exp((shape - Z[..., None]).clamp(min=-700.0))
        L = g[:, :3] - g[:, 3:]
        return _pairs(L)

    def _rate(self, sums: Tensor) -> Tensor:
        """The quick growth rate from the moments of both sides; see `rheidae.linear._regression_kernels`."""
        plus, minus = sums[..., :10], sums[..., 10:]
        larger = plus[..., :1] >= minus[..., :1]
        large, small = torch.where(larger, plus, minus), torch.where(larger, minus, plus)
        L, S = large[..., :1], small[..., :1]
        crossing = (S > 1e-12 * L) & (L > 0.0)
        third = 1.0 / 3.0
        (jl, Ql), (js, Qs) = (
            (part[..., 1:4], part[..., 4:] - sums.new_tensor([third, 0.0, 0.0, third, 0.0, third]))
            for part in (side / torch.where(crossing, total, 1.0) for side, total in ((large, L), (small, S)))
        )
        double = sums.new_tensor([1.0, 2.0, 2.0, 1.0, 2.0, 1.0])

        def dot(a: Tensor, b: Tensor) -> Tensor:
            return (a * b).sum(dim=2, keepdim=True)

        def form(Q: Tensor, a: Tensor, b: Tensor) -> Tensor:
            product = [a[..., i : i + 1] * b[..., j : j + 1] for i, j in _ENTRIES]
            turned = [a[..., j : j + 1] * b[..., i : i + 1] for i, j in _ENTRIES]
            return 0.5 * dot(Q * double, torch.cat(product, dim=2) + torch.cat(turned, dim=2))

        ratio = torch.where(crossing, S / torch.where(crossing, L, 1.0), 1.0).clamp(min=_LEAST)
        features = torch.cat(
            [
                ratio.log(), dot(jl, jl), dot(js, js), dot(jl, js),
                dot(Ql * double, Ql), dot(Qs * double, Qs), dot(Ql * double, Qs),
                form(Ql, js, js), form(Qs, js, js), form(Ql, jl, jl), form(Qs, jl, jl), form(Ql, js, jl),
                form(Qs, js, jl),
            ],
            dim=2,
        )  # fmt: skip
        answer = torch.tanh(features.reshape(-1, 13) @ self.W + self.b) @ self.v + self.c
        scale = (L * S).sqrt()
        rate = torch.where(crossing & (scale > 1e-12), scale * torch.exp(answer.reshape(-1, 3, 1)), 0.0)
        return rate.amax(dim=1) * (POTENTIAL * SPEED_OF_LIGHT)


def _apart(state: Tensor) -> Tensor:
    """How far mu and tau are apart ``(n, 1)``."""
    return torch.cat([state[:, s] - state[:, s + 1] for s in (1, 4)], dim=1).abs().amax(dim=1, keepdim=True)


def _pairs(L: Tensor) -> Tensor:
    """Differences of the lepton numbers ``(n, 3, nodes)`` of the pairs e-mu, e-tau and mu-tau."""
    return torch.stack([L[:, 0] - L[:, 1], L[:, 0] - L[:, 2], L[:, 1] - L[:, 2]], dim=1)


def _weighted_pairs(nodes: StateNodes) -> Tensor:
    """The same, times weights, on nodes that follow the beams."""
    return _pairs(nodes.g[:, :3] - nodes.g[:, 3:]) * nodes.w[:, None]


def _sides(G: Tensor) -> tuple[Tensor, Tensor]:
    """The positive part of G, and the negative one."""
    return 0.5 * (G.abs() + G), 0.5 * (G.abs() - G)


def _cross(state: Tensor, *rules: Tensor) -> Tensor:
    """1 for pairs of which both sides hold more than rounding, on nodes that follow the state."""
    plus, minus = (side.sum(dim=2) for side in _sides(_weighted_pairs(fill_nodes(state, *rules))))
    return (torch.minimum(plus, minus) > _NOISE).to(state.dtype)


def _beam_sums(state: Tensor, *rules: Tensor) -> Tensor:
    """Moments ``(n, 60)`` of both sides of the three pairs, on nodes that follow the beams."""
    nodes = fill_nodes(state, *rules)
    x, y, z = nodes.x[:, None], nodes.y[:, None], nodes.z[:, None]
    sides = _sides(_weighted_pairs(nodes))
    weighted = [part for side in sides for part in (
        side, side * x, side * y, side * z, side * x * x, side * x * y, side * x * z, side * y * y, side * y * z,
        side * z * z,
    )]  # fmt: skip
    return torch.stack([part.sum(dim=2) for part in weighted], dim=2).flatten(1)


_ENTRIES = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
