"""
Asymptotic mixing, the state in which three-dimensional simulations settle:
"The settled state" in docs/physics.md, one equation a line. Its quadrature is
its own: Gauss and Legendre along z times the trapezoid in azimuth, at rest in
the frame of the sample.

A sample is the 4 x 6 matrix of `Box3D`. Lepton numbers `L` are 3 x m, one
column a direction; transition probabilities `p[a, b, i]` go from flavor a to
flavor b in direction i.
"""
module Asymptotic

export asymptotic, crossing_pairs, sphere

using ..Lebedev: Rule
using ..Box3D: check_physical, distribution, minerbo
using ..Power: gauss_legendre

const PAIRS = ((1, 2), (1, 3), (2, 3))

"Which flavors go to the first, second and third place, for each of the six permutations."
const PERMUTATIONS = ((1, 2, 3), (2, 1, 3), (1, 3, 2), (2, 3, 1), (3, 1, 2), (3, 2, 1))

"A side of a crossing below this part of the total density is rounding."
const NOISE = 1e-14

"`points` nodes in z times twice as many in azimuth: flux factors up to 0.95 to rounding from 48 on, but for the kink at G = 0."
function sphere(points)
    z, weights = gauss_legendre(Float64, points)
    phis = [pi * (k + 0.5) / points for k in 0:2points-1]
    n = [(sqrt(1 - zi^2) * cos(phi), sqrt(1 - zi^2) * sin(phi), zi) for zi in z for phi in phis]
    w = [weight * pi / points for weight in weights for _ in phis]
    return Rule{Float64}(2points - 1, n, w)
end

# ------------------------------------------------------------------- roots ---

"""
    root(f, near=0)

The logarithm at which the monotonic `f` changes its sign; where it does not
between -40 and 40, one end, where all has its limit. The bracket grows from
`near`; then Ridders' method (1979), bisection on `f` times an exponential.
"""
function root(f, near=0.0)
    low = high = near
    f_low = f_high = f(near)
    width = 0.5
    while sign(f_low) == sign(f_high) != 0
        low == -40 && high == 40 && return abs(f_low) < abs(f_high) ? low : high
        low, high = max(near - width, -40.0), min(near + width, 40.0)
        f_low, f_high = f(low), f(high)
        width *= 4
    end
    f_low == 0 && return low
    f_high == 0 && return high
    for _ in 1:60
        middle = (low + high) / 2
        f_middle = f(middle)
        f_middle == 0 && return middle
        x = middle + (middle - low) * sign(f_low) * f_middle / sqrt(f_middle^2 - f_low * f_high)
        f_x = f(x)
        f_x == 0 && return x
        ends = sort([(low, f_low), (middle, f_middle), (x, f_x), (high, f_high)])
        k = findfirst(k -> sign(ends[k][2]) != sign(ends[k+1][2]), 1:3)
        (low, f_low), (high, f_high) = ends[k], ends[k+1]
        high - low < 1e-12 && break
    end
    return (low + high) / 2
end

# ------------------------------------------------------------- two flavors ---

"`c / sqrt(1 + c^2)`."
share_out(c) = c / sqrt(1 + c^2)

"Integrals of |G| over both sides, rounding left out."
function sides(w, G, total)
    plus, minus = sum(w .* max.(G, 0)), sum(w .* max.(.-G, 0))
    return min(plus, minus) > NOISE * total ? (plus, minus) : (0.0, 0.0)
end

"""
    survival(w, G, least)

`P = least + a G/sqrt(G^2 + s^2)`, a = 1 - least on the side with the larger
integral and least on the other, `int (1 - P) G = 0`. `least` is the value at
the crossing, one over the number of flavors that mix there.
"""
function survival(w, G, least)
    G = G .* sign(sum(w .* G)) ./ maximum(abs, G)
    P(log_s) = [least + (g > 0 ? 1 - least : least) * share_out(g / exp(log_s)) for g in G]
    return P(root(log_s -> sum(w .* (1 .- P(log_s)) .* G)))
end

# ----------------------------------------------------------- three flavors ---

"""
    permutation_weights(L, alpha, beta)

Probabilities of the six permutations in one direction, for `lambda` that falls
by `alpha` from the first flavor to the second and by `beta` to the third.
Permutation pi has the value `e = sum_a L_a lambda_pi(a)` and lacks
`c = max e - e` to the best, which has the flavors in the order of their L. All
those with c < t are equally likely, and `P(t < c) = c/sqrt(1 + c^2)`.
"""
function permutation_weights(L, alpha, beta)
    # From distances in L: of e itself, a large beta would leave no digit of alpha.
    low, high = extrema(L)
    u = map(pi -> share_out(alpha * (high - L[pi[1]]) + beta * (L[pi[3]] - low)), PERMUTATIONS)
    # A threshold between two neighboring costs admits the k permutations up to the lower one.
    ends = sort!([u..., 1.0])
    weights = zeros(6)
    for k in 1:6
        each = (ends[k+1] - ends[k]) / k
        for j in 1:6
            u[j] <= ends[k] && (weights[j] += each)
        end
    end
    return weights
end

"Total lepton number of flavor `b` after mixing."
function total_after(w, L, alpha, beta, b)
    total = 0.0
    for i in eachindex(w)
        weights = permutation_weights((L[1, i], L[2, i], L[3, i]), alpha, beta)
        for (weight, pi) in zip(weights, PERMUTATIONS)
            total += w[i] * weight * L[pi[b], i]
        end
    end
    return total
end

"""
    three_flavors(w, L)

`p` of all three flavors: lambda has the order of the conserved totals, and its
two differences follow from `int L'_a = int L_a`.
"""
function three_flavors(w, L)
    L = L ./ maximum(abs, L)
    totals = [sum(w .* L[a, :]) for a in 1:3]
    order = sortperm(totals; rev=true)
    L, totals = L[order, :], totals[order]

    after(b, log_alpha, log_beta) = total_after(w, L, exp(log_alpha), exp(log_beta), b)

    # The lowest keeps its total by beta, for each alpha; the highest by alpha.
    last = Ref(0.0)
    beta(log_alpha) = last[] = root(log_beta -> totals[3] - after(3, log_alpha, log_beta), last[])
    log_alpha = root(log_alpha -> after(1, log_alpha, beta(log_alpha)) - totals[1])
    log_beta = beta(log_alpha)

    p = zeros(3, 3, length(w))
    for i in eachindex(w)
        weights = permutation_weights((L[1, i], L[2, i], L[3, i]), exp(log_alpha), exp(log_beta))
        for (weight, pi) in zip(weights, PERMUTATIONS), b in 1:3
            p[order[pi[b]], order[b], i] += weight
        end
    end
    return p
end

"Rows `L'_b = sum_a L_a p_ab`, for L of any species."
carry(p, L) = [sum(L[a, i] * p[a, b, i] for a in 1:3) for b in 1:3, i in axes(L, 2)]

"No mixing, in m directions."
function identity_matrices(m)
    p = zeros(3, 3, m)
    for a in 1:3
        p[a, a, :] .= 1
    end
    return p
end

"""
    transitions(w, L, total)

`p` where mu and tau differ. The pair with the strongest crossing,
`sigma = sqrt(I+ I-)`, mixes first, by the share 1 - second/strongest; then all
three do.
"""
function transitions(w, L, total)
    m = length(w)
    p = identity_matrices(m)
    G(a, b) = L[a, :] .- L[b, :]
    sigma = [sqrt(prod(sides(w, G(a, b), total))) for (a, b) in PAIRS]
    strongest, second = sort(sigma; rev=true)
    strongest == 0 && return p
    share = 1 - second / strongest
    a, b = PAIRS[argmax(sigma)]
    leave = share .* (1 .- survival(w, G(a, b), 1 / 2))
    p[a, a, :] .-= leave
    p[b, b, :] .-= leave
    p[a, b, :] .= p[b, a, :] .= leave
    second == 0 && return p
    q = three_flavors(w, carry(p, L))
    return [sum(p[a, c, i] * q[c, b, i] for c in 1:3) for a in 1:3, b in 1:3, i in 1:m]
end

"`p` where mu and tau are alike: what leaves e is shared by both, and the two stay alike."
function transitions_alike(w, L, total)
    p = identity_matrices(length(w))
    G = L[1, :] .- L[2, :]
    sides(w, G, total) == (0.0, 0.0) && return p
    P = survival(w, G, 1 / 3)
    p[1, 1, :] .= P
    p[1, 2, :] .= p[1, 3, :] .= p[2, 1, :] .= p[3, 1, :] .= (1 .- P) ./ 2
    p[2, 2, :] .= p[2, 3, :] .= p[3, 2, :] .= p[3, 3, :] .= (1 .+ P) ./ 4
    return p
end

# ----------------------------------------------------------------- samples ---

"Distributions of the six species (6 x m), over the total density."
function distributions(F, rule)
    total = sum(F[4, :])
    return [distribution(g, n) for g in minerbo.([F[:, s] / total for s in 1:6]), n in rule.n]
end

"Which of the pairs e-mu, e-tau, mu-tau have a crossing."
function crossing_pairs(F, rule)
    g = distributions(F, rule)
    return [sides(rule.w, g[a, :] .- g[a+3, :] .- g[b, :] .+ g[b+3, :], 1.0) != (0.0, 0.0) for (a, b) in PAIRS]
end

"""
    asymptotic(F, rule)

Final four-fluxes (4 x 6) of one sample `F` (4 x 6). Neutrinos and
antineutrinos have the same transition probabilities. A sample without a
crossing comes back as it is.
"""
function asymptotic(F::AbstractMatrix{Float64}, rule::Rule{Float64})
    size(F) == (4, 6) || throw(ArgumentError("sample has size $(size(F)); expected (4, 6)"))
    foreach(s -> check_physical(F[:, s]), 1:6)
    total = sum(F[4, :])
    total == 0 && return copy(F)
    g = distributions(F, rule)
    alike = F[:, 2] == F[:, 3] && F[:, 5] == F[:, 6]
    p = (alike ? transitions_alike : transitions)(rule.w, g[1:3, :] .- g[4:6, :], 1.0)
    all(p .== identity_matrices(length(rule.w))) && return copy(F)
    change = [carry(p, g[1:3, :]); carry(p, g[4:6, :])] .- g
    moments = [[n[k] for n in rule.n] for k in 1:3]
    push!(moments, ones(length(rule.w)))
    return [F[k, s] + total * sum(rule.w .* change[s, :] .* moments[k]) for k in 1:4, s in 1:6]
end

end
