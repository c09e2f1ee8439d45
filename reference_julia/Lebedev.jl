"""
Lebedev quadrature on the unit sphere.

A Lebedev rule is invariant under the octahedral group: its nodes are the orbits
of a few generators under permutations of the axes and changes of sign. The
table `lebedev_orbits.csv` holds one generator per line (order, class, x >= y >=
z >= 0, weight), after Lebedev and Laikov (1999), Doklady Mathematics 59, 477.
The weights sum to 4 pi. [`check`](@ref) proves every rule from closed forms,
without another implementation.
"""
module Lebedev

export Rule, lebedev_rule, lebedev_orders

const TABLE = joinpath(@__DIR__, "lebedev_orbits.csv")

"Number of nodes in the orbit of a generator, by class."
const ORBIT_SIZE = Dict(
    "a1" => 6,   # (1, 0, 0): vertices of the octahedron
    "a2" => 12,  # (1, 1, 0) / sqrt 2: midpoints of its edges
    "a3" => 8,   # (1, 1, 1) / sqrt 3: centres of its faces
    "b" => 24,   # (l, l, m)
    "c" => 24,   # (p, q, 0)
    "d" => 48,   # (r, s, t), all different
)

"Nodes `n` and weights `w` that integrate polynomials up to degree `order`."
struct Rule{T<:AbstractFloat}
    order::Int
    n::Vector{NTuple{3,T}}
    w::Vector{T}
end

"The same rule with nodes and weights held as numbers of type `T`."
Rule{T}(rule::Rule) where {T} = Rule{T}(rule.order, [T.(n) for n in rule.n], T.(rule.w))

"All distinct points that permutations and sign changes make of `generator`."
function orbit(generator::NTuple{3,Float64})
    points = Set{NTuple{3,Float64}}()
    for (i, j, k) in ((1, 2, 3), (1, 3, 2), (2, 1, 3), (2, 3, 1), (3, 1, 2), (3, 2, 1))
        for sx in (1, -1), sy in (1, -1), sz in (1, -1)
            point = (sx * generator[i], sy * generator[j], sz * generator[k])
            push!(points, point .+ 0.0)  # -0.0 + 0.0 = 0.0: one point, not two
        end
    end
    return sort!(collect(points))
end

"Read the generators of every order: `order => [(class, generator, weight), ...]`."
function read_table(path::AbstractString)
    table = Dict{Int,Vector{Tuple{String,NTuple{3,Float64},Float64}}}()
    for line in readlines(path)[2:end]
        order, class, x, y, z, weight = split(line, ',')
        generator = (parse(Float64, x), parse(Float64, y), parse(Float64, z))
        entry = (String(class), generator, parse(Float64, weight))
        push!(get!(() -> [], table, parse(Int, order)), entry)
    end
    return table
end

"The orders in the table, ascending."
lebedev_orders() = sort!(collect(keys(read_table(TABLE))))

"The Lebedev rule that is exact up to degree `order`."
function lebedev_rule(order::Integer)
    table = read_table(TABLE)
    haskey(table, order) || throw(ArgumentError(
        "no Lebedev rule of order $order; available: " * join(lebedev_orders(), ", ")))
    n = NTuple{3,Float64}[]
    w = Float64[]
    for (class, generator, weight) in table[order]
        points = orbit(generator)
        length(points) == ORBIT_SIZE[class] || error(
            "order $order: $generator has $(length(points)) images, class $class needs $(ORBIT_SIZE[class])")
        append!(n, points)
        append!(w, fill(weight, length(points)))
    end
    return Rule{Float64}(order, n, w)
end

"k!! as a floating-point number, with (-1)!! = 1."
double_factorial(k::Integer) = prod(big(k):big(-2):big(1))

"""
Closed form of the integral of x^2a y^2b z^2c over the sphere:
4 pi (2a-1)!! (2b-1)!! (2c-1)!! / (2a+2b+2c+1)!!.
"""
function monomial_integral(a::Integer, b::Integer, c::Integer)
    numerator = double_factorial(2a - 1) * double_factorial(2b - 1) * double_factorial(2c - 1)
    return Float64(4 * big(pi) * numerator / double_factorial(2 * (a + b + c) + 1))
end

"""
Largest absolute error over the monomials x^2a y^2b z^2c up to the rule's
degree. The octahedral symmetry makes a >= b >= c sufficient, and
odd powers vanish by it.
"""
function monomial_error(rule::Rule)
    half = rule.order ÷ 2
    squares = [[p[k]^2 for p in rule.n] for k in 1:3]
    worst = 0.0
    power_c = copy(rule.w)
    for c in 0:half÷3
        power_bc = power_c .* squares[2] .^ c
        for b in c:(half-c)÷2
            power_abc = power_bc .* squares[1] .^ b
            for a in b:half-b-c
                worst = max(worst, abs(sum(power_abc) - monomial_integral(a, b, c)))
                power_abc .*= squares[1]
            end
            power_bc .*= squares[2]
        end
        power_c .*= squares[3]
    end
    return worst
end

"""
Largest absolute error over all orthonormal real spherical harmonics Y_lm with
l <= order, whose integrals are sqrt(4 pi) for l = 0 and zero otherwise.

They are far better scaled than high monomials, whose integrals become smaller
than any tolerance. Y_lm = Q_lm(z) Re or Im (x + i y)^m, where Q_lm follows the
three-term recurrence of the normalised Legendre functions in l.
"""
function harmonic_error(rule::Rule)
    L = rule.order
    z = [p[3] for p in rule.n]
    power = [complex(wi, 0.0) for wi in rule.w]  # w (x + i y)^m
    xy = [complex(p[1], p[2]) for p in rule.n]
    diagonal = sqrt(1 / (4pi))  # Q_mm
    worst = 0.0
    for m in 0:L
        previous = zeros(length(z))
        current = fill(diagonal, length(z))
        for l in m:L
            exact = l == 0 ? sqrt(4pi) : 0.0
            integral = sum(power .* current) * (m == 0 ? 1.0 : sqrt(2.0))
            worst = max(worst, abs(real(integral) - exact), abs(imag(integral)))
            scale = sqrt((4(l + 1)^2 - 1) / ((l + 1)^2 - m^2))
            back = l == m ? 0.0 : sqrt((l^2 - m^2) / (4l^2 - 1))
            previous, current = current, scale .* (z .* current .- back .* previous)
        end
        power .*= xy
        diagonal *= sqrt((2m + 3) / (2m + 2))
    end
    return worst
end

"""
    check(io; tolerance=1e-13)

Verify every rule in the table and print one line each; true when all pass.
"""
function check(io::IO; tolerance=1e-13)
    ok = true
    for order in lebedev_orders()
        rule = lebedev_rule(order)
        norm = maximum(abs(sqrt(sum(abs2, p)) - 1) for p in rule.n)
        total = abs(sum(rule.w) - 4pi)
        monomials = monomial_error(rule)
        harmonics = harmonic_error(rule)
        pass = norm <= 4eps() && max(total, monomials, harmonics) <= tolerance
        ok &= pass
        println(io, "order ", lpad(order, 3), ", ", lpad(length(rule.w), 4), " nodes",
            ": |n| - 1 ", round(norm, sigdigits=2),
            ", sum of weights - 4 pi ", round(total, sigdigits=2),
            ", monomials ", round(monomials, sigdigits=2),
            ", harmonics ", round(harmonics, sigdigits=2),
            pass ? "  ok" : "  FAILED")
    end
    return ok
end

end
