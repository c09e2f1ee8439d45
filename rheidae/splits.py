"""Parts of a data set that share no simulation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GroupShuffleSplit
from torch.utils.data import Subset

from rheidae.exceptions import FourFluxError

Rows = NDArray[np.intp]


def shuffled_split(rows: Rows, groups: Any, share: float, seed: int) -> tuple[Rows, Rows]:
    """Divide `rows` at random so that no group is on both sides.

    Parameters
    ----------
    rows : ndarray of int
        Row numbers.
    groups : ndarray
        A label for each of them; rows of one label stay together.
    share : float
        Part of the groups that goes to the second side.
    seed : int
        Of the shuffle.

    Returns
    -------
    kept, chosen : ndarray of int
        Row numbers.
    """
    splitter = GroupShuffleSplit(1, test_size=share, random_state=seed)
    keep, chosen = next(splitter.split(rows, groups=groups))
    return rows[keep], rows[chosen]


class GroupSplit:
    """A ``train_split`` for `FluxRegressor`: shuffled, seeded, and with `groups` in whole groups.

    Parameters
    ----------
    fraction : float
        Part of the rows (of the groups, where there are some) that validates.
    seed : int
        Of the shuffle.
    """

    def __init__(self, fraction: float = 0.1, seed: int = 0) -> None:
        self.fraction = fraction
        self.seed = seed

    def __call__(self, dataset: Any, y: Any = None, groups: Any = None) -> tuple[Any, Any]:
        """Return the training and the validation part of `dataset`.

        Raises
        ------
        FourFluxError
            If one of them would be empty, or `groups` has another length.
        """
        rows = np.arange(len(dataset))
        labels = rows if groups is None else np.asarray(groups)
        if len(labels) != len(rows):
            raise FourFluxError(f"groups has {len(labels)} entries for {len(rows)} rows; one per row is needed")
        if not 0 < self.fraction < 1:
            raise FourFluxError(f"val_split={self.fraction!r} must lie between 0 and 1, both excluded")
        kinds = len(np.unique(labels))
        if kinds < 2 or round(self.fraction * kinds) < 1:
            what = "rows" if groups is None else "groups"
            raise FourFluxError(
                f"a validation part of {self.fraction:g} of {kinds} {what} is empty; give more {what}, or a larger part"
            )
        train, valid = shuffled_split(rows, labels, self.fraction, self.seed)
        return Subset(dataset, train.tolist()), Subset(dataset, valid.tolist())
