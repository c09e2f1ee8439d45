"""The whole prediction as one graph: from initial to final four-fluxes, both in one unit, any unit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rheidae.estimator.tensors.control import branch, repeat
from rheidae.estimator.tensors.nodes import total_of
from rheidae.estimator.tensors.uncertainty import ErrorTerms
from rheidae.exceptions import ExportError
from rheidae.export._compiled_kernels import enter_block, leave_block
from rheidae.export.box3d import Box3DTerms
from rheidae.export.instability import Instability
from rheidae.mixing import _physical_kernels as limits

OUTPUTS = {
    "F_final": (24, "row, 4 * species + component; in the unit of the input"),
    "growth_rate": (1, "row, one; 1/s for an input in 1/cm^3 (rheidae.linear.growth_rate, the fast one)"),
    "has_crossing": (3, "row, pair of flavors (e-mu, e-tau, mu-tau); 1 where their lepton numbers cross, else 0"),
    "transition": (72, "row, (density or flux, species out, species in); see rheidae.mixing.transition"),
    "std": (24, "row, 4 * species + component; standard deviation of F_final, in its unit"),
    "outside": (1, "row, one; 1 outside of the states trained on (FluxRegressor.outside), else 0"),
}
"""Columns of each output, and what they are; all float64. `FluxGraph` has the first, or all."""

# Rows at a time; some hundred numbers of each are in memory.
_ROWS = 1024


class Kernel(NamedTuple):
    """What a network or scheme offers for `rheidae.export.compiled`."""

    change: Any
    """Driver of `rheidae.system.numba`: of states ``(n, 6, 4)``, an array for what becomes of them, and one for their
    transition matrices or None."""
    constants: tuple[Any, ...]
    """Its other arguments."""
    relative: bool = True
    """Whether states and changes are over the total density."""
    learned: tuple[Any, ...] | None = None
    """Of `rheidae.estimator.uncertainty.ErrorScale`, for full outputs."""


class FluxGraph(nn.Module):
    """What `FluxRegressor.predict` does, from float64 four-fluxes ``(n, 24)`` to ``(n, 24)``.

    Normalisation, single precision of the network's input, base state and the limiter that keeps four-fluxes physical
    are those of the estimator. A row without neutrinos, which the estimator refuses, comes back as it is.

    Parameters
    ----------
    regressor : FluxRegressor
        A fitted one.
    box3d : Box3DTerms or None
        Computes Box3D's answer inside. None: `forward` takes it as a second argument, if the network needs it.
    full : bool
        Give also what else a sub-grid term needs, see `OUTPUTS`.

    Raises
    ------
    ExportError
        If `full` is asked of a network without survival probabilities, or of one that is not calibrated.
    """

    def __init__(self, regressor: Any, box3d: Box3DTerms | None = None, full: bool = False) -> None:
        super().__init__()
        module = copy.deepcopy(regressor.module_).cpu().eval()
        # A network whose forward leaves torch offers a graph of its own; one that does without Box3D says so.
        offers = hasattr(module, "export_graph")
        if full and not offers:
            raise ExportError(f"{type(module).__name__} has no survival probabilities; full outputs are MixingModel's")
        if full and regressor.error_scale_ is None:
            raise ExportError("full outputs have standard deviations, and the model has none: call its calibrate")
        self.network: nn.Module = module.export_graph(full) if offers else module
        offered = module.export_kernel() if hasattr(module, "export_kernel") else None
        learned = regressor.error_scale_.constants() if full else None
        #: What compiled code is made of, where the network offers it.
        self.kernel = None if offered is None else Kernel(offered[0], offered[1], learned=learned)
        self.instability = Instability() if full else None
        self.errors = ErrorTerms(regressor.error_scale_) if full else None
        self.needs_box3d: bool = getattr(module, "needs_box3d", True)
        # Sizes are its tensors' affair alone.
        self.plain = self.network is not module
        self.takes_doubles: bool = getattr(module, "takes_doubles", False)
        self.box3d = box3d if self.needs_box3d else None
        self.adds_to_box3d = regressor._layout.base(module) == "F_box"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the arguments of `forward`."""
        return ("F_init", "F_box") if self.needs_box3d and self.box3d is None else ("F_init",)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what `forward` returns."""
        return tuple(OUTPUTS)[: None if self.instability is not None else 1]

    def forward(self, F_init: Tensor, F_box: Tensor | None = None) -> Any:
        """Return final four-fluxes ``(n, 24)`` in the unit of `F_init`, and the rest of `OUTPUTS` if it is `full`."""
        F_init, number = enter(F_init)
        state = F_init.reshape(-1, 6, 4)
        total = total_of(state)
        scale = torch.where(total > 0.0, total, 1.0)
        columns = F_init
        if self.needs_box3d:
            if self.box3d is not None:
                F_box = self.box3d(state).reshape(-1, 24)
            assert F_box is not None
            columns = torch.cat([F_init, F_box], dim=1)
        columns = columns / scale
        known = self.network(columns if self.takes_doubles else columns.float())
        change = (known if self.instability is None else known[0]).double()
        base = F_box if self.adds_to_box3d and F_box is not None else F_init
        whole = torch.where(total > 0.0, base + scale * change, F_init)
        final = keep_physical(F_init, whole, scale) + number
        if self.instability is None or self.errors is None:
            return final
        start = F_init / scale
        rate, crossing = self.instability(start.reshape(-1, 6, 4))
        beside = known[1]
        far = start + beside.scheme
        far = torch.where(beside.apart, keep_physical(start, far, torch.ones_like(scale)), far)
        states = (table.reshape(-1, 6, 4) for table in (start, final / scale, far))
        std, outside = self.errors(*states, beside.sizes, beside.unlike)
        # Matrices follow a change that was shortened.
        left, right = ((state - F_init).abs().sum(dim=1, keepdim=True) for state in (final, whole))
        factor = torch.where(left < right, left / torch.where(right > 0.0, right, 1.0), 1.0)
        stays = torch.cat([torch.eye(6, dtype=torch.float64).flatten()] * 2)
        matrices = stays + factor * (beside.matrices - stays) + number
        # NaN also where there is no answer.
        std = scale * std + 0.0 * final.sum(dim=1, keepdim=True)
        return final, rate * total + number, crossing + number, matrices, std, outside + number


def enter(F_init: Tensor) -> tuple[Tensor, Tensor]:
    """Cells ``(n, 24)``, isotropic where one of their numbers is none, and that: 0 or NaN ``(n, 1)``.

    A NaN in a search for a root would keep it going to the last turn that is allowed.
    """
    number = 0.0 * F_init.sum(dim=1, keepdim=True)
    isotropic = torch.tensor([0.0, 0.0, 0.0, 1.0] * 6, dtype=torch.float64)
    return torch.where(number >= 0.0, F_init, isotropic), number


def keep_physical(F_init: Tensor, F_final: Tensor, scale: Tensor) -> Tensor:
    """Shorten each row's change ``(n, 24)``, of size `scale`, as `rheidae.mixing.physical.keep_physical` does."""
    start, end = (F_init / scale).reshape(-1, 6, 4), (F_final / scale).reshape(-1, 6, 4)
    # What is outside by rounding, unless the species stayed as it was.
    length = _length(end)
    out = length - end[..., 3]
    moved = (F_final - F_init).reshape(-1, 6, 4).abs().amax(dim=2) > 0.0
    edge = ((out < limits.ROUNDING) & (out > -limits.EDGE) & moved)[..., None]
    inside = torch.cat([end[..., :3], (length + limits.EDGE)[..., None]], dim=2)
    last = torch.cat([torch.zeros_like(end[..., :3]), torch.ones_like(end[..., 3:])], dim=2) > 0.0
    F_final = torch.where((edge & last).reshape(-1, 24), scale * inside.reshape(-1, 24), F_final)
    end = torch.where(edge, inside, end)
    room = (_length(start) - start[..., 3]).clamp(min=0.0)

    def shorten(F_final: Tensor, start: Tensor, end: Tensor, room: Tensor, F_init: Tensor) -> Tensor:
        low, high = 0.0 * room, 0.0 * room + 1.0
        factor = torch.where(_fits(start, end, room, high), high, low)
        bound = repeat(_unfinished, _halve, (low, high), (start, end, room))
        factor = torch.maximum(factor, bound).amin(dim=1, keepdim=True)
        return torch.where(factor < 1.0, F_init + factor * (1.0 - 1e-9) * (F_final - F_init), F_final)

    def leave(F_final: Tensor, *given: Tensor) -> Tensor:
        return F_final.clone()

    fits = _fits(start, end, room, 0.0 * room + 1.0)
    return branch((~fits).any(), shorten, leave, (F_final, start, end, room, F_init))


def _length(F: Tensor) -> Tensor:
    x, y, z = F[..., 0], F[..., 1], F[..., 2]
    return (x * x + y * y + z * z).sqrt()


def _fits(start: Tensor, end: Tensor, room: Tensor, t: Tensor) -> Tensor:
    here = start + t[..., None] * (end - start)
    return here[..., 3] + room >= _length(here)


def _unfinished(low: Tensor, high: Tensor, *given: Tensor) -> Tensor:
    return (high - low > 1e-16).any()


def _halve(low: Tensor, high: Tensor, *given: Tensor) -> tuple[Tensor, Tensor]:
    start, end, room = given
    middle = 0.5 * (low + high)
    fits = _fits(start, end, room, middle)
    return torch.where(fits, middle, low), torch.where(fits, high, middle)


def transitions(regressor: Any) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Return what gives the transition matrices ``(n, 2, 6, 6)`` of a model for states ``(n, 6, 4)``.

    Raises
    ------
    ExportError
        If its network has no survival probabilities.
    """
    graph = FluxGraph(regressor, full=True).eval()
    kernel = graph.kernel

    def by_kernel(F: NDArray[np.float64]) -> NDArray[np.float64]:
        assert kernel is not None
        states, change, found = np.empty(F.shape), np.empty(F.shape), np.empty((len(F), 2, 6, 6))
        enter_block(F, states, True)
        kernel.change(states, change, found, *kernel.constants)
        leave_block(F, change, found, states, True)
        return found

    def by_graph(F: NDArray[np.float64]) -> NDArray[np.float64]:
        place = tuple(OUTPUTS).index("transition")
        with torch.no_grad():
            found = [graph(rows)[place] for rows in torch.from_numpy(F.reshape(-1, 24)).split(_ROWS)]
        return torch.cat(found).numpy().reshape(-1, 2, 6, 6)

    return by_graph if kernel is None else by_kernel
