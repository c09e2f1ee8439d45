"""What a run leaves on disk while it goes on, and what it keeps in memory."""

from __future__ import annotations

import csv
import errno
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from skorch.callbacks import Callback
from torch import Tensor

from rheidae.exceptions import RunStopped
from rheidae.system.outputs import Outputs, naming, write_text


class RunCheckpoint(Callback):
    """Save everything that a run needs to go on exactly, every few epochs.

    The state of every finished epoch is kept in memory; `write` puts the last one on disk whenever it is called, so
    that a run which is told to leave in the middle of an epoch can save at once. ``state.pt`` holds all of it in one
    file that appears complete or not at all; ``last.safetensors`` holds its weights once more, for other programs.

    Parameters
    ----------
    folder : path
        Takes the files.
    every : int
        Epochs between saves. Smaller: less is lost to a kill, more time goes into writing.

    Notes
    -----
    It has to be the last of the callbacks, so that the others have finished their epoch.
    """

    def __init__(self, folder: str | Path, every: int = 25) -> None:
        self.folder = folder
        self.every = every

    @property
    def path(self) -> Path:
        """Where the state goes."""
        return Path(self.folder) / "state.pt"

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Forget the last run."""
        # By its name no part of what `callback_state` keeps: it holds that of all callbacks itself.
        self._snapshot: dict[str, Any] | None = None
        net.last_checkpoint_ = None

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Keep the state, and save it if the epoch's number is a multiple of `every`."""
        self._snapshot = net.training_state(history=False)
        if len(net.history) % self.every == 0:
            self.write(net)

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        """Save the last finished epoch."""
        self.write(net)

    def write(self, net: Any) -> None:
        """Put the last finished epoch on disk, if there is one."""
        if self._snapshot is None:
            return
        folder, state = Path(self.folder), io.BytesIO()
        history = plain_history(net.history)[: self._snapshot["epoch"]]
        torch.save(self._snapshot | {"history": history}, state)
        with Outputs() as outputs:
            outputs.write(folder / "last.safetensors", _safetensors(self._snapshot["module"]))
            outputs.write(folder / "history.json", json.dumps(history).encode())
            # Renamed last: a run killed before goes on from the state of before and writes the others again.
            outputs.write(self.path, state.getvalue())
        net.last_checkpoint_ = str(self.path)


class HistoryLog(Callback):
    """Write the history as JSON lines after every epoch, for those who watch, and as CSV at the end.

    Parameters
    ----------
    folder : path
        Takes ``history.jsonl`` and ``history.csv``.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = folder

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Begin a file anew at the first epoch: a resumed run has epochs that its file may have lost or gained."""
        self.fresh_ = True

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Add a line."""
        path = Path(self.folder) / "history.jsonl"
        rows = plain_history(net.history, 0 if self.fresh_ else -1)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        if self.fresh_:
            write_text(path, lines)
            self.fresh_ = False
        else:
            _append(path, lines.encode())

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        """Write the table."""
        write_history_csv(plain_history(net.history), Path(self.folder) / "history.csv")


class BestWeights(Callback):
    """Return to the weights of the best epoch when training ends, however it ends.

    Parameters
    ----------
    monitor : str
        Entry of the history that is to be small. Without it (no validation rows) the last weights stay.
    """

    def __init__(self, monitor: str = "valid_loss") -> None:
        self.monitor = monitor

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Forget the last run."""
        self.weights_: dict[str, Tensor] | None = None
        self.epoch_ = 0
        self.best_ = math.inf

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Keep the weights if the epoch is the best so far."""
        if self.monitor in net.history[-1] and net.history[-1, self.monitor] < self.best_:
            self.best_ = net.history[-1, self.monitor]
            self.epoch_ = net.history[-1, "epoch"]
            self.weights_ = copy_state(net.module_.state_dict())

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        """Load them."""
        if self.weights_ is not None:
            net.module_.load_state_dict(self.weights_)
            # The weights now live in the module; a pickled estimator need not carry them twice.
            self.weights_ = None


class StopRequest(Callback):
    """Leave between two batches once somebody asked for it.

    Parameters
    ----------
    asked : callable
        Returns the number of the signal that asked, or None.
    """

    def __init__(self, asked: Callable[[], int | None]) -> None:
        self.asked = asked

    def on_batch_begin(self, net: Any, **kwargs: Any) -> None:
        """Raise `RunStopped` if it is time to leave."""
        number = self.asked()
        if number is not None:
            raise RunStopped(number)


# --- states ----------------------------------------------------------------------------------------------


def callback_state(callback: Any) -> dict[str, Any]:
    """Return what a callback has to remember: its attributes that end in ``_``, where they are plain data.

    Plain are numbers, strings, None, tensors, and lists, tuples and dicts of those; an object that has a
    ``state_dict``, such as a scheduler, counts by it.
    """
    state = {}
    for name, value in vars(callback).items():
        if not name.endswith("_"):
            continue
        if hasattr(value, "state_dict") and not isinstance(value, torch.nn.Module | type):
            value = value.state_dict()
        if _is_plain(value):
            state[name] = copy_state(value)
    return state


def restore_callback(callback: Any, state: dict[str, Any]) -> None:
    """Put back what `callback_state` returned.

    Raises `ValueError` if another attribute is among it, such as where the callback writes.
    """
    for name, value in state.items():
        if not name.endswith("_") or name.startswith("__") or callable(getattr(type(callback), name, None)):
            raise ValueError(f"{name!r} is no state of {type(callback).__name__}")
        if hasattr(getattr(callback, name, None), "load_state_dict"):
            getattr(callback, name).load_state_dict(value)
        else:
            setattr(callback, name, copy_state(value))


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str | int) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or type(value) in (bool, int, float, str) or isinstance(value, Tensor)


def copy_state(value: Any) -> Any:
    """Return a copy of a state dict that training does not write into."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: copy_state(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copy_state(item) for item in value)
    return value


def _safetensors(state: dict[str, Tensor]) -> bytes:
    from safetensors.torch import save

    # Its save_file gives the file another inode and mode, and leaves its own temporary files behind.
    return save({name: tensor.contiguous() for name, tensor in state.items()})


def save_weights(net: Any, path: Path) -> None:
    """Write the module's parameters and buffers as safetensors, complete or not at all."""
    with Outputs() as outputs:
        outputs.write(path, _safetensors(net.module_.state_dict()))


def save_history(net: Any, path: Path) -> None:
    """Write the training history as JSON, complete or not at all."""
    write_text(path, json.dumps(net.history.to_list()))


def _append(path: Path, line: bytes) -> None:
    """Add a line to a file, the whole of it or nothing."""
    with naming(path, len(line)), path.open("ab", buffering=0) as file:
        before = file.tell()
        if file.write(line) != len(line):
            file.truncate(before)
            raise OSError(errno.ENOSPC, "No space left on device")


def plain_history(history: Any, first: int = 0) -> list[dict[str, Any]]:
    """Return the epochs from `first` on as dicts without skorch's list of batches."""
    return [{name: value for name, value in row.items() if name != "batches"} for row in history.to_list()[first:]]


def write_history_csv(rows: list[dict[str, Any]], path: Path) -> None:
    """Write epochs as a table, complete or not at all."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, names)
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, table.getvalue())
