"""Branches and loops that hold in graphs too: of torch.export, of ONNX, and in traces of TorchScript."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

_LOOPS = 10_000
"""Most turns of a loop; those of this package end long before."""

FOUND = 1e-10
"""Last step of Newton's method, whose next error is about its square, of a root that is found."""


def branch(
    condition: Tensor, yes: Callable[..., Tensor], no: Callable[..., Tensor], tables: tuple[Tensor, ...]
) -> Tensor:
    """``yes(*tables)`` or ``no(*tables)``, also in a graph."""
    if torch.compiler.is_exporting():
        chosen: Tensor = torch.ops.higher_order.cond(condition, yes, no, tables)
        return chosen
    if torch.jit.is_tracing():
        return traced_branch(condition, yes, no, tables)[0]
    return yes(*tables) if condition else no(*tables)


def instead(
    out: Tensor, marked: Tensor, function: Callable[..., Tensor], tables: Sequence[Tensor], rules: Sequence[Tensor] = ()
) -> Tensor:
    """`out` with ``function(*tables, *rules)`` in its rows that are marked, ``(n, 1)``, by these rows of the tables."""

    def some(out: Tensor, marked: Tensor, *given: Tensor) -> Tensor:
        rows, own = marked[:, 0].nonzero().squeeze(1), len(tables)
        return out.index_put((rows,), function(*(table[rows] for table in given[:own]), *given[own:]))

    def none(out: Tensor, *given: Tensor) -> Tensor:
        return out.clone()

    return branch(marked.any(), some, none, (out, marked, *tables, *rules))


def repeat(
    unfinished: Callable[..., Tensor],
    step: Callable[..., Any],
    tables: tuple[Tensor, ...],
    given: tuple[Tensor, ...],
) -> Tensor:
    """First of ``tables = step(*tables, *given)`` while it is unfinished, also in a graph."""
    if torch.compiler.is_exporting():
        done = torch.ops.higher_order.while_loop(
            lambda count, *tables: (count < _LOOPS) & unfinished(*tables),
            lambda count, *tables: (count + 1, *step(*tables)),
            (torch.zeros((), dtype=torch.int64), *tables), given,
        )  # fmt: skip
        tables = done[1:]
    elif torch.jit.is_tracing():
        tables = tuple(traced_loop(unfinished, step, tables, given))
    else:
        for _ in range(_LOOPS):
            if not unfinished(*tables, *given):
                break
            tables = step(*tables, *given)
    return tables[0]


def newton_in_bracket(u: Tensor, length: Tensor, low: Tensor, high: Tensor, before: Tensor) -> tuple[Tensor, ...]:
    """Newton's step from u, whose sign says on which side the root is, unless it is no good: then half of the bracket.

    Returns the new u, the bracket, and how far the step went; it has to be less than half of `before`, the last one.
    A root that is found stays while others are looked for: rounding would send it through its bracket again.
    """
    moving = before > FOUND
    low, high = torch.where(length > 0.0, u, low), torch.where(length > 0.0, high, u)
    new, size = u + length, length.abs()
    good = ((new > low) & (new < high) & (2.0 * size < before)) | (size < 2e-14 * (1.0 + u.abs()))
    new, size = torch.where(good, new, 0.5 * (low + high)), torch.where(good, size, high - low)
    return torch.where(moving, new, u), low, high, torch.where(moving, size, before)


def unfinished(u: Tensor, low: Tensor, high: Tensor, before: Tensor, *given: Tensor) -> Tensor:
    """Whether `newton_in_bracket` has a root to find."""
    return (before > FOUND).any()


# A trace of TorchScript follows what happens on its rows; functions that were compiled, it calls. The parts of those
# are traced on their own, by another thread, since a trace under way belongs to one.
def traced_branch(condition: Tensor, yes: Any, no: Any, tables: Sequence[Tensor]) -> list[Tensor]:
    """What `branch` does, in a trace; called as the operator of torch.export that it stands for."""
    first, second = _traced(yes, tables), _traced(no, tables)

    def choose(condition: Tensor, tables: list[Tensor]) -> list[Tensor]:
        if bool(condition):
            return first(tables)
        return second(tables)

    chosen: list[Tensor] = torch.jit.script(choose)(condition, list(tables))
    return chosen


def traced_loop(unfinished: Any, step: Any, tables: Sequence[Tensor], given: Sequence[Tensor]) -> list[Tensor]:
    """What `repeat` does, likewise."""
    every = [*tables, *given]
    again, after = _traced(unfinished, every), _traced(step, every)

    def loop(every: list[Tensor], own: int, most: int) -> list[Tensor]:
        tables, given = every[:own], every[own:]
        count = 0
        while count < most and bool(again(tables + given)[0]):
            tables = after(tables + given)
            count += 1
        return tables

    left: list[Tensor] = torch.jit.script(loop)(every, len(tables), _LOOPS)
    return left


def _traced(function: Callable[..., Any], tables: Sequence[Tensor]) -> Any:
    """A function of tensors, to one or several, as a compiled one from list to list."""

    def listed(tables: list[Tensor]) -> list[Tensor]:
        out = function(*tables)
        return [out] if isinstance(out, Tensor) else list(out)

    def trace() -> Any:
        rows = [table.detach().clone() for table in tables]
        with torch.no_grad():
            return torch.jit.trace(listed, (rows,), strict=False, check_trace=False)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(trace).result()
