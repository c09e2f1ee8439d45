"""The analytic schemes as graphs, from initial to final four-fluxes as those of a model."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rheidae import fourflux
from rheidae.estimator.tensors.asymptotic import AsymptoticMixing
from rheidae.estimator.tensors.control import repeat
from rheidae.estimator.tensors.mixing import differ, of_all
from rheidae.estimator.tensors.nodes import total_of
from rheidae.estimator.tensors.survival import SurvivalMixing, faded
from rheidae.export._compiled_kernels import asymptotic_change
from rheidae.export.box3d import Box3DTerms
from rheidae.export.graph import Kernel, enter, keep_physical
from rheidae.mixing import _survival_kernels as kernels
from rheidae.mixing._nodes_kernels import BEAM
from rheidae.mixing.asymptotic import asymptotic_flux, levels_of
from rheidae.mixing.box3d import box3d_flux
from rheidae.mixing.physical import keep_physical as keep_rows_physical
from rheidae.mixing.power import LITERATURE
from rheidae.mixing.survival import mixing_change

SCHEME_ORDERS = {"asymptotic": 41, "box3d": 23, "power": 31}
"""Lebedev orders of the schemes' graphs. Beams have nodes of their own in the asymptotic one alone."""


class SchemeGraph(nn.Module):
    """What `rheidae.mix` does by a scheme of `SCHEME_ORDERS`, in double precision, on the rule of an order.

    The asymptotic one is its first level. It has the face of `rheidae.export.graph.FluxGraph`.
    """

    inputs = ("F_init",)
    outputs = ("F_final",)
    plain = True

    def __init__(self, scheme: str, order: int) -> None:
        super().__init__()
        self.limited = scheme != "box3d"
        kind = {"asymptotic": _Asymptotic, "box3d": _Box3D, "power": _Power}[scheme]
        self.change: nn.Module = kind(order)

    def forward(self, F_init: Tensor) -> Tensor:
        """Return final four-fluxes ``(n, 24)`` in the unit of `F_init`."""
        F_init, number = enter(F_init)
        total = total_of(F_init.reshape(-1, 6, 4))
        scale = torch.where(total > 0.0, total, 1.0)
        final = F_init + scale * self.change(F_init / scale)
        final = torch.where(total > 0.0, final, F_init)
        return (keep_physical(F_init, final, scale) if self.limited else final) + number


class SchemeCode:
    """The asymptotic scheme, all of it, as what `rheidae.export.compiled` makes machine code of."""

    inputs, outputs = SchemeGraph.inputs, SchemeGraph.outputs

    def __init__(self, order: int) -> None:
        self.kernel = Kernel(asymptotic_change, levels_of(order), relative=False)


class _Box3D(nn.Module):
    def __init__(self, order: int) -> None:
        super().__init__()
        self.terms = Box3DTerms(order)

    def forward(self, x: Tensor) -> Tensor:
        state = x.reshape(-1, 6, 4)
        return (self.terms(state) - state).reshape(-1, 24)


class _Asymptotic(nn.Module):
    """The first level of `rheidae.mix`; rows with and without beams apart, since those have ten times the nodes."""

    def __init__(self, order: int) -> None:
        super().__init__()
        self.alike = nn.ModuleList(AsymptoticMixing(2, order=order) for _ in range(2))
        self.unlike = nn.ModuleList(AsymptoticMixing(3, order=order) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        state = x.reshape(-1, 6, 4)
        unlike = differ(state)
        beams = (state[..., :3].square().sum(dim=2).sqrt() > BEAM[0] * state[..., 3]).any(dim=1, keepdim=True)
        change = torch.zeros_like(x)
        for rows, alike, own in zip((~beams, beams), self.alike, self.unlike, strict=True):
            change = change + of_all(alike(state, rows & ~unlike)) + own(state, rows & unlike)
        return change


class _Power(SurvivalMixing):
    """Change ``(n, 24)`` of states ``(n, 24)`` over their total density, on the nodes of the network.

    ``u = 1/s^2`` from ``K(u) = sum W/(1 + u G^2) = I_small`` over the larger side, W its weighted G. ``1/K`` is concave
    and grows, a power mean of linear functions of u, and one itself where G is the same everywhere. So Newton's steps
    on it climb from u = 0 to the root, whatever the state, and never beyond.
    """

    def forward(self, x: Tensor) -> Tensor:
        nodes = self.prepare(x.reshape(-1, 6, 4))
        G, small = nodes.G[:, : self.sphere], nodes.small[:, :1]
        square = (G * self.inverse_weights[: self.sphere]).square() + 1e-30
        crossing = small > kernels.NOISE
        weighted = G.clamp(min=0.0)
        goal = torch.where(crossing, small, weighted.sum(dim=1, keepdim=True))
        start = torch.zeros_like(goal)
        u = repeat(_unfinished, _power_step, (start, start + 1.0), (goal, weighted, square))
        h = torch.cat([torch.where(G > 0.0, 1.0 / (1.0 + u * square), 1.0), nodes.G[:, self.sphere :]], dim=1)
        fade = (2.0 / 3.0) * faded(small)
        return of_all(self.change(nodes, h, torch.cat([fade, torch.zeros_like(fade)], dim=1)).reshape(-1, 8))


def _unfinished(u: Tensor, off: Tensor, *given: Tensor) -> Tensor:
    return (off > 1e-12).any()


def _power_step(u: Tensor, off: Tensor, goal: Tensor, weighted: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
    inverse = 1.0 / (1.0 + u * square)
    part = weighted * inverse
    K, slope = part.sum(dim=1, keepdim=True), (part * square * inverse).sum(dim=1, keepdim=True)
    off = _over(K, goal) - 1.0
    return u + _over(K * off, slope).clamp(min=0.0), off


def _over(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b > 0.0, a / torch.where(b > 0.0, b, 1.0), 0.0)


def scheme_answer(scheme: str, F: fourflux.Float, order: int) -> NDArray[np.float64]:
    """What the graph has to give for states ``(n, 6, 4)``: by the kernels, on the same nodes."""
    if scheme == "box3d":
        return box3d_flux(F, order=order)
    if scheme == "asymptotic":
        out = asymptotic_flux(F, order=order, levels=1)
    else:
        theta, out = np.tile(LITERATURE, (len(F), 1)), np.empty(F.shape)
        D = mixing_change(F, theta, power_law=True, order=order, tolerance=1e-12, beams=False).D
        kernels.share_change(F, D, out, 0, len(F))
    keep_rows_physical(F, out)
    return out
