"""Branches and loops that hold in graphs too, and in those that can hold neither."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_LOOPS = 200
"""Most turns of a loop; those of this package end long before."""


def branch(
    branches: bool, condition: Tensor, yes: Callable[..., Tensor], no: Callable[..., Tensor], tables: tuple[Tensor, ...]
) -> Tensor:
    """``yes(*tables)`` or ``no(*tables)``, also in a graph; without `branches` the former, which has to suit both."""
    if not branches:
        return yes(*tables)
    if torch.compiler.is_exporting():
        chosen: Tensor = torch.ops.higher_order.cond(condition, yes, no, tables)
        return chosen
    return yes(*tables) if condition else no(*tables)


def repeat(
    most: int | None,
    unfinished: Callable[..., Tensor],
    step: Callable[..., Any],
    tables: tuple[Tensor, ...],
    given: tuple[Tensor, ...],
) -> Tensor:
    """First of ``tables = step(*tables, *given)`` while it is unfinished, also in a graph; or `most` times."""
    if most is not None:
        for _ in range(most):
            tables = step(*tables, *given)
    elif torch.compiler.is_exporting():
        done = torch.ops.higher_order.while_loop(
            lambda count, *tables: (count < _LOOPS) & unfinished(*tables),
            lambda count, *tables: (count + 1, *step(*tables)),
            (torch.zeros((), dtype=torch.int64), *tables), given,
        )  # fmt: skip
        tables = done[1:]
    else:
        for _ in range(_LOOPS):
            if not unfinished(*tables, *given):
                break
            tables = step(*tables, *given)
    return tables[0]
