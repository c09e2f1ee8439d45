"""``config/simulate.yaml``: which states to simulate, how, and where the answers go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rheidae.config import FileName, Section
from rheidae.simulate.families import FAMILIES
from rheidae.simulate.options import Options


class Source(Section):
    """Initial states: rows of a raw or a preprocessed file, or of a family of random ones.

    `rows`: numbers of rows, in the order in which they are simulated; null: all, or the first `max_rows`. `seed` is of
    a family.
    """

    path: str | None = None
    family: Literal[tuple(FAMILIES)] | None = None  # type: ignore[valid-type]
    seed: Annotated[int, Field(ge=0)] = 1
    rows: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None
    max_rows: Annotated[int, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Source:
        if (self.path is None) == (self.family is None):
            raise ValueError("name either a file, `path`, or a `family`")
        if self.family is not None and self.rows is None and self.max_rows is None:
            raise ValueError("a family has no end: say how many states with `max_rows`, or which with `rows`")
        return self

    @property
    def name(self) -> str:
        """What the states are called in the output."""
        return self.family or Path(str(self.path)).stem


class SimulateConfig(Section):
    """``config/simulate.yaml``."""

    states: Source
    output_root: str = ".data"
    output_filename: FileName = "simulated.h5"
    processes: Annotated[int, Field(gt=0)] | None = None
    options: Options = Options()
