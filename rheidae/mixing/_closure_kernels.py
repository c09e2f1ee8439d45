"""Numba kernels of the Minerbo (maximum-entropy) closure; no validation here.

Interface (all callable from user ``@njit`` code)
-------------------------------------------------
pow2_pair(t)             -> 2**t, 2**-t                 abs(t) < 1022; 6e-16 relative
pow2(t)                  -> 2**t                        abs(t) < 1022; 6e-16 relative
langevin_ratio(f)        -> Z/f with coth(Z) - 1/Z = f  f in [0, 1]; 5e-16 relative
inverse_langevin(f)      -> Z
z_over_sinh(Z)           -> Z / sinh(Z), for Z < 690
"""

from __future__ import annotations

import numpy as np

from rheidae.system.numba import kernel, scalar_kernel

LOG2_E = 1.4426950408889634

# Powers of two
# -------------
# Adding 1.5 * 2**52 rounds t to the nearest integer k and leaves k in the low bits of the sum, so that a shift by 52
# turns these bits into an exponent and no conversion to integer is needed. r = t - k is exact and abs(r) <= 1/2.
# Then 2**r = even(r**2) + r * odd(r**2), and 2**-r = even - r * odd costs one more operation: this is why the rules'
# antipodal pairs n, -n are evaluated together. Coefficients: Chebyshev interpolation of
# (cosh(r ln 2) - 1) / r**2 and sinh(r ln 2) / r in r**2 on [0, 1/4]; even(0) = 1 exactly, so isotropic species
# are exact.
_ROUND = 6755399441055744.0
_ONE_BITS = 0x3FF0000000000000
_C2, _C4, _C6, _C8, _C10 = (
    0.24022650695910075,
    0.00961812910761865,
    0.00015403530424814237,
    1.3215451605070366e-06,
    7.070984299903108e-09,
)
_S1, _S3, _S5, _S7, _S9 = (
    0.6931471805599462,
    0.0555041086646514,
    0.0013333558200859898,
    1.5252672876097416e-05,
    1.020591655545983e-07,
)
# One term more where sinh itself is wanted and the relative error at small arguments counts.
_T1, _T3, _T5, _T7, _T9, _T11 = (
    0.6931471805599453,
    0.055504108664821625,
    0.0013333558146406436,
    1.525273384160181e-05,
    1.0178057064575675e-07,
    4.4558220246032885e-10,
)


@scalar_kernel
def pow2_pair(t):
    """Return ``2**t`` and ``2**-t``; requires ``abs(t) < 1022``."""
    rounded = t + _ROUND
    r = t - (rounded - _ROUND)
    s = r * r
    even = 1.0 + s * (_C2 + s * (_C4 + s * (_C6 + s * (_C8 + s * _C10))))
    odd = r * (_S1 + s * (_S3 + s * (_S5 + s * (_S7 + s * _S9))))
    k = np.float64(rounded).view(np.int64) << 52
    up = np.int64(np.float64(even + odd).view(np.int64) + k)
    down = np.int64(np.float64(even - odd).view(np.int64) - k)
    return up.view(np.float64), down.view(np.float64)


@scalar_kernel
def pow2(t):
    """Return ``2**t``; requires ``abs(t) < 1022``."""
    return pow2_pair(t)[0]


@scalar_kernel
def z_over_sinh(Z):
    """Return ``Z / sinh(Z)`` without cancellation at small ``Z``; requires ``0 <= Z < 690``."""
    # sinh = [2**k (even + odd) - 2**-k (even - odd)] / 2, with the small term 2**k - 2**-k formed exactly.
    t = Z * LOG2_E
    rounded = t + _ROUND
    r = t - (rounded - _ROUND)
    s = r * r
    even = 1.0 + s * (_C2 + s * (_C4 + s * (_C6 + s * (_C8 + s * _C10))))
    odd = r * (_T1 + s * (_T3 + s * (_T5 + s * (_T7 + s * (_T9 + s * _T11)))))
    k = np.float64(rounded).view(np.int64) << 52
    up = np.int64(_ONE_BITS + k).view(np.float64)
    down = np.int64(_ONE_BITS - k).view(np.float64)
    twice_sinh = (up + down) * odd + (up - down) * even
    # Near the smallest doubles the quotient would be one of two roundings.
    return 2.0 * Z / twice_sinh if Z > 1e-150 else 1.0


# Inverse Langevin function
# -------------------------
# f < 0.3: Z/f is a polynomial in f**2 (Chebyshev interpolation, 1.5e-16); it needs no division and is smooth at f = 0.
# f >= 0.3: with h = 1 - f and y = 1/Z, a rational start value y(h) = h * q(h) / p(h) (relative error 6e-5), then one
# Householder step of fourth order on L(Z) - f, which leaves 1e-17. The residual is written as
#     L - f = (h - y) + (coth Z - 1),        coth Z - 1 = 2 e / (1 - e),  e = exp(-2 Z),
# where every term tends to zero with h, so nothing cancels when f -> 1. Derivatives, with csch^2 Z = 4 e / (1 - e)^2:
#     L' = y^2 - csch^2,  L'' = -2 y^3 + 2 coth csch^2,  L''' = 6 y^4 - 4 coth^2 csch^2 - 2 csch^4,
# and with p = (L - f)/L', a = L''/(2 L'), b = L'''/(6 L') the step is Z -= p (1 + p (a + p (2 a^2 - b))).
# Both ranges are always evaluated and one is selected: a loop over species then vectorises.
# f >= 1 is read as the largest double below 1, where Z = 9e15.
_SMALL_F = 0.3
_ULP_BELOW_ONE = 1.1102230246251565e-16
_L0, _L1, _L2, _L3, _L4, _L5, _L6, _L7, _L8, _L9 = (
    2.9999999999999996,
    1.8000000000005068,
    1.6971428569574147,
    1.7588571691240042,
    1.8718645344151197,
    1.9973231155816016,
    2.110896433912728,
    2.2317444216428144,
    1.9855445121846187,
    3.546411760967224,
)
_P0, _P1, _P2, _P3, _P4 = (
    0.9999422363294967,
    -2.3043688665425,
    6.9429937089935985,
    -0.4945214827091287,
    -5.167400346434315,
)
_Q1, _Q2, _Q3 = -2.3133660836119994, 7.172526117686299, -2.4169396190822217


@scalar_kernel
def langevin_ratio(f):
    """Return ``Z/f`` where ``coth(Z) - 1/Z = f``, for ``f`` in [0, 1]; 3 at ``f = 0``."""
    s = f * f
    low = _L0 + s * (_L1 + s * (_L2 + s * (_L3 + s * (_L4 + s * (_L5 + s * (_L6 + s * (_L7 + s * (_L8 + s * _L9))))))))
    h = 1.0 - f
    h = _ULP_BELOW_ONE if h < _ULP_BELOW_ONE else h
    y = h * (1.0 + h * (_Q1 + h * (_Q2 + h * _Q3))) / (_P0 + h * (_P1 + h * (_P2 + h * (_P3 + h * _P4))))
    Z = 1.0 / y
    t = 2.0 * LOG2_E * Z
    e = pow2(-1000.0 if t > 1000.0 else -t)
    c = 1.0 / (1.0 - e)
    coth_1 = 2.0 * e * c
    csch2 = 2.0 * coth_1 * c
    coth = 1.0 + coth_1
    slope = 1.0 / (y * y - csch2)
    p = ((h - y) + coth_1) * slope
    a = (coth * csch2 - y * y * y) * slope
    b = (y * y * y * y - csch2 * (2.0 * coth * coth + csch2) * (1.0 / 3.0)) * slope
    high = (Z - p * (1.0 + p * (a + p * (2.0 * a * a - b)))) / f
    return low if f < _SMALL_F else high


@scalar_kernel
def peak(Z):
    """Return the Minerbo distribution at its peak, times 4 pi/N: ``2 Z/(1 - exp(-2 Z))``."""
    return 2.0 * Z / (1.0 - pow2(-min(2.0 * LOG2_E * Z, 1000.0))) if Z > 1e-4 else 1.0 + Z * (1.0 + Z / 3.0)


@scalar_kernel
def inverse_langevin(f):
    """Return ``Z >= 0`` with ``coth(Z) - 1/Z = f``, to rounding for every ``f`` in [0, 1)."""
    return f * langevin_ratio(f)


@kernel
def inverse_langevin_array(f, Z):
    """`inverse_langevin` of each element of the flat array ``f``, into ``Z``."""
    for i in range(f.shape[0]):
        Z[i] = inverse_langevin(f[i])


@scalar_kernel
def log2(x):
    """Return the logarithm to base 2 of a normal ``x > 0``, to 1e-13: ``x = 2^e m``, m in [1/sqrt 2, sqrt 2)."""
    bits = np.float64(x).view(np.int64)
    k = (bits - 0x3FE6A09E667F3BCD) >> 52
    m = np.int64(bits - (k << 52)).view(np.float64)
    # The integer is turned into a double by its bits, as in pow2.
    e = np.int64(k + 0x4338000000000000).view(np.float64) - 6755399441055744.0
    t = (m - 1.0) / (m + 1.0)
    s = t * t
    # 2/ln 2 atanh(t)
    series = 0.5770780163555854 + s * (
        0.4121985831111324
        + s * (0.3205988979753252 + s * (0.26230818925253882 + s * (0.22195308321368668 + s * 0.19235933878519512)))
    )
    return e + t * (2.8853900817779268 + s * (0.961796693925976 + s * series))
