import numpy as np
import pytest
import torch
from torch import nn

from rheidae import FluxRegressor
from rheidae.estimator.callbacks import LagrangianConstraints
from rheidae.estimator.networks import ResidualFFIModel
from tests.estimators import SMALL


def test_violations_by_their_definition():
    module = LagrangianConstraints(density_floor=0.05).make_module()
    y = torch.randn(40, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.2
    F = y.numpy().reshape(-1, 6, 4)
    N, length = F[..., 3], np.linalg.norm(F[..., :3], axis=2)
    expected = [np.maximum(-N, 0).mean(), np.maximum(length / np.maximum(N, 0.05) - 1, 0).mean()]
    np.testing.assert_allclose(module.violations(y).numpy(), expected, rtol=1e-12)
    values, gradients = module.values_and_gradients(y)
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-12)
    for k in range(2):
        leaf = y.clone().requires_grad_()
        torch.testing.assert_close(gradients[k], torch.autograd.grad(module.violations(leaf)[k], leaf)[0])
    c = values.clone().requires_grad_()
    torch.testing.assert_close(module.slopes(values), torch.autograd.grad(module.penalty(c), c)[0])


def test_physical_states_do_not_violate_and_a_vanishing_flux_has_a_gradient():
    module = LagrangianConstraints().make_module()
    module.multipliers.fill_(1.0)
    y = torch.zeros(3, 24)
    y[:, 3::4] = 1 / 6
    y.requires_grad_()
    violations = module.violations(y)
    assert (violations == 0).all()
    assert all((part == 0).all() for part in module.values_and_gradients(y))
    (gradient,) = torch.autograd.grad(module.penalty(violations), y)
    assert (gradient == 0).all()


def test_penalty_and_ascent_by_hand():
    module = LagrangianConstraints(lr_lambda=0.1, rho=2.0).make_module()
    c = torch.tensor([0.3, 0.5])
    for _ in range(2):
        module.ascend(c)
    torch.testing.assert_close(module.multipliers, torch.tensor([0.06, 0.1]))
    assert float(module.penalty(c)) == pytest.approx(0.06 * 0.3 + 0.1 * 0.5 + 0.3**2 + 0.5**2)
    module.ascend(torch.tensor([-9.0, -9.0]))
    assert (module.multipliers == 0).all()


class Wild(ResidualFFIModel):
    """Starts out far from physical."""

    def __init__(self, **options):
        super().__init__(**options, frame="lab", conserve=False, use_batch_norm=False)
        nn.init.normal_(self.head.weight, std=1.0)


OPTIONS = {
    **SMALL, "module": Wild, "predict_residual": False, "average_heavy": False, "batch_size": 50, "lr": 1e-2,
    "criterion__w_unphysical": 0, "criterion__w_direction": 0, "criterion__w_magnitude": 0,
    "criterion__w_distance": 0,
}  # fmt: skip


def multipliers_of(net):
    names = ("negative_density", "superluminal")
    return np.array([[row[f"multiplier_{name}"] for name in names] for row in net.history])


@pytest.mark.parametrize("pcgrad", [False, True])
def test_a_model_that_starts_out_violating_becomes_physical(data, pcgrad):
    X, y = data.data[:200], data.target[:200]
    constraints = LagrangianConstraints(lr_lambda=0.1, rho=10.0)
    net = FluxRegressor(**{**OPTIONS, "max_epochs": 60}, pcgrad=pcgrad, constraints=constraints).fit(X, y)
    first, last = net.history[0], net.history[-1]
    assert first["violation_negative_density"] > 0.01
    assert first["violation_superluminal"] > 1
    assert last["violation_negative_density"] < 1e-4
    assert last["violation_superluminal"] < 0.02
    multipliers = multipliers_of(net)
    assert (multipliers >= 0).all()
    assert (np.diff(multipliers, axis=0) >= 0).all()
    assert (multipliers[-1] > 0).all()


def test_multipliers_win_against_targets_that_are_unphysical(data):
    X = data.data[:200]
    y = X[:, :24].reshape(-1, 6, 4).copy()
    y[:, 2, 3] *= -0.5
    y = y.reshape(-1, 24)
    options = {**OPTIONS, "max_epochs": 100, "criterion__w_residual_l1": 0}
    free = FluxRegressor(**options).fit(X, y)
    net = FluxRegressor(**options, constraints=LagrangianConstraints(lr_lambda=1.0, rho=1.0)).fit(X, y)

    def negative_density(model):
        with torch.no_grad():
            return float(LagrangianConstraints().make_module().violations(model.infer(model.get_dataset(X).x))[0])

    assert negative_density(free) > 5e-3
    assert negative_density(net) < 0.1 * negative_density(free)
    assert (multipliers_of(net) >= 0).all()


class Tame(ResidualFFIModel):
    """Starts out with small changes, of either sign."""

    def __init__(self, **options):
        super().__init__(**options, use_batch_norm=False)
        nn.init.normal_(self.head.weight, std=0.01)


def test_constraints_see_the_final_flux_not_the_residual(data):
    """Box3D's answer with a small change is physical, the change by itself is not; and the other way round."""
    X, y = data.data[:60], data.target[:60]
    options = {**SMALL, "module": Tame, "max_epochs": 1, "lr": 0.0, "constraints": True}
    net = FluxRegressor(**options).fit(X, y)
    violations = LagrangianConstraints().make_module().violations
    with torch.no_grad():
        final = net.infer(net.get_dataset(X).x)
    alone = violations(final - net.get_dataset(X).x[:, 24:])
    assert float(alone[0]) > 0
    assert float(alone[1]) > 0
    assert net.history[0, "violation_negative_density"] == 0
    assert net.history[0, "violation_superluminal"] < 1e-6
    X = X.copy()
    X[:, 24:27] = 2 * X[:, 27:28]  # nu_e, faster than light
    net = FluxRegressor(**options).fit(X, y)
    assert net.history[0, "violation_superluminal"] == pytest.approx((12**0.5 - 1) / 6, rel=0.05)
