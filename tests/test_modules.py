import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rheidae.estimator.networks import ACTIVATIONS, MixingModel, ResidualFFIModel, conserving_part
from rheidae.mixing import _survival_kernels as kernels
from rheidae.mixing import sphere
from rheidae.mixing.quadrature import lebedev
from rheidae.mixing.survival import ASYMPTOTIC
from tests.estimators import inputs
from tests.states import conservation_error, nearby_states, random_rotation, random_states, turn


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


# ---------------------------------------------------------------- mixing model


def random_mixing(seed=0, prepared_on=None):
    """A mixing model in double precision whose weights are random throughout."""
    torch.manual_seed(seed)
    model = MixingModel(hidden_dim=8).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.prepare(inputs(random_states(200, seed + 1) if prepared_on is None else prepared_on))
    return model.eval()


def asymptotic_reference(F, order):
    """What the scheme without parameters leaves of states (n, 6, 4), total density 1, mu and tau alike."""
    nodes, weights = lebedev(order)
    four = np.vstack([nodes, np.ones(len(weights))])
    out = F.copy()
    for i, state in enumerate(F):
        e, ebar, x, xbar = sphere.distributions(state, nodes)
        G = (e - ebar) - (x - xbar)
        G *= np.sign(weights @ G)
        small = (weights * np.maximum(-G, 0)).sum()

        def lost(log_s, G=G):
            return 2 / 3 - np.where(G > 0, 2, 1) / 3 * G / np.hypot(G, np.exp(log_s))

        low, high = -60.0, 60.0
        for _ in range(100):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if weights @ (lost(middle) * G) < 0 else (low, middle)
        q = lost(high) * weights * -np.expm1(-small / kernels.FADE)
        for nu, moved in ((0, four @ (q * (e - x))), (3, four @ (q * (ebar - xbar)))):
            out[i, nu : nu + 3] += np.outer([-1, 0.5, 0.5], moved)
    return out


def test_untrained_mixing_model_is_the_asymptotic_scheme():
    F = random_states(50, alike=True)
    F /= F[:, :, 3].sum(axis=1)[:, None, None]
    model = MixingModel(order=131).double()  # the module turns its rule with the state, the reference does not
    model.prepare(inputs(F))
    expected = asymptotic_reference(F, 131)
    assert np.abs(expected - F).max() > 0.05
    for training in (True, False):
        np.testing.assert_allclose(F + corrections(model.train(training), inputs(F)), expected, atol=1e-5)


@pytest.mark.parametrize("layers", [1, 3])
def test_kernel_of_the_mixing_model_answers_as_torch_does(layers):
    torch.manual_seed(1)
    model = MixingModel(hidden_layers=layers, members=3)
    torch.nn.init.normal_(model.net.weights[-1])
    # Beams and unlike mu and tau among them.
    F = np.concatenate([random_states(100, max_flux_factor=f, alike=alike) for f in (0.6, 1) for alike in (0, 1)])
    x = inputs(F)
    model.prepare(x[:200].float())
    model.double().eval()
    change = model.answer(x.numpy())
    np.testing.assert_allclose(change.reshape(-1, 6, 4), corrections(model, x), rtol=0, atol=1e-12)
    assert (model.offset - model.parameters_of(x)).abs().amax(dim=0).min() > 0.01


@pytest.mark.parametrize(
    "moved", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), torch.nn.Module.float]
)
def test_kernel_sees_weights_that_change(moved):
    model, x = random_mixing(), inputs(random_states(5, alike=True))
    before = model.answer(x.numpy())
    model = moved(model)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    after = model.answer(x.numpy())
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(after.reshape(-1, 6, 4), corrections(model, x), rtol=0, atol=1e-6)


def test_members_take_turns_in_training_and_agree_on_a_mean():
    model, x = random_mixing(), inputs(random_states(9, alike=True))
    with torch.no_grad():
        mean = model.parameters_of(x)
        model.train()
        turns = []
        for model.first_row in (0, 1):
            turns.append(model.parameters_of(x))
    assert (turns[0] != turns[1]).any(dim=1).all()
    torch.testing.assert_close(torch.stack(turns).mean(dim=0), mean)


def test_axial_component_and_rise_come_off_their_ends():
    # At zero weight nothing of the axial component is in the answer, and b cannot exceed 1: both have to be able to
    # leave, and to come back from beyond.
    model, x = MixingModel(hidden_dim=8).double(), inputs(random_states(64, alike=True))
    model.prepare(x)
    target = torch.randn(64, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for offset in (0.0, -0.5):
        torch.nn.init.constant_(model.net.biases[-1], offset)
        model.zero_grad()
        (model(x) * target).sum().backward()
        assert (model.net.biases[-1].grad[..., [3, 5]] != 0).all()


def test_every_parameter_of_the_mixing_model_learns():
    torch.manual_seed(0)
    model = MixingModel(hidden_dim=8)
    x = inputs(random_states(64)).float()
    model.prepare(x)
    torch.nn.init.normal_(model.net.weights[-1])
    (model(x) * torch.randn(64, 24)).sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad.abs().sum(dim=-1) > 0).all(), name


def test_mixing_model_is_prepared_once():
    model = MixingModel()
    with pytest.raises(ValueError, match="sine"):
        MixingModel(activation="sine")
    first, second = inputs(random_states(30)).float(), inputs(random_states(30, 1)).float()
    model.prepare(first)
    mean = model.mean.clone()
    model.prepare(second)
    assert torch.equal(model.mean, mean)


SYMMETRIC = {"mixing": random_mixing, "residual": random_model}
BOTH = pytest.mark.parametrize("make", SYMMETRIC.values(), ids=SYMMETRIC)


@BOTH
@given(seed=st.integers(0, 10**6), reflect=st.booleans())
@settings(max_examples=15)
def test_any_weights_turn_with_the_state(make, seed, reflect):
    F, rotation = random_states(5, seed), random_rotation(seed) * (-1 if reflect else 1)
    model, x = make(seed), inputs(F)
    turned = torch.from_numpy(turn(x.numpy().reshape(-1, 12, 4), rotation).reshape(-1, 48))
    np.testing.assert_allclose(corrections(model, turned), turn(corrections(model, x), rotation), atol=1e-11)


@BOTH
@pytest.mark.parametrize("order", [[0, 2, 1, 3, 5, 4], [3, 4, 5, 0, 1, 2]], ids=["mu-tau", "nu-nubar"])
@given(seed=st.integers(0, 10**6))
@settings(max_examples=15)
def test_any_weights_exchange(make, order, seed):
    F, model = random_states(5, seed), make(seed)
    after = corrections(model, inputs(np.ascontiguousarray(F[:, order])))
    np.testing.assert_allclose(after, corrections(model, inputs(F))[:, order], atol=1e-11)


@BOTH
@given(seed=st.integers(0, 10**6))
@settings(max_examples=15)
def test_any_weights_conserve_and_leave_states_without_a_crossing_alone(make, seed):
    F, model = random_states(6, seed), make(seed)
    F[3:, [1, 2, 4, 5]] = F[3:, [1]]
    F[3:, 0] = F[3:, 3] * 1.5
    F /= F[:, :, 3].sum(axis=1)[:, None, None]
    change = corrections(model, inputs(F))
    assert conservation_error(F, F + change) < 1e-14
    assert (change[3:] == 0).all()


def test_mixing_model_fades_to_the_analytic_scheme_far_from_its_data():
    near = inputs(nearby_states(200, spread=0.003))
    model = random_mixing(prepared_on=nearby_states(200, seed=1, spread=0.003))
    analytic = torch.tensor(ASYMPTOTIC)
    with torch.no_grad():
        inside, outside = (model.parameters_of(x) for x in (near, inputs(random_states(200))))
    assert ((inside - analytic).abs().amax(dim=1) > 0.1).double().mean() > 0.95
    # Some of the random states happen to have invariants like those seen.
    assert ((outside - analytic).abs().amax(dim=1) < 1e-3).double().mean() > 0.9


def test_conserving_part_is_the_nearest_change_that_conserves():
    change = torch.randn(40, 24, dtype=torch.float64)
    kept = conserving_part(change)
    laws = []
    for nu in (0, 3):  # flavor sums of each component
        for component in range(4):
            law = np.zeros((6, 4))
            law[nu : nu + 3, component] = 1
            laws.append(law.ravel())
    for flavor in range(3):  # lepton number of each flavor
        law = np.zeros((6, 4))
        law[flavor, 3], law[flavor + 3, 3] = 1, -1
        laws.append(law.ravel())
    laws = np.array(laws)
    expected = change.numpy() - change.numpy() @ np.linalg.pinv(laws) @ laws
    np.testing.assert_allclose(kept.numpy(), expected, atol=1e-13)
