"""Who works on a batch: one process alone, or several, each on its own rows.

Several decide everything on the whole batch. The predictions of all of them are put together, so that each has
the same loss terms, violations and derivatives of the tasks by the predictions; it carries the derivatives of its own
rows back through the network, and the sum over the processes is the Jacobian of the tasks ``(tasks, parameters)``.
Everything after that, weights, projections, multipliers, clipping and the optimizer's step, is done by every process on
the same numbers. So a batch means what it means to one process, however it is divided, and whatever the loss does with
its rows.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rheidae.estimator.batches import some_rows
from rheidae.exceptions import FourFluxError, RunError


class Share(NamedTuple):
    """The rows of a batch that a process works on."""

    start: int
    stop: int

    @property
    def slice(self) -> slice:
        """Where they are in the batch; there may be none."""
        return slice(self.start, self.stop)

    def rows(self, x: Tensor) -> Tensor:
        """Return the rows, or one that does not count where there are none: batch norms wait for every process."""
        return x[self.slice] if self.stop > self.start else x[:1]

    def counted(self, y: Tensor) -> Tensor:
        """Return what the network made of `rows`, as far as it counts."""
        return y if len(y) == self.stop - self.start else y[: self.stop - self.start]


class Alone:
    """One process, which has all rows."""

    def seed(self, seed: int | None) -> int | None:
        """Return the seed that all processes start from; None leaves the global generator to go on."""
        return seed

    def own(self, rows: int) -> Share:
        """Return this process's part of a batch of so many rows."""
        return Share(0, rows)

    def step(self, net: Any, rows: int) -> AbstractContextManager[None]:
        """Return the context in which the network sees its part of a training batch of so many rows."""
        return nullcontext()

    def together(self, y_own: Tensor, rows: int) -> Tensor:
        """Return the predictions of all processes, without a graph."""
        return y_own.detach()

    def sum(self, table: Tensor) -> Tensor:
        """Return the sum of a tensor over the processes; `table` may be overwritten."""
        return table

    def meet_in(self, module: nn.Module) -> bool:
        """Whether processes exchange numbers while the network computes."""
        return False

    def require_same(self, parts: Any) -> None:
        """Raise `FourFluxError` if the processes were given different rows."""

    def end_epoch(self, net: Any, training: bool, numbers: dict[str, float]) -> dict[str, float]:
        """Return the first process's numbers of an epoch, and take its weights after training."""
        return numbers


class Several(Alone):
    """Several processes, by an accelerator that knows more than one."""

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self.count, self.rank = accelerator.num_processes, accelerator.process_index
        self.epoch, self.batch = -1, 0

    def seed(self, seed: int | None) -> int | None:
        """Return the first process's, which draws one where there is none."""
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([int(torch.randint(2**31 - 1, ())) if seed is None else seed])[0]

    def own(self, rows: int) -> Share:
        """Return the part in the order of the processes."""
        return Share(*(rows * process // self.count for process in (self.rank, self.rank + 1)))

    @contextmanager
    def step(self, net: Any, rows: int) -> Iterator[None]:
        """Let batch norms know of all rows, and dropout draw from numbers of this process's own."""
        if self.epoch != len(net.history):
            self.epoch, self.batch = len(net.history), 0
        self.batch += 1
        own = self.own(rows)
        layers = [layer for layer in net.module_.modules() if isinstance(layer, GlobalBatchNorm)]
        for layer in layers:
            layer.division = (own.stop - own.start, rows)
        # What all processes draw together, such as the order of rows, has to stay as it was.
        shared = zlib.crc32(torch.get_rng_state().numpy().tobytes())
        seed = np.random.SeedSequence([shared, self.epoch, self.batch, self.rank]).generate_state(1)[0]
        device = self.accelerator.device
        try:
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(int(seed))
                yield
        finally:
            for layer in layers:
                layer.division = None

    def together(self, y_own: Tensor, rows: int) -> Tensor:
        """Add up tables of zeros in which every process has filled in its rows, which may differ in number."""
        y = y_own.new_zeros(rows, *y_own.shape[1:])
        y[self.own(rows).slice] = y_own.detach()
        return self.sum(y)

    def sum(self, table: Tensor) -> Tensor:
        """Return the sum over the processes, in place."""
        torch.distributed.all_reduce(table)
        return table

    def meet_in(self, module: nn.Module) -> bool:
        """Whether the network has batch norms over all rows."""
        return any(isinstance(layer, GlobalBatchNorm) for layer in module.modules())

    def require_same(self, parts: Any) -> None:
        """Compare numbers of rows and digests of them."""
        from accelerate.utils import gather_object

        seen = gather_object([[(len(part), _digest(part)) for part in parts if part is not None]])
        for process, rows in enumerate(seen):
            if rows != seen[0]:
                raise FourFluxError(
                    f"process {process} was given {_sizes(rows)} other than the {_sizes(seen[0])} of process 0; "
                    "give every process all rows in the same order: each takes its own from the batches"
                )

    def end_epoch(self, net: Any, training: bool, numbers: dict[str, float]) -> dict[str, float]:
        """Processors of different kinds round differently; this keeps the processes together."""
        from accelerate.utils import broadcast_object_list

        if training:
            self.take_the_first(net)
        return broadcast_object_list([numbers])[0]

    def take_the_first(self, net: Any) -> None:
        """Give every process the first one's weights and buffers."""
        for part in (net.module_, net.criterion_):
            for tensor in (*part.parameters(), *part.buffers()):
                torch.distributed.broadcast(tensor.detach(), 0)


def _digest(rows: Any) -> int:
    digest = 0
    for tensor in some_rows(rows):
        digest = zlib.crc32(tensor.contiguous().numpy().tobytes(), digest)
    return digest


def _sizes(rows: list[tuple[int, int]]) -> str:
    return " + ".join(str(count) for count, _ in rows) + " rows"


# --- batch norm ------------------------------------------------------------------------------------------


class GlobalBatchNorm(nn.BatchNorm1d):
    """Batch norm over the rows of all processes; `torch.nn.SyncBatchNorm` does so on GPUs alone.

    Outside a training step of `DistributedFluxRegressor` it is `torch.nn.BatchNorm1d`.
    """

    division: tuple[int, int] | None = None
    """During a training step: how many rows here count (all or none), and how many there are in all processes."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(n, features)``."""
        if self.division is None or not self.training:
            return super().forward(x)
        counted, rows = self.division
        if rows < 2:
            raise ValueError(f"batch norm has no variance in a batch of {rows} row in all")
        mean = _SumOfAll.apply(x[:counted].sum(dim=0)) / rows
        variance = _SumOfAll.apply((x[:counted] - mean).square().sum(dim=0)) / rows
        if self.track_running_stats:
            self._remember(mean.detach(), variance.detach() * rows / (rows - 1))
        y = (x - mean) * torch.rsqrt(variance + self.eps)
        return y * self.weight + self.bias if self.affine else y

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class _SumOfAll(torch.autograd.Function):
    """Sum over the processes; each answers for its part of what is made of it, so derivatives are summed too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        torch.distributed.all_reduce(total)
        return total


# --- how processes are started ---------------------------------------------------------------------------


def launched() -> bool:
    """Whether this process is one of several that ``accelerate launch``, ``torchrun`` or the like has started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return int(os.environ.get("RANK", "0")) == 0


def join(device: str) -> Any:
    """Meet the other processes.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda"}
        Where to train; auto means GPUs where there are any.

    Returns
    -------
    accelerate.Accelerator

    Raises
    ------
    RunError
        If accelerate is not installed, or does not know such a device.
    """
    try:
        from accelerate import Accelerator
    except ImportError:
        raise RunError(
            "training by several processes needs the package accelerate: python -m pip install 'rheidae[distributed]'"
        ) from None
    if device not in ("auto", "cpu", "cuda"):
        raise RunError(f"training.device: {device} knows no several processes; use auto, cpu or cuda")
    return Accelerator(cpu=device == "cpu" or not torch.cuda.is_available())


def agreed(asked: Callable[[], int | None], accelerator: Any, every: int = 16) -> Callable[[], int | None]:
    """Make all processes hear of a signal that one of them got, in the same batch.

    One that left by itself would leave the others waiting.

    Parameters
    ----------
    asked : callable
        Returns the signal's number, or None; see `rheidae.estimator.callbacks.StopRequest`.
    accelerator : accelerate.Accelerator
        Knows the processes.
    every : int
        Calls between two meetings. Each stops an accelerator for a moment.
    """
    calls = 0

    def together() -> int | None:
        nonlocal calls
        calls += 1
        if calls % every:
            return None
        number = torch.tensor(asked() or 0, device=accelerator.device)
        torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
        return int(number) or None

    return together
