import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rheidae import box3d_flux
from rheidae.modules import ACTIVATIONS, ResidualFFIModel
from tests.states import conservation_error, random_rotation, random_states, turn


def inputs(F):
    """(n, 48) float64 tensor in units of the total density."""
    F = F / F[:, :, 3].sum(axis=1)[:, None, None]
    return torch.from_numpy(np.concatenate([F.reshape(-1, 24), box3d_flux(F, order=31).reshape(-1, 24)], axis=1))


def random_model(seed=0, **options):
    """A model in double precision whose head is random too, in evaluation mode."""
    torch.manual_seed(seed)
    model = ResidualFFIModel(hidden_dim=16, hidden_layers=2, **options).double()
    torch.nn.init.normal_(model.head.weight)
    torch.nn.init.normal_(model.head.bias)
    return model.eval()


def corrections(model, x):
    with torch.no_grad():
        return model(x).numpy().reshape(-1, 6, 4)


@pytest.mark.parametrize("frame", ["invariant", "lab"])
@pytest.mark.parametrize("use_batch_norm", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_starts_at_zero_and_every_parameter_learns(frame, use_batch_norm, activation):
    model = ResidualFFIModel(8, 2, activation, dropout=0.1, use_batch_norm=use_batch_norm, frame=frame)
    x = inputs(random_states(16)).float()
    assert (model(x) == 0).all()
    torch.nn.init.normal_(model.head.weight)
    (model(x) * torch.randn(16, 24)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_layers_are_those_asked_for():
    model = ResidualFFIModel(hidden_dim=32, hidden_layers=5, dropout=0.2)
    assert len(model.blocks) == 5
    assert sum(isinstance(module, torch.nn.Dropout) for module in model.modules()) == 5
    assert not any(isinstance(m, torch.nn.BatchNorm1d) for m in ResidualFFIModel(use_batch_norm=False).modules())


@pytest.mark.parametrize("options", [{"activation": "sine"}, {"frame": "mass"}])
def test_unknown_options(options):
    with pytest.raises(ValueError, match=next(iter(options.values()))):
        ResidualFFIModel(**options)


@given(st.integers(0, 10**6), st.booleans())
@settings(max_examples=20)
def test_turns_with_the_state(seed, reflect):
    F, rotation = random_states(5, seed), random_rotation(seed) * (-1 if reflect else 1)
    model, x = random_model(seed), inputs(F)
    turned = torch.from_numpy(turn(x.numpy().reshape(-1, 12, 4), rotation).reshape(-1, 48))
    np.testing.assert_allclose(corrections(model, turned), turn(corrections(model, x), rotation), atol=1e-12)


@given(st.integers(0, 10**6))
@settings(max_examples=20)
def test_conserves_whatever_the_weights(seed):
    F = random_states(5, seed)
    F /= F[:, :, 3].sum(axis=1)[:, None, None]
    change = corrections(random_model(seed), inputs(F))
    assert np.abs(change).max() > 1e-4
    assert conservation_error(F, F + change) < 1e-14


def test_exchange_of_mu_and_tau():
    F, model = random_states(20), random_model()
    exchange = [0, 2, 1, 3, 5, 4]
    exchanged = corrections(model, inputs(np.ascontiguousarray(F[:, exchange])))
    np.testing.assert_allclose(exchanged[:, exchange], corrections(model, inputs(F)), atol=1e-13)


def test_without_a_crossing_nothing_changes_and_a_closing_one_closes_continuously():
    F = np.zeros((7, 6, 4))
    # nubar_e streams forward; the crossing closes as its density falls to where g_e = gbar_e ahead.
    density = np.array([0.9, 0.6, 0.45, 0.40, 0.37, 0.36, 0.33])
    F[:, 0, 3] = 1
    F[:, 3, 2], F[:, 3, 3] = 0.4 * density, density
    x = inputs(F)
    size = (x[:, 24:] - x[:, :24]).abs().amax(dim=1).numpy()
    change = np.abs(corrections(random_model(), x)).max(axis=(1, 2))
    assert size[-1] == 0
    assert change[-1] == 0
    assert (np.diff(size) <= 0).all()
    assert (change[:-1] / np.maximum(size[:-1], 1e-30) < 100).all()


def test_lab_frame_sees_the_frame():
    F, rotation = random_states(5), random_rotation(3)
    model, x = random_model(frame="lab"), inputs(F)
    turned = torch.from_numpy(turn(x.numpy().reshape(-1, 12, 4), rotation).reshape(-1, 48))
    assert np.abs(corrections(model, turned) - turn(corrections(model, x), rotation)).max() > 1e-3
