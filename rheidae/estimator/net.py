"""What skorch asks of the estimator: components, data sets, batches."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator
from skorch import NeuralNetRegressor
from skorch.callbacks import Callback, EpochTimer, LRScheduler, PrintLog
from skorch.dataset import Dataset
from skorch.utils import noop
from torch import Tensor

from rheidae.estimator._private import AnyBatchNorm, check_sample_weight
from rheidae.estimator.batches import TableDataset, some_rows
from rheidae.estimator.callbacks import (
    BestWeights,
    GradientCombiner,
    LagrangianConstraints,
    OneCycle,
    PCGrad,
    WeightingCallback,
)
from rheidae.estimator.callbacks.weighting import WEIGHTINGS
from rheidae.estimator.layouts import LAYOUTS, Layout, as_array
from rheidae.estimator.losses import SingleTerm
from rheidae.estimator.resuming import Resumable
from rheidae.estimator.step import TrainingStep, run_epoch, validate
from rheidae.exceptions import FourFluxError
from rheidae.scoring.metrics import SCORERS, get_scorer
from rheidae.scoring.splits import validation_split

# Of AdamW: the shorter memory of squares suits trainings of a thousand steps.
BETAS = (0.9, 0.99)
FUSED = (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD)
# Validation rows that are enough to learn the size of errors from.
CALIBRATION_ROWS = 50
# Methods of skorch's that would be called in a part of the places where it calls them, and what does the same.
_CLOSED = {
    "infer": "write it into the network (module)",
    "evaluation_step": "write it into the network (module)",
    "forward_iter": "write it into the network (module)",
    "get_loss": "give a criterion whose terms(y_pred, y_true) returns every part of it by name",
}
_SHAPING_PREFIXES = ("weighting__", "pcgrad__", "constraints__")
# Without gradients large batches are quicker, and the result is the same.
VALIDATION_ROWS = 4096
_DEFAULTS: dict[str, dict[str, Any]] = {
    "iterator_train": {"shuffle": True},
    "iterator_valid": {"batch_size": VALIDATION_ROWS},
}


@contextmanager
def _single_precision() -> Iterator[None]:
    """Make float32 tensors whatever `torch.set_default_dtype` says: the rows are float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class FluxNet(Resumable):
    """`rheidae.estimator.regressor.FluxRegressor` as skorch knows it; see there for what the parameters mean."""

    layout: str
    predict_residual: bool
    weighting: Any
    pcgrad: Any
    constraints: Any
    load_best: bool
    val_split: float
    mixed_precision: bool
    average_heavy: bool
    grad_clip: float | None

    # A learning rate's schedule holds the optimizer: pickled beside it, they stay together and find their device.
    cuda_dependent_attributes_: ClassVar[list[str]] = [*NeuralNetRegressor.cuda_dependent_attributes_, "callbacks_"]

    step_: TrainingStep | None = None
    known_rows_: Any = None
    criterion_: Any
    initialized_: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse what a subclass cannot change."""
        super().__init_subclass__(**kwargs)
        for name, remedy in _CLOSED.items():
            if getattr(cls, name) is not getattr(FluxNet, name):
                raise TypeError(
                    f"{cls.__name__} overrides {name}(), which training on several terms does not go by: {remedy}"
                )

    # --- parameters and components -------------------------------------------------------------------------

    @property
    def _default_callbacks(self) -> list[tuple[str, Any]]:
        callbacks: list[tuple[str, Any]] = [("epoch_timer", EpochTimer())]
        if isinstance(self.weighting, Callback):
            callbacks.append(("weighting", self.weighting))
        elif isinstance(self.weighting, str) and self.weighting in WEIGHTINGS:
            callbacks.append(("weighting", WEIGHTINGS[self.weighting]()))
        for name, kind in (("pcgrad", PCGrad), ("constraints", LagrangianConstraints)):
            value = getattr(self, name)
            if isinstance(value, Callback):
                callbacks.append((name, value))
            elif _is_on(value):
                callbacks.append((name, kind()))
        if _is_on(self.load_best):
            callbacks.append(("load_best", BestWeights()))
        if not (isinstance(self.callbacks, list) and any(map(_is_schedule, self.callbacks))):
            callbacks.append(("lr_schedule", OneCycle()))
        return [
            *callbacks,
            ("print_log", PrintLog() if self._prints else PrintLog(sink=noop)),
        ]

    @property
    def _prints(self) -> bool:
        """Whether this process says how the training goes."""
        return True

    def set_params(self, **params: Any) -> FluxNet:
        """Set parameters; ``weighting__temperature`` and the like go to the callback of that name.

        Those of the network count from the next training on, which makes a new one; a trained network stays until then.
        """
        if self.initialized_ and any(key.partition("__")[0] == "module" for key in params):
            self.initialized_ = False  # skorch would put a network in its place that is not trained
        nested = {key: params.pop(key) for key in list(params) if key.startswith(_SHAPING_PREFIXES)}
        for key in [key for key in params if key.startswith(("iterator_train__", "iterator_valid__"))]:
            # skorch looks for a component to make anew, and finds none once there is a network.
            setattr(self, key, params.pop(key))
        super().set_params(**params)
        for key, value in nested.items():
            name, _, parameter = key.partition("__")
            if not isinstance(getattr(self, name), Callback):
                setattr(self, name, dict(self._default_callbacks).get(name))
            if getattr(self, name) is None:
                raise ValueError(f"{key}: there is no {name} to set it on; choose one first")
            getattr(self, name).set_params(**{parameter: value})
        return self

    def get_params_for(self, prefix: str) -> dict[str, Any]:
        """Return the arguments of a component, such as the network (``module``)."""
        return {**_DEFAULTS.get(prefix, {}), **super().get_params_for(prefix)}

    def _get_param_names(self) -> list[str]:
        return [name for name in super()._get_param_names() if not name.startswith("_")]

    def __repr__(self, **kwargs: Any) -> str:
        return BaseEstimator.__repr__(self, **kwargs)

    @property
    def _layout(self) -> Layout:
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout={self.layout!r} is not one of {', '.join(LAYOUTS)}")
        return LAYOUTS[self.layout](self.predict_residual, self.average_heavy)

    def _initialize_callbacks(self) -> FluxNet:
        if _is_callbacks(self.callbacks):
            super()._initialize_callbacks()
            for _, callback in self.callbacks_:
                name = getattr(callback, "scoring_", None)
                if isinstance(name, str) and name in SCORERS:  # scikit-learn does not know it
                    callback.scoring_ = get_scorer(name)
            return self
        # set_params only stores; check_training_readiness refuses.
        self.callbacks_: list[tuple[str, Any]] = list(self._default_callbacks)
        return self

    def check_training_readiness(self) -> None:
        """Refuse parameters that cannot be trained with; skorch asks before it makes the components."""
        super().check_training_readiness()
        if self.compile:
            raise ValueError(
                "compile=True is not possible: training takes several gradients of one graph (one per loss term), "
                "which compiled networks free after the first; leave compile=False"
            )
        for name, known in {"use_caching": (False,), "predict_nonlinearity": ("auto",), "dataset": (Dataset,)}.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} has no meaning here; leave it out")
        if not (isinstance(self.weighting, Callback) or self.weighting in (None, "none", *WEIGHTINGS)):
            raise ValueError(
                f"weighting={self.weighting!r} is neither a callback nor one of none, {', '.join(WEIGHTINGS)}"
            )
        if self._only(LagrangianConstraints, self._default_callbacks) and self._layout.name != "four_flux":
            raise ValueError(f"constraints={self.constraints!r} are about four-fluxes; layout={self.layout!r} has none")

        if not _is_callbacks(self.callbacks):
            raise ValueError(f"callbacks={self.callbacks!r} is no list of callbacks")

    @_single_precision()
    def initialize_module(self) -> FluxNet:
        """Make the network, and tell it the widths if it asks."""
        layout = self._layout
        module = layout.module if self.module is None else self.module
        arguments = self.get_params_for("module")
        known = {
            "n_features": layout.n_features or getattr(self, "n_features_in_", None),
            "n_outputs": layout.n_outputs or getattr(self, "n_outputs_", None),
        }
        asked = inspect.signature(module).parameters if inspect.isclass(module) else ()
        for name in [name for name in known if name in asked and name not in arguments]:
            if known[name] is None:
                raise ValueError(
                    f"layout={layout.name!r} takes {name} of {module.__name__} from the data: call fit or partial_fit "
                    f"first, or give module__{name}"
                )
            arguments[name] = known[name]
        self.module_ = self.initialized_instance(module, arguments)
        return self

    @_single_precision()
    def initialize_criterion(self) -> FluxNet:
        """Make the criterion, and put what the weighting and the constraints train or remember into it."""
        criterion = self._layout.criterion if self.criterion is None else self.criterion
        made = self.initialized_instance(criterion, self.get_params_for("criterion"))
        self.criterion_ = made if hasattr(made, "terms") else SingleTerm(made)
        weighting, constraints = self._only(WeightingCallback), self._only(LagrangianConstraints)
        self._only(GradientCombiner)
        names = list(self.criterion_.weights)
        self.criterion_.weighting = weighting.make_module(len(names)) if weighting else None
        self.criterion_.constraints = constraints.make_module() if constraints else None
        return self

    def initialize_to_predict(self) -> FluxNet:
        """As `initialize`, but the optimizer is made when first asked for: its imports take as long as torch's own."""
        self._optimizer_waits = True
        return self.initialize()

    def __getattr__(self, name: str) -> Any:
        if name == "optimizer_" and self.__dict__.pop("_optimizer_waits", False):
            return self.initialize_optimizer().optimizer_
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def initialize_optimizer(self, triggered_directly: Any = None) -> FluxNet:
        """Make the optimizer; biases and trained loss weights get groups without weight decay."""
        if self.__dict__.get("_optimizer_waits"):
            self.optimizer_ = object.__new__(self.optimizer)  # for skorch, which keeps a list of names
            del self.__dict__["optimizer_"]
            return self
        args, kwargs = self.get_params_for_optimizer("optimizer", self.module_.named_parameters())
        if self.optimizer is torch.optim.AdamW:
            kwargs.setdefault("betas", BETAS)
            if not any("optimizer__param_groups" in name for name in self.get_params(deep=False)):
                named = list(self.module_.named_parameters())
                biases = [parameter for name, parameter in named if "bias" in name]
                weights = [parameter for name, parameter in named if "bias" not in name]
                args[0][:] = [{"params": weights}, {"params": biases, "weight_decay": 0.0}]
        trained = list(self.criterion_.parameters())
        if trained:
            group: dict[str, Any] = {"params": trained, "weight_decay": 0.0}
            weighting = self._only(WeightingCallback)
            if weighting is not None and weighting.lr is not None:
                group["lr"] = weighting.lr
            args[0].append(group)
        fusable = self._device.type in ("cpu", "cuda") and self.optimizer in FUSED
        if fusable and not {"fused", "foreach", "differentiable"} & set(kwargs):
            kwargs["fused"] = True
        self.optimizer_ = self.optimizer(*args, **kwargs)
        return self

    def _only(self, kind: type[Callback], callbacks: Any = None) -> Any:
        """The callback of a kind, or None."""
        chosen = [callback for _, callback in callbacks or self.callbacks_ if isinstance(callback, kind)]
        if len(chosen) > 1:
            raise ValueError(f"{len(chosen)} callbacks are a {kind.__name__}; at most one can be used")
        return chosen[0] if chosen else None

    # --- rows ----------------------------------------------------------------------------------------------

    def get_dataset(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Rows as the network sees them; see `TableDataset`."""
        if isinstance(X, torch.utils.data.TensorDataset):
            return TableDataset(*X.tensors)
        if isinstance(X, torch.utils.data.Dataset):
            return X
        layout = self._layout
        X, y = layout.rows(X, getattr(self, "_needs_box3d", True)), None if y is None else layout.targets(y)
        table, target = (layout.table(X, "X"), None) if y is None else layout.tables(X, y)
        x, scaled = layout.scaled(table, target)
        weight = None
        if sample_weight is not None:
            given = as_array(sample_weight) if isinstance(sample_weight, Tensor) else sample_weight
            weight = check_sample_weight(given, table, dtype=np.float64, ensure_non_negative=True)
            weight = torch.from_numpy(weight / weight.mean())
        if scaled is None:
            return TableDataset(torch.from_numpy(x), torch.zeros(len(x), 0), weight)
        return TableDataset(torch.from_numpy(x), torch.from_numpy(scaled), weight, (table, target))

    def get_split_datasets(self, X: Any, y: Any = None, **fit_params: Any) -> tuple[Any, Any]:
        """Divide into training and validation rows; refuse what could not be trained on."""
        dataset = self.get_dataset(X, y)
        train, valid = dataset, None
        if self.train_split is not None:
            targets = (dataset.target,) if isinstance(dataset, TableDataset) else ()
            train, valid = self.train_split(dataset, *targets, **fit_params)
        elif self.val_split:
            seed = self.random_state if isinstance(self.random_state, int) else int(torch.randint(2**31 - 1, ()))
            train, valid = validation_split(dataset, self.val_split, seed, fit_params.get("groups"))
        for name, part in (("training", train), ("validation", valid)):
            if part is not None and len(part) == 0:
                raise FourFluxError(f"there are no {name} rows; give more rows, or set val_split (train_split) to none")
        self._check_batches(len(train))
        self._processes.require_same((train, valid))
        prepare = getattr(self.module_, "prepare", None)
        if prepare is not None:
            prepare(some_rows(train)[0].to(self._device))
        self.known_rows_ = valid if valid is not None and len(valid) >= CALIBRATION_ROWS else train
        return train, valid

    def _check_batches(self, rows: int) -> None:
        batch = rows if self.batch_size == -1 else min(self.batch_size, rows)
        if batch == 1 and any(isinstance(module, AnyBatchNorm) for module in self.module_.modules()):
            raise FourFluxError(
                f"{rows} training rows in batches of {self.batch_size}: batch norm has no variance in a batch of "
                "one row; give two rows at least, or set use_batch_norm=False"
            )

    def check_rows(self, X: Any, y: Any) -> FluxNet:
        """Refuse now what `fit` would refuse of these rows, by making the components for them and nothing more."""
        table, _ = self._seen(X, y, fresh=True)
        with self._random(fresh=True):
            self.initialize()
        self._check_batches(len(table))
        return self

    # --- batches -------------------------------------------------------------------------------------------

    def infer(self, x: Tensor, **_fit_params: Any) -> Tensor:
        """Return the answer for scaled rows, of four-fluxes the final ones ``(n, 24)``: base state plus correction."""
        x = x.to(self._device, non_blocking=True)
        if self.mixed_precision and self.module_.training:
            with torch.autocast(self._device.type, dtype=torch.bfloat16):
                output = self.module_(x)
            return self._layout.final(x, output.float(), self.module_)
        return self._layout.final(x, self.module_(x), self.module_)

    def get_loss(self, y_pred: Tensor, y_true: Tensor, X: Any = None, training: bool = False) -> Tensor:
        """Return the sum of the terms with the criterion's fixed weights."""
        return self.criterion_(y_pred, y_true.to(y_pred.device))

    def train_step_single(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Forward and backward; see `TrainingStep.train`."""
        if not self.module_.training:
            self._set_training(True)
        if self.step_ is None:
            self.step_ = TrainingStep(self)
        return self.step_.train(batch, **fit_params)

    def on_grad_computed(self, net: Any, named_parameters: Any, **kwargs: Any) -> None:
        """Clip the network's gradient. Those of trained loss weights have a scale of their own, and are left alone."""
        if self.grad_clip is not None and self.step_ is not None:
            self.step_.clip(self.grad_clip)

    def validation_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Loss with fixed weights, terms and error of a batch."""
        self._set_training(False)
        return validate(self, batch, **fit_params)

    def run_single_epoch(self, iterator: Any, training: bool, prefix: str, step_fn: Any, **fit_params: Any) -> None:
        """One pass over the batches; means over rows go to the history (see `run_epoch`)."""
        if iterator is None:
            return
        numbers = run_epoch(self, iterator, training, prefix, step_fn, **fit_params)
        for name, value in self._processes.end_epoch(self, training, numbers).items():
            self.history.record(name, value)
        before = [row[f"{prefix}_loss"] for row in self.history.to_list()[:-1] if f"{prefix}_loss" in row]
        self.history.record(f"{prefix}_loss_best", numbers[f"{prefix}_loss"] < min(before, default=np.inf))
        self.history.record(f"{prefix}_batch_count", len(iterator))

    def notify(self, method_name: str, **arguments: Any) -> None:
        """Call the callbacks; of a data set of tables they see X and y, as they do elsewhere in skorch."""
        X = arguments.get("X")
        if isinstance(X, TableDataset):
            arguments |= {"X": X.X, "y": X.y}
        super().notify(method_name, **arguments)

    def _forget_batches(self) -> None:
        self.step_ = None


def _is_callbacks(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, Callback | type | tuple | list) for item in value)
    return value is None or (isinstance(value, str) and value == "disable")


def _is_schedule(item: Any) -> bool:
    """Whether one of the user's callbacks sets the learning rate."""
    callback = item[1] if isinstance(item, tuple | list) else item
    return isinstance(callback, LRScheduler | OneCycle) or callback in (LRScheduler, OneCycle)


def _is_on(value: Any) -> bool:
    """Whether a switch is on; what is not a number is no switch."""
    return isinstance(value, int | np.bool_) and bool(value)
