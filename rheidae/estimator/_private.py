"""What is used here of other libraries though they call it private; ``tests/test_private.py`` says when it moves.

- ``torch.nn.modules.batchnorm._BatchNorm``: the one base of all batch norms, to ask a network whether it has any.
- ``sklearn.utils.validation._check_sample_weight``: what scikit-learn's own estimators check weights of rows by, with
  the messages that its tests of estimators look for.
- ``sklearn.utils.validation._check_feature_names_in``: the same for names of columns of a transformer.
- skorch's ``_params_to_validate``, there from the end of its constructor on; see `SetByFit`.

skorch is made for subclasses, and its `NeuralNet` says which methods with an underscore they may replace; `FluxNet`
replaces ``_default_callbacks``, ``_get_params_for_optimizer`` and the like there and nowhere else.
"""

from __future__ import annotations

from typing import Any

from sklearn.utils.validation import _check_feature_names_in as feature_names_in
from sklearn.utils.validation import _check_sample_weight as check_sample_weight
from torch.nn.modules.batchnorm import _BatchNorm as AnyBatchNorm

__all__ = ["AnyBatchNorm", "SetByFit", "check_sample_weight", "feature_names_in"]


class SetByFit:
    """Value of an attribute before `fit` has set it.

    By scikit-learn's rules a constructor sets parameters alone. skorch's sets a history and two marks too; they are
    taken away again, and this answers in their place. Not while skorch's constructor runs: it tells by their absence
    that it does.
    """

    def __init__(self, value: Any) -> None:
        self.value = value

    def __get__(self, net: Any, owner: type | None = None) -> Any:
        """Return the value, unless the constructor is at work."""
        if net is not None and "_params_to_validate" not in vars(net):
            raise AttributeError
        return self.value
