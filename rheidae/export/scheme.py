"""The analytic schemes as graphs, from initial to final four-fluxes as those of a model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rheidae import fourflux
from rheidae.estimator.tensors.asymptotic import AsymptoticMixing
from rheidae.estimator.tensors.control import repeat
from rheidae.estimator.tensors.survival import Nodes, SurvivalMixing
from rheidae.export.box3d import Box3DTerms
from rheidae.export.graph import keep_physical, total_of
from rheidae.mixing import _survival_kernels as kernels
from rheidae.mixing.asymptotic import asymptotic_flux
from rheidae.mixing.box3d import box3d_flux
from rheidae.mixing.physical import keep_physical as keep_rows_physical
from rheidae.mixing.power import LITERATURE
from rheidae.mixing.survival import ASYMPTOTIC, calm, mixing_change

SCHEME_ORDERS = {"asymptotic": 41, "box3d": 23, "power": 31}
"""Lebedev orders of the schemes' graphs. Beams have nodes of their own in the asymptotic one alone."""


class SchemeGraph(nn.Module):
    """What `rheidae.mix` does by one scheme, in double precision; has the face of `rheidae.export.graph.FluxGraph`.

    Parameters
    ----------
    scheme : {"asymptotic", "box3d", "power"}
        The first has the network's nodes and the parameters of the scheme, and like the network's graph it answers NaN
        where mu and tau differ.
    order : int
        Of the Lebedev rule.
    """

    inputs = ("F_init",)
    outputs = ("F_final",)
    plain = True

    def __init__(self, scheme: str, order: int) -> None:
        super().__init__()
        self.refuses_unlike = scheme == "asymptotic"
        self.limited = scheme != "box3d"
        kind = {"asymptotic": _Asymptotic, "box3d": _Box3D, "power": _Power}[scheme]
        self.change: nn.Module = kind(order)

    def forward(self, F_init: Tensor) -> Tensor:
        """Return final four-fluxes ``(n, 24)`` in the unit of `F_init`."""
        total = total_of(F_init.reshape(-1, 6, 4))
        scale = torch.where(total > 0.0, total, 1.0)
        final = F_init + scale * self.change(F_init / scale)
        final = torch.where(total > 0.0, final, F_init)
        return keep_physical(F_init, final, scale) if self.limited else final


class _Box3D(nn.Module):
    def __init__(self, order: int) -> None:
        super().__init__()
        self.terms = Box3DTerms(order)

    def forward(self, x: Tensor) -> Tensor:
        state = x.reshape(-1, 6, 4)
        return (self.terms(state) - state).reshape(-1, 24)


class _Continuous(SurvivalMixing):
    """Change ``(n, 24)`` of states ``(n, 24)`` over their total density, on the nodes of the network.

    The equation for s is ``K(u) = goal`` for a falling K of which ``g = K^-1`` or ``K^-2`` is concave and grows: a
    power mean of linear functions of u, and one itself where G is the same everywhere. So Newton's steps on g climb
    from u = 0 to the root, whatever the state, and never beyond.
    """

    bounded = False
    """Whether less changes where a beam on a node makes more of G than there is, as in the kernel."""

    def forward(self, x: Tensor) -> Tensor:
        state = x.reshape(-1, 6, 4)
        nodes = self.prepare(state)
        G, small = nodes.G[:, : self.sphere], nodes.small[:, :1]
        square = (G * self.inverse_weights[: self.sphere]).square() + 1e-30
        crossing = small > kernels.NOISE
        h = torch.cat([self.survival(G, square, small, crossing), nodes.G[:, self.sphere :]], dim=1)
        fade = torch.where(crossing, 1.0 - torch.exp(-small / kernels.FADE), 0.0)
        if self.bounded:
            fade = fade / nodes.both[:, :1].clamp(min=1.0)
        D = self.change(nodes, h, torch.cat([(2.0 / 3.0) * fade, torch.zeros_like(fade)], dim=1))
        D = self.lost(nodes, state, D)[:, :, None]
        return torch.cat([-D, 0.5 * D, 0.5 * D], dim=2).reshape(-1, 24)

    def lost(self, nodes: Nodes, state: Tensor, D: Tensor) -> Tensor:
        """What nu_e and nubar_e lose, ``(n, 2, 4)``, from what they lose on these nodes."""
        return D

    def survival(self, G: Tensor, square: Tensor, small: Tensor, crossing: Tensor) -> Tensor:
        """1.5 (1 - P) ``(n, nodes)`` of weighted G and its square at the nodes."""
        raise NotImplementedError

    def _solved(self, step: Callable[..., tuple[Tensor, Tensor]], goal: Tensor, *tables: Tensor) -> Tensor:
        start = torch.zeros_like(goal)
        return repeat(_unfinished, step, (start, start + 1.0), (goal, *tables))


class _Power(_Continuous):
    """``u = 1/s^2``, ``K = sum W/(1 + u G^2)`` over the larger side, W its weighted G; ``g = 1/K``; goal: I_small."""

    def survival(self, G: Tensor, square: Tensor, small: Tensor, crossing: Tensor) -> Tensor:
        """As in the base."""
        weighted = G.clamp(min=0.0)
        goal = torch.where(crossing, small, weighted.sum(dim=1, keepdim=True))
        u = self._solved(_power_step, goal, weighted, square)
        return torch.where(G > 0.0, 1.0 / (1.0 + u * square), 1.0)


class _Asymptotic(_Continuous):
    """``u = s^2``, ``K = sum W |G|/sqrt(G^2 + u)``, W the weighted |G|, half of it on the smaller side; ``g = 1/K^2``.

    Goal: ``I_large - I_small``. Rows with beams have nodes that follow them; those whose mu and tau differ are NaN.
    """

    bounded = True

    def __init__(self, order: int) -> None:
        super().__init__(order)
        self.beams = AsymptoticMixing()

    def lost(self, nodes: Nodes, state: Tensor, D: Tensor) -> Tensor:
        """As in the base."""
        beams = nodes.calm[:, :, None] < 1.0
        found = self.beams(state, beams[:, 0]).reshape(-1, 2, 4)
        return torch.where(beams, found + nodes.calm[:, :, None] * (D - found), D)

    def survival(self, G: Tensor, square: Tensor, small: Tensor, crossing: Tensor) -> Tensor:
        """As in the base."""
        size = square.sqrt()
        weighted = size * torch.maximum(G, -0.5 * G)
        all_of_it = torch.maximum(G, -0.5 * G).sum(dim=1, keepdim=True)
        goal = torch.where(crossing, torch.maximum(all_of_it - 1.5 * small, 1e-12 * all_of_it), all_of_it)
        u = self._solved(_asymptotic_step, goal, weighted, square)
        part = size / (square + u).sqrt()
        return torch.where(G > 0.0, 1.0 - part, 1.0 + 0.5 * part)

    def forward(self, x: Tensor) -> Tensor:
        unlike = torch.cat([x[:, 4:8] - x[:, 8:12], x[:, 16:20] - x[:, 20:24]], dim=1).abs().amax(dim=1, keepdim=True)
        return torch.where(unlike > fourflux.ALIKE, float("nan"), super().forward(x))


def _unfinished(u: Tensor, off: Tensor, *given: Tensor) -> Tensor:
    return (off > 1e-12).any()


def _power_step(u: Tensor, off: Tensor, goal: Tensor, weighted: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
    inverse = 1.0 / (1.0 + u * square)
    part = weighted * inverse
    K, slope = part.sum(dim=1, keepdim=True), (part * square * inverse).sum(dim=1, keepdim=True)
    off = _over(K, goal) - 1.0
    return u + _over(K * off, slope).clamp(min=0.0), off


def _asymptotic_step(u: Tensor, off: Tensor, goal: Tensor, weighted: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
    inverse = 1.0 / (square + u)
    part = weighted * inverse.sqrt()
    K, slope = part.sum(dim=1, keepdim=True), (part * inverse).sum(dim=1, keepdim=True)
    off = _over(K, goal) - 1.0
    return u + _over(K * (off * (off + 2.0)), slope).clamp(min=0.0), off


def _over(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b > 0.0, a / torch.where(b > 0.0, b, 1.0), 0.0)


def scheme_answer(scheme: str, F: fourflux.Float, order: int) -> NDArray[np.float64]:
    """What the graph has to give for states ``(n, 6, 4)``: by the kernels, on the same nodes."""
    if scheme == "box3d":
        return box3d_flux(F, order=order)
    theta = np.tile(ASYMPTOTIC if scheme == "asymptotic" else LITERATURE, (len(F), 1))
    D = mixing_change(F, theta, power_law=scheme == "power", order=order, tolerance=1e-12, beams=False).D
    trust = calm(F)
    if scheme == "asymptotic" and (beams := trust < 1.0).any():
        state = F[beams] / fourflux.total_density(F[beams])[:, None, None]
        found = (state - asymptotic_flux(state, levels=1))[:, [0, 3]].reshape(-1, 8)
        D[beams] = found + trust[beams, None] * (D[beams] - found)
    out = np.empty(F.shape)
    kernels.share_change(F, D, out, 0, len(F))
    keep_rows_physical(F, out)
    return out
