"""Growth rate and crossings as tensor operations: `rheidae.linear.regression`, and which pairs of flavors cross."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from rheidae.estimator.tensors.nodes import OnNodes, StateNodes, average_heavy, fill_nodes, plain_distributions
from rheidae.linear import _regression_kernels, regression
from rheidae.linear._regression_kernels import BOTH, EXCHANGED, NARROWEST
from rheidae.linear.distributions import LATITUDES
from rheidae.linear.stability import POTENTIAL, SPEED_OF_LIGHT
from rheidae.mixing._nodes_kernels import ALIKE, BEAM, VANISHING
from rheidae.mixing.asymptotic import ORDER

# Least part of a side of a crossing, over the total density, as in `rheidae.mixing.asymptotic`.
_NOISE = 1e-14
# Least ratio of the integrals that the regression knows.
_LEAST = 1e-4


class Instability(nn.Module):
    """Growth rate ``(n, 1)`` and crossings ``(n, 3)`` of states ``(n, 6, 4)`` over their total density, float64."""

    W: Tensor
    b: Tensor
    v: Tensor

    def __init__(self) -> None:
        super().__init__()
        W, b, v, self.c = regression._coefficients()
        constants = {"W": W, "b": b, "v": v[:, None]}
        for name, values in constants.items():
            self.register_buffer(name, torch.from_numpy(np.array(values, dtype=np.float64)))
        self.few, self.fine = OnNodes(3, regression.RULE, LATITUDES), OnNodes(3, ORDER)

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Growth rate in 1/s for a total density of 1/cm^3, and 1 for pairs e-mu, e-tau, mu-tau that cross, else 0."""
        N = state[..., 3]
        long = state[..., :3].square().sum(dim=2) > BEAM[0] * BEAM[0] * N * N
        beams = ((VANISHING * N.sum(dim=1, keepdim=True) < N) & long).any(dim=1, keepdim=True)
        apart = torch.cat([state[:, s] - state[:, s + 1] for s in (1, 4)], dim=1).abs().amax(dim=1, keepdim=True)
        unlike = apart > _regression_kernels.ALIKE
        heavy = torch.where(unlike[..., None], state, average_heavy(state))
        sums = self.few.of_rows(heavy, ~beams, 60, _sums) + self.few.of_rows(heavy, beams, 60, _beam_sums)
        # Rows without beams do not take the nodes of others.
        crossing = self.fine.of_rows(state, ~beams, 3, _cross) + self.fine.of_rows(state, beams, 3, _cross)
        first = crossing[:, :1]
        # Between equals rounding alone crosses.
        crossing = torch.where(apart > ALIKE, crossing, torch.cat([first, first, 0.0 * first], dim=1))
        rates = self._rates(sums.reshape(-1, 3, 20))
        return torch.where(unlike, rates.amax(dim=1, keepdim=True), rates[:, :1]), crossing

    def _rates(self, sums: Tensor) -> Tensor:
        """Quick growth rates ``(n, 3)`` from the moments of both sides; see `rheidae.linear._regression_kernels`."""
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
        answer, exchanged = (
            torch.tanh(x.reshape(-1, 13) @ self.W + self.b) @ self.v + self.c
            for x in (features, features[..., list(EXCHANGED)])
        )
        t = (features[..., :1].reshape(-1, 1) / -BOTH).clamp(max=1.0)
        answer = answer - 0.25 * (1.0 - t) * (1.0 - t) * (2.0 + t) * (answer - exchanged)
        scale = (L * S).sqrt()
        rate = torch.where(crossing & (scale > 1e-12), scale * torch.exp(answer.reshape(-1, 3, 1)), 0.0)
        return rate[..., 0] * (POTENTIAL * SPEED_OF_LIGHT)


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


def _sums(state: Tensor, base: Tensor, beam: Tensor, counts: Tensor) -> Tensor:
    """Moments ``(n, 60)`` of both sides of the three pairs, on the sphere's rule."""
    g = plain_distributions(state, base, counts, NARROWEST)
    x, y, z, w = torch.cat([base, torch.cat([-base[:3], base[3:]])], dim=1).unbind(dim=0)
    return _moments(_pairs(g[:, :3] - g[:, 3:]) * w, x, y, z)


def _beam_sums(state: Tensor, *rules: Tensor) -> Tensor:
    """The same on nodes that follow the beams."""
    nodes = fill_nodes(state, *rules)
    return _moments(_weighted_pairs(nodes), nodes.x[:, None], nodes.y[:, None], nodes.z[:, None])


def _moments(G: Tensor, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    products = x, y, z, x * x, x * y, x * z, y * y, y * z, z * z
    weighted = [part for side in _sides(G) for part in (side, *(side * product for product in products))]
    return torch.stack([part.sum(dim=2) for part in weighted], dim=2).flatten(1)


_ENTRIES = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
