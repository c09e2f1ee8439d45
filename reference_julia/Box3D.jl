"""
The Box3D scheme for the outcome of the fast flavor instability, one equation a
line: section III of Richers, Froustey, Ghosh, Foucart and Gomez,
arXiv:2409.04405 ("the paper" below).

A sample is a 4 x 6 matrix: rows are the components (x, y, z, t) of a four-flux,
t the number density; columns are the species (nu_e, nu_mu, nu_tau, nubar_e,
nubar_mu, nubar_tau). In memory that is the order of a C-contiguous (6, 4)
array. Every function takes any floating-point type: the same lines evaluated
in BigFloat give the golden files.
"""
module Box3D

export box3d, inverse_langevin, langevin, minerbo, distribution

using ..Lebedev: Rule

# ---------------------------------------------------------------- closure ---

"""
    langevin(Z)

Flux factor of the Minerbo distribution, `coth Z - 1/Z` (the paper, section III).
Below Z = 1 the two terms cancel, so there it is the quotient of the power
series of `(Z cosh Z - sinh Z) / Z` and `sinh Z`, whose terms are all positive.
"""
function langevin(Z::T) where {T<:AbstractFloat}
    Z >= 1 && return coth(Z) - 1 / Z
    numerator, denominator = zero(T), zero(T)
    term = one(T)  # Z^2k / (2k + 1)!
    k = 0
    while term > eps(T) * denominator / 8
        numerator += term / (2k + 3)
        denominator += term
        k += 1
        term *= Z^2 / (2k * (2k + 1))
    end
    return Z * numerator / denominator
end

"""
    langevin_derivative(Z)

`1/Z^2 - 1/sinh(Z)^2`, or the equivalent `1 - L^2 - 2 L/Z` where those cancel.
"""
function langevin_derivative(Z::T) where {T<:AbstractFloat}
    Z >= 1 && return 1 / Z^2 - 1 / sinh(Z)^2
    L = langevin(Z)
    return 1 - L^2 - 2L / Z
end

"""
    deficit(Z, f)

`f - langevin(Z)`, arranged so that no accuracy is lost as f -> 1, where both
are close to 1 and Z is close to 1/(1 - f).
"""
function deficit(Z::T, f::T) where {T<:AbstractFloat}
    Z >= 1 && return (1 / Z - (1 - f)) - 2 / expm1(2Z)
    return f - langevin(Z)
end

"""
    inverse_langevin(f)

The Minerbo parameter Z with `coth Z - 1/Z = f`, for 0 <= f < 1, to rounding.

Newton's method from below. The Langevin function is increasing and concave, so
its tangents lie above it and the iterates rise to the root without passing it:
no bracket and no upper limit on Z is needed. Both starting values are lower
bounds: 3f because L(Z) <= Z/3, and, exact in the limit f -> 1, h(3f)/(1-f),
because Z = h(Z)/(1-f) with the increasing function h(Z) = 1 - 2Z/(exp(2Z) - 1).
"""
function inverse_langevin(f::T) where {T<:AbstractFloat}
    0 <= f < 1 || throw(DomainError(f, "a flux factor must be in [0, 1)"))
    f == 0 && return zero(T)
    Z = 3f
    if f > 0.5
        Z = max(Z, (1 - 2Z / expm1(2Z)) / (1 - f))
    end
    for _ in 1:200
        step = deficit(Z, f) / langevin_derivative(Z)
        Z += step
        step <= 4eps(T) * Z && return Z
    end
    error("inverse_langevin did not converge for f = $f")
end

"One species: `g(n) = amplitude * exp(Z (Fhat.n - 1))`."
struct Minerbo{T<:AbstractFloat}
    amplitude::T
    Z::T
    Fhat::NTuple{3,T}
end

"Flux factors above this are treated as this; no quadrature here resolves either."
const LARGEST_FLUX_FACTOR = 1 - 1e-12

"Flux factors up to this much above 1 count as rounding of f = 1."
const FLUX_FACTOR_SLACK = 1e-10

"""
    check_physical(F)

Throw an `ArgumentError` unless the four-flux is finite, `N >= 0` and `|F| <= N`.
"""
function check_physical(F)
    all(isfinite, F) || throw(ArgumentError("four-flux $F is not finite"))
    F[4] >= 0 || throw(ArgumentError("four-flux $F has a negative density"))
    flux = hypot(hypot(F[1], F[2]), F[3])
    flux <= F[4] * (1 + FLUX_FACTOR_SLACK) ||
        throw(ArgumentError("four-flux $F has |F| = $flux above its density"))
end

"""
    minerbo(F)

Parameters of the maximum-entropy distribution with four-flux `F = (x, y, z, t)`:
`g(n) = N/(4 pi) * Z/sinh(Z) * exp(Z Fhat.n)` (the paper, section III), written as
`N/(4 pi) * 2Z/(1 - exp(-2Z)) * exp(Z (Fhat.n - 1))`, which cannot overflow.

An empty species (N = 0) gives g = 0, a vanishing flux gives g = N/(4 pi).
"""
function minerbo(F)
    N = F[4]
    T = typeof(N)
    pole = (zero(T), zero(T), one(T))  # any direction will do where Z = 0
    N == 0 && return Minerbo{T}(zero(T), zero(T), pole)
    v = (F[1] / N, F[2] / N, F[3] / N)
    f = sqrt(v[1]^2 + v[2]^2 + v[3]^2)
    f == 0 && return Minerbo{T}(N / (4 * T(pi)), zero(T), pole)
    Fhat = (v[1] / f, v[2] / f, v[3] / f)
    Z = inverse_langevin(min(f, T(LARGEST_FLUX_FACTOR)))
    amplitude = N / (4 * T(pi)) * 2Z / (-expm1(-2Z))
    return Minerbo{T}(amplitude, Z, Fhat)
end

"Value of the Minerbo distribution in the direction `n`."
function distribution(g::Minerbo{T}, n::NTuple{3,T}) where {T}
    cosine = g.Fhat[1] * n[1] + g.Fhat[2] * n[2] + g.Fhat[3] * n[3]
    return g.amplitude * exp(g.Z * (cosine - 1))
end

# ----------------------------------------------------------------- mixing ---

"""
    survival_probabilities(I_plus, I_minus)

Survival probability of nu_e where G > 0 and where G < 0 (the paper, section III):
1/3 on the side with the smaller integral, and on the other what conserves the
number of leptons per flavor. Without a crossing, nothing changes: P = 1.

A rule with a negative weight can make the small integral negative. It
then does not resolve the crossing, which counts as none.
"""
function survival_probabilities(I_plus::T, I_minus::T) where {T}
    min(I_plus, I_minus) <= 0 && return one(T), one(T)
    P_small = one(T) / 3
    P_large = 1 - 2 * min(I_plus, I_minus) / (3 * max(I_plus, I_minus))
    return I_plus <= I_minus ? (P_small, P_large) : (P_large, P_small)
end

"""
    exchange(w, P, difference, n)

`D = int (1 - P)(g_e - g_x)(n, 1)`, the four-flux that nu_e hands to the heavy
flavors: the conservative form of `g_e' = P g_e + (1 - P) g_x`.
"""
function exchange(w, P, difference, n)
    moved = w .* (1 .- P) .* difference
    D_x = sum(moved .* getindex.(n, 1))
    D_y = sum(moved .* getindex.(n, 2))
    D_z = sum(moved .* getindex.(n, 3))
    D_t = sum(moved)
    return [D_x, D_y, D_z, D_t]
end

"""
    share(F_mu, F_tau, D, mu_fraction)

Final mu and tau four-fluxes. `nothing` gives each half of D, which
preserves their difference; a number is the fraction of the heavy total that
becomes mu.
"""
share(F_mu, F_tau, D, ::Nothing) = F_mu + D / 2, F_tau + D / 2

function share(F_mu, F_tau, D, mu_fraction::Real)
    total = F_mu + F_tau + D
    return mu_fraction * total, (1 - mu_fraction) * total
end

"""
    box3d(F, rule; mu_fraction=nothing)

Box3D for one sample `F` (4 x 6). Returns a named tuple: the final four-fluxes
`F`, `P_plus` and `P_minus`, `I_plus` and `I_minus`, and `G` at the nodes.

A node belongs to the plus side where G > 0 and to the minus side otherwise.
Without a crossing `F` is returned unchanged, whatever `mu_fraction` is.
Throws an `ArgumentError` for an unphysical four-flux.
"""
function box3d(F::AbstractMatrix{T}, rule::Rule{T}; mu_fraction=nothing) where {T<:AbstractFloat}
    size(F) == (4, 6) || throw(ArgumentError("sample has size $(size(F)); expected (4, 6)"))
    n, w = rule.n, rule.w
    F_e, F_mu, F_tau, Fbar_e, Fbar_mu, Fbar_tau = (F[:, s] for s in 1:6)
    foreach(check_physical, (F_e, F_mu, F_tau, Fbar_e, Fbar_mu, Fbar_tau))

    # One heavy flavor nu_x stands for both: the mean of mu and tau, not their sum.
    F_x = (F_mu + F_tau) / 2
    Fbar_x = (Fbar_mu + Fbar_tau) / 2

    g_e = distribution.(Ref(minerbo(F_e)), n)
    g_x = distribution.(Ref(minerbo(F_x)), n)
    gbar_e = distribution.(Ref(minerbo(Fbar_e)), n)
    gbar_x = distribution.(Ref(minerbo(Fbar_x)), n)

    G = (g_e .- gbar_e) .- (g_x .- gbar_x)
    I_plus = sum(w .* max.(G, 0))
    I_minus = sum(w .* max.(.-G, 0))
    P_plus, P_minus = survival_probabilities(I_plus, I_minus)
    diagnostics = (P_plus=P_plus, P_minus=P_minus, I_plus=I_plus, I_minus=I_minus, G=G)
    P_plus == P_minus == 1 && return (F=copy(F), diagnostics...)

    P = ifelse.(G .> 0, P_plus, P_minus)
    D = exchange(w, P, g_e .- g_x, n)
    Dbar = exchange(w, P, gbar_e .- gbar_x, n)

    mu, tau = share(F_mu, F_tau, D, mu_fraction)
    mubar, taubar = share(Fbar_mu, Fbar_tau, Dbar, mu_fraction)
    return (F=[F_e - D mu tau Fbar_e - Dbar mubar taubar], diagnostics...)
end

end
