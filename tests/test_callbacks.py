import inspect

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback

from rheidae import FluxRegressor
from rheidae.estimator import callbacks
from rheidae.estimator.callbacks import BatchNormRecalibration, EpochProgress, RunCheckpoint
from rheidae.exceptions import OutputError
from tests.estimators import SMALL

ALL = [
    value
    for value in vars(callbacks).values()
    if inspect.isclass(value) and issubclass(value, Callback) and value.__module__.startswith(f"{callbacks.__name__}.")
]


@pytest.mark.parametrize("callback", ALL)
def test_constructors_only_store_and_hooks_have_skorch_signatures(callback):
    parameters = [p for p in inspect.signature(callback).parameters.values() if p.name not in ("kwargs", "args")]
    values = {p.name: object() for p in parameters}
    assert vars(callback(**values)) == values
    for name, method in vars(callback).items():
        if name.startswith("on_"):
            signature = list(inspect.signature(method).parameters.values())
            assert signature[1].name == "net"
            assert signature[-1].kind is inspect.Parameter.VAR_KEYWORD


@pytest.mark.parametrize("max_batches", [None, 1])
def test_recalibrated_statistics_are_the_exact_means(data, max_batches):
    X, y = data.data[:100], data.target[:100]
    recalibration = BatchNormRecalibration(0, max_batches)
    net = FluxRegressor(**SMALL, batch_size=50, callbacks=[("bn", recalibration)]).fit(X, y)
    seen = []
    norm = net.module_.input_block[0]
    handle = norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    net.predict(X)
    handle.remove()
    used = torch.cat(seen[::2])[: 50 if max_batches else 100]  # the others are of exchanged neutrinos
    torch.testing.assert_close(norm.running_mean, used.mean(dim=0), rtol=1e-4, atol=1e-5)
    variance = torch.stack([part.var(dim=0) for part in used.split(50)]).mean(dim=0)
    torch.testing.assert_close(norm.running_var, variance, rtol=1e-4, atol=1e-6)
    assert norm.momentum == pytest.approx(0.1)


def test_recalibration_waits_for_its_warmup_and_does_not_touch_weights(data):
    X, y = data.data[:100], data.target[:100]
    plain = FluxRegressor(**SMALL).fit(X, y)
    waiting = FluxRegressor(**SMALL, callbacks=[("bn", BatchNormRecalibration(99))]).fit(X, y)
    calibrated = FluxRegressor(**SMALL, callbacks=[("bn", BatchNormRecalibration())]).fit(X, y)
    np.testing.assert_array_equal(waiting.predict(X), plain.predict(X))
    for name, parameter in plain.module_.named_parameters():
        assert torch.equal(parameter, calibrated.module_.get_parameter(name)), name
    assert (calibrated.predict(X) != plain.predict(X)).any()


def test_an_error_while_saving_is_not_swallowed(data, tmp_path):
    (tmp_path / "file").write_text("")
    net = FluxRegressor(**SMALL, callbacks=[("save", RunCheckpoint(tmp_path / "file" / "folder", 1))])
    with pytest.raises(OutputError, match="file"):
        net.fit(data.data[:50], data.target[:50])


def test_progress_is_plain_lines_off_a_terminal(data, caplog):
    caplog.set_level("INFO")
    FluxRegressor(**SMALL, callbacks=[("progress", EpochProgress(3, lines=3))]).fit(data.data[:50], data.target[:50])
    assert [record.message.split()[:2] for record in caplog.records] == [["epoch", "1"], ["epoch", "2"], ["epoch", "3"]]
