"""The estimator: scikit-learn outside, torch inside."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.metrics import r2_score
from sklearn.model_selection import GroupShuffleSplit
from sklearn.utils.metadata_routing import MethodMapping
from sklearn.utils.validation import _check_sample_weight, validate_data
from skorch import NeuralNetRegressor
from skorch.callbacks import Callback, EpochTimer, LRScheduler, PrintLog
from skorch.dataset import Dataset
from torch import Tensor
from torch.utils.data import Subset

from rheidae.estimator.batches import BatchSlicer, TableDataset, unpack
from rheidae.estimator.callbacks import (
    BATCH_NORM,
    BestWeights,
    GradientClipping,
    GradientCombiner,
    LagrangianConstraints,
    PCGrad,
    WeightingCallback,
)
from rheidae.estimator.callbacks.constraints import VIOLATIONS
from rheidae.estimator.callbacks.gradients import conflicts, jacobian, last_shared_parameters, set_gradients
from rheidae.estimator.callbacks.weighting import SCHEMES
from rheidae.estimator.layouts import LAYOUTS, Layout, as_array
from rheidae.estimator.losses import as_terms, takes_weights, values_and_gradients
from rheidae.estimator.means import EpochMeans
from rheidae.estimator.products import product
from rheidae.estimator.pullback import TaskGradients, is_known
from rheidae.estimator.resuming import STATE_FORMAT, Resumable
from rheidae.estimator.uncertainty import ErrorScale
from rheidae.exceptions import FourFluxError, RunError
from rheidae.scoring.splits import GroupSplit
from rheidae.system.threads import limited

FUSED = (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD)
# Validation rows that are enough to learn the size of errors from.
CALIBRATION_ROWS = 50
# Rows that means and deviations are taken from, at most.
ENOUGH_ROWS = 10_000


class Unfitted:
    """What an attribute is until it is set; skorch's constructor, which looks whether it is there, does not find it."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __get__(self, net: Any, owner: type | None = None) -> Any:
        """Return the value; what the estimator itself holds under the name goes before."""
        if net is not None and "_params_to_validate" not in vars(net):
            raise AttributeError
        return self.value


class FluxRegressor(Resumable):
    """Final four-fluxes of the fast flavor instability, learned from simulations on top of Box3D.

    ``X (n, 48)`` holds the initial four-fluxes of six species and Box3D's answer, ``y (n, 24)`` the simulated final
    four-fluxes, both flat (``4 * species + component``) and in one common unit, any unit: each row is divided by
    its total number density before the network sees it, and `predict` returns the unit of its input.

    Parameters
    ----------
    module : class, instance or None
        Network from 48 numbers to a correction of 24; its arguments go by ``module__``. None: that of the layout,
        `rheidae.estimator.networks.MixingModel`.
    layout : {"four_flux", "generic"}
        "generic" is plain regression between tables of any width (y may be one column), without normalisation, by a
        `rheidae.estimator.networks.MultilayerPerceptron` and the mean squared error. What is said of four-fluxes here,
        `constraints` and standard deviations are of "four_flux" alone.
    criterion : class, instance or None
        Named loss terms on the final four-flux; its weights go by ``criterion__``. Also a plain loss of torch. None:
        that of the layout, `rheidae.estimator.losses.FourFluxLoss`.
    predict_residual : bool
        True: the network predicts what Box3D leaves unexplained, and one that outputs zero is Box3D. False: it predicts
        the change from the initial state and has to learn what Box3D knows. `predict` and `score` return and
        compare final four-fluxes either way.
    weighting : {"none", "kendall_gal", "dwa", "gradnorm"} or callback
        What becomes of the loss terms' weights during training: `KendallGal`, `DynamicWeightAverage`, `GradNorm` of
        `rheidae.estimator.callbacks`, by name with their defaults or as instances. They multiply the criterion's fixed
        weights.
    pcgrad : bool or callback
        Project conflicting gradients of the terms (`PCGrad`), or combine them by another `GradientCombiner`. Costs a
        backward pass per term.
    constraints : bool or callback
        Multipliers against negative densities and superluminal fluxes (`LagrangianConstraints`).
    load_best : bool
        After training with a validation part, return to the weights of its best epoch.
    val_split : float
        Part of the rows that validates, drawn at random by `random_state`; with ``fit(X, y, groups=...)`` in whole
        groups. 0 for none. A `train_split` goes before it.
    mixed_precision : bool
        Train with bfloat16 matrix products. Quicker on hardware that has them, coarser everywhere.
    average_heavy : bool
        Average the targets over mu and tau in rows whose initial state has them alike. Their difference is
        chance there; left in, it is noise in the gradients and hides small errors from the L1 term.
    random_state : int, RandomState or None
        Seed of initial weights, order of batches and dropout. The global generators are left as they were.
        None draws from torch's global generator.
    threads : int or None
        Threads of torch and Numba while it is trained; afterwards they have those of before. More than one gain nothing
        at these sizes, and cost much where other processes use the processors: a worker of a search is to have one.
        None leaves them alone.
    lr, max_epochs, batch_size : float, int, int
        Of AdamW; the learning rate falls to zero along half a cosine over `max_epochs` (the callback
        ``lr_schedule``: ``callbacks__lr_schedule=None`` keeps it constant). Too few epochs leave skill behind, too
        many cost time only.
    grad_clip : float or None
        Largest norm of the gradient of a step.
    train_split : callable or None
        ``skorch.dataset.ValidSplit`` or ``predefined_split``, in place of `val_split`.
    optimizer, iterator_train, iterator_valid : classes
        Their arguments go by ``optimizer__`` and so on.
    callbacks, warm_start, verbose, device, compile, dataset, predict_nonlinearity, use_caching, torch_load_kwargs
        As of `skorch.NeuralNet`; the last but `torch_load_kwargs` have no meaning here.
    **kwargs
        Arguments of the components, such as ``module__hidden_dim``.

    Attributes
    ----------
    module_, criterion_, optimizer_ : objects
        Made by `initialize`, trained by `fit`.
    n_features_in_, n_outputs_ : int
        Widths of the X and y that were trained on.
    feature_names_in_ : ndarray of str
        Names of the columns of X, where it came as a data frame.
    history : skorch.history.History
        Per epoch, plain numbers: ``train_loss`` and ``valid_loss`` with the criterion's fixed weights, comparable from
        epoch to epoch and with ``box3d_valid_loss``, Box3D's own on the validation rows; each unweighted term, such as
        ``train_density``; ``train_objective``, what was minimised; ``skill`` on the validation rows (see
        `rheidae.scoring.metrics`); ``lr``; ``weight_density`` and so on with a weighting scheme, at the epoch's end;
        ``conflicts`` (pairs of tasks in a batch) with PCGrad; ``violation_*`` and ``multiplier_*`` with constraints.
        Validation judges the network as it is trained: `MixingModel` with its whole axial component.

    Notes
    -----
    A network is any module from ``(n, 48)`` to ``(n, 24)``; if its constructor takes ``n_features`` and ``n_outputs``,
    it is told them. A criterion is any module with ``terms(y_pred, y_true)``, which names scalar tensors, and a dict
    ``weights`` of fixed weights by the same names.

    Examples
    --------
    >>> from rheidae import FluxRegressor, load_dataset
    >>> data = load_dataset(".pdata/preprocessed_all.h5")              # doctest: +SKIP
    >>> model = FluxRegressor(random_state=0).fit(data.data, data.target)  # doctest: +SKIP
    >>> F_final = model.predict(data.data)                             # doctest: +SKIP
    """

    # A learning rate's schedule holds the optimizer: pickled beside it, they stay together and find their device.
    cuda_dependent_attributes_: ClassVar[list[str]] = [*NeuralNetRegressor.cuda_dependent_attributes_, "callbacks_"]

    parameters_: list[Tensor] = []  # noqa: RUF012 - replaced, never changed
    known_layers_: bool = False
    task_gradients_: TaskGradients | None = None
    flat_gradient_: Tensor | None = None
    fixed_: tuple[tuple[float, ...], Tensor] | None = None
    error_scale_: ErrorScale | None = None
    known_rows_: Any = None
    flat_target_: bool = False
    history_: Any = Unfitted(None)
    initialized_: Any = Unfitted(False)
    virtual_params_: Any = Unfitted(MappingProxyType({}))
    n_outputs_: int
    criterion_: Any

    def __init__(
        self,
        module: Any = None,
        *,
        layout: str = "four_flux",
        criterion: Any = None,
        predict_residual: bool = True,
        weighting: Any = "none",
        pcgrad: Any = False,
        constraints: Any = False,
        load_best: bool = True,
        val_split: float = 0.0,
        mixed_precision: bool = False,
        average_heavy: bool = True,
        random_state: Any = None,
        threads: int | None = 1,
        optimizer: Any = torch.optim.AdamW,
        lr: float = 1e-2,
        max_epochs: int = 60,
        batch_size: int = 32,
        grad_clip: float | None = 1.0,
        iterator_train: Any = BatchSlicer,
        iterator_valid: Any = BatchSlicer,
        train_split: Any = None,
        callbacks: Any = None,
        warm_start: bool = False,
        verbose: int = 0,
        device: Any = "cpu",
        compile: bool = False,
        dataset: Any = Dataset,
        predict_nonlinearity: Any = "auto",
        use_caching: Any = "auto",
        torch_load_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.layout = layout
        self.predict_residual = predict_residual
        self.weighting = weighting
        self.pcgrad = pcgrad
        self.constraints = constraints
        self.load_best = load_best
        self.val_split = val_split
        self.mixed_precision = mixed_precision
        self.average_heavy = average_heavy
        self.random_state = random_state
        self.threads = threads
        self.grad_clip = grad_clip
        super().__init__(
            module,
            criterion=criterion,
            optimizer=optimizer,
            lr=lr,
            max_epochs=max_epochs,
            batch_size=batch_size,
            iterator_train=iterator_train,
            iterator_valid=iterator_valid,
            train_split=train_split,
            callbacks=callbacks,
            warm_start=warm_start,
            verbose=verbose,
            device=device,
            compile=compile,
            dataset=dataset,
            predict_nonlinearity=predict_nonlinearity,
            use_caching=use_caching,
            torch_load_kwargs=torch_load_kwargs,
            **kwargs,
        )
        # skorch sets these here; by scikit-learn's rules an estimator that was not fitted has parameters alone.
        held: dict[str, Any] = self.__dict__
        for name in ("history_", "initialized_", "virtual_params_"):
            if not held[name]:
                # Not delattr, by which skorch takes the name for one of its components.
                del held[name]

    # --- what skorch asks for ------------------------------------------------------------------------------

    @property
    def _default_callbacks(self) -> list[tuple[str, Any]]:
        callbacks: list[tuple[str, Any]] = [("epoch_timer", EpochTimer())]
        if isinstance(self.weighting, Callback):
            callbacks.append(("weighting", self.weighting))
        elif isinstance(self.weighting, str) and self.weighting in SCHEMES:
            callbacks.append(("weighting", SCHEMES[self.weighting]()))
        for name, kind in (("pcgrad", PCGrad), ("constraints", LagrangianConstraints)):
            value = getattr(self, name)
            if isinstance(value, Callback):
                callbacks.append((name, value))
            elif _is_on(value):
                callbacks.append((name, kind()))
        if self.grad_clip is not None:
            callbacks.append(("grad_clip", GradientClipping(self.grad_clip)))
        if _is_on(self.load_best):
            callbacks.append(("load_best", BestWeights()))
        schedule = LRScheduler("CosineAnnealingLR", T_max=self.max_epochs)
        return [*callbacks, ("lr_schedule", schedule), ("print_log", PrintLog())]

    def set_params(self, **params: Any) -> FluxRegressor:
        """Set parameters; ``weighting__temperature`` and the like go to the callback of that name."""
        nested = {key: params.pop(key) for key in list(params) if key.startswith(_SHAPING_PREFIXES)}
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

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.target_tags.single_output = isinstance(self.layout, str) and self.layout == "generic"
        return tags

    def get_metadata_routing(self) -> Any:
        """Return what scikit-learn's metadata routing hands over: with `val_split`, ``groups`` to the split."""
        router = super().get_metadata_routing()
        if self.val_split and self.train_split is None:
            methods = MethodMapping()
            for method in ("fit", "partial_fit"):
                methods.add(caller=method, callee="split")
            router.add(splitter=GroupShuffleSplit(), method_mapping=methods)
        return router

    @property
    def predict_proba(self) -> Any:
        """Not here: `skorch.NeuralNet` has it for classifiers' sake."""
        raise AttributeError("FluxRegressor has no predict_proba: what it predicts are no probabilities")

    @property
    def _layout(self) -> Layout:
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout={self.layout!r} is not one of {', '.join(LAYOUTS)}")
        return LAYOUTS[self.layout](self.predict_residual, self.average_heavy)

    def _initialize_callbacks(self) -> FluxRegressor:
        if _is_callbacks(self.callbacks):
            return super()._initialize_callbacks()
        # set_params only stores; check_training_readiness refuses.
        self.callbacks_: list[tuple[str, Any]] = list(self._default_callbacks)
        return self

    def check_training_readiness(self) -> None:
        """Refuse parameters that cannot be trained with; skorch asks before it makes the components."""
        super().check_training_readiness()
        if not (isinstance(self.weighting, Callback) or self.weighting in (None, "none", *SCHEMES)):
            raise ValueError(
                f"weighting={self.weighting!r} is neither a callback nor one of none, {', '.join(SCHEMES)}"
            )
        if self._only(LagrangianConstraints, self._default_callbacks) and self._layout.name != "four_flux":
            raise ValueError(f"constraints={self.constraints!r} are about four-fluxes; layout={self.layout!r} has none")

        if not _is_callbacks(self.callbacks):
            raise ValueError(f"callbacks={self.callbacks!r} is no list of callbacks")

    def initialize_module(self) -> FluxRegressor:
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

    def initialize_criterion(self) -> FluxRegressor:
        """Make the criterion, and put what the weighting and the constraints train or remember into it."""
        criterion = self._layout.criterion if self.criterion is None else self.criterion
        self.criterion_ = as_terms(self.initialized_instance(criterion, self.get_params_for("criterion")))
        weighting, constraints = self._only(WeightingCallback), self._only(LagrangianConstraints)
        self._only(GradientCombiner)
        names = list(self.criterion_.weights)
        self.criterion_.weighting = weighting.make_module(len(names)) if weighting else None
        self.criterion_.constraints = constraints.make_module() if constraints else None
        return self

    def initialize_optimizer(self, triggered_directly: Any = None) -> FluxRegressor:
        """Make the optimizer; trained loss weights get a group without weight decay."""
        args, kwargs = self.get_params_for_optimizer("optimizer", self.module_.named_parameters())
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
        found = [callback for _, callback in callbacks or self.callbacks_ if isinstance(callback, kind)]
        if len(found) > 1:
            raise ValueError(f"{len(found)} callbacks are a {kind.__name__}; at most one can be used")
        return found[0] if found else None

    def get_dataset(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Rows as the network sees them; see `TableDataset`."""
        if isinstance(X, torch.utils.data.Dataset):
            return X
        layout = self._layout
        table, target = (layout.table(X, "X"), None) if y is None else layout.tables(X, y)
        x, scaled = layout.scaled(table, target)
        weight = None
        if sample_weight is not None:
            given = as_array(sample_weight) if isinstance(sample_weight, Tensor) else sample_weight
            weight = _check_sample_weight(given, table, dtype=np.float64, ensure_non_negative=True)
            weight = torch.from_numpy(weight / weight.mean())
        y_scaled = torch.zeros(len(x), 0) if scaled is None else torch.from_numpy(scaled)
        return TableDataset(torch.from_numpy(x), y_scaled, weight)

    def get_split_datasets(self, X: Any, y: Any = None, **fit_params: Any) -> tuple[Any, Any]:
        """Divide into training and validation rows; refuse what could not be trained on."""
        dataset = self.get_dataset(X, y)
        train, valid = dataset, None
        if self.train_split is not None:
            targets = (dataset.y,) if isinstance(dataset, TableDataset) else ()
            train, valid = self.train_split(dataset, *targets, **fit_params)
        elif self.val_split:
            seed = self.random_state if isinstance(self.random_state, int) else int(torch.randint(2**31 - 1, ()))
            train, valid = GroupSplit(self.val_split, seed)(dataset, groups=fit_params.get("groups"))
        for name, part in (("training", train), ("validation", valid)):
            if part is not None and len(part) == 0:
                raise FourFluxError(f"there are no {name} rows; give more rows, or set val_split (train_split) to none")
        self._check_batches(len(train))
        prepare = getattr(self.module_, "prepare", None)
        if prepare is not None:
            prepare(_some_rows(train)[0].to(self._device))
        self.known_rows_ = valid if valid is not None and len(valid) >= CALIBRATION_ROWS else train
        return train, valid

    def _check_batches(self, rows: int) -> None:
        batch = rows if self.batch_size == -1 else min(self.batch_size, rows)
        if batch == 1 and any(isinstance(module, BATCH_NORM) for module in self.module_.modules()):
            raise FourFluxError(
                f"{rows} training rows in batches of {self.batch_size}: batch norm has no variance in a batch of "
                "one row; give two rows at least, or set use_batch_norm=False"
            )

    def check_rows(self, X: Any, y: Any) -> FluxRegressor:
        """Refuse now what `fit` would refuse, by making the components for these training rows and nothing more.

        Parameters
        ----------
        X, y : array_like
            As for `fit`, without a part that validates.

        Raises
        ------
        FourFluxError, ValueError
            As `fit` does.
        """
        table, _ = self._seen(X, y, fresh=True)
        with self._random(fresh=True):
            self.initialize()
        self._check_batches(len(table))
        return self

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
        """Forward, the derivative of each term by the prediction, backward: all gradients are set afterwards.

        The record holds ``objective``, the terms, conflicts and violations (see `_train_names`), as one tensor that is
        not looked at here.
        """
        if not self.module_.training:
            self._set_training(True)
        x, y, weight = unpack(batch)
        criterion, combiner = self.criterion_, self._only(GradientCombiner)
        weighting, constraints = criterion.weighting, criterion.constraints
        wants_norms = weighting is not None and weighting.needs_norms
        # Norms alone, without the gradients of the tasks, come cheaper from the graph.
        y_pred, jacobian_of = self._forward(x, graph=wants_norms and combiner is None, **fit_params)
        values, cotangents = values_and_gradients(criterion, y_pred, y.to(y_pred.device, non_blocking=True), weight)
        fixed = self._fixed_weights(values)
        losses = fixed * values
        if weighting is None:
            scale, objective = fixed, losses.sum()
        else:
            weighting.start(losses)
            factors = weighting.factors()
            scale, objective = fixed * factors, (factors * losses).sum() + weighting.extra()
        record = [values]
        penalty_cotangent = None
        if constraints is not None:
            violations, penalty_cotangent = constraints.violations_and_cotangent(y_pred)
            objective = objective + constraints.penalty(violations)
            record.append(violations)
        norms = None
        if combiner is not None:
            cotangents = cotangents * scale[:, None, None]
            if penalty_cotangent is not None:
                cotangents = torch.cat([cotangents, penalty_cotangent[None]])
            table = jacobian_of(cotangents)
            gramian = product(table, table.T)
            self.flat_gradient_ = combiner.combine(table, gramian)
            record.append(conflicts(gramian)[None])
            if wants_norms:
                norms = self._shared_norms_from(table)[: len(values)]
        else:
            if wants_norms:
                shared = last_shared_parameters(self.module_)
                norms = jacobian_of(cotangents * scale[:, None, None], shared).norm(dim=1)
            cotangent = torch.tensordot(scale, cotangents, 1)
            if penalty_cotangent is not None:
                cotangent = cotangent + penalty_cotangent
            self.flat_gradient_ = jacobian_of(cotangent[None])[0]
        set_gradients(self.parameters_, self.flat_gradient_)
        if weighting is not None:
            weighting.backward(losses, norms)
        if constraints is not None:
            constraints.ascend(violations)
        return {"loss": objective, "y_pred": y_pred, "record": torch.cat([objective[None], *record])}

    def _forward(self, x: Tensor, graph: bool, **fit_params: Any) -> tuple[Tensor, Callable[..., Tensor]]:
        """Predictions, and a function from the tasks' derivatives by them to the tasks' gradients, a row each.

        Networks of known layers carry the derivatives of all tasks back at once (`rheidae.estimator.pullback`); others,
        and any with `graph`, go by autograd; with `graph` the function takes other parameters than all of them too.
        """
        if not self.parameters_:
            self.parameters_ = [p for p in self.module_.parameters() if p.requires_grad]
            # Who overrides `infer` wants it to be called.
            plain = type(self).infer is FluxRegressor.infer and not self.mixed_precision
            self.known_layers_ = plain and self._device.type == "cpu" and is_known(self.module_)
        if graph or not self.known_layers_:
            y_pred = self.infer(x, **fit_params)

            def by_graph(
                cotangents: Tensor, parameters: list[Tensor] | None = None, active: list[bool] | None = None
            ) -> Tensor:
                return jacobian(y_pred, cotangents, self.parameters_ if parameters is None else parameters, active)

            return y_pred, by_graph
        with torch.no_grad():
            network = self.module_.linearise(x)
            y_pred = self._layout.final(x, network.output, self.module_)
        return y_pred, lambda cotangents: self._task_gradients(len(cotangents)).fill(network, cotangents)

    def _task_gradients(self, tasks: int) -> TaskGradients:
        if self.task_gradients_ is None or len(self.task_gradients_.table) != tasks:
            self.task_gradients_ = TaskGradients(self.parameters_, tasks)
        return self.task_gradients_

    def _fixed_weights(self, like: Tensor) -> Tensor:
        """The criterion's fixed weights as a tensor, made once per training."""
        weights = tuple(self.criterion_.weights.values())
        if self.fixed_ is None or self.fixed_[0] != weights:
            self.fixed_ = (weights, torch.tensor(weights, dtype=like.dtype, device=like.device))
        return self.fixed_[1]

    def _shared_norms_from(self, table: Tensor) -> Tensor:
        """Norms of the weighted tasks' gradients on the last shared layer, cut from the Jacobian."""
        shared = {id(parameter) for parameter in last_shared_parameters(self.module_)}
        mask = [id(p) in shared for p in self.parameters_]
        parts = table.split([p.numel() for p in self.parameters_], dim=1)
        return torch.cat([part for part, chosen in zip(parts, mask, strict=True) if chosen], dim=1).norm(dim=1)

    def validation_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Loss with fixed weights, terms and error of a batch."""
        self._set_training(False)
        x, y, weight = unpack(batch)
        with torch.no_grad(), getattr(self.module_, "as_trained", nullcontext)():
            y_pred = self._validated(x, **fit_params)
            return {"loss": self.get_loss(y_pred, y), "y_pred": y_pred, "record": self._compare(y_pred, y, weight)}

    def _validated(self, x: Tensor, **fit_params: Any) -> Tensor:
        """Predictions for a validation batch."""
        return self.infer(x, **fit_params)

    def _compare(self, y_pred: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
        """The terms and, last, the layout's measure of error."""
        y = y.to(y_pred.device)
        weights = () if weight is None else (weight.to(y_pred.device),)
        return torch.stack([*self.criterion_.terms(y_pred, y, *weights).values(), self._layout.error(y_pred, y)])

    def _forget_batches(self) -> None:
        self.fixed_ = self.flat_gradient_ = self.task_gradients_ = None
        self.parameters_ = []

    def _train_names(self) -> list[str]:
        names = ["train_objective", *(f"train_{name}" for name in self.criterion_.weights)]
        if self.criterion_.constraints is not None:
            names += [f"violation_{name}" for name in VIOLATIONS]
        return names + ["conflicts"] * (self._only(GradientCombiner) is not None)

    def run_single_epoch(self, iterator: Any, training: bool, prefix: str, step_fn: Any, **fit_params: Any) -> None:
        """One pass over the batches; means over rows go to the history.

        Nothing is recorded per batch: reading a number out of a tensor stops an accelerator, and a history of
        every batch grows without bound.

        Raises
        ------
        RunError
            If a loss is not finite.
        """
        if iterator is None:
            return
        terms = [f"{prefix}_{name}" for name in self.criterion_.weights]
        names = self._train_names() if training else [*terms, "error"]
        means = EpochMeans(names, len(self.history))
        for batch in iterator:
            self.notify("on_batch_begin", batch=batch, training=training)
            step = step_fn(batch, **fit_params)
            means.add(len(batch[0]), step.pop("record"), self.last_checkpoint_)
            self.notify("on_batch_end", batch=batch, training=training, **step)
        found = means.finish(self.last_checkpoint_)
        fixed = self.criterion_.weights.values()
        found[f"{prefix}_loss"] = sum(weight * found[name] for name, weight in zip(terms, fixed, strict=True))
        if training:
            found |= self._training_numbers()
        else:
            found |= self._reference_numbers(iterator, found.pop("error"))
        for name, value in found.items():
            self.history.record(name, value)
        self.history.record(f"{prefix}_batch_count", len(iterator))

    def _training_numbers(self) -> dict[str, float]:
        """Learning rate, weights and multipliers at the end of an epoch."""
        numbers = {"lr": float(self.optimizer_.param_groups[0]["lr"])}
        weighting, constraints = self.criterion_.weighting, self.criterion_.constraints
        if weighting is not None:
            factors = weighting.factors().tolist()
            numbers |= {f"weight_{name}": w for name, w in zip(self.criterion_.weights, factors, strict=True)}
        if constraints is not None:
            multipliers = constraints.multipliers.tolist()
            numbers |= {f"multiplier_{name}": m for name, m in zip(VIOLATIONS, multipliers, strict=True)}
        return numbers

    def _reference_numbers(self, iterator: Any, error: float) -> dict[str, float]:
        """Box3D's loss on the validation rows, and the skill over it."""
        if self.box3d_valid_ is None:
            means = EpochMeans([*self.criterion_.weights, "error"], 0)
            for batch in iterator:
                x, y, weight = unpack(batch)
                reference = self._layout.reference(x)
                if reference is None:
                    return {}
                means.add(len(x), self._compare(reference.to(self._device), y, weight), None)
            found = means.finish(None)
            loss = sum(weight * found[name] for name, weight in self.criterion_.weights.items())
            self.box3d_valid_ = {"loss": loss, "error": found["error"]}
        numbers = {"box3d_valid_loss": self.box3d_valid_["loss"]}
        if self.box3d_valid_["error"] > 0:
            numbers["skill"] = 1 - error / self.box3d_valid_["error"]
        return numbers

    # --- what scikit-learn's users call --------------------------------------------------------------------

    def fit(self, X: Any, y: Any, sample_weight: Any = None, **fit_params: Any) -> FluxRegressor:
        """Train, starting anew unless ``warm_start=True``.

        Parameters
        ----------
        X : array_like, shape (n, 48)
            Initial four-fluxes and Box3D's answer, one common unit: an array of any strides and real type, a list, a
            data frame or a tensor. A torch data set such as `get_dataset` returns is taken as it is, with ``y=None``.
        y : array_like, shape (n, 24)
            Simulated final four-fluxes in the same unit.
        sample_weight : array_like, shape (n,), optional
            How much each row counts in every loss term, not negative; only ratios matter. Batches are drawn by rows, so
            that a weight of two is a row given twice in the mean, not in every batch.
        **fit_params
            ``groups``, for the split into training and validation rows.

        Raises
        ------
        FourFluxError
            If a shape is another, a number is not finite, or a row has no neutrinos.
        """
        fresh = not (self.warm_start and self.initialized_)
        return self._learn(X, y, sample_weight, fresh, _routing_method="fit", **fit_params)

    def partial_fit(
        self, X: Any, y: Any = None, classes: Any = None, sample_weight: Any = None, **fit_params: Any
    ) -> FluxRegressor:
        """Train on, from the present weights, for `max_epochs` more; see `fit`. `classes` has no meaning here."""
        return self._learn(X, y, sample_weight, not self.initialized_, **fit_params)

    def resume(
        self, X: Any, y: Any, state: dict[str, Any], sample_weight: Any = None, **fit_params: Any
    ) -> FluxRegressor:
        """Go on with a training that was stopped, as if it had not been.

        Parameters
        ----------
        X, y : array_like
            The rows of then, in the same order; `random_state` and every other parameter have to be those of then too.
        state : dict
            From `training_state`.
        sample_weight, **fit_params
            As for `fit`.

        Raises
        ------
        RunError
            If the state is of another version, or does not fit.
        """
        if state.get("format") != STATE_FORMAT:
            raise RunError(f"training state of format {state.get('format')!r}; this version reads {STATE_FORMAT}")
        return self._learn(X, y, sample_weight, True, state, **fit_params)

    def _learn(
        self, X: Any, y: Any, sample_weight: Any, fresh: bool, state: Any = None, **fit_params: Any
    ) -> FluxRegressor:
        """Train on rows that are looked at first, with new components if `fresh`."""
        with limited(self.threads):
            return self._learn_here(X, y, sample_weight, fresh, state, **fit_params)

    def _learn_here(
        self, X: Any, y: Any, sample_weight: Any, fresh: bool, state: Any, **fit_params: Any
    ) -> FluxRegressor:
        dataset = X
        if not isinstance(X, torch.utils.data.Dataset):
            dataset = self.get_dataset(*self._seen(X, y, fresh), sample_weight)
        with self._random(fresh):
            if fresh:
                self.initialize()
            if getattr(dataset, "weight", None) is not None and not takes_weights(self.criterion_):
                raise ValueError(
                    f"{type(self.criterion_).__name__} cannot weigh rows: give its terms() a third argument, weight, "
                    "or leave sample_weight out"
                )
            self.state_ = state
            super().partial_fit(dataset, None, **fit_params)
        known, self.known_rows_ = self.known_rows_, None
        if known is not None and len(known) > 1:
            self._calibrate(*(rows.double().numpy() for rows in _some_rows(known)))
        return self

    def _seen(self, X: Any, y: Any, fresh: bool) -> tuple[Any, Any]:
        """Return training rows as tables; learn their widths and names, or compare them with those of then."""
        fresh = fresh or not hasattr(self, "n_features_in_")  # initialize() knows no rows
        table, target = self._known(X, fresh, lambda: self._layout.tables(X, y))
        if fresh:
            self.n_outputs_, self.flat_target_ = target.shape[1], as_array(y).ndim == 1
        elif target.shape[1] != self.n_outputs_:
            raise FourFluxError(f"y has {target.shape[1]} columns; FluxRegressor was trained on {self.n_outputs_}")
        return table, target

    def _known(self, X: Any, reset: bool, read: Callable[[], Any]) -> Any:
        """Call `read`, and learn (`reset`) or compare names and number of X's columns: first, if it has a shape."""
        has_shape = getattr(X, "ndim", None) == 2
        if has_shape:
            validate_data(self, X, reset=reset, skip_check_array=True)
        result = read()
        if not has_shape:
            validate_data(self, X, reset=reset, skip_check_array=True)
        return result

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Return final four-fluxes.

        Parameters
        ----------
        X : array_like, shape (n, 48)
            Initial four-fluxes and Box3D's answer, one common unit; see `fit`.
        return_std : bool
            Whether to return standard deviations too: 90 % of the errors are expected within 1.64 of them (see
            `calibrate`).

        Returns
        -------
        F_final : ndarray, shape (n, 24)
            In the unit of `X` and its float type, but float64 where float32 could not hold the squares (numbers in
            1/cm^3), which scikit-learn's metrics form; never the residual. The correction is added to the base
            state in float64, so that a zero correction returns the base state bit for bit. Where a four-flux would
            leave the physical ones, ``N >= 0`` and ``|F| <= N``, the row's whole change from its initial state is
            shortened until none does; conservation laws hold as before.
        std : ndarray, shape (n, 24)
            With `return_std` only, in the same unit.

        Raises
        ------
        FourFluxError
            If a shape is another, a number is not finite, or a row has no neutrinos.
        RunError
            If the network's output is not finite.
        """
        self.check_is_fitted()
        layout = self._layout
        if isinstance(X, torch.utils.data.Dataset):
            X = _rows_of(X)[0]
        table = self._known(X, False, lambda: layout.table(X, "X"))
        if not return_std:
            answer = self._answer(table)
            return answer[:, 0] if self.flat_target_ else answer
        layout.require_std()
        if self.error_scale_ is None:
            raise NotFittedError("no standard deviations yet; call calibrate(X, y) with rows whose answer is known")
        answer = self._answer(table)
        return answer, layout.std(self.error_scale_, table, answer)

    def _answer(self, table: Any) -> Any:
        """Answers ``(n, outputs)`` for rows that are known to be good."""
        x, _ = self._layout.scaled(table, None)
        dataset = TableDataset(torch.from_numpy(x), torch.zeros(len(x), 0))
        self._set_training(False)
        parts = []
        with torch.no_grad():
            for batch in self.get_iterator(dataset, training=False):
                rows, _, _ = unpack(batch)
                parts.append(self.module_(rows.to(self._device)).cpu().numpy())
        if not parts:
            return np.empty((0, self._layout.n_outputs or self.n_outputs_), table.dtype)
        output = np.concatenate(parts)
        finite = np.isfinite(output).all(axis=1)
        if not finite.all():
            raise RunError(
                f"X, row {int(np.argmin(finite))}: the network's output is not finite (NaN or infinity); its weights "
                "are damaged or have grown without bound: train anew, with a smaller learning rate"
            )
        return self._layout.answer(table, output, self.module_)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Coefficient of determination R2, mean over columns, in float64: 1/cm^3 squared does not fit float32.

        Parameters
        ----------
        X, y : array_like
            As for `fit`.
        sample_weight : array_like, shape (n,), optional
            Weights of the rows.

        Returns
        -------
        float
            1 is perfect, 0 is the mean of `y`. How much nearer than Box3D a model is, say the scorers of
            `rheidae.scoring.metrics`.
        """
        self.check_is_fitted()
        table, target = self._known(X, False, lambda: self._layout.tables(X, y))
        return float(r2_score(np.float64(target), np.float64(self._answer(table)), sample_weight=sample_weight))

    def calibrate(self, X: Any, y: Any) -> FluxRegressor:
        """Learn how far off predictions are, for ``predict(X, return_std=True)``.

        `fit` does so by itself, on the validation rows if there are at least 50, else on the training rows. The
        errors of `MixingModel` there are hardly smaller than on rows it has not seen; those of a larger network are,
        and want rows held out.

        Parameters
        ----------
        X : array_like, shape (n, 48)
            Inputs.
        y : array_like, shape (n, 24)
            Simulated final four-fluxes.

        Returns
        -------
        FluxRegressor
            Itself.
        """
        self.check_is_fitted()
        self._layout.require_std()
        return self._calibrate(*self._layout.tables(X, y))

    def _calibrate(self, X: Any, y: Any) -> FluxRegressor:
        if len(X) < 2:
            raise FourFluxError(f"X has {len(X)} rows; two or more are needed to calibrate")
        self.error_scale_ = self._layout.error_scale(X, y, self._answer(X))
        return self


# Without gradients large batches are quicker, and the result is the same.
_DEFAULTS: dict[str, dict[str, Any]] = {"iterator_train": {"shuffle": True}, "iterator_valid": {"batch_size": 4096}}


def _is_callbacks(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, Callback | type | tuple | list) for item in value)
    return value is None or (isinstance(value, str) and value == "disable")


def _is_on(value: Any) -> bool:
    """Whether a switch is on; what is not a number is no switch."""
    return isinstance(value, int | np.bool_) and bool(value)


_SHAPING_PREFIXES = ("weighting__", "pcgrad__", "constraints__")


def _some_rows(dataset: Any) -> tuple[Tensor, Tensor]:
    """At most `ENOUGH_ROWS` rows of a data set, evenly spaced."""
    step = -(-len(dataset) // ENOUGH_ROWS)
    return _rows_of(Subset(dataset, range(0, len(dataset), step)) if step > 1 else dataset)


def _rows_of(dataset: Any) -> tuple[Tensor, Tensor]:
    """All rows of a data set that count, as two tensors."""
    x, y, weight = unpack(next(iter(BatchSlicer(dataset, len(dataset)))))
    return (x, y) if weight is None else (x[weight > 0], y[weight > 0])
