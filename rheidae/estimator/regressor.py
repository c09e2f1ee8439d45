"""The estimator: scikit-learn outside, torch inside."""

from __future__ import annotations

import inspect
from types import MappingProxyType
from typing import Any

import torch
from sklearn.model_selection import GroupShuffleSplit
from sklearn.utils.metadata_routing import MethodMapping
from skorch.dataset import Dataset

from rheidae.estimator._private import SetByFit
from rheidae.estimator.answers import Answering
from rheidae.estimator.batches import ENOUGH_ROWS, BatchSlicer, TableDataset, chosen_rows, some_rows
from rheidae.estimator.layouts import as_array
from rheidae.estimator.resuming import STATE_FORMAT
from rheidae.exceptions import FourFluxError, RunError
from rheidae.system.threads import limited, taking_turns


class FluxRegressor(Answering):
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
        Of networks that leave it open, such as `ResidualFFIModel`. True: the network predicts what Box3D leaves
        unexplained, and one that outputs zero is Box3D. False: it predicts the change from the initial state and has to
        learn what Box3D knows. `MixingModel`, the default, predicts that change either way, by survival probabilities.
        `predict` and `score` return and compare final four-fluxes either way.
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
        Threads of torch and Numba while it is trained and while it predicts; afterwards they have those of before. More
        than one gain nothing at these sizes, and cost much where other processes use the processors: a worker of a
        search is to have one. None leaves them alone. Estimators that are fitted in several threads of one process
        take turns, since torch's generator is the process's; processes work side by side. In a forked process it is
        always one.
    lr, max_epochs, batch_size : float, int, int
        Of AdamW, which has betas of 0.9 and 0.99 and decays weights, not biases. The learning rate rises to `lr` and
        falls again over `max_epochs`, in every call of `fit` and `partial_fit` anew (the callback ``lr_schedule``,
        `rheidae.estimator.callbacks.OneCycle`: ``callbacks__lr_schedule=None`` keeps it constant, and a scheduler among
        `callbacks` takes its place). Some thousand steps are enough: tens of thousands of rows
        want fewer epochs.
    grad_clip : float or None
        Largest norm of the network's gradient in a step. Trained loss weights have a scale of their own and do not
        count.
    train_split : callable or None
        ``skorch.dataset.ValidSplit`` or ``predefined_split``, in place of `val_split`.
    optimizer, iterator_train, iterator_valid : classes
        Their arguments go by ``optimizer__`` and so on.
    callbacks, warm_start, verbose, device, torch_load_kwargs
        As of `skorch.NeuralNet`. Its callbacks that score do so by `predict` and `score`, in the unit of X and y and
        under the weights of the epoch's end; ``scoring`` may be a name of `rheidae.scoring.metrics.get_scorer` too.
    compile, dataset, predict_nonlinearity, use_caching
        skorch's; here they have no meaning, and other values are refused.
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
        epoch to epoch and with ``box3d_valid_loss``, Box3D's own on the validation rows; whether they are the smallest
        so far, ``train_loss_best`` and ``valid_loss_best``; each unweighted term, such as
        ``train_density``; ``train_objective``, what was minimised; ``skill`` on the validation rows (see
        `rheidae.scoring.metrics`); ``lr``; ``weight_density`` and so on with a weighting scheme, at the epoch's end;
        ``conflicts`` (pairs of tasks in a batch) with PCGrad; ``violation_*`` and ``multiplier_*`` with constraints.

    Notes
    -----
    A network is any module from ``(n, 48)`` to ``(n, 24)``; if its constructor takes ``n_features`` and ``n_outputs``,
    it is told them. A criterion is any module with ``terms(y_pred, y_true)``, which names scalar tensors, and a dict
    ``weights`` of fixed weights by the same names. Both are where a method of skorch's would be overridden: subclasses
    that override ``infer``, ``evaluation_step``, ``forward_iter`` or ``get_loss`` are refused.

    ``history[-1, "batches"]`` holds the batches of the last epoch, with ``train_loss`` and ``train_batch_size``.

    Examples
    --------
    >>> from rheidae import FluxRegressor, load_dataset
    >>> data = load_dataset(".pdata/preprocessed_all.h5")              # doctest: +SKIP
    >>> model = FluxRegressor(random_state=0).fit(data.data, data.target)  # doctest: +SKIP
    >>> F_final = model.predict(data.data)                             # doctest: +SKIP
    """

    history_: Any = SetByFit(None)
    initialized_: Any = SetByFit(False)
    virtual_params_: Any = SetByFit(MappingProxyType({}))

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
        max_epochs: int = 300,
        batch_size: int = 64,
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
        use_caching: bool = False,
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
        own: dict[str, Any] = self.__dict__
        for name in ("history_", "initialized_", "virtual_params_"):
            if not own[name]:
                # Not delattr, by which skorch takes the name for one of its components.
                del own[name]

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

    def fit(self, X: Any, y: Any, sample_weight: Any = None, **fit_params: Any) -> FluxRegressor:
        """Train, starting anew unless ``warm_start=True``.

        Parameters
        ----------
        X : array_like, shape (n, 48), (..., 24) or (..., 6, 4)
            Initial four-fluxes and Box3D's answer, one common unit, or the former alone (see `predict`): an array of
            any strides and real type, a list, a data frame or a tensor. A torch data set such as `get_dataset` returns
            is taken as it is, with ``y=None``.
        y : array_like, shape (n, 24) or (..., 6, 4)
            Simulated final four-fluxes in the same unit.
        sample_weight : array_like, shape (n,), optional
            How much each row counts in every loss term, not negative; only ratios matter. Batches are drawn by rows, so
            that a weight of two is a row given twice in the mean, not in every batch.
        **fit_params
            ``groups``, for the split into training and validation rows.

        Raises
        ------
        FourFluxError
            If a shape is another, a number is not finite, a row has no neutrinos, or the total density of y is, in the
            median of all rows, more than ten times that of X, less than a tenth of it, or negative, as in two units or
            of a change in place of a final state. What is off by less is for preprocessing to see (`tolerances`).
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
        with taking_turns(), limited(self.threads), torch.inference_mode(False):
            if not isinstance(X, torch.utils.data.Dataset):
                dataset = self.get_dataset(*self._seen(X, y, fresh), sample_weight)
            elif sample_weight is None:
                dataset = self.get_dataset(X)
            else:
                raise ValueError("sample_weight beside a data set: give it to get_dataset, or fit X and y")
            with self._random(fresh):
                if fresh:
                    self.initialize()
                    self.error_scale_ = None
                takes_weights = "weight" in inspect.signature(self.criterion_.terms).parameters
                if getattr(dataset, "weight", None) is not None and not takes_weights:
                    raise ValueError(
                        f"{type(self.criterion_).__name__} cannot weigh rows: give its terms() a third argument, "
                        "weight, or leave sample_weight out"
                    )
                self.state_ = state
                super().partial_fit(dataset, None, **fit_params)
            known, self.known_rows_ = self.known_rows_, None
            if known is not None:
                known, rows = chosen_rows(known)
                if isinstance(known, TableDataset):  # the truth as it was given: chance between mu and tau is an error
                    rows = rows if known.weight is None else rows[known.weight[rows] > 0]
                    rows = rows[:: max(1, -(-len(rows) // ENOUGH_ROWS))]
                    tables = [as_array(table)[rows.numpy()] for table in (known.X, known.y)]
                else:
                    chosen = some_rows(torch.utils.data.Subset(known, rows.tolist()))
                    tables = [table.double().numpy() for table in chosen]
                if len(tables[0]) > 1:
                    self._calibrate(*tables)
        return self

    def _seen(self, X: Any, y: Any, fresh: bool) -> tuple[Any, Any]:
        """Return training rows as tables; learn their widths and names, or compare them with those of then."""
        fresh = fresh or not hasattr(self, "n_features_in_")  # initialize() knows no rows
        X, y = self._layout.rows(X, self._needs_box3d), self._layout.targets(y)
        table, target = self._known(X, fresh, lambda: self._layout.tables(X, y))
        if fresh:
            self.n_outputs_, self.flat_target_ = target.shape[1], as_array(y).ndim == 1
        elif target.shape[1] != self.n_outputs_:
            raise FourFluxError(f"y has {target.shape[1]} columns; FluxRegressor was trained on {self.n_outputs_}")
        return table, target
