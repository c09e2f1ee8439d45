"""Means of an epoch, gathered without stopping an accelerator at every batch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rheidae.exceptions import RunError

# A non-finite loss is noticed after at most this many batches: looking at each would stop an accelerator.
LOOK_EVERY = 64


class EpochMeans:
    """Means of a record over the rows of an epoch, looked at every `LOOK_EVERY` batches.

    Parameters
    ----------
    names : list of str
        What the numbers of a record are.
    epoch : int
        For the message if one is not finite.
    """

    def __init__(self, names: list[str], epoch: int) -> None:
        self.names = names
        self.epoch = epoch
        self.waiting: list[tuple[int, Tensor]] = []
        self.sums = np.zeros(len(names))
        self.rows = 0
        self.batches = 0

    def add(self, rows: int, record: Tensor, checkpoint: str | None) -> None:
        """Take the record ``(len(names),)`` of a batch.

        Raises
        ------
        RunError
            If a number is not finite, here or in `finish`; `checkpoint` is named then.
        """
        self.waiting.append((rows, record))
        if len(self.waiting) == LOOK_EVERY:
            self._look(checkpoint)

    def finish(self, checkpoint: str | None) -> dict[str, float]:
        """Return the means by name."""
        self._look(checkpoint)
        return dict(zip(self.names, (self.sums / self.rows).tolist(), strict=True))

    def _look(self, checkpoint: str | None) -> None:
        if not self.waiting:
            return
        rows = np.array([rows for rows, _ in self.waiting], dtype=np.float64)
        records = torch.stack([record for _, record in self.waiting]).cpu().numpy().astype(np.float64)
        finite = np.isfinite(records).all(axis=1)
        if not finite.all():
            first = int(np.argmin(finite))
            numbers = ", ".join(f"{name}={value:g}" for name, value in zip(self.names, records[first], strict=True))
            raise RunError(
                f"epoch {self.epoch}, batch {self.batches + first + 1}: the loss is not finite ({numbers}); "
                f"last good checkpoint: {checkpoint or 'none'}. A smaller learning rate or grad_clip may help"
            )
        self.sums += rows @ records
        self.rows += int(rows.sum())
        self.batches += len(rows)
        self.waiting.clear()
