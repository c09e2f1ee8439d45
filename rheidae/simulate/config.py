"""``config/simulate.yaml``: which states to simulate, how, and where the answers go."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rheidae.config import FileName, Section
from rheidae.simulate.options import Options


class Source(Section):
    """Initial states: rows of a raw or a preprocessed file.

    `rows`: numbers of rows, in the order in which they are simulated; null: all, or the first `max_rows`.
    """

    path: str
    rows: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None
    max_rows: Annotated[int, Field(gt=0)] | None = None


class SimulateConfig(Section):
    """``config/simulate.yaml``."""

    states: Source
    output_root: str = ".data"
    output_filename: FileName = "simulated.h5"
    processes: Annotated[int, Field(gt=0)] | None = None
    options: Options = Options()
