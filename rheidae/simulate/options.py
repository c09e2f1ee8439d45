"""What a simulation may be told: one model for the function's keywords and the configuration file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from rheidae.config import NonNegative, Positive, Section
from rheidae.mixing.quadrature import LEBEDEV_ORDERS

DIRECTION_ORDERS = tuple(order for order in LEBEDEV_ORDERS if order not in (13, 25, 27))
"""Lebedev orders without negative weights, which no distribution has."""

CELLS = {1: 128, 2: 32, 3: 16}
"""Cells a side, by dimensions."""

WAVELENGTHS = {1: 20.0, 2: 6.6, 3: 3.3}
"""Wavelengths of the fastest mode a side, by dimensions."""

CELLS_PER_WAVELENGTH = 3.0
"""Fewer do not resolve what the fastest mode breaks up into."""


def _known_order(order: object) -> object:
    if isinstance(order, int) and order not in DIRECTION_ORDERS:
        known = ", ".join(map(str, DIRECTION_ORDERS))
        raise ValueError(f"no Lebedev rule of that order, or one with negative weights; known: {known}")
    return order


class Options(Section):
    """Options of a simulation; each default is what ``docs/simulate.md`` shows to be converged.

    Attributes
    ----------
    dimensions : {3, 2, 1}
        Of the box. In 1D its axis is the net lepton flux of electron over heavy flavors; in 2D the other one is where
        the fastest mode leads out of that.
    cells : int, optional
        Cells a side; default 16 in 3D, 32 in 2D, 128 in 1D.
    wavelengths : float, optional
        Length of a side in wavelengths of the fastest mode; default 3.3 in 3D, 6.6 in 2D, 20 in 1D. At least 1.
    order : int, optional
        Lebedev order of the directions: 11 has 50, 15 86, 19 146. Default: by the largest flux factor, 11 or more.
    perturbation : float
        Largest off-diagonal element of the initial matrices, random in every cell and direction.
    seed : int
        Of the perturbation.
    saturation_times : float, optional
        Run for so many (ln 10^6 over the growth rate). Default: until the drift is below `drift`.
    drift : float
        Bound on the distance of the mean four-fluxes of the last two quarters of a run, over the total density.
    min_saturation_times, max_saturation_times : float
        The drift is looked at from the first on, in the saturation time of the slowest pair of flavors that grows, for
        unlike mu and tau mix in stages; at the second, in that of the fastest, a run ends anyway.
    max_steps : int
        A run ends here too; a state that cannot saturate in so many steps is not begun.
    time_step : float
        In units of one over the potential, the sum of abs(G). Larger: faster and less accurate; 0.6 is converged.
    window : float
        The final four-fluxes are means over this last part of a run.
    """

    dimensions: Literal[1, 2, 3] = 3
    cells: Annotated[int, Field(ge=4, le=4096)] | None = None
    wavelengths: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    order: Annotated[int, BeforeValidator(_known_order)] | None = None
    perturbation: Annotated[float, Field(gt=0, le=0.1)] = 1e-3
    seed: Annotated[int, Field(ge=0)] = 1
    saturation_times: Positive | None = None
    drift: NonNegative = 3e-4
    min_saturation_times: Annotated[float, Field(ge=3, allow_inf_nan=False)] = 6.0
    max_saturation_times: Positive = 30.0
    max_steps: Annotated[int, Field(gt=0)] = 20_000
    time_step: Annotated[float, Field(gt=0, le=1.2)] = 0.6
    window: Annotated[float, Field(gt=0, le=0.5)] = 0.3

    @model_validator(mode="after")
    def _resolves_the_mode(self) -> Options:
        waves, cells = self.sides()
        if waves < 1:
            raise ValueError(
                f"wavelengths: the box is too small for the mode ({waves:g} of its wavelengths); at least 1"
            )
        if cells < CELLS_PER_WAVELENGTH * waves:
            raise ValueError(
                f"cells: {cells} for {waves:g} wavelengths are too few to resolve the mode; at least "
                f"{CELLS_PER_WAVELENGTH:g} a wavelength"
            )
        if self.max_saturation_times < self.min_saturation_times and self.saturation_times is None:
            raise ValueError("max_saturation_times: must not be smaller than min_saturation_times")
        return self

    def sides(self) -> tuple[float, int]:
        """Wavelengths and cells of a side, defaults filled in."""
        return self.wavelengths or WAVELENGTHS[self.dimensions], self.cells or CELLS[self.dimensions]
