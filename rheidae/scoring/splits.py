"""Parts of a data set that share no simulation."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import GroupShuffleSplit, KFold
from torch.utils.data import Subset

from rheidae.exceptions import FourFluxError, RunError

RowNumbers = NDArray[np.intp]


def shuffled_split(rows: RowNumbers, groups: Any, share: float, seed: int) -> tuple[RowNumbers, RowNumbers]:
    """Divide row numbers at random, by a seed, so that no group is on both sides; return those kept, and those chosen.

    `groups` labels each row, and `share` is the part of the groups that is chosen.
    """
    splitter = GroupShuffleSplit(1, test_size=share, random_state=seed)
    keep, chosen = next(splitter.split(rows, groups=groups))
    return rows[keep], rows[chosen]


def leaves_some(groups: int, share: float) -> bool:
    """Whether `shuffled_split` leaves groups on its first side."""
    return math.ceil(share * groups) < groups


def simulation_labels(data: Any) -> NDArray[np.intp]:
    """Return a number per simulation; a row without a directory name is a simulation of its own.

    Simulations that share a row, vacuum aside, are one, under whatever names.
    """
    dirname = data.get("dirname")
    if dirname is None:
        index = np.arange(len(data.groups))
    else:
        _, index = np.unique(np.char.add(np.char.add(data.groups, "/"), dirname), return_inverse=True)
        nameless = dirname == ""
        index[nameless] = len(dirname) + np.flatnonzero(nameless)
    again = rows_again(data)
    if again.any():
        _, node = np.unique(index, return_inverse=True)
        _, key = np.unique(row_keys(data.data[again], data.target[again]), return_inverse=True)
        nodes = node.max() + 1 + key.max() + 1
        links = coo_array((np.ones(len(key)), (node[again], node.max() + 1 + key)), shape=(nodes, nodes))
        _, part = connected_components(links, directed=False)
        _, first, of_row = np.unique(part[node], return_index=True, return_inverse=True)
        index = index[first[of_row]]
    return index


def without_copies(
    rows: RowNumbers, asked: RowNumbers | NDArray[np.bool_], simulations: NDArray[np.intp]
) -> RowNumbers:
    """Return those of the row numbers `rows` that belong to no simulation that has a row among `asked`.

    `simulations` labels each row of the data set; see `simulation_labels`.
    """
    return rows[~np.isin(simulations[rows], simulations[asked])]


def rows_again(data: Any) -> NDArray[np.bool_]:
    """Whether each row ``(n,)`` is in a data set more than once, by `row_keys`; vacuum is not."""
    _, key, count = np.unique(row_keys(data.data, data.target), return_inverse=True, return_counts=True)
    again: NDArray[np.bool_] = (count[key] > 1) & data.data[:, :24].any(axis=1)
    return again


def simulation_keys(data: Any, first: int = 0) -> NDArray[np.uint64]:
    """Return a number per simulation that is the same in every part of a file, whose first row is the file's `first`.

    A hash of group and name; of a row without a name, its number.
    """
    rows = np.arange(first, first + len(data.groups), dtype=np.uint64)
    dirname = data.get("dirname")
    if dirname is None:
        return rows
    names = np.char.add(np.char.add(data.groups, "/"), dirname)
    letters = np.ascontiguousarray(names).view(np.uint32).reshape(len(names), -1)
    return np.where(dirname == "", rows, linear_hash(letters, 0x51))


def row_keys(data: NDArray[np.float32], target: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Return a number ``(n,)`` for each row that tells whether two files hold the same simulation, as uint64.

    A random linear function of the bits, modulo 2^64, of initial state and target in 1/cm^3 times the run's
    `target_scale`: of ``data (n, 48)`` the first 24 alone count, so that Box3D may be computed anew.
    """
    numbers = np.concatenate([data[:, :24], target], axis=1).astype(np.float32, copy=False)
    return linear_hash(np.ascontiguousarray(numbers).view(np.uint32), 0x5EED)


def linear_hash(words: NDArray[np.uint32], seed: int) -> NDArray[np.uint64]:
    """Return a random linear function of rows ``(n, k)``, modulo 2^64; zeros behind a row do not change it."""
    factors = np.random.default_rng(seed).integers(2**63, size=words.shape[1], dtype=np.uint64) * np.uint64(2)
    keys: NDArray[np.uint64] = (words * (factors + np.uint64(1))).sum(axis=1, dtype=np.uint64)
    return keys


# --- cross-validation ------------------------------------------------------------------------------------


class Part(NamedTuple):
    """Rows to train on, and rows that the model is then asked about.

    Attributes
    ----------
    role : str
        What the model knows of the latter: "held out", other rows of their families; "left out", the other families
        alone; "never trained on", they are of another kind, such as 3D where all training is on 1D.
    train, test : ndarray of int
        Row numbers.
    """

    role: str
    train: RowNumbers
    test: RowNumbers


CROSS_VALIDATIONS = ("rows", "groups")

_THREE_D = re.compile(r"(^|_)3d(_|$)", re.IGNORECASE)


def three_dimensional_groups(data: Any) -> list[str]:
    """Return the groups all of whose simulations have a name with ``_3d_`` in it, such as ``random_3d_w0_1234``."""
    names = data.get("dirname")
    if names is None:
        return []
    flags = np.array([_THREE_D.search(name) is not None for name in names.tolist()], dtype=bool)
    return [group for group in sorted(set(data.groups.tolist())) if flags[data.groups == group].all()]


def cross_validation_parts(
    data: Any, kinds: Sequence[str], folds: int, seed: int, test_only: Sequence[str]
) -> list[Part]:
    """Say who is scored by a model trained on whom.

    Parameters
    ----------
    data : Bunch
        From `load_dataset`.
    kinds : sequence of {"rows", "groups"}
        "rows": `folds` parts of the rows, drawn at random from `seed`, rows of one simulation together. "groups":
        each group is left out once. No model is trained on a simulation that it is asked about, in whatever group.
    folds, seed : int
        Of "rows".
    test_only : sequence of str
        Groups that no model is trained on; each is scored by a model trained on all rows of the others.

    Returns
    -------
    list of Part
        Each row occurs once as a test row of each kind.

    Raises
    ------
    RunError
        If the data are too few for it, or a group is not in them.
    """
    names = sorted(set(data.groups.tolist()))
    for group in test_only:
        if group not in names:
            raise RunError(f"test-only group {group!r} is not in {data.filename}; it holds {', '.join(names)}")
    apart = np.isin(data.groups, list(test_only))
    rows = np.flatnonzero(~apart)
    if len(rows) < 2:
        raise RunError(
            f"{data.filename}: {len(rows)} rows are left to train on, beside the groups that are only tested "
            f"({', '.join(test_only) or 'none'}); at least 2 are needed: preprocess more simulations, or name others"
        )
    parts: list[Part] = []
    labels = simulation_labels(data)

    def part(role: str, test: NDArray[np.bool_]) -> Part:
        return Part(role, without_copies(rows, test, labels), np.flatnonzero(test))

    if "rows" in kinds:
        simulations = np.unique(labels[rows])
        if folds < 2 or len(simulations) < folds:
            raise RunError(
                f"{data.filename}: {folds} folds of {len(simulations)} simulations (rows of one stay together); choose "
                f"folds from 2 to the number of simulations, or preprocess more"
            )
        for _, chosen in KFold(folds, shuffle=True, random_state=seed).split(simulations):
            parts.append(part("held out", ~apart & np.isin(labels, simulations[chosen])))
    if "groups" in kinds:
        known = [name for name in names if name not in test_only]
        if len(known) < 2:
            raise RunError(
                f"{data.filename}: leaving a group out needs two of them, and there is only {known[0]!r} to train on; "
                "cross-validate by rows, or preprocess another family"
            )
        parts += [part("left out", data.groups == group) for group in known]
    if test_only:
        parts.append(part("never trained on", apart))
    for one in parts:
        if len(one.train) < 2:
            raise RunError(
                f"{data.filename}: {len(one.train)} row{'s are' if not len(one.train) else ' is'} left to train on "
                f"beside the {len(one.test)} of the part {one.role!r} and their copies; at least 2 are needed: "
                "preprocess more simulations"
            )
    return parts


def validation_split(dataset: Any, fraction: float, seed: int, groups: Any = None) -> tuple[Any, Any]:
    """Divide a data set at random into training and validation rows, with `groups` in whole groups.

    Raises `FourFluxError` if one of them would be empty, or `groups` has another length.
    """
    rows = np.arange(len(dataset))
    labels = rows if groups is None else np.asarray(groups)
    if len(labels) != len(rows):
        raise FourFluxError(f"groups has {len(labels)} entries for {len(rows)} rows; one per row is needed")
    if not 0 < fraction < 1:
        raise FourFluxError(f"val_split={fraction!r} must lie between 0 and 1, both excluded")
    kinds = len(np.unique(labels))
    what = "rows" if groups is None else "groups"
    if kinds < 2 or round(fraction * kinds) < 1:
        raise FourFluxError(
            f"a validation part of {fraction:g} of {kinds} {what} is empty; give more {what}, or a larger part"
        )
    if not leaves_some(kinds, fraction):
        raise FourFluxError(
            f"a validation part of {fraction:g} of {kinds} {what} leaves none to train on; give more {what}, or a "
            "smaller part"
        )
    train, valid = shuffled_split(rows, labels, fraction, seed)
    return Subset(dataset, train.tolist()), Subset(dataset, valid.tolist())
