"""What other libraries call private is where it was, and does what it did."""

import re
from pathlib import Path

import numpy as np
import pytest
from torch import nn

import rheidae.estimator
from rheidae.estimator._private import AnyBatchNorm, check_sample_weight, feature_names_in
from rheidae.estimator.transformers import UnitScaler

FOLDER = Path(rheidae.estimator.__file__).parent


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm])
def test_batch_norms_have_one_base(kind):
    assert issubclass(kind, AnyBatchNorm), (
        "torch has another base for batch norms: change rheidae/estimator/_private.py"
    )


def test_weights_of_rows_are_checked():
    X = np.ones((3, 2))
    np.testing.assert_array_equal(check_sample_weight([1, 2, 3], X, dtype=np.float64), [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="Negative values"):
        check_sample_weight([1, -2, 3], X, ensure_non_negative=True)


def test_names_of_columns_are_checked():
    step = UnitScaler().fit(np.ones((3, 2)))
    assert feature_names_in(step, None, generate_names=False) is None
    assert list(feature_names_in(step, ["a", "b"], generate_names=False)) == ["a", "b"]


def test_private_names_stand_in_one_module():
    pattern = re.compile(
        r"^\s*(?:from|import) (?:torch|sklearn|skorch|numba)[\w.]*(?:\._| import .*\b_[a-z])", re.MULTILINE
    )
    users = {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.py") if pattern.search(path.read_text())}
    assert users == {"_private.py"}
