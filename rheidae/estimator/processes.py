"""One training on several processes: GPUs of a machine, or of several machines.

Each process works on its own rows of every batch; what is decided, is decided on the whole batch. The predictions of
all processes are put together, so that every process has the same loss terms, violations and derivatives of the tasks
by the predictions; it carries the derivatives of its own rows back through the network, and the sum over the processes
is the Jacobian of the tasks ``(tasks, parameters)``. Everything after that, weights, projections, multipliers, clipping
and the optimizer's step, is done by every process on the same numbers. So a batch means what it means to one process,
however it is divided, and whatever the loss does with its rows.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from skorch.hf import AccelerateMixin
from torch import Tensor, nn

from rheidae.estimator.callbacks.saving import copy_state
from rheidae.estimator.regressor import FluxRegressor, _some_rows
from rheidae.exceptions import FourFluxError, RunError

# What accelerate calls the ways to start processes that hold a whole network each.
KINDS = ("NO", "MULTI_CPU", "MULTI_GPU")


class DistributedFluxRegressor(AccelerateMixin, FluxRegressor):
    """`FluxRegressor` trained by several processes at once, as ``accelerate launch`` or ``torchrun`` starts them.

    Every process runs the same program and calls `fit` with the same rows. With one process it is `FluxRegressor`; with
    several the result is that of one, to rounding.

    Parameters
    ----------
    *args, **kwargs
        As of `FluxRegressor`. `batch_size` counts the rows of all processes together. `device` stays None: accelerate
        chooses it.
    accelerator : accelerate.Accelerator
        Knows the processes; ``Accelerator(cpu=True)`` on machines without GPUs.
    unwrap_after_train : bool
        See `skorch.hf.AccelerateMixin`; leave it as it is.

    Notes
    -----
    No `torch.nn.parallel.DistributedDataParallel` is involved: it adds up the gradient of one loss while ``backward``
    runs, and the gradients of several tasks are no such thing. Per batch, two sums over the processes are taken: of the
    predictions, and of the Jacobian of the tasks (one row without `pcgrad`).

    Batch norms of one dimension take their statistics over the rows of all processes, at the price of two small sums
    more per layer, pass and direction. Masks of dropout differ from process to process, so that
    with dropout the result is another than one process's, as it is with another seed.

    Without a seed (`random_state`) the first process draws one for all. Weights, buffers and the numbers of the history
    are the first process's after every epoch, in case that processors of different kinds round differently.

    `predict`, `score` and `calibrate` work in the process that calls them, without the others.

    Examples
    --------
    >>> from accelerate import Accelerator
    >>> from rheidae.estimator.processes import DistributedFluxRegressor
    >>> model = DistributedFluxRegressor(accelerator=Accelerator(cpu=True), random_state=0)  # doctest: +SKIP
    >>> model.fit(X, y)                                                                      # doctest: +SKIP
    """

    _wrapped_with_accelerator: bool
    callbacks__print_log__sink: Any

    def __init__(self, *args: Any, accelerator: Any, **kwargs: Any) -> None:
        super().__init__(*args, accelerator=accelerator, **kwargs)

    # --- processes -----------------------------------------------------------------------------------------

    @property
    def _device(self) -> torch.device:
        return self.accelerator.device

    @property
    def _count(self) -> int:
        return self.accelerator.num_processes

    @property
    def _rank(self) -> int:
        return self.accelerator.process_index

    def check_training_readiness(self) -> None:
        """Refuse what the accelerator would do and this estimator does not."""
        super().check_training_readiness()
        accelerator = self.accelerator
        kind = getattr(accelerator.distributed_type, "value", accelerator.distributed_type)
        if kind not in KINDS:
            raise ValueError(f"accelerator: {kind} divides a network; the networks here are small, and stay whole")
        if accelerator.gradient_accumulation_steps != 1:
            raise ValueError("accelerator: gradient_accumulation_steps has to be 1; choose a larger batch_size instead")
        if accelerator.mixed_precision != "no":
            raise ValueError("accelerator: mixed_precision has to be 'no'; set that of the estimator to True instead")
        if launched() and self._count == 1:
            raise RunError(
                f"{os.environ['WORLD_SIZE']} processes were started, but the accelerator knows of one, and each would "
                "train alone; on machines without GPUs set ACCELERATE_USE_CPU=true, or give Accelerator(cpu=True)"
            )

    def _initialize_accelerator(self) -> DistributedFluxRegressor:
        """Give every process the first one's weights; skorch would wrap what must stay as it is."""
        if self._wrapped_with_accelerator:
            return self
        for part in (self.module_, self.criterion_):
            part.to(self._device)
        if self._count > 1:
            for layer in self.module_.modules():
                if type(layer) is nn.BatchNorm1d:
                    layer.__class__ = GlobalBatchNorm
            self._take_the_first(self.module_, self.criterion_)
        self._wrapped_with_accelerator = True
        return self

    def _unwrap_accelerator(self) -> None:
        for layer in self.module_.modules():
            if type(layer) is GlobalBatchNorm:
                layer.__class__ = nn.BatchNorm1d  # type: ignore[assignment]
        self._wrapped_with_accelerator = False

    def _take_the_first(self, *parts: nn.Module) -> None:
        for part in parts:
            for tensor in (*part.parameters(), *part.buffers()):
                torch.distributed.broadcast(tensor.detach(), 0)

    def _first(self, value: Any) -> Any:
        """The first process's `value`."""
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0] if self._count > 1 else value

    def _initialize_callbacks(self) -> DistributedFluxRegressor:
        if getattr(self, "callbacks__print_log", self) is None:
            self.__dict__.pop("callbacks__print_log__sink", None)
        elif self.callbacks__print_log__sink == "auto":
            self.callbacks__print_log__sink = print if self.accelerator.is_main_process else _say_nothing
        return super(AccelerateMixin, self)._initialize_callbacks()

    def _first_seed(self) -> int | None:
        seed = super()._first_seed()
        if seed is None and self._count > 1:
            seed = int(torch.randint(2**31 - 1, ()))
        return self._first(seed)

    def get_iterator(self, dataset: Any, training: bool = False) -> Any:
        """Return whole batches: each process takes its rows from them later."""
        return super(AccelerateMixin, self).get_iterator(dataset, training)

    def get_split_datasets(self, X: Any, y: Any = None, **fit_params: Any) -> tuple[Any, Any]:
        """Divide into training and validation rows; refuse if the processes were given different ones."""
        parts = super().get_split_datasets(X, y, **fit_params)
        if self._count > 1:
            from accelerate.utils import gather_object

            found = gather_object([[(len(part), _digest(part)) for part in parts if part is not None]])
            for process, rows in enumerate(found):
                if rows != found[0]:
                    raise FourFluxError(
                        f"process {process} was given {_sizes(rows)} other than the {_sizes(found[0])} of process 0; "
                        "give every process all rows in the same order: each takes its own from the batches"
                    )
        return parts

    # --- batches -------------------------------------------------------------------------------------------

    def _own(self, rows: int) -> slice:
        """Rows of a batch that this process takes; there may be none."""
        return slice(*(rows * process // self._count for process in (self._rank, self._rank + 1)))

    def _forward(self, x: Tensor, graph: bool, **fit_params: Any) -> tuple[Tensor, Callable[..., Tensor]]:
        """Of the whole batch, though only the rows of this process went through the network."""
        if self._count == 1:
            return super()._forward(x, graph, **fit_params)
        own = self._own(len(x))
        counted = own.stop - own.start
        # With nothing to do a process goes through the motions with a row that does not count: batch norms wait for it.
        with self._own_draws(), self._common_statistics(counted, len(x)):
            y_own, gradients_of = super()._forward(x[own] if counted else x[:1], graph, **fit_params)
        by_graph = graph or not self.known_layers_

        def summed(cotangents: Tensor, parameters: list[Tensor] | None = None) -> Tensor:
            mine = cotangents[:, own].contiguous() if counted else torch.zeros_like(cotangents[:, :1])
            if by_graph:
                # All processes take the same passes, in which batch norms meet.
                active = cotangents.flatten(1).any(dim=1).tolist()
                table = gradients_of(mine, parameters, active)
            else:
                table = gradients_of(mine).clone()
            torch.distributed.all_reduce(table)
            return table

        return self._together(y_own[:counted], own, len(x)), summed

    def _validated(self, x: Tensor, **fit_params: Any) -> Tensor:
        if self._count == 1:
            return super()._validated(x, **fit_params)
        own = self._own(len(x))
        counted = own.stop - own.start
        y_own = super()._validated(x[own] if counted else x[:1], **fit_params)
        return self._together(y_own[:counted], own, len(x))

    @staticmethod
    def _together(y_own: Tensor, own: slice, rows: int) -> Tensor:
        """Predictions of all processes; they may have different numbers of rows, so zeros are added up."""
        y_pred = y_own.new_zeros(rows, *y_own.shape[1:])
        y_pred[own] = y_own.detach()
        torch.distributed.all_reduce(y_pred)
        return y_pred

    @contextmanager
    def _own_draws(self) -> Iterator[None]:
        """Draw, for dropout, from numbers of this process's own; those that all share are left as they were."""
        self.batch_ += 1
        shared = zlib.crc32(torch.get_rng_state().numpy().tobytes())
        seed = np.random.SeedSequence([shared, len(self.history), self.batch_, self._rank]).generate_state(1)[0]
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            torch.manual_seed(int(seed))
            yield

    @contextmanager
    def _common_statistics(self, counted: int, rows: int) -> Iterator[None]:
        layers = [layer for layer in self.module_.modules() if isinstance(layer, GlobalBatchNorm)]
        for layer in layers:
            layer.division = (counted, rows)
        try:
            yield
        finally:
            for layer in layers:
                layer.division = None

    def run_single_epoch(self, iterator: Any, training: bool, prefix: str, step_fn: Any, **fit_params: Any) -> None:
        """One pass over the batches, after which all processes have the first one's weights and numbers."""
        self.batch_ = 0
        super().run_single_epoch(iterator, training, prefix, step_fn, **fit_params)
        if self._count > 1 and iterator is not None:
            if training:
                self._take_the_first(self.module_, self.criterion_)
            numbers = {name: value for name, value in self.history[-1].items() if isinstance(value, float)}
            for name, value in self._first(numbers).items():
                self.history.record(name, value)

    # --- what skorch and scikit-learn ask for --------------------------------------------------------------

    def train_step_single(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """As of `FluxRegressor`."""
        return super(AccelerateMixin, self).train_step_single(batch, **fit_params)

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Prepare a model that is trained on: `on_train_end` undoes it."""
        super().on_train_begin(net, X, y, **kwargs)
        self._initialize_accelerator()

    def plain(self) -> FluxRegressor:
        """Return the model as a `FluxRegressor` on the CPU, which can be pickled, exported and opened anywhere.

        Returns
        -------
        FluxRegressor
            With copies of weights, optimizer and history; it can be trained on by `partial_fit`.
        """
        own = ("accelerator", "unwrap_after_train", "callbacks__print_log__sink")
        params = {name: value for name, value in self.get_params(deep=False).items() if name not in own}
        other = clone(FluxRegressor(**{**params, "device": "cpu"}))
        for name in ("n_features_in_", "feature_names_in_", "n_outputs_", "flat_target_", "error_scale_", "rng_state_"):
            if hasattr(self, name):
                setattr(other, name, getattr(self, name))
        if self.initialized_:
            other.initialize()
            for part in ("module_", "criterion_", "optimizer_"):
                getattr(other, part).load_state_dict(copy_state(getattr(self, part).state_dict()))
            other.history_ = self.history
        return other


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


def distribute(regressor: FluxRegressor, accelerator: Any) -> DistributedFluxRegressor:
    """Return an untrained estimator of the same parameters that trains by several processes."""
    return DistributedFluxRegressor(**{**regressor.get_params(deep=False), "device": None}, accelerator=accelerator)


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


def _say_nothing(*_: Any) -> None:
    pass


def _digest(rows: Any) -> int:
    digest = 0
    for tensor in _some_rows(rows):
        digest = zlib.crc32(tensor.contiguous().numpy().tobytes(), digest)
    return digest


def _sizes(rows: list[tuple[int, int]]) -> str:
    return " + ".join(str(count) for count, _ in rows) + " rows"
