import numpy as np
import pytest
import torch

from rheidae.estimator.losses import TERMS, FourFluxLoss


def pair(n=50, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pred, true = (torch.randn(n, 24, generator=generator, dtype=torch.float64) * 0.1 for _ in range(2))
    return pred, true


def test_terms_by_their_definitions():
    pred, true = pair()
    terms = FourFluxLoss(eps=1e-30, density_floor=0.05).terms(pred, true)
    p, t = pred.numpy().reshape(-1, 6, 4), true.numpy().reshape(-1, 6, 4)
    length_p, length_t = np.linalg.norm(p[..., :3], axis=2), np.linalg.norm(t[..., :3], axis=2)
    expected = {
        "density": np.mean((p[..., 3] - t[..., 3]) ** 2),
        "magnitude": np.mean((length_p - length_t) ** 2),
        "direction": np.mean((1 - (p * t)[..., :3].sum(2) / (length_p * length_t))[length_t > 0.05]),
        "unphysical": np.mean(np.maximum(length_p / np.maximum(p[..., 3], 0.05) - 1, 0)),
        "residual_l1": np.mean(np.abs(p - t)),
        "distance": np.mean(np.linalg.norm(p - t, axis=2)),
    }
    assert tuple(terms) == TERMS
    for name, value in expected.items():
        assert float(terms[name]) == pytest.approx(value, rel=1e-12), name


@pytest.mark.parametrize("weights", [{}, {"w_density": 0, "w_unphysical": 0}], ids=["all", "some"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_kernel_follows_the_formulas(weights, weighted):
    """Values and derivatives, with fluxes and densities that are zero, negative and below the floor."""
    pred, true = pair(seed=1)
    pred[0], pred[1, 3], true[2, :3], pred[3] = 0, 1e-4, 0, true[3]
    weight = torch.linspace(0, 2, len(pred), dtype=pred.dtype) if weighted else None
    criterion = FourFluxLoss(**weights)
    leaf = pred.clone().requires_grad_()
    formulas, terms = (f(leaf, true, weight) for f in (criterion.formulas, criterion.terms))
    values, gradients = criterion.values_and_gradients(pred, true, weight)
    assert list(terms) == list(formulas) == list(criterion.weights)
    for name, value, gradient in zip(formulas, values, gradients, strict=True):
        for term in (formulas[name], terms[name]):
            torch.testing.assert_close(value, term.detach(), rtol=1e-12, atol=0)
            by_autograd = torch.autograd.grad(term, leaf, retain_graph=True)[0]
            torch.testing.assert_close(gradient, by_autograd, rtol=1e-10, atol=1e-14)


def test_weights_combine_linearly_and_zero_leaves_out():
    pred, true = pair()
    loss = FourFluxLoss(2.0, 0, 0.5, 0, 3.0, 0)
    terms = loss.terms(pred, true)
    assert set(terms) == {"density", "direction", "residual_l1"}
    expected = 2 * terms["density"] + 0.5 * terms["direction"] + 3 * terms["residual_l1"]
    assert float(loss(pred, true)) == pytest.approx(float(expected), rel=1e-14)
    with pytest.raises(ValueError, match="at least one"):
        FourFluxLoss(0, 0, 0, 0, 0, 0)


def test_perfect_prediction_costs_nothing():
    true = pair()[1].reshape(-1, 6, 4).clone()
    true[..., 3] = 1
    true = true.reshape(-1, 24)
    for name, value in FourFluxLoss().terms(true, true).items():
        assert float(value) == pytest.approx(0, abs=1e-9), name


@pytest.mark.parametrize("make", ["zero fluxes", "empty species"])
def test_gradients_stay_finite(make):
    pred, true = (z.float().reshape(-1, 6, 4).clone() for z in pair())
    if make == "zero fluxes":
        pred[:, 0, :3], true[:, 1, :3] = 0, 0
    else:
        pred[:, 0], true[:, 0] = 0, 0
    pred = pred.reshape(-1, 24).requires_grad_()
    FourFluxLoss()(pred, true.reshape(-1, 24)).backward()
    assert torch.isfinite(pred.grad).all()


def test_superluminal_flux_is_pushed_back():
    pred = torch.zeros(1, 24, requires_grad=True)
    with torch.no_grad():
        pred[0, :4] = torch.tensor([0.3, 0.0, 0.0, 0.2])
    FourFluxLoss(0, 0, 0, 1, 0, 0)(pred, torch.zeros(1, 24)).backward()
    assert pred.grad[0, 0] > 0
    assert pred.grad[0, 3] < 0


def test_weights_of_rows_are_rows_given_more_than_once():
    pred, true = pair(seed=5)
    weight = torch.tensor([1.0, 2.0, 3.0, 0.0, 4.0] * 10, dtype=pred.dtype)
    rows = torch.repeat_interleave(torch.arange(len(pred)), weight.long())
    criterion = FourFluxLoss()
    repeated = criterion.terms(pred[rows], true[rows])
    for name, value in criterion.terms(pred, true, weight / weight.mean()).items():
        assert float(value) == pytest.approx(float(repeated[name]), rel=1e-12), name
