"""Rows as tensors, and batches as slices of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from skorch.dataset import Dataset
from torch import Tensor
from torch.utils.data import Subset

# Rows that means and deviations are taken from, at most.
ENOUGH_ROWS = 10_000


class TableDataset(Dataset):
    """Rows ``x (n, features)``, ``target (n, outputs)`` as the network sees them, float32, and as the user gave them.

    ``weight (n,)``: how much each row counts. `tables`: the user's ``X, y``, by which skorch's scoring callbacks score;
    if not given, `x` and `target`.
    """

    def __init__(self, x: Tensor, target: Tensor, weight: Tensor | None = None, tables: Any = None) -> None:
        self.x, self.target, self.weight = x, target, weight
        tables = tables or (x, target)
        self.X: Any = tables[0]
        self.y: Any = tables[1]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Any) -> tuple[Tensor, ...]:
        """Return ``x, target`` or ``x, target, weight`` of a row, or of several."""
        rows = self.x[index], self.target[index]
        return rows if self.weight is None else (*rows, self.weight[index])


def unpack(batch: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return ``x, y, weight`` of a batch; the last is None where rows count alike."""
    x, y, *weight = batch
    return x, y, weight[0] if weight else None


def chosen_rows(dataset: Any) -> tuple[Any, Tensor]:
    """Return the data set that one is a part, or a part of a part, of, and the numbers of its rows there."""
    rows = torch.arange(len(dataset))
    while isinstance(dataset, Subset):
        dataset, rows = dataset.dataset, torch.as_tensor(dataset.indices, dtype=torch.long)[rows]
    return dataset, rows


class BatchSlicer:
    """Iterate over batches cut from whole tensors, without a Python call per row.

    A last batch of a single row is joined to the one before it, because batch norm has no variance to work with there.
    With `shuffle` in a new order each time it is iterated over, from torch's global generator.
    """

    def __init__(self, dataset: TableDataset | Subset[Any], batch_size: int, shuffle: bool = False) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        if isinstance(dataset, Subset):
            whole, rows = chosen_rows(dataset)
            dataset = TableDataset(*whole[rows])
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        starts = range(0, len(dataset), batch_size)
        bounds = [(start, min(start + batch_size, len(dataset))) for start in starts]
        if len(bounds) > 1 and bounds[-1][1] - bounds[-1][0] == 1:
            bounds[-2:] = [(bounds[-2][0], len(dataset))]
        self._bounds = bounds

    def __len__(self) -> int:
        return len(self._bounds)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        order = torch.randperm(len(self.dataset)) if self.shuffle else None
        for start, stop in self._bounds:
            yield self.dataset[slice(start, stop) if order is None else order[start:stop]]


def rows_of(dataset: Any) -> tuple[Tensor, Tensor]:
    """Return all rows of a data set that count, as two tensors."""
    x, y, weight = unpack(next(iter(BatchSlicer(dataset, len(dataset)))))
    return (x, y) if weight is None else (x[weight > 0], y[weight > 0])


def some_rows(dataset: Any) -> tuple[Tensor, Tensor]:
    """Return at most `ENOUGH_ROWS` rows of a data set, evenly spaced."""
    step = -(-len(dataset) // ENOUGH_ROWS)
    return rows_of(Subset(dataset, range(0, len(dataset), step)) if step > 1 else dataset)
