"""
Continuous ("power") mixing, one equation a line and without a thought for speed.
The survival probability leaves 1/3 continuously on the side with the larger
integral of |G|; the form of the fall-off carries the one-angle schemes of Xiong
et al. (arXiv:2307.11129) and George et al. (arXiv:2409.08833) over to the
sphere. A second component does the same to the azimuthal mean of G about the
net flux.

A sample is the 4 x 6 matrix of `Box3D`. Densities are in units of the sample's
total density until the end.
"""
module Power

export power

using ..Lebedev: Rule
using ..Box3D: check_physical, distribution, minerbo

"The crossing fades with the integral of its smaller side, over the total density, on this scale."
const FADE = 1e-4

"The axial component fades with the net flux, over the integral of the axial |G|, on this scale."
const AXIS = 0.1

"Nodes along the axis, and in azimuth. The second rule is the trapezoid, exact to rounding for flux factors to 0.99."
const AXIAL_POINTS, AZIMUTHS = 24, 256

# ------------------------------------------------------------ small tools ---

dot(a, b) = a[1] * b[1] + a[2] * b[2] + a[3] * b[3]
cross(a, b) = [a[2] * b[3] - a[3] * b[2], a[3] * b[1] - a[1] * b[3], a[1] * b[2] - a[2] * b[1]]
norm(a) = sqrt(dot(a, a))

"Legendre polynomial of degree m and its derivative."
function legendre(m, x)
    before, now = one(x), x
    for k in 2:m
        before, now = now, ((2k - 1) * x * now - (k - 1) * before) / k
    end
    return now, m * (x * now - before) / (x^2 - 1)
end

"Nodes and weights of Gauss and Legendre on [-1, 1]."
function gauss_legendre(::Type{T}, m) where {T}
    nodes, weights = T[], T[]
    for i in 1:m
        x = cos(T(pi) * (T(i) - T(1) / 4) / (m + T(1) / 2))
        for _ in 1:100
            P, slope = legendre(m, x)
            x -= P / slope
            abs(P / slope) < 4eps(T) && break
        end
        _, slope = legendre(m, x)
        push!(nodes, x)
        push!(weights, 2 / ((1 - x^2) * slope^2))
    end
    return nodes, weights
end

# ---------------------------------------------------------------- the frame ---

"""
    frame(e, ebar, x, xbar, sign)

Rows: across, across, axis. The axis is that of the net flux `int G n`, towards
the larger side; the first row is the part across it of the electron (else of
the heavy) fluxes. The answer does not depend on the frame but for the error
of the quadrature; with one that turns with the sample, that error turns too.
"""
function frame(e, ebar, x, xbar, sign)
    T = eltype(e)
    net = sign * (e - ebar - x + xbar)[1:3]
    axis = norm(net) > 1e-12 ? net / norm(net) : T[0, 0, 1]
    other = abs(axis[1]) < 0.6 ? T[1, 0, 0] : T[0, 1, 0]
    for v in ((e + ebar)[1:3], (x + xbar)[1:3], other)
        across = v - dot(v, axis) * axis
        norm(across) > 1e-10 && return across / norm(across), cross(axis, across / norm(across)), axis
    end
end

# ------------------------------------------------------------------ mixing ---

"""
    falloff(G, s, p, a)

How much mixes, 1 for flavor equilibrium; G counts positive on the larger side.
"""
falloff(G, s, p, a) = G <= 0 ? one(G) : (1 + (G / s)^a)^(-p)

"""
    scale(w, G, p, a)

The s with `int falloff(G) G = 0`: the integral grows with s. Bisection of its logarithm, then the secants of Illinois.
"""
function scale(w, G::Vector{T}, p, a) where {T}
    integral(t) = sum(w .* falloff.(G, exp(t), p, a) .* G)
    low, high, before = T(-620), T(70), T(0)
    f_low, f_high = integral(low), integral(high)
    for step in 1:1000
        t = step > 12 ? (f_high * low - f_low * high) / (f_high - f_low) : (low + high) / 2
        low < t < high && abs(t - before) > 64eps(T) * max(abs(low), abs(high)) || return exp(t)
        f = integral(t)
        # The end that stays a second time counts half.
        if f < 0
            before < t && (f_high /= 2)
            low, f_low = t, f
        else
            before > t && (f_low /= 2)
            high, f_high = t, f
        end
        before = t
    end
    error("the scale did not converge")
end

"""
    component(w, G, moved, p, a)

`int h moved` with h of this G; `moved` holds one vector of eight numbers for
each node. Zero without a crossing; faded out as one closes.
"""
function component(w, G::Vector{T}, moved, p, a) where {T}
    I_plus, I_minus = sum(w .* max.(G, 0)), sum(w .* max.(.-G, 0))
    # The quadrature may find another side larger than the densities do, where a beam falls between its nodes.
    I_plus < I_minus && return component(w, -G, moved, p, a)
    I_small = I_minus
    I_small <= 1e-14 && return zeros(T, 8)
    h = falloff.(G, scale(w, G, p, a), p, a)
    fade = 1 - exp(-I_small / FADE)
    return fade * sum(w .* h .* moved)
end

"""
    power(F, rule; c=1, p=1, a=2, axial=0, p_axial=p, a_axial=a)

Final four-fluxes (4 x 6) of one sample `F` (4 x 6) by continuous mixing:
`1 - P = 2/3 c [(1 - b) h(G(n)) + b h(Gbar(zeta))]`, b the axial weight, faded
out as the net flux that gives the axis vanishes.
"""
function power(F::AbstractMatrix{T}, rule::Rule{T}; c=1, p=1, a=2, axial=0, p_axial=p, a_axial=a) where {T<:AbstractFloat}
    size(F) == (4, 6) || throw(ArgumentError("sample has size $(size(F)); expected (4, 6)"))
    foreach(s -> check_physical(F[:, s]), 1:6)
    total = sum(F[4, :])
    total == 0 && return copy(F)
    e, ebar = F[:, 1] / total, F[:, 4] / total
    x, xbar = (F[:, 2] + F[:, 3]) / (2total), (F[:, 5] + F[:, 6]) / (2total)
    species = minerbo.((e, ebar, x, xbar))

    sign = (e - ebar - x + xbar)[4] >= 0 ? 1 : -1
    first, second, axis = frame(e, ebar, x, xbar, sign)
    direction(u, v, zeta) = Tuple(u * first + v * second + zeta * axis)

    # In each direction: what nu_e and nubar_e would lose in full equilibrium with x, and G.
    function at(n)
        g_e, gbar_e, g_x, gbar_x = distribution.(species, Ref(n))
        moved = [(g_e - g_x) .* [n..., one(T)]; (gbar_e - gbar_x) .* [n..., one(T)]]
        return moved, sign * ((g_e - g_x) - (gbar_e - gbar_x))
    end

    values = [at(direction(n...)) for n in rule.n]
    on_sphere = component(rule.w, last.(values), Base.first.(values), p, a)

    # Around the axis, and how much of it there is.
    function axial_component()
        zetas, weights = gauss_legendre(T, AXIAL_POINTS)
        rings = map(zetas) do zeta
            ring = [at(direction(sqrt(1 - zeta^2) * cos(phi), sqrt(1 - zeta^2) * sin(phi), zeta))
                    for phi in 2 * T(pi) .* (0:AZIMUTHS-1) ./ AZIMUTHS]
            sum(Base.first.(ring)) / AZIMUTHS, sum(last.(ring)) / AZIMUTHS
        end
        w_axis, G_axis = 2 * T(pi) .* weights, last.(rings)
        both = sum(w_axis .* abs.(G_axis))
        net_flux = norm((e - ebar - x + xbar)[1:3])
        b = both > 0 ? axial * (1 - exp(-(net_flux / (AXIS * both))^2)) : zero(T)
        return component(w_axis, G_axis, Base.first.(rings), p_axial, a_axial), b
    end

    on_axis, b = axial == 0 ? (zeros(T, 8), zero(T)) : axial_component()
    D = total * 2 * c / T(3) * ((1 - b) * on_sphere + b * on_axis)
    lost, lostbar = D[1:4], D[5:8]
    return [F[:, 1] - lost F[:, 2] + lost / 2 F[:, 3] + lost / 2 F[:, 4] - lostbar F[:, 5] + lostbar / 2 F[:, 6] + lostbar / 2]
end

end
