"""Neighbours of the asymptotic scheme, against derivatives of the parameterised scheme and symmetries."""

import numpy as np

from rheidae import box3d, mix
from rheidae.mixing.survival import ASYMPTOTIC, PARAMETERS, mixing_change
from rheidae.mixing.variation import VARIATIONS, variations
from tests.states import random_rotation, random_states, turn

F = random_states(60, 3, alike=True)
F /= F[:, :, 3].sum(axis=1)[:, None, None]


def sizes(change):
    """Rms of the components of the flux, and density, of ``(n, 2, 4)``."""
    return np.stack([np.sqrt(np.square(change[..., :3]).mean(axis=-1)), np.abs(change[..., 3])], axis=-1)


def test_they_are_derivatives_of_the_parameterised_scheme():
    jacobian = mixing_change(F, np.tile(ASYMPTOTIC, (len(F), 1)), derivatives=True, order=53).jacobian
    ours = variations(F, order=53)[:, 0]
    crossing = ours[:, 1, 0, 0] > 1e-4
    assert crossing.sum() > 30
    rise = sizes(jacobian[:, PARAMETERS.index("rise")].reshape(-1, 2, 4))
    np.testing.assert_allclose(ours[crossing, 1], rise[crossing], rtol=0.02, atol=2e-5)
    # A bounded function of the same sign stands for the logarithm of G/s.
    steep = sizes(jacobian[:, PARAMETERS.index("log_a")].reshape(-1, 2, 4))
    assert 0.3 < np.median(ours[crossing, 0, :, 0] / steep[crossing, :, 0]) < 0.7


def test_the_whole_change_is_in_doubt_where_the_crossing_is_shallow():
    answer = box3d(F)
    depth = np.minimum(answer.I_plus, answer.I_minus) / np.maximum(answer.I_plus, answer.I_minus)
    change = sizes((F - mix(F, "asymptotic", order=53))[:, [0, 3]])
    part = variations(F, order=53)[:, 0, VARIATIONS.index("amount")] / np.where(change > 0, change, 1.0)
    np.testing.assert_allclose(part, np.where(change > 0, np.exp(-depth / 0.06)[:, None, None], 0), rtol=0.1, atol=1e-4)
    assert (part > 0.3).any()


def test_symmetries():
    unlike = random_states(40, 4)
    ours = variations(unlike)
    assert VARIATIONS == ("shape", "rise", "amount")
    np.testing.assert_allclose(variations(turn(unlike, random_rotation(2))), ours, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(variations(3e33 * unlike), ours, rtol=1e-9, atol=1e-15)
    # Lepton number: neutrinos and antineutrinos of a pair lose the same number.
    np.testing.assert_allclose(ours[..., 0, 1], ours[..., 1, 1], atol=1e-12)
    exchanged = variations(np.ascontiguousarray(unlike[:, [0, 2, 1, 3, 5, 4]]))
    np.testing.assert_allclose(exchanged[:, [1, 0, 2]], ours, rtol=1e-6, atol=1e-9)
    conjugated = variations(np.ascontiguousarray(unlike[:, [3, 4, 5, 0, 1, 2]]))
    np.testing.assert_allclose(conjugated[:, :, :, ::-1], ours, rtol=1e-6, atol=1e-9)


def test_like_mu_and_tau_are_the_limit_of_unlike_ones():
    nearly = F.copy()
    nearly[:, 1] *= 1 + 1e-9
    np.testing.assert_allclose(variations(nearly), variations(F), rtol=1e-4, atol=1e-7)


def test_without_a_crossing_there_is_none():
    still = np.zeros((1, 6, 4))
    still[:, :, 3] = 1.0
    assert (variations(still) == 0).all()
